"""Messages of a queue: decoded together, each with its result in an object of its own.

The failures that are returned decide about each message: it is deleted, or it stays in the queue
and is delivered again or, in the end, moved to the dead-letter queue.

Within a group of a FIFO queue results are written in order, and nothing after a failure that a
retry may fix. A message that can never succeed gets an error as its result there, like an invalid
line of a file, so that its group continues.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from gpt2core.errors import GPT2Error
from gpt2core.startup.slim_typing import NamedTuple
from handler.batch.context import BatchContext
from handler.batch.file import PERMANENT_ERRORS, process_files
from handler.batch.request_batch import complete_all
from handler.batch.storage import CONNECTIONS
from handler.completions import Completion
from handler.dialects.request import Request
from handler.errors import Unfinished
from handler.items import Item, Record, result_line


class Outcome(NamedTuple):
    """The outcome for the messages of one event."""

    failures: tuple[str, ...]
    """Ids of the messages that stay in the queue, in order."""
    errors: dict[str, GPT2Error]
    """Errors by message id, without messages that stay only because of an earlier one."""


def process_messages(records: Sequence[Record], fifo: bool, context: BatchContext) -> Outcome:
    """Process the messages; results of the same model are kept.

    Raises:
        GPT2Error: nothing can be processed now; all messages stay in the queue.
    """
    groups: dict[str, _MessageGroup] = {}
    for record in records:
        group = groups.setdefault(record.group if fifo else record.id, _MessageGroup(context, fifo))
        group.records.append(record)
    items = {record.id: record.content for record in records if isinstance(record.content, Item)}
    group_of = {record.id: group for group in groups.values() for record in group.records}
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        revisions = threads.map(context.storage.revision_of, map(result_name, items))
        for (name, item), revision in zip(items.items(), revisions, strict=True):
            group = group_of[name]
            if revision and revision == context.engine.revision:
                group.current.add(name)
            elif isinstance(item.request, Request):
                group.waiting[name] = item.request
        # A group is written as soon as it is decoded, while others still decode; groups with files
        # come last, because they may take all the time.
        writing = [threads.submit(group.finish) for group in groups.values() if group.is_decoded]
        requests = [pair for group in groups.values() for pair in group.waiting.items()]
        if requests:
            for name, done in complete_all(
                context.engine, context.settings, requests, context.deadline
            ):
                group = group_of[name]
                group.take(name, done)
                if group.is_decoded:
                    writing.append(threads.submit(group.finish))
        for written in writing:
            written.result()
    for group in groups.values():
        if group.has_files:
            group.finish()
    errors = {name: error for group in groups.values() for name, error in group.errors.items()}
    for error in errors.values():
        context.counts.add(error)
    finished = {name for group in groups.values() for name in group.finished}
    return Outcome(tuple(r.id for r in records if r.id not in finished), errors)


class _MessageGroup:
    """Messages whose results are written in order: a group of a FIFO queue, or a single message."""

    def __init__(self, context: BatchContext, fifo: bool) -> None:
        self.records: list[Record] = []
        self.current: set[str] = set()
        """Messages whose results exist already."""
        self.waiting: dict[str, Request] = {}
        """Requests that are not decoded yet."""
        self.finished: list[str] = []
        self.errors: dict[str, GPT2Error] = {}
        self._context = context
        self._fifo = fifo
        self._results: dict[str, list[Completion] | GPT2Error] = {}

    @property
    def has_files(self) -> bool:
        """Whether a message is about files."""
        return any(isinstance(record.content, tuple) for record in self.records)

    @property
    def is_decoded(self) -> bool:
        """Whether only writing is left."""
        return not self.waiting and not self.has_files

    def take(self, name: str, done: list[Completion] | GPT2Error) -> None:
        """Store the result of a request."""
        del self.waiting[name]
        self._results[name] = done
        if not isinstance(done, GPT2Error):
            self._context.counts.add(done)

    def finish(self) -> None:
        """Finish the messages in order, up to the first failure that a retry may fix."""
        for record in self.records:
            try:
                if record.id not in self.current:
                    self._finish(record)
            except GPT2Error as error:
                self.errors[record.id] = error
                return
            self.finished.append(record.id)

    def _finish(self, record: Record) -> None:
        """Write the result of a message, or those of its files.

        Raises:
            GPT2Error: the message stays in the queue.
        """
        done: list[Completion] | GPT2Error
        if isinstance(record.content, GPT2Error):
            item, done = Item(record.name, record.content), record.content
        elif isinstance(record.content, Item):
            item, done = record.content, self._results[record.id]
        else:
            try:
                process_files(record.content, self._context)
                return
            except PERMANENT_ERRORS as error:
                item, done = Item(None, error), error
        if isinstance(done, GPT2Error):
            if isinstance(done, Unfinished) or not self._fifo:
                raise done
            self.errors[record.id] = done
        # An error in the message itself does not depend on the model.
        revision = self._context.engine.revision if record.id in self._results else ""
        self._context.storage.write(result_name(record.id), result_line(item, done), revision)


def result_name(message: str) -> str:
    """The name of the result of a message, by its id."""
    return f"{message}.json"
