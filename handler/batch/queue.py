"""Messages of a queue: decoded together, each with its result in an object of its own.

The failures that are returned decide about each message: it is deleted, or it stays in the queue
and is delivered again or, in the end, moved to the dead-letter queue.

Within a group of a FIFO queue results are written in order, and nothing after a failure that a
retry may fix. A message that can never succeed gets an error as its result there, like an invalid
line of a file, so that its group continues.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from gpt2core.errors import GPT2Error
from handler.batch.file import FOR_GOOD, process_files
from handler.batch.request_batch import complete_all
from handler.batch.storage import CONNECTIONS
from handler.batch.work import Work
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


def process_messages(records: Sequence[Record], fifo: bool, work: Work) -> Outcome:
    """Process the messages; results of the same model are kept.

    Raises:
        GPT2Error: nothing can be processed now; all messages stay in the queue.
    """
    lanes: dict[str, _Lane] = {}
    for record in records:
        lane = lanes.setdefault(record.group if fifo else record.id, _Lane(work, fifo))
        lane.records.append(record)
    items = {record.id: record.work for record in records if isinstance(record.work, Item)}
    lane_of = {record.id: lane for lane in lanes.values() for record in lane.records}
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        revisions = threads.map(work.storage.revision_of, map(result_name, items))
        for (name, item), revision in zip(items.items(), revisions, strict=True):
            lane = lane_of[name]
            if revision and revision == work.engine.revision:
                lane.current.add(name)
            elif isinstance(item.work, Request):
                lane.waiting[name] = item.work
        # A lane is written as soon as it is decoded, while others still decode; lanes with files
        # come last, because they may take all the time.
        writing = [threads.submit(lane.finish) for lane in lanes.values() if lane.is_decoded]
        requests = [pair for lane in lanes.values() for pair in lane.waiting.items()]
        if requests:
            for name, done in complete_all(work.engine, work.settings, requests, work.deadline):
                lane = lane_of[name]
                lane.take(name, done)
                if lane.is_decoded:
                    writing.append(threads.submit(lane.finish))
        for written in writing:
            written.result()
    for lane in lanes.values():
        if lane.has_files:
            lane.finish()
    errors = {name: error for lane in lanes.values() for name, error in lane.errors.items()}
    for error in errors.values():
        work.counts.add(error)
    finished = {name for lane in lanes.values() for name in lane.finished}
    return Outcome(tuple(r.id for r in records if r.id not in finished), errors)


class _Lane:
    """Messages whose results are written in order: a group of a FIFO queue, or a single message."""

    def __init__(self, work: Work, fifo: bool) -> None:
        self.records: list[Record] = []
        self.current: set[str] = set()
        """Messages whose results exist already."""
        self.waiting: dict[str, Request] = {}
        """Requests that are not decoded yet."""
        self.finished: list[str] = []
        self.errors: dict[str, GPT2Error] = {}
        self._work = work
        self._fifo = fifo
        self._results: dict[str, list[Completion] | GPT2Error] = {}

    @property
    def has_files(self) -> bool:
        """Whether a message is about files."""
        return any(isinstance(record.work, tuple) for record in self.records)

    @property
    def is_decoded(self) -> bool:
        """Whether only writing is left."""
        return not self.waiting and not self.has_files

    def take(self, name: str, done: list[Completion] | GPT2Error) -> None:
        """Store the result of a request."""
        del self.waiting[name]
        self._results[name] = done
        if not isinstance(done, GPT2Error):
            self._work.counts.add(done)

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
        if isinstance(record.work, GPT2Error):
            item, done = Item(record.name, record.work), record.work
        elif isinstance(record.work, Item):
            item, done = record.work, self._results[record.id]
        else:
            try:
                process_files(record.work, self._work)
                return
            except FOR_GOOD as error:
                item, done = Item(None, error), error
        if isinstance(done, GPT2Error):
            if isinstance(done, Unfinished) or not self._fifo:
                raise done
            self.errors[record.id] = done
        # An error in the message itself does not depend on the model.
        revision = self._work.engine.revision if record.id in self._results else ""
        self._work.storage.write(result_name(record.id), result_line(item, done), revision)


def result_name(message: str) -> str:
    """The name of the result of a message, by its id."""
    return f"{message}.json"
