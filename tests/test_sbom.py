"""The software bill of materials of the image."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gpt2core import __version__
from tests.conftest import ROOT

PYTHON = ROOT / ".venv-audit" / "bin" / "python"
pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(600),
    pytest.mark.skipif(not PYTHON.exists(), reason="`make image-test` installs .venv-audit"),
]


def write(image: str, out: Path) -> str:
    done = subprocess.run(
        [PYTHON, ROOT / "scripts" / "sbom.py", image, out],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return out.read_text()


@pytest.fixture(scope="module")
def bill(image: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    text = write(image, tmp_path_factory.mktemp("bill") / "image.cdx.json")
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


def test_the_sbom_is_cyclonedx_for_this_version(bill: dict[str, Any]) -> None:
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == __version__


def test_the_sbom_has_all_packages_of_the_lock(bill: dict[str, Any]) -> None:
    lock = (ROOT / "requirements" / "image.txt").read_text()
    locked = dict(re.findall(r"^([a-z][\w-]*)==(\S+) \\$", lock, re.MULTILINE))  # no marker
    listed = {c["purl"] for c in bill["components"] if "purl" in c}
    assert len(locked) > 15
    assert {f"pkg:pypi/{name}@{version}" for name, version in locked.items()} <= listed


def test_the_sbom_has_parts_of_wheels_and_packages_of_the_base(bill: dict[str, Any]) -> None:
    by_name = {c["name"]: c for c in bill["components"]}
    assert any("openblas" in name for name, c in by_name.items() if c["type"] == "file")
    assert "pyo3" in {part["name"] for part in by_name["tokenizers"]["components"]}
    assert any(c.get("purl", "").startswith("pkg:deb/debian/libc6@") for c in by_name.values())


def test_the_sbom_has_dependencies(bill: dict[str, Any]) -> None:
    needs = {d["ref"].partition("@")[0]: d.get("dependsOn", []) for d in bill["dependencies"]}
    assert any(n.startswith("pkg:pypi/botocore@") for n in needs["pkg:pypi/boto3"])


def test_the_same_image_gives_the_same_bytes(image: str, tmp_path: Path) -> None:
    assert write(image, tmp_path / "one") == write(image, tmp_path / "two")
