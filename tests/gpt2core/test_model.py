from pathlib import Path

import numpy as np
import pytest

from gpt2core import Engine, model, scheduler
from gpt2core.config import ACTIVATION_NAMES, GPT2Config
from gpt2core.forward import KVCache
from gpt2core.model import ACTIVATIONS, causal_mask, gelu, gelu_new
from gpt2core.weights import attention_scale
from tests.support.kernels import needs_native
from tests.support.models import small_config, write_model
from tests.support.reference_cases import CASES, Case, prompt_ids, without_end

FIXTURES = Path(__file__).parent.parent / "fixtures" / "reference.npz"


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    with np.load(FIXTURES) as stored:
        return dict(stored)


@pytest.fixture(params=["numpy", "native"])
def kernels(request: pytest.FixtureRequest) -> str:
    if request.param == "native":
        needs_native()
    return str(request.param)


@pytest.fixture
def engine(model_dir: Path, kernels: str) -> Engine:
    return Engine.open(model_dir, kernels=kernels)


def open_case(case: Case, folder: Path, kernels: str) -> Engine:
    return Engine.open(
        write_model(folder / case.name, without_end(case.config), seed=case.seed, tokenizer=False),
        kernels=kernels,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_agree_with_the_reference_implementation(
    case: Case, tmp_path: Path, reference: dict[str, np.ndarray], kernels: str
) -> None:
    engine = open_case(case, tmp_path, kernels)
    expected = reference[f"{case.name}.logits"]
    logits = engine.logits(prompt_ids(case, len(expected)))
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_greedy_ids_agree_with_the_reference_implementation(
    case: Case, tmp_path: Path, reference: dict[str, np.ndarray], kernels: str
) -> None:
    engine = open_case(case, tmp_path, kernels)
    expected = reference[f"{case.name}.greedy"].tolist()
    assert len(expected) >= 20  # cut where the two highest logits differ by less than 1e-3
    assert engine.generate_ids(prompt_ids(case, 4), len(expected)) == expected


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 40, 64])
def test_prefill_in_chunks_of_any_size_gives_the_same_logits(engine: Engine, chunk: int) -> None:
    ids = [(31 * i) % 257 for i in range(60)]
    forward = engine._forward
    cache = forward.new_cache(len(ids))
    rows = [
        forward.unchecked_logits(forward.hidden_states([ids[i : i + chunk]], [cache]))
        for i in range(0, len(ids), chunk)
    ]
    np.testing.assert_allclose(np.concatenate(rows), engine.logits(ids), rtol=0, atol=1e-5)


def test_decoding_with_the_cache_gives_the_same_logits(engine: Engine) -> None:
    ids = [(13 * i + 5) % 257 for i in range(30)]
    forward = engine._forward
    cache = forward.new_cache(len(ids))
    pieces = [ids[:10], *([i] for i in ids[10:])]
    cached = [
        forward.unchecked_logits(forward.hidden_states([piece], [cache]))[-1] for piece in pieces
    ]
    np.testing.assert_allclose(np.stack(cached), engine.logits(ids)[9:], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "n_last", [[0, 1, 0], [1, 1, 1], [3, 0, 2], [0, 0, 0], [0, 1, 28], [9, 1, 30]]
)
def test_only_the_requested_last_rows_are_returned(
    engine: Engine, kernels: str, n_last: list[int]
) -> None:
    forward = engine._forward
    lengths = [9, 1, 30]
    sequences = [[(7 * i + n) % 257 for i in range(n)] for n in lengths]

    def run(*rows: list[int]) -> tuple[list[np.ndarray], list[KVCache]]:
        caches = [forward.new_cache(40) for _ in sequences]
        for cache in caches:
            np.asarray(cache.keys).fill(np.nan)
            np.asarray(cache.values).fill(np.nan)
            forward.hidden_states([[1, 2, 3]], [cache])
        x = np.asarray(forward.hidden_states(sequences, caches, *rows))
        return np.split(x, np.cumsum(rows[0] if rows else lengths)[:-1]), caches

    everything, expected_caches = run()
    found, caches = run(n_last)
    atol = 0 if kernels == "native" else 1e-5
    for rows, complete, n in zip(found, everything, n_last, strict=True):
        np.testing.assert_allclose(rows, complete[len(complete) - n :], rtol=0, atol=atol)
    for cache, expected in zip(caches, expected_caches, strict=True):
        assert cache.n_kv == expected.n_kv
        for pair in ((cache.keys, expected.keys), (cache.values, expected.values)):
            (own, other), n_kv = map(np.asarray, pair), cache.n_kv
            np.testing.assert_allclose(own[:, :, :n_kv], other[:, :, :n_kv], rtol=0, atol=atol)


