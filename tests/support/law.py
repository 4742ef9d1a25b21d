"""Exact laws on enumerable models: the transition matrix of a kernel, the law of a sampler's answer, its chi-square."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from math import exp, fsum
from typing import Any
from unittest.mock import patch

import numpy as np
from scipy.stats import chisquare

from evals.rng import Purpose, RandomKey
from evals.samplers import metropolis
from evals.samplers.base import State, spliced
from evals.samplers.metropolis import Kernel, acceptance_probability
from evals.samplers.paper import Paper, PaperKernel
from evals.samplers.power import Power
from evals.types import Prompt, Request, Sampler
from support.toy import LONGEST, ToyEngine, ToyLM, row, uniform

TOYS = {
    "eos": ToyLM(1, vocabulary=3, horizon=4),
    "flat": ToyLM(2, vocabulary=4, horizon=3, spread=0.3),
    "peaked": ToyLM(3, vocabulary=3, horizon=5, spread=2.5),
    "stop": ToyLM(4, vocabulary=3, horizon=5, stop=(1, 2)),
    "forbidden": ToyLM(5, vocabulary=4, horizon=4, forbidden=0.4),
    "long": ToyLM(6, vocabulary=2, horizon=6),
}
SAVINGS = [(False, False), (True, False), (False, True), (True, True)]
"""replay, early_rejection."""
KERNELS = {
    "uniform": Kernel(0),
    "uniform, no replay": Kernel(0, replay=False),
    "entropy": Kernel(0, "entropy", 1.0),
    "entropy, power 4, no replay": Kernel(0, "entropy", 4.0, replay=False),
    "entropy, power 0.5": Kernel(0, "entropy", 0.5),
    "nonnull": Kernel(0, "nonnull"),
}

Answer = tuple[int, ...]
Matrix = tuple[list[Answer], np.ndarray]


def state_of(model: ToyLM, answer: Answer, alpha: float) -> State:
    ended = model.ended(answer)
    assert ended is not None
    log_q, log_z = model.statistics(answer, alpha)
    return State(answer, log_q, np.minimum(log_z, 0.0), ended)


def divergence(x: Answer, y: Answer) -> int:
    return next((t for t, (a, b) in enumerate(zip(x, y, strict=False)) if a != b), min(len(x), len(y)))


def endings(model: ToyLM, x: Answer, start: int, alpha: float, exclude: int | None) -> Iterator[tuple[Answer, float]]:
    """Every answer that shares x before `start`, with its chance; the first draw avoids `exclude`."""
    first = np.exp(model.log_law(x[:start], alpha)[0])
    if exclude is not None:
        first[exclude] = 0.0
    for y in model.complete(x[:start]):
        if y[start] != exclude:
            rest = fsum(model.statistics(y, alpha)[0][start + 1 :])
            yield y, float(first[y[start]] / first.sum()) * exp(rest)


def proposals(model: ToyLM, alpha: float, kernel: Kernel, x: State) -> Iterator[tuple[Answer, int, float]]:
    """Every (proposal, start, chance) of a move from x, as cuts, coins and draws make them; null moves too."""
    weights = kernel.cut_weights(x)
    q, length = np.exp(x.log_q), len(x.tokens)
    for cut in np.flatnonzero(weights).tolist():
        cutting = float(weights[cut] / weights.sum())
        if not kernel.replay:
            for y, drawn in endings(model, x.tokens, cut, alpha, None):
                yield y, cut, cutting * drawn
            continue
        holding = 1.0
        scale = 1.0 if kernel.cuts != "nonnull" else 1 / weights[cut]
        for start in range(cut, length):
            for y, drawn in endings(model, x.tokens, start, alpha, x.tokens[start]) if q[start] < 1 else ():
                yield y, start, cutting * holding * (1 - q[start]) * scale * drawn
            holding *= q[start]
        if kernel.cuts != "nonnull":
            yield x.tokens, length, cutting * holding


def transition_matrix(model: ToyLM, alpha: float, kernel: Kernel) -> Matrix:
    """P[i, j] of one move, by the kernel's own cuts and acceptance."""
    kernel = kernel._replace(horizon=model.horizon)
    answers = list(model.complete())
    index = {answer: i for i, answer in enumerate(answers)}
    states = [state_of(model, answer, alpha) for answer in answers]
    matrix = np.zeros((len(answers), len(answers)))
    for i, x in enumerate(states):
        if not kernel.cut_weights(x).any():
            matrix[i, i] = 1.0
        for y, start, proposed in proposals(model, alpha, kernel, x):
            j = index[y]
            taken = 1.0 if i == j else acceptance_probability(kernel.log_ratio(x, states[j], start))
            matrix[i, j] += proposed * taken
            matrix[i, i] += proposed * (1 - taken)
    return answers, matrix


