"""Batches: what queues, buckets and state machines hand over, and the reply each of them wants."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gpt2core.errors import GPT2Error
from handler import replies
from handler.batch_events import Item, Record, S3Object
from handler.dialects import Request
from handler.errors import Unfinished
from handler.generation import Completion, Counts, complete_all
from handler.settings import Settings

if TYPE_CHECKING:
    from gpt2core.engine import Engine


class Batch:
    """One invoke's work. `deadline` is in `time.monotonic()` seconds."""

    def __init__(
        self,
        settings: Settings,
        open_engine: "Callable[[], Engine]",
        deadline: float | None,
        counts: Counts,
    ) -> None:
        self.counts = counts
        self.errors: dict[str, GPT2Error] = {}
        """What is wrong with messages, by their ids."""
        self._settings = settings
        self._open_engine = open_engine
        self._deadline = deadline

    @cached_property
    def _client(self) -> Any:
        from handler.results import s3_client

        return s3_client()

    def queue(self, records: Sequence[Record], fifo: bool) -> dict[str, Any]:
        """Messages of a queue; the reply names those that stay in it.

        Raises:
            GPT2Error: nothing can be done now, and all stay.
        """
        from handler.queue_records import process_records

        outcome = process_records(
            records,
            fifo,
            self._settings,
            self._client,
            self._open_engine,
            self._deadline,
            self.counts,
        )
        self.errors = outcome.errors
        return replies.queue_failures(outcome.failures)

    def objects(self, objects: Sequence[S3Object]) -> dict[str, Any]:
        """Files of prompts; the reply, which nobody reads, says what became of them.

        Raises:
            GPT2Error: one cannot be done, or not in this time.
        """
        from handler.jsonl import process_object

        return {
            "objects": [
                process_object(
                    found,
                    self._settings,
                    self._client,
                    self._open_engine,
                    self._deadline,
                    self.counts,
                )
                for found in objects
            ]
        }

    def items(self, items: Sequence[Item]) -> dict[str, Any]:
        """A batch of a Distributed Map; the reply has a result for each item.

        Raises:
            GPT2Error: what a retry of the whole batch can help.
        """
        done: dict[int, list[Completion] | GPT2Error] = {
            i: item.work for i, item in enumerate(items) if isinstance(item.work, GPT2Error)
        }
        requests = [
            (i, item.work) for i, item in enumerate(items) if isinstance(item.work, Request)
        ]
        if requests:
            done |= complete_all(
                self._open_engine(), self._settings, requests, self._deadline, done.__setitem__
            )
        finished = {i for i, result in done.items() if not isinstance(result, Unfinished)}
        if len(finished) < len(items):
            raise Unfinished(
                f"the time ran out with {len(items) - len(finished)} of {len(items)} items to do:"
                " send smaller batches, or give the function more time"
            )
        for result in done.values():
            self.counts.add(result)
        return replies.map_results(items, [done[i] for i in range(len(items))])
