"""The published rules: against an oracle written from them, driven by the same uniforms, and against their own law."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from math import exp, fsum, log, log1p

import numpy as np
import pytest

from evals.rng import Purpose, RandomKey, uniform
from evals.samplers.base import State
from evals.samplers.paper import Paper, PaperKernel
from evals.types import Submit
from support.figures import figures
from support.law import TOYS, chi_square, paper
from support.toy import EOS, ToyEngine, ToyLM

Answer = tuple[int, ...]
PAPERS = {
    "blocks of 2": paper(2, 2.0, 3, top_k=0),
    "blocks of 2, top 2": paper(2, 2.0, 3, top_k=2),
    "blocks of 3": paper(3, 1.5, 4, top_k=0),
    "one block": Paper(2.0, 5, top_k=0),
}


def oracle(model: ToyLM, rules: Paper, seed: int, problem_id: int) -> Answer:
    """The rules, literally: every proposal is redrawn from the cut, nothing is saved."""
    number = 0

    def u(position: int, purpose: Purpose) -> float:
        return uniform(RandomKey(seed, problem_id, 0, number), position, purpose)

    def over(answer: Answer) -> bool:
        return EOS in answer or (bool(model.stop) and model.stopped(answer))

    def generate(answer: Answer, longest: int) -> Answer:
        while len(answer) < longest and not over(answer):
            weights = np.exp(model.log_law(answer, rules.alpha, rules.top_k or 0)[0])
            where = u(len(answer), Purpose.TOKEN) * np.cumsum(weights)[-1]
            answer = (*answer, int(np.argmax(np.cumsum(weights) > where)))
        return answer

    def log_z(answer: Answer, t: int) -> float:
        return model.log_law(answer[:t], rules.alpha, rules.top_k or 0)[1]

    answer: Answer = ()
    for _ in range(-(-model.horizon // rules.block)):
        answer = generate(answer, min(len(answer) + rules.block, model.horizon))
        number += 1
        for _ in range(rules.num_moves):
            cut = int(len(answer) * u(0, Purpose.CUT))
            proposal = generate(answer[:cut], len(answer))
            log_ratio = fsum(log_z(proposal, t) - log_z(answer, t) for t in range(cut, len(proposal)))
            if log1p(-u(0, Purpose.ACCEPT)) <= log_ratio + 1e-12:
                answer = proposal
            number += 1
        if over(answer):
            return answer
    return answer


def run(model: ToyLM, rules: Paper, problem_id: int) -> Answer:
    return ToyEngine(model, 3).run(rules.chain(model.prompt(), RandomKey(3, problem_id, 0))).tokens


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("kind", PAPERS)
@pytest.mark.parametrize("toy", ["eos", "flat", "stop", "long"])
def test_answers_are_those_of_the_published_rules(toy: str, kind: str, early: bool) -> None:
    model, rules = TOYS[toy], replace(PAPERS[kind], replay=False, early_rejection=early)
    answers = [run(model, rules, problem_id) for problem_id in range(60)]
    assert answers == [oracle(model, rules, 3, problem_id) for problem_id in range(60)]
    assert len(set(answers)) > 2


@pytest.mark.parametrize("wrong", ["length factor", "whole sum", "longer than the state"])
def test_other_rules_give_other_answers(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of them: cutting the state's sum hardly matters, as nearly every shorter proposal is accepted anyway."""
    model, rules = TOYS["eos"], paper(3, 4.0, 8, replay=False, early_rejection=False, top_k=0)
    right = PaperKernel.log_ratio

    def longer(self: PaperKernel, x: State) -> int:
        return model.horizon

    def whole_sum(self: PaperKernel, x: State, y: State, start: int) -> float:
        return fsum(y.log_z[start + 1 :]) - fsum(x.log_z[start + 1 :])

    def with_factor(self: PaperKernel, x: State, y: State, start: int) -> float:
        return right(self, x, y, start) + log(len(x.tokens) / len(y.tokens))

    name, mutant = {
        "longer than the state": ("longest", longer),
        "whole sum": ("log_ratio", whole_sum),
        "length factor": ("log_ratio", with_factor),
    }[wrong]
    monkeypatch.setattr(PaperKernel, name, mutant)
    assert any(run(model, rules, i) != oracle(model, rules, 3, i) for i in range(200))


