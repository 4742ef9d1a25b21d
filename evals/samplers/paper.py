"""Power sampling by the published code's rules, for comparison: they do not leave p^alpha invariant.

Source: Karan & Du, Reasoning with Sampling (2025), as in the code that they published.

Block by block the answer grows by at most `block` tokens from its current length, and then makes `num_moves` moves.
A move cuts uniformly and redraws until EOS or until the *current* length, which a proposal never exceeds; the ratio has
no length factor, and the state's sum of log Z is *cut at the proposal's end*. After the block at whose end the answer
has ended it is returned, however early that is.

What differs from that code: draws are keyed; EOS is looked for in the answer alone, and is any token of the model's
list; a stop string, which that code does not have, ends an answer as an EOS token does.
"""

from __future__ import annotations

from collections.abc import Callable
from math import fsum
from typing import Literal, NamedTuple

from pydantic import Field
from pydantic.dataclasses import dataclass

from evals.rng import RandomKey
from evals.samplers.base import Alpha, Coins, EarlyRejection, NumMoves, State, TopK
from evals.samplers.metropolis import SLACK, Kernel, Move, watch
from evals.samplers.power import MHChain
from evals.settings import CONFIG
from evals.types import Prompt, SamplingContext, Steps, Watch

USUAL_TOP_K = 50


class PaperKernel(NamedTuple):
    """The published transition kernel."""

    replay: bool = True

    def propose(self, state: State, key: RandomKey) -> Move:
        """A uniform cut, with coins if there is replay: the law of the proposal is that of redrawing from the cut."""
        return Kernel(len(state.tokens), replay=self.replay).propose(state, key)

    def longest(self, state: State) -> int:
        """Tokens of the longest proposal from an answer: its own length."""
        return len(state.tokens)

    def give_up(self, state: State, move: Move) -> Callable[[], Watch]:
        """What tells that a proposal can no longer be accepted; cutting the state's sum can only lower the ratio."""
        floor = move.log_u + fsum(state.log_z[move.start + 1 :]) - SLACK
        return lambda: watch(floor, move.start)

    def log_ratio(self, state: State, proposal: State, start: int) -> float:
        """Sum of log Z' - log Z after `start`, up to the proposal's end."""
        return fsum(proposal.log_z[start + 1 :]) - fsum(state.log_z[start + 1 : len(proposal.tokens)])


@dataclass(frozen=True, config=CONFIG)
class Paper:
    """`num_moves` moves in every block of `block` tokens, among the `top_k` likeliest tokens (0: all)."""

    alpha: Alpha = 4.0
    num_moves: NumMoves = 10
    replay: Coins = True
    early_rejection: EarlyRejection = True
    top_k: TopK = None
    """None: the published code sets no truncation, and its library then keeps the 50 most probable tokens."""
    kind: Literal["paper"] = Field(default="paper", description="the published code's rules, biased")

    block = 192
    sequences = 2  # the state and a proposal

    def chain(self, prompt: Prompt, key: RandomKey, context: SamplingContext = SamplingContext()) -> Steps:  # noqa: B008
        """One answer to `prompt`; see `evals.types.Sampler`."""
        top_k = USUAL_TOP_K if self.top_k is None else self.top_k
        chain = MHChain(prompt, key, self.alpha, self.early_rejection, context.prefetch, top_k)
        for _ in range(0, prompt.max_new_tokens, self.block):
            yield from chain.extend(min(len(chain.state.tokens) + self.block, prompt.max_new_tokens))
            yield from chain.moves(PaperKernel(self.replay), self.num_moves)
            if chain.state.ended != "length":
                break
        return chain.sample()._replace(weighted=())  # there is no law that weights would estimate
