"""`Scheduler`: the only decoding loop. Many sequences share each pass over the weights.

A decode step reads all weights once, and serving many sequences in it costs little more. So prefill
and decode share passes, and a waiting sequence starts as soon as a running one finishes (continuous
batching: Yu et al. 2022, "Orca", section 3; chunked prefill: Agrawal et al. 2023, "SARATHI").
"""

from collections import deque
from collections.abc import Iterator, Sequence
from time import monotonic

from gpt2core.config import GPT2Config
from gpt2core.errors import GPT2Error, InvalidArgument
from gpt2core.forward import PREFILL_ROWS, ForwardPass, KVCache, damaged_error
from gpt2core.generation import FinishReason, Generation, Logprob, Prompt, Token
from gpt2core.prompt_lookup import MAX_DRAFT_TOKENS, DraftCost
from gpt2core.sequence import Sampled, SequenceState
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any, NamedTuple
from gpt2core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2core.kernels.reference import Float32

# Twice as many sequences give 1.3 times the tokens per second, but passes take longer, and
# deadlines are checked once per pass.
MAX_NUM_SEQS = 64
MAX_CACHE_BYTES = 256 * 1024 * 1024
# Rows of a prompt whose logits are computed together: 6 MB for GPT-2.
_SCORED_ROWS = 32
_TIMED_PASSES = 9


class Event(NamedTuple):
    """The result of one step for one sequence."""

    key: Any
    """The key of its prompt."""
    tokens: list[Token]
    """New tokens whose text is now final; may be empty."""
    end: Generation | GPT2Error | None
    """The result or the error of a sequence that ends, None while it runs."""


