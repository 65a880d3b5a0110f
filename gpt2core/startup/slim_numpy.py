"""Imports only the part of NumPy that the core uses: arrays and arithmetic, `numpy._core`.

Sampling, logprobs and the NumPy kernels need it; greedy decoding with native kernels does not.

The rest (`numpy.lib`, `linalg`, docstrings, signatures, `ctypes`) takes twice as long to import as
that part. It is loaded on the first access to a missing name: then NumPy's own `__init__` runs in
the same module, and the result is the same as after `import numpy`. Only the command line and the
function call `install`; importing the package does not.

Modules are loaded by Python's import system, so other threads wait until a module is complete. The
replacements of `inspect` and `pickle` are visible only to the core's modules, not in `sys.modules`.
"""

import builtins
import sys
from _thread import RLock, allocate_lock, get_ident
from importlib import _bootstrap, import_module
from importlib.machinery import ModuleSpec, SourceFileLoader
from types import ModuleType

from gpt2core.startup.slim_typing import Any

# `numpy._core` imports these for docstrings and structured dtypes; `_internal` imports `ast` and
# `ctypes`. NumPy's C code imports `_internal` by name when it needs it.
_INTERNAL = "numpy._core._internal"
_DOCS = ("numpy._core._add_newdocs", "numpy._core._add_newdocs_scalars")
_installing = allocate_lock()
# Programs set this before they import NumPy, because OpenBLAS reads it when it is loaded. OpenBLAS
# starts a thread for each further CPU, and each keeps its CPU busy for 2^28 clock cycles, 0.1 s,
# before it sleeps: the first tokens would share their CPUs with these threads. 2^20 cycles are
# longer than the time between the products of a token.
BLAS_TIMEOUT = ("OPENBLAS_THREAD_TIMEOUT", "20")


def install() -> None:
    """Make the next `import numpy` import only the core; no effect if NumPy has been imported.

    If NumPy has an unexpected structure, all of it is imported.
    """
    with _installing:
        if "numpy" not in sys.modules and not any(type(f) is _Finder for f in sys.meta_path):
            sys.meta_path.insert(0, _Finder())


class _SlimNumPy(ModuleType):
    """`numpy` with the names of its core; loads the rest on first access to another name."""

    def __getattr__(self, name: str) -> Any:
        finder = self.__dict__.get("_finder")
        if finder is not None:
            finder.complete(self)
        if type(self) is _SlimNumPy:  # this thread is still loading it
            raise AttributeError(f"module 'numpy' has no attribute {name!r}")
        return getattr(self, name)


