"""Wrong kernels are noticed: each fails the enumeration, the chi-square or the agreement of decisions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import fsum, log

import numpy as np
import pytest

from evals.engine.chain_state import DecodeState
from evals.rng import RandomKey
from evals.samplers import metropolis, power
from evals.samplers.base import State, spliced
from evals.samplers.metropolis import Kernel
from evals.samplers.power import Power
from evals.types import Completion
from support.law import KERNELS, TOYS, chi_square, decisions, drawn, law, state_of, target_of, transition_matrix
from support.toy import EOS


def shifted(by: Callable[[State, State, int], float]):
    """Kernel.log_ratio with a term too many."""
    right = Kernel.log_ratio
    return lambda self, x, y, start: right(self, x, y, start) + by(x, y, start)


RATIOS = {
    "no length factor": shifted(lambda x, y, d: log(len(y.tokens) / len(x.tokens))),
    "length factor inverted": shifted(lambda x, y, d: 2 * log(len(y.tokens) / len(x.tokens))),
    "state's sum cut at the proposal's end": shifted(
        lambda x, y, d: fsum(x.log_z[d + 1 :]) - fsum(x.log_z[d + 1 : len(y.tokens)])
    ),
    "q in the ratio": shifted(lambda x, y, d: fsum(x.log_q[d:]) - fsum(y.log_q[d:])),
    "q with the wrong sign": shifted(lambda x, y, d: 2 * (fsum(y.log_q[d:]) - fsum(x.log_q[d:]))),
}


def drift(kernel: Kernel, toys: tuple[str, ...] = tuple(TOYS)) -> float:
    """Largest distance in total variation by which one move takes p^alpha away from itself."""
    found = []
    for toy in toys:
        answers, matrix = transition_matrix(TOYS[toy], 2.0, kernel)
        target = target_of(TOYS[toy], 2.0, answers)
        found.append(np.abs(target @ matrix - target).sum() / 2)
    return max(found)


@pytest.mark.parametrize("mutant", RATIOS)
def test_wrong_ratios_are_seen(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernel, "log_ratio", RATIOS[mutant])
    assert drift(KERNELS["uniform, no replay"]) > 1e-4  # the right kernel's is below 1e-12


@pytest.mark.parametrize("kernel", ["nonnull", "entropy"])
def test_the_length_as_the_factor_of_other_cuts_is_seen(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernel, "log_normaliser", lambda self, state: log(len(state.tokens)))
    assert drift(KERNELS[kernel]) > 1e-3


def test_stopping_the_plain_kernel_by_effective_moves_is_seen() -> None:
    """One effective move of it, whatever the null ones before, takes p^alpha to (1 - A(x)) p^alpha."""
    found = []
    for model in TOYS.values():
        answers, matrix = transition_matrix(model, 2.0, KERNELS["uniform"])
        target = target_of(model, 2.0, answers)
        null = np.array([null_chance(state_of(model, x, 2.0)) for x in answers])
        effective = (matrix - np.diag(null)) / (1 - null)[:, None]
        np.testing.assert_allclose(effective.sum(axis=1), 1, atol=1e-12)
        tilted = (1 - null) * target / ((1 - null) @ target)
        np.testing.assert_allclose(tilted @ effective, tilted, atol=1e-12)
        found.append(np.abs(target @ effective - target).sum() / 2)
    assert max(found) > 1e-2


def null_chance(x: State) -> float:
    return float(np.mean(np.exp(metropolis.log_q_from(x.log_q))))


def masked_q_stored(state: State, start: int, completion: Completion) -> State:
    masked = completion.log_q.copy()
    if start < len(state.tokens):  # q(v) / (1 - q(x_d)), what the draw used
        masked[0] -= np.log1p(-np.exp(state.log_q[start]))
    return spliced(state, start, completion._replace(log_q=masked))


def coin_shares_the_token_uniform(key, cut, length):
    return metropolis.uniforms(key.seed, np.broadcast_to(key[1:], (length - cut, 3)), np.arange(cut, length))


CHAINS = {
    "masked q stored": (power, "spliced", masked_q_stored),
    "coin and token share a uniform": (metropolis, "coins", coin_shares_the_token_uniform),
    "draws not keyed by move": (RandomKey, "of", lambda self, move: self),
    "cap at the current length": (Kernel, "longest", lambda self, state: len(state.tokens)),
}


def far_from_the_law(toy: str, sampler: Power, count: int, eos: frozenset[int] = frozenset({EOS})) -> bool:
    """Whether the answers, cut at the first EOS token, fail the chi-square by a wide margin."""
    model = TOYS[toy]
    seen: Counter = Counter()
    for tokens, number in drawn(model, sampler, count, prompt=model.prompt()._replace(eos_ids=eos)).items():
        seen[tokens[: tokens.index(EOS) + 1] if EOS in tokens else tokens] += number
    return chi_square(law(model, sampler), seen) < 1e-6


@pytest.mark.parametrize("mutant", CHAINS)
def test_wrong_chains_are_seen(mutant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1,000 chains of 15 moves, which the right ones pass below."""
    monkeypatch.setattr(*CHAINS[mutant])
    assert any(far_from_the_law(toy, Power(2.0, 15, True, False), 1_000) for toy in ("eos", "flat"))


def test_an_eos_token_that_does_not_absorb_is_seen() -> None:
    assert far_from_the_law("eos", Power(2.0, 10), 500, eos=frozenset())


@pytest.mark.parametrize("toy", ["eos", "flat"])
def test_the_right_chains_pass_what_the_wrong_ones_fail(toy: str) -> None:
    assert not far_from_the_law(toy, Power(2.0, 15, True, False), 1_000)


@pytest.mark.parametrize("kernel", ["nonnull", "entropy"])
def test_the_bound_of_other_cuts_is_seen(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The length gives up proposals that would be accepted, where G is another."""
    right = metropolis.watch
    monkeypatch.setattr(metropolis, "watch", lambda floor, start, least=None: right(floor, start, metropolis.longer))
    changed, _ = decisions(KERNELS[kernel], 1_000)
    assert changed > 0


def test_a_null_free_bound_that_forgets_the_kept_prefix_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """C starts at 0 then, so that G of the proposal looks larger than it is."""
    right = metropolis.less_null
    monkeypatch.setattr(metropolis, "less_null", lambda kept: right(0.0))
    changed, _ = decisions(KERNELS["nonnull"], 1_000)
    assert changed > 0


def test_a_bound_that_ignores_the_horizon_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proposal that has just become complete gets no longer, so that it must not be given up."""
    right = DecodeState.add

    def watched_to_the_end(self: DecodeState, token: int, log_q: float, log_z: float):
        ended = right(self, token, log_q, log_z)
        complete = ended is not None and ended != "given_up"
        return "given_up" if complete and self._watch and self._watch(log_q, log_z) else ended

    monkeypatch.setattr(DecodeState, "add", watched_to_the_end)
    changed, _ = decisions(KERNELS["uniform"], 1_000)
    assert changed > 0
