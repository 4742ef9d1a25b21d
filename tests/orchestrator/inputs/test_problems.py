"""Rows become problems, and what identifies them stays what it was, in every format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.config import TaskConfig
from evals.tasks.task import make_task
from evals.types import Problem
from orchestrator.inputs.problems import load_problems
from orchestrator.inputs.prompts import prompts_digest

OTHER_KEYS = {"preset": "jsonl", "template": "{question} {a} {r} {n}", "question_key": "input", "answer_key": "target"}
FORMATS: dict[str, tuple[dict[str, Any], list[Any], list[Problem], str, str]] = {
    "gsm8k": (
        {},
        [{"question": "1+1?", "answer": "1+1=<<1+1=2>>2\n#### 2"}, {"question": "é?", "answer": "Two. #### 1,450 "}],
        [Problem(0, "1+1?", "1+1=<<1+1=2>>2\n#### 2", "2"), Problem(1, "é?", "Two. #### 1,450 ", "1,450")],
        "f17ad1ba92a2d9165b7923a2e0cac5be82ff5dde5903ec24c89a25c48ed07d94",
        "49e6dac04c7cf41ef1fc3b6900fa0627feb04dd07bd91b4538aec21e81e50839",
    ),
    "math500": (
        {"preset": "math500"},
        [
            {"problem": "x?", "solution": "…", "answer": r" \frac{1}{2} "},
            {"problem": "y?", "answer": "It is\n#### 2 "},
        ],
        [Problem(0, "x?", r"#### \frac{1}{2}", r"\frac{1}{2}"), Problem(1, "y?", "It is\n#### 2 ", "2")],
        "d5b76b6798686c18101210da34743e5cba0182e366bdd0bc56490835ff4c3372",
        "1c8e58a099718bcd11970904040c4b3ec26df228fdd311fdb6c34499f8553392",
    ),
    "jsonl": (
        OTHER_KEYS,
        [{"input": "1+1?", "target": "2"}, {"input": "a?", "target": "So.\n####7", "group": 3}],
        [Problem(0, "1+1?", "#### 2", "2"), Problem(1, "a?", "So.\n####7", "7", "3")],
        "84132ef91ebf118a6a69dc09ff544146e1d012bff27d9448c15d1209aa9c58e8",
        "05d99099b11da072485c26510696d3be28f114118b2f02f939ea9bb9f2baec88",
    ),
    "generate": (
        {"preset": "generate"},
        [{"input": "one?", "output": "old"}, {"prompt": "two?"}, "{", {"input": 3}],
        [Problem(0, "one?"), Problem(1, "two?")],
        "5a88b5d2c63eac5ccb9c722916973f3ea63ef1c6caac91f2542c141359be4132",
        "4cedda2ced3671e4f08885281e99d6c58b4199b08ba7657563ddd80f5357bbbe",
    ),
}
"""Format -> settings of the task, rows, their problems, and the digests of data and prompts in earlier run.json."""


@pytest.mark.parametrize("name", FORMATS)
def test_digests_of_data_and_prompts_are_those_of_earlier_runs(name: str, tmp_path: Path) -> None:
    settings, rows, problems, data_sha256, prompts_sha256 = FORMATS[name]
    path, config = tmp_path / "data.jsonl", TaskConfig(**settings)
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    loaded = load_problems(str(path), task=config)
    assert loaded.problems == problems
    assert loaded.digest == data_sha256
    assert prompts_digest(make_task(config, 0), loaded.problems) == prompts_sha256


def test_a_solution_has_its_reasoning_and_its_gold_apart() -> None:
    worked = Problem.from_answer(0, "?", " a #### 1\nb\n\n ####  2 ")
    assert (worked.reasoning, worked.gold) == ("a #### 1\nb", "2")
    bare = Problem.from_answer(0, "?", " 2 ")
    assert (bare.solution, bare.reasoning, bare.gold) == ("#### 2", "", "2")


def test_whole_numbers_as_answers_are_read_like_texts(tmp_path: Path) -> None:
    task, path = TaskConfig(preset="jsonl", template="{question}"), tmp_path / "data.jsonl"
    read = []
    for answers in (["18", "-7", "1" * 30], [18, -7, int("1" * 30)]):
        path.write_text("".join(json.dumps({"question": "?", "answer": answer}) + "\n" for answer in answers))
        read.append(load_problems(str(path), task=task))
    assert [problem.gold for problem in read[1].problems] == ["18", "-7", "1" * 30]
    assert read[0] == read[1]


def test_what_no_output_can_carry_is_refused_as_in_earlier_runs(tmp_path: Path) -> None:
    """The rows that are refused are in the digest, so that their number may not change."""
    nested = ['{"input": "?", "x": ' + "[" * depth + "]" * depth + "}" for depth in (198, 199)]
    lines = ['{"input": "?", "x": NaN}', '{"input": "?", "x": 1e999}', '{"input": "?", "x": "\\ud800"}', *nested]
    path = tmp_path / "data.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"input": "\xff"}\n')
    loaded = load_problems(str(path), task=TaskConfig(preset="generate"))
    assert sorted(loaded.refused) == [0, 1, 2, 4, 5]
    assert loaded.digest == "f8d14562b340a94cf72e228140d6eca398ef9584db9471868c78aa98f4d5de33"
    assert "Out of range float values are not JSON" in loaded.refused[1]
    assert all(f"data.jsonl, line {row + 1}: " in reason for row, reason in loaded.refused.items())
