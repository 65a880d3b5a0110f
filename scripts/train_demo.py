"""Train the demo model: a small GPT-2 for fairy tales, with its own vocabulary.

    python scripts/train_demo.py --corpus ../shared/data/corpus --out models/demo --minutes 60

Reads every `*.txt` of the corpus (paragraphs separated by blank lines), splits it into tales at the
headings, holds out every 20th tale, trains a byte-level BPE vocabulary on the rest and then the
model: Muon for the matrices, AdamW for all other parameters. Writes the parameters with the lowest
held-out loss to a Hugging Face directory in float16.

Runs on CPUs in the reference environment (torch, transformers, tokenizers). The time is limited, so
the number of steps and the weights depend on the machine.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, GPT2LMHeadModel

END_OF_TEXT = "<|endoftext|>"
HELD_OUT_EVERY = 20
# Replace typographic marks with ASCII, which users type in prompts.
ASCII_MARKS = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "—": "--", "_": None})
EDITORIAL = (
    "Contents",
    "Edited by",
    "Source",
    "Parallel",
    "Remarks",
    "[Footnote",
    "Footnote",
    "(1",
)


@dataclass(frozen=True)
class Corpus:
    """The training tales, the held-out tales, and the titles of their books."""

    train: list[str]
    held_out: list[str]
    books: list[str]


def is_heading(paragraph: str) -> bool:
    """Whether a paragraph is a title, a table of contents or an editor's note."""
    letters = [c for c in paragraph if c.isalpha()]
    is_upper = sum(c.isupper() for c in letters) > 0.6 * len(letters)
    title = len(paragraph) < 70 and (paragraph[-1].isalnum() or paragraph.startswith("Chapter"))
    return not letters or is_upper or title or paragraph.startswith(EDITORIAL)


def split_tales(text: str) -> Iterator[str]:
    """The tales of one book: the paragraphs between headings, if longer than 600 characters."""
    tale: list[str] = []
    for paragraph in [*text.translate(ASCII_MARKS).split("\n\n"), "THE END"]:
        line = " ".join(paragraph.split())
        if line and not is_heading(line):
            tale.append(line)
        elif line and tale:
            if sum(map(len, tale)) > 600:
                yield "\n\n".join(tale)
            tale = []


def read_corpus(folder: Path) -> Corpus:
    """Read the books in `folder`; the order of the tales is fixed."""
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise SystemExit(
            f"no *.txt files in {folder}: set --corpus to a folder of books in plain text"
        )
    tales = [tale for path in paths for tale in split_tales(path.read_text("utf-8"))]
    return Corpus(
        train=[tale for i, tale in enumerate(tales) if i % HELD_OUT_EVERY],
        held_out=tales[::HELD_OUT_EVERY],
        books=[path.stem for path in paths],
    )


def train_tokenizer(tales: list[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE like GPT-2's: 256 bytes, the merges, the end-of-text token."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(tales, trainer)
    tokenizer.add_special_tokens([END_OF_TEXT])
    return tokenizer


def to_ids(tokenizer: Tokenizer, tales: list[str]) -> torch.Tensor:
    """All tales as one int64 [n_tokens], each after an end-of-text token."""
    end = tokenizer.token_to_id(END_OF_TEXT)
    return torch.tensor(
        [i for e in tokenizer.encode_batch(tales) for i in (end, *e.ids)], dtype=torch.int64
    )


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, ids: torch.Tensor, n_seq: int) -> float:
    """Mean cross-entropy in nats per token over `ids`, in windows of `n_seq` without overlap."""
    model.eval()
    n = (len(ids) - 1) // n_seq
    x = ids[: n * n_seq].view(n, n_seq)
    y = ids[1 : n * n_seq + 1].view(n, n_seq)
    total = 0.0
    for i in range(0, n, 16):
        logits = model(x[i : i + 16]).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), y[i : i + 16].flatten(), reduction="sum"
        )
        total += loss.item()
    model.train()
    return total / (n * n_seq)


def rate(elapsed: float) -> float:
    """The learning rate as a fraction of its peak; `elapsed` is a fraction of the total time.

    A short warm-up, a plateau, and a linear decrease to zero in the last 60 %.
    """
    return min(1.0, elapsed / 0.02 + 0.02) * min(1.0, (1.0 - elapsed) / 0.6)


