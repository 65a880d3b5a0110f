"""Items of a Distributed Map: requests that are decoded together, each with its own result."""

from collections.abc import Sequence

from gpt2core.errors import GPT2Error
from handler.batch.request_batch import complete_all
from handler.batch.work import Work
from handler.completions import Completion
from handler.dialects.request import Request
from handler.errors import Unfinished
from handler.items import Item


def process_items(items: Sequence[Item], work: Work) -> list[list[Completion] | GPT2Error]:
    """The completions or the error of each item.

    Raises:
        GPT2Error: an error that a retry of the whole batch may fix.
    """
    done = {i: item.work for i, item in enumerate(items) if isinstance(item.work, GPT2Error)}
    results: dict[int, list[Completion] | GPT2Error] = {**done}
    requests = [(i, item.work) for i, item in enumerate(items) if isinstance(item.work, Request)]
    if requests:
        results |= complete_all(work.engine, work.settings, requests, work.deadline)
    unfinished = sum(isinstance(result, Unfinished) for result in results.values())
    if unfinished:
        raise Unfinished(
            f"time ran out with {unfinished} of {len(items)} items left: send smaller batches,"
            " or increase the timeout of the function"
        )
    for result in results.values():
        work.counts.add(result)
    return [results[i] for i in range(len(items))]
