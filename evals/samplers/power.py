"""Power sampling: a Metropolis-Hastings chain for p(x)^alpha over whole answers. Knows no batch, slot or device."""

from __future__ import annotations

from math import inf
from typing import Any, NamedTuple

import numpy as np

from evals.samplers.base import Key, ask, key, log_p
from evals.samplers.metropolis import Plan, State, log_weight, plan, spliced
from evals.types import Completion, Drop, Handle, Keep, Prompt, Request, Sample, Steps


class Power(NamedTuple):
    """`num_moves` moves of the kernel in metropolis.py, started at a draw of softmax(alpha * logits).

    `replay` and `early_rejection` save forward passes. Replay leaves the law as it is; early rejection leaves every
    single decision as it is.
    """

    alpha: float
    num_moves: int
    replay: bool = True
    early_rejection: bool = True

    def chain(self, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> Steps:
        """One answer to `prompt`: the state after `num_moves` moves; see `evals.types.Sampler`."""
        first = yield from ask(self.first_request(prompt, key(problem_id, sample_index, 0)))
        state, handle = State(first.tokens, first.log_q, first.log_z, first.ended), first.handle
        trace = Trace(self.alpha, state, first.prefilled)
        settle: list[Keep | Drop] = []
        for move in range(1, self.num_moves + 1):
            move_key = key(problem_id, sample_index, move)
            proposal = plan(state, seed, move_key, self.replay)
            if proposal.null(state):
                trace.add_null(state, proposal)
                continue
            draft = yield from ask(self.request(prompt, state, proposal, move_key, handle), *settle)
            assert draft.handle is not None, "only a cancelled request has no handle"
            length = proposal.start + len(draft.tokens)
            accepted = draft.ended != "floor" and log_weight(draft.log_z[1:], length) >= proposal.floor
            settle = [Keep(draft.handle) if accepted else Drop(draft.handle)]
            previous = state
            if accepted:
                state = spliced(state, proposal.start, draft.tokens, draft.log_q, draft.log_z, draft.ended)
                handle = draft.handle
            trace.add(previous, state, proposal, draft, accepted)
        return Sample(state.tokens, state.log_q, state.log_z, state.ended, trace.summary(state))

    def first_request(self, prompt: Prompt, move_key: Key) -> Request:
        """The answer that the chain starts from."""
        return Request(prompt.token_ids, prompt.max_new_tokens, self.alpha, move_key, origin=len(prompt.token_ids))

    def request(self, prompt: Prompt, state: State, proposal: Plan, move_key: Key, parent: Handle | None) -> Request:
        """The new ending that a move proposes."""
        return Request(
            prefix=prompt.token_ids + state.tokens[: proposal.start],
            max_new=prompt.max_new_tokens - proposal.start,
            alpha=self.alpha,
            key=move_key,
            origin=len(prompt.token_ids),
            exclude=proposal.exclude,
            floor=proposal.floor if self.early_rejection else -inf,
            bound="length",
            parent=parent,
        )


class Trace:
    """Counts what a chain did; decides nothing."""

    def __init__(self, alpha: float, first: State, prefilled: int) -> None:
        self.alpha, self.prefilled = alpha, prefilled
        self.initial_tokens = self.generated = len(first.tokens)
        self.null = self.accepted = self.rejected_early = self.replayed = 0
        self.cuts: list[float] = []
        self.log_p = [log_p(first.log_q, first.log_z, alpha)]

    def add_null(self, state: State, proposal: Plan) -> None:
        """A move whose proposal is the state, known without a forward pass."""
        self.null += 1
        self.replayed += proposal.start - proposal.cut
        self.cuts.append(proposal.cut / len(state.tokens))
        self.log_p.append(self.log_p[-1])

    def add(self, previous: State, state: State, proposal: Plan, draft: Completion, accepted: bool) -> None:
        """A move that ran. Without replay it too can propose the state itself: null, and not counted as accepted."""
        null = accepted and state.tokens == previous.tokens
        self.null += null
        self.accepted += accepted and not null
        self.rejected_early += draft.ended == "floor"
        self.replayed += proposal.start - proposal.cut
        self.generated += len(draft.tokens)
        self.prefilled += draft.prefilled
        self.cuts.append(proposal.cut / len(previous.tokens))
        self.log_p.append(log_p(state.log_q, state.log_z, self.alpha) if accepted else self.log_p[-1])

    def summary(self, final: State) -> dict[str, Any]:
        """The chain's diagnostics as JSON values; log p and log Z in nats, the rest counts of moves or tokens."""
        return {
            "alpha": self.alpha,
            "moves": len(self.cuts),
            "null": self.null,
            "accepted": self.accepted,
            "rejected_early": self.rejected_early,
            "generated": self.generated,
            "prefilled": self.prefilled,
            "initial_tokens": self.initial_tokens,
            "replayed_tokens": self.replayed,
            "mean_cut": float(np.mean(self.cuts)) if self.cuts else None,
            "log_p_first": self.log_p[0],
            "log_p": log_p(final.log_q, final.log_z, self.alpha),
            "log_z_sum": float(np.sum(final.log_z)),
            "log_p_trace": [round(value, 4) for value in self.log_p],
        }