def paper_law(model: ToyLM, rules: Paper) -> dict[Answer, float]:
    """The exact law of the answer under the rules, by enumeration."""
    found, law = {(): 1.0}, defaultdict(float)

    def endings(answer: Answer, longest: int):
        """Every (ending, chance, log Z by position)."""
        for y in model.at(longest).complete(answer):
            laws = [model.log_law(y[:t], rules.alpha, rules.top_k or 0) for t in range(len(y))]
            mass = exp(fsum(laws[t][0][y[t]] for t in range(len(answer), len(y))))
            if mass > 0:
                yield y, mass, [log_z for _, log_z in laws]

    def moved(x: Answer):
        ((_, _, old),) = endings(x, len(x))
        for cut in range(len(x)):
            for y, mass, new in endings(x[:cut], len(x)):
                taken = exp(min(0.0, fsum(new[cut:]) - fsum(old[cut : len(y)])))
                yield y, mass * taken / len(x)
                yield x, mass * (1 - taken) / len(x)

    for _ in range(-(-model.horizon // rules.block)):
        states = defaultdict(float)
        for x, mass in found.items():
            for y, chance, _ in endings(x, min(len(x) + rules.block, model.horizon)):
                states[y] += mass * chance
        for _ in range(rules.num_moves):
            after = defaultdict(float)
            for x, mass in states.items():
                for y, chance in moved(x):
                    after[y] += mass * chance
            states = after
        found = {x: mass for x, mass in states.items() if model.at(99).ended(x) is None}
        for x in states.keys() - found.keys():
            law[x] += states[x]
    return {**law, **found}


@pytest.mark.parametrize("kind", ["blocks of 2", "blocks of 2, top 2"])
@pytest.mark.parametrize("toy", ["eos", "stop"])
def test_replay_and_early_rejection_keep_the_law_of_the_published_rules(toy: str, kind: str) -> None:
    model, rules = TOYS[toy], PAPERS[kind]
    law = paper_law(model, rules)
    assert fsum(law.values()) == pytest.approx(1.0, abs=1e-12)
    assert chi_square(law, Counter(run(model, rules, i) for i in range(1_500))) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("replay", [False, True])
@pytest.mark.parametrize("toy", ["eos", "flat", "stop"])
def test_20000_chains_have_the_law_of_the_published_rules(toy: str, replay: bool) -> None:
    model, rules = TOYS[toy], replace(PAPERS["blocks of 2"], replay=replay)
    assert chi_square(paper_law(model, rules), Counter(run(model, rules, i) for i in range(20_000))) > 1e-4


def test_the_published_rules_are_not_at_p_alpha() -> None:
    """However many moves: this is what the label `biased` stands for."""
    model, rules = TOYS["eos"], replace(PAPERS["blocks of 2"], num_moves=60)
    law, target = paper_law(model, rules), model.target(2.0)
    assert sum(abs(law.get(x, 0.0) - target[x]) for x in target) / 2 > 0.05


def test_a_proposal_is_never_longer_than_the_state_and_nothing_is_weighted() -> None:
    model, rules = TOYS["long"], paper(3, 2.0, 6, top_k=0, early_rejection=False)
    engine = ToyEngine(model, 3)
    sample = engine.run(rules.chain(model.prompt(), RandomKey(3, 5, 0)))
    for request in engine.requests:
        assert len(request.prefix) - request.origin + request.max_new <= model.horizon
    assert sample.weighted == ()
    assert figures(sample).moves in (6, 12)


def test_only_the_likeliest_tokens_are_drawn() -> None:
    model = TOYS["flat"]
    rules = paper(2, 2.0, 3, top_k=2)
    for problem_id in range(60):
        answer = run(model, rules, problem_id)
        assert all(np.sum(model.table[answer[:t]] > model.table[answer[:t]][v]) < 2 for t, v in enumerate(answer))
    (asked,) = next(Paper(4.0).chain(model.prompt(), RandomKey(0, 0, 0)))
    assert isinstance(asked, Submit)
    assert asked.request.top_k == 50
    assert Paper(4.0).block == 192
