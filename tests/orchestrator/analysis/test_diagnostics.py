"""Diagnostics of chains, candidates and several samples: exact figures, warnings, and silence on what is unknown."""

import io
import json
from typing import Any

import pytest

from evals.record import Record
from orchestrator.analysis.accuracy import at_k
from orchestrator.analysis.diagnostics import autocorrelation, chain_statistics, log_p_by_move, log_p_rise
from orchestrator.analysis.summarise import summarise, truncated
from orchestrator.analysis.summary import Rise
from orchestrator.live.progress import Progress
from orchestrator.report.run_text import run_report
from orchestrator.rundir.telemetry_rows import WorkerState
from support.made_up import FULL, POWER, chained, failed_record, known, make_record


def text_of(records: list[Record], sampler: dict[str, Any] = POWER, **changes: Any) -> str:
    run = known(sampler, len({record.problem_id for record in records}), **changes)
    summary = summarise(records, [], run)
    json.dumps(summary.as_json(), allow_nan=False)
    return " ".join(run_report(summary).split())


def test_figures_of_a_chain() -> None:
    chain = chain_statistics([chained(0), chained(1, null=8, accepted=1)])
    expected = {
        "moves": 20, "null": 12, "acceptance": 4 / 8, "null_rate": 0.6, "forwards_per_move": 12,
        "naive_per_move": 40, "forwards_to_naive": 0.3, "replayed_tokens": 180,
        "discarded_tokens": 24, "mean_cut": 0.5, "mean_divergence": 0.7,
        "mean_distinct": 4, "max_drift": 1e-5,
        "mean_drift": pytest.approx(2e-6), "ended": {"eos": 1, "stop": 0, "length": 0}, "ess": None,
    }  # fmt: skip
    assert {name: getattr(chain, name) for name in expected} == expected
    assert chain.expected_correct["numeric"].mean == 0.75


def test_report_of_a_chain() -> None:
    text = text_of([chained(i) for i in range(3)])
    for part in (
        "30 moves, 40.0 % of them null",
        "acceptance 50.0 % of the others",
        "12.0 tokens generated per move, by the kernel without replay and early rejection at least 40.0",
        "(at most 30.0 % of that)",
        "cut at 50.0 % of the answer on average, first difference at 70.0 %",
        "Saved: 270 tokens by replay, the ends of 6 proposals by early rejection. Drawn ahead and thrown away: 36",
        "Mean log p of the answers: -14.0, at the start -20.0; after",
        "after move 0: -20.0, 1: -20.0, 2: -20.0, 5: -20.0, 10: -14.0",
        "change over the last 3 moves +4.00 ± 0.00",
        "Ended: 100.0 % by EOS.",
        "at most 1e-05 nats, 2e-06 on average",
        "| numeric | 100.0 % | - |",
        "75.0 (32.9 to 89.0) |",
    ):
        assert part in text, part


def test_what_is_not_reported_is_not_zero() -> None:
    chain = chain_statistics([make_record(0, chain={"generated": 80, "prefilled": 50, "log_p": -3.0})])
    silent = {name for name, value in vars(chain).items() if value is None}
    assert {"moves", "null", "accepted", "rejected_early", "replayed_tokens", "acceptance", "max_drift"} <= silent
    text = text_of([make_record(0, chain={"generated": 80, "prefilled": 50, "log_p": -3.0})], {"kind": "greedy"})
    assert "Mean log p of the answers: -3.00." in text
    assert not any(word in text for word in ("Chain:", "Saved:", "Weights:", "Drift", "unknown %"))
    part = chain_statistics([chained(0), make_record(1, chain={"moves": 10, "generated": 9})])
    assert (part.moves, part.null, part.acceptance, part.forwards_per_move) == (20, 4, 0.5, 12)


def test_log_p_by_move_is_thinned_for_long_chains() -> None:
    long = [float(i) for i in range(1001)]
    assert log_p_by_move([chained(0, log_p_trace=[-3.0, -1.0])]) == [(0, -3.0), (1, -1.0)]
    points = log_p_by_move([chained(0, log_p_trace=long)])
    assert (points[0], points[-1], len(points)) == ((0, 0.0), (1000, 1000.0), 41)
    assert log_p_by_move([chained(0, log_p_trace=[-3.0]), make_record(1, chain={})]) == []


def test_rise_is_clustered_by_problem() -> None:
    flat, up = [-5.0] * 10, [-5.0] * 9 + [-2.0]
    rise = log_p_rise([chained(0, 0, log_p_trace=up), chained(0, 1, log_p_trace=flat), chained(1, log_p_trace=flat)])
    assert rise == Rise(mean=0.75, stderr=0.75, moves=3)
    assert log_p_rise([make_record(0, chain={})]) is None


