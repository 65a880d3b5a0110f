"""Prompt lookup decoding: speculative decoding whose draft tokens are copied from the text so far
and verified in one forward pass.

A pass that verifies three draft tokens reads the weights once, as a pass for one token does. The
draft is what followed the latest earlier occurrence of the last two tokens: text repeats names and
phrases (Saxena 2023, "Prompt Lookup Decoding"). Greedy decoding accepts a draft token only if it is
the most likely one, so the result does not change, provided that a token's logits do not depend on
the other rows of its pass.
"""

from collections import deque
from collections.abc import Sequence

MAX_DRAFT_TOKENS = 3
"""With the token before them, a pass has four rows, whose products cost little more than one's."""
_MAX_COST = 1.4  # maximum time of a pass with draft tokens, relative to one without
_MAX_PAUSE = 32  # passes
_TIMED_PASSES = 9


class PromptLookup:
    """Proposes draft tokens for one sequence."""

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._ids = list(prompt_ids)
        self._n_prompt = len(prompt_ids)
        self._next: dict[tuple[int, int], int] = {}  # two ids -> where their last successor stands
        self._n_indexed = 2
        self._pause = 0
        self._next_pause = 1

    def draft_tokens(self, new_ids: Sequence[int], limit: int) -> list[int]:
        """Up to `limit` ids that may follow the prompt and `new_ids`; often none.

        `new_ids` begins with the `new_ids` of the call before.
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

    def record_accepted(self, n_accepted: int) -> None:
        """Record how many draft tokens were accepted.

        If none was accepted, pause for some passes, each consecutive time for twice as many.
        """
        if n_accepted:
            self._next_pause = 1
        else:
            self._pause = self._next_pause
            self._next_pause = min(2 * self._next_pause, _MAX_PAUSE)


class DraftCost:
    """Whether draft tokens save time on this machine, from the measured times of passes."""

    def __init__(self) -> None:
        self._single: deque[float] = deque(maxlen=_TIMED_PASSES)
        self._drafted: deque[float] = deque(maxlen=_TIMED_PASSES)

    def add(self, n_rows: int, seconds: float) -> None:
        """Record the time of a pass with `n_rows` rows that decoded one sequence."""
        (self._single if n_rows == 1 else self._drafted).append(seconds)

    @property
    def is_low(self) -> bool:
        """Whether a pass with draft tokens takes at most 1.4 times one without.

        False until three passes without have been timed.
        """
        if len(self._single) < 3:
            return False
        return not self._drafted or min(self._drafted) <= _MAX_COST * min(self._single)
