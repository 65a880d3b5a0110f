"""Stands in for `typing` in the modules of a cold start: importing it takes 5 of 95 ms.

Type checkers get `typing` itself, and so does a program that imports `typing` before `gpt2core`:
only there, annotations can be evaluated. Otherwise types are placeholders, and `NamedTuple` makes
the same classes as `typing.NamedTuple`, but supports neither generics nor other base classes.
"""

import sys
from collections import namedtuple

__all__ = [
    "TYPE_CHECKING",
    "Any",
    "Literal",
    "NamedTuple",
    "NoReturn",
    "Protocol",
    "TypeVar",
    "TypedDict",
    "Unpack",
]

TYPE_CHECKING = False
# Python 3.14 does not evaluate the annotations of a class, which `_NamedTupleMeta` needs.
if TYPE_CHECKING or "typing" in sys.modules or sys.version_info >= (3, 14):
    from typing import Any, Literal, NamedTuple, NoReturn, Protocol, TypedDict, TypeVar, Unpack
else:

    class _Type:
        """A type in an annotation: `Any`, `Literal["a"]`, `Any | None`."""

        def __init__(self, name):
            self._name = name

        def __repr__(self):
            return self._name

        def __getitem__(self, _arguments):
            return self

        def __or__(self, _other):
            return self

        __ror__ = __or__

    class _NamedTupleMeta(type):
        """Makes a subclass of `NamedTuple` a `collections.namedtuple`."""

        def __new__(cls, name, bases, namespace):
            if not bases:  # NamedTuple itself
                return super().__new__(cls, name, bases, namespace)
            assert len(bases) == 1
            types = namespace["__annotations__"]
            defaults = [namespace.pop(field) for field in types if field in namespace]
            made = namedtuple(  # noqa: PYI024
                name, types, defaults=defaults, module=namespace["__module__"]
            )
            for attribute, value in namespace.items():
                setattr(made, attribute, value)
            return made

    class NamedTuple(metaclass=_NamedTupleMeta):
        """`typing.NamedTuple`."""

    class Protocol:
        """`typing.Protocol`, for static types only."""

    class TypedDict(dict):
        """`typing.TypedDict`."""

        def __init_subclass__(cls, total=True):
            pass

    Any, Literal, NoReturn, Unpack = map(_Type, ("Any", "Literal", "NoReturn", "Unpack"))
    TypeVar = _Type
