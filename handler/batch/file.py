"""A file of prompts in S3 -> a file of results, line for line, in order.

The file is read in ranges and its results are written in parts, so that neither is ever in memory
as a whole. The results become visible when they are complete. Every 30 seconds, and when the time
runs out, a checkpoint is written (`result_file.py`), from which the next attempt continues.
"""

from collections.abc import Iterator, Sequence
from time import monotonic

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import Any
from handler.batch.context import BatchContext
from handler.batch.lines import GZIP_MAGIC, MAX_LINE_BYTES, Line, lines_of
from handler.batch.request_batch import RequestBatch
from handler.batch.result_file import AlreadyPublished, ResultFile
from handler.batch.storage import CHECKPOINT, Head
from handler.completions import Completion
from handler.errors import (
    BadRequest,
    BodyTooLarge,
    ObjectGone,
    Unfinished,
    UnsupportedEvent,
    UnsupportedObject,
)
from handler.items import Item, S3Object, parse_item, parse_json_item, result_line

S3_FILES = (".jsonl", ".jsonl.gz", ".txt")
# Lines that may finish before an earlier one; their results wait in memory.
WINDOW = 2048
# A retry cannot fix these.
PERMANENT_ERRORS = (UnsupportedObject, UnsupportedEvent, ObjectGone)


def process_files(
    objects: Sequence[S3Object | GPT2Error], context: BatchContext
) -> list[dict[str, Any]]:
    """Write the results of each file, or start the state machine for it; returns a report for each.

    Raises:
        GPT2Error: a file failed or is not complete. All files have been tried; an error that a
            retry may fix is raised before one that it cannot.
    """
    done, failures = [], []
    for found in objects:
        try:
            if isinstance(found, GPT2Error):
                raise found
            done.append(_process_file(found, context))
        except GPT2Error as error:
            failures.append(error)
    if failures:
        raise min(failures, key=lambda error: isinstance(error, PERMANENT_ERRORS))
    return done


def _process_file(found: S3Object, context: BatchContext) -> dict[str, Any]:
    """Write the results of one file, or start the state machine for it.

    Raises:
        Unfinished: the time ran out; a retry continues where this attempt ended.
        UnsupportedObject, ObjectUnavailable, ResultsUnavailable: it failed.
    """
    storage, settings = context.storage, context.settings
    if not found.key.endswith(S3_FILES):
        names = ", ".join(S3_FILES)
        raise UnsupportedObject(
            f"the object is not a file of prompts: its name must end in one of {names}"
        )
    if found.bucket == storage.bucket and found.key.startswith(storage.prefix):
        raise UnsupportedObject(
            "the object is below the prefix of the results (GPT2_RESULTS): put prompts elsewhere,"
            " so that results are not read as prompts"
        )
    head = storage.head(found)
    found = found._replace(etag=head.etag)
    name = storage.results_name(found)
    report = {"object": f"s3://{found.bucket}/{found.key}", "results": storage.uri(name)}
    revision = storage.revision_of(name)
    if revision and revision == context.engine.revision:
        return report | {"status": "unchanged"}

    def read(begin: int, end: int) -> bytes:
        return storage.read_range(found, begin, end)

    is_text = found.key.endswith(".txt")
    is_gzip = found.key.endswith(".gz") or _is_encoded(head)
    is_gzip = is_gzip or (head.size > 1 and read(0, 2) == GZIP_MAGIC)
    is_large = head.size > settings.max_object_bytes and not is_gzip and not is_text
    # A file with a checkpoint was checked before, and this function processes it.
    if settings.state_machine and is_large and storage.revision_of(name + CHECKPOINT) is None:
        from handler.batch.state_machine import can_read, start_execution

        if can_read(lines_of(read, head.size, is_gzip), context.deadline):
            return report | start_execution(found, context)
    output = ResultFile(storage, name, context.engine.revision)
    lines = lines_of(read, head.size, is_gzip, output.lines, output.position)
    try:
        if not _Run(lines, is_text, output, context).is_complete():
            output.checkpoint()
            raise Unfinished(
                f"time ran out after {output.lines} lines: a retry continues from there"
            )
        output.publish()
    except AlreadyPublished:
        return report | {"status": "done"}
    return report | {"status": "done", "lines": output.lines, "errors": output.errors}


def _is_encoded(head: Head) -> bool:
    """Whether the `Content-Encoding` of a file is gzip.

    Raises:
        UnsupportedObject: it is another encoding.
    """
    encodings = {encoding.strip().lower() for encoding in head.encoding.split(",")}
    encodings -= {"", "identity", "aws-chunked"}  # the last is from the upload to S3
    if not encodings <= {"gzip", "x-gzip"}:
        raise UnsupportedObject(
            "the object's Content-Encoding is not gzip: upload it uncompressed or as gzip"
        )
    return bool(encodings)


class _Run:
    """Lines that are decoded together: they finish in any order, and are written in order."""

    def __init__(
        self, lines: Iterator[Line], is_text: bool, output: ResultFile, context: BatchContext
    ) -> None:
        self._lines = lines
        self._is_text = is_text
        self._output = output
        self._context = context
        self._running: dict[int, tuple[Item, int]] = {}
        self._ready: dict[int, tuple[bytes, int, bool]] = {}
        self._at_end = False

    def is_complete(self) -> bool:
        """Process the lines; False if the deadline came first."""
        batch = RequestBatch(self._context.engine, self._context.settings, self._context.deadline)
        more = True
        while more or batch.pending:
            # Results of lines that finish before an earlier one wait in memory.
            while more and batch.room and len(self._ready) <= WINDOW:
                more = self._take_line(batch)
            for number, done in batch.step():
                if isinstance(done, Unfinished):
                    more = False
                else:
                    self._settle(number, done)
        return self._at_end and not self._running

    def _take_line(self, batch: RequestBatch) -> bool:
        """Read one line and start it; False at the end of the file, or without enough time."""
        line = next(self._lines, None)
        if line is None:
            self._at_end = True
            return False
        item = _item(line, self._is_text)
        try:
            if isinstance(item.request, GPT2Error):
                raise item.request
            if not batch.add(line.number, item.request):
                return False
            self._running[line.number] = item, line.end
        except GPT2Error as error:
            self._running[line.number] = item, line.end
            self._settle(line.number, error)
        # With only invalid lines the scheduler, which checks the deadline, is never called.
        return self._context.deadline is None or monotonic() < self._context.deadline

    def _settle(self, number: int, done: list[Completion] | GPT2Error) -> None:
        """Store the result of a line, and write the results that are next in order."""
        item, end = self._running.pop(number)
        self._context.counts.add(done)
        self._ready[number] = result_line(item, done, number), end, isinstance(done, GPT2Error)
        while self._output.lines + 1 in self._ready:
            self._output.add(*self._ready.pop(self._output.lines + 1))


def _item(line: Line, is_text: bool) -> Item:
    if line.content is None:
        return Item(None, BodyTooLarge(f"the line has more than {MAX_LINE_BYTES} bytes"))
    try:
        text = line.content.decode("utf-8-sig" if line.number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return Item(None, BadRequest(f"byte {error.start} of the line is not UTF-8"))
    if not text.strip():
        return Item(None, BadRequest("the line is empty"))
    return parse_item({"prompt": text}) if is_text else parse_json_item(text)
