"""`lambda_handler`: an event in, the reply out. The engine is opened on the first invoke and kept.

An event walks `events` -> here -> `gpt2core` -> `replies`. Importing this module loads neither
NumPy nor a tokenizer: that happens in the first invoke, or at once with GPT2_PRELOAD=init.
"""

from time import perf_counter

_import_began = perf_counter()

import os
from _thread import allocate_lock
from collections.abc import Callable, MutableMapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from gpt2core import lean_numpy, read_ahead
from gpt2core.errors import GPT2Error, ModelError
from handler import events, replies
from handler.errors import InternalError
from handler.generation import complete
from handler.model_source import ModelSource, candidates, populate
from handler.settings import Settings
from handler.timings import Timings, seconds_since_process_start

if TYPE_CHECKING:
    from gpt2core.engine import Engine

# Time kept back before the function is stopped, for the last token's overrun and the reply.
REPLY_MARGIN_S = 0.25


class Function:
    """One function instance: its settings and, once something needed it, its engine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._engine: Engine | None = None
        self._source: ModelSource | None = None
        self._opening = allocate_lock()
        self.before: Timings | None = None
        """What the process spent before the first invoke, which reports it."""
        self._invoked = self._start_logged = False
        self.log: Callable[[BaseException, Any], None] = log_error
        self.warn: Callable[[GPT2Error], None] = log_warning
        self.log_start: Callable[[replies.Report, Any], None] = log_start
        self.last_report: replies.Report | None = None
        """What the latest reply said of its invoke, also where its dialect has no place for it."""

    def open(self, timings: Timings, deadline: float | None = None) -> "Engine":
        """The engine, opened on the first call; `deadline` in `time.monotonic()` seconds.

        Raises:
            ModelUnavailable, ModelError: the next call tries again.
        """
        if self._engine is None:
            with self._opening:
                if self._engine is None:  # another thread may have been first
                    self._engine = self._open(timings, deadline)
        return self._engine

    def invoke(self, event: Any, context: Any = None) -> Any:
        """Answer one event.

        Raises:
            GPT2Error: only where the source takes a raised error for one and a reply for success.
        """
        deadline = _deadline(context)
        timings = Timings()
        cold, self._invoked = not self._invoked, True
        if cold and self.before:
            timings.include(self.before)
        was_open = self._engine is not None
        source = events.source_of(event)

        def report() -> replies.Report:
            opened = not was_open and self._engine is not None
            name, origin = self._source[1:] if self._source else (None, None)
            self.last_report = replies.Report(timings.finished(), cold or opened, name, origin)
            if opened and not self._start_logged:
                self._start_logged = True
                self.log_start(self.last_report, context)
            return self.last_report

        try:
            job = events.parse(event, source)
            if job.request:
                engine = self.open(timings, deadline)
                completions = complete(engine, self.settings, job.request, deadline, timings)
                return replies.generated(source, job.request, completions, report())
            if job.action == "health":
                return replies.health(source, report())
            if job.action == "populate":
                filled = self._populate(deadline, timings)
                return replies.populated(source, filled, report())
            self._warm_up(deadline, timings)
            return replies.warmed_up(source, report())
        except GPT2Error as error:
            if source.kind == "schedule":
                raise
            if replies.status_of(error) >= 500:
                self.log(error, context)
            return replies.failed(source, error, report())
        except Exception as error:
            self.log(error, context)
            if source.kind == "schedule":
                raise
            return replies.failed(
                source,
                InternalError("something broke here; the function's log says what"),
                report(),
            )

    def restored(self) -> None:
        """After a snapshot: what went before it counts no more, and its memory has to come back.

        Maps, widened weights and threads are in the snapshot and stay as they are.
        """
        self.before = None
        if self._source:
            read_ahead.begin(self._source.path, even_cached=True)

    def _open(self, timings: Timings, deadline: float | None) -> "Engine":
        timings.skip()
        broken: ModelError | None = None
        for source in candidates(self.settings, self.warn, deadline):
            timings.lap("source")
            read_ahead.begin(source.path)
            lean_numpy.load()
            from gpt2core.engine import Engine  # NumPy

            timings.lap("import")
            try:
                engine = Engine.open(source.path)
                engine.read_ahead()
                timings.lap("map")
                engine.tokenizer  # noqa: B018 (opens it)
                timings.lap("tokenizer")
            except ModelError as error:
                broken = error
                if self.settings.model_uri:  # there may be another
                    self.warn(error)
                continue
            self._source = source
            return engine
        assert broken  # without any candidate there is an error already
        raise broken

    def _populate(self, deadline: float | None, timings: Timings) -> dict[str, Any]:
        """Fill the volume. An engine that is open goes on with what it has."""
        source, size, fetched = populate(self.settings, deadline)
        timings.lap("source")
        return {
            "status": "populated" if fetched else "unchanged",
            "revision": os.path.basename(source.path),
            "bytes": size,
            "uri": self.settings.model_uri,
        }

    def _warm_up(self, deadline: float | None, timings: Timings) -> None:
        """One token from any id: a prompt would need a beginning-of-text token."""
        engine = self.open(timings, deadline)
        timings.skip()
        engine.generate_ids([0], 1)
        timings.lap("prefill")


def _deadline(context: Any) -> float | None:
    """When to stop generating, in `time.monotonic()` seconds; None without a context."""
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    return monotonic() + remaining() / 1000 - REPLY_MARGIN_S if remaining else None


def log_start(report: replies.Report, context: Any) -> None:
    """One JSON line on stderr about an invoke that opened the model: where its time went."""
    import json
    import sys

    line = {
        "level": "INFO",
        "message": "cold start",
        "request_id": getattr(context, "aws_request_id", None),
        "model": report.model,
        "model_source": report.origin,
        "timings_ms": report.timings_ms,
    }
    print(json.dumps(line), file=sys.stderr, flush=True)


def log_warning(error: GPT2Error) -> None:
    """One JSON line on stderr about what was found broken and can be done without."""
    import json
    import sys

    line = {"level": "WARNING", "type": type(error).__name__, "message": error.message}
    print(json.dumps(line), file=sys.stderr, flush=True)


def log_error(error: BaseException, context: Any) -> None:
    """One JSON line on stderr. Of an unexpected error only type and place: its text may quote a
    prompt.
    """
    import json
    import sys

    line: dict[str, Any] = {
        "level": "ERROR",
        "type": type(error).__name__,
        "request_id": getattr(context, "aws_request_id", None),
    }
    if isinstance(error, GPT2Error):
        line["message"] = error.message
    else:
        import traceback

        if isinstance(error, ImportError):
            line["module"] = error.name
        frames = traceback.extract_tb(error.__traceback__)
        line["stack"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames]
    print(json.dumps(line), file=sys.stderr, flush=True)


def _start(environ: MutableMapping[str, str]) -> Function:
    """The function of this process. Sets OpenBLAS's threads, which count before NumPy's import."""
    settings = Settings.from_environ(environ)
    if environ.get("GPT2_THREADS") or "OPENBLAS_NUM_THREADS" not in environ:
        environ["OPENBLAS_NUM_THREADS"] = str(settings.threads)
    function = Function(settings)
    function.before = Timings()
    age = seconds_since_process_start()
    here = perf_counter() - _import_began
    function.before.add("process", max(0.0, age - here))
    function.before.add("import", here)
    if settings.preload == "init":
        function.open(function.before)
    return function


function = _start(os.environ)


def before_snapshot() -> None:
    """SnapStart: everything that a first invoke would wait for goes into the snapshot."""
    timings = Timings()
    function.open(timings).generate_ids([0], 1)


def after_restore() -> None:
    """SnapStart: the weights come back from the snapshot while the first event is on its way."""
    function.restored()


def lambda_handler(event: Any, context: Any = None) -> Any:
    """AWS Lambda's entry point: see `Function.invoke`."""
    return function.invoke(event, context)
