"""Greedy decoding: an iterator of ids underneath, text and stop strings on top, collecting last."""

import time
from collections.abc import Generator, Iterator, Sequence
from typing import Literal, NamedTuple

from gpt2core.config import GPT2Config
from gpt2core.model import KVCache, decode, prefill
from gpt2core.tokenizer import Tokenizer
from gpt2core.weights import Weights

FinishReason = Literal["length", "stop", "eos", "deadline"]


class Token(NamedTuple):
    """One new token. `text` is what it makes certain: "" while a character or stop is open."""

    id: int
    text: str


class Generation(NamedTuple):
    """A finished continuation.

    `text` leaves out the stop string and the end-of-text token; `ids` holds every new token except
    the end-of-text one. Times are in seconds: `prefill_s` to the first token, `decode_s` after it.
    """

    text: str
    ids: list[int]
    prompt_tokens: int
    finish_reason: FinishReason
    prefill_s: float
    decode_s: float


def greedy_ids(
    weights: Weights,
    config: GPT2Config,
    ids: Sequence[int],
    max_new_tokens: int,
    deadline: float | None = None,
) -> Generator[int, None, FinishReason]:
    """Yield the most likely next id, again and again; return why it ended.

    Ties go to the lowest id. `ids` must hold 1 to n_positions known ids; prompt and continuation
    together never exceed n_positions. No step starts that would, by the time the last one took,
    end after `deadline` (`time.monotonic()` seconds).
    """
    budget = min(max_new_tokens, config.n_positions - len(ids))
    if budget <= 0:
        return "length"
    started = time.monotonic()
    if deadline is not None and started >= deadline:
        return "deadline"
    cache = KVCache(config, len(ids) + budget - 1)
    scores = prefill(weights, config, ids, cache, deadline)
    while scores is not None:
        token = int(scores.argmax())  # NumPy's argmax takes the first of equals
        if token in config.eos_token_ids:
            return "eos"
        yield token
        budget -= 1
        if not budget:
            return "length"
        now = time.monotonic()
        # The first step follows a prefill, which says nothing about what one token costs.
        if (
            deadline is not None
            and now + (now - started if cache.n_kv > len(ids) else 0) > deadline
        ):
            return "deadline"
        started = now
        scores = decode(weights, config, token, cache)
    return "deadline"


def stream(
    weights: Weights,
    config: GPT2Config,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    max_new_tokens: int,
    stop: Sequence[str] = (),
    deadline: float | None = None,
) -> Iterator[Token | Generation]:
    """Yield each `Token` once its text is certain, and last the `Generation`.

    The tokens' texts joined are the generation's text and their ids are its ids, in order. Tokens
    are held back while their text may be the beginning of a stop string or of a character.
    """
    started = first = time.monotonic()
    decoder, cutter = tokenizer.decoder(), StopCutter(stop)
    new_ids: list[int] = []
    text = ""  # all that is certain
    held: list[int] = []  # tokens not yielded yet,
    shown = 0  # because text[shown:] may go on in a later one
    reason: FinishReason | None = None
    steps = greedy_ids(weights, config, ids, max_new_tokens, deadline)
    while reason is None:
        try:
            token = next(steps)
        except StopIteration as end:
            text += cutter.push(decoder.finish())
            text += cutter.finish()
            reason = "stop" if cutter.done else end.value
        else:
            if not new_ids:
                first = time.monotonic()
            new_ids.append(token)
            held.append(token)
            text += cutter.push(decoder.push(token))
            if cutter.done:
                reason = "stop"
        if reason is not None or (cutter.settled and decoder.settled):
            for i, held_token in enumerate(held):
                yield Token(held_token, text[shown:] if i == len(held) - 1 else "")
            held, shown = [], len(text)
    ended = time.monotonic()
    first = first if new_ids else ended
    yield Generation(text, new_ids, len(ids), reason, first - started, ended - first)


def collect(items: Iterator[Token | Generation]) -> Generation:
    """Run a `stream` to its end."""
    for item in items:
        if isinstance(item, Generation):
            return item
    raise AssertionError("a stream ends with its Generation")


class StopCutter:
    """Text in pieces, passed on as far as no stop string can begin in it.

    `done` once a stop string is complete: everything from its beginning on is dropped. `settled`
    while nothing is held back.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.done = False

    @property
    def settled(self) -> bool:
        """Whether all text that came in has been passed on."""
        return not self._held

    def push(self, piece: str) -> str:
        """The text that has become certain with `piece`."""
        if self.done:
            return ""
        text = self._held + piece
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            self.done = True
            self._held = ""
            return text[: min(found)]
        keep = max((_overlap(text, s) for s in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back: no stop string came of it."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0
