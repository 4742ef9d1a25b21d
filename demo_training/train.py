"""Trains the embedded demo model from scratch and measures it.

A script, run by hand from the project's folder. It needs no more than torch, transformers, tokenizers, PyYAML and this
folder.

    python -m demo_training.train                       # minutes on one GPU; slow on a CPU
    python -m demo_training.train --out /tmp/m --card /tmp/card.md --steps 20 --batch 16 --validation 20    # a trial

Each problem is read once as `Question: {question}\\nAnswer: {answer}<|endoftext|>`, with the loss on all tokens. Rows
are padded on the right in batches of similar length. Held-out questions (see problems.py) are never trained on.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

import tokenizers
import torch
import transformers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from demo_training import measure
from demo_training.problems import FOLDER, TRAIN_SEED, Row, demo_rows, rows, validation_rows

EOS, PAD = "<|endoftext|>", "<|pad|>"
CONTEXT, VOCABULARY = 512, 1024
SHAPE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 4}
PEAK_RATE, LOWEST_SHARE, WARMUP = 2e-3, 0.1, 100
DECAY, BETAS, CLIP = 0.1, (0.9, 0.95), 1.0
TOKENIZER_ROWS = 20_000
QWEN2_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
POOL = 32
"""Batches that are sorted by length together."""


def text_of(row: Row) -> str:
    return f"Question: {row.question}\nAnswer: {row.answer}{EOS}"


def make_tokenizer(texts: Sequence[str]) -> Any:
    """A byte-level BPE in which every digit is a token of its own."""
    tokenizer: Any = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[EOS, PAD], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator((text.removesuffix(EOS) for text in texts), trainer)
    # Newer transformers give every model of type qwen2 this pre-tokenizer, whatever its file says. The file says so
    # too, that all versions agree; the merges are not trained with it, so that a line's end stays a token of its own.
    split = pre_tokenizers.Split(tokenizers.Regex(QWEN2_WORDS), behavior="isolated")
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, model_max_length=CONTEXT, padding_side="left"
    )


def make_model(tokenizer: Any) -> Any:
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **SHAPE,
    )
    return Qwen2ForCausalLM(config)


def batches(rows: list[list[int]], size: int, seed: int) -> Iterator[list[list[int]]]:
    """Every row once, in batches of similar length, in an order that `seed` decides."""
    rng = Random(seed)
    for start in range(0, len(rows), POOL * size):
        pool = sorted(rows[start : start + POOL * size], key=len)
        parts = [pool[at : at + size] for at in range(0, len(pool), size)]
        rng.shuffle(parts)
        yield from parts


def loss_of(model: Any, batch: list[list[int]], pad: int) -> tuple[torch.Tensor, int]:
    """Sum of -log p in nats over the predicted tokens, and their number."""
    padded = pad_sequence([torch.tensor(row) for row in batch], batch_first=True, padding_value=pad)
    ids = padded.to(model.device, non_blocking=True)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=model.device.type == "cuda"):
        logits = model(ids[:, :-1], use_cache=False).logits
    total = cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), ignore_index=pad, reduction="sum")
    return total, sum(len(row) - 1 for row in batch)


def rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then a cosine."""
    warmup = min(WARMUP, max(1, steps // 4))
    if step < warmup:
        return (step + 1) / warmup
    turn = (step - warmup) / max(1, steps - warmup)
    return LOWEST_SHARE + (1 - LOWEST_SHARE) * 0.5 * (1 + math.cos(math.pi * turn))


def train(model: Any, rows: list[list[int]], pad: int, args: argparse.Namespace) -> dict[str, float]:
    """One pass over the rows. Returns seconds, tokens and the mean loss of the last tenth."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": DECAY}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_RATE, betas=BETAS)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(step, args.steps))
    began, tokens, losses = time.monotonic(), 0, []
    model.train()
    for step, batch in enumerate(batches(rows, args.batch, args.seed)):
        total, count = loss_of(model, batch, pad)
        loss = total / count
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += count
        losses.append(loss.detach())
        if step % 100 == 0 or step == args.steps - 1:
            seconds = time.monotonic() - began
            print(f"step {step} loss {loss.item():.4f} tokens/s {tokens / seconds:,.0f}", flush=True)
    last = torch.stack(losses)[-max(1, len(losses) // 10) :]
    return {"seconds": time.monotonic() - began, "tokens": tokens, "train_loss": last.mean().item()}


@torch.inference_mode()
def validation_loss(model: Any, rows: list[list[int]], pad: int) -> float:
    parts = [loss_of(model, rows[at : at + 250], pad) for at in range(0, len(rows), 250)]
    return sum(total.item() for total, _ in parts) / sum(count for _, count in parts)


def fill_card(card: Path, block: str) -> None:
    """Put the measured numbers between the card's two marks."""
    head, begin, rest = card.read_text(encoding="utf-8").partition("<!-- measured -->\n")
    _, end, tail = rest.partition("<!-- end -->")
    if not begin or not end:
        raise SystemExit(f"{card} has no lines <!-- measured --> and <!-- end --> to put the numbers between.")
    card.write_text(head + begin + block + "\n" + end + tail, encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER / "model")
    parser.add_argument("--card", type=Path, default=FOLDER / "MODEL_CARD.md")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--batch", type=int, default=256, help="problems a step")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validation", type=int, default=1000, help="held-out problems to measure on")
    parser.add_argument("--moves", type=int, default=10, help="moves of the reference power sampler")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(args.seed)
    stream = islice(rows(TRAIN_SEED, held=False), max(args.steps * args.batch, TOKENIZER_ROWS))
    texts = [text_of(row) for row in stream]
    tokenizer = make_tokenizer(texts[:TOKENIZER_ROWS])
    ids: list[list[int]] = tokenizer(texts[: args.steps * args.batch])["input_ids"]
    held = validation_rows(args.validation)
    pad = tokenizer.convert_tokens_to_ids(PAD)
    model = make_model(tokenizer).to(args.device)
    results = train(model, ids, pad, args)
    model.eval().to(torch.bfloat16).save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    for file in args.out.iterdir():
        file.chmod(0o644)

    saved = AutoModelForCausalLM.from_pretrained(args.out, dtype=torch.float32).eval().to(args.device)
    results["validation_loss"] = validation_loss(saved, tokenizer([text_of(row) for row in held])["input_ids"], pad)
    facts: dict[str, Any] = {
        "parameters": sum(p.numel() for p in saved.parameters()),
        "steps": args.steps,
        "problems a step": args.batch,
        "training tokens": results["tokens"],
        "training seconds": round(results["seconds"]),
        "training loss (nats a token, last tenth)": results["train_loss"],
        "validation loss (nats a token)": results["validation_loss"],
        "date": datetime.now(UTC).date().isoformat(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else platform.processor() or "cpu",
        "versions": ", ".join(f"{lib.__name__} {lib.__version__}" for lib in (torch, transformers, tokenizers)),
    }
    subject = measure.Subject(saved, tokenizer, torch.Generator(args.device).manual_seed(args.seed))
    validation, _ = measure.measured(subject, held)
    print(validation, flush=True)
    test, accepted = measure.measured(subject, demo_rows(), args.moves)
    lines = "\n".join(f"| {k} | {f'{v:.4g}' if isinstance(v, float) else v} |" for k, v in facts.items())
    block = (
        f"| what | value |\n|---|---|\n{lines}\n\n"
        f"{len(held)} held-out problems that are not among the 200:\n\n{validation}\n\n"
        f"The 200 problems of `problems.jsonl` (share of accepted moves, null moves included: {accepted:.2f}):\n\n"
        f"{test}"
    )
    fill_card(args.card, block)
    print(block)


if __name__ == "__main__":
    main()
