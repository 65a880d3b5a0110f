"""`SequenceState`: the state that a `Scheduler` keeps for each sequence."""

from gpt2core.config import GPT2Config
from gpt2core.errors import GPT2Error
from gpt2core.forward import KVCache
from gpt2core.generation import FinishReason, Generation, IncrementalDetokenizer, Logprob, Prompt
from gpt2core.prompt_lookup import PromptLookup
from gpt2core.sampling import Sampling
from gpt2core.startup.slim_typing import TYPE_CHECKING
from gpt2core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2core.sampler import Sampler


class SequenceState:
    """A waiting or running prompt, its KV cache and its new tokens."""

    __slots__ = (
        "began",
        "budget",
        "cache",
        "capacity",
        "eos_logprob",
        "first_at",
        "lookup",
        "new",
        "prompt",
        "prompt_logprobs",
        "sampler",
        "started_at",
    )

    cache: KVCache

    def __init__(self, prompt: Prompt, config: GPT2Config, tokenizer: Tokenizer | None) -> None:
        if config.repetition_penalty != 1 or config.no_repeat_ngram_size:
            prompt = prompt._replace(sampling=_with_defaults(prompt.sampling, config))
        self.prompt = prompt
        self.new = IncrementalDetokenizer(tokenizer, prompt.stop)
        self.budget = min(prompt.max_new_tokens, config.n_positions - len(prompt.ids))
        # The last new token does not enter the cache.
        self.capacity = len(prompt.ids) + max(0, self.budget - 1)
        self.sampler: Sampler | None = None
        if needs_sampler(prompt, config):
            from gpt2core import sampler  # needs NumPy, which most prompts do not

            self.sampler = sampler.Sampler(prompt)
        self.lookup = PromptLookup(prompt.ids)
        self.prompt_logprobs: list[Logprob] = []
        self.eos_logprob: Logprob | None = None
        self.began = False
        self.started_at = self.first_at = 0.0

    def begin(self, cache: KVCache, now: float) -> None:
        """Start running with an empty cache of `capacity` positions."""
        self.cache = cache
        self.began = True
        self.started_at = now

    def generation(self, reason: FinishReason, now: float) -> Generation:
        """The result at `now`, in `time.monotonic()` seconds."""
        new, prompt = self.new, self.prompt
        logprobs = None
        if prompt.logprobs is not None:
            logprobs = new.logprobs + ([self.eos_logprob] if self.eos_logprob else [])
        now = now if self.began else self.started_at
        first = self.first_at if new.ids else now
        # Text that was held back may complete a stop string when the sequence ends.
        return Generation(
            new.text,
            new.ids,
            len(prompt.ids),
            "stop" if new.stopped else reason,
            first - self.started_at,
            now - first,
            logprobs,
            self.prompt_logprobs if prompt.prompt_logprobs else None,
        )


def needs_sampler(prompt: Prompt, config: GPT2Config) -> bool:
    """Whether a prompt needs logits, not only the most likely tokens."""
    return bool(
        prompt.logprobs is not None
        or (prompt.sampling and not prompt.sampling.is_greedy)
        or config.repetition_penalty != 1
        or config.no_repeat_ngram_size
    )


def _with_defaults(sampling: Sampling | None, config: GPT2Config) -> Sampling:
    """Add the model's default penalties where the prompt sets none."""
    sampling = sampling or Sampling()
    if sampling.repetition_penalty == 1:
        sampling = sampling._replace(repetition_penalty=config.repetition_penalty)
    if not sampling.no_repeat_ngram_size:
        sampling = sampling._replace(no_repeat_ngram_size=config.no_repeat_ngram_size)
    return sampling


# A sequence with its new token, its error, or None where no token was requested.
Sampled = tuple[SequenceState, int | GPT2Error | None, Logprob | None]