class _LazyModule:
    """A module that is imported on first attribute access."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(import_module(self._name), attribute)


class _Finder:
    """Meta path finder for NumPy's modules."""

    def __init__(self) -> None:
        self._lock = RLock()
        self._core_thread = 0  # loads the core
        self._rest_thread = 0  # completes NumPy
        self._pending_signatures: list[tuple[Any, Any]] = []
        self._replacements: dict[str, _LazyModule] = {}
        self.builtins = {**vars(builtins), "__import__": self._import}

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """A spec with one of the loaders below for NumPy's modules, None for others."""
        if name.partition(".")[0] != "numpy" or name == _INTERNAL:
            return None
        if self._rest_thread == get_ident():
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next(filter(None, specs), None)
        if spec is None:
            return None
        loader: Any = spec.loader
        if name == "numpy":
            loader = _NumPyLoader(self, loader)
        elif self._core_thread != get_ident():
            loader = _RestLoader(self, loader)
        elif type(loader) is SourceFileLoader:
            loader = _CoreLoader(self, name, loader.path)
        spec.loader = loader
        return spec

    def load_core(self, numpy: ModuleType) -> None:
        """Import `numpy._core` and copy its public names to `numpy`."""
        inspect = _LazyModule("inspect")
        vars(inspect).update(signature=self._defer_signature, cleandoc=_cleandoc)
        self._core_thread = get_ident()
        self._replacements = {"inspect": inspect, "pickle": _LazyModule("pickle")}
        try:
            from numpy import _globals, version

            names = vars(numpy)
            names["_NoValue"], names["_CopyMode"] = _globals._NoValue, _globals._CopyMode
            names["__version__"] = version.version
            from numpy import _core

            names.update((name, getattr(_core, name)) for name in _core.__all__)
            names["_finder"] = self
        finally:
            self._replacements = {}
            del inspect.signature, inspect.cleandoc
            self._core_thread = 0

    def complete(self, numpy: ModuleType) -> None:
        """Run NumPy's `__init__`, once; does nothing if this thread is already running it."""
        with self._lock:
            if type(numpy) is not _SlimNumPy or self._rest_thread:
                return
            self._rest_thread = get_ident()
            try:
                numpy.__loader__.exec_module(numpy)  # type: ignore[union-attr]
                for name in (*_DOCS, _INTERNAL):
                    import_module(name)
                self.add_signatures()
            finally:
                self._rest_thread = 0
            sys.meta_path.remove(self)
            vars(numpy).pop("_finder", None)  # missing if loading the core failed
            numpy.__class__ = ModuleType  # type: ignore[assignment]

    def add_signatures(self) -> None:
        """Set the signatures of the core's functions that were deferred."""
        from inspect import signature

        for public, function in self._pending_signatures:
            if public is not None:  # the variable name in NumPy 2
                public.__signature__ = signature(function)

    def _import(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """`__import__` of the core's modules."""
        if name in self._replacements and name not in sys.modules:
            return self._replacements[name]
        return __import__(name, *args, **kwargs)

    def _defer_signature(self, function: Any) -> None:
        """Replaces `inspect.signature`, which NumPy's decorator calls for another function."""
        self._pending_signatures.append((sys._getframe(1).f_locals.get("public_api"), function))


def _cleandoc(doc: str) -> str:
    """A fast `inspect.cleandoc` for the indentation of NumPy's docstrings."""
    # The compiler of Python 3.13 and newer removes the indentation.
    return doc.strip() if sys.version_info >= (3, 13) else doc.strip().replace("\n    ", "\n")


class _CoreLoader(SourceFileLoader):
    """Loads a module of the core with the finder's `__import__`."""

    def __init__(self, finder: _Finder, name: str, path: str) -> None:
        super().__init__(name, path)
        self._builtins = finder.builtins

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module."""
        names = vars(module)
        names["__builtins__"] = self._builtins
        if module.__name__ == "numpy._core":  # names that exist are not imported
            names.update({name.rpartition(".")[2]: None for name in (*_DOCS, _INTERNAL)})
        super().exec_module(module)


class _NumPyLoader:
    """Loads `numpy` itself, with its core only."""

    def __init__(self, finder: _Finder, loader: Any) -> None:
        self._finder, self._loader = finder, loader

    def create_module(self, _spec: ModuleSpec) -> ModuleType:
        """A module that loads the rest of NumPy on demand."""
        return _SlimNumPy("numpy")

    def exec_module(self, numpy: ModuleType) -> None:
        """Import the core, or all if that fails; NumPy's own loader remains for the rest."""
        numpy.__loader__ = numpy.__spec__.loader = self._loader  # type: ignore[union-attr]
        try:
            self._finder.load_core(numpy)
        except (ImportError, AttributeError):
            self._finder.complete(numpy)


class _RestLoader:
    """Loads a module outside the core, after NumPy's `__init__`, which depends on its own order."""

    def __init__(self, finder: _Finder, loader: Any) -> None:
        self._finder, self._loader = finder, loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """The module, which NumPy's `__init__` may have imported in the meantime."""
        # The thread that completes NumPy imports this module too and must not wait for this one.
        locks = [
            lock
            for reference in list(getattr(_bootstrap, "_module_locks", {}).values())
            if (lock := reference()) and lock.owner == get_ident() and lock.name[:6] == "numpy."
        ]
        for lock in locks:
            lock.release()
        try:
            import_module("numpy").__all__  # noqa: B018 (missing in the core: completes NumPy)
        finally:
            for lock in locks:
                lock.acquire()
        module = sys.modules.get(spec.name)
        if module is None:
            spec.loader = self._loader
            return self._loader.create_module(spec)  # type: ignore[no-any-return]
        self._spec = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Restore the module's spec, which the import system has replaced."""
        module.__spec__ = self._spec
