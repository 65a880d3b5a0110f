"""`slim_numpy` in new processes, with the installed and the oldest supported NumPy."""

import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.support.fresh_process import modules_after

OLDEST = ROOT / ".venv-oldest"
SLIM = "from gpt2core.startup import slim_numpy\nslim_numpy.install()\nimport numpy as np\n"
Run = Callable[[str], set[str]]

# A finder that calls `then` in the thread that is about to execute the module `at`, and
# one that reports every search for a module.
HOOKS = """
import threading
from importlib.machinery import PathFinder, SourceFileLoader

class Gate:
    def __init__(self, at, then):
        self.at, self.then = at, then
    def find_spec(self, name, path=None, target=None):
        if name != self.at:
            return None
        spec = PathFinder.find_spec(name, path)
        gate = self
        class Loader(SourceFileLoader):
            def exec_module(self, module):
                gate.then()
                super().exec_module(module)
        spec.loader = Loader(name, spec.loader.path)
        return spec

class Searches:
    def __init__(self):
        self.begun = {}
    def of(self, name):
        return self.begun.setdefault(name, threading.Event())
    def find_spec(self, name, path=None, target=None):
        self.of(name).set()
"""


@pytest.fixture(params=["installed", "oldest"])
def run(request: pytest.FixtureRequest) -> Run:
    """Runs code in a process with that NumPy; returns the names of the imported modules."""
    if request.param == "installed":
        return modules_after
    if not (OLDEST / "numpy").is_dir():
        pytest.skip("no .venv-oldest: `make test` sets it up")
    return lambda code: modules_after(code, first=str(OLDEST))


def test_the_oldest_allowed_numpy_is_tested() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    allowed = next(d for d in project["project"]["dependencies"] if d.startswith("numpy"))
    (tested,) = project["dependency-groups"]["oldest"]
    assert tested.partition(";")[0] == allowed.replace(">=", "==") + ".0"


def test_slim_numpy_imports_only_the_core(run: Run) -> None:
    loaded = run(
        SLIM + "assert np.__version__ == np.version.version\n"
        "x = np.arange(6, dtype=np.float32).reshape(2, 3)\n"
        "assert (x @ x.T).tolist() == [[5, 14], [14, 50]] and x.mean() == 2.5"
    )
    assert "numpy._core._multiarray_umath" in loaded
    assert loaded.isdisjoint({"numpy.lib", "numpy.linalg", "ctypes", "inspect", "pickle", "ast"})


def test_slim_numpy_loads_the_rest_on_access(run: Run) -> None:
    loaded = run(
        SLIM + "import numpy.typing as npt, numpy.ma, numpy.random, numpy.fft, numpy.polynomial\n"
        "assert npt.NDArray.__module__.startswith('numpy') and npt.ArrayLike is not None\n"
        "assert np.linalg.eigh(np.eye(3)).eigenvalues.tolist() == [1, 1, 1]\n"
        "assert type(np).__name__ == 'module' and np.triu(np.ones((2, 2))).sum() == 3\n"
        "slim_numpy.install()"
    )
    assert "numpy._typing._array_like" in loaded


# The docstring and signature of each public name in the module and its types.
DESCRIBED = """
import inspect, numpy as np
def described(thing, path, deep):
    for name in dir(thing):
        value = getattr(thing, name, None)
        if name.startswith("_"):
            continue
        try:
            signature = str(inspect.signature(value)).partition(" at 0x")[0]
        except (TypeError, ValueError):
            signature = None
        yield f"{path}.{name}", [signature, str(getattr(value, "__doc__", None))]
        if isinstance(value, type) and deep:
            yield from described(value, f"{path}.{name}", False)
names = ["linalg", "lib", "_core", "_core.multiarray"]
np.linalg
everything = dict(described(np, "np", True)) | {"attributes": sorted(vars(np))}
for name in names:
    everything |= dict(described(sys.modules[f"numpy.{name}"], name, False))
assert len(everything) > 1000
"""


