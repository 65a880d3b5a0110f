"""README and the pages of docs: their prose, code blocks, commands and tables."""

import re
from pathlib import Path

from tests.conftest import ROOT

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]


def page(name: str) -> str:
    """The text of a page, by its path."""
    return (ROOT / name).read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """The page without its indented code, with links and line breaks as they are."""
    return "\n".join(x for x in path.read_text().splitlines() if not x.startswith("    "))


def sentence_with(name: str, begin: str) -> str:
    """The text of a page from `begin` on, on one line."""
    text = " ".join(page(name).split())
    assert begin in text, f"{name} has no {begin!r}"
    return text[text.index(begin) :]


def code_blocks(path: Path) -> list[str]:
    """The indented code blocks; a block ends at a blank line."""
    found: list[str] = []
    inside = False
    for line in path.read_text().splitlines():
        if line.startswith("    "):
            found += [] if inside else [""]
            found[-1] += line[4:] + "\n"
        inside = line.startswith("    ")
    return found


def commands(begin: str) -> list[str]:
    """The commands of all pages that begin with the pattern, on one line and without comments."""
    found: list[str] = []
    for path in PAGES:
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(rf"^    ({begin}.*)$", text, re.MULTILINE):
            found += re.sub(r"\s+#.*", "", line).split(" && ")
    return list(dict.fromkeys(found))


def table(name: str, header: str) -> dict[str, list[str]]:
    """The table whose header line begins with `header`: the cells of each row by its first one."""
    text = page(name)
    assert f"\n| {header}" in text, f"{name} has no table {header!r}"
    lines = text.partition(f"\n| {header}")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", x)[1:-1]] for x in lines]
    return {row[0].replace("*", ""): row[1:] for row in rows}


def numbers(text: str) -> list[float]:
    """All numbers of a text; 1,000 has a separator of thousands."""
    found = re.findall(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?", text)
    return [float(number.replace(",", "")) for number in found]


def agrees(figure: str, measured: float) -> bool:
    """Whether a printed figure is the measured one, rounded to its digits."""
    figure = figure.replace(",", "").replace("*", "")
    digits = len(figure.partition(".")[2])
    return abs(float(figure) - measured) <= 0.5 * 10**-digits + 1e-9
