"""Thoughts, cut-off answers and versions of graders by the command line: run, replay, regrade, report and compare."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from evals.grading.grade import NUMERIC
from orchestrator.cli import main
from orchestrator.rundir.reading.records import first_records
from support.made_up import refused, said

QUESTIONS = [f"{i} + {i}?" for i in range(1, 9)]
TEXTS: list[dict[str, Any]] = [
    {"text": r"<think>Is it \boxed{5}?</think>The answer is 2."},
    {"text": "no: #### 5</think>\n\n4"},
    {"text": r"<think>Maybe \boxed{6}, let me"},
    {"text": "<think>The answer is 8.</think>"},
    {"text": "So 5*2=<<5*2=10>>10 in all. Then", "ended": "length"},
    {"text": "The answer is 12, since", "ended": "length"},
    {"text": "14", "ended": "stop"},
    {"text": "So there are 16"},
]
"""Answers to the questions, each right by its last number."""
RIGHT = [True, True, False, False, False, True, True, True]
KINDS = ["number", "number", "open thought", "none", "unfinished", "number", "number", "number"]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def replay(folder: Path, name: str, texts: list[dict[str, Any]], *flags: object) -> Path:
    """A run of these texts."""
    rows = [{"question": question, "answer": f"#### {2 * i}"} for i, question in enumerate(QUESTIONS, start=1)]
    data, answers = write(folder / "data.jsonl", rows), write(folder / f"{name}.jsonl", texts)
    chosen = ["--model", "demo", "--data", data, "--sampler.kind", "replay", "--sampler.texts", answers, *flags]
    assert main(list(map(str, ["run", "--inline", "--num-gpus", 0, "--run-dir", folder / name, *chosen]))) == 0
    return folder / name


def problems_on(page: Path) -> list[dict[str, Any]]:
    """The problems that a page holds."""
    [data] = re.findall('<script type="application/json" id="data">(.*?)</script>', page.read_text(encoding="utf-8"))
    return json.loads(data)["problems"]


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def numeric(directory: Path) -> list[dict[str, Any]]:
    """The grades of a run by its own records, in the order of the problems."""
    rows = map(json.loads, (directory / "records.jsonl").read_text().splitlines())
    return [row["scores"]["numeric"] for row in sorted(rows, key=lambda row: row["problem_id"])]


def aged(directory: Path, *problem_ids: int) -> None:
    """Make records of a run those of a version that knew neither thoughts nor versions of graders: all or some."""
    lines = []
    for line in (directory / "records.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not problem_ids or row["problem_id"] in problem_ids:
            row.pop("thought", None)
            right = {"correct": True, "answer": str(2 * row["problem_id"] + 2), "kind": "number"}
            row["scores"] = dict.fromkeys(("strict", "flexible", "numeric"), right)
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    (directory / "records.jsonl").write_text("".join(lines))


def test_thoughts_and_cut_off_answers_of_replayed_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = replay(tmp_path, "run", TEXTS)
    report = " ".join(capsys.readouterr().out.split())
    grades, found = numeric(run), summary(run)
    assert [(grade["correct"], grade["kind"]) for grade in grades] == list(zip(RIGHT, KINDS, strict=True))
    assert [grade.get("correct_as_it_stands") for grade in grades] == [None] * 4 + [True] + [None] * 3
    assert (found["accuracy"]["numeric"]["mean"], found["accuracy_as_they_stand"]["numeric"]["mean"]) == (5 / 8, 6 / 8)
    assert (found["no_answer_rate"], found["open_thought_rate"], found["unfinished_rate"]) == (1 / 8, 1 / 8, 1 / 8)
    assert found["versions"] == {"strict": 1, "flexible": 1, "numeric": NUMERIC}
    assert "no answer 12.5 %, open thought 12.5 %, unfinished 12.5 %" in report
    assert "it would be 75.0 % instead of 62.5 %" in report
    assert "| numeric, cut-off answers as they stand | 75.0 % |" in report
    records = first_records(run / "records.jsonl")
    thoughts = [records[i, 0].thought for i in range(8)]
    assert thoughts == [31, len("no: #### 5</think>"), "open", len(TEXTS[3]["text"]), 0, 0, 0, 0]
    assert [records[i, 0].ended for i in range(8)] == ["eos"] * 4 + ["length"] * 2 + ["eos"] * 2
    assert [records[i, 0].text for i in range(8)] == [row["text"] for row in TEXTS]
    lines = (run / "records.jsonl").read_text().splitlines()
    assert sum('"thought"' in line for line in lines) == 4, "a record without a thought does not speak of one"
    answers = [problem["answers"][0][0] for problem in problems_on(run / "report.html")]
    assert (answers[0]["thought"], answers[0]["text"]) == (r"<think>Is it \boxed{5}?</think>", "The answer is 2.")
    assert (answers[2]["thought"], answers[2]["text"]) == (TEXTS[2]["text"], "")
    assert [answer["flags"][1:] for answer in answers[2:5]] == [
        ["open thought", "graders differ"],
        ["no answer", "graders differ"],
        ["unfinished", "graders differ"],
    ]


def test_score_follows_the_same_rules(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"id": i, "gold": str(2 * i + 2), **row} for i, row in enumerate(TEXTS)]
    file = str(write(tmp_path / "rows.jsonl", rows))
    verdicts = [json.loads(line)["numeric"] for line in said(["score", file], capsys).splitlines()]
    assert verdicts == RIGHT
    verdicts = [json.loads(line)["numeric"] for line in said(["score", file, "--thought-end", ""], capsys).splitlines()]
    assert verdicts == [False, False, True, True, False, True, True, True]


def test_a_run_without_thoughts_and_what_counts_as_the_end_of_one(tmp_path: Path) -> None:
    texts = [{"text": f"[THINK]5[/THINK]<think> {2 * i}"} for i in range(1, 9)]
    assert summary(replay(tmp_path, "usual", texts))["open_thought_rate"] == 1
    assert summary(replay(tmp_path, "none", texts, "--task.thought-end", ""))["accuracy"]["numeric"]["mean"] == 1
    other = replay(tmp_path, "other", texts, "--task.thought-end", "[/THINK]")
    assert summary(other)["accuracy"]["numeric"]["mean"] == 1
    assert {record.thought for record in first_records(other / "records.jsonl").values()} == {len("[THINK]5[/THINK]")}


SAMPLED = ["--model", "demo", "--data", "demo", "--limit", 6, "--inline", "--num-gpus", 0, "--sampler.kind", "greedy"]


def sampled(directory: Path, *flags: object) -> dict[str, Any]:
    assert main(list(map(str, ["run", *SAMPLED, "--run-dir", directory, *flags]))) == 0
    return summary(directory)


def test_answers_cut_by_a_token_limit(tmp_path: Path) -> None:
    """The embedded model writes `#### number` at the end, so that a short answer is none."""
    found = sampled(tmp_path / "run", "--task.max-new-tokens", 20)
    assert (found["truncated_rate"], found["unfinished_rate"], found["accuracy"]["numeric"]["mean"]) == (1, 1, 0)
    whole = sampled(tmp_path / "whole")
    assert (whole["unfinished_rate"], whole["open_thought_rate"], whole["accuracy_as_they_stand"]) == (0, 0, {})
    assert all(set(grade) == {"correct", "answer", "kind", "version"} for grade in numeric(tmp_path / "whole"))


def test_a_thought_that_the_prompt_opens(tmp_path: Path) -> None:
    """The embedded model ends none, so that none of its answers is one; without thoughts they are graded as ever."""
    template = ["--task.template", "Question: {question}\nAnswer:<think>"]
    found = sampled(tmp_path / "run", *template)
    assert (found["open_thought_rate"], found["accuracy"]["numeric"]["mean"]) == (1, 0)
    assert {record.thought for record in first_records(tmp_path / "run" / "records.jsonl").values()} == {"open"}
    plain = sampled(tmp_path / "plain", *template, "--task.thought-end", "")
    assert plain["open_thought_rate"] == 0
    assert plain["accuracy"]["strict"] == found["accuracy"]["strict"]


def test_a_majority_does_not_hear_what_was_cut_off(tmp_path: Path) -> None:
    sampled(tmp_path / "run", "--sampler.kind", "majority", "--sampler.num-candidates", 2, "--task.max-new-tokens", 20)
    assert {str(record.chain.votes) for record in first_records(tmp_path / "run" / "records.jsonl").values()} == {"{}"}  # type: ignore[union-attr]


def test_versions_are_not_mixed_until_the_run_is_graded_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = replay(tmp_path, "old", TEXTS), replay(tmp_path, "new", TEXTS)
    aged(old)
    capsys.readouterr()
    assert "| 100.0 % |" in said(["report", str(old)], capsys), "all by one version"
    reason = (
        f"powersample: The runs {old} and {new} were graded by different versions of the score numeric (1 and "
        f"{NUMERIC}), which may decide differently; `powersample regrade {old}` first.\n"
    )
    for command in ("compare", "report"):
        assert refused([command, str(old), str(new)], capsys) == reason
    assert main(["regrade", str(old)]) == 0
    out, err = capsys.readouterr()
    assert f"{old}: verdicts that changed on 8 answers: strict 8, numeric 3." in err
    assert "8 answers have other verdicts" in " ".join(out.split())
    assert "2 methods on 8 common problems" in said(["compare", str(old), str(new)], capsys)
    assert [summary(run)["accuracy"]["numeric"]["mean"] for run in (old, new)] == [5 / 8, 5 / 8]
    answers = [problem["answers"][0][0] for problem in problems_on(old / "report.html")]
    assert answers[0]["thought"] == r"<think>Is it \boxed{5}?</think>"


def test_a_run_gone_on_with_keeps_both_versions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    sampled(run)
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[:2]))
    aged(run)
    capsys.readouterr()
    assert main(list(map(str, ["run", *SAMPLED, "--run-dir", run]))) == 2
    reason = (
        f"powersample: The answers of {run} were graded by different versions of the score numeric (version 1: 2, "
        f"version {NUMERIC}: 4), which may decide differently; `powersample regrade {run}` grades all by the present "
        "one.\n"
    )
    assert reason in capsys.readouterr().err
    assert sorted(grade.get("version", 1) for grade in numeric(run)) == [1, 1, *[NUMERIC] * 4]
    for command in (["report", str(run)], ["export", str(run), "--to", "parquet"]):
        assert refused(command, capsys) == reason
    assert main(["regrade", str(run)]) == 0
    assert said(["report", str(run)], capsys)
    assert summary(run)["versions"]["numeric"] == NUMERIC


def test_a_regrade_by_another_end_of_thoughts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = replay(tmp_path, "run", [{"text": f"[THINK]5[/THINK]<think> {2 * i}"} for i in range(1, 9)])
    assert summary(run)["open_thought_rate"] == 1
    assert main(["regrade", str(run), "--thought-end", "[/THINK]"]) == 0
    assert "verdicts that changed on 8 answers: numeric 8." in capsys.readouterr().err
    assert summary(run)["accuracy"]["numeric"]["mean"] == 1
    assert main(["regrade", str(run)]) == 0
    assert "verdicts that changed on 8 answers: none." in capsys.readouterr().err
