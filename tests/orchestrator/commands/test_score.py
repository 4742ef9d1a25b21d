"""Scoring without a model: `score` on rows from anywhere, and `regrade` on a run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.config import TaskConfig
from evals.grading import symbolic
from evals.record import encode
from evals.types import Grade, Problem
from orchestrator.cli import main
from orchestrator.inputs.problems import load_problems
from orchestrator.rundir.reading.records import first_records
from support.logs import read_records
from support.made_up import refused
from support.places import ROOT

DEMO = ROOT / "evals/demo"


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def test_rows_from_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"id": "a", "text": "So 18.\n#### 18\n\nQuestion: next\n#### 5", "gold": "3*6=18\n#### 18"},
        {"id": 2, "text": r"\boxed{1,450,000.00}", "gold": "1450000"},
        {"id": "c", "text": "#### 1,450,000", "gold": 1450000},
        {"id": "ü", "text": "none", "gold": "1"},
        {"id": "%", "text": r"\boxed{50\%}", "gold": "50", "question": "What percent is it?"},
    ]
    assert main(["score", str(write(tmp_path / "rows.jsonl", rows))]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in found] == ["a", 2, "c", "ü", "%"]
    assert [[row[name] for name in ("strict", "flexible", "numeric")] for row in found] == [
        [True, True, True],
        [False, False, True],
        [True, True, True],
        [False, False, False],
        [False, True, True],
    ]
    assert found[0]["answers"] == {"strict": "18", "flexible": "18", "numeric": "18"}
    assert found[3]["answers"] == {"strict": None, "flexible": None, "numeric": None}


def test_presets_decide_stops_and_formats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "rows.jsonl", [{"id": 1, "text": "The answer is 18.\n\nQ: next", "gold": "18"}])
    assert main(["score", str(path), "--preset", "lmeval-cot-zeroshot"]) == 0
    assert json.loads(capsys.readouterr().out)["strict"] is True
    path = write(tmp_path / "rows.jsonl", [{"id": 1, "text": r"\boxed{x^2}", "gold": "x^2"}])
    assert main(["score", str(path), "--preset=math500"]) == 0
    assert json.loads(capsys.readouterr().out) == {"id": 1, "numeric": True, "answers": {"numeric": "x^2"}}


GOOD = '{"id": 1, "text": "#### 1", "gold": "1"}'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ["line 2", "invalid JSON"]),
        ("[]", ["line 2", "[]: input should be an object"]),
        ('{"id": 1, "text": "x"}', ["line 2", "gold: field required"]),
        ('{"id": 1, "text": null, "gold": "1"}', ["line 2", "text is None: input should be a valid string"]),
        ('{"id": 1, "text": "", "gold": "1"}', ["line 2", "the id 1 is also that of line 1"]),
        ('{"id": [], "text": "", "gold": "1"}', ["line 2", "id.str is []: input should be"]),
        ('{"id": true, "text": "", "gold": "1"}', ["line 2", "id.str is True: input should be"]),
        ('{"id": 1, "text": "", "gold": true}', ["line 2", "gold is True: input should be"]),
        ('{"id": 1, "text": "", "gold": "eighteen"}', ["line 2", "'eighteen', not a number", "math500"]),
        ('{"id": 1, "text": "", "gold": "So ####"}', ["line 2", "the gold is ''"]),
        ('{"id": 1, "text": "\\ud800", "gold": "1"}', ["line 2", "invalid JSON", "hex escape"]),
    ],
)
def test_a_bad_row_is_one_sentence_and_nothing_is_written(
    line: str, words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n{line}\n")
    assert main(["score", str(path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(word in err for word in [str(path), *words])


@pytest.mark.parametrize(
    "arguments",
    [["score"], ["score", "absent.jsonl"], ["score", "a", "b"], ["score", "a", "--preset", "x"], ["score", "--x"],
     ["score", "a", "--preset"], ["regrade"], ["regrade", "absent"], ["regrade", "--x", "a"]],
)  # fmt: skip
def test_wrong_arguments_are_one_sentence(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.fixture(scope="module")
def gold(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the demo's first problems' own answers."""
    directory = tmp_path_factory.mktemp("gold") / "run"
    replay = ["--sampler.kind", "replay", "--sampler.texts", "gold", "--model", "demo", "--data", "demo"]
    assert main(["run", "--inline", "--num-gpus", "0", "--limit", "4", *replay, "--run-dir", str(directory)]) == 0
    return directory


