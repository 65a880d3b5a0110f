"""The figures of README and docs are those of bench/results, or follow from the code."""

import json
import re
from math import prod
from typing import Any

import pytest

from bench.random_model import CONFIG, SIZES
from gpt2core import prompt_lookup
from gpt2core.config import GPT2Config
from gpt2core.files.checkpoint import expected_shapes
from gpt2core.files.packed import is_matrix, scale_shape
from tests.conftest import ROOT
from tests.support.docs import agrees, numbers, page, sentence_with, table

RESULTS = ROOT / "bench" / "results"
PERFORMANCE = "docs/performance.md"
IMPLEMENTATIONS = {
    "ours, int8": "ours int8",
    "ours, bf16": "ours bf16",
    "ours, f32": "ours f32",
    "ours, not packed": "ours published",
    "llama.cpp, Q8_0": "llama.cpp Q8_0",
    "llama.cpp, bf16": "llama.cpp bf16",
    "llama.cpp, f32": "llama.cpp f32",
    "ONNX Runtime, f32": "ONNX Runtime f32",
    "CTranslate2, int8": "CTranslate2 int8",
    "CTranslate2, f32": "CTranslate2 f32",
    "transformers + torch, f32": "transformers",
    "transformers, f32": "transformers",
    '`python -c "import numpy"`': "import numpy",
    "`python -c pass`": "bare interpreter",
    "`dd` of the f32 file": "dd of the packed f32",
}


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def implementation(name: str) -> str:
    return IMPLEMENTATIONS[name.partition(" (")[0]]


def assert_spread(cell: str, measured: dict[str, Any]) -> None:
    """`median (min-max)` in milliseconds."""
    expected = [round(measured[key]) for key in ("median_ms", "min_ms", "max_ms")]
    assert numbers(cell.replace("-", " ")) == expected


def test_every_result_file_is_behind_a_figure() -> None:
    named = set(re.findall(r'result\("(\w+)"\)', (ROOT / __file__).read_text()))
    assert {path.stem for path in RESULTS.glob("*.json")} == named


@pytest.mark.parametrize(
    ("name", "header"),
    [("README.md", "| median ms (min-max)"), (PERFORMANCE, "page cache warm |")],
)
def test_cold_starts(name: str, header: str) -> None:
    measured = result("cold_start")["warm"]
    rows = table(name, header)
    assert len(rows) >= 6
    for row, (spread, *ratios) in rows.items():
        found = measured[implementation(row)]
        assert_spread(spread, found)
        for figure, reference in zip(ratios, ("ours int8", "ours f32"), strict=False):
            assert agrees(figure, found["times_of"][reference]), (row, figure)


def test_cold_starts_without_the_page_cache() -> None:
    measured = result("cold_start")
    rows = table(PERFORMANCE, "model files not in the page cache")
    for state, column in (("evicted", 0), ("volume", 1)):
        assert {implementation(row) for row in rows} == set(measured[state])
        for row, cells in rows.items():
            assert_spread(cells[column], measured[state][implementation(row)])


def test_float32_implementations_give_the_same_text() -> None:
    measured = result("cold_start")
    assert {name for name in measured["warm"] if name.endswith("f32")} <= set(measured["same_text"])


def test_the_phases_of_a_cold_start() -> None:
    found = result("cold_start")["warm"]["ours int8"]
    laps = found["laps_ms"]
    text = sentence_with(PERFORMANCE, "Eight threads read").partition("The time of")[0]
    phases = re.search(
        r"Of the (\d+) ms .*? imports take (\d+) ms, opening .*? ([\d.]+) ms, .*? tokens (\d+) ms",
        text,
    )
    assert phases
    expected = (
        found["median_ms"],
        laps["imports"],
        laps["tokenizer"] - laps["imports"],
        laps["tokens"] - laps["tokenizer"],
    )
    for figure, measured in zip(phases.groups(), expected, strict=True):
        assert agrees(figure, measured), (figure, measured)


def test_warm_decode_prefill_and_batches() -> None:
    token, prompts, together = result("token"), result("prompts"), result("together")
    columns = [
        (token["token=30"], "median_ms"),
        *((prompts[f"prompt={n}"], "median_ms") for n in (64, 512, 1000)),
        *((together[f"together={n}"], "median_tokens_per_s") for n in (8, 32)),
    ]
    checked = 0
    for row, cells in table(PERFORMANCE, "| decode, ms/token |").items():
        for cell, (measured, field) in zip(cells, columns, strict=True):
            if cell:
                found = measured[implementation(row)][field]
                assert agrees(cell, found), (row, cell, found)
                checked += 1
    assert checked >= 50


