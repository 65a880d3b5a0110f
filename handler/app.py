"""`lambda_handler`: an event in, the reply out. The engine is opened on the first invoke and kept.

An event goes to its source, whose job is done here, and back through the same source. Importing
this module loads neither NumPy nor a tokenizer: that happens in the first invoke, or at once with
GPT2_PRELOAD=init.
"""

from time import perf_counter

_import_began = perf_counter()

import os
from _thread import allocate_lock
from collections.abc import Callable, Generator, MutableMapping
from time import monotonic
from typing import TYPE_CHECKING, Any

from gpt2core.errors import GPT2Error, InvalidArgument
from gpt2core.startup import prefetch, slim_numpy
from handler import errors, telemetry
from handler.generation import Decode, DecodingThread, complete, stream
from handler.invoke import Invoke
from handler.jobs import (
    Generate,
    Health,
    Items,
    Job,
    Messages,
    Models,
    Objects,
    OpenApi,
    Page,
    Populate,
    Show,
    WarmUp,
)
from handler.runtime.payload import encoded
from handler.settings import Settings
from handler.sources import source_of
from handler.store.select import ModelSource, name_of, open_model, populate
from handler.telemetry import Report, Timings, seconds_since_process_start

if TYPE_CHECKING:
    from gpt2core.engine import Engine
    from handler.completions import Completion, Piece
    from handler.dialects.request import EventStream, Request
    from handler.sources.source import Source

# Time kept back before the function is stopped, for results that have to be written to S3.
BATCH_MARGIN_S = 2.0
# Where the init of these fails, the version is not published, or the old one stays.
PRELOAD_MUST_SUCCEED = ("provisioned-concurrency", "snap-start")


