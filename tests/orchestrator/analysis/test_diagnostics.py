"""Diagnostics of chains, candidates and several samples: exact figures, warnings, and silence on what is unknown."""

import io
import json
from typing import Any

import pytest

from evals.record import Record
from orchestrator.analysis.accuracy import at_k
from orchestrator.analysis.diagnostics import autocorrelation, chain_statistics, log_p_by_move, log_p_rise
from orchestrator.analysis.summary import WARNINGS, summarise, truncated, warnings
from orchestrator.live.progress import Progress
from orchestrator.report.run_text import FACTS, figures_of, run_report
from orchestrator.rundir.reading.manifest import method
from orchestrator.rundir.telemetry_rows import Event, WorkerState
from orchestrator.wording import fill_in
from support.made_up import POWER, failed_record, known, make_record

FULL = {
    "moves": 10, "null": 4, "accepted": 3, "rejected_early": 2, "generated": 200, "prefilled": 50, "initial_tokens": 80,
    "replayed_tokens": 90, "naive_tokens": 400, "discarded_tokens": 12,
    "mean_cut": 0.5, "mean_divergence": 0.7, "distinct": 4, "drift_max": 1e-5, "drift_mean": 2e-6,
    "log_p_first": -20.0, "log_p": -14.0, "log_z_sum_first": -12.0,
    "log_p_trace": [-20.0] * 7 + [-18.0, -16.0, -15.0, -14.0], "expected_correct": {"numeric": 0.75, "strict": 0.5},
}  # fmt: skip


def chained(problem_id: int, sample_index: int = 0, correct: bool = True, **changes: Any) -> Record:
    return make_record(problem_id, correct, sample_index, chain={**FULL, **changes})


def text_of(records: list[Record], sampler: dict[str, Any] = POWER, **changes: Any) -> str:
    run = known(sampler, len({record.problem_id for record in records}), **changes)
    summary = summarise(records, [], run)
    json.dumps(summary, allow_nan=False)
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
    assert {name: chain[name] for name in expected} == expected
    assert chain["expected_correct"]["numeric"]["mean"] == 0.75


def test_report_of_a_chain() -> None:
    text = text_of([chained(i) for i in range(3)])
    for part in (
        "30 moves, 40.0 % of them null",
        "acceptance 50.0 % of the others",
        "12.0 tokens generated per move, by the kernel without replay and early rejection at least 40.0",
        "(at most 30.0 % of that)",
        "cut at 50.0 % of the answer on average, first difference at 70.0 %",
        "Saved: 270 tokens by replay, the ends of 6 drafts by early rejection. Drawn ahead and thrown away: 36 tokens.",
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
    silent = {name for name, value in chain.items() if value is None}
    assert {"moves", "null", "accepted", "rejected_early", "replayed_tokens", "acceptance", "max_drift"} <= silent
    text = text_of([make_record(0, chain={"generated": 80, "prefilled": 50, "log_p": -3.0})], {"kind": "greedy"})
    assert "Mean log p of the answers: -3.00." in text
    assert not any(word in text for word in ("Chain:", "Saved:", "Weights:", "Drift", "unknown %"))
    part = chain_statistics([chained(0), make_record(1, chain={"moves": 10, "generated": 9})])
    assert (part["moves"], part["null"], part["acceptance"], part["forwards_per_move"]) == (20, 4, 0.5, 12)


def test_log_p_by_move_is_thinned_for_long_chains() -> None:
    short, long = {"log_p_trace": [-3.0, -1.0]}, {"log_p_trace": [float(i) for i in range(1001)]}
    assert log_p_by_move([short]) == [[0, -3.0], [1, -1.0]]
    points = log_p_by_move([long])
    assert (points[0], points[-1], len(points)) == ([0, 0.0], [1000, 1000.0], 41)
    assert log_p_by_move([{"log_p_trace": [-3.0]}, {}]) == []


def test_rise_is_clustered_by_problem() -> None:
    flat, up = [-5.0] * 10, [-5.0] * 9 + [-2.0]
    rise = log_p_rise([chained(0, 0, log_p_trace=up), chained(0, 1, log_p_trace=flat), chained(1, log_p_trace=flat)])
    assert rise == {"mean": 0.75, "stderr": 0.75, "moves": 3}
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
    early, late = (make_record(0)._replace(ended="length", tokens={"answer": n}) for n in (46, 160))
    assert [truncated(one, 160) for one in (early, late)] == [False, True]
    assert truncated(early, 0), "for any other method the end is the limit's"


def warnings_of(sampler: dict[str, Any] = POWER, **changes: Any) -> str:
    quiet = {"log_p_trace": [-20.0] * 11, **changes}
    return " ".join(summarise([chained(i, **quiet) for i in range(300)], [], known(sampler, 300))["warnings"])


def test_warnings_on_bad_mixing() -> None:
    assert warnings_of() == ""
    assert warnings_of(moves=100, null=95, accepted=3) == ""
    assert "96.0 % of the moves proposed the answer they started from" in warnings_of(moves=100, null=96, accepted=3)
    assert "Only 0.0 % of the proposals of another answer were accepted" in warnings_of(accepted=0)
    assert "Mean log p still rose over the last 3 moves, by 4.00" in warnings_of(log_p_trace=FULL["log_p_trace"])
    assert warnings_of(log_p_trace=FULL["log_p_trace"][::-1]) == ""
    assert "effective sample size is 5.0 % of the candidates" in warnings_of(ess=0.8, candidates=16)
    assert warnings_of(ess_final=1.6, particles=16) == ""
    assert "biased, for comparison only" in warnings_of({"kind": "paper", "alpha": 4.0, "num_moves": 10})


def test_spread_of_log_z_is_within_problems() -> None:
    sums = {(0, 0): -10.0, (0, 1): -14.0, (1, 0): -50.0, (1, 1): -54.0}
    chain = chain_statistics([chained(*key, log_z_sum_first=value) for key, value in sums.items()])
    assert chain["log_z_sum_first_sd"] == pytest.approx(8**0.5)
    assert chain_statistics([chained(0)])["log_z_sum_first_sd"] is None


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
        ({"kind": "paper", "alpha": 4.0}, "paper (alpha 4, biased, for comparison only)"),
        ({"kind": "temperature", "temperature": 0.25, "top_k": 50}, "temperature 0.25, top 50"),
        ({"kind": "temperature", "temperature": 1.0, "top_k": 0, "top_p": 0.9}, "temperature 1, top_p 0.9"),
        ({"kind": "temperature", "temperature": 1.0, "top_k": 9, "top_p": 1.0}, "temperature 1, top 9"),
        ({"kind": "best_of", "alpha": 4.0, "num_candidates": 16}, "best of 16 by log p (alpha 4)"),
        ({"kind": "majority", "temperature": 1.0, "num_candidates": 16}, "majority of 16 (temperature 1)"),
        ({"kind": "snis", "alpha": 4.0, "num_candidates": 16}, "SNIS of 16 (alpha 4)"),
        ({"kind": "smc", "alpha": 4.0, "num_candidates": 16}, "SMC of 16 (alpha 4)"),
        ({"kind": "greedy"}, "greedy"),
        ({}, "unknown method"),
    ],
)
def test_every_method_has_a_name(sampler: dict[str, Any], words: str) -> None:
    assert method(sampler) == words


