"""The command lines: exit codes, streams, no tracebacks."""

import json
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gpt2core import __version__
from tests.conftest import ROOT
from tests.support.terminal import run_on_terminal


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


@pytest.mark.parametrize(("module", "name"), [("handler", "gpt2-lambda"), ("gpt2core",) * 2])
def test_version(module: str, name: str) -> None:
    result = run(module, "--version")
    assert (result.returncode, result.stdout) == (0, f"{name} {__version__}\n")


@pytest.mark.parametrize(
    "command",
    [
        ("handler",),
        ("handler", "invoke"),
        ("handler", "serve"),
        ("handler", "fetch"),
        ("handler.runtime",),
        ("gpt2core",),
        ("gpt2core", "generate"),
        ("gpt2core", "pack"),
        ("gpt2core", "info"),
        ("gpt2core", "verify"),
    ],
    ids=" ".join,
)
def test_every_command_has_help_with_an_example(command: tuple[str, ...]) -> None:
    result = run(*command, "--help")
    assert result.returncode == 0
    _, example = result.stdout.lower().split("example")
    assert f"python -m {' '.join(command)}" in example


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


def test_invoke_with_text_prints_only_the_text_and_reads_stdin() -> None:
    event = {"prompt": "Once upon a time", "max_new_tokens": 5, "return_full_text": True}
    result = run("handler", "invoke", "--text", "-", stdin=json.dumps(event))
    assert result.returncode == 0
    assert result.stdout.startswith("Once upon a time")


@pytest.mark.parametrize("fields", [{}, {"requestContext": {"http": {"method": "POST"}}}])
def test_invoke_prints_a_stream_unchanged(fields: dict[str, Any]) -> None:
    request_fields = {"prompt": "Once", "max_new_tokens": 2, "stream": True}
    event = (
        {**fields, "rawPath": "/", "body": json.dumps(request_fields)} if fields else request_fields
    )
    result = run("handler", "invoke", "--text", "-", stdin=json.dumps(event))
    assert result.returncode == 0, result.stderr
    assert [line[:9] for line in result.stdout.splitlines() if line] == 2 * ['data: {"t'] + [
        'data: {"g'
    ]


def test_invoke_uses_the_model_of_the_option(model_dir: Path) -> None:
    result = run("handler", "invoke", "-", "--model", str(model_dir), stdin='{"prompt": "a"}')
    assert json.loads(result.stdout)["model"] == model_dir.name


@pytest.mark.parametrize(
    ("event", "words"),
    [
        ("events/bad-json.json", "error: BadRequest: the body is not JSON"),
        ("events/unsupported-sns.json", "error: unsupported event. Send `prompt` or `inputs`"),
        ("events/nowhere.json", "error: events/nowhere.json: No such file"),
        ("Makefile", "error: Makefile is not JSON: Expecting value: line 1 column 1"),
    ],
)
def test_a_failed_invoke_exits_with_1_and_an_error_message(event: str, words: str) -> None:
    result = run("handler", "invoke", event)
    assert result.returncode == 1
    assert result.stderr.startswith(words)


def test_a_failed_invoke_in_the_hugging_face_format_says_why() -> None:
    result = run("handler", "invoke", "-", stdin='{"inputs": 5}')
    assert result.returncode == 1
    assert result.stderr.startswith("error: validation: inputs is 5, not a string")


@pytest.mark.parametrize("command", [("invoke", "events/api-health.json"), ("serve",)])
def test_a_missing_model_is_one_error_line_and_not_replaced_by_the_demo(
    command: tuple[str, ...],
) -> None:
    result = run("handler", *command, "--model", "/nowhere", GPT2_MODEL_URI="demo")
    assert result.returncode == 1
    assert result.stderr == (
        "error: --model /nowhere is not a model directory: it has neither config.json nor CURRENT\n"
    )