class Scheduler:
    """Decodes sequences together; each gets the ids that it would get alone.

    With the compiled kernels that is exact. With NumPy, results of a pass depend on its number of
    rows in the last bits, which can change a token whose two best logits are nearly equal.

    `add` prompts, then call `step` until the scheduler is empty (`len`, or its truth value). At
    most `max_num_seqs` sequences run at a time, within `max_cache_bytes` of keys and values (at
    least one always runs); the others wait in order of arrival. Without a tokenizer there are ids
    but no text. With `prompt_lookup` a sequence that runs alone may get several tokens in a pass,
    see `prompt_lookup.py`. Not thread-safe: one thread owns it. Discard it after `step` raises.
    """

    def __init__(
        self,
        forward: ForwardPass,
        config: GPT2Config,
        tokenizer: Tokenizer | None,
        max_num_seqs: int = MAX_NUM_SEQS,
        max_cache_bytes: int = MAX_CACHE_BYTES,
        prompt_lookup: bool = False,
    ) -> None:
        self._forward = forward
        self._config = config
        self._tokenizer = tokenizer
        self._max_num_seqs = max_num_seqs
        self._max_positions = max_cache_bytes // KVCache.nbytes(config, 1)
        self._waiting: deque[SequenceState] = deque()
        self._running: list[SequenceState] = []
        self._keys: set[Any] = set()
        self._pass_times: deque[float] = deque(maxlen=_TIMED_PASSES)
        self._draft_cost = DraftCost() if prompt_lookup else None

    def __len__(self) -> int:
        """Number of sequences that wait or run."""
        return len(self._keys)

    @property
    def room(self) -> int:
        """How many more sequences could start in the next step; 0 while the caches are full."""
        held = [*self._running, *self._waiting]
        if held and sum(sequence.capacity for sequence in held) >= self._max_positions:
            return 0
        return max(0, self._max_num_seqs - len(held))

    @property
    def pass_s(self) -> float:
        """Expected seconds of a decode pass: the median of recent ones, 0 before the first.

        Passes with prefill are excluded: they take longer than a pass for one token.
        """
        times = sorted(self._pass_times)
        return times[len(times) // 2] if times else 0.0

    def add(self, prompt: Prompt) -> None:
        """Append a sequence to the waiting ones.

        Raises:
            InvalidArgument: a sequence with the same key is waiting or running.
        """
        if prompt.key in self._keys:
            raise InvalidArgument(f"key {prompt.key!r} is in use by another sequence", param="key")
        self._keys.add(prompt.key)
        self._waiting.append(SequenceState(prompt, self._config, self._tokenizer))

    def cancel(self, key: Any) -> Generation | None:
        """Remove a sequence; returns its result so far, or None if there is no such sequence."""
        for sequences in (self._running, self._waiting):
            for sequence in sequences:
                if sequence.prompt.key == key:
                    sequences.remove(sequence)
                    self._keys.remove(key)
                    sequence.new.finish()
                    return sequence.generation("cancelled", monotonic())
        return None

    def step(self) -> list[Event]:
        """Run one pass over the weights for all running sequences; returns their events.

        A sequence that gets several tokens has an event for each.

        A sequence whose next pass would end after its deadline ends with "deadline" instead.

        Raises:
            Exception: the pass failed for all sequences (out of memory, a damaged file).
        """
        events: list[Event] = []
        started = monotonic()
        self._expire(started, events)
        self._admit(started, events)
        if not self._running:
            return events
        draft_tokens = self._draft()
        sampled, decode_only = self._run_pass(draft_tokens)
        ended = monotonic()
        if decode_only:
            self._pass_times.append(ended - started)
            if self._draft_cost and len(self._running) == 1:
                self._draft_cost.add(1 + len(draft_tokens), ended - started)
        for sequence, token, logprob in sampled:
            if sequence.prompt.key in self._keys:  # the token before may have ended it
                self._push(sequence, token, logprob, ended, events)
        return events

    def _expire(self, now: float, events: list[Event]) -> None:
        """End the sequences whose next pass would end after their deadline."""
        pass_s: float | None = None
        for sequence in [*self._running, *self._waiting]:
            deadline = sequence.prompt.deadline
            if deadline is None:
                continue
            if pass_s is None:
                pass_s = self.pass_s  # a pass with prefill takes at least as long
            if now >= deadline or now + pass_s > deadline:
                self._end(sequence, "deadline", events)

    def _admit(self, now: float, events: list[Event]) -> None:
        """Start waiting sequences while there is room for their caches."""
        while self._waiting and len(self._running) < self._max_num_seqs:
            sequence = self._waiting[0]
            if sequence.budget <= 0 and not sequence.prompt.prompt_logprobs:
                self._end(sequence, "length", events)
                continue
            used = sum(other.capacity for other in self._running)
            if self._running and used + sequence.capacity > self._max_positions:
                return
            sequence.begin(self._forward.new_cache(sequence.capacity), now)
            self._running.append(self._waiting.popleft())

    def _draft(self) -> list[int]:
        """Draft tokens after the last token of the only sequence, for the next pass to verify."""
        if not self._draft_cost or len(self._running) != 1 or not self._draft_cost.is_low:
            return []
        sequence = self._running[0]
        limit = min(MAX_DRAFT_TOKENS, sequence.budget - len(sequence.new.ids) - 1)
        if sequence.sampler or not sequence.new.ids or limit < 1:
            return []
        return sequence.lookup.draft_tokens(sequence.new.ids, limit)

    def _run_pass(self, draft_tokens: list[int]) -> tuple[list[Sampled], bool]:
        """Run one pass; returns the sampled tokens, and whether the pass had no prefill."""
        prefill_room = PREFILL_ROWS
        decode_only = True
        scheduled: list[SequenceState] = []
        rows: list[Sequence[int]] = []
        sampling: list[SequenceState] = []  # those that get a token in this pass
        n_last: list[int] = []  # how many of the last rows of each are needed
        last: list[int] = []  # the row of x that determines the token of each in `sampling`
        n_rows = 0  # of x
        any_sampler = False
        for sequence in self._running:
            if sequence.new.ids:
                ids: Sequence[int] = sequence.new.ids[-1:] + draft_tokens
            elif prefill_room:
                begin = sequence.cache.n_kv
                ids = sequence.prompt.ids[begin : begin + prefill_room]
                prefill_room -= len(ids)
                decode_only = False
            else:
                continue
            if sequence.sampler:
                any_sampler = True
            scheduled.append(sequence)
            rows.append(ids)
            n_kv = sequence.cache.n_kv + len(ids)
            has_token = bool(sequence.new.ids) or n_kv == len(sequence.prompt.ids)
            needs_all = draft_tokens or (sequence.prompt.prompt_logprobs and not sequence.new.ids)
            n_last.append(len(ids) if needs_all else int(has_token))
            n_rows += n_last[-1]
            if has_token:
                sampling.append(sequence)
                last.append(n_rows - 1)
        n_past = [sequence.cache.n_kv for sequence in scheduled] if any_sampler else []
        caches = [sequence.cache for sequence in scheduled]
        x = self._forward.hidden_states(rows, caches, n_last)
        if draft_tokens:
            return self._verify(sampling[0], draft_tokens, x), decode_only
        if any_sampler:
            import numpy as np

            x = np.asarray(x)
            self._score_prompts(scheduled, n_past, n_last, x)
            x = x[last]
        if not sampling:
            return [], decode_only
        if any_sampler and any(sequence.sampler for sequence in sampling):
            return self._choose(sampling, x), decode_only
        return self._greedy(sampling, x), decode_only

    def _greedy(self, sequences: Sequence[SequenceState], x: Any) -> list[Sampled]:
        """The most likely tokens. x [n_tokens, n_embd] has one row for each sequence."""
        tokens = self._forward.greedy(x)
        return [
            (sequence, damaged_error() if token is None else token, None)
            for sequence, token in zip(sequences, tokens, strict=True)
        ]

    def _verify(self, sequence: SequenceState, draft_tokens: list[int], x: Any) -> list[Sampled]:
        """The accepted draft tokens, then the model's own next token.

        x [1 + len(draft_tokens), n_embd].
        """
        sampled = self._greedy([sequence] * len(x), x)
        n_accepted = 0
        while n_accepted < len(draft_tokens) and sampled[n_accepted][1] == draft_tokens[n_accepted]:
            n_accepted += 1
        sequence.cache.n_kv -= len(draft_tokens) - n_accepted
        sequence.lookup.record_accepted(n_accepted)
        return sampled[: n_accepted + 1]

    def _choose(self, sequences: Sequence[SequenceState], x: "Float32") -> list[Sampled]:
        """Like `_greedy`, if some sequences have a sampler: logits are computed only for those."""
        import numpy as np

        without = [i for i, sequence in enumerate(sequences) if not sequence.sampler]
        sampled = self._greedy([sequences[i] for i in without], x[without]) if without else []
        with_sampler = [i for i, sequence in enumerate(sequences) if sequence.sampler]
        for i, scores in zip(
            with_sampler,
            self._forward.unchecked_logits(x[with_sampler]),
            strict=True,
        ):
            sequence = sequences[i]
            assert sequence.sampler
            if sequence.budget <= 0:  # only the prompt's logprobs were requested
                sampled.append((sequence, None, None))
                continue
            if not np.isfinite(scores.max()):  # the maximum is NaN if any score is
                sampled.append((sequence, damaged_error(), None))
                continue
            sampled.append((sequence, *sequence.sampler.choose(scores, sequence.new.ids)))
        return sampled

    def _score_prompts(
        self,
        sequences: Sequence[SequenceState],
        n_past: Sequence[int],
        n_last: Sequence[int],
        x: "Float32",
    ) -> None:
        """Record the logprobs of the prompt tokens that follow those of this pass, if requested.

        x [sum(n_last), n_embd]: the rows of the first sequence, then of the second. `n_past`:
        positions in each cache before this pass.
        """
        begin = 0
        for sequence, past, n_rows in zip(sequences, n_past, n_last, strict=True):
            following = sequence.prompt.ids[past + 1 : past + 1 + n_rows]
            if sequence.prompt.prompt_logprobs and not sequence.new.ids:
                assert sequence.sampler
                for i in range(0, len(following), _SCORED_ROWS):
                    targets = following[i : i + _SCORED_ROWS]
                    some = x[begin + i : begin + i + len(targets)]
                    scores = self._forward.unchecked_logits(some)
                    sequence.prompt_logprobs += sequence.sampler.score(scores, targets)
            begin += n_rows

    def _push(
        self,
        sequence: SequenceState,
        token: int | GPT2Error | None,
        logprob: Logprob | None,
        now: float,
        events: list[Event],
    ) -> None:
        """Append the sampled token to a sequence, and end the sequence if it is complete."""
        if isinstance(token, GPT2Error):
            self._end(sequence, token, events)
            return
        new = sequence.new
        if not new.ids:
            sequence.first_at = now
        if token is None:
            self._end(sequence, "length", events)
            return
        if token in self._config.eos_token_ids:
            sequence.eos_logprob = logprob
            self._end(sequence, "eos", events)
            return
        try:
            tokens = new.push(token, logprob)
        except GPT2Error as error:
            self._end(sequence, error, events)
            return
        if new.stopped:
            self._end(sequence, "stop", events, tokens)
        elif len(new.ids) == sequence.budget:
            self._end(sequence, "length", events, tokens)
        elif tokens:
            events.append(Event(sequence.prompt.key, tokens, None))

    def _end(
        self,
        sequence: SequenceState,
        reason: FinishReason | GPT2Error,
        events: list[Event],
        tokens: Sequence[Token] = (),
    ) -> None:
        """Remove a sequence and append its last event, with the tokens that were held back."""
        if sequence.began:
            self._running.remove(sequence)
        else:
            self._waiting.remove(sequence)
        key = sequence.prompt.key
        self._keys.remove(key)
        if isinstance(reason, GPT2Error):
            events.append(Event(key, [], reason))
        else:
            held = sequence.new.finish()
            events.append(Event(key, [*tokens, *held], sequence.generation(reason, monotonic())))


def stream(scheduler: Scheduler, prompt: Prompt) -> Iterator[Token | Generation]:
    """Yield every `Token` of one sequence, then its `Generation`.

    Raises:
        GPT2Error: the error of the sequence.
    """
    scheduler.add(prompt)
    while scheduler:
        for _, tokens, end in scheduler.step():
            yield from tokens
            if isinstance(end, GPT2Error):
                raise end
            if end:
                yield end


def collect(scheduler: Scheduler, prompts: Sequence[Prompt]) -> list[Generation]:
    """Decode all prompts together; returns the results in the order of the prompts.

    Raises:
        GPT2Error: the error of the first sequence that fails.
    """
    done: dict[int, Generation] = {}
    for prompt in prompts:
        scheduler.add(prompt)
    while scheduler:
        for key, _, end in scheduler.step():
            if isinstance(end, GPT2Error):
                raise end
            if end:
                done[key] = end
    return [done[prompt.key] for prompt in prompts]
