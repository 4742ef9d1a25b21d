"""Power sampling: a Metropolis-Hastings chain for p(x)^alpha over whole answers. Knows no batch, slot or device."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from evals.samplers.base import ask, key, log_p
from evals.samplers.metropolis import State, accepts, cut_position, draws, log_ratio, spliced
from evals.types import Completion, Drop, Handle, Keep, Prompt, Request, Sample, Steps


class Power(NamedTuple):
    """`num_moves` moves of the kernel in metropolis.py, started at a draw of softmax(alpha * logits)."""

    alpha: float
    num_moves: int

    def chain(self, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> Steps:
        """One answer to `prompt`: the state after `num_moves` moves; see `evals.types.Sampler`."""
        first = yield from ask(self.request(prompt, (), prompt.max_new_tokens, key(problem_id, sample_index, 0)))
        state, handle = State(first.tokens, first.log_q, first.log_z, first.ended), first.handle
        trace = Trace(self.alpha, state, first.prefilled)
        settle: list[Keep | Drop] = []
        for move in range(1, self.num_moves + 1):
            move_key = key(problem_id, sample_index, move)
            u = draws(seed, move_key)
            cut = cut_position(len(state.tokens), u.cut)
            max_new = prompt.max_new_tokens - cut
            request = self.request(prompt, state.tokens[:cut], max_new, move_key, handle)
            completion = yield from ask(request, *settle)
            draft = spliced(state, cut, completion.tokens, completion.log_q, completion.log_z, completion.ended)
            accepted = accepts(log_ratio(state, draft, cut), u.accept)
            trace.add(state, draft, cut, completion, accepted)
            assert completion.handle is not None, "only a cancelled request has no handle"
            if accepted:
                state, handle = draft, completion.handle
            settle = [Keep(completion.handle) if accepted else Drop(completion.handle)]
        return Sample(state.tokens, state.log_q, state.log_z, state.ended, trace.summary(state))

    def request(
        self,
        prompt: Prompt,
        answer: tuple[int, ...],
        max_new: int,
        move_key: tuple[int, int, int],
        parent: Handle | None = None,
    ) -> Request:
        """Continue `answer`, the beginning of an answer to `prompt`, by at most `max_new` tokens."""
        return Request(
            prefix=prompt.token_ids + answer,
            max_new=max_new,
            alpha=self.alpha,
            key=move_key,
            origin=len(prompt.token_ids),
            parent=parent,
        )


class Trace:
    """Counts what a chain did; decides nothing."""

    def __init__(self, alpha: float, first: State, prefilled: int) -> None:
        self.alpha, self.prefilled = alpha, prefilled
        self.initial_tokens = self.generated = len(first.tokens)
        self.null = self.accepted = 0
        self.cuts: list[float] = []
        self.log_p = [log_p(first.log_q, first.log_z, alpha)]

    def add(self, state: State, draft: State, cut: int, completion: Completion, accepted: bool) -> None:
        """One move. A null move proposed the state itself; it is always accepted and not counted as `accepted`."""
        null = draft.tokens == state.tokens
        self.null += null
        self.accepted += accepted and not null
        self.generated += len(completion.tokens)
        self.prefilled += completion.prefilled
        self.cuts.append(cut / len(state.tokens))
        self.log_p.append(log_p(draft.log_q, draft.log_z, self.alpha) if accepted else self.log_p[-1])

    def summary(self, final: State) -> dict[str, Any]:
        """The chain's diagnostics as JSON values; log p and log Z in nats."""
        return {
            "alpha": self.alpha,
            "moves": len(self.cuts),
            "null": self.null,
            "accepted": self.accepted,
            "generated": self.generated,
            "prefilled": self.prefilled,
            "initial_tokens": self.initial_tokens,
            "mean_cut": float(np.mean(self.cuts)) if self.cuts else None,
            "log_p_first": self.log_p[0],
            "log_p": log_p(final.log_q, final.log_z, self.alpha),
            "log_z_sum": float(np.sum(final.log_z)),
            "log_p_trace": [round(value, 4) for value in self.log_p],
        }
