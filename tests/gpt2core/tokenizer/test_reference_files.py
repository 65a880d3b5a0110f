"""Any combination of tokenizer files, compared with `AutoTokenizer` of `transformers`."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as RustTokenizer

from gpt2core import Tokenizer
from gpt2core.errors import TokenizerError
from gpt2core.tokenizer.bpe import byte_alphabet
from tests.support.models import END_OF_TEXT, small_config
from tests.support.tokenizers import compiled

pytestmark = [pytest.mark.reference, pytest.mark.filterwarnings("ignore")]

CONTENTS = ["<user>", "<bot>", "<s>", "</s>", "<pad>", "<unk>", END_OF_TEXT, "ab", "a", "é", "\n",
            "Ġx", "cat", "<|im_start|>", " x"]  # fmt: skip
TEXTS = [*CONTENTS, " ", "  ", "b", "x", "\t", "²", "_", "1", "\u3000", "\u00a0", "<", ">"]
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token", "mask_token", "sep_token")


class Files:
    """Random tokenizer files."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.vocab = {**byte_alphabet(), "ab": 256, "Ġa": 257}
        for content in (END_OF_TEXT, "<bot>"):
            if self.maybe(0.5):
                self.vocab[content] = len(self.vocab)
        self.files: dict[str, Any] = {"config.json": small_config()}
        is_whole = self.maybe(0.5)
        if is_whole:
            self.files["tokenizer.json"] = self.whole()
        else:
            self.files |= {"vocab.json": self.vocab, "merges.txt": "#version: 0.2\na b\nĠ a\n"}
        if self.maybe(0.7):
            self.files["tokenizer_config.json"] = self.settings(is_whole)
        if self.maybe(0.4):
            self.files["special_tokens_map.json"] = self.names()
        if self.maybe(0.4):
            added = dict.fromkeys(self.draw.choices(CONTENTS, k=3))
            ids = {content: len(self.vocab) + i for i, content in enumerate(added)}
            self.files["added_tokens.json"] = ids

    def maybe(self, share: float) -> bool:
        return self.draw.random() < share

    def token(self) -> dict[str, Any]:
        flags = ("lstrip", "rstrip", "single_word", "normalized", "special")
        return {"content": self.draw.choice(CONTENTS)} | {f: self.maybe(0.3) for f in flags}

    def named(self) -> Any:
        return self.draw.choice(
            [self.draw.choice(CONTENTS), None, {"__type": "AddedToken", **self.token()}]
        )

    def whole(self) -> str:
        rust = RustTokenizer(models.BPE(vocab=self.vocab, merges=[("a", "b"), ("Ġ", "a")]))
        rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=self.maybe(0.3))
        rust.decoder = decoders.ByteLevel()
        if self.maybe(0.3):
            rust.post_processor = processors.ByteLevel(trim_offsets=False)
        elif self.maybe(0.3):
            around = processors.TemplateProcessing(single="a $A", special_tokens=[("a", 97)])
            rust.post_processor = around
        rust.add_tokens([AddedToken(**self.token()) for _ in range(self.draw.randrange(4))])
        return rust.to_str()

    def settings(self, is_whole: bool) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        classes = ["GPT2Tokenizer", "GPT2TokenizerFast"]
        if self.maybe(0.4):
            generic = ["PreTrainedTokenizerFast", "TokenizersBackend"] if is_whole else []
            fields["tokenizer_class"] = self.draw.choice(classes + generic)
        flags = ("add_prefix_space", "add_bos_token", "add_eos_token", "split_special_tokens")
        fields |= {flag: self.maybe(0.5) for flag in flags if self.maybe(0.25)}
        fields |= {name: self.named() for name in NAMED if self.maybe(0.2)}
        if self.maybe(0.2):
            fields["image_token"] = self.draw.choice(CONTENTS)
        more = [
            None,
            [],
            self.draw.choices(CONTENTS, k=2),
            [{"__type": "AddedToken", **self.token()}],
        ]
        if self.maybe(0.3):
            fields["additional_special_tokens"] = self.draw.choice(more)
        if self.maybe(0.2):
            named = {"foo_token": self.draw.choice(CONTENTS)}
            fields["extra_special_tokens"] = self.draw.choice([[], ["<user>"], named])
        if self.maybe(0.3):
            ids = range(len(self.vocab), len(self.vocab) + self.draw.randrange(4))
            fields["added_tokens_decoder"] = {str(i): self.token() for i in ids}
        return fields

    def names(self) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for name in ("bos_token", "eos_token", "pad_token", "cls_token"):
            if self.maybe(0.4):
                fields[name] = self.draw.choice([self.draw.choice(CONTENTS), self.token()])
        if self.maybe(0.4):
            fields["additional_special_tokens"] = self.draw.choices(CONTENTS, k=2)
        return fields

    def text(self) -> str:
        return "".join(self.draw.choices(TEXTS, k=self.draw.randrange(9)))


@pytest.mark.parametrize("group", range(4))
def test_any_tokenizer_files_give_the_ids_and_texts_of_the_reference(
    tmp_path: Path, group: int
) -> None:
    from transformers import AutoTokenizer

    compared = 0
    for seed in range(100 * group, 100 * group + 100):
        drawn = Files(seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        for name, content in drawn.files.items():
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
        try:
            raw = Tokenizer.open(folder)
        except TokenizerError as error:
            if "cannot have id" not in str(error):
                raise
            continue
        theirs = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        packed = compiled(folder, tmp_path / f"{seed}-packed")
        for _ in range(40):
            text, ids = drawn.text(), [97]
            for allow in (True, False):
                options = {} if allow else {"split_special_tokens": True}
                try:
                    ids = raw.encode(text, allow_special=allow)
                except TokenizerError:
                    continue  # the package panics
                assert theirs(text, **options)["input_ids"] == ids, (seed, text, allow)
                assert packed.encode(text, allow_special=allow) == ids, (seed, text, allow)
            for skip in (True, False):
                expected = theirs.decode(ids, skip_special_tokens=skip)
                assert raw.decode(ids, skip_special=skip) == expected, (seed, text)
                assert packed.decode(ids, skip_special=skip) == expected, (seed, text)
        compared += 1
    assert compared > 60
