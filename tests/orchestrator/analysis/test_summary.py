"""Reducer, comparison and report on made-up records: exact figures, warnings, files that can be made again."""

import json
from argparse import Namespace
from dataclasses import asdict
from functools import reduce
from math import sqrt
from pathlib import Path

import pytest

from evals.record import Record
from evals.statistics import wilson
from evals.types import UserError
from orchestrator.analysis.summarise import summarise
from orchestrator.analysis.summary import Throughput
from orchestrator.commands.report import report
from orchestrator.report.make import write_report
from orchestrator.report.run_text import run_report
from orchestrator.rundir.reading.manifest import Manifest
from support.made_up import (
    POWER,
    TELEMETRY,
    as_run,
    chained,
    failed_record,
    known,
    make_record,
    refused,
    rows,
    save,
)


def test_summary_has_exact_figures() -> None:
    records = [make_record(0), make_record(1), make_record(2, correct=False, ended="length"), failed_record(3)]
    summary = summarise(records, TELEMETRY, known())
    assert (summary.num_problems, summary.num_records, summary.num_owed) == (4, 4, 0)
    assert (summary.num_failed, summary.failed) == (1, [(3, 0)])
    for name in ("strict", "flexible", "numeric"):
        score = summary.accuracy[name]
        assert score.mean == 0.5
        assert score.stderr == pytest.approx(sqrt(0.25 / 3))
        assert score.ci95 == pytest.approx(wilson(2, 4))
    assert summary.no_answer_rate == 0
    assert summary.truncated_rate == pytest.approx(1 / 3)
    assert (summary.right_if_finished, summary.right_if_truncated) == (1, 0)
    assert asdict(summary.timings) == {
        "setup_seconds": 1, "ray_seconds": 0, "load_seconds": 4, "sampling_seconds": 10, "total_seconds": 15,
        "num_starts": 1, "tail_seconds": 0,
        "answer_seconds": {"mean": 3, "p50": 3, "p95": pytest.approx(3.9), "max": 4},
    }  # fmt: skip
    tokens = summary.tokens
    assert (tokens.generated, tokens.mean_answer, tokens.mean_generated) == (990, 80, 330)
    assert summary.throughput == Throughput(tokens_per_second=99, problems_per_second=0.3)
    expected = {
        "moves": 30, "null": 6, "accepted": 12, "rejected_early": 3, "replayed_tokens": 21, "acceptance": 0.5,
        "forwards_per_move": 25, "mean_log_p_first": -20, "mean_log_p": -15,
    }  # fmt: skip
    assert {name: getattr(summary.chain, name) for name in expected} == expected
    assert (summary.pass_at_k, summary.maj_at_k, summary.variance) == ({}, {}, {})
    memory = summary.memory
    assert memory.peak_bytes == {"0": 1002, "1": 5000}
    assert (memory.largest_peak_bytes, memory.kind, memory.slots) == (5000, "rss", 10)
    assert memory.mean_active_slots == 4
    json.dumps(summary.as_json(), allow_nan=False)


KEYS = {
    "": "run num_problems num_samples num_records num_owed num_failed failed num_groups accuracy versions "
    "accuracy_as_they_stand pass_at_k maj_at_k variance no_answer_rate open_thought_rate unfinished_rate num_undecided "
    "num_rescored truncated_rate right_if_truncated right_if_finished num_disagreements timings tokens throughput "
    "chain memory num_deaths num_damaged_telemetry warnings",
    "run": "sampler task preset preset_version prompts_sha256 num_shots max_new_tokens stop num_problems num_samples "
    "model model_sha256 adapter data data_sha256 data_rows seed dtype git_commit git_dirty fingerprint extents method",
    "accuracy.numeric": "mean stderr ci95 interval n",
    "variance.numeric": "questions reruns stderr_reruns n stderr_with",
    "timings": "setup_seconds ray_seconds load_seconds sampling_seconds total_seconds num_starts tail_seconds "
    "answer_seconds",
    "timings.answer_seconds": "mean p50 p95 max",
    "tokens": "prompt answer generated prefilled mean_prompt mean_answer mean_generated mean_prefilled",
    "throughput": "tokens_per_second problems_per_second",
    "chain": "moves null accepted rejected_early initial_tokens replayed_tokens naive_tokens discarded_tokens "
    "acceptance null_rate forwards_per_move naive_per_move forwards_to_naive mean_log_p_first mean_log_p mean_cut "
    "mean_divergence mean_distinct mean_drift mean_candidates mean_particles mean_resampled mean_log_z_hat max_drift "
    "ess ess_share vote_share silent_share log_z_sum_first_sd log_p_by_move log_p_rise log_p_autocorrelation "
    "expected_correct ended",
    "chain.log_p_rise": "mean stderr moves",
    "memory": "peak_bytes largest_peak_bytes kind total_bytes slots mean_active_slots",
}
"""Where in summary.json -> the keys there, in their order, on which others may rely."""


