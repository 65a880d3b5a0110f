"""Input and output of decoding: prompts, tokens, generations, stop strings."""

from collections.abc import Sequence

from gpt2core.errors import InvalidArgument
from gpt2core.sampling import Sampling
from gpt2core.startup.slim_typing import Any, Literal, NamedTuple
from gpt2core.tokenizer import Tokenizer

FinishReason = Literal["length", "stop", "eos", "deadline", "cancelled"]


class Prompt(NamedTuple):
    """One sequence to continue, the argument of `Scheduler.add`."""

    key: Any
    """Identifies the sequence in events; unique among the sequences of a scheduler."""
    ids: Sequence[int]
    """1 to n_positions ids of the model's vocabulary, already validated."""
    max_new_tokens: int
    stop: Sequence[str] = ()
    """Non-empty strings; the text ends before the first of them."""
    deadline: float | None = None
    """`time.monotonic()` seconds at which the sequence ends with the text so far."""
    sampling: Sampling | None = None
    """How tokens are chosen; None for greedy decoding."""
    logprobs: int | None = None
    """How many of the most likely tokens to report with each new one; None: no `Logprob`."""
    prompt_logprobs: bool = False
    """Whether to report the prompt's tokens too."""


class Logprob(NamedTuple):
    """Natural logarithms of the model's probabilities at one position."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The most likely ids with their logprobs, best first."""


class Token(NamedTuple):
    """One new token. `text` is "" while a character or a stop string is incomplete."""

    id: int
    text: str
    logprob: Logprob | None = None


class Generation(NamedTuple):
    """A finished continuation.

    `text` leaves out the stop string and special tokens. `ids` holds every new token except the
    end-of-text token. `prefill_s` is the time from the start of the sequence to its first token,
    `decode_s` the time after it, in seconds. `logprobs`, if requested, has an entry for every new
    token including the end-of-text token; `prompt_logprobs` for the prompt from its second token.
    """

    text: str
    ids: list[int]
    prompt_tokens: int
    finish_reason: FinishReason
    prefill_s: float
    decode_s: float
    logprobs: list[Logprob] | None = None
    prompt_logprobs: list[Logprob] | None = None


class IncrementalDetokenizer:
    """Detokenizes the new tokens of one sequence incrementally and matches stop strings.

    Tokens are held back while their text may be the beginning of a stop string or of a character.
    `text` is the text of all returned tokens. It leaves out special tokens, which only stop strings
    can match. Without a tokenizer there is no text, and `stop` has no effect.
    """

    def __init__(self, tokenizer: Tokenizer | None, stop: Sequence[str] = ()) -> None:
        self.ids: list[int] = []
        self.logprobs: list[Logprob] = []
        self.text = ""
        self._decoder = tokenizer.decoder(skip_special=True) if tokenizer else None
        self._stop_decoder = tokenizer.decoder() if tokenizer and stop else None
        self._stop = StopMatcher(stop)
        self._returned_ids = 0
        self._returned_text = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self._stop.matched

    def push(self, token: int, logprob: Logprob | None = None) -> list[Token]:
        """Add one sampled token; returns the tokens whose text is now final.

        Pass a logprob with every token or with no token.

        Raises:
            TokenizerError: the vocabulary has no such token.
        """
        self.ids.append(token)
        if logprob:
            self.logprobs.append(logprob)
        decoder, stop = self._decoder, self._stop
        if decoder is None:
            return self._take()
        text = decoder.push(token)
        self.text += stop.push(self._stop_decoder.push(token), text) if self._stop_decoder else text
        is_pending = (stop.has_pending or decoder.has_pending) and not stop.matched
        return [] if is_pending else self._take()

    def finish(self) -> list[Token]:
        """End the sequence; returns the tokens that were held back."""
        if self._decoder is not None and not self.stopped:
            text = self._decoder.finish()
            if self._stop_decoder:
                text = self._stop.push(self._stop_decoder.finish(), text) + self._stop.finish()
            self.text += text
        return self._take()

    def _take(self) -> list[Token]:
        ids, text = self.ids[self._returned_ids :], self.text[self._returned_text :]
        tokens = [Token(token, "") for token in ids]
        if tokens:
            tokens[-1] = Token(ids[-1], text)
        if self.logprobs:
            logprobs = self.logprobs[self._returned_ids :]
            tokens = [t._replace(logprob=own) for t, own in zip(tokens, logprobs, strict=False)]
        self._returned_ids, self._returned_text = len(self.ids), len(self.text)
        return tokens


class StopMatcher:
    """Finds stop strings in streamed text. Holds text back while a stop string may begin in it.

    `matched` becomes true when a stop string is complete: the text from its beginning is dropped.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held: list[tuple[str, str]] = []  # (text to match, text to return)
        self.matched = False

    @property
    def has_pending(self) -> bool:
        """Whether text is held back."""
        return bool(self._held)

    def push(self, piece: str, shown: str | None = None) -> str:
        """Add `piece`; returns the text that is now final.

        `shown` is the part of `piece` to return, by default all of it.
        """
        shown = piece if shown is None else shown
        if not self._stop:
            return shown
        if self.matched:
            return ""
        self._held.append((piece, shown))
        text = "".join(held for held, _ in self._held)
        found = [at for at in (text.find(s) for s in self._stop) if at >= 0]
        if found:
            certain = self._take(min(found))
            self.matched = True
            self._held = []
            return certain
        return self._take(len(text) - max(_overlap(text, s) for s in self._stop))

    def finish(self) -> str:
        """End the text; returns what was held back."""
        text = "".join(shown for _, shown in self._held)
        self._held = []
        return text

    def _take(self, length: int) -> str:
        """Release the first `length` characters that are held."""
        text = ""
        while self._held and len(self._held[0][0]) <= length:
            piece, shown = self._held.pop(0)
            length -= len(piece)
            text += shown
        if self._held and length:
            piece, shown = self._held[0]
            self._held[0] = piece[length:], shown[length:]
            text += shown[:length]
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    for n in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:n]):
            return n
    return 0


def checked_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    """Validate stop strings and return them as a tuple.

    Raises:
        InvalidArgument: a stop is not a string or is empty.
    """
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, (list, tuple)):
        kind = type(stop).__name__
        raise InvalidArgument(f"stop is of type {kind}, not a string or a list", param="stop")
    for i, found in enumerate(stops):
        if not isinstance(found, str) or not found:
            name = "stop" if found is stop else f"stop[{i}]"
            raise InvalidArgument(
                f"{name} is {ascii(found)[:60]}, not a non-empty string", param="stop"
            )
    return tuple(stops)


def check_deadline(deadline: float | None) -> None:
    """Raise `InvalidArgument` unless `deadline` is a number of seconds or None."""
    if deadline is not None and not isinstance(deadline, (int, float)):
        raise InvalidArgument(
            f"deadline is {deadline!r}, not a number of seconds", param="deadline"
        )


def check_count(max_new_tokens: int) -> None:
    """Raise `InvalidArgument` unless `max_new_tokens` is an integer of at least 0."""
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise InvalidArgument(
            f"max_new_tokens is {max_new_tokens!r}, not an integer of at least 0",
            param="max_new_tokens",
        )
