"""The command lines as users run them: exit codes, streams, no tracebacks."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2core import __version__
from tests.conftest import ROOT


def run(*args: str, stdin: str = "", **environ: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", *args],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environ,
        check=False,
    )
    assert "Traceback" not in result.stderr
    return result


@pytest.mark.parametrize("module", ["handler", "gpt2core"])
def test_version(module: str) -> None:
    result = run(module, "--version")
    assert (result.returncode, result.stdout) == (0, f"{module} {__version__}\n")


@pytest.mark.parametrize("args", [("handler",), ("handler", "invoke"), ("gpt2core", "nonsense"),
                                  ("handler", "serve", "--port", "70000")])  # fmt: skip
def test_bad_usage_exits_with_2(args: tuple[str, ...]) -> None:
    result = run(*args)
    assert result.returncode == 2
    assert "usage:" in result.stderr


def test_invoke_prints_the_reply_on_stdout_and_the_timings_on_stderr() -> None:
    result = run("handler", "invoke", "events/api-generate.json")
    assert result.returncode == 0
    reply = json.loads(result.stdout)
    assert json.loads(reply["body"])["generated_text"].startswith("Once upon a time")
    assert "cold start, milliseconds (model: demo)" in result.stderr
    for phase in ("process", "import", "tokenizer", "prefill", "decode", "total"):
        assert f"  {phase} " in result.stderr


def test_invoke_prints_only_the_text_when_asked_and_reads_stdin() -> None:
    event = {"prompt": "Once upon a time", "max_new_tokens": 5, "return_full_text": True}
    result = run("handler", "invoke", "--text", "-", stdin=json.dumps(event))
    assert result.returncode == 0
    assert result.stdout.startswith("Once upon a time")


def test_invoke_takes_another_model(model_dir: Path) -> None:
    result = run("handler", "invoke", "-", "--model", str(model_dir), stdin='{"prompt": "a"}')
    assert json.loads(result.stdout)["model"] == model_dir.name


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ("events/bad-json.json", "error: BadRequest: the body is not JSON"),
        ("events/unsupported-sns.json", "error: events with 'Records' of this kind are not"),
        ("events/nowhere.json", "error: events/nowhere.json: No such file"),
        ("Makefile", "error: Makefile is not JSON: Expecting value: line 1 column 1"),
    ],
)
def test_a_failed_invoke_exits_with_1_and_says_why_first(event: str, words: str) -> None:
    result = run("handler", "invoke", event)
    assert result.returncode == 1
    assert result.stderr.startswith(words)


@pytest.mark.parametrize("command", [("invoke", "events/api-health.json"), ("serve",)])
def test_a_model_that_is_not_there_is_one_line_and_never_the_demo(command: tuple[str, ...]) -> None:
    result = run("handler", *command, "--model", "/nowhere", GPT2_MODEL_URI="demo")
    assert result.returncode == 1
    assert result.stderr == "error: --model /nowhere: no model directory\n"


def test_a_model_that_cannot_be_had_is_one_line() -> None:
    result = run("handler", "invoke", "events/direct-generate.json", GPT2_MODEL_DIR="/nowhere")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "GPT2_MODEL_DIR '/nowhere' holds no model" in result.stderr


def test_health_as_text_is_its_status() -> None:
    assert run("handler", "invoke", "--text", "events/api-health.json").stdout == "ok\n"


def test_a_bad_setting_is_one_line(model_dir: Path) -> None:
    result = run("handler", "invoke", "-", stdin="{}", GPT2_THREADS="none")
    assert result.returncode == 1
    assert result.stderr == "error: GPT2_THREADS is 'none'; accepted: a whole number from 1\n"


def test_timings_are_printed_where_the_reply_has_no_place_for_them() -> None:
    result = run("handler", "invoke", "events/direct-huggingface.json")
    assert "cold start, milliseconds (model: demo)" in result.stderr


def test_a_text_that_cannot_be_written_is_one_line(model_dir: Path) -> None:
    args = ("generate", "é", "--model", str(model_dir))
    result = run("gpt2core", *args, PYTHONIOENCODING="ascii")
    assert result.returncode == 1
    assert result.stderr.startswith("error: cannot write the text")


def test_generate_prints_the_prompt_and_its_continuation(model_dir: Path) -> None:
    from gpt2core import Engine

    result = run("gpt2core", "generate", "abc", "-n", "6", "--model", str(model_dir))
    assert result.returncode == 0
    assert result.stdout == "abc" + Engine.open(model_dir).generate("abc", 6).text + "\n"


@pytest.mark.parametrize("args", [("-n", "-1"), ("--model", "/nowhere"), ("--model", "tests")])
def test_a_failed_generate_exits_with_1_and_one_line(args: tuple[str, ...]) -> None:
    result = run("gpt2core", "generate", "abc", *args)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")


def test_a_reader_that_leaves_is_no_traceback(model_dir: Path) -> None:
    command = f"{sys.executable} -m gpt2core generate abc -n 60 --model {model_dir} | true"
    result = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr
