"""Messages of a queue: decoded together, each one's result an object of its own.

What becomes of a message is said by the failures that go back: it is done and may be deleted, or it
stays in the queue, to be tried again or, in the end, for the dead-letter queue.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from gpt2core.errors import GPT2Error
from handler.batch_events import Item, Record
from handler.generation import Counts, complete_all
from handler.jsonl import process_object
from handler.replies import result_line
from handler.results import CONNECTIONS, Results
from handler.settings import Settings

if TYPE_CHECKING:
    from gpt2core.engine import Engine


class Outcome(NamedTuple):
    """What became of a queue's messages."""

    failures: tuple[str, ...]
    """Ids of those that stay in the queue, in their order."""
    errors: dict[str, GPT2Error]
    """Why; those that only come after a failure of a FIFO queue are not among them."""


def process_records(
    records: Sequence[Record],
    fifo: bool,
    settings: Settings,
    client: Any,
    open_engine: Callable[[], "Engine"],
    deadline: float | None,
    counts: Counts,
) -> Outcome:
    """Do what the messages ask for; a result that is there already is not made again.

    Of a FIFO queue nothing is done behind a message that can never be done, and all from the first
    failure on stay.

    Raises:
        GPT2Error: nothing can be done now; all messages stay in the queue.
    """
    results = Results(settings, client)
    errors = {r.id: r.work for r in records if isinstance(r.work, GPT2Error)}
    todo = list(records)
    if fifo and errors:
        todo = todo[: next(i for i, record in enumerate(records) if record.id in errors)]
    finished = set()
    with ThreadPoolExecutor(CONNECTIONS) as threads:
        items = {r.id: r.work for r in todo if isinstance(r.work, Item)}
        there = threads.map(lambda name: results.exists(_result_name(name)), items)
        finished |= {name for name, done in zip(items, there, strict=True) if done}
        new = {name: item for name, item in items.items() if name not in finished}
        writing: dict[str, Future[None]] = {}
        if new:
            requests = [(n, i.work) for n, i in new.items() if not isinstance(i.work, GPT2Error)]
            results_of = complete_all(
                open_engine(), settings, requests, deadline, errors.__setitem__
            )
            for name, done in results_of:
                if isinstance(done, GPT2Error):
                    errors[name] = done
                else:
                    counts.add(done)
                    line = result_line(new[name], done)
                    writing[name] = threads.submit(results.write, _result_name(name), line)
        for name, written in writing.items():
            try:
                written.result()
                finished.add(name)
            except GPT2Error as failure:
                errors[name] = failure
    for record in todo:
        if isinstance(record.work, (Item, GPT2Error)) or (fifo and errors):
            continue
        try:
            for found in record.work:
                process_object(found, settings, client, open_engine, deadline, counts)
            finished.add(record.id)
        except GPT2Error as failure:
            errors[record.id] = failure
    for error in errors.values():
        counts.add(error)
    left = [i for i, record in enumerate(records) if record.id not in finished]
    if fifo and left:
        left = list(range(left[0], len(records)))
    return Outcome(tuple(records[i].id for i in left), errors)


def _result_name(message: str) -> str:
    return f"{message}.json"
