"""A task on every item, on a few daemon threads.

`concurrent.futures` waits at the interpreter's exit for threads that a stalled server may hold for
as long as its client's time-outs add up to; a download that was given up must not hold anybody.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_order(
    task: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Iterator[Result]:
    """Yield `task(item)` for each item, in order, while later ones are already worked on.

    The first error of any task is raised as soon as it happens, and no further item is begun. Nor
    is one once the iterator is closed. Tasks under way are not waited for.
    """
    upcoming = iter(enumerate(items))
    results: dict[int, Result] = {}
    failure: BaseException | None = None
    closed = False
    changed = threading.Condition()

    def work() -> None:
        nonlocal failure
        while True:
            with changed:
                upcoming_item = None if failure or closed else next(upcoming, None)
            if upcoming_item is None:
                return
            number, item = upcoming_item
            try:
                result = task(item)
            except BaseException as error:  # noqa: BLE001 (raised again below)
                with changed:
                    failure = failure or error
                    changed.notify_all()
                return
            with changed:
                results[number] = result
                changed.notify_all()

    for _ in range(min(threads, len(items))):
        threading.Thread(target=work, daemon=True).start()
    try:
        for number in range(len(items)):
            with changed:
                while number not in results and not failure:
                    changed.wait()
            if failure:
                raise failure
            yield results.pop(number)
    finally:
        with changed:
            closed = True
