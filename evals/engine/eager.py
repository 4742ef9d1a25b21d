"""Decoding kernel by kernel, on any device: a step is done when it returns. Knows no chain and no page pool.

The reference for every faster way, and the only one on a CPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from evals.engine.batch import Run, layout, pack, to_device
from evals.engine.chains import Drawn, Running
from evals.engine.kv_cache import Opening
from evals.engine.model import Model
from evals.engine.sampling import draw


class EagerDecoder:
    """Packed passes of the model; every number that leaves the device is waited for."""

    name = "eager"
    idle = None
    """Nothing is enqueued ahead, so that the device waits for the host in every step."""

    def __init__(self, model: Model) -> None:
        self._model, self._layout = model, layout(model.device)

    def open(self, openings: Sequence[Opening]) -> None:
        """Copy the pages that new sequences share in part, and clear the others."""
        assert self._model.cache is not None, "no step without keys and values"
        self._model.cache.prepare(openings)

    def prefill(self, runs: Sequence[Run]) -> None:
        """Keys and values of these tokens, in one pass."""
        self._model.forward(pack(runs, self._layout, self._model.device, logits=False))

    def step(self, slots: Sequence[Running]) -> list[Drawn]:
        """One token for each of these requests."""
        if not slots:
            return []
        requests = [running.slot for running in slots]
        runs = [Run((slot.token,), slot.position, slot.pages) for slot in requests]
        logits = self._model.forward(pack(runs, self._layout, self._model.device))[: len(slots)]
        exclude = np.array([slot.exclude for slot in requests])
        top_k = np.array([slot.request.top_k for slot in requests])
        top_p = np.array([slot.request.top_p for slot in requests], dtype=np.float64)
        truncated = bool(top_k.any() or (top_p < 1).any())
        alpha = np.array([slot.request.alpha for slot in requests], dtype=np.float64)
        uniform = np.array([slot.uniform() for slot in requests], dtype=np.float64)
        alpha_B, uniform_B, exclude_B, top_k_B, top_p_B = to_device(
            [alpha, uniform, exclude, top_k, top_p], self._model.device
        )
        drawn = draw(
            logits,
            alpha_B,
            uniform_B,
            exclude_B if (exclude >= 0).any() else None,
            top_k_B if truncated else None,
            top_p_B if truncated else None,
        )
        numbers = torch.stack([drawn.token.double(), drawn.log_q, drawn.log_z]).tolist()
        return [Drawn(running, int(token), *rest) for running, token, *rest in zip(slots, *numbers, strict=True)]
