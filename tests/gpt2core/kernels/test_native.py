"""The compiled kernels against NumPy, and bit for bit against themselves."""

import io
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from gpt2core import Engine
from gpt2core import model as gpt2
from gpt2core.errors import InvalidArgument
from gpt2core.kernels.matrix import Matrix
from gpt2core.kernels.reference import to_float32
from gpt2core.pack import pack, quantize, to_bfloat16
from gpt2core.weights import Norm
from tests.conftest import DEMO, ROOT
from tests.support.kernels import needs_native
from tests.support.models import tensor_of, uniform

KINDS = ("F32", "F16", "BF16", "I8")
# n_in, n_out: one, odd, multiples of 16, over a chunk of k, over a panel of outputs
SHAPES = [
    (1, 1),
    (24, 3),
    (24, 257),
    (16, 48),
    (49, 33),
    (80, 500),
    (800, 61),
    (1600, 64),
    (1537, 70),
]
ROWS = (1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 33, 70)


@pytest.fixture(autouse=True)
def _native() -> Iterator[None]:
    needs_native()
    from gpt2core.kernels import _kernels

    yield
    _kernels.choose(None)
    _kernels.set_threads(2)


def matrix(kind: str, n_in: int, n_out: int, *, columns: bool, seed: int = 1) -> Matrix:
    """A random matrix with layout [n_in, n_out] if `columns`, else [n_out, n_in]."""
    weights = uniform(seed, (n_out, n_in))
    scale = None
    data: NDArray[Any] = weights
    if kind == "F16":
        data = weights.astype(np.float16)
    elif kind == "BF16":
        data = to_bfloat16(weights)
    elif kind == "I8":
        data, scale = quantize(weights, 1)
    if columns:
        tensor = tensor_of(data.T, kind, None if scale is None else scale.T)
    else:
        tensor = tensor_of(data, kind, scale)._replace(axis=1).transposed()
    return Matrix(tensor, uniform(seed + 1, (n_out,)))


def instruction_sets() -> list[str]:
    from gpt2core.kernels import _kernels

    return [name for name in ("avx512", "avx2", "neon") if _kernels.choose(name)]


