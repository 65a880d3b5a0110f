"""`Engine`: an open model directory. The only object that the core keeps between requests."""

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from operator import index

from gpt2core.config import GPT2Config
from gpt2core.errors import (
    InvalidArgument,
    InvalidPrompt,
    ModelError,
    PromptTooLong,
    TokenizerError,
)
from gpt2core.files.directory import open_directory
from gpt2core.files.names import follow_current
from gpt2core.forward import ForwardPass
from gpt2core.generation import (
    Generation,
    Prompt,
    Token,
    check_count,
    check_deadline,
    checked_stops,
)
from gpt2core.kernels import CHOICES, choose_native
from gpt2core.sampling import SamplingOptions, checked_logprobs, checked_sampling
from gpt2core.scheduler import Scheduler, collect, stream
from gpt2core.startup.slim_typing import TYPE_CHECKING, Unpack
from gpt2core.tokenizer import Tokenizer

if TYPE_CHECKING:
    from gpt2core.kernels.native import NativeForward
    from gpt2core.kernels.reference import Float32
    from gpt2core.model import NumPyForward


class Engine:
    """A GPT-2 model. Thread-safe: every call has its own KV cache.

    `config` is the `GPT2Config`, `model_dir` the directory of the files that were opened.
    """

    def __init__(
        self, model_dir: str, config: GPT2Config, forward: ForwardPass, prompt_lookup: bool = False
    ) -> None:
        self.model_dir = model_dir
        self.config = config
        self._forward = forward
        self._prompt_lookup = prompt_lookup
        self._tokenizer: Tokenizer | None = None

    @classmethod
    def open(
        cls,
        model_dir: str | os.PathLike[str],
        precision: str = "auto",
        kernels: str = "auto",
        threads: int | None = None,
        prompt_lookup: bool = True,
    ) -> "Engine":
        """Map a Hugging Face model directory. Reads headers and configuration, but no weights.

        Args:
            model_dir: a raw or packed model directory, or a directory of published models, whose
                `CURRENT` names the one to open.
            precision: "f32", "bf16" or "int8". "auto" uses the precision of the packed file, or
                f32 if there are only raw files.
            kernels: "native" (the compiled kernels) or "numpy". "auto" uses the compiled kernels
                if they run on this processor.
            threads: threads of the kernels, for the whole process. None: one for each available
                CPU with the compiled kernels, the BLAS default with NumPy. With NumPy it takes
                effect only if the BLAS is OpenBLAS.
            prompt_lookup: whether a sequence that is decoded alone may get several tokens in a
                pass. The tokens are the same. Compiled kernels only.

        Raises:
            InvalidArgument: the directory does not have this precision, the kernels do not run
                here, or `threads` is less than 1.
            ModelError: there is no model. `ConfigError` and `CheckpointError` name the file and the
                field or tensor that is invalid.
        """
        if threads is not None and (type(threads) is not int or threads < 1):
            raise InvalidArgument(
                f"threads is {threads!r}, not a positive integer", param="threads"
            )
        path = os.fspath(model_dir)
        if not os.path.isdir(path):
            raise ModelError("no such model directory", file=path)
        path = follow_current(path)
        forward = import_kernels(kernels)
        config, tensors = open_directory(path, precision)
        forward.set_threads(threads)
        return cls(path, config, forward(tensors, config), forward.is_native and prompt_lookup)

    @property
    def tokenizer(self) -> Tokenizer:
        """The directory's tokenizer, opened on first use.

        Raises:
            TokenizerError: the tokenizer is missing or broken.
        """
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.open(self.model_dir)
        return self._tokenizer

    @cached_property
    def revision(self) -> str:
        """Identifier of the model's files, 64 hexadecimal digits. See `files.revision`.

        Raises:
            ModelError: the files can no longer be read.
        """
        from gpt2core.files.revision import revision_of  # imports hashlib; only batches need it

        try:
            return revision_of(self.model_dir)
        except OSError as error:
            raise ModelError(f"cannot be read ({error.strerror})", file=self.model_dir) from error

    def describe_weights(self) -> str:
        """A human-readable description of the weight matrices.

        Their dtype, layout, alignment and file.
        """
        tensor = self._forward.weights.block(0).mlp.c_fc.tensor
        layout = "[n_out, n_in]" if tensor.is_transposed else "[n_in, n_out]"
        aligned = "" if tensor.is_aligned else ", not aligned"
        return f"{tensor.dtype} {layout}{aligned}, {tensor.file}"

    def after_restore(self) -> None:
        """Select the kernels again. Call it after a snapshot restore: the processor may differ.

        Raises:
            InvalidArgument: the compiled kernels are in use and do not run on this processor.
        """
        if self._forward.is_native:
            _choose_kernels("native")
        self._forward.after_restore()

    def read_ahead(self) -> None:
        """Start to copy or convert the weights in a thread, if they need it.

        Every call that needs the weights does this first. Calling it before the tokenizer is opened
        lets both run at the same time.
        """
        self._forward.prepare_ahead()

    def encode_prompt(
        self, prompt: str, limit: int | None = None, allow_special: bool = True
    ) -> list[int]:
        """Token ids of a prompt. An empty prompt becomes the beginning-of-text token.

        `limit` is the maximum number of tokens; the context length is always a limit. Special
        tokens in the prompt (`<|endoftext|>`) are recognized unless `allow_special` is False.

        Raises:
            InvalidPrompt: `prompt` is not a string, or it is empty and the model has no
                beginning-of-text token.
            PromptTooLong: the prompt exceeds the limit.
            TokenizerError: the tokenizer is missing, has token ids that the model does not, or
                cannot encode this prompt.
        """
        limit = min(limit or self.config.n_positions, self.config.n_positions)
        tokenizer = self.tokenizer
        lower_bound = tokenizer.min_tokens(prompt) if isinstance(prompt, str) else 0
        if lower_bound > limit:  # encoding megabytes of text would take seconds
            raise PromptTooLong(lower_bound, limit, at_least=True)
        ids = tokenizer.encode(prompt, allow_special)
        if len(ids) > limit:
            raise PromptTooLong(len(ids), limit)
        if max(ids, default=0) >= self.config.vocab_size:
            raise TokenizerError(
                f"token id {max(ids)} is outside the model's vocabulary of "
                f"{self.config.vocab_size}: tokenizer and model do not match",
                file=self.model_dir,
            )
        return self.checked_ids(ids)

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 20,
        stop: str | Sequence[str] = (),
        deadline: float | None = None,
        allow_special: bool = True,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> Generation:
        """Continue `prompt` and return the whole continuation. The default is greedy decoding.

        Args:
            prompt: text, or token ids as `encode_prompt` returns them.
            max_new_tokens: maximum number of new tokens; the text also ends at the model's context.
            stop: strings that end the text; it is cut before the first one that occurs.
            deadline: `time.monotonic()` seconds at which decoding ends with the text so far.
            allow_special: whether special tokens in a text prompt are recognized.
            logprobs: return `Generation.logprobs` with this many of the most likely tokens (0-5).
            prompt_logprobs: return `Generation.prompt_logprobs` too.
            **sampling: see `SamplingOptions`.

        Raises:
            InvalidArgument: an argument has the wrong type or range; `param` names it.
            InvalidPrompt, PromptTooLong, TokenizerError: see `encode_prompt`.
            CheckpointError: a logit is NaN.
        """
        limits = max_new_tokens, stop, deadline, allow_special, logprobs, prompt_logprobs
        return self.generate_batch([prompt], *limits, **sampling)[0]

    def stream(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 20,
        stop: str | Sequence[str] = (),
        deadline: float | None = None,
        allow_special: bool = True,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> Iterator[Token | Generation]:
        """Yield every `Token` once its text is final, then the `Generation`.

        Arguments and errors as for `generate`. Invalid arguments raise before this returns.
        """
        limits = max_new_tokens, stop, deadline, allow_special, logprobs, prompt_logprobs
        return stream(self.scheduler(), *self._prompts([prompt], *limits, sampling))

    def generate_batch(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int = 20,
        stop: str | Sequence[str] = (),
        deadline: float | None = None,
        allow_special: bool = True,
        logprobs: int | None = None,
        prompt_logprobs: bool = False,
        **sampling: Unpack[SamplingOptions],
    ) -> list[Generation]:
        """Continue all prompts in shared passes. Arguments and errors as for `generate`.

        All prompts are validated before decoding starts. With the compiled kernels each result
        equals that of the prompt alone. With NumPy, rounding can change a token whose two best
        logits are nearly equal. A given seed is used for every prompt; without one each prompt has
        its own.
        """
        if isinstance(prompts, (str, bytes)):
            raise InvalidArgument("prompts is a string, not a list of prompts", param="prompts")
        limits = max_new_tokens, stop, deadline, allow_special, logprobs, prompt_logprobs
        return collect(self.scheduler(), self._prompts(prompts, *limits, sampling))

    def generate_ids(self, ids: Sequence[int], max_new_tokens: int) -> list[int]:
        """Greedy decoding from ids to new ids; needs no tokenizer.

        Ends at the end-of-text token, which is left out, or at the end of the context.

        Raises:
            InvalidArgument, InvalidPrompt, PromptTooLong, CheckpointError: as for `generate`.
        """
        self.read_ahead()
        check_count(max_new_tokens)
        scheduler = Scheduler(self._forward, self.config, None, prompt_lookup=self._prompt_lookup)
        return collect(scheduler, [Prompt(0, self.checked_ids(ids), max_new_tokens)])[0].ids

    def scheduler(self) -> Scheduler:
        """Create a `Scheduler` for sequences that share passes over this model's weights.

        Its prompts hold ids as `encode_prompt` returns them.

        Raises:
            TokenizerError: the directory has no tokenizer.
        """
        self.read_ahead()
        return Scheduler(
            self._forward, self.config, self.tokenizer, prompt_lookup=self._prompt_lookup
        )

    def logits(self, ids: Sequence[int]) -> "Float32":
        """float32 [n_tokens, vocab_size]: row i scores the token after `ids[: i + 1]`.

        Raises:
            InvalidPrompt, PromptTooLong: as for `generate`.
            CheckpointError: a logit is NaN.
        """
        from gpt2core.model import all_logits

        self.read_ahead()
        return all_logits(self._forward, self.config, self.checked_ids(ids))

    def _prompts(
        self,
        prompts: Sequence[str | Sequence[int]],
        max_new_tokens: int,
        stop: str | Sequence[str],
        deadline: float | None,
        allow_special: bool,
        logprobs: int | None,
        prompt_logprobs: bool,
        options: SamplingOptions,
    ) -> list[Prompt]:
        """Validated prompts; the key of each is its index in the list."""
        self.read_ahead()
        stops = checked_stops(stop)
        check_deadline(deadline)
        check_count(max_new_tokens)
        logprobs = checked_logprobs(logprobs, prompt_logprobs)
        sampling = checked_sampling(options, self.config.vocab_size)
        has_seed = options.get("seed") is not None
        if not has_seed:
            sampling = sampling._replace(seed=int.from_bytes(os.urandom(8), "little"))
        return [
            Prompt(
                i,
                self._prompt_ids(prompt, allow_special),
                max_new_tokens,
                stops,
                deadline,
                sampling if has_seed else sampling._replace(choice=i),
                logprobs,
                bool(prompt_logprobs),
            )
            for i, prompt in enumerate(prompts)
        ]

    def _prompt_ids(self, prompt: str | Sequence[int], allow_special: bool) -> list[int]:
        if not isinstance(prompt, str):
            return self.checked_ids(prompt)
        return self.encode_prompt(prompt, allow_special=allow_special)

    def checked_ids(self, ids: Sequence[int], limit: int | None = None) -> list[int]:
        """Validate the token ids of a prompt. `limit` and errors as for `encode_prompt`."""
        if isinstance(ids, (str, bytes)) or not hasattr(ids, "__iter__"):
            raise InvalidPrompt(
                f"the prompt is of type {type(ids).__name__}, not a string or a list of token ids",
                param="prompt",
            )
        config = self.config
        checked = []
        for i in ids:
            try:  # NumPy's integers are accepted
                number = -1 if isinstance(i, bool) else index(i)
            except TypeError:
                number = -1
            if not 0 <= number < config.vocab_size:
                raise InvalidPrompt(
                    f"token id {i!r} is not an integer from 0 to {config.vocab_size - 1}",
                    param="prompt",
                )
            checked.append(number)
        limit = min(limit or config.n_positions, config.n_positions)
        if len(checked) > limit:
            raise PromptTooLong(len(checked), limit)
        if checked:
            return checked
        if config.bos_token_id is None or config.bos_token_id >= config.vocab_size:
            raise InvalidPrompt(
                "the prompt is empty and the model has no beginning-of-text token: send some text",
                param="prompt",
            )
        return [config.bos_token_id]


def import_kernels(kernels: str) -> "type[NativeForward | NumPyForward]":
    """Import and return the forward pass for these kernels. `Engine.open` calls this, too.

    Raises:
        InvalidArgument: see `Engine.open`.
    """
    if _choose_kernels(kernels):
        from gpt2core.kernels.native import NativeForward

        return NativeForward
    from gpt2core.model import NumPyForward

    return NumPyForward


def _choose_kernels(kernels: str) -> bool:
    """Whether to use the compiled kernels."""
    if kernels not in CHOICES:
        raise InvalidArgument(
            f"kernels {kernels!r} is not one of {', '.join(CHOICES)}", param="kernels"
        )
    if kernels == "numpy":
        return False
    native = choose_native()
    if kernels == "native" and not native.instruction_set:
        problem = f"the native kernels {native.reason}; use 'auto' or 'numpy'"
        raise InvalidArgument(problem, param="kernels")
    return native.instruction_set is not None
