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
from handler import events, logs, replies
from handler.errors import InternalError
from handler.generation import Counts, complete
from handler.model_source import ModelSource, candidates, populate
from handler.settings import Settings
from handler.timings import Timings, seconds_since_process_start

if TYPE_CHECKING:
    from gpt2core.engine import Engine

# Time kept back before the function is stopped, for the last token's overrun and the reply.
REPLY_MARGIN_S = 0.25
# The same for results that have to be written to S3 first.
BATCH_MARGIN_S = 2.0


class Function:
    """One function instance: its settings and, once something needed it, its engine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._engine: Engine | None = None
        self._source: ModelSource | None = None
        self._opening = allocate_lock()
        self.before: Timings | None = None
        """What the process spent before the first invoke, which reports it."""
        self._invoked = False
        self.log: Callable[[BaseException, Any], None] = logs.log_error
        self.warn: Callable[[GPT2Error], None] = logs.log_warning
        self.log_invoke: Callable[..., None] = logs.log_invoke
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
        """Answer one event, and write one line about it.

        Raises:
            GPT2Error: only where the source takes a raised error for one and a reply for success.
        """
        this = _Invoke(self, context)
        try:
            return self._answer(event, this)
        except BaseException as error:
            this.error = error
            raise
        finally:
            report = self.last_report = this.reported or this.report()
            self.log_invoke(this.source, this.counts, this.error, report, context)

    def _answer(self, event: Any, this: "_Invoke") -> Any:
        source = events.source_of(event)
        this.source = source.kind
        try:
            job = events.parse(event, source)
            if job.request:
                engine = self.open(this.timings, this.deadline)
                done = complete(engine, self.settings, job.request, this.deadline, this.timings)
                this.counts.add(done)
                return replies.generated(source, job.request, done, this.report())
            if source.is_batch:
                return self._batch(source, job, this)
            if job.action == "health":
                return replies.health(source, this.report())
            if job.action == "populate":
                filled = self._populate(this.deadline, this.timings)
                return replies.populated(source, filled, this.report())
            self._warm_up(this.deadline, this.timings)
            return replies.warmed_up(source, this.report())
        except GPT2Error as error:
            if source.takes_errors:
                raise
            this.error = error
            if replies.status_of(error) >= 500:
                self.log(error, this.context)
            return replies.failed(source, error, this.report())
        except Exception as error:
            self.log(error, this.context)
            if source.takes_errors:
                raise
            this.error = error
            wrong = InternalError("something broke here; the function's log says what")
            return replies.failed(source, wrong, this.report())

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

    def _batch(self, source: events.Source, job: events.Job, this: "_Invoke") -> Any:
        """Work through what a queue, a bucket or a state machine hands over."""
        from handler import batch

        deadline = this.deadline
        if deadline is not None:  # what is done has to be written, too
            deadline -= min(BATCH_MARGIN_S, 0.2 * max(0.0, deadline - monotonic()))
        work = batch.Batch(
            self.settings, lambda: self.open(this.timings, deadline), deadline, this.counts
        )
        if job.action == "queue":
            reply = work.queue(job.records, source.fifo)
            logs.log_messages(work.errors)
            return reply
        return work.objects(job.objects) if job.action == "objects" else work.items(job.items)

    def _warm_up(self, deadline: float | None, timings: Timings) -> None:
        """One token from any id: a prompt would need a beginning-of-text token."""
        engine = self.open(timings, deadline)
        timings.skip()
        engine.generate_ids([0], 1)
        timings.lap("prefill")


class _Invoke:
    """What one invoke comes to know of itself."""

    def __init__(self, function: Function, context: Any) -> None:
        self.context = context
        self.deadline = _deadline(context)
        self.timings = Timings()
        self.counts = Counts()
        self.source = "unknown"
        self.error: BaseException | None = None
        self.reported: replies.Report | None = None
        """What the reply said."""
        self._function = function
        self._cold, function._invoked = not function._invoked, True
        if self._cold and function.before:
            self.timings.include(function.before)
        self._was_open = function._engine is not None

    def report(self) -> replies.Report:
        """What there is to say until now."""
        function = self._function
        opened = not self._was_open and function._engine is not None
        name, origin = function._source[1:] if function._source else (None, None)
        self.reported = replies.Report(self.timings.finished(), self._cold or opened, name, origin)
        return self.reported


def _deadline(context: Any) -> float | None:
    """When to stop generating, in `time.monotonic()` seconds; None without a context."""
    remaining = getattr(context, "get_remaining_time_in_millis", None)
    return monotonic() + remaining() / 1000 - REPLY_MARGIN_S if remaining else None


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
