"""The commands of README and docs: run as they are printed, or compared with what runs elsewhere.

`make image-test` runs `docker` and `sam local`: here their options are compared with those of its
tests. `make test-clients` runs the snippets of clients. Commands that need an AWS account are
compared with botocore's models, SAM's own options and the parameters of the template.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from handler.telemetry import PHASES
from tests.conftest import ROOT
from tests.support.cloudformation import Stack
from tests.support.docs import PAGES, README, code_blocks, commands
from tests.support.ports import free_ports, wait_for
from tests.support.serve import serve

LOCAL = "http://127.0.0.1:8080"
EMULATED = "http://127.0.0.1:9000"
SAM = ROOT / ".venv-dev" / "bin" / "sam"
# Downloads need a bucket or the Hub: tests/handler/store runs `fetch` against local servers. A
# server runs until it is stopped.
NOT_RUN_HERE = ("python -m handler fetch", "python -m handler serve")

CURLS = [command for command in commands("curl ") if LOCAL in command]
PYTHONS = [c for c in commands(r"python -m (?:handler|gpt2core)") if not c.startswith(NOT_RUN_HERE)]
needs_curl = pytest.mark.skipif(not shutil.which("curl"), reason="curl is not installed")
needs_sam = pytest.mark.skipif(not SAM.exists(), reason="SAM is not installed: `make test` does")


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    yield from serve(tmp_path_factory.mktemp("serve") / "log")


def run(command: str) -> str:
    """What a command prints; it must succeed."""
    command = re.sub(r"^python ", f"{sys.executable} ", command)
    command = re.sub(r"^curl ", "curl -sS --fail-with-body ", command)
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_docs_contain_commands() -> None:
    assert len(CURLS) >= 5
    assert len(PYTHONS) >= 5


@needs_curl
@pytest.mark.parametrize("command", CURLS)
def test_curl_commands_in_the_docs_work_with_the_local_server(command: str, address: str) -> None:
    assert "text" in run(command.replace(LOCAL, address))


@needs_curl
def test_the_first_request_of_the_readme_has_the_reply_that_follows_it(address: str) -> None:
    command, printed = code_blocks(README)[:2]
    printed = " ".join(line for line in printed.splitlines() if not line.startswith("#"))
    expected = json.loads(printed.replace("{…}", "{}"))
    reply = json.loads(run(command.strip().replace(LOCAL, address)))
    assert list(reply) == list(expected)
    assert tuple(reply["timings_ms"]) == PHASES
    varying = ("timings_ms", "cold_start")  # another test may have opened the model
    assert {k: v for k, v in reply.items() if k not in varying} == {
        k: v for k, v in expected.items() if k not in varying
    }


@pytest.mark.parametrize("command", PYTHONS)
def test_python_commands_in_the_docs_work(command: str, tmp_path: Path) -> None:
    command = re.sub(r"/path/to/gpt2 \S+", f"models/demo {tmp_path}/packed", command)
    command = re.sub(r"\bDIR\b", "models/demo", command)
    if " verify " in command:  # there are published results of GPT-2, and none of the demo model
        with pytest.raises(AssertionError, match="not checked: no published results"):
            run(command)
    else:
        run(command)


def test_the_python_snippet_of_the_readme_prints_the_text_twice() -> None:
    (snippet,) = (block for block in code_blocks(README) if block.startswith("from gpt2core"))
    command = [sys.executable, "-c", snippet]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    generated, _, streamed = done.stdout.partition("\n")
    assert generated
    assert streamed == generated


@needs_curl
def test_the_local_server_serves_the_packed_model_of_the_readme(tmp_path: Path) -> None:
    (pack,) = (c for c in commands("python -m gpt2core pack") if " packed --precision" in c)
    (serves,) = commands("python -m handler serve")
    run(pack.replace("/path/to/gpt2 packed", f"models/demo {tmp_path}/packed"))
    words = serves.replace("--model packed", f"--model {tmp_path}/packed").split()[1:]
    (port,) = free_ports(1)
    server = subprocess.Popen([sys.executable, *words, "--port", str(port)], cwd=ROOT)
    try:
        wait_for(port, server)
        reply = json.loads(run(CURLS[0].replace(LOCAL, f"http://127.0.0.1:{port}")))
    finally:
        server.terminate()
        server.wait(30)
    assert (reply["model"], reply["model_source"]) == ("packed", "volume")


@needs_curl
def test_the_runtime_answers_at_the_path_of_the_emulator(tmp_path: Path) -> None:
    (start,) = commands("PORT=9000 python")
    (ask,) = (command for command in commands("curl ") if EMULATED in command)
    (port,) = free_ports(1)
    variable, _, script = start.split()
    assert variable == f"PORT={EMULATED.rpartition(':')[2]}"
    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, script], cwd=ROOT, env=os.environ | {"PORT": str(port)}, stderr=log
        )
        try:
            wait_for(port, server)
            reply = json.loads(run(ask.replace(EMULATED, f"http://127.0.0.1:{port}")))
        finally:
            server.terminate()
            server.wait(30)
    assert reply["generated_text"]


def test_every_make_target_of_the_docs_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
    text = "\n".join(path.read_text() for path in pages if path.name != "decisions.md")
    targets = set(re.findall(r"(?:`|^    )make ([a-z][a-z0-9-]*)", text, re.MULTILINE))
    assert {"run", "serve", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def _tests(*names: str) -> str:
    return "\n".join((ROOT / name).read_text() for name in names)


@pytest.mark.parametrize("command", commands("docker "))
def test_a_docker_command_of_the_docs_has_the_options_that_a_test_runs(command: str) -> None:
    tested = _tests(
        "tests/test_image.py",
        "tests/test_sam_local.py",
        "tests/support/containers.py",
        "scripts/build_image.sh",
        "bench/container.py",
    )
    _, verb, *words = shlex.split(command)
    assert f'"{verb}"' in tested or f"docker {verb}" in tested
    image = words.index("gpt2-lambda")
    own, given = [w for w in words[:image] if w.startswith("-")], words[image + 1 :]
    for option in own:
        assert re.search(rf"[\"' ]{option}\b", tested), option
    for mount in re.findall(r":(/[^: ]+:ro)", command):
        assert f":{mount}" in tested, mount
    if verb == "run" and given:
        invoked = given[0] in ("invoke", "serve") and f'"{given[0]}"' in tested
        assert invoked, given
        assert given[0] == "serve" or (ROOT / given[-1]).is_file()
    for published in re.findall(r"-p \d+:(\d+)", command):
        assert f'"127.0.0.1::{published}"' in tested


def _sam_commands() -> dict[str, list[list[str]]]:
    """The options of each command of SAM's, as the docs give them."""
    found: dict[str, list[list[str]]] = {}
    for command in commands("sam "):
        words = shlex.split(command)[1:]
        name = " ".join(words[: 2 if words[0] == "local" else 1])
        found.setdefault(name, []).append(words[len(name.split()) :])
    return found