def optimizers(model: GPT2LMHeadModel, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices in the blocks, AdamW for embeddings, norms and biases."""
    matrices = [p for n, p in model.named_parameters() if ".h." in n and p.ndim == 2]
    others = [p for n, p in model.named_parameters() if not (".h." in n and p.ndim == 2)]
    decay = [p for p in others if p.ndim == 2]
    plain = [p for p in others if p.ndim < 2]
    muon = torch.optim.Muon(
        matrices, lr=lr, weight_decay=0.1, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=lr,
        betas=(0.9, 0.95),
    )
    return [muon, adamw]


def train(
    model: GPT2LMHeadModel, ids: torch.Tensor, val: torch.Tensor, args: argparse.Namespace
) -> tuple[float, int]:
    """Train for `args.minutes` and load the best parameters.

    Returns the lowest held-out loss (nats per token) and the number of training tokens.
    """
    n_seq = model.config.n_positions
    rng = np.random.default_rng(args.seed)
    all_optimizers = optimizers(model, args.lr)
    forward = torch.compile(model) if args.compile else model
    best, best_state, tokens, step = math.inf, model.state_dict(), 0, 0
    start, seconds = time.monotonic(), args.minutes * 60
    next_check = args.check_minutes * 60
    while True:
        elapsed = time.monotonic() - start
        last = elapsed >= seconds
        if elapsed >= next_check or last:
            next_check += args.check_minutes * 60
            loss_now = held_out_loss(model, val, n_seq)
            if loss_now < best:
                best = loss_now
                best_state = {k: v.clone() for k, v in model.state_dict().items()}
            print(f"{elapsed / 60:5.1f} min  held-out {loss_now:.4f}  best {best:.4f}", flush=True)
        if last:
            break
        for optimizer in all_optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * max(rate(elapsed / seconds), 1e-3)
        starts = rng.integers(0, len(ids) - n_seq - 1, args.batch)
        x = torch.stack([ids[i : i + n_seq] for i in starts])
        y = torch.stack([ids[i + 1 : i + n_seq + 1] for i in starts])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = forward(x).logits
        loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), y.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in all_optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step, tokens = step + 1, tokens + x.numel()
        if step % 20 == 0:
            speed = tokens / (time.monotonic() - start)
            epochs = tokens / len(ids)
            print(
                f"{elapsed / 60:5.1f} min  step {step}  loss {loss.item():.3f}"
                f"  {speed:.0f} tokens/s  epoch {epochs:.2f}",
                flush=True,
            )
    model.load_state_dict(best_state)
    return best, tokens


def save(model: GPT2LMHeadModel, tokenizer: Tokenizer, out: Path) -> None:
    """Write config, float16 weights and tokenizer in the layout of `transformers`."""
    out.mkdir(parents=True, exist_ok=True)
    model.config.activation_function = "gelu_new"  # GPT-2's own name of the same formula
    model.config.use_cache = model.generation_config.use_cache = True
    model.half().save_pretrained(out, safe_serialization=True)
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "model_max_length": model.config.n_positions,
    }
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder of *.txt books")
    parser.add_argument("--out", type=Path, required=True, help="model directory to write")
    parser.add_argument("--minutes", type=float, default=60.0, help="time to train (default 60)")
    parser.add_argument("--check-minutes", type=float, default=3.0, help="between evaluations")
    parser.add_argument("--vocab-size", type=int, default=2048)
    parser.add_argument("--n-layer", type=int, default=5)
    parser.add_argument("--n-embd", type=int, default=256)
    parser.add_argument("--n-head", type=int, default=4)
    parser.add_argument("--n-positions", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8, help="windows per step")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--compile", action="store_true", help="torch.compile (needs a compiler)")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    torch.manual_seed(args.seed)
    corpus = read_corpus(args.corpus)
    tokenizer = train_tokenizer(corpus.train, args.vocab_size)
    ids, val = to_ids(tokenizer, corpus.train), to_ids(tokenizer, corpus.held_out)
    val_bytes = sum(len(tale.encode()) for tale in corpus.held_out)
    end = tokenizer.token_to_id(END_OF_TEXT)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=args.n_positions,
        n_embd=args.n_embd,
        n_layer=args.n_layer,
        n_head=args.n_head,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=args.dropout,
        embd_pdrop=args.dropout,
        attn_pdrop=0.0,
        bos_token_id=end,
        eos_token_id=end,
        use_cache=False,
    )
    model = GPT2LMHeadModel(config)
    n_params = sum(p.numel() for p in model.parameters())
    print(
        f"{len(corpus.books)} books, {len(corpus.train)} tales to train on, "
        f"{len(corpus.held_out)} held out; {len(ids)} + {len(val)} tokens, {n_params} parameters"
    )
    best, tokens = train(model, ids, val, args)
    per_byte = best * len(val) / val_bytes / math.log(2)
    print(f"held-out loss {best:.4f} nats per token, {per_byte:.3f} bits per byte, {tokens} tokens")
    save(model, tokenizer, args.out)


if __name__ == "__main__":
    main()