def test_summary_json_keeps_its_keys() -> None:
    records = [chained(i, k) for i in range(2) for k in range(2)]
    content = json.loads(json.dumps(summarise(records, [], known(num_problems=2, num_samples=2)).as_json()))
    for place, keys in KEYS.items():
        part = reduce(lambda within, name: within[name], place.split(".") if place else [], content)
        assert list(part) == keys.split(), place


def test_several_samples_count_by_question() -> None:
    records = rows("1111 1101 0100 0000 1011 1111")
    score = summarise(records, [], known(num_problems=6, num_samples=4)).accuracy["numeric"]
    assert (score.mean, score.stderr) == pytest.approx((0.625, 0.167705), abs=1e-6)
    assert score.ci95 == pytest.approx([0.625 - 1.96 * 0.167705, 0.625 + 1.96 * 0.167705], abs=1e-4)


def test_a_share_of_nothing_is_not_mentioned() -> None:
    cut = [make_record(i, ended="length") for i in range(4)]
    text = " ".join(run_report(summarise(cut, [], known())).split())
    assert "Numeric score of truncated answers 100.0 %." in text
    assert "finished" not in text
    text = " ".join(run_report(summarise([*cut, make_record(4)], [], known(num_problems=5))).split())
    assert "Numeric score of truncated answers 100.0 %, of finished ones 100.0 %." in text


def test_pauses_are_not_sampling_time() -> None:
    times = [(100.0, 104.0), (102.0, 105.0), (500.0, 501.0)]
    records = [
        make_record(i, timings={"start": start, "end": end, "wall_seconds": end - start})
        for i, (start, end) in enumerate(times)
    ]
    assert summarise(records, [], known()).timings.sampling_seconds == 6


def test_summary_of_nothing() -> None:
    for run in (known(), known(num_samples=3)):
        summary = summarise([], [], run)
        json.dumps(summary.as_json(), allow_nan=False)
        assert summary.num_records == 0
        assert summary.accuracy["numeric"].mean is None
        assert summary.chain.acceptance is None


def sentences(records: list[Record], run: Manifest) -> str:
    return "\n".join(summarise(records, [], run).warnings)


def test_warnings() -> None:
    quiet = [make_record(i) for i in range(300)]
    assert sentences(quiet, known(num_problems=300)) == ""
    assert "Fewer than 300 problems (299)" in sentences(quiet[:299], known(num_problems=299))
    assert "incomplete: 299 of 300 answers" in sentences(quiet[:299], known(num_problems=300))
    cut = [make_record(i, ended="length") for i in range(7)] + quiet[7:]
    assert "2.3 % of the answers were cut off at the limit of 256 tokens" in sentences(cut, known(num_problems=300))
    assert sentences([make_record(0, ended="length"), *quiet[1:]], known(num_problems=300)) == ""
    nothing = {"numeric": {"correct": False, "answer": None, "kind": "none"}}
    empty = [make_record(i, scores=nothing) for i in range(7)] + quiet[7:]
    assert "In 2.3 % of the texts" in sentences(empty, known(num_problems=300))
    broken = [*quiet[:298], failed_record(298), failed_record(299)]
    assert "Answers that failed and count as wrong: 2 (problems 298, 299)" in sentences(broken, known(num_problems=300))


def test_scores_that_agree_are_shown_once() -> None:
    text = run_report(as_run("p", POWER, "1100").summary)
    assert "strict, flexible and numeric agree on every answer" in text
    assert "| strict" not in text
    right, wrong = ({"correct": correct, "answer": "18", "kind": "number"} for correct in (True, False))
    lone = [make_record(i, scores={"numeric": right}) for i in range(2)]
    assert "agree on every answer" not in run_report(summarise(lone, [], known(num_problems=2)))
    scores = {"strict": wrong, "flexible": right, "numeric": right}
    summary = summarise([make_record(0, scores=scores), make_record(1)], [], known(num_problems=2))
    text = run_report(summary)
    assert "agree on every answer" not in text
    assert "the scores disagree on 1" in " ".join(text.split())
    assert all(f"| {name}" in text for name in ("strict", "flexible", "numeric"))