@pytest.fixture
def run(gold: Path, tmp_path: Path) -> Path:
    """The same with recorded scores that are all wrong."""
    (tmp_path / "run").mkdir()
    shutil.copy(gold / "run.json", tmp_path / "run")
    wrong = Grade(False, "0")
    records = [replace(one, scores=dict.fromkeys(one.scores, wrong)) for one in read_records(gold / "records.jsonl")]
    (tmp_path / "run/records.jsonl").write_bytes(b"".join(map(encode, records)))
    return tmp_path / "run"


def accuracy(run: Path) -> dict[str, float]:
    summary = json.loads((run / "summary.json").read_text())
    return {name: score["mean"] for name, score in summary["accuracy"].items()}


def test_a_run_is_scored_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = (run / "records.jsonl").read_bytes()
    assert main(["report", str(run)]) == 0
    assert set(accuracy(run).values()) == {0.0}
    assert main(["regrade", str(run)]) == 0
    assert accuracy(run) == {"strict": 1.0, "flexible": 1.0, "numeric": 1.0}
    summary = json.loads((run / "summary.json").read_text())
    assert summary["num_rescored"] == 4
    assert any("regrade" in warning and "4 answers" in warning for warning in summary["warnings"])
    assert "has changed no verdict" not in capsys.readouterr().out
    assert (run / "records.jsonl").read_bytes() == log
    rows = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    assert [(row["problem_id"], row["sample_index"]) for row in rows] == list(first_records(run / "records.jsonl"))
    (run / "scores.jsonl").unlink()
    assert main(["report", str(run)]) == 0
    assert set(accuracy(run).values()) == {0.0}
    capsys.readouterr()


def test_a_regrade_that_changes_nothing_is_no_warning(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    right = Grade(True, "1")
    log = run / "records.jsonl"
    records = [replace(one, scores=dict.fromkeys(one.scores, right)) for one in read_records(log)]
    log.write_bytes(b"".join(map(encode, records)))
    assert main(["regrade", str(run)]) == 0
    assert json.loads((run / "summary.json").read_text())["num_rescored"] == 0
    out = capsys.readouterr().out
    assert "A later `powersample regrade` has changed no verdict." in " ".join(out.split())
    assert "regrade" not in "".join(block for block in out.split("\n- ") if block.startswith("Warning"))


def test_other_data_is_refused(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = write(tmp_path / "other.jsonl", [{"question": "1+1?", "answer": "#### 2"}])
    same = tmp_path / "same.jsonl"
    same.write_bytes((DEMO / "problems.jsonl").read_bytes())
    assert main(["regrade", str(run), "--data", str(other)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert all(word in err for word in (str(other), "sha256", "--data"))
    assert not (run / "scores.jsonl").exists()
    assert main(["regrade", str(run), f"--data={same}"]) == 0
    capsys.readouterr()


def test_an_answer_with_other_line_separators_is_read_again(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = run / "records.jsonl"
    records = [replace(one, text="\\boxed{a\u2028b\u0085c}") for one in read_records(log)]
    log.write_bytes(b"".join(map(encode, records)))
    assert main(["regrade", str(run)]) == 0
    assert "\u2028" in (run / "scores.jsonl").read_text(encoding="utf-8")
    assert main(["report", str(run)]) == 0
    capsys.readouterr()


def test_damaged_scores_are_named(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["regrade", str(run)]) == 0
    (run / "scores.jsonl").write_text('{"problem_id": 0}\n')
    assert main(["report", str(run)]) == 2
    assert "scores.jsonl, line 1" in capsys.readouterr().err


def test_data_of_other_formats(tmp_path: Path) -> None:
    rows = [{"problem": "x?", "solution": "…", "answer": r"\frac{1}{2}"}]
    path = write(tmp_path / "math.jsonl", rows)
    source = load_problems(str(path), task=TaskConfig(preset="math500"))
    assert source.problems == [Problem.from_answer(0, "x?", r"#### \frac{1}{2}")]
    config = TaskConfig(preset="jsonl", template="{question}", question_key="input", answer_key="target")
    path = write(tmp_path / "any.jsonl", [{"input": "1+1?", "target": "It is\n#### 2"}])
    assert load_problems(str(path), task=config).problems == [Problem.from_answer(0, "1+1?", "It is\n#### 2")]


def test_with_a_library_that_cannot_compare_formulas_nothing_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(symbolic, "version", lambda name: "4.12.0")
    demo = [
        "run",
        "--model",
        "demo",
        "--data",
        "demo",
        "--inline",
        "--num-gpus",
        "0",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    for command in (demo, ["score", str(tmp_path / "none.jsonl")], ["regrade", str(tmp_path)]):
        assert "antlr4-python3-runtime 4.11 or 4.13.2, and version 4.12.0 is installed" in refused(command, capsys)
    assert not [*tmp_path.iterdir()]
