"""Everything that can go wrong in the core, as types that carry their data.

`str(error)` is one sentence for people that names the bad value and the fix. `param` names the
argument at fault where there is one. Callers map types to their own world (HTTP statuses, exit
codes); nothing here knows of either.
"""


class GPT2Error(Exception):
    """Base of every error that this project raises on purpose."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        # A message may quote what arrived, and half of a surrogate pair cannot be written anywhere.
        self.message = message.encode("utf-8", "backslashreplace").decode()
        self.param = param
        super().__init__(self.message)


class ModelError(GPT2Error):
    """A model directory that cannot be used. `file` is the file at fault, "" if none is."""

    def __init__(self, problem: str, *, file: str = "") -> None:
        super().__init__(f"{file}: {problem}" if file else problem)
        self.problem = problem
        self.file = file


class ConfigError(ModelError):
    """`config.json` is broken or asks for what is not implemented. `field` names the entry."""

    def __init__(self, problem: str, *, file: str = "", field: str = "") -> None:
        super().__init__(f"{field}: {problem}" if field else problem, file=file)
        self.field = field


class CheckpointError(ModelError):
    """A weights file is broken, hostile or does not fit `config.json`. `tensor` names the one."""

    def __init__(self, problem: str, *, file: str = "", tensor: str = "") -> None:
        # A tensor's name comes from the file: `ascii` keeps control characters out of terminals.
        super().__init__(f"tensor {tensor!a}: {problem}" if tensor else problem, file=file)
        self.tensor = tensor


class TokenizerError(ModelError):
    """The tokenizer files are missing, broken or of another kind than byte-level BPE."""


class InvalidArgument(GPT2Error, ValueError):
    """An argument outside of what the function accepts; `param` names it."""


class InvalidPrompt(InvalidArgument):
    """A prompt that the model cannot start from."""


class PromptTooLong(GPT2Error):
    """More prompt tokens than the limit. Carries both numbers.

    With `at_least`, `prompt_tokens` is what a text of its length must have and it may have more.
    """

    def __init__(self, prompt_tokens: int, limit: int, *, at_least: bool = False) -> None:
        count = f"at least {prompt_tokens}" if at_least else prompt_tokens
        super().__init__(
            f"the prompt has {count} tokens and the limit is {limit}: shorten it", param="prompt"
        )
        self.prompt_tokens = prompt_tokens
        self.limit = limit