def test_autocorrelation_is_centred_on_each_problem() -> None:
    high, low = [1.0, -1.0] * 4, [101.0, 99.0] * 4
    found = autocorrelation([chained(0, log_p_trace=high), chained(1, log_p_trace=low)])
    assert found == {"1": pytest.approx(-1), "2": pytest.approx(1), "5": pytest.approx(-1)}
    assert autocorrelation([chained(0, log_p_trace=[0.1] * 11)]) == {"1": None, "2": None, "5": None}
    assert autocorrelation([chained(0, log_p_trace=[0.0, 1.0])])["2"] is None
    short = autocorrelation([chained(0, log_p_trace=[-9.0, -9.0, -9.0, -9.0, -9.0, -1.0])])
    assert all(value is None or -1 <= value <= 1 for value in short.values())


def test_answers_that_the_rules_of_paper_end_early_are_not_cut_off_by_the_limit() -> None:
    early, late = (make_record(0, ended="length", tokens={"answer": n}) for n in (46, 160))
    assert [truncated(one, 160) for one in (early, late)] == [False, True]
    assert truncated(early, 0), "for any other method the end is the limit's"


def warnings_of(chain: dict[str, Any], sampler: dict[str, Any] = POWER) -> str:
    return " ".join(summarise([make_record(i, chain=chain) for i in range(300)], [], known(sampler, 300)).warnings)


def test_warnings_on_bad_mixing() -> None:
    quiet = {**FULL, "log_p_trace": [-20.0] * 11}
    assert warnings_of(quiet) == ""
    assert warnings_of({**quiet, "moves": 100, "null": 95, "accepted": 3}) == ""
    still = warnings_of({**quiet, "moves": 100, "null": 96, "accepted": 3})
    assert "96.0 % of the moves proposed the answer they started from" in still
    assert "Only 0.0 % of the proposals of another answer were accepted" in warnings_of({**quiet, "accepted": 0})
    assert "Mean log p still rose over the last 3 moves, by 4.00" in warnings_of(FULL)
    assert warnings_of({**quiet, "log_p_trace": FULL["log_p_trace"][::-1]}) == ""
    assert "effective sample size is 5.0 % of the candidates" in warnings_of({"ess": 0.8, "candidates": 16})
    assert warnings_of({"ess_final": 1.6, "particles": 16}) == ""
    assert "biased, for comparison only" in warnings_of(quiet, {"kind": "paper", "alpha": 4.0, "num_moves": 10})


def test_spread_of_log_z_is_within_problems() -> None:
    sums = {(0, 0): -10.0, (0, 1): -14.0, (1, 0): -50.0, (1, 1): -54.0}
    chain = chain_statistics([chained(*key, log_z_sum_first=value) for key, value in sums.items()])
    assert chain.log_z_sum_first_sd == pytest.approx(8**0.5)
    assert chain_statistics([chained(0)]).log_z_sum_first_sd is None


def test_weighted_candidates() -> None:
    snis = {"candidates": 16, "ess": 4.0, "generated": 900, "expected_correct": {"numeric": 0.25}}
    text = text_of([make_record(i, chain=snis) for i in range(2)], {"kind": "snis", "alpha": 4.0, "num_candidates": 16})
    assert "Weights: 16.0 candidates per answer, effective sample size 4.00 (25.0 %)." in text
    smc = {"particles": 8, "ess_final": 6.0, "resampled": 2, "log_z_hat": -9.5, "generated": 700}
    text = text_of([make_record(0, chain=smc)], {"kind": "smc", "alpha": 4.0, "num_candidates": 8})
    assert "8.00 particles per answer, effective sample size 6.00 (75.0 %), resampled 2.00 times" in text
    assert "sum of p^alpha -9.50" in text
    vote = {"candidates": 16, "votes": {"18": 8, "3": 4}, "generated": 900}
    majority = {"kind": "majority", "temperature": 1.0, "num_candidates": 16}
    text = text_of([make_record(0, chain=vote), make_record(1, chain={**vote, "votes": {}})], majority)
    assert "16.0 candidates per answer; 25.0 % of them gave the winning answer, 62.5 % none." in text