def test_a_completed_slim_numpy_has_the_names_docstrings_and_signatures_of_numpy(
    run: Run, tmp_path: Path
) -> None:
    path = f"{tmp_path}/names.json"
    run("import warnings; warnings.simplefilter('ignore')\n" + DESCRIBED
        + f"json.dump(everything, open({path!r}, 'w'))")  # fmt: skip
    run("import warnings; warnings.simplefilter('ignore')\n" + SLIM + DESCRIBED
        + f"ordinary = json.load(open({path!r}))\n"
        "missing = set(ordinary.pop('attributes')) - set(everything.pop('attributes'))\n"
        "assert not missing, missing\n"
        "differ = [name for name in ordinary if ordinary[name] != everything[name]]\n"
        "assert not differ, differ")  # fmt: skip


def test_deferred_parts_of_slim_numpy_work(run: Run) -> None:
    loaded = run(
        SLIM + "import inspect, pickle\n"
        "assert type(inspect).__name__ == type(pickle).__name__ == 'module'\n"
        "assert str(inspect.signature(np.zeros_like)).startswith('(a, dtype=None')\n"
        "pairs = np.zeros(2, 'f4,i4')\n"
        "assert np.frombuffer(memoryview(pairs), pairs.dtype).tolist() == [(0, 0), (0, 0)]\n"
        "assert pickle.loads(pickle.dumps(pairs)).tolist() == pairs.tolist()\n"
        "assert pickle.loads(np._core._methods.pickle.dumps(np.ones(1)))[0] == 1\n"
        "assert np.ones(1).ctypes.data % 8 == 0"
    )
    assert "numpy.lib" not in loaded


@pytest.mark.parametrize(
    "code",
    [
        "import numpy.linalg\nnp.linalg.inv(np.eye(2))",
        "from numpy.linalg import norm\nassert norm([3, 4]) == 5",
        "import numpy.testing\nnumpy.testing.assert_equal(1, 1)",
        "import numpy.lib.format\nassert numpy.lib.format.MAGIC_PREFIX",
        "import numpy.random\nassert np.random.default_rng(0).random() < 1",
        "import numpy._core.defchararray\nassert np.char.upper('a') == 'A'",
        "from numpy import *\nassert eye(2).sum() == 2",
    ],
)
def test_a_submodule_can_be_accessed_first(run: Run, code: str) -> None:
    run(
        SLIM + code + "\nassert type(np).__name__ == 'module'\n"
        "assert np.linalg.__spec__.name == 'numpy.linalg' and np.linalg.__spec__.origin\n"
        "assert type(np.linalg.__spec__.loader).__name__ == 'SourceFileLoader'\n"
        "assert 'gpt2core' not in str(sys.meta_path)"
    )


def test_a_failed_import_of_the_rest_is_retried(run: Run) -> None:
    run(
        SLIM + "sys.modules['numpy.lib'] = None\n"
        "try:\n    np.linalg\nexcept ImportError:\n    pass\n"
        "else:\n    raise SystemExit('no error')\n"
        "del sys.modules['numpy.lib']\nassert np.linalg.inv(np.eye(1))[0] == 1"
    )


def test_a_missing_name_in_numpy_is_reported(run: Run) -> None:
    run(
        SLIM + "try:\n    np.nonsense\nexcept AttributeError as error:\n"
        "    assert 'nonsense' in str(error)\nelse:\n    raise SystemExit('no error')\n"
    )


def test_an_incompatible_numpy_is_imported_normally(run: Run) -> None:
    run(
        "import sys\n"
        "class Refused:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'numpy._core.records':\n"
        "            sys.meta_path.remove(self)\n"
        "            raise ImportError('not this time')\n"
        "sys.meta_path.insert(0, Refused())\n"
        + SLIM
        + "assert type(np).__name__ == 'module' and np.zeros.__doc__\n"
        "import inspect\n"
        "assert 'axis' in str(inspect.signature(np.stack))\n"
        "assert np.linalg.eigh(np.eye(3)).eigenvalues.tolist() == [1, 1, 1]"
    )


