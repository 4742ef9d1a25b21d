"""The checks at every start, against plain forward passes of the model as it came. Knows no chain.

`check`, of the packed, paged forward pass: two sequences of different length are prefilled in one pass, decoded for
some steps beside each other, rewound into a draft, and restored; every logit that comes out is compared. This catches
what a configuration does not name; it cannot see errors of windows longer than its sequences.

`check_decoder`, of what a decoder makes of it (kernels, compiled layers, captured steps): tokens that it draws, beside
as many rows as a run may have, and their log p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from evals.engine.chain_state import DecodeState
from evals.engine.eager_decoder import Chunk, Layout, layout, pack
from evals.engine.kv_cache import PAGE, SCRATCH, Allocation, PagePool
from evals.engine.linears import pack_linears
from evals.engine.model import KeysValues, Model
from evals.types import Handle, Prompt, Request

if TYPE_CHECKING:
    from evals.engine.eager_decoder import EagerDecoder
    from evals.engine.graph_decoder import GraphDecoder

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
FLOAT32_NATS = 1e-3
"""Largest difference of two log p of a drawn token ..."""
MEAN_NATS = 0.05
"""... and, for 16-bit types, the mean difference that is always allowed; beyond it KL_FACTOR holds."""


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
    sequences = [token_ids(total, 7 + i, model.vocab_size) for i in range(2)]
    draft = [*sequences[1][:REWIND_TO], *token_ids(STEPS, 3, model.vocab_size)]
    plain = [model.plain_logits(tokens) for tokens in (*sequences, draft)]
    pack_linears(model.network)  # from here on `plain_logits` uses the faster products too
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
    prompts = [Chunk(s[: n - 1], 0, o.pages) for s, n, o in zip(sequences, LENGTHS, opened, strict=True)]
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
    model: Model, shape: Layout, rows: Sequence[tuple[int, list[int], int, Allocation]]
) -> list[tuple[int, int, Tensor]]:
    """One token for each (sequence, its tokens, position, pages)."""
    runs = [Chunk((tokens[position],), position, opened.pages) for _, tokens, position, opened in rows]
    logits = model.forward(pack(runs, shape, model.device))
    return [(which, position, row) for (which, _, position, _), row in zip(rows, logits, strict=False)]


def token_ids(count: int, seed: int, vocab_size: int) -> list[int]:
    """Ids spread over the vocabulary, the same on every machine."""
    return [(seed * 7919 + i * 104729) % vocab_size for i in range(count)]


@torch.inference_mode()
def check_decoder(
    model: Model, decoder: EagerDecoder | GraphDecoder, slots: int, max_pages: int, num_pages: int
) -> None:
    """Draw some tokens at alpha = 1 and compare their log p with a plain forward pass over them.

    `decoder` serves `slots` requests of at most `max_pages` pages; the model's cache of `num_pages` pages holds nothing
    yet. Kernel by kernel in plain products (eager) it does what `check` has seen, and nothing is drawn. Raises
    UserError where the two disagree.
    """
    if decoder.name == "eager":
        return
    longest = min(min(max_pages, num_pages - 1) * PAGE, model.context_length)
    try:
        drawn = draw_in_company(decoder, slots, longest, num_pages, model.vocab_size)
    except FloatingPointError as error:
        raise model.refuse(f"decoded by {decoder.name}, {error}; engine.execution=eager does without") from error
    with torch.compiler.set_stance("force_eager"):  # the reference takes no part in what is checked
        plain, other = (torch.stack([log_p(model, slot, eager) for slot in drawn]) for eager in (False, True))
    error = (torch.tensor([slot.log_q for slot in drawn], dtype=torch.float64) - plain).abs()
    if model.cache_shape.dtype == torch.float32:
        found, allowed, what = float(error.max()), FLOAT32_NATS, "at most"
    else:
        noise = float((plain - other).abs().mean())
        found, allowed, what = float(error.mean()), max(MEAN_NATS, KL_FACTOR * noise), "on average"
    if not found <= allowed:
        raise model.refuse(
            f"decoded by {decoder.name}, the log p of its tokens disagrees with a plain forward pass ({found:.2g} nats "
            f"{what}; {allowed:.1g} is allowed); engine.execution=eager does without"
        )


def draw_in_company(
    decoder: EagerDecoder | GraphDecoder, slots: int, longest: int, num_pages: int, vocab_size: int
) -> list[DecodeState]:
    """Two sequences in the outermost of `slots` rows, and a rewind of the longer one, STEPS tokens each.

    The rows between them write to the page that nobody reads. Where there is one slot, or no pages for both sequences,
    one comes after the other.
    """
    lengths = [min(length, longest - STEPS) for length in LENGTHS]
    needed = [PagePool.pages_for(0, length + STEPS) for length in lengths]
    together = slots > 1 and sum(needed) < num_pages
    starts = (1, 1 + needed[0] if together else 1)
    prompts = [token_ids(length, 11 + i, vocab_size) for i, length in enumerate(lengths)]
    a, b = (
        sit(prompt, i, range(start, start + count))
        for i, (prompt, start, count) in enumerate(zip(prompts, starts, needed, strict=True))
    )
    draft = sit(prompts[1][: max(1, min(REWIND_TO, lengths[1] - 1))], 2, b.pages)
    for rows in ([a, b], [draft]) if together else ([a], [b], [draft]):
        if runs := [Chunk(r.request.prefix[:-1], 0, r.pages) for r in rows if r is not draft]:
            decoder.prefill(runs)
        between = [sit(prompts[0][:1], 3 + i, (SCRATCH,)) for i in range(slots - 2)]
        advance(decoder, [rows[0], *between, *rows[1:]])
    return [a, b, draft]


def sit(prefix: Sequence[int], number: int, pages: Sequence[int]) -> DecodeState:
    """A request for STEPS tokens in these pages, of no chain."""
    prompt = Prompt(tuple(prefix), STEPS, frozenset())
    slot = DecodeState(Request(prompt.token_ids, STEPS, 1.0, (0, 0, number), len(prefix)), prompt, seed=0)
    slot.allocation = Allocation(Handle(number), tuple(pages), (), None)
    return slot


def advance(decoder: EagerDecoder | GraphDecoder, rows: list[DecodeState]) -> None:
    """Step until all requests have their tokens, and let go of them."""
    while rows:
        over = []
        for row, token, log_q, log_z in decoder.step(rows):
            if row in rows and row.add(token, log_q, log_z) is not None:
                over.append(row)
        rows = [row for row in rows if row not in over]
    decoder.step([])


def log_p(model: Model, slot: DecodeState, eager: bool) -> Tensor:
    """[STEPS] log p of a request's tokens by a plain forward pass, in nats."""
    prefix = slot.request.prefix
    logits = model.plain_logits([*prefix, *slot.tokens], eager=eager)[len(prefix) - 1 : -1].double()
    return logits.log_softmax(-1).gather(-1, torch.tensor(slot.tokens, device=logits.device)[:, None])[:, 0].cpu()
