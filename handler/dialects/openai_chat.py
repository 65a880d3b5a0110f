"""OpenAI's chat completions: a 404 error in OpenAI's format, because GPT-2 is not a chat model."""

from collections.abc import Mapping

from gpt2core.startup.slim_typing import Any, NoReturn
from handler.dialects.openai import COMPLETIONS, OpenAI
from handler.errors import RouteNotFound


class Chat(OpenAI):
    """See `Dialect`."""

    routes: Mapping[str, tuple[str, ...]] = {"/v1/chat/completions": ("POST",)}
    is_supported = False

    def parse(self, fields: Mapping[str, Any]) -> NoReturn:  # noqa: ARG002
        """Raise `RouteNotFound`."""
        raise RouteNotFound(
            "chat completions are not supported: GPT-2 continues text and has no chat template."
            f" Send the text as prompt to {COMPLETIONS}"
        )

    def describe(self) -> dict[str, Any]:
        """See `Dialect`."""
        return {
            "summary": "Not supported: GPT-2 continues text and has no chat template",
            "error": super().describe()["error"],
        }


DIALECT = Chat()
