"""From a problem to its record on one device: every sampler's settings, votes, and what weighted answers are worth."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from evals.config import EngineConfig, TaskConfig
from evals.engine.checkpoint import load_model
from evals.engine.engine import Engine
from evals.engine.model import Model
from evals.evaluate import answer_text, expected_correct, start_sample
from evals.record import AnsweredBy, Record, encode, read_line
from evals.samplers.candidates import BestOf, CandidateFigures, Majority, Snis
from evals.samplers.paper import Paper
from evals.samplers.power import Power
from evals.samplers.registry import sampler_of, settings_of
from evals.samplers.single import AtTemperature, Greedy
from evals.samplers.smc import Smc
from evals.tasks.task import Task, make_task
from evals.types import Answer, ChainFigures, Grade, Problem, Sample, Sampler
from support.pages import audit
from support.places import ROOT

DEMO = ROOT / "evals/demo"
HORIZON = 120
TASK = make_task(TaskConfig(max_new_tokens=HORIZON), seed=0)


@pytest.mark.parametrize(
    ("settings", "sampler"),
    [
        ({"kind": "power", "num_moves": 3, "blocks": 2, "cuts": "entropy", "entropy_power": 2.0},
         Power(4.0, 3, blocks=2, cuts="entropy", entropy_power=2.0)),
        ({"kind": "power", "num_effective_moves": 3, "early_rejection": False},
         Power(4.0, early_rejection=False, num_effective_moves=3)),
        ({"kind": "paper", "alpha": 2.0, "replay": False}, Paper(2.0, 10, replay=False)),
        ({"kind": "paper", "top_k": 0}, Paper(4.0, 10, top_k=0)),
        ({"kind": "temperature", "temperature": 0.5}, AtTemperature(0.5)),
        ({"kind": "temperature", "top_k": 7}, AtTemperature(1.0, 7)),
        ({"kind": "greedy"}, Greedy()),
        ({"kind": "best_of", "num_candidates": 3}, BestOf(4.0, 3)),
        ({"kind": "snis", "alpha": 2.0}, Snis(2.0, 16)),
        ({"kind": "majority", "temperature": 0.8}, Majority(0.8, 16)),
        ({"kind": "smc", "smc_ramp": 5, "smc_interval": 6, "smc_threshold": 0.25}, Smc(4.0, 16, 5, 6, 0.25)),
    ],
)  # fmt: skip
def test_settings_reach_their_sampler(settings: dict[str, Any], sampler: Sampler) -> None:
    assert sampler_of(settings) == sampler
    assert sampler_of(settings_of(sampler_of(settings))) == sampler, "as run.json has it"


@pytest.mark.parametrize(
    ("text", "vote"),
    [
        ("#### 18", "18"),
        ("so it is 18.00.\n#### 18.00", "18"),
        ("The answer is $1,200.50.", "1200.5"),
        (r"\boxed{20}", "20"),
        ("#### -0.0", "0"),
        ("#### 018", "18"),
        ("#### 1" + 40 * "0" + "1", "1" + 40 * "0" + "1"),
        ("#### 18.0%", "18%"),
        (r"\boxed{3/4}", "0.75"),
        (r"\boxed{3x}", None),
        (r"\boxed{3, 4}", None),
        ("nothing", None),
    ],
)
def test_votes_are_equal_where_numbers_are(text: str, vote: str | None) -> None:
    assert TASK.vote(Answer(text)) == vote


@pytest.fixture(scope="module")
def model() -> Model:
    return load_model(str(DEMO / "model"), EngineConfig(), "cpu", num_threads=1)


@pytest.fixture(scope="module")
def problems() -> list[Problem]:
    rows = [json.loads(line) for line in (DEMO / "problems.jsonl").read_text(encoding="utf-8").splitlines()[:3]]
    return [Problem.from_answer(i, row["question"], row["answer"]) for i, row in enumerate(rows)]


def test_a_vote_sees_what_is_graded(model: Model, problems: list[Problem]) -> None:
    """Without the EOS token, which may have a text of its own, and up to the earliest stop string."""
    tokenizer = model.tokenizer
    eos = min(tokenizer.eos_ids)

    def vote(tokens: list[int]) -> str | None:
        return TASK.vote(Answer(answer_text(tokens, TASK, tokenizer)[0]))

    assert vote([*tokenizer.encode(" 3 + 4 = 7\n#### 7"), eos]) == "7"
    assert vote(list(tokenizer.encode("#### 7.0\nQuestion: What is 3 + 5? #### 8"))) == "7"
    assert vote([eos]) is None


class Letters:
    """A tokenizer of characters."""

    eos_ids = frozenset({0})

    def decode(self, tokens: Any) -> str:
        return "".join(map(chr, tokens))


class Counted:
    """A grader that says `a` is right and counts how often it is asked."""

    config = TaskConfig(stop=("|",))

    def __init__(self) -> None:
        self.graded: list[str] = []

    def grade(self, tokens: tuple[int, ...]) -> dict[str, Grade]:
        text, _ = answer_text(tokens, self, Letters())  # type: ignore[arg-type]
        self.graded.append(text)
        return {"plain": Grade(text == "a", text), "never": Grade(False, None)}


def weighted(*pairs: tuple[str, float]) -> Sample:
    answers = tuple((tuple(map(ord, text)), weight) for text, weight in pairs)
    return Sample(answers[0][0], np.zeros(1), np.zeros(1), "eos", ChainFigures(), answers)


def test_expected_correctness_is_the_weight_of_right_answers() -> None:
    task = Counted()
    sample = weighted(("a\0", 0.1), ("b\0", 0.3), ("a\0", 0.2), ("a|c", 0.4))
    found = expected_correct(sample, task.grade)
    assert found == {"plain": pytest.approx(0.7), "never": 0.0}
    assert task.graded == ["a", "b", "a"]  # the third has other tokens and the same text


KINDS: dict[str, dict[str, Any]] = {
    "power": {"num_moves": 3},
    "paper": {"num_moves": 2},
    "temperature": {"top_k": 5},
    "greedy": {},
    "best_of": {"num_candidates": 3},
    "majority": {"num_candidates": 5},
    "snis": {"num_candidates": 3},
    "smc": {"num_candidates": 3, "smc_interval": 20},
}


def run(model: Model, problems: list[Problem], task: Task, kind: str) -> tuple[list[Record], int]:
    """Records of the problems, and the engine's count of generated tokens."""
    engine = Engine.build(model, EngineConfig(), slots=4, max_length=400)
    engine.start()
    sampler = sampler_of({"kind": kind} | KINDS[kind])
    begun = [start_sample(problem, 0, task, sampler, engine, AnsweredBy()) for problem in problems]
    found = [record.result() for record in begun]
    engine.close()
    audit(engine._pool)
    assert engine.counters().kv_pages_used == 0
    return found, engine.counters().generated_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_every_sampler_gives_records(model: Model, problems: list[Problem], kind: str) -> None:
    records, generated = run(model, [problem._replace(group="a") for problem in problems], TASK, kind)
    # a chain that starts later may send younger requests of others back to draw their tokens again
    assert sum(record.tokens.generated or 0 for record in records) <= generated
    for record in records:
        assert read_line(encode(record), Record) == record
        assert record.group == "a"
        assert record.scores.keys() == {"strict", "flexible", "numeric"}
        shares = record.chain.expected_correct or {}
        assert shares.keys() == (record.scores.keys() if kind in ("power", "snis", "smc") else set())
        assert all(-1e-9 <= share <= 1 + 1e-9 for share in shares.values())
        if isinstance(record.chain, CandidateFigures) and kind == "majority":
            votes = record.chain.votes
            assert not votes or votes[TASK.vote(Answer(record.text, cut_off=record.ended == "length")) or ""] == max(
                votes.values()
            )
