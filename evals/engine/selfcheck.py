"""The self-check at every start: compares the engine's forward passes with plain ones of the model as it came.

`check` does so for the packed, paged forward pass, with the `reference` of a model whose layers nobody has replaced
yet: two sequences of different length are prefilled in one pass and decoded for some steps together, one is rewound
into a proposal and restored; every logit that comes out is compared. This catches what a configuration does not name;
it cannot see errors of windows longer than its sequences.

`check_decoder` does so for a decoder (kernels, compiled layers, captured steps): it compares the log p of tokens that
are drawn beside as many rows as a run may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from evals.engine.chain_state import DecodeState
from evals.engine.eager_decoder import Chunk, Layout, layout, pack
from evals.engine.kv_cache import PAGE, SCRATCH, Allocation, PagePool
from evals.engine.model import KeysValues, Model
from evals.rng import RandomKey
from evals.types import Handle, Prompt, Request

if TYPE_CHECKING:
    from evals.engine.eager_decoder import EagerDecoder
    from evals.engine.graph_decoder import GraphDecoder

LENGTHS = (5, 21)
"""Lengths of the prompts: one within a page, one beyond it."""
STEPS = 4
REWIND_TO = 19
"""Tokens of the longer sequence that the proposal keeps: it branches inside the second page."""
FLOAT32_ERROR = 1e-4
"""Largest difference of two logits, as a share of the largest logit."""
KL_ERROR = 1e-2
"""Largest divergence of two next-token distributions in nats that is always allowed, for 16-bit types ..."""
KL_FACTOR = 4
"""... and what is allowed beyond it, as a multiple of the divergence between two of the library's own attentions."""
FLOAT32_NATS = 1e-3
"""Largest difference of two log p of a drawn token ..."""
MEAN_NATS = 0.05
"""... and, for 16-bit types, the mean difference that is always allowed; beyond it KL_FACTOR holds."""


class Reference(NamedTuple):
    """What a model's own attention computes."""

    logits: list[Tensor]
    """[N, V] of each of `sequences`."""
    noise: float
    """Largest divergence in nats that another attention of the library has from it; 0 in float32."""


def sequences(model: Model) -> list[list[int]]:
    """Token ids of two sequences, and of a proposal that branches from the second."""
    first, second = (token_ids(max(LENGTHS) + STEPS, seed, model.vocab_size) for seed in (7, 8))
    return [first, second, [*second[:REWIND_TO], *token_ids(STEPS, 3, model.vocab_size)]]


@torch.inference_mode()
def reference(model: Model) -> Reference:
    """What `check` compares a model with, once its layers have been replaced."""
    plain = [model.plain_logits(tokens) for tokens in sequences(model)]
    if model.cache_shape.dtype == torch.float32:
        return Reference(plain, 0.0)
    others = [model.plain_logits(tokens, eager=True) for tokens in sequences(model)]
    return Reference(plain, max(map(divergence, plain, others)))


@torch.inference_mode()
def check(model: Model, plain: Reference) -> None:
    """Check the packed, paged forward pass of a model. Raises UserError naming the architecture if it is wrong."""
    error, allowed, unit = compare(model, plain)
    if not error <= allowed:
        raise model.refuse(
            f"its packed forward pass disagrees with its plain one ({error:.2g} {unit}; {allowed:.1g} is allowed)"
        )


def compare(model: Model, plain: Reference) -> tuple[float, float, str]:
    """The largest disagreement of the packed, paged forward pass with the plain one, what is allowed, and the unit."""
    results = paged(model)
    ours = torch.stack([logits for _, _, logits in results])
    theirs = torch.stack([plain.logits[which][position] for which, position, _ in results])
    if model.cache_shape.dtype == torch.float32:
        return float((ours - theirs).abs().max() / theirs.abs().max()), FLOAT32_ERROR, "of the largest logit"
    return divergence(theirs, ours), max(KL_ERROR, KL_FACTOR * plain.noise), "nats"


def divergence(logits: Tensor, others: Tensor) -> float:
    """Largest KL divergence in nats of the distributions of `others` [N, V] from those of `logits`."""
    p, q = logits.double().log_softmax(-1), others.double().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).max())


def paged(model: Model) -> list[tuple[int, int, Tensor]]:
    """(number in `sequences`, position, logits [V]) of everything that is decoded over pages."""
    *both, proposal = sequences(model)
    pool = PagePool(12)
    cache = KeysValues(model.cache_shape, pool.num_pages, model.device)
    model.attach(cache)
    shape = layout(model.device)
    limits = [length + STEPS for length in LENGTHS]
    allocations = [pool.open(None, 0, limit + 1) for limit in limits]
    cache.prepare(allocations)
    prompts = [Chunk(s[: n - 1], 0, a.pages) for s, n, a in zip(both, LENGTHS, allocations, strict=True)]
    model.forward(pack(prompts, shape, model.device, logits=False))
    results = []
    for step in range(STEPS - 1):  # the last token comes after the proposal
        results += decode(model, shape, [(i, both[i], LENGTHS[i] - 1 + step, allocations[i]) for i in range(2)])
    branch = pool.open(allocations[1].handle, REWIND_TO - 1, REWIND_TO + STEPS + 1)
    cache.prepare([branch])
    ends = [(i, both[i], LENGTHS[i] + STEPS - 2, allocations[i]) for i in range(2)]
    for step in range(STEPS):
        beside = [ends[0]] if step == 0 else []
        results += decode(model, shape, [(2, proposal, REWIND_TO - 1 + step, branch), *beside])
    cache.fill(branch.fresh, torch.nan)  # nothing of a dropped proposal may be read again
    pool.drop(branch.handle)
    return results + decode(model, shape, [ends[1]])


