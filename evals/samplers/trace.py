"""Diagnostics of a Metropolis-Hastings chain for its record: its moves, what they cost, and how well it mixes."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np

from evals.samplers.base import State, log_p
from evals.samplers.metropolis import Move
from evals.types import Amount, ChainFigures, Completion

Answer = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class MoveFigures(ChainFigures):
    """Figures of a chain of moves: log p, log Z and drift in nats, cuts and divergences as shares of the answer's
    length, the rest counts of moves or tokens.

    `generated` leaves out the `discarded_tokens`.
    """

    alpha: float | None = None
    moves: Amount | None = None
    null: Amount | None = None
    """Moves that proposed the state itself."""
    accepted: Amount | None = None
    """Proposals of another answer that were accepted."""
    rejected_early: Amount | None = None
    """Proposals that were given up once they could no longer be accepted."""
    initial_tokens: Amount | None = None
    """Tokens drawn before the first move of each stage."""
    replayed_tokens: Amount | None = None
    """Tokens kept by the coins of replay."""
    naive_tokens: Amount | None = None
    """What the moves would have cost without replay and early rejection, for the same cuts and proposals; one that was
    given up counts as drawn plus one, the least that was missing, so that with `rejected_early` it is a lower bound."""
    discarded_tokens: Amount | None = None
    """Tokens of proposals that ran ahead for nothing."""
    mean_cut: float | None = None
    mean_divergence: float | None = None
    """First position that a move drew anew."""
    drift_max: float | None = None
    """Of log Z as it was recomputed against as it was stored."""
    drift_mean: float | None = None
    distinct: Amount | None = None
    """Answers visited in the last stage, to which all below belongs."""
    log_p_first: float | None = None
    """Of the answer at its start."""
    log_z_sum_first: float | None = None
    log_z_sum: float | None = None
    log_p_trace: tuple[float, ...] | None = None
    """log p after every move, from the start on."""
    states: tuple[tuple[Amount, Amount, tuple[Amount, ...]], ...] | None = None
    """Where they were asked for: the move that made a state (0: the start), the first position that it drew anew, and
    the tokens from there."""


class Trace:
    """Counts moves and tokens over all stages of a chain; its public fields are fields of `MoveFigures`."""

    def __init__(self) -> None:
        self.moves = self.null = self.accepted = self.rejected_early = 0
        self.generated = self.prefilled = self.initial_tokens = 0
        self.replayed_tokens = self.naive_tokens = self.discarded_tokens = 0
        self._cuts: list[float] = []
        self._divergences: list[float] = []
        self._drift: list[float] = []

    def add_extension(self, drawn: Completion) -> None:
        """Count the draw of the first answer, or of its extension to the next horizon."""
        self.initial_tokens += len(drawn.tokens)
        self._spend(drawn)

    def add_null(self, state: State, move: Move) -> None:
        """Count a move known to propose the state itself; redrawing it would have cost its tokens."""
        self.null += 1
        self._cut(state, move)

    def add(self, state: State, move: Move, completion: Completion, null: bool, accepted: bool) -> None:
        """Count a move from `state` that ran; without replay it may turn out to be `null`."""
        given_up = completion.ended == "given_up"
        self.null += null
        self.accepted += accepted and not null
        self.rejected_early += given_up
        self.naive_tokens += len(completion.tokens) + given_up  # it was not complete: one more token at least
        self._cut(state, move)
        if not null:
            self._divergences.append(move.start / len(state.tokens))
        self._drift.append(abs(float(completion.log_z[0] - state.log_z[move.start])))
        self._spend(completion)

    def figures(self) -> dict[str, Any]:
        """Fields of `MoveFigures` by name."""
        counts = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return counts | {
            "mean_cut": mean(self._cuts),
            "mean_divergence": mean(self._divergences),
            "drift_max": max(self._drift, default=None),
            "drift_mean": mean(self._drift),
        }

    def _cut(self, state: State, move: Move) -> None:
        self.moves += 1
        self.replayed_tokens += move.start - move.cut
        self.naive_tokens += move.start - move.cut
        self._cuts.append(move.cut / len(state.tokens))

    def _spend(self, completion: Completion) -> None:
        self.generated += len(completion.tokens)
        self.prefilled += completion.prefilled


def mean(values: list[float]) -> float | None:
    return float(np.mean(values)) if values else None


class Mixing:
    """Collects log p by move, the answers visited and the answers' weights of one stage, from the answer at its start.

    With `recycle` every move weighs its proposal by the chance that it is accepted and its state by the rest (waste
    recycling); otherwise the states after the moves count alike.
    """

    def __init__(self, start: State, alpha: float, recycle: bool) -> None:
        self._start, self._alpha, self._recycle = start, alpha, recycle
        self._log_p = [log_p(start, alpha)]
        self._visited = {start.tokens}
        self._weights = defaultdict[Answer, float](float)

    def add(self, state: State, proposal: State, chance: float | None, accepted: bool) -> None:
        """Count a move from `state`; `chance` is min(1, r), None where the proposal was given up."""
        if self._recycle and chance is not None:
            self._weights[proposal.tokens] += chance
            self._weights[state.tokens] += 1.0 - chance
        else:
            self._weights[proposal.tokens if accepted else state.tokens] += 1.0
        if accepted:
            self._visited.add(proposal.tokens)
        self._log_p.append(log_p(proposal, self._alpha) if accepted else self._log_p[-1])

    def weighted(self) -> tuple[tuple[Answer, float], ...]:
        """The answers with weights that sum to 1; empty without moves."""
        total = sum(self._weights.values())
        return tuple((answer, weight / total) for answer, weight in self._weights.items() if weight > 0)

    def figures(self, final: State) -> dict[str, Any]:
        """Fields of `MoveFigures` by name."""
        return {
            "distinct": len(self._visited),
            "log_p_first": self._log_p[0],
            "log_p": log_p(final, self._alpha),
            "log_z_sum_first": float(np.sum(self._start.log_z)),
            "log_z_sum": float(np.sum(final.log_z)),
            "log_p_trace": tuple(round(value, 4) for value in self._log_p),
        }
