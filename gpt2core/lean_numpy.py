"""Imports the part of NumPy that a cold start uses: arrays and their arithmetic, `numpy._core`.

The rest (`numpy.lib`, `linalg`, docstrings, signatures, `ctypes`) takes as long to import as that
part does. It stays out until somebody asks for a name that is not there: then NumPy's own
`__init__` runs in the same module, and everything is as after `import numpy`. Computes the same
with and without. For processes of our own only: `load` is called by the command line and the
function, never by importing the package.
"""

import sys
from _thread import RLock, allocate_lock
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# NumPy keeps its docstrings in modules of their own, which nothing but their import reads.
_DOCSTRINGS = ("numpy._core._add_newdocs", "numpy._core._add_newdocs_scalars")
_INTERNAL = "numpy._core._internal"  # imports ctypes and ast; for structured dtypes and buffers

_CORE = ("_core", "_globals", "_utils", "_expired_attrs_2_0", "version", "exceptions")
_loading = allocate_lock()


def load() -> None:
    """Import NumPy's core as `numpy`. Without effect once NumPy has been imported.

    Where this NumPy is not made as expected, or there is none, nothing has happened: the next
    `import numpy` is the ordinary one.
    """
    with _loading:  # whoever comes second waits until there is something to use
        if "numpy" not in sys.modules:
            _load()


def _load() -> None:
    spec = PathFinder.find_spec("numpy")
    if spec is None:
        return
    numpy = _Lean(spec)
    its_own = [numpy, _Later(_INTERNAL), *(ModuleType(name) for name in _DOCSTRINGS)]
    # Imported by NumPy for functions that are rarely called.
    borrowed = [_Inspect("inspect"), _Later("pickle")]
    borrowed = [module for module in borrowed if module.__name__ not in sys.modules]
    for module in (*its_own, *borrowed):
        sys.modules[module.__name__] = module
    try:
        numpy.take_core()
        sys.meta_path.insert(0, _Rest(numpy))
    except (ImportError, AttributeError):
        for module in its_own:
            _drop(module)
    finally:
        for module in borrowed:
            _drop(module)


def _drop(module: ModuleType) -> None:
    if sys.modules.get(module.__name__) is module:
        del sys.modules[module.__name__]


class _Later(ModuleType):
    """A module that is imported when it is first asked for something."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks for a path, a spec, …
            raise AttributeError(name)
        _drop(self)
        from importlib import import_module

        return getattr(import_module(self.__name__), name)


class _Inspect(_Later):
    """`inspect` while NumPy is imported, which asks it for the signature of each of its functions.

    With None for an answer the real `inspect.signature` finds it later, if anybody wants it.
    """

    @staticmethod
    def signature(_function: object) -> None:
        """Nothing yet."""

    @staticmethod
    def cleandoc(doc: str) -> str:
        """As it is."""
        return doc


class _Lean(ModuleType):
    """`numpy` with the names of its core, and with all others from when one of them is needed."""

    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__("numpy")
        self.__spec__ = spec
        self.__loader__ = spec.loader
        self.__file__ = spec.origin
        self.__path__ = spec.submodule_search_locations or []
        self.__package__ = "numpy"
        self.__dict__["_lean_loading"] = RLock()
        self.__dict__["_lean_ready"] = False

    def take_core(self) -> None:
        """Import `numpy._core` and take over its names."""
        from numpy import _globals, version

        names = self.__dict__
        names["_NoValue"], names["_CopyMode"] = _globals._NoValue, _globals._CopyMode
        names["__version__"] = version.version
        from numpy import _core

        names.update((name, getattr(_core, name)) for name in _core.__all__)
        # As NumPy's __init__ does: large arrays on huge pages, where widening writes them.
        _core.multiarray._set_madvise_hugepage(True)  # type: ignore[attr-defined]
        names["_lean_ready"] = True

    def __getattr__(self, name: str) -> Any:
        names = self.__dict__
        with names["_lean_loading"]:
            if type(self) is _Lean and names["_lean_ready"]:
                names["_lean_ready"] = False  # while its __init__ runs, what is missing is missing
                try:
                    self.__loader__.exec_module(self)  # type: ignore[union-attr]
                except BaseException:
                    names["_lean_ready"] = True  # the next one tries again, and meets the reason
                    raise
                self.__class__ = ModuleType  # type: ignore[assignment]
            if type(self) is _Lean:
                raise AttributeError(f"module 'numpy' has no attribute {name!r}")
        return getattr(self, name)


class _Rest:
    """Finds `numpy.linalg` and the like: NumPy's `__init__` comes first, which has an order."""

    def __init__(self, numpy: _Lean) -> None:
        self._numpy = numpy

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> Any:
        """A spec for a submodule that NumPy's `__init__` has imported meanwhile, else None."""
        top, _, rest = name.partition(".")
        if top != "numpy" or rest.partition(".")[0] in _CORE:
            return None
        if type(self._numpy) is not _Lean or not self._numpy.__dict__["_lean_ready"]:
            return None  # complete, or being completed
        self._numpy.__all__  # noqa: B018 (is not there: brings the rest)
        module = sys.modules.get(name)
        return module and ModuleSpec(name, _Imported(module))  # type: ignore[arg-type]


class _Imported:
    """Loads a module that has been imported already."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        """The module itself."""
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        """Nothing but its own spec, which the import system has replaced."""
        module.__spec__ = self._spec
