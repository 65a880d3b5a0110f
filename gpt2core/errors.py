"""The exceptions of the core.

`str(error)` is one line: the file or argument at fault, what is wrong with it, and the fix unless
it is obvious. `param` names the argument at fault, if there is one. Callers map the types to HTTP
statuses or exit codes.
"""


class GPT2Error(Exception):
    """Base class of all errors that this project raises on purpose."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        # A message may quote input, and a lone surrogate cannot be encoded.
        self.message = message.encode("utf-8", "backslashreplace").decode()
        self.param = param
        super().__init__(self.message)


# Problems that begin with a verb have the file, the field or the tensor as their subject.
_VERBS = ("is ", "has ", "cannot ", "was ", "begins ", "ends ")


def _message(subject: str, problem: str) -> str:
    if not subject:
        return problem
    return f"{subject}{' ' if problem.startswith(_VERBS) else ': '}{problem}"


class ModelError(GPT2Error):
    """A model directory cannot be used. `file` is the file at fault, or ""."""

    def __init__(self, problem: str, *, file: str = "") -> None:
        super().__init__(_message(file, problem))
        self.problem = problem
        self.file = file


class ConfigError(ModelError):
    """`config.json` is invalid or needs an unsupported feature. `field` names the entry."""

    def __init__(self, problem: str, *, file: str = "", field: str = "") -> None:
        super().__init__(_message(field, problem), file=file)
        self.field = field


class CheckpointError(ModelError):
    """A weights file is invalid or does not match `config.json`. `tensor` names the tensor."""

    def __init__(self, problem: str, *, file: str = "", tensor: str = "") -> None:
        # The name comes from the file: `ascii` keeps control characters out of terminals.
        super().__init__(_message(f"tensor {tensor!a}" if tensor else "", problem), file=file)
        self.tensor = tensor


class PackedFormatError(CheckpointError):
    """A packed file was written by another version of this project."""


class TokenizerError(ModelError):
    """The tokenizer files are missing, invalid or not byte-level BPE."""


class TablesFormatError(TokenizerError):
    """A compiled tokenizer was written by another version of this project."""


class InvalidArgument(GPT2Error, ValueError):
    """An argument has the wrong type or range; `param` names it."""


class InvalidPrompt(InvalidArgument):
    """The model cannot start from this prompt."""


class PromptTooLong(GPT2Error):
    """The prompt has more tokens than the limit.

    With `at_least`, `prompt_tokens` is a lower bound: the text was too long to encode.
    """

    def __init__(self, prompt_tokens: int, limit: int, *, at_least: bool = False) -> None:
        count = f"at least {prompt_tokens}" if at_least else prompt_tokens
        super().__init__(
            f"the prompt has {count} tokens and the limit is {limit}: shorten it", param="prompt"
        )
        self.prompt_tokens = prompt_tokens
        self.limit = limit
