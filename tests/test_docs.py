"""README and docs: their links, order and width, and what they say about the code."""

import re
from pathlib import Path

import pytest

import gpt2core.errors
import handler.errors
from gpt2core.errors import GPT2Error
from handler.dialects import huggingface, native
from handler.dialects import request as shared
from handler.dialects.request import Dialect
from handler.settings import Settings
from handler.sources import http
from handler.telemetry import PHASES
from tests.conftest import ROOT
from tests.support.dialects import SUPPORTED, name_of
from tests.support.docs import PAGES, README, code_blocks, page, prose, table

WITH_LINKS = [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]
MAX_CODE_WIDTH = 97  # GitHub's column; what is wider has to be scrolled


def _anchors(path: Path) -> set[str]:
    """The fragments that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("path", WITH_LINKS, ids=lambda p: p.name)
def test_every_relative_link_has_an_existing_target(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = path.parent / name if name else path
        assert target.exists(), f"{path.name}: {link}"
        if anchor:
            assert anchor in _anchors(target), f"{path.name}: {link}"


def test_the_readme_has_at_most_200_lines() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_the_readme_begins_with_what_a_newcomer_needs() -> None:
    assert re.findall(r"^## (.+)$", prose(README), re.MULTILINE) == [
        "A request and its reply",
        "Two commands",
        "Call it",
        "Deploy",
        "Where the model comes from",
        "Queues, files, state machines",
        "Performance",
        "How it works",
        "Limits",
    ]


def test_every_page_of_docs_is_linked_from_the_readme() -> None:
    readme = README.read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert f"(docs/{path.name})" in readme


@pytest.mark.parametrize("path", PAGES, ids=lambda p: p.name)
def test_code_is_no_wider_than_the_column_of_a_rendered_page(path: Path) -> None:
    for line in "".join(code_blocks(path)).splitlines():
        assert len(line) <= MAX_CODE_WIDTH, f"{path.name}: {line}"


@pytest.mark.parametrize(
    "path", [p for p in WITH_LINKS if p.name != "decisions.md"], ids=lambda p: p.name
)
def test_every_file_that_a_page_names_exists(path: Path) -> None:
    pattern = (
        r"`((?:tests|bench|scripts|templates|events|handler|gpt2core|requirements)/[\w./-]+\.\w+)"
    )
    for name in re.findall(pattern, path.read_text()):
        if (path.name, name) not in NOT_YET:
            assert (ROOT / name).is_file(), name


# Examples of files that somebody may add.
NOT_YET = {
    ("architecture.md", f"handler/{name}.py")
    for name in ("sources/kinesis", "dialects/acme", "store/gs")
}


def test_the_tree_of_the_readme_has_the_files_of_the_project() -> None:
    tree = next(block for block in code_blocks(README) if block.startswith("handler/  "))
    folder = ""
    for line in tree.splitlines():
        names = re.split(r"\s{2,}", line.strip())[0].rstrip(",").split(", ")
        if not line.startswith(" "):
            folder = ""
        for name in names:
            assert (ROOT / folder / name).exists(), name
        if not line.startswith(" "):
            folder = names[0] if len(names) == 1 else ""


@pytest.mark.parametrize("row", table("docs/architecture.md", "part | knows").items())
def test_the_interfaces_of_the_architecture_are_those_of_the_code(
    row: tuple[str, list[str]],
) -> None:
    parts, (_, interface) = row
    sources = ""
    for part in re.findall(r"`([\w./]+)`", parts):
        place = ROOT / part
        files = place.rglob("*.py") if place.is_dir() else [place]
        sources += "".join(file.read_text() for file in files)
    for name in re.findall(r"`([\w.]+)`", interface):
        last = name.rpartition(".")[2]
        assert re.search(rf"(?:def|class) {last}\b|\b{last}\b.*[:=]", sources), name


def test_settings_md_lists_exactly_the_variables_of_settings_py() -> None:
    source = (ROOT / "handler" / "settings.py").read_text()
    read = set(re.findall(r'"(GPT2_[A-Z0-9_]+)"', source)) | {"HOST", "PORT"}
    assert set(re.findall(r"^\| `([A-Z0-9_]+)`", page("docs/settings.md"), re.MULTILINE)) == read


def _default(variable: str) -> str:
    row = re.search(rf"^\| `{variable}` \| ([^|]+) \|", page("docs/settings.md"), re.MULTILINE)
    assert row
    return row[1].strip("` ")


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
def test_settings_md_has_the_defaults_of_settings_py(variable: str, field: str) -> None:
    assert _default(variable) == str(getattr(Settings(), field))


def test_settings_md_has_the_timeout_of_each_http_source() -> None:
    sources = {
        "HTTP API": http.HttpApi,
        "REST API": http.RestApi,
        "ALB": http.LoadBalancer,
        "function URL": http.FunctionUrl,
    }
    expected = ", ".join(
        f"{name} {kind.default_timeout_s or 'none'}" for name, kind in sources.items()
    )
    assert _default("GPT2_HTTP_TIMEOUT") == expected


def test_an_invalid_setting_is_reported_in_the_words_of_settings_md() -> None:
    with pytest.raises(handler.errors.SettingsError) as caught:
        Settings.from_environ({"GPT2_PRELOAD": "no"})
    assert f"`{caught.value.message}`" in " ".join(page("docs/settings.md").split())


def test_the_phases_of_the_readme_are_those_of_a_reply() -> None:
    text = " ".join(README.read_text().split()).partition("`timings_ms` has")[2]
    assert tuple(re.findall(r"`(\w+)`", text))[: len(PHASES)] == PHASES


def test_api_md_has_every_field_of_the_native_and_the_hugging_face_format() -> None:
    sampling = {
        name
        for cell in table("docs/api.md", "field | meaning")
        for name in re.findall(r"`(\w+)`", cell)
    }
    assert sampling == set(shared.SAMPLING)
    for heading, known in (
        ("Native", native.FIELDS),
        ("Hugging Face", [*huggingface.FIELDS, *huggingface.PARAMETERS]),
    ):
        rows = re.findall(r"^\| `(?:parameters\.)?(\w+)`", _section(heading), re.MULTILINE)
        assert set(rows) == set(known) - set(shared.SAMPLING) - {"parameters"}


@pytest.mark.parametrize("dialect", SUPPORTED, ids=name_of)
def test_api_md_has_a_section_for_each_dialect_with_all_its_fields(dialect: Dialect) -> None:
    section = _section(name_of(dialect))
    fields = dialect.describe()["request"]["properties"]
    for name in fields.keys() - set(shared.SAMPLING):
        assert re.search(rf"`{name}(?:`|\.)", section), name


def _section(heading: str) -> str:
    """The section of api.md whose heading begins with `heading`, without regard to spaces."""
    begin = heading.replace(" ", "")
    sections = page("docs/api.md").split("\n## ")[1:]
    found = [s for s in sections if s.partition("\n")[0].replace(" ", "").startswith(begin)]
    assert found, f"api.md has no section {heading}"
    return found[0]


def test_api_md_has_the_limits_of_a_request() -> None:
    text = page("docs/api.md")
    assert f"a list of up to {shared.MAX_PROMPTS} |" in text
    limits = f"{shared.MAX_PROMPTS} prompts, {shared.MAX_STOPS} stop strings"
    assert f"more than {limits} or {shared.MAX_BIASES:,} biases" in text


def test_api_md_has_every_status_of_an_error() -> None:
    rows = set(re.findall(r"\d{3}", " ".join(table("docs/api.md", "status |"))))
    # 499 is for a client that has gone: nobody receives it.
    assert rows == {str(status) for _, status in handler.errors._STATUS} - {"499"} | {"500"}


def _errors() -> list[type[GPT2Error]]:
    named = vars(gpt2core.errors) | vars(handler.errors)
    return [k for k in named.values() if isinstance(k, type) and issubclass(k, GPT2Error)]


@pytest.mark.parametrize("kind", _errors(), ids=lambda k: k.__name__)
def test_every_error_that_users_meet_is_explained(kind: type[GPT2Error]) -> None:
    if kind in (GPT2Error, handler.errors.Cancelled):
        return
    pages = [p for p in PAGES if p.name not in ("decisions.md", "README.md")]
    assert any(f"`{kind.__name__}`" in path.read_text() for path in pages)