def test_idle_threads_of_openblas_do_not_keep_a_cpu_busy(run: Run) -> None:
    """The CPU time of the other threads, while this one takes 20 ms of a CPU."""
    run(
        "import os, time\nfrom gpt2core.startup import slim_numpy\n"
        "os.environ.setdefault(*slim_numpy.BLAS_TIMEOUT)\n" + SLIM + "def others():\n"
        "    own = str(os.getpid())\n"
        "    tasks = [t for t in os.listdir('/proc/self/task') if t != own]\n"
        "    return sum(int(open(f'/proc/self/task/{t}/schedstat').read().split()[0])"
        " for t in tasks)\n"
        "before, begin = others(), time.thread_time_ns()\n"
        "while (own := time.thread_time_ns() - begin) < 20_000_000:\n    pass\n"
        "assert others() - before < own / 4, (others() - before, own)"
    )


def test_without_numpy_the_import_error_is_raised() -> None:
    modules_after(
        "import sys\nsys.path = [p for p in sys.path if not p.endswith('site-packages')]\n"
        "from gpt2core.startup import slim_numpy\nslim_numpy.install()\n"
        "try:\n    import numpy\nexcept ModuleNotFoundError:\n    pass\n"
        "else:\n    raise SystemExit('no error')"
    )


@pytest.mark.parametrize("name", ["inspect", "pickle"])
def test_a_concurrent_import_of_a_module_gets_the_module(run: Run, name: str) -> None:
    run(
        HOOKS + f"kept = []\n"
        f"def meanwhile():\n    import {name}\n    kept.append({name})\n"
        "def then():\n"
        "    thread = threading.Thread(target=meanwhile)\n"
        "    thread.start()\n    thread.join()\n"
        "sys.meta_path.insert(0, Gate('numpy._core.fromnumeric', then))\n"
        + SLIM
        + f"import {name}\n"
        f"assert kept == [{name}] and type({name}).__name__ == 'module'\n"
        "import inspect\n"
        "assert str(inspect.signature(lambda a, b: a)) == '(a, b)'"
    )


def test_a_concurrent_import_of_numpy_waits_for_its_core(run: Run) -> None:
    run(
        HOOKS + "outcome, threads = [], []\n"
        "about_to_import = threading.Event()\n"
        "def meanwhile():\n"
        "    about_to_import.set()\n"
        "    import numpy\n"
        "    outcome.append(numpy.zeros(3).sum())\n"
        "def then():\n"
        "    threads.append(threading.Thread(target=meanwhile, daemon=True))\n"
        "    threads[0].start()\n"
        "    about_to_import.wait()\n"
        "sys.meta_path.insert(0, Gate('numpy._core.multiarray', then))\n" + SLIM +
        "threads[0].join(20)\n"
        "assert outcome == [0], outcome"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "sought"),
    [
        ("np.linalg", "import numpy.linalg", "numpy.linalg"),
        ("np.eye", "import numpy.lib.format", "numpy.lib.format"),
        ("np.eye", "import numpy.random", "numpy.random"),
        ("import numpy.fft", "from numpy.linalg import norm", "numpy.linalg"),
        ("import numpy.matrixlib", "import numpy.lib._npyio_impl", "numpy.lib._npyio_impl"),
    ],
)
def test_two_threads_that_load_the_rest_do_not_deadlock(
    run: Run, first: str, second: str, sought: str
) -> None:
    """The second starts its import when the first is about to execute `numpy.lib`."""
    run(
        SLIM + HOOKS + "failed = []\n"
        "def ask(code):\n"
        "    try:\n        exec(code, {'np': np})\n"
        "    except BaseException as error:\n        failed.append(error)\n"
        "searches = Searches()\n"
        f"second = threading.Thread(target=ask, args=({second!r},), daemon=True)\n"
        "def then():\n"
        "    second.start()\n"
        f"    searches.of({sought!r}).wait()\n"
        "sys.meta_path[:0] = [Gate('numpy.lib', then), searches]\n"
        f"first = threading.Thread(target=ask, args=({first!r},), daemon=True)\n"
        "first.start()\n"
        "for thread in (first, second):\n"
        "    thread.join(20)\n"
        "    assert not thread.is_alive(), 'they wait for each other'\n"
        "assert not failed, failed\n"
        "assert np.linalg.norm([3, 4]) == 5 and np.lib.format.MAGIC_PREFIX"
    )
