"""Sampling parameters and their validation. `gpt2core.sampler` applies them.

Loads no NumPy, so bad values are rejected without it.
"""

from collections.abc import Mapping

from gpt2core.errors import InvalidArgument
from gpt2core.startup.slim_typing import Any, NamedTuple, TypedDict

# The type, minimum and maximum of each parameter.
RANGES: Mapping[str, tuple[type, float, float]] = {
    "temperature": (float, 0.0, 100.0),
    "top_k": (int, 0, 2**31 - 1),
    "top_p": (float, 0.0, 1.0),
    "repetition_penalty": (float, 0.01, 100.0),
    "no_repeat_ngram_size": (int, 0, 2**31 - 1),
    "presence_penalty": (float, -2.0, 2.0),
    "frequency_penalty": (float, -2.0, 2.0),
    "seed": (int, -(2**63), 2**64 - 1),
}
MAX_BIAS = 100.0
MAX_LOGPROBS = 5
# Lower temperatures count as 0: dividing float32 logits by them would lose their differences.
MIN_TEMPERATURE = 1e-5


class SamplingOptions(TypedDict, total=False):
    """`Sampling` as keyword arguments; None means the default.

    If `seed` is missing, a random seed is used.
    """

    temperature: float | None
    top_k: int | None
    top_p: float | None
    repetition_penalty: float | None
    no_repeat_ngram_size: int | None
    presence_penalty: float | None
    frequency_penalty: float | None
    logit_bias: Mapping[int, float] | None
    seed: int | None


class Sampling(NamedTuple):
    """How the tokens of one sequence are chosen. The default is greedy decoding.

    Applied in the order of `transformers`: repetition penalty, n-grams, presence and frequency
    penalties, bias, temperature, top k, top p.
    """

    temperature: float = 0.0
    """Logits are divided by it before a token is drawn; 0 takes the most likely token."""
    top_k: int = 0
    """Draw from the k most likely tokens; 0 from all."""
    top_p: float = 1.0
    """Draw from the smallest set of most likely tokens whose probabilities sum to p."""
    repetition_penalty: float = 1.0
    """For tokens in the prompt or the continuation: divides positive logits, multiplies negative
    ones (Keskar et al. 2019, "CTRL", section 4.1, as implemented in `transformers`)."""
    no_repeat_ngram_size: int = 0
    """No n-gram of this size occurs twice in prompt and continuation; 0: no limit."""
    presence_penalty: float = 0.0
    """Subtracted from the logits of tokens in the continuation.
    Source of presence_penalty and frequency_penalty:
    https://platform.openai.com/docs/guides/text-generation"""
    frequency_penalty: float = 0.0
    """Subtracted for each occurrence of the token in the continuation."""
    logit_bias: Mapping[int, float] | None = None
    """Added to the logits of these tokens."""
    seed: int = 0
    """Draws depend only on `seed`, `choice` and the position."""
    choice: int = 0
    """Distinguishes several continuations of one prompt with the same seed."""

    @property
    def is_greedy(self) -> bool:
        """Whether the most likely token is always taken."""
        return self.temperature < MIN_TEMPERATURE and not self.has_processors

    @property
    def has_processors(self) -> bool:
        """Whether penalties, n-grams or bias change the logits."""
        return bool(
            self.repetition_penalty != 1
            or self.no_repeat_ngram_size
            or self.presence_penalty
            or self.frequency_penalty
            or self.logit_bias
        )


def checked_sampling(options: Mapping[str, Any], vocab_size: int | None = None) -> Sampling:
    """Validate `SamplingOptions`. `vocab_size` bounds the ids of `logit_bias`.

    Raises:
        InvalidArgument: a value has the wrong type or is out of range; `param` names it.
        TypeError: an unknown option.
    """
    for name in options:
        if name not in SamplingOptions.__annotations__:
            known = ", ".join(SamplingOptions.__annotations__)
            raise TypeError(f"unexpected keyword argument {name!r}: sampling options are {known}")
    given = {name: value for name, value in options.items() if value is not None}
    for name, (kind, minimum, maximum) in RANGES.items():
        if name not in given:
            continue
        value = given[name]
        is_number = isinstance(value, int if kind is int else (int, float))
        if not is_number or isinstance(value, bool) or not minimum <= value <= maximum:
            raise InvalidArgument(
                f"{name} is {_preview(value)}, not {describe_range(name)}", param=name
            )
    if "logit_bias" in given:
        _check_bias(given["logit_bias"], vocab_size)
    return Sampling(**given)


def describe_range(name: str) -> str:
    """The accepted values of a parameter, for error messages."""
    kind, minimum, maximum = RANGES[name]
    if kind is int:
        return f"an integer from {minimum} to {maximum}"
    return f"a number from {minimum:g} to {maximum:g}"


def _check_bias(bias: object, vocab_size: int | None) -> None:
    if not isinstance(bias, Mapping):
        raise InvalidArgument(
            f"logit_bias is of type {type(bias).__name__}, not an object of token ids and numbers",
            param="logit_bias",
        )
    for token, value in bias.items():
        if type(token) is not int or token < 0 or (vocab_size and token >= vocab_size):
            size = f"from 0 to {vocab_size - 1}" if vocab_size else "of at least 0"
            raise InvalidArgument(
                f"logit_bias: token id {_preview(token)} is not an integer {size}",
                param="logit_bias",
            )
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not -MAX_BIAS <= value <= MAX_BIAS:
            raise InvalidArgument(
                f"logit_bias: {_preview(value)} is not a number from -{MAX_BIAS:g} to {MAX_BIAS:g}",
                param="logit_bias",
            )


def checked_logprobs(logprobs: object, prompt_logprobs: object) -> int | None:
    """Validate the number of most likely tokens to report with each new token.

    Raises:
        InvalidArgument: not an integer from 0 to 5, or prompt_logprobs without logprobs.
    """
    if logprobs is None:
        if prompt_logprobs:
            raise InvalidArgument(
                f"prompt_logprobs is set but logprobs is None: set logprobs to 0-{MAX_LOGPROBS}",
                param="logprobs",
            )
        return None
    if type(logprobs) is not int or not 0 <= logprobs <= MAX_LOGPROBS:
        raise InvalidArgument(
            f"logprobs is {_preview(logprobs)}, not an integer from 0 to {MAX_LOGPROBS}",
            param="logprobs",
        )
    return logprobs


def _preview(value: object) -> str:
    """A value for an error message, truncated and on one line."""
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of more than 128 bits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
