"""A run that grows, or of which a part is asked for, as a user types it: what is there stays, what is new is owed."""

from __future__ import annotations

import fcntl
import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from evals.types import UserError
from orchestrator.commands.watch import RunWatcher
from orchestrator.rundir.extents import Extent
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.rundir.writing.ownership import ensure_manifest
from orchestrator.settings.config import RunConfig, former_fingerprint
from support.command import DEMO, answers, in_process, kill_after, named
from support.made_up import known

SHORT = {"MODEL": "demo", "TASK__MAX_NEW_TOKENS": 24, "SAMPLER__KIND": "temperature", "NUM_GPUS": 0}
ROWS = [json.loads(line) for line in (DEMO / "problems.jsonl").read_text().splitlines()[:12]]


def sampled(*flags: object, **variables: object) -> int:
    return in_process("run", "--inline", *flags, **named({"DATA": "demo"} | SHORT | variables))


def written(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def of_run(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run.json").read_text())


def told(directory: Path) -> str:
    """The report without what differs from start to start: seconds, memory, where it is from, how the run grew."""
    items = (directory / "report.md").read_text().split("\n- ")
    return "\n- ".join(
        item for item in items if not item.startswith(("Time:", "Memory:", "Provenance:", "Size:", "Wor"))
    )


@pytest.mark.serial
def test_a_grown_and_killed_run_has_the_records_of_one_and_reports_each_size(tmp_path: Path) -> None:
    whole, eight, run = tmp_path / "whole", tmp_path / "eight", tmp_path / "run"
    assert sampled("--run-dir", whole, "--limit", 12, "--num-samples", 2) == 0
    assert sampled("--run-dir", eight, "--limit", 8) == 0
    assert sampled("--run-dir", run, "--limit", 8) == 0
    assert told(run) == told(eight)
    first = (run / "records.jsonl").read_bytes()
    data = {"DATA": "demo", **SHORT, "BATCH_SIZE": 1}
    assert kill_after(9, run, signal.SIGKILL, "--inline", "--limit", 12, **data) == -9
    assert kill_after(13, run, signal.SIGKILL, "--inline", "--limit", 12, "--num-samples", 2, **data) == -9
    assert sampled("--run-dir", run, "--limit", 12, "--num-samples", 2) == 0
    assert answers(run) == answers(whole)
    log = (run / "records.jsonl").read_bytes()
    assert log.startswith(first)
    assert (told(run) == told(whole)) is False, "problems were added after results had been seen"
    assert "Problems were added after answers to the first 8 had been seen" in " ".join(told(run).split())

    assert sampled("--run-dir", run, "--limit", 8) == 0
    assert (run / "records.jsonl").read_bytes() == log
    assert told(run) == told(eight)
    asked = [(one["limit"], one["num_samples"], one["num_problems"], one["rows"]) for one in of_run(run)["extents"]]
    assert asked == [(8, 1, 8, 200), (12, 1, 12, 200), (12, 2, 12, 200), (8, 1, 8, 200)]
    seen = [one["answers"] for one in of_run(run)["extents"]]
    assert (seen[0], seen[1], seen[3]) == (0, 8, 24)
    assert 9 <= seen[2] <= 12
    assert (
        "- Size: the run was asked for 8 problems, 12 problems, 12 problems with 2 samples each and last for 8 "
        "problems, of which this report is; the answers to more are kept."
    ) in " ".join((run / "report.md").read_text().split())
    content, usual = of_run(run), of_run(eight)
    assert content["num_problems"] == 8
    assert content["config"]["num_samples"] == 1
    assert content["provenance"]["prompts_sha256"] == usual["provenance"]["prompts_sha256"]
    for name in ("rows_sha256", "prompt_ids_sha256"):
        assert content[name] == of_run(whole)[name]
    figures = json.loads((run / "summary.json").read_text())
    assert figures["num_owed"] == 0
    assert figures["timings"]["sampling_seconds"] > 0
    watcher = RunWatcher(run)
    assert (watcher.progress.num, watcher.progress.total, watcher.active) == (8, 8, False)


def test_by_the_default_name_it_is_the_same_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert sampled("--limit", 2) == sampled("--limit", 3, "--num-samples", 2) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == f"gsm8k_temperature-{of_run(run)['fingerprint'][:8]}"
    assert "2 of 6 answers are there, 4 are owed" in capsys.readouterr().err
    assert sampled("--limit", 1) == 0
    assert "1 of 1 answers are there, 5 more that were asked for before are kept, 0 are owed" in capsys.readouterr().err
    assert sampled("--limit", 2, SEED=1) == 0
    assert len(list((tmp_path / "runs").iterdir())) == 2


@pytest.mark.parametrize(
    ("sizes", "seen"), [((3,), None), ((3, 1, 3), None), ((3, 1, 5), 3), ((2, 3, 5), 2), ((2, 5, 2), None)]
)
def test_problems_are_added_to_the_most_that_were_asked_for(sizes: tuple[int, ...], seen: int | None) -> None:
    extents = [Extent(num_problems=size, num_samples=1, answers=i and sizes[0]) for i, size in enumerate(sizes)]
    run = known(num_problems=sizes[-1]).model_copy(update={"extents": extents})
    assert run.seen_problems == seen


def test_data_may_grow_where_their_first_rows_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = tmp_path / "data.jsonl", tmp_path / "run"
    written(data, ROWS[:3])
    assert sampled("--run-dir", run, DATA=data) == 0
    written(data, ROWS[:5])
    assert in_process("regrade", run) == 0, "the rows that it was asked are still there"
    assert sampled("--run-dir", run, DATA=data) == 0
    assert {problem for problem, _ in answers(run)} == set(range(5))
    assert [(one["num_problems"], one["rows"]) for one in of_run(run)["extents"]] == [(3, 3), (5, 5)]
    written(data, ROWS[:2])
    assert sampled("--run-dir", run, DATA=data) == 0
    assert json.loads((run / "summary.json").read_text())["num_records"] == 2
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    written(data, [*ROWS[:3], ROWS[6], ROWS[4], ROWS[5]])
    capsys.readouterr()
    assert sampled("--run-dir", run, DATA=data) == 2
    said = capsys.readouterr().err
    assert f"Row 3 of the data {data} is another than the run in {run} was made with; name the file it was" in said
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert sampled("--run-dir", run, "--limit", 3, DATA=data) == 0, "the rows that are asked for are the same"
    written(data, [{**ROWS[0], "answer": "#### 1"}, *ROWS[1:3]])
    assert sampled("--run-dir", run, DATA=data) == 2
    assert "holds another run (fingerprint" in capsys.readouterr().err


def test_a_directory_of_an_older_version_goes_on_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    prepared: list[str] = []

    def kept(config: RunConfig, provenance: Any) -> str:
        prepared.append(former_fingerprint(config, provenance))
        return prepared[-1]

    with monkeypatch.context() as patch:
        patch.setattr("orchestrator.driver.open_runs.fingerprint", kept)
        assert sampled("--limit", 3, "--run-dir", "runs/made") == 0
    content = {
        name: value for name, value in of_run(Path("runs/made")).items() if name not in ("extents", "rows_sha256")
    }
    assert content["fingerprint"] == prepared[0]
    older = Path(f"runs/gsm8k_temperature-{prepared[0][:8]}")
    Path("runs/made").rename(older)
    (older / "run.json").write_text(json.dumps(content))
    lines = (older / "records.jsonl").read_bytes().splitlines(keepends=True)
    (older / "records.jsonl").write_bytes(b"".join(lines[:2]))
    capsys.readouterr()
    assert sampled("--limit", 3) == 0
    assert f"{older}: 2 of 3 answers are there, 1 are owed" in capsys.readouterr().err
    assert of_run(older) == content
    assert sampled("--limit", 4, "--run-dir", older) == 2
    assert "limit: 3 there, 4 now" in capsys.readouterr().err
    assert in_process("report", older) == 0
    assert "Size:" not in (older / "report.md").read_text()


def test_a_run_json_that_has_lost_its_extents_grows_by_new_ones(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert sampled("--run-dir", run, "--limit", 2) == 0
    lost = {"extents", "provenance"}
    (run / "run.json").write_text(json.dumps({name: of_run(run)[name] for name in of_run(run).keys() - lost}))
    assert sampled("--run-dir", run, "--limit", 3) == 0
    assert in_process("report", run) == 0
    assert [(one["num_problems"], one.get("answers")) for one in of_run(run)["extents"]] == [(2, None), (3, 2)]


def test_rows_may_be_mended_until_there_is_an_answer(tmp_path: Path) -> None:
    data, run = tmp_path / "data.jsonl", tmp_path / "run"
    written(data, ROWS[:3])
    assert sampled("--run-dir", run, DATA=data) == 0
    (run / "records.jsonl").write_bytes(b"")  # as of a run that was killed before its first answer
    written(data, [ROWS[0], ROWS[4]])
    assert sampled("--run-dir", run, DATA=data) == 0
    assert len(of_run(run)["rows_sha256"]) == len(of_run(run)["prompt_ids_sha256"]) == 16
    assert in_process("regrade", run) == 0, "its rows are those that were asked"


def test_newer_scores_go_with_the_records_that_they_are_of(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert sampled("--run-dir", run, "--limit", 2) == in_process("regrade", run) == 0
    assert (run / "scores.jsonl").exists()
    (run / "records.jsonl").unlink()
    assert sampled("--run-dir", run, "--limit", 2, SEED=1) == 0
    assert not (run / "scores.jsonl").exists(), "they are of answers that are gone"
    assert "powersample regrade" not in (run / "report.md").read_text()


def test_rows_of_another_process_that_came_first_are_refused_under_the_lock(tmp_path: Path) -> None:
    """Between the check of the inputs and the lock the run may have been begun with other rows."""
    assert sampled("--limit", 2, "--run-dir", tmp_path / "run") == 0
    before = (tmp_path / "run/run.json").read_bytes()
    wanted = json.loads(before)
    wanted["rows_sha256"] = wanted["rows_sha256"][:-1] + "?"
    with pytest.raises(UserError, match="Another process has meanwhile begun this run with other rows"):
        ensure_manifest(tmp_path / "run", wanted)
    assert (tmp_path / "run/run.json").read_bytes() == before


def test_replayed_texts_grow_with_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, texts = tmp_path / "run", tmp_path / "texts.jsonl"
    replay = {"SAMPLER__KIND": "replay", "SAMPLER__TEXTS": texts}
    rows = [{"id": problem, "text": f"#### {problem}{k}"} for problem in range(4) for k in range(2)]
    written(texts, rows[:4:2])
    assert sampled("--run-dir", run, "--limit", 2, **replay) == 0
    written(texts, rows)
    assert sampled("--run-dir", run, "--limit", 4, "--num-samples", 2, **replay) == 0
    given = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    assert sorted(row["text"] for row in given) == [row["text"] for row in rows]
    assert [len(digits) for digits in of_run(run)["replayed_sha256"]] == [16] * 4
    written(texts, [*rows[:3], {"id": 1, "text": "changed"}, *rows[4:]])
    capsys.readouterr()
    assert sampled("--run-dir", run, "--limit", 4, "--num-samples", 2, **replay) == 2
    assert "The texts to replay for problem 1 are not those that the run in" in capsys.readouterr().err


def test_rows_of_generate_arrive_in_several_calls(tmp_path: Path) -> None:
    data, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    options = ["--model", "demo", "--output_file", out, "--input_file", data, "--max_new_tokens", 8, "--num-gpus", 0]
    for number in (2, 5, 3):
        written(data, [{"input": row["question"]} for row in ROWS[:number]])
        assert in_process("generate", "--inline", *options) == 0
        ids = [json.loads(line)["metadata"]["example_id"] for line in out.read_text().splitlines()]
        assert ids == list(range(number))
        assert in_process("validate", out, "--input", data) == 0
    assert len(answers(tmp_path / "out.jsonl.run")) == 5


def test_a_comparison_says_beside_its_test_what_has_grown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    grown, other = tmp_path / "grown", tmp_path / "other"
    assert sampled("--run-dir", grown, "--limit", 2) == sampled("--run-dir", grown, "--limit", 4) == 0
    assert sampled("--run-dir", other, "--limit", 4, SAMPLER__KIND="greedy") == 0
    capsys.readouterr()
    assert in_process("compare", grown, other) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert re.search(r"with 80 % power\. Problems were added to temperature 1 after answers had been seen: p and", said)
    assert in_process("compare", grown, other, "--json") == 0
    assert json.loads(capsys.readouterr().out)["problems_added_after_results"] == ["temperature 1"]
    assert sampled("--run-dir", grown, "--limit", 2) == 0
    capsys.readouterr()
    assert in_process("compare", grown, other, "--json") == 0
    compared = json.loads(capsys.readouterr().out)
    assert (compared["num_common"], compared["problems_added_after_results"]) == (2, [])


def test_two_extents_at_once_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sampled("--run-dir", tmp_path / "run", "--limit", 1) == 0
    before = of_run(tmp_path / "run")
    with (tmp_path / "run/lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sampled("--run-dir", tmp_path / "run", "--limit", 2) == 2
    assert "is being written by" in capsys.readouterr().err
    assert of_run(tmp_path / "run") == before
    assert Manifest.read(tmp_path / "run").extent.total == 1


def test_the_version_of_its_preset_stays_with_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    older, run = tmp_path / "older", tmp_path / "run"
    for directory in (older, run):
        assert sampled("--run-dir", directory, "--limit", 2) == 0
    assert "preset gsm8k (version 1)" in " ".join((run / "report.md").read_text().split())
    content = of_run(older)
    assert content["provenance"]["preset_version"] == "1"
    content["provenance"]["preset_version"] = "0"
    (older / "run.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert sampled("--run-dir", older, "--limit", 3) == 2
    assert "has begun with version 0 of the preset gsm8k, which is at version 1 now; go on" in capsys.readouterr().err
    assert in_process("compare", older, run) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "The runs asked differently (versions 0 and 1 of the preset gsm8k), and part of a difference" in said
    del content["provenance"]["preset_version"]
    (older / "run.json").write_text(json.dumps(content))
    assert in_process("compare", older, run) == 0, "an older run does not say its version"
    assert "asked differently" not in capsys.readouterr().out
    assert sampled("--run-dir", older, "--limit", 3) == 0
