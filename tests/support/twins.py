"""What the kernels compute, in plain torch: stand-ins that let GraphDecoder run on a CPU at full speed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evals.engine import attention, token_sampling
from evals.engine.attention import AttentionGroup, Step
from evals.engine.kv_cache import PAGE
from evals.rng import Purpose, philox


def install(patch: pytest.MonkeyPatch) -> None:
    """Put the twins where the kernels are looked up."""
    patch.setattr("evals.engine.kernels.decode.decode", decode)
    patch.setattr("evals.engine.kernels.prefill.prefill", prefill)
    patch.setattr("evals.engine.kernels.pages.write", write)
    patch.setattr("evals.engine.graph_decoder.draw", draw)
    patch.setattr("evals.engine.graph_decoder.copy_pages", copy_pages)


def copy_pages(cache: Tensor, pairs: Tensor) -> None:
    """See `kernels.pages.copy_pages`."""
    for source, target in pairs.tolist():
        cache[:, :, target] = cache[:, :, source]


def decode(
    q: Tensor, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, pages: Tensor, positions: Tensor,
    arrivals: Tensor, scale: float, window: int = 0, softcap: float = 0.0, *_: Any,
) -> Tensor:  # fmt: skip
    """See `kernels.decode.decode`."""
    assert not arrivals.any()
    page = pages.long().gather(1, (positions // PAGE)[:, None])[:, 0]
    block = AttentionGroup(slice(0, len(q)), pages.long(), positions[:, None] + 1)
    step = Step(positions, positions, page * PAGE + positions % PAGE, [block], positions)
    return attention.attention(q, k, v, k_pages, v_pages, step, scale, window, softcap)


def prefill(
    q: Tensor, k_pages: Tensor, v_pages: Tensor, pages: Tensor, tiles: Tensor, scale: float, window: int = 0,
    softcap: float = 0.0,
) -> Tensor:  # fmt: skip
    """See `kernels.prefill.prefill`."""
    out = torch.zeros_like(q)
    for row, first, count, position in tiles.tolist():
        if count:
            rows, used = slice(first, first + count), (position + count - 1) // PAGE + 1
            block = AttentionGroup(rows, pages[None, row, :used].long(), position + 1 + torch.arange(count)[None])
            out[rows] = attention.attend(q[rows] * scale, k_pages, v_pages, block, window, softcap)
    return out


def write(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, write_at: Tensor) -> None:
    """See `kernels.pages.write`."""
    real = write_at >= 0
    page, offset = write_at[real] // PAGE, write_at[real] % PAGE
    k_pages[page, :, offset] = k[real]
    v_pages[page, :, offset] = v[real]


def draw(
    logits: Tensor, alpha: Tensor, exclude: Tensor, seed: Tensor, keys: Tensor, positions: Tensor, out: Tensor,
    **limits: Tensor,
) -> token_sampling.Draw:  # fmt: skip
    """See `kernels.draw.draw`."""
    r0, r1, _, _ = philox(seed, keys[:, 0], keys[:, 1], keys[:, 2], positions | Purpose.TOKEN << 24)
    uniform = ((r0 >> 5) * (1 << 26) + (r1 >> 6)).double() / (1 << 53)
    drawn = token_sampling.draw(logits.float(), alpha, uniform, exclude, **limits)
    out.copy_(torch.stack([drawn.token, drawn.log_q.view(torch.long), drawn.log_z.view(torch.long)]))
    return drawn
