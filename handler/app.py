"""`lambda_handler`: processes one event and returns the reply.

The source of the event parses it to a job; `Function` runs the job; the source renders the reply.
Importing this module loads no model, tokenizer or NumPy: the first invocation that needs them does,
or the import with GPT2_PRELOAD=init.
"""

from time import perf_counter

_import_start = perf_counter()

import os
from _thread import allocate_lock
from collections.abc import Callable, Generator, MutableMapping
from time import monotonic

from gpt2core.errors import GPT2Error
from gpt2core.startup import slim_numpy
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any
from handler import errors, telemetry
from handler.generation import Decode, complete, stream
from handler.invoke import Invoke
from handler.jobs import (
    Document,
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
    Preflight,
    WarmUp,
)
from handler.model import Model
from handler.runtime.payload import encoded
from handler.settings import Settings
from handler.sources import source_of
from handler.store.select import name_of, populate
from handler.telemetry import Report, Timings, seconds_since_process_start

if TYPE_CHECKING:
    from gpt2core.engine import Engine
    from handler.completions import Completion, Piece
    from handler.decoding_thread import DecodingThread
    from handler.dialects.request import EventStream, Request
    from handler.sources.source import Source

# Time reserved for writing results to S3 before Lambda stops the function.
BATCH_MARGIN_S = 2.0
# Initialization types for which a failed init keeps the version from being published.
PRELOAD_MUST_SUCCEED = ("provisioned-concurrency", "snap-start")


