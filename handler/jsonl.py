"""A file of prompts in S3 -> a file of results, line for line, in order.

The file is read in ranges and its results are written in parts, so that neither is ever in memory
whole. Nobody sees the results before they are complete. Where the time runs out, and from time to
time, a checkpoint is written (`result_file.py`), and whoever tries again goes on from there.
"""

from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any

from gpt2core.errors import GPT2Error
from handler.batch_events import S3_FILES, Item, S3Object, parse_item, parse_json_item
from handler.dialects import Request
from handler.errors import BadRequest, BodyTooLarge, Unfinished, UnsupportedObject
from handler.generation import Completion, Counts, complete_all
from handler.handover import hand_over
from handler.lines import MAX_LINE_BYTES, Line, lines_of
from handler.replies import result_line
from handler.result_file import Output
from handler.results import Results, head_of, range_of
from handler.settings import Settings

if TYPE_CHECKING:
    from gpt2core.engine import Engine

# Lines that may be done before an earlier one is: they wait in memory.
WINDOW = 2048


def process_object(
    found: S3Object,
    settings: Settings,
    client: Any,
    open_engine: Callable[[], "Engine"],
    deadline: float | None,
    counts: Counts,
) -> dict[str, Any]:
    """Write the results of one file, or hand it over; returns what became of it.

    Raises:
        Unfinished: the time ran out; a retry goes on where this ended.
        UnsupportedObject, ObjectUnavailable, ResultsUnavailable: it cannot be done.
    """
    results = Results(settings, client)
    what = f"s3://{found.bucket}/{found.key}"
    if not found.key.endswith(S3_FILES):
        names = ", ".join(S3_FILES)
        raise UnsupportedObject(f"{what} holds no prompts: its name ends in none of {names}")
    if found.bucket == results.bucket and found.key.startswith(results.prefix):
        raise UnsupportedObject(
            f"{what} lies where results go: put prompts elsewhere, or results would be taken for"
            " prompts"
        )
    size, etag = head_of(client, found)
    found = found._replace(etag=etag)
    name = f"{found.key}.{etag}.results.jsonl"
    report = {"object": what, "results": results.uri(name)}
    if results.exists(name):
        return report | {"status": "unchanged"}
    is_text = found.key.endswith(".txt")  # which the state machine cannot read
    if settings.state_machine and size > settings.max_object_bytes and not is_text:
        return report | {"status": "handed over", "execution": hand_over(found, settings)}
    output = Output(results, name)
    lines = lines_of(
        lambda begin, end: range_of(client, found, begin, end),
        size,
        found.key.endswith(".gz"),
        output.lines,
        output.position,
    )
    done = _Work(lines, is_text, output, deadline, counts).run(open_engine(), settings)
    if not done:
        output.checkpoint()
        raise Unfinished(f"{output.uri} is not complete: {output.lines} lines are done, try again")
    output.publish()
    return report | {"status": "done", "lines": output.lines, "errors": output.errors}


class _Work:
    """Lines under way. They are finished in any order and handed on in theirs."""

    def __init__(
        self,
        lines: Iterator[Line],
        is_text: bool,
        output: Output,
        deadline: float | None,
        counts: Counts,
    ) -> None:
        self._lines = lines
        self._is_text = is_text
        self._output = output
        self._deadline = deadline
        self._counts = counts
        self._under_way: dict[int, tuple[Item, int]] = {}
        self._ready: dict[int, tuple[bytes, int]] = {}
        self._at_end = False

    def run(self, engine: "Engine", settings: Settings) -> bool:
        """Whether all lines are done; the deadline may come first."""
        requests = self._requests()
        results = complete_all(engine, settings, requests, self._deadline, self._settle)
        for number, done in results:
            if not isinstance(done, Unfinished):
                self._settle(number, done)
        return self._at_end and not self._under_way

    def _requests(self) -> Iterator[tuple[int, Request] | None]:
        for line in self._lines:
            item = _item(line, self._is_text)
            self._under_way[line.number] = item, line.end
            if isinstance(item.work, GPT2Error):
                self._settle(line.number, item.work)
            else:
                yield line.number, item.work
            if self._deadline is not None and monotonic() >= self._deadline:
                return  # bad lines alone never come to where the deadline is looked at
            while len(self._ready) > WINDOW:
                yield None
        self._at_end = True

    def _settle(self, number: int, done: list[Completion] | GPT2Error) -> None:
        """Take a line's result, and hand on what is next in order."""
        item, end = self._under_way.pop(number)
        self._counts.add(done)
        self._ready[number] = result_line(item, done, number), end
        self._output.errors += isinstance(done, GPT2Error)
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
