"""Spares NumPy's import what a cold start never uses: its docstrings and its type aliases.

For processes of our own only: `prepare` is called by the command line and the function, never by
importing the package. NumPy computes the same with and without.
"""

import sys
from types import ModuleType
from typing import Any

# NumPy keeps the docstrings in modules of their own "so that it can be mocked out".
_DOCSTRINGS = ("numpy._core._add_newdocs", "numpy._core._add_newdocs_scalars")
_TYPING = "numpy._typing"


class _Alias:
    """Stands for `NDArray` in the annotations that NumPy's own modules evaluate."""

    def __class_getitem__(cls, item: object) -> "type[_Alias]":
        return cls


class _Typing(ModuleType):
    """`numpy._typing` until somebody asks for more than `NDArray`: then the real one."""

    NDArray: Any = _Alias

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks for a path, a spec, …
            raise AttributeError(name)
        if sys.modules.get(_TYPING) is self:
            del sys.modules[_TYPING]
        from importlib import import_module

        real = import_module(_TYPING)
        self.NDArray = real.NDArray
        return getattr(real, name)


def prepare() -> None:
    """Put stand-ins where NumPy is about to look. Without effect once NumPy has been imported."""
    if "numpy" in sys.modules:
        return
    for name in _DOCSTRINGS:
        sys.modules[name] = ModuleType(name)
    sys.modules[_TYPING] = _Typing(_TYPING)
