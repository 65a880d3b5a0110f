"""`Engine`: a model directory, opened. The only object of the core that lives between requests."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gpt2core import generate as generation
from gpt2core.checkpoint import Tensor, open_checkpoint
from gpt2core.config import GPT2Config
from gpt2core.errors import (
    InvalidArgument,
    InvalidPrompt,
    ModelError,
    PromptTooLong,
    TokenizerError,
)
from gpt2core.generate import Generation, Token
from gpt2core.kernels import Float32, set_threads
from gpt2core.layout import CONFIG_FILE, INDEX_FILE, PACKED_FILE, SINGLE_FILE
from gpt2core.model import all_logits
from gpt2core.packed import PRECISIONS, open_packed
from gpt2core.tokenizer import Tokenizer
from gpt2core.weights import Weights

if TYPE_CHECKING:
    from gpt2core.batch import Prompt

RAW_FILES = (SINGLE_FILE, INDEX_FILE)


class Engine:
    """GPT-2 from one model directory. Safe to share between threads: every call has its own cache.

    `config` is the `GPT2Config`; `model_dir` the directory it was opened from.
    """

    def __init__(self, model_dir: str, config: GPT2Config, weights: Weights) -> None:
        self.model_dir = model_dir
        self.config = config
        self._weights = weights
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def open(
        cls, model_dir: str | os.PathLike[str], precision: str = "auto", threads: int | None = None
    ) -> "Engine":
        """Map a Hugging Face model directory. Reads headers and configuration; no weight is read.

        `precision`: "auto" takes what the directory's packed file holds, else f32 from the raw
        files; "f32", "bf16" and "int8" ask for one and fail where it cannot be had. `threads`: how
        many NumPy's OpenBLAS uses, for the whole process; None leaves it as it is, and it is
        without effect under another BLAS.

        Raises:
            InvalidArgument: a precision that the directory does not hold, or less than one thread.
            ModelError: `ConfigError` or `CheckpointError`, naming file and field or tensor.
        """
        if threads is not None and (type(threads) is not int or threads < 1):
            raise InvalidArgument(f"threads is {threads!r}, not a number from 1", param="threads")
        path = os.fspath(model_dir)
        if not os.path.isdir(path):
            raise ModelError("no such model directory", file=path)
        config, tensors = _open_weights(path, precision)
        weights = Weights(tensors, config)
        if threads is not None:
            set_threads(threads)
        return cls(path, config, weights)

    @property
    def tokenizer(self) -> Tokenizer:
        """The directory's tokenizer, opened when it is first asked for.

        Raises:
            TokenizerError: the directory has none, or it is broken.
        """
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.open(self.model_dir)
        return self._tokenizer

    def read_ahead(self) -> None:
        """Begin to make the weights ready in a thread, where they must be copied or widened.

        Every call that needs them does this first; it pays to do it before opening the tokenizer.
        """
        self._weights.widen_ahead()

    def encode_prompt(self, prompt: str, limit: int | None = None) -> list[int]:
        """Ids that the model starts from: an empty prompt is the beginning-of-text token.

        `limit` is the most tokens to accept; the context is one anyway.

        Raises:
            InvalidPrompt: `prompt` is no text, or is empty where the model has no such token.
            PromptTooLong: it exceeds the limit.
            TokenizerError: the directory has no tokenizer, or one with more tokens than the model.
        """
        limit = min(limit or self.config.n_positions, self.config.n_positions)
        tokenizer = self.tokenizer
        least = tokenizer.least_tokens(prompt) if isinstance(prompt, str) else 0
        if least > limit:  # megabytes of text take seconds to encode, only to be refused
            raise PromptTooLong(least, limit, at_least=True)
        ids = tokenizer.encode(prompt)
        if len(ids) > limit:
            raise PromptTooLong(len(ids), limit)
        if max(ids, default=0) >= self.config.vocab_size:
            raise TokenizerError(
                f"has token {max(ids)}, the model only {self.config.vocab_size}: they do not match",
                file=self.model_dir,
            )
        return self._checked(ids)

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 20,
        stop: str | Sequence[str] = (),
        deadline: float | None = None,
    ) -> Generation:
        """Continue `prompt` greedily and return the whole continuation.

        `prompt` is text, or ids as `encode_prompt` gives them. `stop` ends the text before the
        first of these strings; `deadline` is in `time.monotonic()` seconds and ends it early with
        what there is.

        Raises:
            InvalidArgument: an argument of the wrong type or range; the error's `param` names it.
            InvalidPrompt, PromptTooLong, TokenizerError: as `encode_prompt`.
        """
        return generation.collect(self.stream(prompt, max_new_tokens, stop, deadline))

    def stream(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 20,
        stop: str | Sequence[str] = (),
        deadline: float | None = None,
    ) -> Iterator[Token | Generation]:
        """Yield every `Token` as its text becomes certain, and last the `Generation` they make.

        Arguments and errors as for `generate`; errors come before this returns.
        """
        self.read_ahead()
        stops = _checked_stops(stop)
        _check_deadline(deadline)
        _check_count(max_new_tokens)
        ids = self._prompt_ids(prompt)
        return generation.stream(
            self._weights, self.config, self.tokenizer, ids, max_new_tokens, stops, deadline
        )

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int = 20,
        stop: str | Sequence[str] = (),
        deadline: float | None = None,
    ) -> list[Generation]:
        """Continue every prompt, all of them together; arguments and errors as for `generate`.

        All prompts are checked before the first is continued. Each is continued as it would be
        alone, wherever the two best logits differ by more than rounding does.
        """
        if isinstance(prompts, (str, bytes)):
            raise InvalidArgument("prompts is one string, not a list of them", param="prompts")
        from gpt2core.batch import Prompt  # one prompt does without

        stops = _checked_stops(stop)
        _check_deadline(deadline)
        _check_count(max_new_tokens)
        rows = [
            Prompt(i, self._prompt_ids(prompt), max_new_tokens, stops)
            for i, prompt in enumerate(prompts)
        ]
        done = dict(self.generate_rows(rows, deadline))
        return [done[i] for i in range(len(rows))]

    def generate_rows(
        self,
        prompts: "Iterable[Prompt | None]",
        deadline: float | None = None,
        *,
        partial: bool = True,
    ) -> Iterator[tuple[Any, Generation]]:
        """Continue `batch.Prompt`s as they come; yield (key, `Generation`) as each is finished.

        For prompts without end, or of different lengths and stops: see `batch.generate_rows`. Their
        ids are those of `encode_prompt`, and are not checked again.
        """
        from gpt2core.batch import generate_rows

        self.read_ahead()
        return generate_rows(
            self._weights, self.config, self.tokenizer, prompts, deadline, partial=partial
        )

    def generate_ids(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """The new ids after `ids`, greedily, up to the end-of-text token (left out) or the context.

        Needs no tokenizer.

        Raises:
            InvalidArgument, InvalidPrompt, PromptTooLong: as for `generate`.
        """
        self.read_ahead()
        _check_count(max_new_tokens)
        return list(
            generation.greedy_ids(self._weights, self.config, self._checked(ids), max_new_tokens)
        )

    def logits(self, ids: Sequence[int]) -> Float32:
        """float32 [n_seq, vocab_size]: row i scores the token after `ids[: i + 1]`.

        Raises:
            InvalidPrompt, PromptTooLong: as for `generate`.
        """
        self.read_ahead()
        return all_logits(self._weights, self.config, self._checked(ids))

    def _prompt_ids(self, prompt: str | Sequence[int]) -> list[int]:
        return self.encode_prompt(prompt) if isinstance(prompt, str) else self._checked(prompt)

    def _checked(self, ids: Sequence[int]) -> list[int]:
        if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__"):
            raise InvalidPrompt(
                f"the prompt is {type(ids).__name__}, not text or a list of ids", param="prompt"
            )
        ids, config = list(ids), self.config
        for i in ids:
            if (
                not isinstance(i, (int, np.integer))
                or isinstance(i, bool)
                or not 0 <= i < config.vocab_size
            ):
                raise InvalidPrompt(
                    f"token id {i!r} is not one of the model's {config.vocab_size}", param="prompt"
                )
        if len(ids) > config.n_positions:
            raise PromptTooLong(len(ids), config.n_positions)
        if ids:
            return ids
        if config.bos_token_id is None or config.bos_token_id >= config.vocab_size:
            raise InvalidPrompt(
                "the prompt is empty and this model has no beginning-of-text token: send some text",
                param="prompt",
            )
        return [config.bos_token_id]


def _open_weights(path: str, precision: str) -> tuple[GPT2Config, dict[str, Tensor]]:
    """Configuration and tensors from the packed file where it matches, else from the raw ones."""
    if precision != "auto" and precision not in PRECISIONS:
        raise InvalidArgument(
            f"precision {precision!r} is not one of auto, {', '.join(PRECISIONS)}",
            param="precision",
        )
    packed = os.path.join(path, PACKED_FILE)
    config_file = os.path.join(path, CONFIG_FILE)
    has_raw = any(os.path.exists(os.path.join(path, name)) for name in RAW_FILES)
    held = "f32"
    if os.path.exists(packed):
        config, held, tensors = open_packed(packed)
        same = not os.path.exists(config_file) or GPT2Config.from_file(config_file) == config
        if same and precision in ("auto", held):
            return config, tensors
        if not same and not has_raw:
            raise ModelError("describes another model than config.json", file=packed)
    if (has_raw or not os.path.exists(packed)) and precision in ("auto", "f32"):
        config = GPT2Config.from_file(config_file)
        return config, open_checkpoint(path, config)
    raise InvalidArgument(
        f"precision {precision!r} cannot be had from {path}, which holds {held}: pack it again",
        param="precision",
    )


def _checked_stops(stop: str | Sequence[str]) -> tuple[str, ...]:
    stops = (stop,) if isinstance(stop, str) else stop
    if not isinstance(stops, (list, tuple)) or not all(isinstance(s, str) and s for s in stops):
        raise InvalidArgument("stop must be a non-empty string or several", param="stop")
    return tuple(stops)


def _check_deadline(deadline: float | None) -> None:
    if deadline is not None and not isinstance(deadline, (int, float)):
        raise InvalidArgument(
            f"deadline is {deadline!r}, not a number of seconds", param="deadline"
        )


def _check_count(max_new_tokens: int) -> None:
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise InvalidArgument(
            f"max_new_tokens is {max_new_tokens!r}, not a whole number from 0",
            param="max_new_tokens",
        )
