"""Draws tokens from softmax(alpha * logits) by inverse CDF, and gives their log q and log Z.

For logits l, p = softmax(l) and q = softmax(alpha * l), every token v has

    alpha * log p(v) = log q(v) + log Z,    log Z = logsumexp(alpha * l) - alpha * logsumexp(l) = log sum_v p(v)^alpha

so that (v, log q, log Z) is all that a sampler of p^alpha needs. log Z depends on the prefix alone and is <= 0 for
alpha >= 1. With M = max l both terms are taken over l - M: alpha * M cancels and is never computed.

Letters in shapes: B rows, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Draw(NamedTuple):
    """One token per row with its statistics, each [B], all on the device of the logits."""

    token: Tensor
    """int64."""
    log_q: Tensor
    """float64, nats: log q of the token under the unrestricted distribution (the excluded token counted)."""
    log_z: Tensor
    """float64, nats: clamped at 0 for alpha >= 1; log p of the token where alpha is inf."""


def draw(
    logits_BV: Tensor,
    alpha_B: Tensor,
    uniform_B: Tensor,
    exclude_B: Tensor | None = None,
    top_k_B: Tensor | None = None,
    top_p_B: Tensor | None = None,
) -> Draw:
    """Draw one token per row, in float64 from float32 logits; one uniform in [0, 1) per row.

    `alpha_B` > 0 (float64); inf is greedy: the argmax, log q 0. `exclude_B` (int64, -1 for none) is a token that cannot
    be drawn: it is left out of the drawing maximum and of the CDF, never subtracted, so that the rest keeps its
    precision where q of that token is nearly 1; a greedy row that avoids its argmax has log q -inf. `top_k_B`
    (0 for all) and `top_p_B` (1 for all) truncate q; log q and log Z are then those of the truncated distribution (log
    Z is the sum of p^alpha over the kept tokens).

    A token without weight is never drawn, however close to 1 the uniform is. Rows in which nothing can be drawn,
    and rows with NaN among their logits, have a log q of NaN.
    """
    shifted = logits_BV.double()
    shifted -= shifted.amax(-1, keepdim=True)
    greedy = torch.isinf(alpha_B)
    log_sum = shifted.exp().sum(-1).log()
    scaled = shifted * torch.where(greedy, 1.0, alpha_B)[:, None]
    if top_k_B is not None or top_p_B is not None:
        scaled = scaled.masked_fill(~kept(scaled, top_k_B, top_p_B), -torch.inf)
    weights = scaled.exp()
    log_total = weights.sum(-1).log()
    drawable = scaled
    if exclude_B is not None:
        tokens = torch.arange(scaled.shape[-1], device=scaled.device)
        drawable = scaled.masked_fill(tokens == exclude_B[:, None], -torch.inf)
        weights = (drawable - drawable.amax(-1, keepdim=True)).exp()
    token = torch.where(greedy, drawable.argmax(-1), inverse_cdf(weights, uniform_B))
    chosen = scaled.gather(-1, token[:, None])[:, 0]
    log_q = torch.where(greedy, torch.where(chosen == 0, 0.0, -torch.inf), chosen - log_total)
    possible = drawable.gather(-1, token[:, None])[:, 0] > -torch.inf
    log_q = torch.where(possible, log_q, torch.nan)
    log_z = log_total - alpha_B * log_sum
    log_z = torch.where(alpha_B >= 1, log_z.clamp(max=0.0), log_z)
    return Draw(token, log_q, torch.where(greedy, chosen - log_sum, log_z))


def inverse_cdf(weights_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """[B] first token whose cumulative weight exceeds uniform * total.

    Cumulative sums of a parallel scan need not be monotone in the last bit, so tokens without weight are taken out of
    the comparison explicitly.
    """
    cumulative = weights_BV.cumsum(-1).masked_fill_(weights_BV == 0, 0.0)
    total = cumulative.amax(-1)
    below = torch.nextafter(total, torch.zeros_like(total))
    target = torch.minimum(uniform_B * total, below)
    return (cumulative > target[:, None]).to(torch.uint8).argmax(-1)


def kept(scaled_BV: Tensor, top_k_B: Tensor | None, top_p_B: Tensor | None) -> Tensor:
    """[B, V] tokens that truncation keeps: the k most probable, then of these the smallest set with mass >= p."""
    order = scaled_BV.argsort(stable=True, dim=-1, descending=True)
    ranked = scaled_BV.gather(-1, order)
    keep = torch.ones_like(ranked, dtype=torch.bool)
    if top_k_B is not None:
        rank = torch.arange(ranked.shape[-1], device=ranked.device)
        keep &= (rank < top_k_B[:, None]) | (top_k_B == 0)[:, None]
    if top_p_B is not None:
        mass = ranked.masked_fill(~keep, -torch.inf).exp()
        before = mass.cumsum(-1) - mass
        keep &= (before < top_p_B[:, None] * mass.sum(-1, keepdim=True)) | (top_p_B >= 1)[:, None]
    return torch.zeros_like(keep).scatter(-1, order, keep)
