"""Special and added tokens from the optional tokenizer files."""

import os

from gpt2core.config import read_json
from gpt2core.errors import ConfigError, TokenizerError
from gpt2core.files.names import ADDED_TOKENS_FILE, SPECIAL_TOKENS_FILE, TOKENIZER_CONFIG_FILE
from gpt2core.startup.slim_typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as RustTokenizer

END_OF_TEXT = "<|endoftext|>"
# Named special tokens, in the order in which new ones get their ids.
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token",
                "mask_token")  # fmt: skip


class SpecialTokens:
    """The tokens to add to a vocabulary, and the named special tokens."""

    def __init__(
        self,
        folder: str,
        settings: dict[str, Any],
        file_tokens: dict[int, "AddedToken"],
        is_gpt2: bool,
    ) -> None:
        from tokenizers import AddedToken

        self.settings = settings = dict(settings)
        if "additional_special_tokens" in settings and not settings.get("extra_special_tokens"):
            settings["extra_special_tokens"] = settings.pop("additional_special_tokens")
        more = {
            key: settings.pop(key)
            for key, value in list(settings.items())
            if key.endswith("_token") and key not in NAMED_TOKENS and isinstance(value, str)
        }
        if isinstance(settings.get("extra_special_tokens"), dict):
            more |= settings.pop("extra_special_tokens")
        if more:
            settings["model_specific_special_tokens"] = more
        self.decoder: dict[int, AddedToken] = {}
        self._by_content: dict[str, AddedToken] = {}  # also tokens with a duplicate id
        self.file = os.path.join(folder, TOKENIZER_CONFIG_FILE)
        if "added_tokens_decoder" in settings:
            for token_id, token in settings.pop("added_tokens_decoder").items():
                self._add(int(token_id), _token(token))
        else:
            self._read_older_files(folder, file_tokens)
        self.named, self.extra = self._names(is_gpt2)

    def _read_older_files(self, folder: str, file_tokens: dict[int, "AddedToken"]) -> None:
        """Read `special_tokens_map.json` and `added_tokens.json`; add `tokenizer.json`'s tokens."""
        from tokenizers import AddedToken

        settings = self.settings
        for key, value in read_optional(folder, SPECIAL_TOKENS_FILE).items():
            if key == "extra_special_tokens" and isinstance(value, list):
                known = list(settings.get(key) or [])
                tokens = [_token(t, special=True) if isinstance(t, dict) else t for t in value]
                value = known + [token for token in tokens if token not in known]
            elif key != "extra_special_tokens" and isinstance(value, dict):
                value = _token(value, special=True)
            settings[key] = value
        if isinstance(settings.get("extra_special_tokens"), dict):
            specific = settings.setdefault("model_specific_special_tokens", {})
            specific.update(settings.pop("extra_special_tokens"))
        # As `str`: an object in `tokenizer_config.json` does not match any content.
        special = {str(settings[key]) for key in NAMED_TOKENS if settings.get(key)}
        special.update(map(str, settings.get("extra_special_tokens") or []))
        added = read_optional(folder, ADDED_TOKENS_FILE)
        if added:
            self.file = os.path.join(folder, ADDED_TOKENS_FILE)
        for content, token_id in added.items():
            is_special = content in special
            token = AddedToken(content, normalized=not is_special, special=is_special)
            self._add(token_id, token)
        for token_id, token in file_tokens.items():
            self._add(token_id, token)

    def _add(self, token_id: int, token: "AddedToken") -> None:
        self.decoder[token_id] = token
        self._by_content[token.content] = token

    def _names(self, is_gpt2: bool) -> tuple[dict[str, "str | AddedToken"], list[Any]]:
        """Special tokens by name, and those without a name."""
        from tokenizers import AddedToken

        settings = {key: _converted(value) for key, value in self.settings.items()}
        named: dict[str, str | AddedToken] = {}
        for key in NAMED_TOKENS:
            default = is_gpt2 and key in ("bos_token", "eos_token", "unk_token")
            value = settings.pop(key, END_OF_TEXT if default else None)
            if value is None:
                continue
            if not isinstance(value, (str, AddedToken)):
                raise TokenizerError(f"{key} is {value!r}, not a token", file=self.file)
            is_set = key in self.settings
            named[key] = self._by_content.get(_content(value), value) if is_set else value
        specific = settings.pop("model_specific_special_tokens", None) or {}
        named |= {
            key: value
            for key, value in settings.items()
            if key.endswith("_token") and isinstance(value, (str, AddedToken))
        }
        named |= specific
        extra = settings.get("extra_special_tokens")
        if "extra_special_tokens" not in settings:
            extra = settings.get("additional_special_tokens")
        if isinstance(extra, dict):
            named.update(extra)
            extra = None
        return named, list(extra or [])

    def add_to(self, rust: "RustTokenizer") -> None:
        """Add all tokens in one call: each call rebuilds the package's matcher.

        Their order determines the ids, which continue the vocabulary, not the ids in the files.
        """
        from tokenizers import AddedToken

        tokens: list[str | AddedToken] = [token for _, token in sorted(self.decoder.items())]
        known = {token.content for token in rust.get_added_tokens_decoder().values()}
        known.update(map(_content, tokens))
        for token in (*self.named.values(), *self.extra):
            if _content(token) not in known and token not in tokens:
                tokens.append(token)
        names = set(map(_content, self.named.values()))
        added = []
        for token in tokens:
            if isinstance(token, str):
                token = AddedToken(token, special=True)
            elif token.content in names:
                token.special = True
            added.append(token)
        rust.add_tokens(added)

    def check_ids(self, rust: "RustTokenizer") -> None:
        """Check that the added tokens got the ids in their file.

        `transformers` 5 silently renumbers them; older versions used the ids in the file.

        Raises:
            TokenizerError: a token got another id.
        """
        for token_id, token in self.decoder.items():
            got = rust.token_to_id(token.content)
            if token.content and got != token_id:
                raise TokenizerError(
                    f"added token {token.content!r} cannot have id {token_id!r}: ids continue the"
                    f" vocabulary, and the next is {got}",
                    file=self.file,
                )

    def set_post_processor(self, rust: "RustTokenizer") -> None:
        """Add the tokens before and after every text (`add_bos_token`, `add_eos_token`)."""
        from tokenizers import processors

        added = []
        for flag, name in (("add_bos_token", "bos_token"), ("add_eos_token", "eos_token")):
            token = self.named.get(name) if self.settings.get(flag) else None
            added.append(None if token is None else _content(token))
        before, after = added
        if before is None and after is None:
            return
        parts = [f"{before}:0" if before else "", "$A:0", f"{after}:0" if after else ""]
        rust.post_processor = processors.TemplateProcessing(
            single=" ".join(filter(None, parts)),
            special_tokens=[
                (content, rust.token_to_id(content)) for content in {before, after} if content
            ],
        )


def read_optional(folder: str, name: str) -> dict[str, Any]:
    """Read a JSON object; {} if the file is missing."""
    path = os.path.join(folder, name)
    try:
        return read_json(path) if os.path.exists(path) else {}
    except ConfigError as error:
        raise TokenizerError(error.problem, file=path) from error


def _converted(value: Any) -> Any:
    """Convert `{"__type": "AddedToken", …}` to a token, also in lists and objects."""
    if isinstance(value, list):
        return [_converted(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.get("__type") == "AddedToken":
        return _token(value)
    return {key: _converted(item) for key, item in value.items()}


def _token(fields: dict[str, Any], **changes: bool) -> "AddedToken":
    """A token from its fields. Unknown fields are dropped: the package would print them."""
    from tokenizers import AddedToken

    if not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
        raise ValueError(f"{fields!r} is not a token with a content")
    known = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")
    return AddedToken(**{key: fields[key] for key in known if key in fields} | changes)


def _content(token: Any) -> str:
    """The text of a token, which may be given as a string."""
    token = _converted(token)
    return token if isinstance(token, str) else str(token.content)