@pytest.mark.parametrize("command", [("handler", "serve"), ("handler.runtime",)])
def test_a_port_in_use_is_one_error_line_that_names_the_variables(command: tuple[str, ...]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        result = run(*command, PORT=port)
    assert result.returncode == 1
    assert result.stderr == (
        f"error: cannot listen on 127.0.0.1:{port}: Address already in use:"
        " choose another port or HOST\n"
    )


@pytest.mark.parametrize("command", [("handler", "serve"), ("handler.runtime",)])
@pytest.mark.parametrize("port", ["abc", "65536", "-1", "８０", "9" * 5000])
def test_an_invalid_port_is_one_error_line(command: tuple[str, ...], port: str) -> None:
    result = run(*command, PORT=port)
    assert result.returncode == 1
    assert result.stderr == (
        f"error: PORT is {port!r}; accepted: an integer from 0 to 65535; 0 is any free port\n"
    )


def test_an_option_for_the_port_comes_before_the_variable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        result = run("handler", "serve", "--port", str(port), PORT="abc")
    assert result.stderr.startswith(f"error: cannot listen on 127.0.0.1:{port}: ")


def test_the_runtime_reports_an_invalid_setting_in_one_line() -> None:
    result = run("handler.runtime", GPT2_KERNELS="x")
    assert result.returncode == 1
    assert result.stderr == "error: GPT2_KERNELS is 'x'; accepted: auto, native or numpy\n"


def test_an_unavailable_model_is_one_error_line() -> None:
    result = run("handler", "invoke", "events/direct-generate.json", GPT2_MODEL_DIR="/nowhere")
    assert result.returncode == 1
    assert len(result.stderr.splitlines()) == 1
    assert "GPT2_MODEL_DIR '/nowhere' has no model" in result.stderr


def test_the_text_of_a_health_check_is_its_status() -> None:
    assert run("handler", "invoke", "--text", "events/api-health.json").stdout == "ok\n"


def test_an_invalid_setting_is_one_error_line(model_dir: Path) -> None:
    result = run("handler", "invoke", "-", stdin="{}", GPT2_THREADS="none")
    assert result.returncode == 1
    assert result.stderr == "error: GPT2_THREADS is 'none'; accepted: an integer from 1 to 1024\n"


def test_timings_are_printed_although_the_reply_has_none() -> None:
    result = run("handler", "invoke", "events/direct-huggingface.json")
    assert "cold start, milliseconds (model: demo)" in result.stderr


def test_a_write_error_is_one_error_line(model_dir: Path) -> None:
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
def test_a_failed_generate_exits_with_1_and_one_error_line(args: tuple[str, ...]) -> None:
    result = run("gpt2core", "generate", "abc", *args)
    assert result.returncode == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("error: ")


def test_a_closed_pipe_prints_no_traceback(model_dir: Path) -> None:
    command = f"{sys.executable} -m gpt2core generate abc -n 60 --model {model_dir} | true"
    result = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr


def test_no_allow_special_treats_special_tokens_as_text(model_dir: Path) -> None:
    prompt = "a" * 60 + "<|endoftext|>"  # 61 of 64 tokens, or 73
    assert run("gpt2core", "generate", prompt, "--model", str(model_dir)).returncode == 0
    rejected = run("gpt2core", "generate", prompt, "--no-allow-special", "--model", str(model_dir))
    assert rejected.returncode == 1
    assert "73 tokens" in rejected.stderr


def test_info_prints_the_kernels_and_the_contents_of_a_directory(
    model_dir: Path, tmp_path: Path
) -> None:
    assert run("gpt2core", "info").stdout.startswith("kernels:    ")
    packed = str(tmp_path / "packed")
    run("gpt2core", "pack", str(model_dir), packed, "--precision", "int8")
    for folder, weights, tokenizer in (
        (str(model_dir), "F32", "tokenizer.json"),
        (packed, "I8", "compiled"),
    ):
        lines = dict(
            line.split(": ", 1) for line in run("gpt2core", "info", folder).stdout.splitlines()
        )
        assert weights in lines["weights"]
        assert tokenizer in lines["tokenizer"]


def test_info_prints_why_numpy_is_used() -> None:
    assert "GPT2_KERNELS" in run("gpt2core", "info", GPT2_KERNELS="numpy").stdout


def test_pack_shows_a_progress_bar_only_on_a_terminal(model_dir: Path, tmp_path: Path) -> None:
    code, shown = run_on_terminal("gpt2core", "pack", str(model_dir), str(tmp_path / "a"))
    assert code == 0
    assert "B/s]" in shown
    result = run("gpt2core", "pack", str(model_dir), str(tmp_path / "b"))
    assert "B/s]" not in result.stdout + result.stderr


def test_verify_is_colored_on_a_terminal_unless_no_color_is_set(shared_data: Path) -> None:
    args = ("gpt2core", "verify", str(shared_data / "tiny-random-gpt2"))
    code, shown = run_on_terminal(*args)
    assert code == 0
    assert "\x1b[32magrees" in shown
    assert " results" in shown  # the unit of the progress bar
    assert "\x1b[3" not in run_on_terminal(*args, NO_COLOR="1")[1]
    assert "\x1b" not in run(*args).stdout