def decode(
    model: Model, shape: Layout, rows: Sequence[tuple[int, list[int], int, Allocation]]
) -> list[tuple[int, int, Tensor]]:
    """Feed one token of each row (sequence, its tokens, position, pages); returns (sequence, position, logits [V])."""
    chunks = [Chunk((tokens[position],), position, allocation.pages) for _, tokens, position, allocation in rows]
    logits = model.forward(pack(chunks, shape, model.device))
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
    yet. For the eager decoder nothing is drawn, since it runs what `check` has compared. Raises UserError where the two
    disagree.
    """
    if decoder.name == "eager":
        return
    longest = min(min(max_pages, num_pages - 1) * PAGE, model.context_length)
    try:
        drawn = draw_beside_others(decoder, slots, longest, num_pages, model.vocab_size)
    except FloatingPointError as error:
        raise model.refuse(f"decoded by {decoder.name}, {error}; engine.execution=eager does without") from error
    with torch.compiler.set_stance("force_eager"):  # the reference takes no part in what is checked
        plain, other = (torch.stack([log_p(model, state, eager) for state in drawn]) for eager in (False, True))
    error = (torch.tensor([state.log_q for state in drawn], dtype=torch.float64) - plain).abs()
    if model.cache_shape.dtype == torch.float32:
        gap, allowed, what = float(error.max()), FLOAT32_NATS, "at most"
    else:
        noise = float((plain - other).abs().mean())
        gap, allowed, what = float(error.mean()), max(MEAN_NATS, KL_FACTOR * noise), "on average"
    if not gap <= allowed:
        raise model.refuse(
            f"decoded by {decoder.name}, the log p of its tokens disagrees with a plain forward pass ({gap:.2g} nats "
            f"{what}; {allowed:.1g} is allowed); engine.execution=eager does without"
        )


def draw_beside_others(
    decoder: EagerDecoder | GraphDecoder, slots: int, longest: int, num_pages: int, vocab_size: int
) -> list[DecodeState]:
    """Decode two sequences in the outermost of `slots` rows, and a rewind of the longer one, STEPS tokens each.

    The rows between them write to the scratch page. Where there is one slot, or no pages for both sequences,
    one comes after the other.
    """
    lengths = [min(length, longest - STEPS) for length in LENGTHS]
    needed = [PagePool.pages_for(0, length + STEPS) for length in lengths]
    together = slots > 1 and sum(needed) < num_pages
    starts = (1, 1 + needed[0] if together else 1)
    prompts = [token_ids(length, 11 + i, vocab_size) for i, length in enumerate(lengths)]
    a, b = (
        make_state(prompt, i, range(start, start + count))
        for i, (prompt, start, count) in enumerate(zip(prompts, starts, needed, strict=True))
    )
    rewound = make_state(prompts[1][: max(1, min(REWIND_TO, lengths[1] - 1))], 2, b.pages)
    for rows in ([a, b], [rewound]) if together else ([a], [b], [rewound]):
        if chunks := [Chunk(r.request.prefix[:-1], 0, r.pages) for r in rows if r is not rewound]:
            decoder.prefill(chunks)
        between = [make_state(prompts[0][:1], 3 + i, (SCRATCH,)) for i in range(slots - 2)]
        advance(decoder, [rows[0], *between, *rows[1:]])
    return [a, b, rewound]


def make_state(prefix: Sequence[int], number: int, pages: Sequence[int]) -> DecodeState:
    """The decode state of a request for STEPS tokens in these pages, without a chain."""
    prompt = Prompt(tuple(prefix), STEPS, frozenset())
    request = Request(prompt.token_ids, STEPS, 1.0, RandomKey(0, 0, 0, number), len(prefix))
    return DecodeState(request, prompt, Allocation(Handle(number), tuple(pages), (), None))


def advance(decoder: EagerDecoder | GraphDecoder, rows: list[DecodeState]) -> None:
    """Step until all requests have their tokens, and clear the decoder's rows."""
    while rows:
        ended = []
        for row, token, log_q, log_z in decoder.step(rows):
            if row in rows and row.add(token, log_q, log_z) is not None:
                ended.append(row)
        rows = [row for row in rows if row not in ended]
    decoder.step([])


def log_p(model: Model, state: DecodeState, eager: bool) -> Tensor:
    """[STEPS] log p of a request's tokens by a plain forward pass, in nats."""
    prefix = state.request.prefix
    logits = model.plain_logits([*prefix, *state.tokens], eager=eager)[len(prefix) - 1 : -1].double()
    return logits.log_softmax(-1).gather(-1, torch.tensor(state.tokens, device=logits.device)[:, None])[:, 0].cpu()
