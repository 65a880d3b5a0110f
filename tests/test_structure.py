"""The structure: allowed imports, and registration of modules."""

import ast
from pathlib import Path

import pytest

from handler import sources
from handler.dialects import dialects
from tests.conftest import ROOT

PACKAGES = ("gpt2core", "handler")


def files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def imports_of(path: Path) -> set[str]:
    """The files that a file imports, also in functions, without imports only for types."""
    names = {name_of(p) for p in files()}
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text())]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in names else node.module)
        pending += [child for child in ast.iter_child_nodes(node) if not is_for_types(child)]
    return (found & names) - {name_of(path)}


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """A cycle in the graph; [] if there is none."""
    done: set[str] = set()

    def visit(name: str, path: list[str]) -> list[str]:
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return []
        for other in sorted(graph[name]):
            if found := visit(other, [*path, name]):
                return found
        done.add(name)
        return []

    return next((found for name in graph if (found := visit(name, []))), [])


def test_there_are_no_circular_imports() -> None:
    assert cycle_in({name_of(path): imports_of(path) for path in files()}) == []


def test_circular_imports_are_detected() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


@pytest.mark.parametrize(
    ("part", "never"),
    [
        ("gpt2core", ("handler",)),
        (
            "handler.dialects",
            ("handler.sources", "handler.app", "handler.runtime", "handler.batch"),
        ),
        (
            "handler.sources",
            ("handler.app", "handler.runtime", "handler.generation", "handler.batch"),
        ),
        ("handler.generation", ("handler.sources", "handler.app", "handler.dialects.native")),
        ("handler.runtime.loop", ("handler.app", "handler.server", "handler.sources")),
    ],
)
def test_parts_do_not_import_forbidden_modules(part: str, never: tuple[str, ...]) -> None:
    for path in files():
        if f"{name_of(path)}.".startswith(f"{part}."):
            for other in imports_of(path):
                assert not f"{other}.".startswith(tuple(f"{n}." for n in never)), (path, other)


def test_test_files_do_not_import_each_other() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = node.module if isinstance(node, ast.ImportFrom) else ""
            assert ".test_" not in f"{module}", (path, module)


def test_every_source_and_dialect_module_is_registered() -> None:
    folder = ROOT / "handler" / "sources"
    shared = {"__init__", "source", "body", "direct"}  # direct has no key and is tried last
    assert {p.stem for p in folder.glob("*.py")} - shared == {m for _, m in sources._MODULES}
    named = {type(dialect).__module__.rpartition(".")[2] for dialect in dialects()}
    files = {p.stem for p in (ROOT / "handler" / "dialects").glob("*.py")}
    assert files - {"__init__", "request", "schemas"} == named