def target_of(model: ToyLM, alpha: float, answers: list[Answer]) -> np.ndarray:
    target = model.target(alpha)
    return np.array([target[x] for x in answers])


def law(model: ToyLM, sampler: Power) -> dict[Answer, float]:
    """The exact law of the sampler's answer: draws of q and powers of transition matrices, stage by stage."""
    found: dict[Answer, float] = {(): 1.0}
    for horizon in sampler.horizons(model.horizon):
        stage = model.at(horizon)
        extended: defaultdict[Answer, float] = defaultdict(float)
        for x, mass in found.items():
            for y in stage.complete(x):
                extended[y] += mass * exp(fsum(stage.statistics(y, sampler.alpha)[0][len(x) :]))
        answers, matrix = transition_matrix(stage, sampler.alpha, sampler.kernel(horizon))
        start = np.array([extended[x] for x in answers])
        moved = start @ np.linalg.matrix_power(matrix, sampler.moves_per_stage)
        found = dict(zip(answers, moved, strict=True))
    return found


def coins(seed: int, problem: int, sample: int, move: int, length: int) -> np.ndarray:
    return np.array([row(RandomKey(seed, problem, sample, move), Purpose.COIN)[:length]])


UNIFORMS = {"uniform": uniform, "coins_at_once": coins, "MOVES_AT_ONCE": 1, "COINS_AT_ONCE": LONGEST}
"""What the kernel draws, from the toy's table of the same numbers."""


def drawn(model: ToyLM, sampler: Sampler, count: int, seed: int = 7, prompt: Prompt | None = None) -> Counter:
    """Answers of independent production chains on the scripted engine."""
    engine, prompt = ToyEngine(model, seed), prompt or model.prompt()
    with patch.multiple(metropolis, **UNIFORMS):
        return Counter(engine.run(sampler.chain(prompt, RandomKey(seed, i, 0)), prompt).tokens for i in range(count))


def chi_square(expected: dict[Answer, float], seen: Counter) -> float:
    """p-value of answers against a law, cells with fewer than five expected pooled; 0 for answers outside it."""
    if not seen.keys() <= expected.keys():
        return 0.0
    counts = seen.total() * np.array(list(expected.values()))
    observed = np.array([seen[x] for x in expected], dtype=float)
    large = counts >= 5
    pooled = [np.append(v[large], v[~large].sum()) for v in (observed, counts)]
    if pooled[1][-1] < 1e-9:
        assert pooled[0][-1] == 0
        pooled = [v[:-1] for v in pooled]
    return float(chisquare(pooled[0], pooled[1], sum_check=False).pvalue)


def p_value(model: ToyLM, sampler: Power, seen: Counter) -> float:
    """Chi-square of answers against the exact law of the sampler."""
    return chi_square(law(model, sampler), seen)


def decisions(kernel: Kernel | PaperKernel, count: int, alpha: float = 4.0) -> tuple[int, int]:
    """Of `count` random moves that run: decisions that giving up changes, tokens that it saves."""
    engines = {toy: ToyEngine(model, 5) for toy, model in TOYS.items()}
    states = [(toy, state_of(model, x, alpha)) for toy, model in TOYS.items() for x in model.complete()]
    order = np.random.default_rng(0)
    changed = saved = done = tried = 0
    while done < count:
        toy, x = states[order.integers(len(states))]
        model, key = TOYS[toy], RandomKey(5, tried, 0, 1)
        tried += 1
        if isinstance(kernel, Kernel):
            kernel = kernel._replace(horizon=model.horizon)
        move = kernel.propose(x, key)
        if move.null(x):
            continue
        done += 1
        prompt = model.prompt()
        prefix = (*prompt.token_ids, *x.tokens[: move.start])
        longest = kernel.longest(x) - move.start
        request = Request(prefix, longest, alpha, key, 1, move.exclude, kernel.give_up(x, move))
        early = engines[toy].complete(request, prompt)
        whole = engines[toy].complete(request._replace(give_up=None), prompt)
        accept = [
            c.ended != "given_up" and kernel.log_ratio(x, spliced(x, move.start, c), move.start) >= move.log_u
            for c in (early, whole)
        ]
        changed += accept[0] != accept[1]
        saved += len(whole.tokens) - len(early.tokens)
    return changed, saved


def paper(block: int, *settings: Any, **named: Any) -> Paper:
    """The published rules with blocks of another length than theirs."""
    return type("Paper", (Paper,), {"block": block})(*settings, **named)