# Prints the options of SAM's commands, by name. Its `local` commands are in modules named `cli`.
_OPTIONS = """
import importlib, json, sys
found = {}
for name in sys.argv[1:]:
    module = "cli" if " " in name else "command"
    path = ".".join(("samcli.commands", *name.replace("-", "_").split(), module))
    parameters = importlib.import_module(path).cli.params
    found[name] = [option for p in parameters for option in p.opts]
print(json.dumps(found))
"""


@needs_sam
def test_sam_knows_the_options_that_the_docs_use(tmp_path: Path) -> None:
    used = _sam_commands()
    environ = os.environ | {"SAM_CLI_TELEMETRY": "0", "HOME": str(tmp_path)}
    command = [SAM.with_name("python"), "-c", _OPTIONS, *used]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)
    for name, known in json.loads(done.stdout).items():
        options = {word for words in used[name] for word in words if word.startswith("-")}
        assert options <= set(known), (name, options - set(known))


def test_sam_local_is_run_with_the_options_of_the_docs() -> None:
    tested = _tests("tests/test_sam_local.py")
    for name in ("local invoke", "local start-api"):
        assert f'"{name.split()[1]}"' in tested
        for word in {word for words in _sam_commands()[name] for word in words}:
            if word.startswith("-"):
                assert f'"{word}"' in tested, word
    (variables,) = commands("echo ")
    assert re.search(r"/tmp/\w+", variables)[0] in tested  # type: ignore[index]


def _overrides() -> list[dict[str, str]]:
    """The parameters of each deployment in the docs; those of `--guided` are in a comment."""
    text = "\n".join(path.read_text().replace("\\\n", " ") for path in PAGES)
    lines = set(re.findall(r"^    sam (?:deploy|build) .*$", text, re.MULTILINE))
    found = [dict(re.findall(r"\b([A-Z]\w+)=([\w.:/-]+)", line)) for line in sorted(lines)]
    return [parameters for parameters in found if parameters]


@needs_sam
@pytest.mark.parametrize("parameters", _overrides(), ids=" ".join)
def test_the_template_accepts_the_parameters_of_a_deployment(parameters: dict[str, str]) -> None:
    if parameters.get("UrlAccess") == "public":
        parameters = parameters | {"ApiKey": "a-key-of-twenty-letters!"}  # from Secrets Manager
    assert not Stack(**parameters).problems()


# Commands of the AWS command line that are no operations of an API.
HIGH_LEVEL = {("s3", "cp"), ("s3", "sync"), ("configure", "export-credentials")}
OPERATIONS = {"s3api": "s3"}
# `aws` has another name for this parameter of SNS.
RENAMED = {"notification-endpoint": "endpoint"}
CLIENT_OPTIONS = {"query", "output", "cli-binary-format", "cli-read-timeout"}


def _aws_commands() -> list[str]:
    text = "\n".join(path.read_text() for path in PAGES)
    nested = re.findall(r"\$\((aws [^)]+)\)", text)
    return [*commands("aws "), *nested, *re.findall(r"`(aws \w+ \w+ [^`]+)`", text)]


@pytest.mark.parametrize("command", _aws_commands())
def test_aws_has_the_operations_and_parameters_that_the_docs_use(command: str) -> None:
    from botocore import xform_name
    from botocore.session import get_session

    words: list[Any] = shlex.split(re.sub(r"\$\(.*\)", "x", command))
    service, operation = words[1:3]
    if (service, operation) in HIGH_LEVEL:
        return
    model = get_session().get_service_model(OPERATIONS.get(service, service))
    known = {xform_name(name, "-"): name for name in model.operation_names}
    members = model.operation_model(known[operation]).input_shape.members
    accepted = {xform_name(name, "-") for name in members} | CLIENT_OPTIONS
    options = {word.removeprefix("--") for word in words if word.startswith("--")}
    options = {RENAMED.get(option, option) for option in options}
    assert options <= accepted, options - accepted
