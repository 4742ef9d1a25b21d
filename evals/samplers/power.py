"""Power sampling: a Metropolis-Hastings chain for p(x)^alpha over whole answers. Knows no batch, slot or device."""

from __future__ import annotations

from typing import Literal, NamedTuple

from evals.samplers.metropolis import Cuts, Kernel
from evals.samplers.walk import Draws, Walk
from evals.types import Prompt, Steps


class Power(NamedTuple):
    """`num_moves` moves of a kernel of metropolis.py, started at a draw of softmax(alpha * logits).

    `replay`, `early_rejection` and `prefetch` save time. Replay leaves the law as it is; the others leave every single
    decision as it is.
    """

    alpha: float
    num_moves: int
    replay: bool = True
    early_rejection: bool = True
    num_effective_moves: int | None = None
    """Instead of `num_moves`: so many moves of the kernel that never proposes the state itself."""
    blocks: int = 1
    """Stages of growing horizon, all of them with as many moves; only the last, whose horizon is the whole, is for
    p^alpha, the others choose where it starts."""
    cuts: Literal["uniform", "entropy"] = "uniform"
    entropy_power: float = 1.0
    prefetch: int = 0
    """Drafts in flight beside the one that is decided next, in slots that would stand idle."""

    sequences = 2  # the state and a draft

    def chain(self, prompt: Prompt, seed: int, problem_id: int, sample_index: int) -> Steps:
        """One answer to `prompt`: the state after the last move; see `evals.types.Sampler`."""
        walk = Walk(Draws(self.alpha, self.early_rejection, self.prefetch), prompt, seed, problem_id, sample_index)
        for horizon in self.horizons(prompt.max_new_tokens):
            yield from walk.extend(horizon)
            yield from walk.moves(self.kernel(horizon), self.moves_per_stage)
        return walk.sample()

    @property
    def moves_per_stage(self) -> int:
        return self.num_moves if self.num_effective_moves is None else self.num_effective_moves

    def horizons(self, longest: int) -> list[int]:
        """Longest answer of every stage, in tokens: k / blocks of the whole, rounded up; no two stages alike."""
        return sorted({-(-longest * stage // self.blocks) for stage in range(1, self.blocks + 1)})

    def kernel(self, horizon: int) -> Kernel:
        """The kernel of a stage. Raises ValueError for settings that contradict each other."""
        cuts: Cuts = self.cuts
        if self.num_effective_moves is not None:
            if self.cuts != "uniform" or not self.replay:
                raise ValueError("num_effective_moves needs replay and uniform cuts")
            cuts = "nonnull"
        return Kernel(horizon, cuts, self.entropy_power, self.replay)
