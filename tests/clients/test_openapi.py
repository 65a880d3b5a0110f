"""`GET /openapi.json` with third-party validators."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from handler.openapi import document
from tests.support.serve import serve

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
)
LEAST_CASES = 2000

pytestmark = [
    pytest.mark.clients,
    pytest.mark.filterwarnings("ignore"),
]  # a warning of the validator


def test_the_document_is_openapi_3_1() -> None:
    from openapi_spec_validator import OpenAPIV31SpecValidator

    assert [str(error) for error in OpenAPIV31SpecValidator(document()).iter_errors()] == []


def test_the_routes_conform_to_the_document(tmp_path: Path) -> None:
    """Schemathesis sends valid and invalid requests according to the schemas."""
    for address in serve(tmp_path / "log"):
        done = subprocess.run(
            [Path(sys.executable).with_name("st"), "run", f"{address}/openapi.json",
             "--url", address, "--phases", "coverage,fuzzing", "--max-examples", "150",
             "--checks", ",".join(CHECKS), "--seed", "1", "--generation-database", "none"],
            capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"NO_COLOR": "1"},
            check=False, timeout=110,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    cases = re.search(r"(\d+) generated", done.stdout)
    assert cases
    assert int(cases[1]) >= LEAST_CASES