def test_the_gain_of_32_prompts_together() -> None:
    measured = result("together")
    text = sentence_with("README.md", "32 prompts at once give")
    found = re.match(
        r"32 prompts at once give ([\d.]+) times .+? in int8, and ([\d.]+) times", text
    )
    assert found
    for figure, name in zip(found.groups(), ("ours int8", "ours f32"), strict=True):
        alone, together = (measured[f"together={n}"][name]["median_tokens_per_s"] for n in (1, 32))
        assert agrees(figure, together / alone), name


def test_the_throughput_that_the_costs_of_batches_use() -> None:
    measured = result("together")["together=32"]
    text = sentence_with("docs/deploy.md", "32 prompts together give")
    f32, int8 = re.findall(r"(\d+)(?: tokens per second)? in (?:f32|int8)", text)[:2]
    assert agrees(f32, measured["ours f32"]["median_tokens_per_s"])
    assert agrees(int8, measured["ours int8"]["median_tokens_per_s"])
    cost = re.search(r"At (\d+), a million replies of 20 tokens take ([\d,]+) s", text)
    assert cost
    at, replies = cost.groups()
    assert at == f32
    assert abs(20e6 / float(f32) / float(replies.replace(",", "")) - 1) < 0.001


def test_the_local_server() -> None:
    rows = table(PERFORMANCE, "clients | 1")
    for precision, clients in result("serve").items():
        for figure, n in zip(rows[precision], ("1", "8", "16"), strict=True):
            assert agrees(figure, clients[n]["tokens_per_s"]), (precision, n)
            assert clients[n]["same_texts"] == "32 of 32"


def test_requests_events_and_the_first_text_of_a_stream() -> None:
    path, events = result("http_path"), result("events")
    together = (
        events["together"][f"20 tokens, {n}"]["eight at once"]["times_of"]["one at a time"]
        for n in ("2 threads", "1 thread")
    )
    first = (events["first"][name]["median_ms"] for name in ("first text", "last byte"))
    expected = [path["http_p50_ms"], path["engine_p50_ms"], *together, *first]
    rows = table(PERFORMANCE, "part of a request |")
    for (row, (cell,)), measured in zip(rows.items(), expected, strict=True):
        assert agrees(cell.removesuffix(" ms"), measured), (row, measured)


def test_kernels_against_the_machine() -> None:
    measured = [result("kernels")[f"ours {p}"] for p in ("f32", "bf16", "int8")]
    fields = [
        lambda m: m["ms"]["token"],
        lambda m: m["token_of_products"],
        lambda m: m["token_of_read"],
        lambda m: m["rows_of_one"]["4"],
        lambda m: m["peak"]["16"],
        lambda m: m["peak"]["512"],
        lambda m: m["attention_of_read"],
    ]
    rows = table(PERFORMANCE, "| f32 | bf16 | int8")
    for (row, cells), field in zip(rows.items(), fields, strict=True):
        for cell, found in zip(cells, measured, strict=True):
            assert agrees(cell, field(found)), (row, cell, field(found))


def test_a_token_in_the_costs_of_memory() -> None:
    text = sentence_with("docs/deploy.md", "a token takes")
    f32, int8 = re.findall(r"([\d.]+) ms in (?:f32|int8)", text)[:2]
    measured = result("token")["token=30"]
    assert agrees(f32, measured["ours f32"]["median_ms"])
    assert agrees(int8, measured["ours int8"]["median_ms"])


def test_larger_shapes() -> None:
    measured = result("sizes")
    sizes = " | ".join(measured)
    assert sizes.startswith("355M")
    for header, what in (("cold start, ms", "cold_start"), ("decode, ms/token", "token")):
        for row, cells in table(PERFORMANCE, f"{header} | {sizes} |").items():
            for cell, size in zip(cells, measured, strict=True):
                found = measured[size][what][implementation(row)]["median_ms"]
                assert agrees(cell, found), (header, row, cell)


def test_downloads() -> None:
    measured = result("download")
    rows = table(PERFORMANCE, "download |")
    for name, key in (("`python -m handler fetch`", "ours, fetch"), ("`aws s3 cp`", "aws s3 cp")):
        spread, ratio = rows[name]
        assert_spread(spread, measured[key])
        assert agrees(ratio, measured[key]["times_of"]["aws s3 cp"])