@pytest.mark.parametrize(
    ("sampler", "words"),
    [
        ({"kind": "power", "alpha": 4.0, "num_moves": 10, "num_effective_moves": None}, "power (alpha 4, 10 moves)"),
        ({**POWER, "num_effective_moves": 5}, "power (alpha 4, 5 effective moves)"),
        ({**POWER, "blocks": 3, "cuts": "entropy"}, "power (alpha 4, 10 moves, 3 blocks, entropy cuts)"),
        ({"kind": "paper", "alpha": 4.0, "num_moves": 10}, "paper (alpha 4, biased, for comparison only)"),
        ({"kind": "temperature", "temperature": 0.25, "top_k": 50}, "temperature 0.25, top 50"),
        ({"kind": "temperature", "temperature": 1.0, "top_k": 0, "top_p": 0.9}, "temperature 1, top_p 0.9"),
        ({"kind": "temperature", "temperature": 1.0, "top_k": 9, "top_p": 1.0}, "temperature 1, top 9"),
        ({"kind": "best_of", "alpha": 4.0, "num_candidates": 16}, "best of 16 by log p (alpha 4)"),
        ({"kind": "majority", "temperature": 1.0, "num_candidates": 16}, "majority of 16 (temperature 1)"),
        ({"kind": "snis", "alpha": 4.0, "num_candidates": 16}, "SNIS of 16 (alpha 4)"),
        ({"kind": "smc", "alpha": 4.0, "num_candidates": 16}, "SMC of 16 (alpha 4)"),
        ({"kind": "greedy"}, "greedy"),
        ({"kind": "replay", "texts": "/somewhere/answers.jsonl"}, "replay of answers.jsonl"),
        ({**POWER, "temperature": 0.5}, "power (alpha 4, 10 moves)"),
        ({**POWER, "alpha": 0.5}, "power"),
        ({"kind": "annealed", "alpha": 4.0}, "annealed"),
    ],
)
def test_every_method_has_a_name(sampler: dict[str, Any], words: str) -> None:
    """Also where an older run.json has a setting, a value or a kind that there is no longer."""
    assert known(sampler).method == words


def answered(problem_id: int, sample_index: int, answer: str | None, correct: bool = False) -> Record:
    grade = {"correct": correct, "answer": answer, "kind": "none" if answer is None else "number"}
    return make_record(problem_id, sample_index=sample_index, scores={"numeric": grade})


def test_pass_and_maj_at_k_of_records() -> None:
    first = [("18", True), ("18.0", True), ("3", False), ("3.00", False)]
    second = [("7", False), (None, False), (None, False), ("18", True)]
    records = [answered(i, k, *answer) for i, rows in enumerate((first, second)) for k, answer in enumerate(rows)]
    pass_at, maj_at, variances = at_k(records, 4)
    passes, votes, variance = pass_at["numeric"], maj_at["numeric"], variances["numeric"]
    assert list(passes) == ["1", "2", "3", "4"]
    assert list(votes) == ["1", "2", "4"]
    shares = [(1 / 2 + 1 / 4) / 2, (5 / 6 + 1 / 2) / 2, (1 + 3 / 4) / 2, 1]
    assert [passes[k].mean for k in passes] == pytest.approx(shares)
    assert votes["1"].mean == passes["1"].mean
    assert (votes["4"].mean, votes["4"].stderr) == (0.5, 0), "18.0 votes for 18, a tie scores a half"
    assert passes["1"].stderr == pytest.approx(1 / 8)
    assert variance.reruns == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert list(variance.stderr_with) == ["1", "4", "8", "inf"]
    assert at_k(records, 1) == ({}, {}, {})


def test_report_of_several_samples() -> None:
    bits = "1100"
    records = [make_record(i, bit == "1", k) for i in range(3) for k, bit in enumerate(bits)]
    text = text_of(records, num_samples=4)
    assert "| k | pass@k (numeric, % ± SE) | maj@k |" in text
    assert "| 4 | 100.0 (43.9 to 100.0) | 50.0 (21.9 to 78.1) |" in text
    assert "0.0 % lies between problems and 100.0 % between answers to the same one." in " ".join(text.split())
    half = summarise(records[:6], [], known(num_problems=3, num_samples=4))
    assert half.pass_at_k["numeric"]["4"].n == 1, "a problem with too few samples is left out"
    json.dumps(half.as_json(), allow_nan=False)


def test_failed_answers_count_as_wrong_everywhere() -> None:
    failed = failed_record(1)
    summary = summarise([chained(0), failed], [], known(num_problems=2))
    assert summary.accuracy["numeric"].mean == 0.5
    assert summary.chain.expected_correct["numeric"].mean == 0.375
    assert summary.chain.moves == 10


def test_the_last_line_of_progress_has_the_runs_mean_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("orchestrator.live.progress.time.monotonic", lambda: now[0])
    out = io.StringIO()
    progress = Progress("power", 2, [make_record(0)], out)
    now[0] += 10
    progress.add(make_record(1, correct=False))
    progress.add_row(WorkerState(time=110.0, worker="w0", tokens_per_second=700.0))
    progress.refresh()
    now[0] += 23
    progress.close()
    first, last = out.getvalue().splitlines()
    assert "700 tokens/s" in first
    assert "10 tokens/s on average" in last, "330 tokens in 33 seconds"


def test_progress_of_wrong_answers_is_no_certainty() -> None:
    out = io.StringIO()
    progress = Progress("power", 50, [make_record(i, correct=False) for i in range(50)], out)
    progress.close()
    assert out.getvalue().endswith(", numeric 0.0 %\n"), "without an error of 0"