def test_generating_with_the_cache_gives_the_same_ids(engine: Engine) -> None:
    ids = [1, 2, 3]
    uncached = list(ids)
    for _ in range(40):
        uncached.append(int(engine.logits(uncached)[-1].argmax()))
    assert engine.generate_ids(ids, 40) == uncached[3:]


def test_a_prompt_longer_than_a_prefill_chunk_has_the_same_logits(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [(11 * i) % 257 for i in range(50)]
    whole, continued = engine.logits(ids), engine.generate_ids(ids, 10)
    monkeypatch.setattr(model, "PREFILL_ROWS", 8)
    monkeypatch.setattr(scheduler, "PREFILL_ROWS", 8)
    np.testing.assert_allclose(engine.logits(ids), whole, rtol=0, atol=1e-5)
    assert engine.generate_ids(ids, 10) == continued


def test_later_tokens_do_not_change_earlier_logits(engine: Engine) -> None:
    first, second = engine.logits([9, 8, 7, 6]), engine.logits([9, 8, 200, 100])
    np.testing.assert_allclose(first[:2], second[:2], rtol=0, atol=1e-5)
    assert np.abs(first[2] - second[2]).max() > 0.1


def test_one_new_position_needs_no_mask() -> None:
    assert causal_mask(1) is None


def test_the_mask_hides_exactly_the_positions_after_each() -> None:
    mask = causal_mask(3)
    assert mask is not None
    assert mask.tolist() == [[0, -np.inf, -np.inf], [0, 0, -np.inf], [0, 0, 0]]


def test_every_accepted_activation_is_implemented() -> None:
    assert set(ACTIVATION_NAMES) == set(ACTIVATIONS)


def test_erf_gelu_is_exact_to_float32() -> None:
    from math import erf, sqrt

    x = np.linspace(-8, 8, 2001, dtype=np.float32)
    exact = np.array([v * 0.5 * (1 + erf(v / sqrt(2))) for v in x.astype(float)])
    np.testing.assert_allclose(gelu(x), exact, rtol=0, atol=1e-6)


def test_gelu_new_matches_its_formula() -> None:
    x = np.linspace(-8, 8, 2001)
    exact = 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))
    np.testing.assert_allclose(gelu_new(x.astype(np.float32)), exact, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ACTIVATION_NAMES)
def test_activations_are_finite_for_large_inputs(name: str) -> None:
    with np.errstate(all="raise", under="ignore"):
        assert np.isfinite(ACTIVATIONS[name](np.array([[-1e4, 1e4]], np.float32))).all()


@pytest.mark.parametrize(
    ("scaled", "inverse", "layer", "expected"),
    [
        (True, False, 3, 0.25),
        (False, False, 3, 1.0),
        (True, True, 3, 0.0625),
        (False, True, 1, 0.5),
    ],
)
def test_attention_scale_follows_the_configuration(
    scaled: bool, inverse: bool, layer: int, expected: float
) -> None:
    config = GPT2Config.from_dict(
        small_config(
            n_embd=16, n_head=1, scale_attn_weights=scaled, scale_attn_by_inverse_layer_idx=inverse
        )
    )
    assert attention_scale(config, layer) == expected


def test_greedy_selects_the_first_maximum(engine: Engine) -> None:
    x = engine._forward.hidden_states([[5, 6, 7]], [engine._forward.new_cache(8)])
    assert engine._forward.greedy(x) == engine.logits([5, 6, 7]).argmax(axis=1).tolist()


def test_greedy_reports_nan_only_for_its_row(engine: Engine) -> None:
    x = np.ones((3, engine.config.n_embd), np.float32)
    x[:, ::2] = -1
    ids = engine._forward.greedy(x)
    x[1, 3] = np.nan
    assert engine._forward.greedy(x) == [ids[0], None, ids[2]]