def test_imports_of_a_cold_invoke() -> None:
    measured = result("imports")["median_ms"]
    rows = table(PERFORMANCE, "import |")
    assert {name.strip("`") for name in rows} == set(measured)
    for name, (cell,) in rows.items():
        assert agrees(cell, measured[name.strip("`")]), name


def test_the_runtimes_first_reply() -> None:
    measured = result("runtime")
    text = sentence_with(PERFORMANCE, "the first reply of the demo model takes")
    first, ahead = text.partition(" ms (`bench/runtime.py`)")[0].split("; the median of the ")
    ours, other = first.split(" instead of ")
    assert_spread(ours, measured["ours"])
    assert_spread(other, measured["awslambdaric"])
    assert agrees(ahead.removeprefix("differences is "), measured["ahead_ms"])


def test_the_image() -> None:
    measured = result("container")
    size, peer = (measured["own_mb"][f"gpt2-lambda-bench{x}"] for x in ("", "-transformers"))
    text = sentence_with("docs/image.md", "Compressed (gzip 6")
    found = re.search(
        r"\*\*([\d.]+) MB\*\*, and ([\d.]+) MB for the demo .*?\*\*([\d.]+) MB\*\*, ([\d.]+) times",
        text,
    )
    assert found
    own, demo, theirs, times = found.groups()
    assert (float(own), float(theirs)) == (size, peer)
    assert agrees(times, peer / size)
    parts = re.search(r"adds ([\d.]+) MB.*?: ([\d.]+) MB in all.*?or ([\d.]+) MB without", text)
    assert parts
    base, total, without = map(float, parts.groups())
    assert round(base + size, 1) == without
    assert round(base + size + float(demo), 1) == total
    shown = sum(float(cells[2]) for cells in table("docs/image.md", "part | files").values())
    assert abs(shown - size - float(demo)) < 1  # packages are compressed apart from each other


def test_the_first_reply_of_the_image() -> None:
    measured = result("container")["first_reply"]
    rows = list(table("docs/image.md", "| ours | transformers + torch").values())
    for (ours, theirs, ratio), model in zip(rows, ("demo", "124M"), strict=False):
        assert_spread(ours, measured[model][f"ours, {model}"])
        found = measured[model][f"transformers, {model}"]
        assert_spread(theirs, found)
        assert agrees(ratio, found["times_of"][f"ours, {model}"])
    assert_spread(rows[2][0], measured["demo"]["docker run true"])


def test_the_images_memory() -> None:
    measured = result("container")["memory"]
    limits = re.search(r"^\| MB \|(.+)\|$", page("docs/image.md"), re.MULTILINE)
    assert limits
    columns = [x.strip() for x in limits[1].split("|")]
    for precision, cells in table("docs/image.md", "MB | 2048").items():
        assert [float(cell) for cell in cells] == [measured[precision][x] for x in columns]


def test_prompt_lookup() -> None:
    measured = result("prompt_lookup")
    for row, cells in table(PERFORMANCE, "prompt lookup |").items():
        found = measured[f"tokens={int(numbers(row)[0])}"]
        for cell, what in zip(cells, ("tokens_per_pass", "times_as_fast"), strict=True):
            figures = re.findall(r"[\d.]+", cell)
            for figure, key in zip(figures, ("median", "min", "max"), strict=True):
                assert agrees(figure, found[what][key]), (row, cell)
    text = sentence_with(PERFORMANCE, "A pass that verifies three draft tokens")
    limit = re.search(r"more than ([\d.]+) times as much, prompt lookup turns itself off", text)
    assert limit
    assert float(limit[1]) == prompt_lookup._MAX_COST
    assert ("would turn itself off" in text) == (measured["cost_of_guesses"] > float(limit[1]))
    for sentence, key in (
        (r"a measured cost of ([\d.]+)", "cost_of_guesses"),
        (r"all are wrong, took ([\d.]+) times as long", "cost_of_wrong_guesses"),
    ):
        printed = re.search(sentence, text)
        assert printed, sentence
        assert agrees(printed[1], measured[key])