def answered(problem_id: int, sample_index: int, answer: str | None, correct: bool = False) -> Record:
    grade = {"correct": correct, "answer": answer, "kind": "none" if answer is None else "number"}
    return make_record(problem_id, sample_index=sample_index, scores={"numeric": grade})


def test_pass_and_maj_at_k_of_records() -> None:
    first = [("18", True), ("18.0", True), ("3", False), ("3.00", False)]
    second = [("7", False), (None, False), (None, False), ("18", True)]
    records = [answered(i, k, *answer) for i, rows in enumerate((first, second)) for k, answer in enumerate(rows)]
    found = at_k(records, 4)
    passes, votes = found["pass_at_k"]["numeric"], found["maj_at_k"]["numeric"]
    assert list(passes) == ["1", "2", "3", "4"]
    assert list(votes) == ["1", "2", "4"]
    shares = [(1 / 2 + 1 / 4) / 2, (5 / 6 + 1 / 2) / 2, (1 + 3 / 4) / 2, 1]
    assert [passes[k]["mean"] for k in passes] == pytest.approx(shares)
    assert votes["1"]["mean"] == passes["1"]["mean"]
    assert (votes["4"]["mean"], votes["4"]["stderr"]) == (0.5, 0), "18.0 votes for 18, a tie scores a half"
    assert passes["1"]["stderr"] == pytest.approx(1 / 8)
    variance = found["variance"]["numeric"]
    assert variance["reruns"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert list(variance["stderr_with"]) == ["1", "4", "8", "inf"]
    assert at_k(records, 1) == {"pass_at_k": {}, "maj_at_k": {}, "variance": {}}


def test_report_of_several_samples() -> None:
    bits = "1100"
    records = [make_record(i, bit == "1", k) for i in range(3) for k, bit in enumerate(bits)]
    text = text_of(records, num_samples=4)
    assert "| k | pass@k (numeric, % ± SE) | maj@k |" in text
    assert "| 4 | 100.0 (43.9 to 100.0) | 50.0 (21.9 to 78.1) |" in text
    assert "0.0 % lies between problems and 100.0 % between answers to the same one." in " ".join(text.split())
    half = summarise(records[:6], [], known(num_problems=3, num_samples=4))
    assert half["pass_at_k"]["numeric"]["4"]["n"] == 1, "a problem with too few samples is left out"
    json.dumps(half, allow_nan=False)


def test_failed_answers_count_as_wrong_everywhere() -> None:
    failed = chained(1)._replace(status="failed", scores={}, chain={})
    summary = summarise([chained(0), failed], [], known(num_problems=2))
    assert summary["accuracy"]["numeric"]["mean"] == 0.5
    assert summary["chain"]["expected_correct"]["numeric"]["mean"] == 0.375
    assert summary["chain"]["moves"] == 10


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
    assert "numeric 0.0 (0.0 to 7.1) %" in out.getvalue()


def everything() -> dict[str, Any]:
    """The summary of a run that is none, since each of the report's sentences has something to say."""
    telemetry = [
        Event(event="start", time=90.0),
        *(
            Event(event="phase", name=name, time=at)
            for name, at in [("setup", 90.0), ("ray", 91.0), ("load", 92.5), ("sampling", 95.0), ("end", 100.0)]
        ),
        Event(event="start", time=200.0),
        Event(event="phase", name="setup", time=200.0),
        Event(event="death", time=201.0),
        *(
            WorkerState(time=97.0 + i, worker="gpu0", pid=7, slots=10, steps=25 * i, generated_tokens=100 * i)
            for i in range(2)
        ),
    ]
    pooled = {
        "candidates": 16, "particles": 8, "ess": 4.0, "resampled": 2, "log_z_hat": -9.5, "votes": {"18": 8, "3": 4},
    }  # fmt: skip
    records: list[Record] = []
    for i in range(4):
        for k in range(2):
            trace = [-20.0 - i, -19.0, -20.0, -18.5, -17.0 + k, -16.0, -15.0 + i / 4]
            one = chained(i, k, (i + k) % 3 > 0, **pooled, log_p_trace=trace, log_z_sum_first=-12.0 - k * (1 + i))
            records.append(
                one._replace(
                    memory={"peak_bytes": (3 - k) << 30, "total_bytes": 32 << 30},
                    worker={"rank": k},
                    ended=("eos", "length", "stop")[(2 * i + k) % 3],
                    group=f"group {i // 2}",
                )
            )
    unread = {"correct": False, "answer": None, "kind": "none"}
    records[1] = records[1]._replace(scores=records[1].scores | {"strict": unread})
    records[7] = failed_record(3)._replace(sample_index=1)
    return summarise(records, telemetry, known(num_samples=2), num_damaged_telemetry=3, num_rescored=0)


REPORT = """\
# problems.jsonl: tiny, power (alpha 4, 10 moves)

8 of 8 answers to 4 problems, 2 samples each, a subset of 1,319.

- Warning: Answers that failed and count as wrong: 1 (problems 3); records.jsonl says why.
- Warning: 28.6 % of the answers were cut off at the limit of 256 tokens; a longer
  task.max_new_tokens would tell whether they are wrong.
- Warning: Mean log p still rose over the last 2 moves, by 2.00 ± 0.27: the chains have not
  converged; more moves would change the scores.
- Warning: Lines of telemetry.jsonl that are damaged and could not be read: 3; seconds and memory
  may be too low; the scores are not affected.
- Warning: Fewer than 300 problems (4): the intervals are wide, and small differences mean nothing.

| score    |  right |     SE | 95 % interval (t) |   expected |
| -------- | -----: | -----: | ----------------: | ---------: |
| strict   | 37.5 % | ± 12.5 |    0.0 to 100.0 % | 43.8 ± 6.2 |
| flexible | 50.0 % | ± 25.0 |    0.0 to 100.0 % |          - |
| numeric  | 50.0 % | ± 25.0 |    0.0 to 100.0 % | 65.6 ± 9.4 |

Errors are those of 2 groups of problems, which the data names. expected: % right ± SE of all
answers that the sampler weighted, by weight: candidates and particles by theirs, of a chain the
answers after all its moves, which until it has converged lie nearer to its start.

| k   | pass@k (numeric, % ± SE) |       maj@k |
| --- | -----------------------: | ----------: |
| 1   |              50.0 ± 25.0 | 50.0 ± 25.0 |
| 2   |              75.0 ± 25.0 | 50.0 ± 25.0 |

- Answers: no answer 0.0 %, truncated 28.6 %, failed 1; the scores disagree on 1. Numeric score of
  truncated answers 100.0 %, of finished ones 40.0 %. A later `powersample regrade` has changed no
  verdict.
- Tokens: 2,310 generated, 420 prefilled; per answer 50.0 of prompt, 80.0 of answer, 330 generated.
- Time: 11.0 s in all (set-up 2.0 s, Ray 1.5 s, load 2.5 s, sampling 5.0 s) over 2 starts; per
  answer 3.3 s on average, 3.0 s median, 4.7 s for 95 %, 5.0 s at most. Throughput: 462 tokens/s,
  1.40 answers/s.
- Chain: 70 moves, 40.0 % of them null (they proposed the answer they started from); acceptance
  50.0 % of the others; 12.0 tokens generated per move, by the kernel without replay and early
  rejection at least 40.0 (at most 30.0 % of that); cut at 50.0 % of the answer on average, first
  difference at 70.0 %; 4.00 distinct answers visited per chain.
- Saved: 630 tokens by replay, the ends of 14 drafts by early rejection. Drawn ahead and thrown
  away: 84 tokens.
- Mean log p of the answers: -14.0, at the start -20.0; after move 0: -21.3, 1: -19.0, 2: -20.0, 5:
  -16.0, 6: -14.7; change over the last 2 moves +2.00 ± 0.27; autocorrelation 0.65 (lag 1), 0.39
  (lag 2), -0.72 (lag 5), which so few moves bias downwards; sum of log Z of a problem's first
  answers varies by 1.53 (SD).
- Weights: 16.0 candidates, 8.00 particles per answer, effective sample size 4.00 (25.0 %),
  resampled 2.00 times; estimated log of the sum of p^alpha -9.50; 50.0 % of them gave the winning
  answer, 25.0 % none.
- Ended: 42.9 % by EOS, 28.6 % by a stop string, 28.6 % by the token limit.
- Drift of recomputed against stored log probabilities: at most 1e-05 nats, 2e-06 on average.
- Memory: at most 3.00 GiB of 32.00 GiB of device memory per worker, 2 workers (peaks 3.00 GiB,
  2.00 GiB); 10 slots each, 4.00 in use on average.
- Workers lost and replaced: 1; what they were answering was asked again.
- Provenance: model models/tiny, data problems.jsonl (sha256 dddddddd), shots 0, limit 256 tokens,
  seed 3, commit cccccccc, with changes, fingerprint ffffffff.
- Workers over time (memory, utilisation, slots, events): [timeline.svg](timeline.svg)
"""


def test_the_whole_report_word_for_word() -> None:
    """A phrase that is new has to be in it, too."""
    summary = everything()
    figures = figures_of(summary)
    assert [phrase for fact in FACTS for phrase in fact.split("|") if not fill_in(phrase, figures)] == []
    assert run_report(summary, "timeline.svg") == REPORT


def test_every_warning_word_for_word() -> None:
    bad = {"moves": 100, "null": 96, "accepted": 0, "ess": 0.8, "candidates": 16}
    kinds = ("none", "undecided", "number", "undecided")
    records = [
        chained(i, **bad)._replace(scores={"numeric": {"correct": False, "answer": None, "kind": kind}})
        for i, kind in enumerate(kinds)
    ]
    records[0] = records[0]._replace(ended="length", tokens=records[0].tokens | {"answer": 256})
    run = known({"kind": "paper", "alpha": 4.0, "num_moves": 10}, num_problems=6)
    said = warnings(summarise([*records, failed_record(4)], [], run, num_damaged_telemetry=3, num_rescored=2))
    assert said == {
        "incomplete": "The run is incomplete: 5 of 6 answers are recorded, so all figures are provisional; start it "
        "again to finish it.",
        "failed": "Answers that failed and count as wrong: 1 (problems 4); records.jsonl says why.",
        "truncated": "25.0 % of the answers were cut off at the limit of 256 tokens; a longer task.max_new_tokens "
        "would tell whether they are wrong.",
        "silent": "In 25.0 % of the texts the numeric grader found no answer at all.",
        "undecided": "2 answers are formulas that the symbolic checker could not decide (not installed, too slow, or"
        " it failed); they count as wrong until `powersample regrade` decides them.",
        "rescored": "The scores are those of a later `powersample regrade` (scores.jsonl), by which 2 answers have "
        "other verdicts than when they were sampled.",
        "paper": "The rules of paper do not leave p^alpha invariant: its scores are biased, for comparison only. "
        "They also end an answer at the length of the one before.",
        "null": "96.0 % of the moves proposed the answer they started from: the chains hardly move; the model is "
        "sure of its answers, or alpha is too large.",
        "acceptance": "Only 0.0 % of the proposals of another answer were accepted: the chains are stuck.",
        "rise": "Mean log p still rose over the last 3 moves, by 4.00 ± 0.00: the chains have not converged; more "
        "moves would change the scores.",
        "ess": "The effective sample size is 5.0 % of the candidates: a few of them carry all the weight.",
        "damaged": "Lines of telemetry.jsonl that are damaged and could not be read: 3; seconds and memory may be "
        "too low; the scores are not affected.",
        "few": "Fewer than 300 problems (6): the intervals are wide, and small differences mean nothing.",
    }
    assert said.keys() == WARNINGS.keys()