@pytest.mark.parametrize("columns", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_in", "n_out"), SHAPES)
def test_products_agree_with_numpy_and_do_not_depend_on_rows_or_threads(
    kind: str, n_in: int, n_out: int, columns: bool
) -> None:
    from gpt2core.kernels import _kernels, native

    m = matrix(kind, n_in, n_out, columns=columns)
    x, residual = uniform(5, (max(ROWS), n_in)), uniform(6, (max(ROWS), n_out))
    weights = to_float32(m.tensor).astype(np.float64)
    exact = x.astype(np.float64) @ weights + m.bias + residual
    magnitude = np.abs(x) @ np.abs(weights) + np.abs(m.bias) + np.abs(residual)
    expected = np.asarray(native.linear(x, m, residual=residual))
    assert (np.abs(expected - exact) <= 4e-7 * magnitude).all()
    for name in instruction_sets():
        _kernels.choose(name)
        for threads in (1, 2, 3):
            _kernels.set_threads(threads)
            for rows in ROWS:
                found = np.asarray(native.linear(x[:rows], m, residual=residual[:rows]))
                assert (found.view(np.uint32) == expected[:rows].view(np.uint32)).all()


@pytest.mark.parametrize("name", sorted(gpt2.ACTIVATIONS))
def test_activations_agree_with_numpy(name: str) -> None:
    from gpt2core.kernels import _kernels, native

    x = np.concatenate([np.linspace(-100, 100, 40_001), np.linspace(-3, 3, 10_001)])
    x = np.concatenate([x, [0, -0.0, 1e-40, -1e-40, 1e30, -1e30]]).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = gpt2.ACTIVATIONS[name](x.astype(np.float64))
    first: NDArray[np.float32] | None = None
    for isa in instruction_sets():
        _kernels.choose(isa)
        found = x.copy()
        _kernels.activate(found, native.ACTIVATIONS[name])
        finite = np.isfinite(expected) & (np.abs(expected) < 3e38)
        error = np.abs(found - expected)[finite] / np.maximum(1, np.abs(expected[finite]))
        assert error.max() < 4e-7
        first = found if first is None else first
        assert (first.view(np.uint32) == found.view(np.uint32)).all()
        nan = np.full(3, np.nan, np.float32)
        _kernels.activate(nan, native.ACTIVATIONS[name])
        assert np.isnan(nan).all()


@pytest.mark.parametrize("n_embd", [1, 16, 24, 257, 768])
def test_layer_norm_agrees_with_numpy(n_embd: int) -> None:
    from gpt2core.kernels import native

    x = 3 * uniform(1, (40, n_embd)) + 1
    norm = Norm(uniform(2, (n_embd,)), uniform(3, (n_embd,)))
    found = np.asarray(native.layer_norm(x, norm, 1e-5))
    np.testing.assert_allclose(found, gpt2.layer_norm(x, norm, 1e-5), rtol=0, atol=3e-6)
    assert (np.asarray(native.layer_norm(x[7:8], norm, 1e-5)) == found[7]).all()


def attend(
    qkv: NDArray[np.float32], n_head: int, cuts: list[int], past: int = 0
) -> NDArray[np.float32]:
    """The attention of one sequence and layer, with its rows split into pieces."""
    from gpt2core.kernels import _kernels

    n_tokens, width = len(qkv), qkv.shape[1] // 3
    keys = np.full((n_head, n_tokens + past + 3, width // n_head), np.nan, np.float32)
    values = keys.copy()
    pieces, at = [], 0
    for length in cuts:
        heads = np.empty((length, width), np.float32)
        piece = np.ascontiguousarray(qkv[at : at + length])
        _kernels.attention(
            piece, heads, [(length, at, keys, values, length)], n_head, width // n_head, 0.3
        )
        pieces.append(heads)
        at += length
    return np.concatenate(pieces)


@pytest.mark.parametrize(
    ("n_head", "head_dim"), [(1, 1), (3, 8), (2, 16), (3, 40), (2, 64), (1, 80)]
)
def test_attention_agrees_with_numpy_for_any_split(n_head: int, head_dim: int) -> None:
    n_tokens = 75
    qkv = 4 * uniform(1, (n_tokens, 3 * n_head * head_dim))
    q, k, v = qkv.reshape(n_tokens, 3, n_head, head_dim).transpose(1, 2, 0, 3).astype(np.float64)
    scores = 0.3 * q @ k.transpose(0, 2, 1)
    scores[:, np.triu(np.ones((n_tokens, n_tokens), bool), 1)] = -np.inf
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    exact = (weights / weights.sum(axis=-1, keepdims=True)) @ v
    whole = attend(qkv, n_head, [n_tokens])
    np.testing.assert_allclose(
        whole, exact.transpose(1, 0, 2).reshape(n_tokens, -1), rtol=0, atol=3e-6
    )
    for cuts in ([1] * n_tokens, [7, 1, 40, 27], [64, 11]):
        assert (attend(qkv, n_head, cuts) == whole).all()


def test_nan_does_not_affect_earlier_rows() -> None:
    qkv = uniform(1, (30, 3 * 64))
    whole = attend(qkv, 1, [30])
    qkv[20] = np.nan
    damaged = attend(qkv, 1, [30])
    assert (damaged[:20] == whole[:20]).all()
    assert np.isnan(damaged[20:]).all()


@pytest.mark.parametrize("n_out", [1, 50, 5000])
@pytest.mark.parametrize("rows", [1, 5, 70])
def test_greedy_selects_the_first_maximum_and_reports_nan_by_row(rows: int, n_out: int) -> None:
    from gpt2core.kernels import native

    m = matrix("BF16", 32, n_out, columns=False)
    m.bias = None
    x = uniform(3, (rows, 32))
    x[rows // 2] = 0  # all equal
    expected = np.asarray(native.linear(x, m)).argmax(axis=1).tolist()
    assert expected[rows // 2] == 0
    assert native.greedy(x, m) == expected
    x[-1, 0] = np.nan
    assert native.greedy(x, m) == [*expected[:-1], None]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n_in", [1, 16, 49, 80])
def test_rows_of_a_matrix_agree_with_numpy(kind: str, n_in: int) -> None:
    from gpt2core.kernels import _kernels, native

    m = matrix(kind, n_in, 70, columns=False)
    expected = to_float32(m.tensor).T[[69, 0, 5, 5]]
    added = uniform(3, expected.shape)
    for name in instruction_sets():
        _kernels.choose(name)
        found = added.copy()
        _kernels.rows(native.handle(m), [69, 0, 5, 5], found, 1, 0)
        assert (found == added + expected).all()
        _kernels.rows(native.handle(m), [69, 0, 5, 5], found, 0, 1)
        assert (found == expected).all()


def test_invalid_arguments_of_rows_are_rejected() -> None:
    from gpt2core.kernels import _kernels, native

    y = np.zeros((1, 24), np.float32)
    five = native.handle(matrix("F32", 24, 5, columns=False))
    for index in (-1, 5):
        with pytest.raises(ValueError, match=f"row is {index}, not an integer from 0 to 4"):
            _kernels.rows(five, [index], y, 0, 0)
    with pytest.raises(ValueError, match="96 bytes in items of 4 instead of 48 items of 4"):
        _kernels.rows(five, [0, 1], y, 0, 0)
    with pytest.raises(ValueError, match="add is 2, not an integer from 0 to 1"):
        _kernels.rows(five, [0], y, 2, 0)
    with pytest.raises(TypeError, match="'tuple'> is not a list"):
        _kernels.rows(five, (0,), y, 0, 0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stored by columns"):
        _kernels.rows(native.handle(matrix("F32", 24, 5, columns=True)), [0], y, 0, 0)


def test_empty_has_the_size_asked_for_and_rejects_negative_sizes() -> None:
    from gpt2core.kernels import _kernels

    for size in (0, 3, 9 << 20):  # from 4 MB on with huge pages
        made = _kernels.empty(size)
        assert len(made) == size
        made[:] = bytes(size)
    with pytest.raises(ValueError, match="n is -1, not a number of bytes"):
        _kernels.empty(-1)


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_vectors_are_converted_without_loss(kind: str) -> None:
    from gpt2core.kernels import native

    values = uniform(1, (50,))
    stored: dict[str, NDArray[Any]] = {
        "F32": values,
        "F16": values.astype(np.float16),
        "BF16": to_bfloat16(values),
    }
    tensor = tensor_of(stored[kind], kind)
    assert (np.asarray(native.to_float32(tensor)) == to_float32(tensor)).all()


@pytest.mark.parametrize("precision", ["raw", "f32", "bf16", "int8"])
def test_a_sequence_has_the_same_logits_alone_and_in_a_batch(
    precision: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    from gpt2core.kernels import _kernels

    folder = DEMO
    if precision != "raw":
        folder = tmp_path_factory.mktemp(precision)
        pack(DEMO, folder, precision)
    engine = Engine.open(folder, kernels="native")
    forward = engine._forward
    ids = [[(37 * i + 11 * n) % 2000 for i in range(n)] for n in (61, 1, 17, 90)]
    expected = [engine.logits(sequence) for sequence in ids]
    for name in instruction_sets():
        _kernels.choose(name)
        for threads in (1, 2):
            _kernels.set_threads(threads)
            caches = [forward.new_cache(len(sequence)) for sequence in ids]
            found: list[list[NDArray[np.float32]]] = [[] for _ in ids]
            done, piece = [0] * len(ids), 1
            while any(d < len(s) for d, s in zip(done, ids, strict=True)):
                active = [i for i, s in enumerate(ids) if done[i] < len(s)]
                parts = [ids[i][done[i] : done[i] + piece + i] for i in active]
                x = forward.hidden_states(parts, [caches[i] for i in active])
                scores = forward.unchecked_logits(x)
                for i, part in zip(active, parts, strict=True):
                    found[i].append(scores[: len(part)])
                    scores = scores[len(part) :]
                    done[i] += len(part)
                piece = piece % 23 + 5
            for sequence, rows in zip(expected, found, strict=True):
                assert (np.concatenate(rows) == sequence).all()


def test_calls_that_may_block_release_the_gil() -> None:
    from gpt2core.kernels import _kernels, native

    m = native.handle(matrix("F32", 768, 9000, columns=False))
    x = uniform(1, (1, 768))
    go, ran = threading.Event(), threading.Event()
    thread = threading.Thread(target=lambda: go.wait() and ran.set(), daemon=True)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # the other thread runs only if this one releases the GIL
    try:
        thread.start()
        go.set()
        _kernels.greedy(m, x, 1, 0)
        assert not ran.is_set()
        for _ in range(1000):
            _kernels.greedy(m, x, 1, 1)
            if ran.is_set():
                break
        assert ran.is_set()
    finally:
        sys.setswitchinterval(interval)
        thread.join()


def test_only_passes_that_may_read_weights_from_disk_release_the_gil(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gpt2core.kernels import _kernels

    released: list[object] = []
    for name in ("rows", "forward", "greedy"):

        def watched(*arguments: Any, call: Any = getattr(_kernels, name)) -> Any:  # noqa: B008
            if type(arguments[-1]) is bool:  # not the conversion of a vector
                released.append(arguments[-1])
            return call(*arguments)

        monkeypatch.setattr(_kernels, name, watched)
    engine = Engine.open(DEMO, kernels="native")
    engine.generate_ids([1, 2], 3)
    assert released == [True] * 4 + [False] * 8
    engine.after_restore()
    engine.generate_ids([1, 2], 1)
    assert released[12:] == [True] * 4
    sampled = Engine.open(DEMO, kernels="native")
    sampled.generate([1, 2], 2, temperature=1.0)
    assert released[16:] == [True] * 4 + [False] * 3


def test_raw_and_packed_f32_have_the_same_logits(tmp_path: Any) -> None:
    pack(DEMO, tmp_path, "f32")
    ids = list(range(50))
    raw, packed = Engine.open(DEMO, kernels="native"), Engine.open(tmp_path, kernels="native")
    assert (raw.logits(ids) == packed.logits(ids)).all()


def test_unknown_kernels_are_rejected() -> None:
    with pytest.raises(InvalidArgument, match="kernels 'fast' is not one of auto, native, numpy"):
        Engine.open(DEMO, kernels="fast")


def test_kernels_that_do_not_run_here_are_an_error_with_the_fix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from gpt2core.kernels import _kernels

    with monkeypatch.context() as patch:
        patch.setattr(_kernels, "choose", lambda name: None)
        with pytest.raises(InvalidArgument, match=r"not supported by this processor.*'numpy'"):
            Engine.open(DEMO, kernels="native")


def test_unknown_instruction_sets_are_not_chosen() -> None:
    from gpt2core.kernels import _kernels

    assert _kernels.choose("avx9") is None
    with pytest.raises(RuntimeError, match="no kernels are selected"):
        _kernels.activate(np.zeros(1, np.float32), 0)


def test_buffers_of_the_wrong_size_or_kind_are_rejected() -> None:
    from gpt2core.kernels import _kernels, native

    m = native.handle(matrix("F32", 24, 5, columns=False))
    x, y = np.zeros((2, 24), np.float32), np.zeros((2, 5), np.float32)
    for a, b in [(x[:1], y), (x, y[:, :4].copy()), (x.astype(np.float64), y), (x.T, y)]:
        with pytest.raises((ValueError, BufferError)):
            _kernels.linear(m, a, 2, b, 0, None)
    with pytest.raises(ValueError, match="activation is 9, not an integer from 0 to 8"):
        _kernels.linear(m, x, 2, y, 9, None)
    with pytest.raises(TypeError, match="not a Matrix"):
        _kernels.linear(x, x, 2, y, 0, None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not fit its cache"):
        _kernels.attention(
            x, y, [(2, 7, np.zeros(64, np.float32), np.zeros(64, np.float32), 2)], 1, 8, 1
        )
    with pytest.raises(ValueError, match="n_last is 3, not an integer from 0 to 2"):
        _kernels.attention(
            x, y, [(2, 0, np.zeros(64, np.float32), np.zeros(64, np.float32), 3)], 1, 8, 1
        )
    y.flags.writeable = False
    with pytest.raises((ValueError, BufferError)):
        _kernels.linear(m, x, 2, y, 0, None)


def in_a_process(code: str) -> str:
    """The output of code in a new process, without the threads of the test process."""
    setup = (
        "import os, sys, time\nimport numpy as np\n"
        "from gpt2core.kernels import _kernels, native\n"
        "w, x = np.ones((600, 64), np.float32), np.ones((40, 64), np.float32)\n"
        "m = _kernels.matrix(0, 0, 600, 64, w, None, None)\n"
        "def product():\n"
        "    y = np.empty((40, 600), np.float32)\n"
        "    _kernels.linear(m, x, 40, y, 0, None)\n"
        "    return bool((y == 64).all())\n"
        "def tasks():\n    return os.listdir('/proc/self/task')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", setup + code],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},  # keeps preloaded sanitizers
    )
    return done.stdout.strip()


def test_with_one_thread_no_worker_is_started() -> None:
    code = "_kernels.set_threads({})\nassert product()\nprint(len(tasks()))"
    assert in_a_process(code.format(1)) == "1"
    assert in_a_process(code.format(3)) == "3"


def test_idle_workers_sleep() -> None:
    assert (
        in_a_process(
            "_kernels.set_threads(3)\nassert product()\n"
            "def states():\n"
            "    names = [t for t in tasks() if int(t) != os.getpid()]\n"
            "    stats = [open(f'/proc/self/task/{t}/stat').read() for t in names]\n"
            "    return {stat.rsplit(') ')[1][0] for stat in stats}\n"
            "until = time.monotonic() + 10\n"
            "while states() != {'S'} and time.monotonic() < until:\n    pass\n"
            "print(states())"
        )
        == "{'S'}"
    )


def test_kernels_work_after_a_fork() -> None:
    assert (
        in_a_process(
            "_kernels.set_threads(2)\nassert product()\n"
            "child = os.fork()\n"
            "if not child:\n    os._exit(0 if product() and product() else 1)\n"
            "print(os.waitpid(child, 0)[1], product())"
        )
        == "0 True"
    )


def test_a_fork_during_a_job_of_one_thread_leaves_the_kernels_usable() -> None:
    assert (
        in_a_process(
            "import signal, threading\n_kernels.set_threads(1)\nstop = threading.Event()\n"
            "table = memoryview(bytes(4 << 22)).cast('f')\n"
            "matrix = _kernels.matrix(0, 0, 1 << 16, 64, table, None, None)\n"
            "row = memoryview(bytes(4 * 64)).cast('f')\n"
            "def work():\n"
            "    while not stop.is_set(): _kernels.greedy(matrix, row, 1, 1)\n"
            "thread = threading.Thread(target=work)\nthread.start()\nfound = []\n"
            "for _ in range(5):\n"
            "    child = os.fork()\n"
            "    if not child:\n"
            "        signal.alarm(10)\n"
            "        _kernels.set_threads(1)\n"
            "        os._exit(0 if product() else 1)\n"
            "    found.append(os.waitpid(child, 0)[1])\n"
            "stop.set()\nthread.join()\nprint(set(found))"
        )
        == "{0}"
    )


def test_concurrent_calls_do_not_interfere() -> None:
    assert (
        in_a_process(
            "import threading\n_kernels.set_threads(2)\nfound = []\n"
            "def work():\n    found.extend(product() for _ in range(50))\n"
            "threads = [threading.Thread(target=work) for _ in range(4)]\n"
            "for t in threads: t.start()\n"
            "for t in threads: t.join()\n"
            "print(len(found), all(found))"
        )
        == "200 True"
    )


def test_threads_default_to_the_usable_cpus() -> None:
    assert (
        in_a_process(
            "os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n"
            "print(native.usable_threads())"
        )
        == "1"
    )


@pytest.mark.parametrize(("quota", "expected"), [("max 100000", 2), ("150000 100000", 1), ("x", 2)])
def test_the_cpu_quota_of_a_cgroup_limits_threads(
    quota: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpt2core.kernels import native

    files = {"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/cpu.max": quota}
    monkeypatch.setattr(native.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(native.os.path, "exists", files.__contains__)
    monkeypatch.setattr("builtins.open", lambda name: io.StringIO(files[name]))
    assert native.usable_threads() == expected
