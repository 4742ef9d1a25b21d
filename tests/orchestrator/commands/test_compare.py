"""`powersample compare` as users type it: what it prints, its JSON, its refusals; and on runs of the embedded model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from evals.record import encode
from evals.types import Grade
from orchestrator.cli import main
from support.command import DEMO, run
from support.logs import read_records
from support.made_up import PLAIN, POWER, failed_record, make_record, make_run, refused, said, write

METHOD = "power (alpha 4, 10 moves)"


def write_run(directory: Path, sampler: dict[str, Any], *rows: str, **changes: Any) -> Path:
    """A run on disk; a row has the numeric answers to a problem: 18 is right, - none, and an empty row is not there.

    The score `strict` has all of them wrong.
    """
    records = []
    for i, row in enumerate(rows):
        for k, answer in enumerate(row.split()):
            found = {"correct": answer == "18", "answer": None if answer == "-" else answer, "kind": "number"}
            scores = {"strict": {"correct": False, "answer": "#", "kind": "number"}, "numeric": found}
            records.append(failed_record(i) if answer == "!" else make_record(i, sample_index=k, scores=scores))
    samples = max(len(row.split()) for row in rows)
    return write(directory, make_run(sampler, len(rows), **{"num_samples": samples, **changes}), records)


@pytest.fixture
def runs(tmp_path: Path) -> tuple[str, str]:
    """T = 1 and power sampling on 24 and 23 problems, of which power wins ten and loses two."""
    power = ["18"] * 10 + ["-", "|7|\x1b[31m"] + ["18"] * 4 + ["3"] * 7 + [""]
    plain = ["20"] * 9 + ["!"] + ["18"] * 2 + ["18"] * 4 + ["3"] * 8
    found = write_run(tmp_path / "t1", PLAIN, *plain), write_run(tmp_path / "power", POWER, *power)
    return str(found[0]), str(found[1])


def test_compare_of_two_runs(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(Path(runs[0]).parent.rglob("*"))
    text = said(["compare", *runs], capsys)
    assert "# problems.jsonl, tiny: 2 methods on 23 common problems" in text
    assert f"| {METHOD} | +34.8 ± 13.5 | +8.3 to +61.2 | 37.8 |  10 |    2 | 0.0386 | 0.0386 |" in text
    flipped = text.partition("Flipped problems")[2]
    assert "equally often: 12. run 1: temperature 1; run 2: power" in " ".join(flipped.split())
    rows = [[cell.strip() for cell in line.split(" | ")] for line in flipped.splitlines() if line.startswith("| ")]
    assert rows[0] == ["| problem", "gold", "run 1", "run 2 |"]
    assert rows[2:4] == [["| 0", "18", "20", "18 |"], ["| 1", "18", "20", "18 |"]]
    assert rows[11:] == [
        ["| 9", "18", "failed", "18 |"],
        ["| 10", "18", "18", "no answer |"],
        ["| 11", "18", "18", "\\|7\\|\N{REPLACEMENT CHARACTER}[31m |"],
    ]
    assert max(map(len, flipped.splitlines())) <= 100
    assert sorted(Path(runs[0]).parent.rglob("*")) == before, "nothing is written"


def test_flipped_problems_are_shown_with_what_both_runs_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(write_run(tmp_path / name, PLAIN, "18", "18 20 20")) for name in ("a", "b")]
    texts = {"a": ["One.\n#### 20", "x", "y", "z"], "b": ["Two \x1b[31m.\n" + "so " * 200 + "18", "#### 18", "y", "z"]}
    for name, written in texts.items():
        path = tmp_path / name / "records.jsonl"
        records = [replace(record, text=text) for record, text in zip(read_records(path), written, strict=True)]
        if name == "a":
            records[0] = replace(records[0], scores={"numeric": Grade(False, "20")})
        path.write_bytes(b"".join(map(encode, records)))
    ends = said(["compare", *runs], capsys).partition("Problem 0, gold 18\n")[2]
    assert ends.startswith("  run 1, wrong (20): One. #### 20\n  run 2, right (18): …")
    assert " ".join(ends.split()).endswith("so so so 18")
    assert ends.count("so") <= 67
    assert "\n\n" not in ends
    assert max(map(len, ends.splitlines())) <= 100
    whole = said(["compare", "--texts", *runs], capsys).partition("Problem 0, gold 18\n")[2]
    assert whole.startswith("  run 1, wrong (20):\n    One.\n    #### 20\n  run 2, right (18):\n    Two ")
    assert ("\N{REPLACEMENT CHARACTER}[31m." in whole, "\x1b" in whole, whole.count("so ")) == (True, False, 200)


def test_the_reference_is_that_of_the_report(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["compare", *runs[::-1], "--flips", "0"], capsys)
    assert f"| {METHOD} | +34.8 ± 13.5 |" in text
    assert main(["report", *runs[::-1]]) == 0
    assert text.partition("- Provenance")[0] in capsys.readouterr().out


def test_the_number_of_flips_is_limited(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    for limit in (0, 5, 12):
        text = said(["compare", *runs, f"--flips={limit}"], capsys).partition("Flipped problems")[2]
        assert sum(line.startswith("| ") for line in text.splitlines()) == (limit and limit + 2)
        assert ("--flips 12 shows all" in " ".join(text.split())) == (limit < 12)


def test_json_has_the_same_numbers(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(said(["compare", "--json", *runs], capsys))
    assert (found["reference"], found["num_common"], found["test"]) == ("temperature 1", 23, "mcnemar")
    (pair,) = found["pairs"]
    assert (pair["run"], pair["against"], pair["won"], pair["lost"]) == (METHOD, "temperature 1", 10, 2)
    assert pair["difference"] == pytest.approx(8 / 23)
    assert pair["mde"] == pytest.approx(2.8016 * pair["stderr"], rel=1e-4)
    assert (pair["p"], pair["p_holm"]) == (pytest.approx(0.038574, abs=1e-6),) * 2
    assert [one["accuracy"]["n"] for one in found["runs"]] == [23, 23]
    assert len(found["flips"]) == 12
    answers = {"temperature 1": [["20", False]], METHOD: [["18", True]]}
    texts = {"temperature 1": [make_record(0).text], METHOD: [make_record(0).text]}
    assert found["flips"][0] == {"problem_id": 0, "gold": "18", "answers": answers, "texts": texts}
    found = json.loads(said(["compare", "--json", *runs, "--flips", "3", "--grader", "strict"], capsys))
    (pair,) = found["pairs"]
    assert (found["grader"], pair["p"], pair["mde"], found["flips"]) == ("strict", 1, None, [])


def test_several_samples_per_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Matrices A and B."""
    answers = str.maketrans({"1": "18 ", "0": "7 "})
    bits = {"a": (POWER, "1111 1101 0100 0000 1011 1111"), "b": (PLAIN, "1101 1001 0000 0000 1001 1110")}
    runs = [
        write_run(tmp_path / name, sampler, *(row.translate(answers) for row in rows.split()))
        for name, (sampler, rows) in bits.items()
    ]
    text = said(["compare", *map(str, runs)], capsys)
    rows = [line.split() for line in text.partition("Flipped problems")[2].splitlines() if line.startswith("| ")]
    assert [" ".join(row) for row in rows[2:4]] == [
        "| 0 | 18 | 18 ×4 | 18 ×3, 7 |",
        "| 1 | 18 | 18 ×3, 7 | 18 ×2, 7 ×2 |",
    ]
    assert "p: permutation test" in " ".join(text.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["t1"], "at least two run directories"),
        (["t1", "nowhere"], "not a run directory"),
        (["t1", "exports"], "not a run directory"),
        (["."], "are of different tasks"),
        (["t1", "t1"], "named twice"),
        (["t1", "power", "--flips", "-1"], "--flips: '-1' is not a whole number from 0"),
        (["t1", "power", "--flips"], "--flips needs a value"),
        (["t1", "power", "--grader", "exact"], "no score exact; it has strict, numeric"),
        (["t1", "power", "--all"], "unknown option --all"),
        (["t1", "math"], "are of different tasks"),
        (["t1", "late"], "no answered problem in common"),
    ],
)
def test_mistakes_are_one_sentence_and_code_2(
    arguments: list[str],
    words: str,
    runs: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_run(tmp_path / "math", POWER, "18", task={"name": "math"})
    write_run(tmp_path / "late", POWER, *[""] * 24, "18")
    (tmp_path / "exports").mkdir()
    monkeypatch.chdir(tmp_path)
    assert words in refused(["compare", *arguments], capsys)


def test_a_directory_of_runs_stands_for_them_in_the_order_of_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (demo := tmp_path / "runs").mkdir()
    low, greedy = {"kind": "temperature", "temperature": 0.25}, {"kind": "greedy"}
    samplers = {"b": greedy, "low": low, "power": POWER, "a": low, "t1": PLAIN, "greedy": greedy}
    for name, sampler in samplers.items():
        write_run(demo / name, sampler, "18", "20")
    (demo / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    order = [f"runs/{name}" for name in ("greedy", "t1", "low", "power", "a", "b")]
    found = json.loads(said(["compare", "runs", "--json"], capsys))
    assert [one["directory"] for one in found["runs"]] == order
    text = said(["report", "runs"], capsys)
    assert (demo / "report.md").exists()
    assert said(["report", *order], capsys) == text
    for command in (["export", "runs", "--to", "inspect"], ["regrade", "runs"]):
        assert f"it holds the runs {', '.join(order)}; name one of them." in refused(command, capsys)
    (demo / "b" / "records.jsonl").write_bytes(b"")
    assert main(["compare", "runs"]) == 0
    assert "runs/b has no answer yet and is left out." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ({}, "does not say config.sampler, config.task.name, num_problems, config.num_samples; restore it"),
        ({"num_problems": None}, "does not say num_problems; restore it"),
        ({"config": {"sampler": PLAIN, "task": {"name": "gsm8k"}}}, "does not say config.num_samples; restore it"),
        (
            {"config": {"sampler": {"kind": "power", "num_moves": 1}, "task": {"name": "gsm8k"}, "num_samples": 1}},
            "does not say config.sampler.alpha; restore it",
        ),
        ({"fingerprint": 7}, "does not say fingerprint; restore it"),
    ],
)
def test_a_damaged_run_json_is_one_sentence(
    damage: dict[str, Any], words: str, runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(runs[0], "run.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **damage} if damage else {}))
    before = sorted(Path(runs[0]).rglob("*"))
    watched = [] if "fingerprint" in damage else [["watch", runs[0], "--once"]]
    for command in (*watched, ["report", runs[0]], ["compare", *runs]):
        assert f"{path} is damaged: it {words}" in refused(command, capsys)
    assert sorted(Path(runs[0]).rglob("*")) == before


def test_a_record_without_scores_is_one_sentence(runs: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    log = Path(runs[0], "records.jsonl")
    *records, last = read_records(log)
    log.write_bytes(b"".join(map(encode, [*records, replace(last, scores={})])))
    for command in (["report", runs[0]], ["compare", *runs]):
        said = f"sample 0 of problem {last.problem_id} has no numeric score; `powersample regrade {runs[0]}` scores"
        assert said in refused(command, capsys)


@pytest.mark.parametrize(
    ("damage", "words"),
    [({"scores": None}, "scores is None"), ({"scores": {"numeric": None}}, "scores.numeric is None"),
     ({"text": None}, "text is None"), ({"chain": []}, "chain is []"), ({"tokens": None}, "tokens is None")],
)  # fmt: skip
def test_a_damaged_record_is_one_sentence(
    damage: dict[str, Any], words: str, runs: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(runs[0], "records.jsonl")
    path.write_bytes(path.read_bytes() + (json.dumps(asdict(make_record(30)) | damage) + "\n").encode())
    for command in (["report", runs[0]], ["compare", *runs], ["regrade", runs[0]], ["watch", runs[0], "--once"]):
        assert f"{path}, line 25: not a record ({words}: " in refused(command, capsys)


@pytest.mark.ray
@pytest.mark.slow
def test_power_against_temperature_1_of_the_embedded_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run("--run-dir", tmp_path / "demo", "--limit", 60)
    assert done.returncode == 0, done.stderr
    found = json.loads(said(["compare", str(tmp_path / "demo/t1"), str(tmp_path / "demo/power"), "--json"], capsys))
    (pair,) = found["pairs"]
    assert (pair["run"], pair["against"], pair["n"]) == (METHOD, "temperature 1", 60)
    assert pair["ci95"][0] > 0, "power sampling is better"
    assert pair["p"] < 0.01
    assert len(found["flips"]) == pair["won"] + pair["lost"]
    golds = [row["answer"] for row in map(json.loads, (DEMO / "problems.jsonl").read_text().splitlines())]
    for flip in found["flips"]:
        assert golds[flip["problem_id"]].endswith(f"#### {flip['gold']}")
        ((_, plain),), ((_, power),) = flip["answers"]["temperature 1"], flip["answers"][METHOD]
        assert plain != power
