"""The benchmarks of the sampler on a few embedded problems: what they print, and that it adds up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import determinism, methods, sampler
from benchmarks.methods import Method, against_power, fitted, methods_table, nearest
from evals.record import Record
from evals.samplers.trace import MoveFigures
from evals.statistics import holm, mcnemar_exact, paired_difference
from evals.types import Grade, UserError
from orchestrator.analysis.load import Run
from orchestrator.analysis.summarise import summarise
from orchestrator.report.make import write_report
from support.made_up import known

PROMISED = {
    "initial_tokens", "naive_tokens", "early_rejection_tokens", "replay_tokens", "both_tokens", "ratio", "moves",
    "null_moves", "accepted",
}  # fmt: skip


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_savings_are_counted_for_one_and_the_same_chain(capsys: pytest.CaptureFixture[str]) -> None:
    assert sampler.main(["--limit", "3", "--moves", "6"]) == 0
    found = last_line(capsys)
    assert found.keys() >= PROMISED
    assert not any("prefetch" in name or "measured" in name for name in found), "only when asked for"
    assert (found["problems"], found["moves"], found["differing_chains"]) == (3, 18, 0)
    replayed = found["naive_tokens"] - found["replay_tokens"]
    assert replayed > 0
    assert found["early_rejection_tokens"] - found["both_tokens"] == replayed
    assert found["both_tokens"] < found["replay_tokens"]
    assert found["ratio"] == round(found["both_tokens"] / found["naive_tokens"], 4)
    assert found["accepted"] + found["null_moves"] + found["rejected_early"] <= found["moves"]


@pytest.mark.slow
def test_naive_kernels_and_prefetch_are_measured_when_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--limit", "2", "--moves", "6", "--slots", "8", "--prefetch", "3", "--measure-naive"]
    assert sampler.main([*command, "--max-new-tokens", "80"]) == 0
    found = last_line(capsys)
    assert found["measured_naive_tokens"] > found["measured_early_rejection_tokens"]
    assert found["prefetch"] == 3
    assert found["discarded_tokens"] > 0
    assert found["generated_tokens"] == found["initial_tokens"] + found["both_tokens"]
    assert min(found["prefetch_seconds"], found["prefetch_0_seconds"], found["prefetch_speedup"]) > 0
    assert found["measured_differing_chains"] == found["prefetch_differing_chains"] == 0


@pytest.mark.parametrize("arguments", [("--slots", "0"), ("--moves", "-1"), ("--alpha", "nan"), ("--limit", "few")])
def test_numbers_out_of_range_are_refused(arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        sampler.main(arguments)
    assert f"argument {arguments[0]}: " in capsys.readouterr().err


def record(problem_id: int, right: bool = True, **chain: Any) -> Record:
    known = {"moves": 2, "null": 1, "accepted": 1, "mean_cut": 0.5, "log_p_trace": (-3.0, -2.0, -2.0)}
    return Record(problem_id, 0, "ok", "", [5], "eos", {"numeric": Grade(right, "1")}, MoveFigures(**known | chain))


def test_one_other_decision_is_noticed() -> None:
    base = [record(0), record(1)]
    assert sampler.differing(base, [record(0), record(1)]) == 0
    assert sampler.differing(base, [record(0), record(1, log_p_trace=(-3.0, -3.0, -2.0))]) == 1
    assert sampler.differing(base, [replace(record(0), token_ids=[6]), record(1, null=0)]) == 2


def test_another_decision_on_a_cpu_is_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sampler, "differing", lambda one, other: 1)
    assert sampler.main(["--limit", "1", "--moves", "1", "--max-new-tokens", "20"]) == 1
    assert "decided differently" in capsys.readouterr().err


@pytest.mark.parametrize("main", [sampler.main, methods.main])
def test_a_mistake_is_one_sentence(main: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(tmp_path / "none.jsonl"), "--device", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "none.jsonl cannot be read" in err


@pytest.mark.parametrize(("flag", "value"), [("--alpha", "0.5"), ("--limit", "1"), ("--slots", "0")])
def test_what_methods_cannot_do_is_refused(
    flag: str, value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert methods.main([flag, value, "--device", "cpu", "--run-dir", str(tmp_path / "runs")]) == 2
    assert capsys.readouterr().err.startswith("methods.py: ")
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_methods_are_ordinary_runs_and_a_complete_one_is_not_run_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["--limit", "3", "--quick", "--moves", "3", "--device", "cpu", "--run-dir", str(tmp_path)]
    assert methods.main([*command, "--max-new-tokens", "90"]) == 0
    found = last_line(capsys)
    rows = {row["name"]: row for row in found["methods"]}
    assert list(rows) == ["greedy", "t1", "low", "best_of", "majority", "snis", "smc", "power"]
    assert rows["power"]["p"] is None
    assert all(rows[name]["p_holm"] >= rows[name]["p"] for name in list(rows)[:-1])
    assert [(one["alpha"], one["moves"]) for one in found["alpha"]] == [(1, 0), (1, 3), (4, 0), (4, 3)]
    assert [one["moves"] for one in found["moves"]] == [0, 3]
    assert found["moves"][0]["tokens_per_problem"] == rows["low"]["tokens_per_problem"], "0 moves is the low run"
    assert found["moves"][1]["tokens_per_problem"] == rows["power"]["tokens_per_problem"]
    for group, axis in {"methods": "tokens generated", "alpha": "Score and alpha", "moves": "Score and moves"}.items():
        assert axis in (tmp_path / group / "accuracy.svg").read_text()
        assert " methods on 3 common problems" in (tmp_path / group / "report.md").read_text()
    assert "greedy" in write_report([tmp_path / "greedy", tmp_path / "power-a4-m3"], tmp_path)

    monkeypatch.setattr(methods, "start_pool", lambda *_: pytest.fail("nothing is owed"))
    assert methods.main([*command, "--max-new-tokens", "90"]) == 0
    assert last_line(capsys) == found


def method(name: str, rights: str, tokens: float = 50.0, k: int = 1) -> Method:
    records = [record(i, right == "1") for i, right in enumerate(rights)]
    summary = summarise(records, [], known(name=name))
    score = replace(summary.accuracy["numeric"], stderr=0.1)
    spent = replace(summary.tokens, mean_generated=tokens)
    return Method(name, k, Run(replace(summary, accuracy={"numeric": score}, tokens=spent), records))


def test_differences_to_power_are_paired_and_adjusted_together() -> None:
    power = "1111111110"
    others = {"greedy": "1111110000", "low": "0000000010", "smc": "1111111101"}
    rows = against_power([*(method(name, rights) for name, rights in others.items()), method("power", power)])
    exact = [mcnemar_exact(0, 3), mcnemar_exact(0, 8), mcnemar_exact(1, 1)]
    assert [row["p"] for row in rows] == [*exact, None]
    assert [row["p_holm"] for row in rows[:-1]] == holm(exact)
    difference = paired_difference([float(x) for x in others["low"]], [float(x) for x in power])
    assert (rows[1]["difference"], rows[1]["difference_stderr"]) == (difference.mean, difference.stderr)
    assert "| low    |   1 |           50.0 | 10.0 ± 10.0 | -80.0 ± 13.3 | 0.0078 |  0.023 |" in methods_table(rows)


@pytest.mark.parametrize(
    ("budget", "tokens", "k"), [(200.0, 62.0, 3), (10.0, 62.0, 1), (220.0, 62.0, 4), (1e9, 1.0, 64), (10.0, 0.0, 1)]
)
def test_the_nearest_number_of_candidates(budget: float, tokens: float, k: int) -> None:
    assert nearest(budget, tokens) == k


@pytest.mark.parametrize(("each", "k"), [(62.0, 3), (45.0, 4), (90.0, 2)])
def test_k_is_put_right_by_the_methods_own_tokens(each: float, k: int) -> None:
    class Fake:
        def candidates(self, kind: str, k: int, alpha: float) -> Method:
            return method(kind, "10", tokens=k * each, k=k)

    found = fitted(Fake(), "smc", 4.0, tokens=62.0, budget=200.0)  # type: ignore[arg-type]
    assert found.k == k


@pytest.mark.slow
def test_slots_change_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--slots", "1,3", "--run-dir", str(tmp_path), "--model", "demo", "--data", "demo", "--limit", "4"]
    assert determinism.main([*command, "--inline", "--sampler.num-moves", "4"]) == 0
    found = last_line(capsys)
    assert (found["answers"], found["device"]) == (4, "cpu")
    one, three = found["runs"]
    assert (one["slots"], one["against"], one["tokens"]) == (1, None, None)
    assert (three["slots"], three["against"]) == (3, ["float32", 1])
    assert [three[name] for name in ("tokens", "numeric", "score")] == [0, 0, 0]
    for slots in (1, 3):  # it was measured what the flag says
        events = (tmp_path / f"float32-{slots}/telemetry.jsonl").read_text().splitlines()
        assert next(row for row in map(json.loads, events) if row.get("event") == "start")["slots"] == slots


def test_differing_answers_are_counted_by_what_differs() -> None:
    def answered(problem_id: int, answer: str | None, right: bool = False) -> Record:
        return replace(record(problem_id), scores={"numeric": Grade(right, answer)}, token_ids=[problem_id])

    base = [answered(0, "18", True), answered(1, "5"), answered(2, None), answered(3, "7")]
    same = [replace(one, token_ids=[9]) for one in base]
    other = [answered(0, "18.0", True), answered(1, "6"), answered(2, "3", True), answered(3, "7")]
    assert determinism.differences(base, base) == (0, 0, 0)
    assert determinism.differences(base, same) == (4, 0, 0)
    assert determinism.differences(base, other) == (0, 2, 1)
    with pytest.raises(UserError, match="same problems"):
        determinism.differences(base, base[1:])


def test_runs_are_compared_within_their_dtype_and_other_tokens_in_float32_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answered(path: Path) -> Run:
        records = [replace(record(0), token_ids=[tokens[path.name]])]
        return Run(summarise(records, [], known(name=str(path), num_gpus=0)), records)

    tokens = {"float32-1": 5, "float32-8": 6, "bfloat16-1": 7, "bfloat16-8": 8}
    monkeypatch.setattr(determinism, "run", lambda *_: 3)
    monkeypatch.setattr(determinism, "load_run", answered)
    assert determinism.main(["--slots", "1,8", "--dtypes", "float32,bfloat16"]) == 1
    out, err = capsys.readouterr()
    against = [row["against"] for row in json.loads(out.splitlines()[-1])["runs"]]
    assert against == [None, ["float32", 1], ["float32", 1], ["bfloat16", 1]]
    assert "float32 on a CPU is an error" in err
    tokens["float32-8"] = 5
    assert determinism.main(["--slots", "1,8", "--dtypes", "float32,bfloat16"]) == 0
    monkeypatch.setattr(determinism, "run", lambda *_: 2)
    assert determinism.main(["--slots", "1"]) == 2
