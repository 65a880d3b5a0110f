"""`slim_typing` against `typing`."""

import sys
import typing

import pytest

from gpt2core.startup import slim_typing
from tests.support.fresh_process import modules_after

CLASS = """
class Point({base}):
    '''A point.'''
    x: int
    label: str | None = None
    scale: Any | None = None

    @property
    def double(self) -> int:
        return 2 * self.x

    @classmethod
    def origin(cls) -> 'Point':
        return cls(0)
"""


def points() -> tuple[typing.Any, typing.Any]:
    """The same class made by both modules."""
    made = []
    for module in (slim_typing, typing):
        names = {"Any": module.Any, "NamedTuple": module.NamedTuple, "__name__": "somewhere"}
        exec(CLASS.format(base="NamedTuple"), names)
        made.append(names["Point"])
    return made[0], made[1]


def test_a_named_tuple_is_the_same_as_with_typing() -> None:
    slim, full = points()
    for make in (
        lambda point: repr(point(1)),
        lambda point: point(1, scale=2)._replace(label="a")._asdict(),
        lambda point: (point._fields, point._field_defaults, point.__doc__, point.__module__),
        lambda point: (point.origin().double, point(3).double, point.__qualname__),
        lambda point: list(point.__annotations__),
        lambda point: point.__mro__[1:],
        lambda point: hash(point(1, "b")),
    ):
        assert make(slim) == make(full)
    assert slim(1) == full(1) == (1, None, None)
    with pytest.raises(TypeError):
        slim()


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="slim_typing is typing")
def test_placeholders_accept_what_types_accept() -> None:
    slim = slim_typing
    for annotation in (
        slim.Any | None,
        None | slim.Any,
        dict[str, slim.Any],
        slim.Literal["a", "b"],
        slim.Unpack[slim.TypedDict],
        slim.TypeVar("T") | int,
    ):
        assert annotation is not None


def test_importing_the_package_and_the_engine_does_not_import_typing() -> None:
    loaded = modules_after("import gpt2core.engine, gpt2core.kernels.native, gpt2core.tokenizer")
    assert "typing" not in loaded
