"""The model of a function instance."""

from _thread import allocate_lock

from gpt2core.errors import InvalidArgument
from gpt2core.startup import prefetch, slim_numpy
from gpt2core.startup.slim_typing import TYPE_CHECKING
from handler.errors import SettingsError
from handler.settings import Settings
from handler.store.select import ModelSource, open_model
from handler.telemetry import Timings, log_warning

if TYPE_CHECKING:
    from gpt2core.engine import Engine


class Model:
    """The configured model: opened on first use, then kept."""

    def __init__(self, settings: Settings) -> None:
        self.engine: Engine | None = None
        """None until the model is open."""
        self.source: ModelSource | None = None
        """Where the model was found; None until it is open."""
        self._settings = settings
        self._lock = allocate_lock()

    def open(self, timings: Timings, deadline: float | None = None) -> "Engine":
        """The engine. `deadline` is in `time.monotonic()` seconds.

        Raises:
            ModelUnavailable, ModelError: the model cannot be opened; the next call retries.
        """
        if self.engine is None:
            with self._lock:
                if self.engine is None:  # not opened by another thread meanwhile
                    self.engine = self._open(timings, deadline)
        return self.engine

    def after_restore(self) -> None:
        """Adapt to the processor after a snapshot restore, and read the weights ahead again.

        Mapped files, converted weights and threads are part of the snapshot.
        """
        if self.engine:
            self.engine.after_restore()
        if self.source:
            prefetch.begin(self.source.path, even_cached=True)

    def _open(self, timings: Timings, deadline: float | None) -> "Engine":
        timings.skip()

        def opener(path: str) -> "Engine":
            timings.lap("source")
            prefetch.begin(path)
            slim_numpy.install()
            from gpt2core.engine import Engine, import_kernels

            settings = self._settings
            try:
                import_kernels(settings.kernels)
                timings.lap("import")
                engine = Engine.open(
                    path,
                    kernels=settings.kernels,
                    threads=settings.threads,
                    prompt_lookup=settings.prompt_lookup,
                )
            except InvalidArgument as error:  # the only argument that can be invalid here
                accepted = f"auto or numpy ({error})"
                raise SettingsError("GPT2_KERNELS", settings.kernels, accepted) from error
            engine.read_ahead()
            timings.lap("map")
            engine.tokenizer  # noqa: B018 (opens it)
            timings.lap("tokenizer")
            return engine

        self.source, engine = open_model(self._settings, opener, log_warning, deadline)
        timings.lap("source")
        engine.model_dir = self.source.path  # a download is opened before it is published
        return engine
