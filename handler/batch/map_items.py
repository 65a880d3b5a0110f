"""Items of a Distributed Map: requests that are decoded together, each with its own result."""

from collections.abc import Sequence

from gpt2core.errors import GPT2Error
from handler.batch.context import BatchContext
from handler.batch.request_batch import complete_all
from handler.completions import Completion
from handler.dialects.request import Request
from handler.errors import Unfinished
from handler.items import Item


def process_items(
    items: Sequence[Item], context: BatchContext
) -> list[list[Completion] | GPT2Error]:
    """The completions or the error of each item.

    Raises:
        GPT2Error: an error that a retry of the whole batch may fix.
    """
    done = {i: item.request for i, item in enumerate(items) if isinstance(item.request, GPT2Error)}
    results: dict[int, list[Completion] | GPT2Error] = {**done}
    requests = [
        (i, item.request) for i, item in enumerate(items) if isinstance(item.request, Request)
    ]
    if requests:
        results |= complete_all(context.engine, context.settings, requests, context.deadline)
    unfinished = sum(isinstance(result, Unfinished) for result in results.values())
    if unfinished:
        raise Unfinished(
            f"time ran out with {unfinished} of {len(items)} items left: send smaller batches,"
            " or increase the timeout of the function"
        )
    for result in results.values():
        context.counts.add(result)
    return [results[i] for i in range(len(items))]
