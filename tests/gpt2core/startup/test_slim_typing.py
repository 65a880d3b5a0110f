"""`slim_typing` as a new process sees it, against `typing`."""

import importlib.util
import sys
import typing
from types import ModuleType

import pytest

from gpt2core.startup import slim_typing
from tests.support.fresh_process import modules_after
from tests.support.kernels import needs_native

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 14), reason="slim_typing is typing")
CLASS = """
class Point(NamedTuple):
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


@pytest.fixture
def slim(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module as imported before `typing`."""
    spec = importlib.util.spec_from_file_location("slim", slim_typing.__file__)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    with monkeypatch.context() as patch:
        patch.delitem(sys.modules, "typing")
        spec.loader.exec_module(module)
    return module


def point(module: typing.Any) -> typing.Any:
    names = {"Any": module.Any, "NamedTuple": module.NamedTuple, "__name__": "somewhere"}
    exec(CLASS, names)
    return names["Point"]


def test_a_named_tuple_is_the_same_as_with_typing(slim: ModuleType) -> None:
    ours, theirs = point(slim), point(typing)
    assert type(slim.Any) is not type(typing.Any)
    for make in (
        lambda point: repr(point(1)),
        lambda point: point(1, scale=2)._replace(label="a")._asdict(),
        lambda point: (point._fields, point._field_defaults, point.__doc__, point.__module__),
        lambda point: (point.origin().double, point(3).double, point.__qualname__),
        lambda point: list(point.__annotations__),
        lambda point: point.__mro__[1:],
        lambda point: hash(point(1, "b")),
    ):
        assert make(ours) == make(theirs)
    assert ours(1) == theirs(1) == (1, None, None)
    with pytest.raises(TypeError):
        ours()


def test_placeholders_accept_what_types_accept(slim: ModuleType) -> None:
    annotations = [
        slim.Any | None,
        None | slim.Any,
        dict[str, slim.Any],
        slim.Literal["a", "b"],
        slim.Unpack[slim.TypedDict],
        slim.TypeVar("T") | int,
    ]
    shown = "Any Any dict[str,Any] Literal Unpack T"
    assert " ".join(repr(a).replace(" ", "") for a in annotations) == shown


def test_annotations_are_types_if_typing_has_been_imported() -> None:
    modules_after(
        "import typing\nfrom gpt2core.generation import Generation\n"
        "hints = typing.get_type_hints(Generation)\n"
        "assert hints['ids'] == list[int]\n"
        "assert 'deadline' in typing.get_args(hints['finish_reason'])"
    )


def test_importing_the_engine_does_not_import_typing() -> None:
    needs_native()
    loaded = modules_after("import gpt2core.engine, gpt2core.kernels.native, gpt2core.tokenizer")
    assert "typing" not in loaded
