"""The import budget: what is in `sys.modules` after each step, in a fresh process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

NEVER_ON_THE_WAY = ("boto3", "botocore", "huggingface_hub", "requests", "urllib3", "ssl")
HEAVY = (*NEVER_ON_THE_WAY, "numpy", "tokenizers", "http.client", "asyncio", "dataclasses",
         "inspect", "logging", "pathlib", "pydantic", "safetensors", "email")  # fmt: skip


def modules_after(code: str, **environ: str) -> set[str]:
    script = f"import sys, json\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    result = subprocess.run(
        # -S: no site-packages' .pth files, which may import anything before we begin
        [sys.executable, "-S", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env={"PYTHONPATH": ":".join(p for p in sys.path if p), **environ},
    )
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_the_handler_loads_nothing_heavy() -> None:
    loaded = modules_after("import handler.app")
    assert "handler.app" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_importing_the_core_loads_nothing_heavy() -> None:
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
    assert "numpy" in loaded
    assert loaded.isdisjoint(NEVER_ON_THE_WAY)


def test_health_and_bad_input_are_answered_without_numpy() -> None:
    loaded = modules_after(
        "from handler.app import lambda_handler\n"
        "event = json.load(open('events/url-health.json'))\n"
        "assert lambda_handler(event)['statusCode'] == 200\n"
        "assert lambda_handler({'prompt': 5})['error']"
    )
    assert loaded.isdisjoint(HEAVY)


def test_the_core_knows_neither_handler_nor_environment() -> None:
    for path in (ROOT / "gpt2core").glob("*.py"):
        source = path.read_text()
        assert "import handler" not in source, path
        assert "from handler" not in source, path
        assert "environ" not in source.replace("OPENBLAS_NUM_THREADS", ""), path
        assert "logging" not in source, path


def test_threads_are_set_before_numpy_is_imported() -> None:
    code = "import os, handler.app\nassert os.environ['OPENBLAS_NUM_THREADS'] == '1'"
    assert "numpy" not in modules_after(code, GPT2_THREADS="1")
    modules_after(code, GPT2_THREADS="1", OPENBLAS_NUM_THREADS="7")  # ours is the setting


def test_preloading_opens_the_engine_at_import(model_dir: Path) -> None:
    loaded = modules_after(
        "from handler.app import function, lambda_handler\n"
        "assert function._engine is not None\n"
        "first = lambda_handler({'prompt': 'abc', 'max_new_tokens': 1})\n"
        "assert first['cold_start'] and first['timings_ms']['map'] > 0\n"
        "second = lambda_handler({'prompt': 'abc', 'max_new_tokens': 1})\n"
        "assert not second['cold_start'] and second['timings_ms']['map'] == 0",
        GPT2_PRELOAD="init",
        GPT2_MODEL_DIR=str(model_dir),
    )
    assert "numpy" in loaded


def test_a_bad_setting_is_an_error_at_import_that_names_it() -> None:
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


LEAN = "from gpt2core import lean_numpy\nlean_numpy.load()\nimport numpy as np\n"


def test_the_lean_numpy_is_the_core_alone() -> None:
    loaded = modules_after(
        LEAN + "assert np.__version__ == np.version.version\n"
        "x = np.arange(6, dtype=np.float32).reshape(2, 3)\n"
        "assert (x @ x.T).tolist() == [[5, 14], [14, 50]] and x.mean() == 2.5"
    )
    assert "numpy._core._multiarray_umath" in loaded
    assert loaded.isdisjoint({"numpy.lib", "numpy.linalg", "ctypes", "inspect", "pickle", "ast"})


def test_the_lean_numpy_is_the_whole_numpy_for_whoever_asks() -> None:
    loaded = modules_after(
        LEAN + "import numpy.typing as npt, numpy.ma, numpy.random, numpy.fft, numpy.polynomial\n"
        "assert npt.NDArray.__module__.startswith('numpy') and npt.ArrayLike is not None\n"
        "assert np.linalg.eigh(np.eye(3)).eigenvalues.tolist() == [1, 1, 1]\n"
        "assert type(np).__name__ == 'module' and np.triu(np.ones((2, 2))).sum() == 3\n"
        "lean_numpy.load()\n"
        "import subprocess\n"
        "names = [sys.executable, '-c', 'import numpy; print(*sorted(vars(numpy)))']\n"
        "plain = subprocess.run(names, capture_output=True, text=True, check=True).stdout.split()\n"
        "missing = set(plain) - set(vars(np)) - {'__cached__'}\n"
        "assert not missing, missing"
    )
    assert "numpy._typing._array_like" in loaded


def test_what_the_lean_numpy_puts_off_works_when_it_is_needed() -> None:
    modules_after(
        LEAN + "import inspect, pickle\n"
        "assert type(inspect).__name__ == type(pickle).__name__ == 'module'\n"
        "assert str(inspect.signature(np.zeros_like)).startswith('(a, dtype=None')\n"
        "pairs = np.zeros(2, 'f4,i4')\n"
        "assert np.frombuffer(memoryview(pairs), pairs.dtype).tolist() == [(0, 0), (0, 0)]\n"
        "assert pickle.loads(pickle.dumps(pairs)).tolist() == pairs.tolist()\n"
        "assert pickle.loads(np._core._methods.pickle.dumps(np.ones(1)))[0] == 1\n"
        "assert np.ones(1).ctypes.data % 8 == 0"
    )


@pytest.mark.parametrize(
    "code",
    [
        "import numpy.linalg\nnp.linalg.inv(np.eye(2))",
        "from numpy.linalg import norm\nassert norm([3, 4]) == 5",
        "import numpy.testing\nnumpy.testing.assert_equal(1, 1)",
        "import numpy.lib.format\nassert numpy.lib.format.MAGIC_PREFIX",
        "import numpy.random\nassert np.random.default_rng(0).random() < 1",
        "from numpy import *\nassert eye(2).sum() == 2",
    ],
)
def test_a_submodule_may_be_the_first_that_is_asked_for(code: str) -> None:
    modules_after(
        LEAN + code + "\nassert type(np).__name__ == 'module'\n"
        "assert np.linalg.__spec__.name == 'numpy.linalg' and np.linalg.__spec__.origin"
    )


def test_a_rest_that_fails_once_is_tried_again() -> None:
    modules_after(
        LEAN + "sys.modules['numpy.lib'] = None\n"
        "try:\n    np.linalg\nexcept ImportError:\n    pass\n"
        "else:\n    raise SystemExit('no error')\n"
        "del sys.modules['numpy.lib']\nassert np.linalg.inv(np.eye(1))[0] == 1"
    )


def test_a_numpy_whose_name_is_missing_says_so() -> None:
    modules_after(
        LEAN + "try:\n    np.nonsense\nexcept AttributeError as error:\n"
        "    assert 'nonsense' in str(error)\nelse:\n    raise SystemExit('no error')\n"
    )


def test_a_numpy_made_otherwise_is_imported_as_ever() -> None:
    modules_after(
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy._core.records':\n"
        "            sys.meta_path.remove(self)\n"
        "            raise ImportError('not this time')\n"
        "sys.meta_path.insert(0, Refused())\n"
        + LEAN
        + "assert type(np).__name__ == 'module' and np.zeros.__doc__\n"
        "assert np.linalg.eigh(np.eye(3)).eigenvalues.tolist() == [1, 1, 1]"
    )


def test_without_numpy_its_import_says_so() -> None:
    modules_after(
        "import sys\nsys.path = [p for p in sys.path if not p.endswith('site-packages')]\n"
        "from gpt2core import lean_numpy\nlean_numpy.load()\n"
        "try:\n    import numpy\nexcept ModuleNotFoundError:\n    pass\n"
        "else:\n    raise SystemExit('no error')"
    )


def test_a_cold_invoke_of_a_packed_model_imports_numpys_core_and_no_tokenizers(
    model_dir: Path, tmp_path: Path
) -> None:
    from gpt2core.pack import pack

    pack(model_dir, tmp_path / "packed")
    loaded = modules_after(
        "from handler.app import lambda_handler\n"
        "assert lambda_handler({'prompt': 'abc', 'max_new_tokens': 3})['generated_text']",
        GPT2_MODEL_DIR=str(tmp_path / "packed"),
    )
    assert loaded.isdisjoint(
        {
            *NEVER_ON_THE_WAY,
            "tokenizers",
            "regex",
            "safetensors",
            "numpy.lib",
            "numpy.linalg",
            "ctypes",
        }
    )


def test_importing_the_core_leaves_numpy_as_it_is() -> None:
    loaded = modules_after("from gpt2core import Engine\nimport numpy\nassert numpy.array.__doc__")
    assert "numpy" in loaded