def content(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_report_of_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = save(tmp_path / "power", POWER, "1101")
    assert report(Namespace(runs=[directory], grader="numeric")) == 0
    text = capsys.readouterr().out
    files = content(directory)
    assert files["report.md"].decode() == text
    assert json.loads(files["summary.json"])["accuracy"]["strict"]["mean"] == 0.75
    for part in (
        "# problems.jsonl: tiny, power (alpha 4, 10 moves)",
        "4 of 4 answers to 4 problems, a subset of 1,319.",
        "| numeric | 75.0 % | ± 25.0 |         30.1 to 95.4 % |",
        "no answer 0.0 %, truncated 0.0 %, failed 0",
        "15.0 s in all (set-up 1.0 s, load 4.0 s, sampling 10.0 s)",
        "acceptance 50.0 %",
        "the ends of 4 proposals by early rejection",
        "commit cccccccc, with changes, fingerprint ffffffff",
    ):
        assert part in text or part in " ".join(text.split())
    assert "accuracy" not in text.lower()
    assert max(map(len, text.splitlines())) <= 100
    (directory / "summary.json").unlink()
    (directory / "report.md").unlink()
    assert write_report([directory]) == text
    assert content(directory) == files


def test_the_order_of_completion_does_not_matter(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", POWER, "1101001"), save(tmp_path / "b", POWER, "1101001", shuffled=True)
    assert write_report([a]) == write_report([b])
    assert (a / "summary.json").read_bytes() == (b / "summary.json").read_bytes()


@pytest.mark.parametrize("log", [None, b"", b'{"torn": '])
@pytest.mark.parametrize("command", ["report", "regrade"])
def test_a_run_without_an_answer_is_refused_and_keeps_its_summary(
    command: str, log: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = save(tmp_path / "run", POWER, "1101")
    write_report([directory])
    (directory / "records.jsonl").unlink()
    if log is not None:
        (directory / "records.jsonl").write_bytes(log)
    before = content(directory)
    said = refused([command, str(directory)], capsys)
    assert "has no answer yet (records.jsonl is missing or empty); go on with it first" in said
    assert content(directory) == before


def test_damaged_telemetry_is_skipped_and_said(tmp_path: Path) -> None:
    directory = save(tmp_path / "run", POWER, "1101")
    good = write_report([directory])
    log = directory / "telemetry.jsonl"
    first, *others = log.read_bytes().splitlines(keepends=True)
    damaged = (
        b'{"kind": "event", "ti', b"\xff", b"", b"[1]", b'{"kind": "event"}', b'{"time": 1}',
        b'{"kind": "event", "event": "phase", "time": 1}', b'{"kind": "event", "event": "tail", "time": 1}',
        b'{"kind": "sample", "worker": 0, "time": 1}', b'{"kind": "sample", "worker": "w", "time": NaN}',
        b'{"kind": "sample", "time": 1, "memory": 3}',
    )  # fmt: skip
    log.write_bytes(b"".join([first, *(line + b"\n" for line in damaged), *others]))
    death = {"kind": "event", "event": "death", "time": 1.0, "worker": "cpu0", "cause": "crash", "lost": 2}
    assert "Workers lost" not in write_report([directory])
    with log.open("a") as file:
        file.write(json.dumps(death) + "\n")
    text = write_report([directory])
    summary = json.loads((directory / "summary.json").read_text())
    assert (summary["num_damaged_telemetry"], summary["num_deaths"]) == (len(damaged), 1)
    assert "Workers lost and replaced: 1;" in text
    assert any(
        "Lines of telemetry.jsonl that are damaged and could not be read: 11" in line for line in summary["warnings"]
    )
    assert "15.0 s in all (set-up 1.0 s, load 4.0 s, sampling 10.0 s)" in text
    assert "damaged" not in good


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent is not a run directory"):
        report(Namespace(runs=[tmp_path / "absent"], grader="numeric"))
    with pytest.raises(UserError, match=r"no run\.json"):
        report(Namespace(runs=[tmp_path], grader="numeric"))
    assert list(tmp_path.iterdir()) == []
