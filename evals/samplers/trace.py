"""What a chain's moves were and what they cost, over all its stages. Decides nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from evals.samplers.metropolis import Plan, State
from evals.types import Completion


class Trace:
    """Filled by a walk, request by request and move by move; read once at the end."""

    def __init__(self) -> None:
        self.moves = self.null = self.accepted = self.rejected_early = self.discarded = 0
        self.initial_tokens = self.generated = self.prefilled = self.replayed = self.naive = 0
        self.cuts: list[float] = []
        self.divergences: list[float] = []
        self.drift: list[float] = []

    def add_extension(self, drawn: Completion) -> None:
        """The first answer, or what was drawn to reach the next horizon."""
        self.initial_tokens += len(drawn.tokens)
        self._spend(drawn)

    def add_null(self, state: State, plan: Plan) -> None:
        """A move whose proposal is the state, known without a forward pass; redrawing it would have cost its tokens."""
        self.null += 1
        self._cut(state, plan)

    def add(self, state: State, plan: Plan, completion: Completion, null: bool, accepted: bool) -> None:
        """A move from `state` that ran; without replay it may turn out to be `null`."""
        given_up = completion.ended == "floor"
        self.null += null
        self.accepted += accepted and not null
        self.rejected_early += given_up
        self.naive += len(completion.tokens) + given_up  # it was not complete: one more token at least
        self._cut(state, plan)
        if not null:
            self.divergences.append(plan.start / len(state.tokens))
        self.drift.append(abs(float(completion.log_z[0] - state.log_z[plan.start])))
        self._spend(completion)

    def summary(self) -> dict[str, Any]:
        """Diagnostics as JSON values, drift in nats, the rest counts of moves or tokens.

        `naive_tokens` is what the moves would have cost without replay and early rejection, for the same cuts and
        proposals: exact where `rejected_early` is 0. The length of a draft that was given up is not known without
        drawing the rest; it counts as drawn plus one, the least that was missing, so that the figure is then a lower
        bound, as is `early_saved_tokens_at_least`. `generated` leaves out the `discarded_tokens` of drafts that ran
        ahead for nothing.
        """
        return {
            "moves": self.moves,
            "effective": self.moves - self.null,
            "null": self.null,
            "accepted": self.accepted,
            "rejected_early": self.rejected_early,
            "generated": self.generated,
            "prefilled": self.prefilled,
            "initial_tokens": self.initial_tokens,
            "replayed_tokens": self.replayed,
            "naive_tokens": self.naive,
            "early_saved_tokens_at_least": self.rejected_early,
            "discarded_tokens": self.discarded,
            "mean_cut": mean(self.cuts),
            "mean_divergence": mean(self.divergences),
            "drift_max": max(self.drift, default=None),
            "drift_mean": mean(self.drift),
        }

    def _cut(self, state: State, plan: Plan) -> None:
        self.moves += 1
        self.replayed += plan.start - plan.cut
        self.naive += plan.start - plan.cut
        self.cuts.append(plan.cut / len(state.tokens))

    def _spend(self, completion: Completion) -> None:
        self.generated += len(completion.tokens)
        self.prefilled += completion.prefilled


def mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
