"""README and docs: links, length, settings, and the figures that come from bench/results."""

import json
import re
from pathlib import Path

import pytest

from handler.settings import Settings

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
RESULTS = ROOT / "bench" / "results"


def _prose(page: Path) -> str:
    """The page without its indented code."""
    return "\n".join(x for x in page.read_text().splitlines() if not x.startswith("    "))


def _anchors(page: Path) -> set[str]:
    """The fragments that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_every_relative_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", _prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{page.name}: {link}"


def test_the_readme_has_at_most_200_lines() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 200


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{page.name})" in readme


def test_settings_md_has_every_variable_of_settings_py_and_no_other() -> None:
    source = (ROOT / "handler" / "settings.py").read_text()
    read = set(re.findall(r'"(GPT2_[A-Z0-9_]+)"', source)) | {"HOST", "PORT"}
    page = (ROOT / "docs" / "settings.md").read_text()
    assert set(re.findall(r"^\| `([A-Z0-9_]+)`", page, re.MULTILINE)) == read


@pytest.mark.parametrize(
    ("variable", "field"),
    [
        ("GPT2_MODEL_DIR", "model_dir"),
        ("GPT2_CACHE_DIR", "cache_dir"),
        ("GPT2_MAX_WAITING", "max_waiting"),
        ("GPT2_PRELOAD", "preload"),
        ("GPT2_KERNELS", "kernels"),
        ("GPT2_MAX_OBJECT_BYTES", "max_object_bytes"),
    ],
)
def test_settings_md_has_the_default_of_settings_py(variable: str, field: str) -> None:
    page = (ROOT / "docs" / "settings.md").read_text()
    row = re.search(rf"^\| `{variable}` \| ([^|]+) \|", page, re.MULTILINE)
    assert row
    assert row[1].strip("` ") == str(getattr(Settings(), field))


COLD_START = {
    "**ours, int8**": "ours int8",
    "ours, bf16": "ours bf16",
    "ours, f32": "ours f32",
    "llama.cpp, Q8_0": "llama.cpp Q8_0",
    "llama.cpp, bf16": "llama.cpp bf16",
    "llama.cpp, f32": "llama.cpp f32",
    "ONNX Runtime, f32": "ONNX Runtime f32",
    "CTranslate2, int8": "CTranslate2 int8",
    "CTranslate2, f32": "CTranslate2 f32",
    "transformers + torch, f32": "transformers",
    '`python -c "import numpy"`': "import numpy",
}


@pytest.mark.parametrize("path", ["README.md", "docs/performance.md"])
def test_cold_start_figures_are_those_of_the_result_file(path: str) -> None:
    measured = json.loads((RESULTS / "cold_start.json").read_text())["warm"]
    row = r"^\| (.+?) \| (\d+) \((\d+)-(\d+)\) \| ([\d.]+) \|"
    rows = re.findall(row, (ROOT / path).read_text(), re.M)
    checked = 0
    for name, *figures, ratio in rows:
        if key := COLD_START.get(name):
            result = measured[key]
            expected = [round(result[k]) for k in ("median_ms", "min_ms", "max_ms")]
            assert [int(x) for x in figures] == expected, name
            measured_ratio = result["times_of"]["ours int8"]
            assert abs(float(ratio) - measured_ratio) <= 1e-9 + 0.5 * 10 ** -len(
                ratio.partition(".")[2]
            ), name
            checked += 1
    assert checked >= 6


def test_the_servers_figures_are_those_of_the_result_file() -> None:
    page = (ROOT / "docs" / "performance.md").read_text()
    for precision, clients in json.loads((RESULTS / "serve.json").read_text()).items():
        figures = " | ".join(str(round(clients[n]["tokens_per_s"])) for n in ("1", "8", "16"))
        assert f"| {precision} | {figures} |" in page


@pytest.mark.parametrize(
    "page", [p for p in PAGES if p.name != "decisions.md"], ids=lambda p: p.name
)
def test_every_test_file_that_a_page_names_exists(page: Path) -> None:
    for path in re.findall(r"`(tests/[\w/]+\.py)`", page.read_text()):
        assert (ROOT / path).is_file(), path


def test_the_readmes_gain_of_32_prompts_together_is_that_of_the_result_file() -> None:
    measured = json.loads((RESULTS / "together.json").read_text())
    readme = " ".join((ROOT / "README.md").read_text().split())
    found = re.search(r"at once give ([\d.]+) times .+? in int8, and ([\d.]+) times", readme)
    assert found
    for figure, name in zip(found.groups(), ("ours int8", "ours f32"), strict=True):
        alone, together = (measured[f"together={n}"][name]["median_tokens_per_s"] for n in (1, 32))
        digits = len(figure.partition(".")[2])
        assert float(figure) == round(together / alone, digits), name


def test_the_warm_table_has_the_figures_of_the_result_files() -> None:
    token, prompts, together = (
        json.loads((RESULTS / f"{name}.json").read_text())
        for name in ("token", "prompts", "together")
    )
    columns = [
        (token["token=30"], "median_ms"),
        *((prompts[f"prompt={n}"], "median_ms") for n in (64, 512, 1000)),
        *((together[f"together={n}"], "median_tokens_per_s") for n in (8, 32)),
    ]
    page = (ROOT / "docs" / "performance.md").read_text()
    table = page.partition("| a token | prompt of 64 |")[2].partition("\n\n")[0]
    checked = 0
    for line in table.splitlines()[2:]:
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        key = COLD_START.get(name.partition(" (")[0]) or name.replace(", f32", "")
        for cell, (measured, field) in zip(cells, columns, strict=True):
            if cell:
                figure = cell.removesuffix("/s")
                digits = len(figure.partition(".")[2])
                error = abs(float(figure) - measured[key][field])
                assert error <= 0.5 * 10**-digits + 1e-9, (name, cell, measured[key][field])
                checked += 1
    assert checked >= 50
