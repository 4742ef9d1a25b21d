"""The check at every start: the packed, paged forward pass against the model as it came. Knows no request.

Two sequences of different length are prefilled in one pass, decoded for some steps beside each other, rewound into a
draft, and restored; every logit that comes out is compared with a plain forward pass over the same tokens. This
catches what a configuration does not name; it cannot see errors of windows longer than its sequences.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evals.engine.batch import Layout, Run, layout, pack
from evals.engine.kv_cache import KeysValues, Opening, PagePool
from evals.engine.model import Model

LENGTHS = (5, 21)
"""Prompts: one within a page, one beyond it."""
STEPS = 4
REWIND_TO = 19
"""Inside the second page of the longer sequence."""
FLOAT32_ERROR = 1e-4
"""Largest difference of two logits, as a share of the largest logit."""
KL_ERROR = 1e-2
"""Largest divergence of two next-token laws in nats that is always allowed, for 16-bit types ..."""
KL_FACTOR = 4
"""... and what is allowed beyond it, as a multiple of the divergence between two of the library's own attentions."""


@torch.inference_mode()
def check(model: Model) -> None:
    """Marks the model as checked. Raises UserError naming the architecture if the two forward passes disagree."""
    error, allowed, unit = compare(model)
    if not error <= allowed:
        raise model.refuse(
            f"its packed forward pass disagrees with its plain one ({error:.2g} {unit}; {allowed:.1g} is allowed)"
        )
    model.checked = True


def compare(model: Model) -> tuple[float, float, str]:
    """The largest disagreement seen, what is allowed, and its unit."""
    total = max(LENGTHS) + STEPS
    sequences = [token_ids(total, 7 + i, model.limits.vocab_size) for i in range(2)]
    draft = [*sequences[1][:REWIND_TO], *token_ids(STEPS, 3, model.limits.vocab_size)]
    plain = [model.plain_logits(tokens) for tokens in (*sequences, draft)]
    model.pack()
    found = paged(model, sequences, draft)
    ours = torch.stack([logits for _, _, logits in found])
    theirs = torch.stack([plain[which][position] for which, position, _ in found])
    if model.cache_shape.dtype == torch.float32:
        return float((ours - theirs).abs().max() / theirs.abs().max()), FLOAT32_ERROR, "of the largest logit"
    noise = max(
        divergence(logits, model.plain_logits(tokens, eager=True))
        for logits, tokens in zip(plain, (*sequences, draft), strict=True)
    )
    return divergence(theirs, ours), max(KL_ERROR, KL_FACTOR * noise), "nats"


def divergence(logits: Tensor, others: Tensor) -> float:
    """Largest KL divergence in nats of the laws of `others` [N, V] from those of `logits`."""
    p, q = logits.double().log_softmax(-1), others.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).max())


def paged(model: Model, sequences: list[list[int]], draft: list[int]) -> list[tuple[int, int, Tensor]]:
    """(sequence, position, logits [V]) of everything that is decoded; sequence 2 is the draft."""
    pool = PagePool(12)
    cache = KeysValues(model.cache_shape, pool.num_pages, model.device)
    model.attach(cache)
    shape = layout(model.device)
    limits = [length + STEPS for length in LENGTHS]
    opened = [pool.open(None, 0, limit + 1) for limit in limits]
    cache.prepare(opened)
    prompts = [Run(s[: n - 1], 0, o.pages) for s, n, o in zip(sequences, LENGTHS, opened, strict=True)]
    model.forward(pack(prompts, shape, model.device, logits=False))
    found = []
    for step in range(STEPS - 1):  # the last token comes after the draft
        found += decode(model, shape, [(i, sequences[i], LENGTHS[i] - 1 + step, opened[i]) for i in range(2)])
    branch = pool.open(opened[1].handle, REWIND_TO - 1, REWIND_TO + STEPS + 1)
    cache.prepare([branch])
    ends = [(i, sequences[i], LENGTHS[i] + STEPS - 2, opened[i]) for i in range(2)]
    for step in range(STEPS):
        beside = [ends[0]] if step == 0 else []
        found += decode(model, shape, [(2, draft, REWIND_TO - 1 + step, branch), *beside])
    cache.fill(branch.fresh, torch.nan)  # nothing of a dropped draft may be seen again
    pool.drop(branch.handle)
    return found + decode(model, shape, [ends[1]])


def decode(
    model: Model, shape: Layout, rows: Sequence[tuple[int, list[int], int, Opening]]
) -> list[tuple[int, int, Tensor]]:
    """One token for each (sequence, its tokens, position, pages)."""
    runs = [Run((tokens[position],), position, opened.pages) for _, tokens, position, opened in rows]
    logits = model.forward(pack(runs, shape, model.device))
    return [(which, position, row) for (which, _, position, _), row in zip(rows, logits, strict=False)]


def token_ids(count: int, seed: int, vocab_size: int) -> list[int]:
    """Ids spread over the vocabulary, the same on every machine."""
    return [(seed * 7919 + i * 104729) % vocab_size for i in range(count)]