class Function:
    """One function instance: its settings, its model and the requests in progress."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model = Model(settings)
        self.is_concurrent = False
        """Whether several threads call `invoke` at once; one thread then decodes for all."""
        self.decoding_thread: DecodingThread | None = None
        self.active_requests = 0
        self._lock = allocate_lock()  # guards the two attributes above
        self.init_timings: Timings | None = None
        """Timings of the init phase, reported by the first invocation."""
        self.is_first_invoke = True
        self.log_error: Callable[[BaseException, Any], None] = telemetry.log_error
        self.log_invoke: Callable[..., None] = telemetry.log_invoke
        self.last_report: Report | None = None
        """The report of the latest invocation; not every dialect has a place for it."""

    def invoke(self, event: Any, context: Any = None) -> Any:
        """Process one event, write its log line and return the reply.

        Raises:
            GPT2Error: the source requires errors to be raised; see `Source.raises`.
        """
        invoke = Invoke(self, context)
        try:
            source = source_of(event)
            source.connect(self.settings, context)
            invoke.set_source(source)
            return self._reply(source, invoke)
        except BaseException as error:
            invoke.error = invoke.error or error
            raise
        finally:
            if not invoke.is_streaming:  # logged at the end of the stream
                self._log_invoke(invoke)

    def _log_invoke(self, invoke: Invoke) -> None:
        report = self.last_report = invoke.reported or invoke.report()
        self.log_invoke(invoke.kind, invoke.counts, invoke.error, report, invoke.context)

    def _reply(self, source: "Source", invoke: Invoke) -> Any:
        """The reply to an event, or to its error."""
        try:
            job = source.parse(self.settings)
            if isinstance(job, Generate) and job.request.stream:
                rendered: Any = self._stream(job.request, source, invoke)
                report = invoke.report()
            else:
                result = self._run(job, invoke)
                report = invoke.report()
                rendered = job.render(result, report)
            reply = source.reply(rendered, report)
            if source.streams and not isinstance(reply, dict):
                return reply
            size = len(encoded(reply)[0])  # as the runtime posts it, which may escape non-ASCII
            if size > source.max_reply_bytes:
                raise errors.BodyTooLarge(
                    f"the reply has {size} bytes; the limit of this endpoint is"
                    f" {source.max_reply_bytes}: send fewer prompts, or reduce max_new_tokens"
                )
            return reply
        except GPT2Error as error:
            invoke.error = failure = error
            if errors.status_of(error) >= 500 and not source.raises:
                self.log_error(error, invoke.context)
        except Exception as error:  # noqa: BLE001 (logged, and replied to)
            invoke.error = error
            self.log_error(error, invoke.context)
            # The message of `error` may quote a prompt, and Lambda logs messages of raised errors.
            failure = errors.InternalError("internal error; see the function log")
        return source.fail(failure, invoke.report())

    def _run(self, job: Job, invoke: Invoke) -> Any:
        """Run a job; returns the argument of `Job.render`."""
        match job:
            case Generate():
                return self._complete(job.request, invoke)
            case Models():
                return self._models(job.name)
            case Health():
                return {"status": "ok"}
            case Preflight():
                return Document("", job.headers)
            case Page():
                from handler.page import page

                return page()
            case OpenApi():
                from handler.openapi import document

                return document()
            case WarmUp():
                return self._warm_up(invoke.deadline, invoke.timings)
            case Populate():
                return self._populate(invoke.deadline, invoke.timings)
        return self._batch(job, invoke)

    def _complete(self, request: "Request", invoke: Invoke) -> "list[Completion]":
        """Process a request.

        Raises:
            TooManyRequests: GPT2_MAX_WAITING requests are already in progress.
        """
        engine = self._start_request(request, invoke)
        try:
            done = complete(*self._arguments(engine, request, invoke))
        finally:
            self._end_request()
        invoke.counts.add(done)
        return done

    def _stream(self, request: "Request", source: "Source", invoke: Invoke) -> "EventStream":
        """Like `_complete`, as an event stream; buffered if the source cannot stream."""
        from handler import streaming

        def pieces() -> "Generator[Piece, None, None]":
            engine, done = self._start_request(request, invoke), []
            try:
                for piece in stream(*self._arguments(engine, request, invoke)):
                    if piece.completion:
                        done.append(piece.completion)
                    yield piece
                    invoke.timings.skip()
            finally:
                self._end_request()
                invoke.counts.add(done)

        def finish(error: BaseException | None) -> None:
            invoke.error = error
            if error and not (isinstance(error, GPT2Error) and errors.status_of(error) < 500):
                self.log_error(error, invoke.context)
            invoke.report()
            self._log_invoke(invoke)

        if not source.streams:
            return streaming.buffered(request, pieces(), invoke.report)
        started = streaming.start(request, pieces(), invoke.report, finish)
        invoke.is_streaming = True
        return started

    def _arguments(self, engine: "Engine", request: "Request", invoke: Invoke) -> Any:
        """The arguments of `complete` and `stream`."""
        decode = self._shared_decode(engine, invoke.context) if self.is_concurrent else None
        return engine, self.settings, request, invoke.reply_by, invoke.timings, decode

    def _start_request(self, request: "Request", invoke: Invoke) -> "Engine":
        """Count a request as active and open the engine for it; call `_end_request` afterwards.

        Raises:
            TooManyRequests, ModelNotServed, ModelUnavailable, ModelError: it is not counted.
        """
        if request.model is not None:
            self._models(request.model)
        with self._lock:
            if self.active_requests >= self.settings.max_waiting:
                raise errors.TooManyRequests(self.settings.max_waiting)
            self.active_requests += 1
        try:
            return self.model.open(invoke.timings, invoke.deadline)
        except BaseException:
            self._end_request()
            raise

    def _end_request(self) -> None:
        with self._lock:
            self.active_requests -= 1

    def _models(self, wanted: str | None) -> dict[str, Any]:
        """A list of the served model, or the model named `wanted`. Does not open the model."""
        from handler.dialects import openai

        source = self.model.source
        return openai.models(source.name if source else name_of(self.settings), wanted)

    def _shared_decode(self, engine: "Engine", context: Any) -> Decode:
        """`DecodingThread.decode`, cancelled if the caller disconnects."""
        from handler.decoding_thread import DecodingThread  # imports queue, 1 ms

        with self._lock:
            if self.decoding_thread is None:
                self.decoding_thread = DecodingThread(engine)
        thread, is_cancelled = self.decoding_thread, getattr(context, "is_cancelled", None)
        return lambda prompts: thread.decode(prompts, is_cancelled)

    def _populate(self, deadline: float | None, timings: Timings) -> dict[str, Any]:
        """Download the model to the volume. An open engine keeps its current revision."""
        source, size, fetched = populate(self.settings, deadline)
        timings.lap("source")
        return {
            "status": "populated" if fetched else "unchanged",
            "revision": os.path.basename(source.path),
            "bytes": size,
            "uri": self.settings.model_uri,
        }

    def _warm_up(self, deadline: float | None, timings: Timings) -> dict[str, Any]:
        """Open the model and run one pass over the weights."""
        engine = self.model.open(timings, deadline)
        timings.skip()
        engine.generate_ids([0], 1)  # an empty prompt needs a beginning-of-text token
        timings.lap("prefill")
        return {"status": "warm"}

    def _batch(self, job: Job, invoke: Invoke) -> Any:
        """Process the work of a queue, a bucket or a state machine."""
        from handler.batch.context import BatchContext

        deadline = invoke.deadline
        if deadline is not None:
            deadline -= min(BATCH_MARGIN_S, 0.2 * max(0.0, deadline - monotonic()))
        context = BatchContext(
            self.settings,
            lambda: self.model.open(invoke.timings, deadline),
            deadline,
            invoke.counts,
        )
        match job:
            case Messages():
                from handler.batch.queue import process_messages

                outcome = process_messages(job.records, job.fifo, context)
                telemetry.log_messages(outcome.errors)
                return outcome.failures
            case Objects():
                from handler.batch.file import process_files

                return {"objects": process_files(job.objects, context)}
            case Items():
                from handler.batch.map_items import process_items

                return process_items(job.items, context)
        raise AssertionError(f"no case for {type(job).__name__}")


def _start(environ: MutableMapping[str, str]) -> Function:
    """Create the function of this process.

    Sets OPENBLAS_NUM_THREADS and OPENBLAS_THREAD_TIMEOUT, which OpenBLAS reads when NumPy is
    imported.
    """
    settings = Settings.from_environ(environ)
    if environ.get("GPT2_THREADS") or "OPENBLAS_NUM_THREADS" not in environ:
        environ["OPENBLAS_NUM_THREADS"] = str(settings.threads)
    environ.setdefault(*slim_numpy.BLAS_TIMEOUT)
    function = Function(settings)
    timings = function.init_timings = Timings()
    age = seconds_since_process_start()
    import_s = perf_counter() - _import_start
    timings.add("process", max(0.0, age - import_s))
    timings.add("import", import_s)
    if settings.preload == "init":
        _preload(function, timings, environ.get("AWS_LAMBDA_INITIALIZATION_TYPE"))
    return function


def _preload(function: Function, timings: Timings, initialization_type: str | None) -> None:
    """Open the model in the init phase.

    Unless it is on demand, when a request waits for it, also import what only some requests need:
    NumPy, and `tokenizers` for text outside ASCII. With provisioned concurrency and SnapStart a
    failure is raised; otherwise it is logged and the next invocation retries.
    """
    try:
        engine = function.model.open(timings)
        if initialization_type not in (None, "", "on-demand"):
            import gpt2core.sampler  # noqa: F401

            engine.tokenizer.encode("\u00e9")
    except Exception as error:
        if initialization_type in PRELOAD_MUST_SUCCEED or isinstance(error, errors.SettingsError):
            raise
        function.log_error(error, None)


function = _start(os.environ)


def before_snapshot() -> None:
    """SnapStart hook: open the model and sample a token, so that the snapshot has every import."""
    engine = function.model.open(Timings())
    engine.tokenizer.encode("\u00e9")
    engine.generate([0], 1, temperature=1.0)


def after_restore() -> None:
    """SnapStart hook: discard the init timings and read the weights ahead."""
    function.init_timings = None
    function.model.after_restore()


def enable_concurrency() -> None:
    """Hook of the runtime: several threads call `lambda_handler` from now on."""
    function.is_concurrent = True


def lambda_handler(event: Any, context: Any = None) -> Any:
    """AWS Lambda's entry point; see `Function.invoke`."""
    return function.invoke(event, context)
