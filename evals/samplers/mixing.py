"""How the moves of one stage wander: log p by move, answers visited, answers weighed. Decides nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from evals.samplers.base import log_p
from evals.samplers.metropolis import State

Answer = tuple[int, ...]


class Mixing:
    """Filled move by move, from the answer at which the stage starts.

    With `recycle` every move weighs its draft by the chance that it is accepted and its state by the rest (waste
    recycling); otherwise the states after the moves count alike.
    """

    def __init__(self, start: State, alpha: float, recycle: bool) -> None:
        self._start, self._alpha, self._recycle = start, alpha, recycle
        self._log_p = [self._log_p_of(start)]
        self._visited = {start.tokens}
        self._weights: dict[Answer, float] = {}

    def add(self, state: State, draft: State, chance: float | None, accepted: bool) -> None:
        """A move from `state`; `chance` is min(1, r), None where the draft was given up."""
        if self._recycle and chance is not None:
            self._weigh(draft.tokens, chance)
            self._weigh(state.tokens, 1.0 - chance)
        else:
            self._weigh(draft.tokens if accepted else state.tokens, 1.0)
        if accepted:
            self._visited.add(draft.tokens)
        self._log_p.append(self._log_p_of(draft) if accepted else self._log_p[-1])

    def weighted(self) -> tuple[tuple[Answer, float], ...]:
        """The answers with weights that sum to 1; empty without moves."""
        total = sum(self._weights.values())
        return tuple((answer, weight / total) for answer, weight in self._weights.items() if weight > 0)

    def summary(self, final: State) -> dict[str, Any]:
        """Diagnostics as JSON values, in nats; `_first`: of the answer at the start, with one stage move 0."""
        return {
            "distinct": len(self._visited),
            "log_p_first": self._log_p[0],
            "log_p": self._log_p_of(final),
            "log_z_sum_first": float(np.sum(self._start.log_z)),
            "log_z_sum": float(np.sum(final.log_z)),
            "log_p_trace": [round(value, 4) for value in self._log_p],
        }

    def _log_p_of(self, state: State) -> float:
        return log_p(state.log_q, state.log_z, self._alpha)

    def _weigh(self, answer: Answer, weight: float) -> None:
        self._weights[answer] = self._weights.get(answer, 0.0) + weight
