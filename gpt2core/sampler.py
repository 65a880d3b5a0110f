"""Sampling: logits to tokens when a request asks for more than greedy decoding.

Each function implements one parameter of `Sampling`, in the order in which they are applied. The
definitions are those of `transformers` (`generation/logits_process.py`) and, for presence and
frequency penalties and bias, of OpenAI's documentation.

`scores` is always float32 [vocab_size]; a token with -inf cannot be chosen. Only NumPy's core is
used (`flatnonzero` is not part of it): the rest takes another 30 ms to import.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from gpt2core.errors import GPT2Error, InvalidArgument
from gpt2core.generation import Logprob, Prompt
from gpt2core.kernels.reference import Float32
from gpt2core.sampling import MIN_TEMPERATURE, Sampling

_MASK = 2**64 - 1


class Sampler:
    """Chooses the tokens of one sequence and reports their logprobs."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._sampling = prompt.sampling or Sampling()

    def choose(
        self, scores: Float32, new_ids: Sequence[int]
    ) -> tuple[int | GPT2Error, Logprob | None]:
        """The token after the prompt and `new_ids`, or this sequence's error.

        scores [vocab_size] are finite.
        """
        sampling = self._sampling
        chosen = processed(scores, sampling, self._prompt.ids, new_ids)
        if chosen.max() == -np.inf:
            return InvalidArgument(
                f"no_repeat_ngram_size is {sampling.no_repeat_ngram_size} and excludes every token:"
                " use a larger value",
                param="no_repeat_ngram_size",
            ), None
        if sampling.temperature < MIN_TEMPERATURE:
            token = int(chosen.argmax())
        else:
            token = draw(
                top_p(
                    top_k(chosen / np.float32(sampling.temperature), sampling.top_k), sampling.top_p
                ),
                uniform(sampling.seed, sampling.choice, len(new_ids)),
            )
        n_top = self._prompt.logprobs
        return token, None if n_top is None else logprob(scores, token, n_top)

    def score(self, scores: Float32, ids: Sequence[int]) -> list[Logprob]:
        """The logprobs of `ids`; scores [len(ids), vocab_size]."""
        n_top = self._prompt.logprobs or 0
        return [logprob(row, token, n_top) for row, token in zip(scores, ids, strict=True)]


def processed(
    scores: Float32, sampling: Sampling, prompt_ids: Sequence[int], new_ids: Sequence[int]
) -> Float32:
    """The scores after penalties, n-grams and bias; `scores` itself if none applies."""
    if not sampling.has_processors:
        return scores
    scores = scores.copy()
    if sampling.repetition_penalty != 1:
        repetition_penalty(scores, [*prompt_ids, *new_ids], sampling.repetition_penalty)
    if sampling.no_repeat_ngram_size:
        no_repeat_ngram(scores, [*prompt_ids, *new_ids], sampling.no_repeat_ngram_size)
    if sampling.presence_penalty or sampling.frequency_penalty:
        penalties(scores, new_ids, sampling.presence_penalty, sampling.frequency_penalty)
    if sampling.logit_bias:
        logit_bias(scores, sampling.logit_bias)
    return scores


def repetition_penalty(scores: Float32, ids: Sequence[int], penalty: float) -> None:
    """Make the tokens of `ids` less likely, in place."""
    seen = list(set(ids))
    repeated = scores[seen]
    scores[seen] = np.where(
        repeated < 0, repeated * np.float32(penalty), repeated / np.float32(penalty)
    )


def no_repeat_ngram(scores: Float32, ids: Sequence[int], size: int) -> None:
    """Exclude the tokens that would repeat an n-gram of `size` tokens in `ids`, in place."""
    n = len(ids) - size + 1  # number of n-grams
    if n <= 0:
        return
    tokens = np.array(ids)
    follows = np.ones(n, np.bool_)  # where the last size - 1 tokens occur
    for i in range(size - 1):
        follows &= tokens[i : i + n] == tokens[n + i]
    scores[tokens[size - 1 :][follows]] = -np.inf


def penalties(scores: Float32, new_ids: Sequence[int], presence: float, frequency: float) -> None:
    """scores - count * frequency - (count > 0) * presence, in place."""
    counts = Counter(new_ids)
    if counts:
        times = np.array(list(counts.values()), np.float32)
        scores[list(counts)] -= times * np.float32(frequency) + np.float32(presence)


def logit_bias(scores: Float32, bias: Mapping[int, float]) -> None:
    """Add `bias` to the scores of its tokens, in place."""
    scores[list(bias)] += np.array(list(bias.values()), np.float32)


def top_k(scores: Float32, k: int) -> Float32:
    """Keep the k most likely tokens and ties with the last of them; 0 keeps all."""
    if not 0 < k < len(scores):
        return scores
    lowest = np.partition(scores, -k)[-k]
    return np.where(scores < lowest, np.float32(-np.inf), scores)


def top_p(scores: Float32, p: float) -> Float32:
    """Exclude the least likely tokens whose total probability is at most 1 - p; keep one token."""
    if p >= 1:
        return scores
    possible = (scores > -np.inf).nonzero()[0]
    probabilities = np.exp(scores[possible].astype(np.float64) - scores.max())
    probabilities /= probabilities.sum()
    # Tokens below an equal share of 1 - p sum to less than 1 - p: only the others are sorted.
    likely = probabilities >= min((1 - p) / len(probabilities), probabilities.max())
    possible, excluded = possible[likely], probabilities[~likely].sum()
    # By score: two scores that differ may have equal probabilities.
    order = scores[possible].argsort(kind="stable")
    removed = excluded + probabilities[likely][order].cumsum() <= 1 - p
    removed[-1] = False
    kept = possible[order[~removed]]
    result = np.full_like(scores, -np.inf)
    result[kept] = scores[kept]
    return result


def draw(scores: Float32, u: float) -> int:
    """The token at `u` in [0, 1) of the cumulative probabilities, in id order."""
    possible = (scores > -np.inf).nonzero()[0]
    cumulative = np.exp(scores[possible].astype(np.float64) - scores.max()).cumsum()
    i = cumulative.searchsorted(u * cumulative[-1], side="right")
    return int(possible[min(i, len(possible) - 1)])


def uniform(seed: int, choice: int, index: int) -> float:
    """A deterministic number in [0, 1). `numpy.random` would take 27 ms to import.

    Applies the splitmix64 step (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number
    generators", figure 16) to each argument in turn.
    """
    z = 0
    for part in (seed, choice, index):
        z = (z + part + 0x9E3779B97F4A7C15) & _MASK
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & _MASK
        z = (z ^ z >> 27) * 0x94D049BB133111EB & _MASK
        z ^= z >> 31
    return float(z >> 11) * 2.0**-53


def logprob(scores: Float32, token: int, n_top: int) -> Logprob:
    """The logprob of `token` and of the `n_top` most likely tokens, before `Sampling` applies.

    The most likely token comes first; ties go to the lowest id.
    """
    best = float(scores.max())
    log_sum = best + float(np.log(np.exp(scores - best).sum(dtype=np.float64)))
    top: list[tuple[int, float]] = []
    if n_top:
        n_top = min(n_top, len(scores))
        candidates = (scores >= np.partition(scores, -n_top)[-n_top]).nonzero()[0]
        order = (-scores[candidates]).argsort(kind="stable")[:n_top]
        top = [(int(i), float(scores[i]) - log_sum) for i in candidates[order]]
    return Logprob(token, float(scores[token]) - log_sum, tuple(top))
