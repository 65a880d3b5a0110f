"""The import budget: `sys.modules` after each step in a new process."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.fresh_process import modules_after
from tests.support.kernels import needs_native

NEVER_IMPORTED = ("boto3", "botocore", "huggingface_hub", "requests", "urllib3", "ssl")
HEAVY = (*NEVER_IMPORTED, "numpy", "tokenizers", "http.client", "asyncio", "dataclasses",
         "inspect", "logging", "pathlib", "pydantic", "safetensors", "email")  # fmt: skip


def test_importing_the_handler_loads_no_heavy_module() -> None:
    loaded = modules_after("import handler.app")
    assert "handler.app" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_the_core_loads_no_heavy_module() -> None:
    loaded = modules_after("import gpt2core\nfrom gpt2core import GPT2Error")
    assert loaded.isdisjoint(HEAVY)


def test_every_public_name_of_the_core_resolves() -> None:
    import gpt2core

    for name in gpt2core.__all__:
        assert getattr(gpt2core, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        gpt2core.nonsense  # noqa: B018
    assert set(gpt2core.__all__) <= set(dir(gpt2core))


def test_a_cold_invoke_from_a_directory_loads_no_client_and_no_tls(model_dir: Path) -> None:
    loaded = modules_after(
        "from handler.app import lambda_handler\n"
        "assert lambda_handler({'prompt': 'abc', 'max_new_tokens': 3})['generated_text']",
        GPT2_MODEL_DIR=str(model_dir),
    )
    assert loaded.isdisjoint(NEVER_IMPORTED)


def test_health_checks_and_invalid_input_do_not_import_numpy() -> None:
    loaded = modules_after(
        "from handler.app import lambda_handler\n"
        "event = json.load(open('events/url-health.json'))\n"
        "assert lambda_handler(event)['statusCode'] == 200\n"
        "assert lambda_handler({'prompt': 5})['error']"
    )
    assert loaded.isdisjoint(HEAVY)


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("direct-generate", {"source", "direct"}),
        ("direct-huggingface", {"source", "direct"}),
        ("url-generate", {"source", "http", "body"}),
        ("rest-health", {"source", "http", "body"}),
        ("schedule", {"source", "schedule"}),
        ("batch-sqs", {"source", "sqs", "s3"}),
        ("batch-step-functions", {"source", "step_functions"}),
    ],
)
def test_an_event_imports_only_its_source(name: str, needed: set[str]) -> None:
    loaded = modules_after(
        "from handler.settings import Settings\n"
        "from handler.sources import source_of\n"
        f"source_of(json.load(open('events/{name}.json'))).parse(Settings())"
    )
    assert {m.rpartition(".")[2] for m in loaded if m.startswith("handler.sources.")} == needed
    assert ("handler.dialects.huggingface" in loaded) == (
        "huggingface" in name or name == "batch-sqs"
    )


def test_the_core_does_not_use_the_handler_or_the_environment() -> None:
    for path in (ROOT / "gpt2core").rglob("*.py"):
        source = path.read_text()
        assert "import handler" not in source, path
        assert "from handler" not in source, path
        if path.name == "__main__.py":
            continue  # the command line reads GPT2_KERNELS and sets OPENBLAS_THREAD_TIMEOUT
        assert "environ" not in source.replace("OPENBLAS_NUM_THREADS", ""), path
        assert "logging" not in source, path


def test_importing_the_handler_sets_the_threads_of_openblas() -> None:
    code = "import os, handler.app\nassert os.environ['OPENBLAS_NUM_THREADS'] == '1'"
    assert "numpy" not in modules_after(code, GPT2_THREADS="1")
    modules_after(code, GPT2_THREADS="1", OPENBLAS_NUM_THREADS="7")  # GPT2_THREADS takes precedence


@pytest.mark.parametrize(
    "start",
    [
        "import handler.app; handler.app.lambda_handler({'prompt': 'a', 'max_new_tokens': 1})",
        "from gpt2core.__main__ import main; main(['generate', 'a', '-n', '1'])",
    ],
)
@pytest.mark.parametrize("given", ["", "25"])
def test_the_function_and_the_command_limit_how_long_idle_blas_threads_spin(
    start: str, given: str
) -> None:
    code = (
        "import os\nseen = []\nclass Look:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy':\n"
        "            seen.append(os.environ.get('OPENBLAS_THREAD_TIMEOUT'))\n"
        f"sys.meta_path.insert(0, Look())\n{start}\nassert set(seen) == {{'{given or 20}'}}, seen"
    )
    environ = {"OPENBLAS_THREAD_TIMEOUT": given} if given else {}
    modules_after(code, GPT2_KERNELS="numpy", **environ)


def test_preloading_opens_the_engine_at_import(model_dir: Path) -> None:
    loaded = modules_after(
        "from handler.app import function, lambda_handler\n"
        "assert function.model.engine is not None\n"
        "first = lambda_handler({'prompt': 'abc', 'max_new_tokens': 1})\n"
        "assert first['cold_start'] and first['timings_ms']['map'] > 0\n"
        "second = lambda_handler({'prompt': 'abc', 'max_new_tokens': 1})\n"
        "assert not second['cold_start'] and second['timings_ms']['map'] == 0",
        GPT2_PRELOAD="init",
        GPT2_MODEL_DIR=str(model_dir),
    )
    assert "gpt2core.engine" in loaded


@pytest.mark.parametrize(
    ("kind", "code", "complete"),
    [
        ("on-demand", "", False),
        ("provisioned-concurrency", "", True),
        ("snap-start", "", True),
        ("lambda-managed-instances", "", True),
        ("on-demand", "handler.app.before_snapshot()", True),
    ],
)
def test_an_init_phase_that_no_request_waits_for_imports_what_only_some_requests_need(
    model_dir: Path, kind: str, code: str, complete: bool
) -> None:
    needs_native()
    loaded = modules_after(
        f"import handler.app\n{code}",
        GPT2_PRELOAD="init",
        GPT2_MODEL_DIR=str(model_dir),
        AWS_LAMBDA_INITIALIZATION_TYPE=kind,
    )
    assert "gpt2core.kernels.native" in loaded
    for module in ("gpt2core.sampler", "numpy", "tokenizers"):
        assert (module in loaded) == complete


def test_an_invalid_setting_fails_the_import_and_is_named() -> None:
    result = subprocess.run(
        [sys.executable, "-c", "import handler.app"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"GPT2_PRELOAD": "yes"},
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.endswith("SettingsError: GPT2_PRELOAD is 'yes'; accepted: lazy or init")


@pytest.mark.parametrize(
    ("kernels", "temperature", "needs_numpy"),
    [("native", 0, False), ("native", 1, True), ("numpy", 0, True)],
)
def test_a_cold_invoke_of_a_packed_model_imports_at_most_the_core_of_numpy(
    model_dir: Path, tmp_path: Path, kernels: str, temperature: float, needs_numpy: bool
) -> None:
    from gpt2core.pack import pack

    if kernels == "native":
        needs_native()
    pack(model_dir, tmp_path / "packed")
    event = {"prompt": "abc", "max_new_tokens": 3, "temperature": temperature}
    loaded = modules_after(
        "from handler.app import lambda_handler\n"
        f"assert 'generated_text' in lambda_handler({event})",
        GPT2_MODEL_DIR=str(tmp_path / "packed"),
        GPT2_KERNELS=kernels,
    )
    assert ("numpy" in loaded) == needs_numpy
    if sys.version_info < (3, 14):
        assert ("typing" in loaded) == needs_numpy
    assert loaded.isdisjoint(
        {
            *NEVER_IMPORTED,
            "tokenizers",
            "regex",
            "safetensors",
            "numpy.lib",
            "numpy.linalg",
        }
    )
    assert "ctypes" not in loaded or kernels == "numpy"  # sets OpenBLAS's threads


OPENAI = {
    "requestContext": {"http": {"method": "POST", "path": "/v1/completions"}},
    "version": "2.0",
    "rawPath": "/v1/completions",
    "headers": {"content-type": "application/json"},
}


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="slim_typing is typing")
@pytest.mark.parametrize(
    "event",
    [
        "url-generate",
        "url-huggingface",
        "direct-huggingface",
        "batch-step-functions",
        OPENAI | {"body": '{"prompt": "a", "temperature": 0}'},
        OPENAI | {"body": '{"prompt": "a", "temperature": 0, "stream": true}'},
    ],
)
def test_greedy_requests_import_neither_typing_nor_numpy(
    model_dir: Path, tmp_path: Path, event: str | dict[str, object]
) -> None:
    from gpt2core.pack import pack

    needs_native()
    pack(model_dir, tmp_path / "packed")
    content = event if isinstance(event, dict) else f"json.load(open('events/{event}.json'))"
    loaded = modules_after(
        f"from handler.app import lambda_handler\nassert lambda_handler({content})",
        GPT2_MODEL_DIR=str(tmp_path / "packed"),
    )
    assert "gpt2core.kernels.native" in loaded
    assert loaded.isdisjoint({"typing", "numpy"})


def test_importing_the_core_does_not_change_numpy() -> None:
    loaded = modules_after("from gpt2core import Engine\nimport numpy\nassert numpy.array.__doc__")
    assert "numpy" in loaded
