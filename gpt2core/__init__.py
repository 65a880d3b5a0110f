"""GPT-2 inference on the CPU, with compiled kernels or NumPy.

Takes a Hugging Face model directory; returns text and token ids.

    from gpt2core import Engine
    engine = Engine.open("models/demo")
    print(engine.generate("Once upon a time", max_new_tokens=40).text)

Importing this package loads neither NumPy nor `tokenizers`. Names are resolved on first use, so a
process can start, answer a health check or reject bad input without them.
"""

from gpt2core.startup.slim_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpt2core.config import GPT2Config
    from gpt2core.engine import Engine
    from gpt2core.errors import GPT2Error
    from gpt2core.generation import Generation, Token
    from gpt2core.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["Engine", "GPT2Config", "GPT2Error", "Generation", "Token", "Tokenizer", "__version__"]

_MODULES = {
    "Engine": "engine",
    "GPT2Config": "config",
    "GPT2Error": "errors",
    "Generation": "generation",
    "Token": "generation",
    "Tokenizer": "tokenizer",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module  # already loaded by the interpreter

    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
