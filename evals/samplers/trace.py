"""What a chain did: counts, log p by move, the answers it visited. Decides nothing."""

from __future__ import annotations

from typing import Any

import numpy as np

from evals.samplers.base import log_p
from evals.samplers.metropolis import Plan, State
from evals.types import Completion

Answer = tuple[int, ...]


class Trace:
    """Filled by a walk, request by request and move by move; read once at the end.

    Costs and counts are of the whole chain. What is said of its way (log p by move, answers visited and weighed) is of
    the last stage, since the stages before are for other targets.

    With `recycle` every move weighs its draft by the chance that it is accepted and its state by the rest (waste
    recycling); otherwise the states after the moves count alike.
    """

    def __init__(self, alpha: float, recycle: bool) -> None:
        self.alpha, self.recycle = alpha, recycle
        self.moves = self.null = self.accepted = self.rejected_early = self.discarded = 0
        self.initial_tokens = self.generated = self.prefilled = self.replayed = self.naive = 0
        self.cuts: list[float] = []
        self.divergences: list[float] = []
        self.drift: list[float] = []
        self.log_p: list[float] = []
        self.log_z_sum_first = 0.0
        self.visited: set[Answer] = set()
        self.weights: dict[Answer, float] = {}

    def new_stage(self, state: State) -> None:
        """The moves that follow are for another target, and start at `state`."""
        self.visited, self.weights = {state.tokens}, {}
        self.log_p = [log_p(state.log_q, state.log_z, self.alpha)]
        self.log_z_sum_first = float(np.sum(state.log_z))

    def add_extension(self, drawn: Completion) -> None:
        """The first answer, or what was drawn to reach the next horizon."""
        self.initial_tokens += len(drawn.tokens)
        self._spend(drawn)

    def add_null(self, state: State, plan: Plan) -> None:
        """A move whose proposal is the state, known without a forward pass; redrawing it would have cost its tokens."""
        self.null += 1
        self.naive += plan.start - plan.cut
        self._cut(state, plan)
        self._weigh(state.tokens, 1.0)
        self.log_p.append(self.log_p[-1])

    def add(
        self, state: State, plan: Plan, completion: Completion, draft: State, chance: float | None, accepted: bool
    ) -> None:
        """A move from `state` that ran; `chance` is min(1, r), None where the draft was given up."""
        null = draft.tokens == state.tokens  # without replay this is not known before
        self.null += null
        self.accepted += accepted and not null
        self.rejected_early += chance is None
        # A draft that was given up was not complete: one more token at least.
        self.naive += plan.start - plan.cut + len(completion.tokens) + (chance is None)
        self._cut(state, plan)
        if not null:
            self.divergences.append(plan.start / len(state.tokens))
        self.drift.append(abs(float(completion.log_z[0] - state.log_z[plan.start])))
        self._spend(completion)
        if self.recycle and chance is not None:
            self._weigh(draft.tokens, chance)
            self._weigh(state.tokens, 1.0 - chance)
        else:
            self._weigh(draft.tokens if accepted else state.tokens, 1.0)
        if accepted:
            self._arrive(draft)
        else:
            self.log_p.append(self.log_p[-1])

    def weighted(self) -> tuple[tuple[Answer, float], ...]:
        """The answers of the last stage with weights that sum to 1; empty without moves."""
        total = sum(self.weights.values())
        return tuple((answer, weight / total) for answer, weight in self.weights.items() if weight > 0)

    def summary(self, final: State) -> dict[str, Any]:
        """The chain's diagnostics as JSON values; log p, log Z and drift in nats, the rest counts of moves or tokens.

        `naive_tokens` is what the moves would have cost without replay and early rejection, for the same cuts and
        proposals: exact where `rejected_early` is 0. A draft that was given up counts as drawn plus one, the least that
        was missing, so that it is then a lower bound, as is `early_saved_tokens_at_least`. `generated` leaves out the
        `discarded_tokens` of drafts that ran ahead for nothing. `log_p_first` and `log_z_sum_first` are of the answer
        at which the last stage started, with one stage that of move 0.
        """
        return {
            "alpha": self.alpha,
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
            "distinct": len(self.visited),
            "mean_cut": mean(self.cuts),
            "mean_divergence": mean(self.divergences),
            "drift_max": max(self.drift, default=None),
            "drift_mean": mean(self.drift),
            "log_p_first": self.log_p[0],
            "log_p": log_p(final.log_q, final.log_z, self.alpha),
            "log_z_sum_first": self.log_z_sum_first,
            "log_z_sum": float(np.sum(final.log_z)),
            "log_p_trace": [round(value, 4) for value in self.log_p],
        }

    def _cut(self, state: State, plan: Plan) -> None:
        self.moves += 1
        self.replayed += plan.start - plan.cut
        self.cuts.append(plan.cut / len(state.tokens))

    def _spend(self, completion: Completion) -> None:
        self.generated += len(completion.tokens)
        self.prefilled += completion.prefilled

    def _weigh(self, answer: Answer, weight: float) -> None:
        self.weights[answer] = self.weights.get(answer, 0.0) + weight

    def _arrive(self, state: State) -> None:
        self.visited.add(state.tokens)
        self.log_p.append(log_p(state.log_q, state.log_z, self.alpha))


def mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None
