"""Prompt lookup: guesses the next tokens from the text so far, for one pass to check several.

A pass that checks three guesses reads the weights once, as a pass for one token does. What followed
the last two tokens when they stood there before is a guess that is often right: text repeats names
and phrases (speculative decoding with the prompt as the draft: Saxena 2023, "Prompt Lookup
Decoding"). Greedy decoding keeps a guess only where it is the most likely token, so the result does
not change, provided that a token's logits do not depend on the other rows of its pass.
"""

from collections import deque
from collections.abc import Sequence

MAX_GUESSES = 3
"""With the token before them four rows: their products cost little more than one row's."""
_MAX_COST = 1.4  # a pass with guesses, times a pass without: more is not worth it
_MAX_PAUSE = 32
_TIMED_PASSES = 9


class PromptLookup:
    """The guesses for one sequence."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._ids = list(prompt_ids)
        self._n_prompt = len(prompt_ids)
        self._next: dict[tuple[int, int], int] = {}  # two ids -> where their last successor stands
        self._n_indexed = 2
        self._pause = 0
        self._next_pause = 1

    def guesses(self, new_ids: Sequence[int], limit: int) -> list[int]:
        """Up to `limit` ids that may follow the prompt and `new_ids`; often none.

        `new_ids` are those of the call before and more.
        """
        ids = self._ids
        ids += new_ids[len(ids) - self._n_prompt :]
        n = len(ids)
        for i in range(self._n_indexed, n):
            self._next[ids[i - 2], ids[i - 1]] = i
        self._n_indexed = max(2, n)
        if self._pause:
            self._pause -= 1
            return []
        begin = self._next.get((ids[-2], ids[-1])) if n >= 2 else None
        if begin is None:
            return []
        found = ids[begin : begin + limit]
        while len(found) < limit:  # the repetition reaches the end of the text and goes on
            found.append(found[len(found) - (n - begin)])
        return found

    def learn(self, n_right: int) -> None:
        """Take how many guesses were right; after none at all, pause for longer each time."""
        if n_right:
            self._next_pause = 1
        else:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _MAX_PAUSE)


class GuessCost:
    """Whether guesses pay on this machine, from the times of a sequence's passes."""

    def __init__(self) -> None:
        self._single: deque[float] = deque(maxlen=_TIMED_PASSES)
        self._guessing: deque[float] = deque(maxlen=_TIMED_PASSES)

    def add(self, n_rows: int, seconds: float) -> None:
        """Take the time of a pass that decoded one sequence, in `n_rows`."""
        (self._single if n_rows == 1 else self._guessing).append(seconds)

    @property
    def is_low(self) -> bool:
        """Whether a pass with guesses takes at most 1.4 times one without; False until known."""
        if len(self._single) < 3:
            return False
        return not self._guessing or min(self._guessing) <= _MAX_COST * min(self._single)
