"""`replay`: texts from a file, or the data's own answers, through the whole pipeline by the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.rng import RandomKey
from evals.samplers.single import Replay
from evals.types import Prompt, SamplingContext, UserError
from orchestrator.cli import main
from orchestrator.inputs import preflight
from orchestrator.inputs.problems import load_problems
from orchestrator.rundir.reading.records import first_records
from support.places import ROOT
from support.shared_data import GSM8K_TEST, SHARED, needs_shared

DATA = [
    {"question": "1+1?", "answer": "1+1=2\n#### 2"},
    {"question": "2+2?", "answer": "#### 4"},
    {"question": "3+3?", "answer": "#### 6"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def replay(directory: Path, data: Path, texts: object, *flags: object) -> int:
    """The command that replays."""
    chosen = ["--model", "demo", "--data", data, "--sampler.kind", "replay", "--sampler.texts", texts]
    return main(list(map(str, ["run", "--inline", "--num-gpus", 0, "--run-dir", directory, *chosen, *flags])))


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


GOLD = "GSM8K's own answers through the whole pipeline: 1,319 of 1,319 under all three scores"


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        pytest.param(ROOT / "evals/demo/problems.jsonl", 40, id="demo"),
        pytest.param(
            SHARED / GSM8K_TEST, 1319, marks=[pytest.mark.slow, needs_shared(GSM8K_TEST, claim=GOLD)], id="gsm8k"
        ),
    ],
)
def test_all_gold_answers_are_right_through_the_whole_pipeline(data: Path, rows: int, tmp_path: Path) -> None:
    assert replay(tmp_path / "run", data, "gold", "--limit", rows) == 0
    found = summary(tmp_path / "run")
    assert {name: score["mean"] for name, score in found["accuracy"].items()} == dict.fromkeys(
        ("strict", "flexible", "numeric"), 1.0
    )
    assert (found["num_records"], found["num_undecided"], found["no_answer_rate"]) == (rows, 0, 0)
    records = first_records(tmp_path / "run/records.jsonl")
    golds = {(problem.problem_id, 0): problem.solution for problem in load_problems(str(data), limit=rows).problems}
    assert {key: record.text for key, record in records.items()} == golds
    assert {(record.ended, record.tokens.generated) for record in records.values()} == {("eos", 0)}


def test_texts_of_a_file_are_graded_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any order, several to a problem, empty, beyond the token limit, or going on after a stop string."""
    texts = [
        {"id": 2, "text": "So 6.\n#### 6\n\nQuestion: 9+9?\n#### 18"},
        {"id": 0, "text": ""},
        {"id": "1", "text": "é" * 300 + " #### 4"},
        {"id": 0, "text": "#### 2"},
        {"id": 1, "text": "#### 5"},
        {"id": 2, "text": " #### 6 <|im_end|> #### 7"},
    ]
    data, file = write(tmp_path / "data.jsonl", DATA), write(tmp_path / "texts.jsonl", texts)
    assert replay(tmp_path / "run", data, file, "--num-samples", 2) == 0
    assert "replay of texts.jsonl" in capsys.readouterr().out
    records = first_records(tmp_path / "run/records.jsonl")
    assert {key: (record.text, record.ended, record.scores["numeric"].correct) for key, record in records.items()} == {
        (0, 0): ("", "eos", False),
        (0, 1): ("#### 2", "eos", True),
        (1, 0): ("é" * 300 + " #### 4", "eos", True),
        (1, 1): ("#### 5", "eos", False),
        (2, 0): ("So 6.\n#### 6\n\n", "stop", True),
        (2, 1): (" #### 6 ", "stop", True),
    }
    assert (records[1, 0].tokens.answer or 0) > 160, "longer than the demo's limit"
    unknown = summary(tmp_path / "run")
    assert {unknown[name] for name in ("truncated_rate", "right_if_truncated", "right_if_finished")} == {None}
    report = (tmp_path / "run/report.md").read_text()
    assert "tokens, seed" not in report, "no limit is said"
    assert "truncated" not in report
    assert summary(tmp_path / "run")["accuracy"]["numeric"]["mean"] == pytest.approx(2 / 3)
    same = write(tmp_path / "elsewhere.jsonl", sorted(texts, key=lambda row: int(row["id"])))
    log = (tmp_path / "run/records.jsonl").read_bytes()
    assert replay(tmp_path / "run", data, same, "--num-samples", 2) == 0, "what counts is the texts, not their file"
    assert (tmp_path / "run/records.jsonl").read_bytes() == log
    capsys.readouterr()
    other = write(tmp_path / "other.jsonl", [*texts[:-1], {"id": 2, "text": "7"}])
    assert replay(tmp_path / "run", data, other, "--num-samples", 2) == 2
    assert "provenance.texts_sha256" in capsys.readouterr().err