def test_threads_and_memory() -> None:
    measured = result("threads")
    text = sentence_with(PERFORMANCE, "With two threads that share one CPU")
    faults = measured["limited"]["major_faults_after_first_pass"]
    assert ("causes no disk reads after the first pass" in text) == (faults == 0)
    found = [
        measured["one_cpu"],
        *measured["busy"].values(),
        *measured["busy_default"].values(),
        measured["idle_cpu_ms"],
        measured["limited"]["peak_mb"],
    ]
    for begin, figure in zip(
        (
            "a token takes",
            "thread, decode takes",
            "and with two",
            "5 ms it takes",
            "times and",
            "process uses",
            "the mapped model, is",
        ),
        found,
        strict=True,
    ):
        printed = re.search(rf"{begin} ([\d.]*\d)", text)
        assert printed, begin
        assert agrees(printed[1], figure), (begin, printed[1])


def test_quality() -> None:
    measured = result("quality")
    text = sentence_with(PERFORMANCE, "The demo model on")
    assert numbers(text)[0] == measured["tokens"]
    shares = numbers(sentence_with("README.md", "the most likely token is the same"))
    assert agrees(str(shares[0]), measured["bf16"]["same_next_token_percent"])
    assert agrees(str(shares[1]), measured["int8"]["same_next_token_percent"])
    for row, (perplexity, same, error) in table(PERFORMANCE, "| perplexity").items():
        found = measured[row.partition(",")[0].strip("`")]
        assert agrees(perplexity.partition(" ")[0], found["perplexity"])
        assert agrees(same.removesuffix("%"), found["same_next_token_percent"])
        assert agrees(error.removesuffix("%"), 100 * found["logit_error_rms_of_spread"])
        if more := re.search(r"\+([\d.]+)%", perplexity):
            assert agrees(more[1], found["more_percent"])


def _weights_mb(precision: str) -> float:
    """Megabytes of the 124M shape's weights; `published` has a causal mask in each block."""
    config = GPT2Config.from_dict(CONFIG | SIZES["124M"])
    size = 4 * config.n_layer * config.n_positions**2 if precision == "published" else 0
    for name, shape in expected_shapes(config).items():
        if precision in ("published", "f32") or not is_matrix(name):
            size += 4 * prod(shape)
        elif precision == "bf16":
            size += 2 * prod(shape)
        else:
            size += prod(shape) + 4 * prod(scale_shape(shape))
    return size / 1e6


def test_the_sizes_of_packed_models_follow_from_the_shape() -> None:
    for row, (figure, _) in table("docs/models.md", "| weights of 124M").items():
        precision = re.sub(r"[`,].*| \(.*", "", row.lstrip("`"))
        assert agrees(figure, _weights_mb(precision)), row
    text = sentence_with("README.md", "124M parameters take")
    for figure, precision in zip(numbers(text)[1:4], ("f32", "bf16", "int8"), strict=True):
        assert agrees(str(int(figure)), _weights_mb(precision))
    memory = re.search(
        r"124M parameters: (\d+) MB in f32, (\d+) in int8",
        sentence_with("docs/deploy.md", "The table is for"),
    )
    assert memory
    f32, int8 = memory.groups()
    assert agrees(f32, _weights_mb("f32"))
    assert agrees(int8, _weights_mb("int8"))


# `20 x 0.040 s x 1.728 GB x $0.0000166667/GB-s = $0.0000230`
_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_FACTOR = rf"(?:{_NUMBER}(?: s| GB)?|\${_NUMBER}/GB(?:-s)?)"
_PRODUCT = re.compile(rf"({_FACTOR}(?: x {_FACTOR})+) = \$({_NUMBER})")


def test_the_costs_are_the_products_that_are_printed() -> None:
    found = _PRODUCT.findall(page("docs/deploy.md"))
    assert len(found) == len(re.findall("/GB(?:-s)? = ", page("docs/deploy.md"))) > 0
    for factors, cost in found:
        assert agrees(cost, prod(numbers(part)[0] for part in factors.split(" x "))), factors


@pytest.mark.parametrize("name", [PERFORMANCE, "docs/image.md", "README.md"])
def test_a_table_of_measurements_follows_the_name_of_what_measured_them(name: str) -> None:
    blocks = page(name).split("\n\n")
    for i, block in enumerate(blocks):
        if block.startswith("|") and re.search(r"\bms\b|/s \|", block):
            before = "\n\n".join(blocks[max(0, i - 6) : i])
            assert re.search(r"`(?:bench/\w+\.py|make \w+)", before), block[:60]
