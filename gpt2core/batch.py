"""Continuous batching: many prompts decoded together, each as it would be alone.

A token costs a pass over all weights, and one pass serves many sequences for little more. So
prompts share their passes: whoever is finished leaves, whoever waits takes its place, and a new
prompt goes in along with the others' next tokens (Yu et al. 2022, "Orca", section 3; prompts in
pieces: Agrawal et al. 2023, "SARATHI").
"""

from collections.abc import Iterable, Iterator, Sequence
from time import monotonic
from typing import Any, NamedTuple

from gpt2core.config import GPT2Config
from gpt2core.generate import FinishReason, Generation, StopCutter
from gpt2core.model import PREFILL_ROWS, KVCache, hidden_states, logits
from gpt2core.tokenizer import Tokenizer
from gpt2core.weights import Weights

# Twice as many rows are 1.3 times as fast again, and a pass takes so much longer, which is how
# early before a deadline the work must end.
MAX_ROWS = 64
MAX_CACHE_BYTES = 256 * 1024 * 1024


class Prompt(NamedTuple):
    """What goes into a batch."""

    key: Any
    """Comes back with the result."""
    ids: Sequence[int]
    """1 to n_positions known ids."""
    max_new_tokens: int
    stop: Sequence[str] = ()


class _Row:
    """A prompt that is being continued."""

    def __init__(self, prompt: Prompt, config: GPT2Config, tokenizer: Tokenizer) -> None:
        self.key, self.ids = prompt.key, prompt.ids
        self.budget = _budget(prompt, config)
        self.cache = KVCache(config, _capacity(prompt, config))
        self.new_ids: list[int] = []
        self._decoder, self._cutter = tokenizer.decoder(), StopCutter(prompt.stop)
        self._text = ""
        self._started = self._first = monotonic()

    def next_ids(self, room: int) -> Sequence[int]:
        """What goes in with the next pass: the latest token, or up to `room` ids of the prompt."""
        done = self.cache.n_kv
        return self.new_ids[-1:] if self.new_ids else self.ids[done : done + room]

    @property
    def is_in(self) -> bool:
        """Whether all that is known has gone in, so that its last logits tell the next token."""
        return self.cache.n_kv >= len(self.ids)

    def push(self, token: int, eos: Sequence[int]) -> FinishReason | None:
        """Take one more token; why the row ends with it, if it does."""
        if not self.new_ids:
            self._first = monotonic()
        if token in eos:
            return "eos"
        self.new_ids.append(token)
        self._text += self._cutter.push(self._decoder.push(token))
        if self._cutter.done:
            return "stop"
        return "length" if len(self.new_ids) == self.budget else None

    def finish(self, reason: FinishReason) -> Generation:
        """The result."""
        if not self._cutter.done:
            self._text += self._cutter.push(self._decoder.finish()) + self._cutter.finish()
        ended = monotonic()
        first = self._first if self.new_ids else ended
        return Generation(
            self._text,
            self.new_ids,
            len(self.ids),
            "stop" if self._cutter.done else reason,
            first - self._started,
            ended - first,
        )


def generate_rows(
    weights: Weights,
    config: GPT2Config,
    tokenizer: Tokenizer,
    prompts: Iterable[Prompt | None],
    deadline: float | None = None,
    *,
    partial: bool = True,
    max_rows: int = MAX_ROWS,
    max_cache_bytes: int = MAX_CACHE_BYTES,
) -> Iterator[tuple[Any, Generation]]:
    """Continue all prompts greedily; yield (key, `Generation`) as each is finished.

    Prompts are taken from their iterable only when there is room: at most `max_rows` at once, and
    no more than fit `max_cache_bytes` of keys and values, but always one. None among them means
    that there is none just now: it is asked again after the next pass. Ids are those that each
    prompt alone would give, wherever the two best logits differ by more than rounding does.

    No pass starts that would, by the time the last one took, end after `deadline`
    (`time.monotonic()` seconds). Then the unfinished end with "deadline" and what they have. With
    `partial`, so do those that had not begun; without, those stay in their iterable unless one had
    been taken out, and none begins that would hardly be finished.
    """
    waiting = iter(prompts)
    rows: list[_Row] = []
    ahead: Prompt | None = None  # taken out, not begun
    more = True
    pass_s = 0.0
    begun = monotonic()
    late = False
    while True:
        while more and not late and len(rows) < max_rows:
            if ahead is None:
                try:
                    ahead = next(waiting)
                except StopIteration:
                    more = False
            if ahead is None:
                if rows or not more:
                    break
                continue
            budget = _budget(ahead, config)
            if budget <= 0:
                yield ahead.key, Generation("", [], len(ahead.ids), "length", 0.0, 0.0)
                ahead = None
                continue
            late = not partial and deadline is not None and begun + pass_s * budget > deadline
            if late or (rows and _bytes(rows, config, ahead) > max_cache_bytes):
                break
            rows.append(_Row(ahead, config, tokenizer))
            ahead = None
        if not rows:
            return
        begun = monotonic()
        if deadline is not None and (begun >= deadline or begun + pass_s > deadline):
            break
        for row, token in _pass(weights, config, rows):
            reason = row.push(token, config.eos_token_ids)
            if reason:
                rows.remove(row)
                yield row.key, row.finish(reason)
        begun, pass_s = monotonic(), monotonic() - begun
    for row in rows:
        yield row.key, row.finish("deadline")
    if partial:
        if ahead:
            yield ahead.key, Generation("", [], len(ahead.ids), "deadline", 0.0, 0.0)
        for left in filter(None, waiting):
            yield left.key, Generation("", [], len(left.ids), "deadline", 0.0, 0.0)


def _pass(weights: Weights, config: GPT2Config, rows: Sequence[_Row]) -> list[tuple[_Row, int]]:
    """One pass over the weights for all rows; the next token of those whose prompt is in."""
    room = PREFILL_ROWS
    going: list[_Row] = []
    sequences: list[Sequence[int]] = []
    for row in rows:
        ids = row.next_ids(room)
        if ids:
            going.append(row)
            sequences.append(ids)
            room -= 0 if row.new_ids else len(ids)
    x = hidden_states(weights, config, sequences, [row.cache for row in going])
    told, last, end = [], [], 0
    for row, ids in zip(going, sequences, strict=True):
        end += len(ids)
        if row.is_in:
            told.append(row)
            last.append(end - 1)
    if not told:
        return []
    tokens = logits(weights, config, x[last]).argmax(axis=1)  # the first of equals
    return [(row, int(token)) for row, token in zip(told, tokens, strict=True)]


def _budget(prompt: Prompt, config: GPT2Config) -> int:
    return min(prompt.max_new_tokens, config.n_positions - len(prompt.ids))


def _capacity(prompt: Prompt, config: GPT2Config) -> int:
    """Positions of the cache: the last token is told and never goes in."""
    return len(prompt.ids) + _budget(prompt, config) - 1


def _bytes(rows: Sequence[_Row], config: GPT2Config, more: Prompt) -> int:
    """What the caches of all rows and of one more take."""
    positions = sum(row.cache.capacity for row in rows) + _capacity(more, config)
    return KVCache.nbytes(config, positions)