class Function:
    """One function instance: its settings and, once something needed it, its engine."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._engine: Engine | None = None
        self._source: ModelSource | None = None
        self._opening = allocate_lock()
        self.is_shared = False
        """Whether several threads invoke it at once. Then one thread decodes for all of them."""
        self._decoding: DecodingThread | None = None
        self._under_way = 0  # requests that wait or are decoded
        self._counting = allocate_lock()
        self.before: Timings | None = None
        """What the process spent before the first invoke, which reports it."""
        self._invoked = False
        self.log: Callable[[BaseException, Any], None] = telemetry.log_error
        self.warn: Callable[[GPT2Error], None] = telemetry.log_warning
        self.log_invoke: Callable[..., None] = telemetry.log_invoke
        self.last_report: Report | None = None
        """What the latest reply said of its invoke, also where its dialect has no place for it."""

    def invoke(self, event: Any, context: Any = None) -> Any:
        """Answer one event, and write one line about it.

        Raises:
            GPT2Error: only where the source takes a raised error for one and a reply for success.
        """
        this = Invoke(self, context)
        try:
            source = source_of(event)
            source.connect(self.settings, context)
            this.set_source(source)
            return self._answer(source, this)
        except BaseException as error:
            this.error = this.error or error
            raise
        finally:
            if not this.is_streaming:  # its end is later
                self._finish(this)

    def _finish(self, this: Invoke) -> None:
        """Write the line about an invoke."""
        report = self.last_report = this.reported or this.report()
        self.log_invoke(this.kind, this.counts, this.error, report, this.context)

    def _answer(self, source: "Source", this: Invoke) -> Any:
        """The reply to an event, or to what is wrong with it."""
        try:
            job = source.parse(self.settings)
            if isinstance(job, Generate) and job.request.stream:
                rendered: Any = self._stream(job.request, source, this)
                report = this.report()
            else:
                result = self._do(job, this)
                report = this.report()
                rendered = job.render(result, report)
            reply = source.reply(rendered, report)
            if source.streams and not isinstance(reply, dict):
                return reply
            size = len(encoded(reply)[0])  # as it is posted: escaped, and maybe in ASCII
            if size > source.max_reply_bytes:
                raise errors.BodyTooLarge(
                    f"the reply has {size} bytes and its source carries {source.max_reply_bytes}:"
                    " ask for less at once"
                )
            return reply
        except GPT2Error as error:
            this.error = failure = error
            if errors.status_of(error) >= 500 and not source.raises:
                self.log(error, this.context)
        except Exception as error:  # noqa: BLE001 (an invoke ends with a reply, and a line in the log)
            this.error = error
            self.log(error, this.context)
            # Its message may quote a prompt, and Lambda logs the message of a raised error.
            failure = errors.InternalError("internal error; see the function log")
        return source.fail(failure, this.report())

    def _do(self, job: Job, this: Invoke) -> Any:
        """Do what an event asks for; returns what the job renders."""
        match job:
            case Generate():
                return self._complete(job.request, this)
            case Models():
                return self._models(job.name)
            case Health():
                return {"status": "ok"}
            case Show():
                return job.document
            case Page():
                from handler.page import page

                return page()
            case OpenApi():
                from handler.openapi import document

                return document()
            case WarmUp():
                return self._warm_up(this.deadline, this.timings)
            case Populate():
                return self._populate(this.deadline, this.timings)
        return self._batch(job, this)

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

    def restored(self) -> None:
        """After a snapshot: what went before it counts no more, and its memory has to come back.

        Maps, converted weights and threads are in the snapshot and stay as they are. The processor
        may be another.
        """
        self.before = None
        if self._engine:
            self._engine.restored()
        if self._source:
            prefetch.begin(self._source.path, even_cached=True)

    def _open(self, timings: Timings, deadline: float | None) -> "Engine":
        timings.skip()

        def opener(model_dir: str) -> "Engine":
            timings.lap("source")
            prefetch.begin(model_dir)
            slim_numpy.load()
            from gpt2core.engine import Engine  # NumPy

            timings.lap("import")
            engine = self._engine_from(Engine, model_dir)
            engine.read_ahead()
            timings.lap("map")
            engine.tokenizer  # noqa: B018 (opens it)
            timings.lap("tokenizer")
            return engine

        self._source, engine = open_model(self.settings, opener, self.warn, deadline)
        timings.lap("source")
        engine.model_dir = self._source.path  # it may have been opened before it was published
        return engine

    def _complete(self, request: "Request", this: Invoke) -> "list[Completion]":
        """Answer a request: in this thread, or by the one that decodes for all.

        Raises:
            TooManyRequests: as many as may wait are under way already.
        """
        engine = self._begin(request, this)
        try:
            done = complete(*self._work(engine, request, this))
        finally:
            self._end()
        this.counts.add(done)
        return done

    def _stream(self, request: "Request", source: "Source", this: Invoke) -> "EventStream":
        """The same as an event stream: as it comes, or whole where the source takes no other."""
        from handler import streaming

        def pieces() -> "Generator[Piece, None, None]":
            engine, done = self._begin(request, this), []
            try:
                for piece in stream(*self._work(engine, request, this)):
                    if piece.completion:
                        done.append(piece.completion)
                    yield piece
                    this.timings.skip()
            finally:
                self._end()
                this.counts.add(done)

        def finish(error: BaseException | None) -> None:
            this.error = error
            if error and not (isinstance(error, GPT2Error) and errors.status_of(error) < 500):
                self.log(error, this.context)
            this.report()
            self._finish(this)

        if not source.streams:
            return streaming.buffered(request, pieces(), this.report)
        begun = streaming.start(request, pieces(), this.report, finish)
        this.is_streaming = True
        return begun

    def _work(self, engine: "Engine", request: "Request", this: Invoke) -> Any:
        """The arguments of `complete` and `stream`."""
        decode = self._shared_decode(engine, this.context) if self.is_shared else None
        return engine, self.settings, request, this.reply_by, this.timings, decode

    def _begin(self, request: "Request", this: Invoke) -> "Engine":
        """The engine for a request that is under way from now until `_end`.

        Raises:
            TooManyRequests, ModelNotServed, and what `open` raises: it is not.
        """
        if request.model is not None:
            self._models(request.model)
        with self._counting:
            if self._under_way >= self.settings.max_waiting:
                raise errors.TooManyRequests(self.settings.max_waiting)
            self._under_way += 1
        try:
            return self.open(this.timings, this.deadline)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        with self._counting:
            self._under_way -= 1

    def _models(self, wanted: str | None) -> dict[str, Any]:
        """The model that is served, alone or in a list; it is not opened or downloaded for that."""
        from handler.dialects import openai

        name = self._source.name if self._source else name_of(self.settings)
        return openai.models(name, wanted)

    def _shared_decode(self, engine: "Engine", context: Any) -> Decode:
        """Decoding by the thread that decodes for all, until the context says that nobody waits."""
        with self._counting:
            if self._decoding is None:
                self._decoding = DecodingThread(engine)
        decoding, is_cancelled = self._decoding, getattr(context, "is_cancelled", None)
        return lambda prompts: decoding.decode(prompts, is_cancelled)

    def _engine_from(self, engine: "type[Engine]", path: str) -> "Engine":
        settings = self.settings
        try:
            return engine.open(
                path,
                kernels=settings.kernels,
                threads=settings.threads,
                prompt_lookup=settings.prompt_lookup,
            )
        except InvalidArgument as error:  # nobody asked for a precision
            raise errors.SettingsError(
                "GPT2_KERNELS", settings.kernels, f"{error}; auto"
            ) from error

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

    def _warm_up(self, deadline: float | None, timings: Timings) -> dict[str, Any]:
        """One token from any id: a prompt would need a beginning-of-text token."""
        engine = self.open(timings, deadline)
        timings.skip()
        engine.generate_ids([0], 1)
        timings.lap("prefill")
        return {"status": "warm"}

    def _batch(self, job: Job, this: Invoke) -> Any:
        """Work through what a queue, a bucket or a state machine hands over."""
        from handler.batch.work import Work

        deadline = this.deadline
        if deadline is not None:  # what is done has to be written, too
            deadline -= min(BATCH_MARGIN_S, 0.2 * max(0.0, deadline - monotonic()))
        work = Work(self.settings, lambda: self.open(this.timings, deadline), deadline, this.counts)
        match job:
            case Messages():
                from handler.batch.queue import process_messages

                outcome = process_messages(job.records, job.fifo, work)
                telemetry.log_messages(outcome.errors)
                return outcome.failures
            case Objects():
                from handler.batch.file import process_files

                return {"objects": process_files(job.objects, work)}
            case Items():
                from handler.batch.map_items import process_items

                return process_items(job.items, work)
        raise AssertionError(f"nobody does {type(job).__name__}")


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
        _preload(function, function.before, environ.get("AWS_LAMBDA_INITIALIZATION_TYPE"))
    return function


def _preload(function: Function, timings: Timings, initialization_type: str | None) -> None:
    """Open the engine at init. On demand, what goes wrong is for the requests that need it."""
    try:
        function.open(timings)
    except Exception as error:
        if initialization_type in PRELOAD_MUST_SUCCEED or isinstance(error, errors.SettingsError):
            raise
        function.log(error, None)


function = _start(os.environ)


def before_snapshot() -> None:
    """SnapStart: everything that a first invoke would wait for goes into the snapshot."""
    timings = Timings()
    function.open(timings).generate_ids([0], 1)


def share() -> None:
    """Several threads invoke from now on: one thread decodes for all of them."""
    function.is_shared = True


def after_restore() -> None:
    """SnapStart: the weights come back from the snapshot while the first event is on its way."""
    function.restored()


def lambda_handler(event: Any, context: Any = None) -> Any:
    """AWS Lambda's entry point: see `Function.invoke`."""
    return function.invoke(event, context)
