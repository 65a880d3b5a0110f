"""Text to ids and back: `Tokenizer`."""

from gpt2core.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