def test_without_ids_the_texts_are_in_the_order_of_the_data(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", DATA)
    texts = write(tmp_path / "texts.jsonl", [{"text": "#### 2"}, {"text": "#### 4"}, {"text": "#### 0"}])
    assert replay(tmp_path / "run", data, texts, "--limit", 2) == 0
    assert summary(tmp_path / "run")["accuracy"]["numeric"]["mean"] == 1


@pytest.mark.parametrize(
    ("rows", "flags", "words"),
    [
        ([{"text": "2"}], [], ["too few texts for 2 of 3 problems", "problem 1 (0 of 1)"]),
        ([{"text": "2"}] * 4, [], ["line 4", "row 3", "3 rows"]),
        ([{"id": 0, "text": "2"}] * 2, [], ["line 2", "text 2 for problem 0", "num_samples=1"]),
        ([{"id": True, "text": "2"}], [], ["line 1", "id is True: input should be"]),
        ([{"id": -1, "text": "2"}], [], ["line 1", "id is -1: string should match"]),
        ([{"id": "7" * 5000, "text": "2"}], [], ["line 1", "id is '7777", "should match"]),
        ([{"id": 1, "text": "2"}, {"text": "2"}], [], ["line 2", "no id", "give all rows an id"]),
        ([{"text": "2"}, {"id": 1, "text": "2"}], [], ["line 1", "no id", "give all rows an id"]),
        ([{"text": "2"}] * 3, ["--num-samples", "2"], ["line 1", "no id", "give all rows an id"]),
        ([{"id": 0, "answer": "2"}], [], ["line 1", "text: field required"]),
        (["2"], [], ["line 1", "'2': input should be an object"]),
        ([{"text": "2"}], ["--sampler.alpha", "2"], ["kind replay does not read alpha"]),
        ([{"text": "2"}], ["--sampler.kind", "greedy"], ["kind greedy does not read texts"]),
        ([{"text": "2"}], ["--sampler.texts", "absent"], ["absent cannot be read"]),
    ],
)
def test_what_is_wrong_is_one_sentence(
    rows: list[Any], flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = write(tmp_path / "data.jsonl", DATA), write(tmp_path / "texts.jsonl", rows)
    assert replay(tmp_path / "run", data, file, *flags) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in words)
    assert not (tmp_path / "run").exists()


def test_replay_needs_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", "demo", "--data", "demo", "--sampler.kind", "replay"]) == 2
    assert "name by sampler.texts what replay grades" in capsys.readouterr().err


def test_a_tokenizer_that_changes_a_text_is_refused() -> None:
    class Tokenizer:
        def encode(self, text: str, whole: bool = True) -> list[int]:
            return list(map(ord, text.strip()))

        def decode(self, ids: list[int]) -> str:
            return "".join(map(chr, ids))

    tokenizer: Any = Tokenizer()
    preflight.check_texts({(0, 0): "a b"}, tokenizer)
    with pytest.raises(UserError, match=r"text for problem 7 .* is another one"):
        preflight.check_texts({(0, 0): "a b", (7, 0): " a"}, tokenizer)


def test_it_is_refused_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An accent of its own, which this tokenizer makes one character with its letter."""
    data, texts = write(tmp_path / "data.jsonl", DATA[:2]), [{"text": "caf\u00e9 2"}, {"text": "cafe\u0301 4"}]
    assert replay(tmp_path / "run", data, write(tmp_path / "texts.jsonl", texts)) == 2
    assert "The text for problem 1 in sampler.texts is another one" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "tokens", "ended"),
    [("ab", "ab.", "eos"), ("", ".", "eos"), ("a.b", "a.", "eos"), ("aSb", "aS", "stop"), ("aS", "aS", "stop")],
)
def test_an_answer_ends_as_a_model_would_end_it(text: str, tokens: str, ended: str) -> None:
    prompt = Prompt((1,), 1, frozenset({ord(".")}), lambda tokens: tokens[-1] == ord("S"))
    with pytest.raises(StopIteration) as over:
        next(Replay("gold").chain(prompt, RandomKey(0, 3, 1), SamplingContext(given=tuple(map(ord, text)))))
    assert (over.value.value.tokens, over.value.value.ended) == (tuple(map(ord, tokens)), ended)
