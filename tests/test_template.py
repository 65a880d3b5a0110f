"""The SAM template under AWS's own linters, and what they do not look at."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

SAM = ROOT / ".venv-dev" / "bin" / "sam"


class _Loader(yaml.SafeLoader):
    """YAML with CloudFormation's short functions, which stay `{tag: value}`."""


def _function(loader: yaml.SafeLoader, tag: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        return {tag: loader.construct_scalar(node)}
    assert isinstance(node, yaml.SequenceNode)
    return {tag: loader.construct_sequence(node)}


_Loader.add_multi_constructor("!", _function)


@pytest.fixture(scope="module")
def template() -> dict[str, Any]:
    loaded = yaml.load((ROOT / "template.yaml").read_text(), _Loader)
    assert isinstance(loaded, dict)
    return loaded


@pytest.mark.skipif(not SAM.exists(), reason="SAM is not installed: `make test` does")
def test_sam_finds_the_template_valid(tmp_path: Path) -> None:
    done = subprocess.run(
        [SAM, "validate", "--lint", "--region", "eu-central-1", "-t", ROOT / "template.yaml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"SAM_CLI_TELEMETRY": "0", "HOME": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_api_is_closed_to_requests_that_are_not_signed(template: dict[str, Any]) -> None:
    auth = template["Resources"]["Api"]["Properties"]["Auth"]
    assert auth == {"EnableIamAuthorizer": True, "DefaultAuthorizer": "AWS_IAM"}
    for event in template["Resources"]["Function"]["Properties"]["Events"].values():
        assert "Auth" not in event["Properties"]


def test_the_api_is_throttled(template: dict[str, Any]) -> None:
    limits = template["Resources"]["Api"]["Properties"]["DefaultRouteSettings"]
    assert limits["ThrottlingRateLimit"] <= 100


def test_the_function_ends_before_the_api_gives_up(template: dict[str, Any]) -> None:
    assert template["Parameters"]["Timeout"]["Default"] < 30


def test_every_route_of_the_api_is_one_of_the_handlers(template: dict[str, Any]) -> None:
    from handler.events import ROUTES

    routes = [
        (event["Properties"]["Path"], event["Properties"]["Method"])
        for event in template["Resources"]["Function"]["Properties"]["Events"].values()
    ]
    assert len(routes) == len(ROUTES)
    assert all(method in ROUTES[path] for path, method in routes)


def test_what_the_dockerfile_copies_is_let_through_by_dockerignore() -> None:
    copied = [
        line.split()[1].replace("${MODEL}", "models/none")
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
    ]
    ignore = (ROOT / ".dockerignore").read_text().split()
    assert len(copied) > 5
    for source in copied:
        assert {f"!{source}", f"!{Path(source).parent}"} & {*ignore}, source
        assert (ROOT / source).exists()
