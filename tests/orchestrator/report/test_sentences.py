"""Every sentence of the reports, word for word: whole reports of made-up runs, and every warning."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from evals.record import Record
from evals.types import Grade
from orchestrator.analysis import warnings
from orchestrator.analysis.comparison import Comparison, compare
from orchestrator.analysis.load import Run
from orchestrator.analysis.summarise import summarise
from orchestrator.analysis.summary import Summary
from orchestrator.report import comparison_text, facts, run_text
from orchestrator.report.comparison_text import comparison_report, flips_text
from orchestrator.report.run_text import run_report, title
from orchestrator.rundir.extents import Extent
from orchestrator.rundir.telemetry_rows import Event, WorkerState
from support.made_up import PLAIN, POWER, chained, changed, failed_record, known, make_record


def everything() -> Summary:
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
    records: list[Record] = []
    for i in range(4):
        for k in range(2):
            trace = [-20.0 - i, -19.0, -20.0, -18.5, -17.0 + k, -16.0, -15.0 + i / 4]
            one = chained(i, k, (i + k) % 3 > 0, log_p_trace=trace, log_z_sum_first=-12.0 - k * (1 + i))
            memory = {"peak_bytes": (3 - k) << 30, "total_bytes": 32 << 30}
            ended = ("eos", "length", "stop")[(2 * i + k) % 3]
            records.append(changed(one, memory=memory, worker={"rank": k}, ended=ended, group=f"group {i // 2}"))
    unread = replace(records[1].scores["strict"], correct=False, answer=None, kind="none")
    records[1] = replace(records[1], scores=records[1].scores | {"strict": unread})
    thinking, unfinished = Grade(False, None, "open thought"), Grade(False, None, "unfinished", 1, True)
    records[0] = replace(records[0], scores=records[0].scores | {"numeric": thinking}, thought="open")
    records[2] = replace(records[2], scores=records[2].scores | {"numeric": unfinished}, ended="length")
    records[7] = replace(failed_record(3), sample_index=1)
    sizes = [(2, 1), (2, 1), (4, 1), (9, 2), (4, 2)]
    extents = [Extent(num_problems=n, num_samples=k, answers=n * k) for n, k in sizes]
    run = known(num_samples=2).model_copy(update={"extents": extents})
    summary = summarise(records, telemetry, run, num_damaged_telemetry=3, num_rescored=0)
    pools = {"mean_candidates": 16.0, "mean_particles": 8.0, "ess": 4.0, "ess_share": 0.25, "mean_resampled": 2.0}
    votes = {"mean_log_z_hat": -9.5, "vote_share": 0.5, "silent_share": 0.25}
    return replace(summary, chain=replace(summary.chain, **pools, **votes))


REPORT = """\
# problems.jsonl: tiny, power (alpha 4, 10 moves)

8 of 8 answers to 4 problems, 2 samples each, a subset of 1,319.

- Warning: Problems were added after answers to the first 2 had been seen: where those decided
  whether to add more, intervals and p values promise too much.
- Warning: Answers that failed and count as wrong: 1 (problems 3); records.jsonl says why.
- Warning: 42.9 % of the answers were cut off at the limit of 256 tokens; a longer
  task.max_new_tokens would tell whether they are wrong.
- Warning: 14.3 % of the answers are thoughts that never end, and count as wrong; a longer
  task.max_new_tokens would let them end, or task.thought_end names another token than theirs.
- Warning: The numeric score counts an answer that was cut off only if it was whole by then (a
  closed box, or `####` or "the answer is" with a number and something after it); by what stands in
  the cut-off texts it would be 50.0 % instead of 37.5 %.
- Warning: Mean log p still rose over the last 2 moves, by 2.00 ± 0.27: the chains have not
  converged; more moves would change the scores.
- Warning: Lines of telemetry.jsonl that are damaged and could not be read: 3; seconds and memory
  may be too low; the scores are not affected.
- Warning: Fewer than 300 problems (4): the intervals are wide, and small differences mean nothing.

| score                                  |  right |     SE | 95 % interval (t) |   expected |
| -------------------------------------- | -----: | -----: | ----------------: | ---------: |
| strict                                 | 37.5 % | ± 12.5 |    0.0 to 100.0 % | 43.8 ± 6.2 |
| flexible                               | 50.0 % | ± 25.0 |    0.0 to 100.0 % |          - |
| numeric                                | 37.5 % | ± 12.5 |    0.0 to 100.0 % | 65.6 ± 9.4 |
| numeric, cut-off answers as they stand | 50.0 % | ± 25.0 |    0.0 to 100.0 % |          - |

Errors are those of 2 groups of problems, which the data names. expected: % right ± SE of all
answers that the sampler weighted, by weight: candidates and particles by theirs, of a chain the
answers after all its moves, which until it has converged lie nearer to its start.

| k   | pass@k (numeric, % ± SE) |       maj@k |
| --- | -----------------------: | ----------: |
| 1   |              37.5 ± 12.5 | 37.5 ± 12.5 |
| 2   |              75.0 ± 25.0 | 62.5 ± 37.5 |

- Size: the run was asked for 2 problems, 4 problems, 9 problems with 2 samples each and last for 4
  problems with 2 samples each, of which this report is; the answers to more are kept.
- Answers: no answer 0.0 %, open thought 14.3 %, unfinished 14.3 %, truncated 42.9 %, failed 1; the
  scores disagree on 2. Numeric score of truncated answers 66.7 %, of finished ones 25.0 %. A later
  `powersample regrade` has changed no verdict.
- Tokens: 2,310 generated, 420 prefilled; per answer 50.0 of prompt, 80.0 of answer, 330 generated.
- Time: 11.0 s in all (set-up 2.0 s, Ray 1.5 s, load 2.5 s, sampling 5.0 s) over 2 starts; per
  answer 3.3 s on average, 3.0 s median, 4.7 s for 95 %, 5.0 s at most. Throughput: 462 tokens/s,
  1.40 answers/s.
- Chain: 70 moves, 40.0 % of them null (they proposed the answer they started from); acceptance
  50.0 % of the others; 12.0 tokens generated per move, by the kernel without replay and early
  rejection at least 40.0 (at most 30.0 % of that); cut at 50.0 % of the answer on average, first
  difference at 70.0 %; 4.00 distinct answers visited per chain.
- Saved: 630 tokens by replay, the ends of 14 proposals by early rejection. Drawn ahead and thrown
  away: 84 tokens.
- Mean log p of the answers: -14.0, at the start -20.0; after move 0: -21.3, 1: -19.0, 2: -20.0, 5:
  -16.0, 6: -14.7; change over the last 2 moves +2.00 ± 0.27; autocorrelation 0.65 (lag 1), 0.39
  (lag 2), -0.72 (lag 5), which so few moves bias downwards; sum of log Z of a problem's first
  answers varies by 1.53 (SD).
- Weights: 16.0 candidates, 8.00 particles per answer, effective sample size 4.00 (25.0 %),
  resampled 2.00 times; estimated log of the sum of p^alpha -9.50; 50.0 % of them gave the winning
  answer, 25.0 % none.
- Ended: 42.9 % by EOS, 14.3 % by a stop string, 42.9 % by the token limit.
- Drift of recomputed against stored log probabilities: at most 1e-05 nats, 2e-06 on average.
- Memory: at most 3.00 GiB of 32.00 GiB of device memory per worker, 2 workers (peaks 3.00 GiB,
  2.00 GiB); 10 slots each, 4.00 in use on average.
- Workers lost and replaced: 1; what they were answering was asked again.
- Provenance: model models/tiny, data problems.jsonl (sha256 dddddddd), shots 0, limit 256 tokens,
  seed 3, commit cccccccc, with changes, fingerprint ffffffff.
- Workers over time (memory, utilisation, slots, events): [timeline.svg](timeline.svg)
"""
OTHERS = ("# ", "Warning: ", "Provenance: ", "Workers over time")
"""How a report's items begin that are no facts."""
LITTLE = """\
# embedded problems: embedded model, temperature 1

6 of 6 answers to 3 problems, 2 samples each, a subset of 1,319.

- Warning: Fewer than 300 problems (3): the intervals are wide, and small differences mean nothing.

| score   |  right |     SE | 95 % interval (normal) |
| ------- | -----: | -----: | ---------------------: |
| numeric | 50.0 % | ± 28.9 |         0.0 to 100.0 % |

The scores strict, flexible and numeric agree on every answer; one stands for all.

| k   | pass@k (numeric, % ± SE) |       maj@k |
| --- | -----------------------: | ----------: |
| 1   |              50.0 ± 28.9 | 50.0 ± 28.9 |
| 2   |              66.7 ± 33.3 | 50.0 ± 28.9 |

Of the variance of one answer's score 50.0 % lies between problems and 50.0 % between answers to the
same one. Standard error over new problems: 33.3 with 1, 28.9 with 2, 26.4 with 4 samples each, 23.6
with ever more; over new answers to these problems: 16.7.

- Answers: no answer 0.0 %, truncated 0.0 %, failed 0.
- Tokens: 1,980 generated, 360 prefilled; per answer 50.0 of prompt, 80.0 of answer, 330 generated.
- Time: sampling 4.0 s; per answer 3.0 s on average, 3.0 s median, 4.0 s for 95 %, 4.0 s at most.
  Throughput: 495 tokens/s, 1.50 answers/s.
- Ended: 100.0 % by EOS.
- Memory: at most 0.00 GiB of host memory per worker, 1 worker.
- Provenance: model demo, data demo (sha256 dddddddd), shots 0, limit 256 tokens, seed 3, commit
  cccccccc, with changes, fingerprint ffffffff.
"""
WARNED = [
    "The run is incomplete: 6 of 7 answers are recorded, so all figures are provisional; start it again to finish it.",
    "Problems were added after answers to the first 5 had been seen: where those decided whether to add more, "
    "intervals and p values promise too much.",
    "Answers that failed and count as wrong: 1 (problems 5); records.jsonl says why.",
    "20.0 % of the answers were cut off at the limit of 256 tokens; a longer task.max_new_tokens "
    "would tell whether they are wrong.",
    "In 20.0 % of the texts the numeric grader found no answer at all.",
    "20.0 % of the answers are thoughts that never end, and count as wrong; a longer task.max_new_tokens would let "
    "them end, or task.thought_end names another token than theirs.",
    "The numeric score counts an answer that was cut off only if it was whole by then (a closed box, or `####` or "
    '"the answer is" with a number and something after it); by what stands in the cut-off texts it would be 16.7 % '
    "instead of 0.0 %.",
    "2 answers are formulas that the symbolic checker could not decide (not installed, too slow, "
    "or it failed); they count as wrong until `powersample regrade` decides them.",
    "The scores are those of a later `powersample regrade` (scores.jsonl), by which 2 answers have "
    "other verdicts than when they were sampled.",
    "The rules of paper do not leave p^alpha invariant: its scores are biased, for comparison only. "
    "They also end an answer at the length of the one before.",
    "96.0 % of the moves proposed the answer they started from: the chains hardly move; the "
    "model is sure of its answers, or alpha is too large.",
    "Only 0.0 % of the proposals of another answer were accepted: the chains are stuck.",
    "Mean log p still rose over the last 3 moves, by 4.00 ± 0.00: the chains have not converged; "
    "more moves would change the scores.",
    "The effective sample size is 5.0 % of the candidates: a few of them carry all the weight.",
    "Lines of telemetry.jsonl that are damaged and could not be read: 3; seconds and memory may be "
    "too low; the scores are not affected.",
    "Fewer than 300 problems (7): the intervals are wide, and small differences mean nothing.",
]
SINGLE = """\
# problems.jsonl, tiny: 3 methods on 4 common problems

- Warning (all runs): Fewer than 300 problems (4): the intervals are wide, and small differences
  mean nothing.
- Warning (all runs): The runs asked differently (preset, solved examples, token limit, stop
  strings), and part of a difference may come from that.
- Warning (power (alpha 4, 10 moves)): Mean log p still rose over the last 3 moves, by 4.00 ± 0.00:
  the chains have not converged; more moves would change the scores.

| method                    |           numeric |            expected | length | tokens/problem | run seconds |
| ------------------------- | ----------------: | ------------------: | -----: | -------------: | ----------: |
| power (alpha 4, 10 moves) |       50.0 ± 28.9 | 75.0 (38.3 to 87.2) |   80.0 |            330 |        5.00 |
| greedy                    | 0.0 (0.0 to 49.0) |                   - |   80.0 |            330 |        5.00 |
| temperature 1             |       50.0 ± 28.9 |                   - |   80.0 |            330 |        5.00 |

Scores are % right ± standard error, over the 4 common problems; the 95 % interval (Wilson) instead
where all are right or all are wrong. The scores strict, flexible and numeric agree on every answer;
one stands for all. expected: % right of all answers that the sampler weighted, by weight. length:
tokens of the final answer, mean. tokens/problem: tokens generated to get one answer to a problem,
mean. run seconds: wall time of sampling of the whole run, not of a problem.

Paired differences of the numeric score against **temperature 1**, in points, on the 4 common
problems:

| method                    |   difference |  95 % interval |   MDE | won | lost |   p | Holm p |
| ------------------------- | -----------: | -------------: | ----: | --: | ---: | --: | -----: |
| power (alpha 4, 10 moves) |  +0.0 ± 40.8 | -80.0 to +80.0 | 114.4 |   1 |    1 |   1 |      1 |
| greedy                    | -50.0 ± 28.9 | -106.6 to +6.6 |  80.9 |   0 |    2 | 0.5 |      1 |

The same of **power (alpha 4, 10 moves)** against other methods:

| against |   difference |  95 % interval |  MDE | won | lost |   p | Holm p |
| ------- | -----------: | -------------: | ---: | --: | ---: | --: | -----: |
| greedy  | +50.0 ± 28.9 | -6.6 to +106.6 | 80.9 |   2 |    0 | 0.5 |      1 |

won, lost: problems that only this method, or only the other, has right. p: exact McNemar test; Holm
p: adjusted for all 3 pairs. MDE: the true difference that such a pair of runs finds at 5 %
(two-sided) with 80 % power.

![Scores against tokens and settings](accuracy.svg)

- Provenance: model models/tiny, data problems.jsonl (sha256 dddddddd), shots 0 / 5, limit 256
  tokens / 128 tokens, seed 3, commit cccccccc, with changes, fingerprint ffffffff.
"""
FLIPS = """\
Flipped problems, which the runs do not have right equally often: 3 (--flips 3 shows all). run 1:
power (alpha 4, 10 moves); run 2: greedy; run 3: temperature 1.

| problem | gold | run 1 | run 2 | run 3 |
| ------- | ---: | ----: | ----: | ----: |
| 0       |   18 |    18 |    18 |    18 |

Problem 0, gold 18
  run 1, right (18): #### 18
  run 2, wrong (18): #### 18
  run 3, right (18): #### 18
"""
FLIPPED = """\
 0, gold 18
  run 1, sample 0, right (18):
    #### 18
  run 1, sample 1, right (18):
    #### 18
  run 2, sample 0, right (18):
    #### 18
  run 2, sample 1, wrong (18):
    #### 18
"""
GROUPED = """\
# problems.jsonl, tiny: 2 methods on 4 common problems

- Warning (all runs): Fewer than 300 problems (4): the intervals are wide, and small differences
  mean nothing.
- Warning (power (alpha 4, 10 moves)): Problems were added after answers to the first 2 had been
  seen: where those decided whether to add more, intervals and p values promise too much.

| method                    |     numeric | length | tokens/problem | run seconds |
| ------------------------- | ----------: | -----: | -------------: | ----------: |
| power (alpha 4, 10 moves) | 50.0 ± 50.0 |   80.0 |            330 |        5.00 |
| temperature 1             | 50.0 ± 50.0 |   80.0 |            330 |        5.00 |

Scores are % right ± standard error, over the 4 common problems. The scores strict, flexible and
numeric agree on every answer; one stands for all. length: tokens of the final answer, mean.
tokens/problem: tokens generated to get one answer to a problem, mean. run seconds: wall time of
sampling of the whole run, not of a problem.

Paired differences of the numeric score against **temperature 1**, in points, on the 4 common
problems:

| method                    | difference |  95 % interval | MDE |   p | Holm p |
| ------------------------- | ---------: | -------------: | --: | --: | -----: |
| power (alpha 4, 10 moves) |       +0.0 | -65.8 to +65.8 |   - |   1 |      1 |

Differences are of question means. p: permutation test on them (sign flips), by the 2 groups that
the data names; Holm p: adjusted for one pair. MDE: the true difference that such a pair of runs
finds at 5 % (two-sided) with 80 % power. Problems were added to power (alpha 4, 10 moves) after
answers had been seen: p and the intervals hold for a number of problems that was set beforehand.

- Provenance: model models/tiny, data problems.jsonl (sha256 dddddddd), shots 0, limit 256 tokens,
  seed 3, commit cccccccc, with changes, fingerprint ffffffff.
"""

SAME = "The runs have the same problems right.\n"
UNKNOWN = "unknown problems: unknown model, temperature 1"


def little() -> Summary:
    """The summary of one worker on a CPU that answered embedded problems, with no telemetry."""
    records = [make_record(i, i + k < 2, k, chain={}, worker={"rank": 0}) for i in range(3) for k in range(2)]
    run = known(PLAIN, 3, num_samples=2, model="demo").model_copy(update={"data": "demo"})
    return summarise(records, [], run)


def test_the_whole_report_word_for_word() -> None:
    assert run_report(everything(), "timeline.svg") == REPORT


def test_the_report_of_little_word_for_word() -> None:
    assert run_report(little()) == LITTLE


def test_a_run_that_does_not_say_its_model_has_a_title() -> None:
    run = known(PLAIN).model_copy(update={"model": None, "data": None})
    assert title(summarise([], [], run)) == UNKNOWN


def test_every_fact_is_said() -> None:
    items = [" ".join(item.split()) for item in REPORT.split("\n- ")]
    assert [fact(everything()) for fact in facts.FACTS] == [one for one in items if not one.startswith(OTHERS)]


def test_every_warning_word_for_word() -> None:
    records = [
        changed(
            chained(i, moves=100, null=96, accepted=0),
            scores={"numeric": {"correct": False, "answer": None, "kind": kind}},
        )
        for i, kind in enumerate(("none", "undecided", "open thought", "undecided", "unfinished"))
    ]
    records[4] = changed(
        records[4],
        scores={"numeric": {"correct": False, "kind": "unfinished", "correct_as_it_stands": True}},
        ended="length",
        tokens={"answer": 256},
    )
    run = known({"kind": "paper", "alpha": 4.0, "num_moves": 10}, num_problems=7)
    run = run.model_copy(update={"extents": [Extent(num_problems=n, num_samples=1, answers=5) for n in (5, 7)]})
    summary = summarise([*records, failed_record(5)], [], run, num_damaged_telemetry=3, num_rescored=2)
    summary = replace(summary, chain=replace(summary.chain, ess_share=0.05))
    assert list(warnings.warnings(summary)) == WARNED


def single() -> Comparison:
    """Runs with one sample of each problem, asked differently, in one of which nothing is right."""
    task = {"name": "gsm8k", "num_shots": 5, "max_new_tokens": 128, "preset": "chat", "stop": ["\n"]}
    verdicts = {"power": "1100", "wrong": "0000", "plain": "1010"}
    runs = {"power": known(), "wrong": known({"kind": "greedy"}, task=task), "plain": known(PLAIN)}
    records = {
        name: [chained(i, correct=one == "1") if name == "power" else make_record(i, one == "1", chain={})
               for i, one in enumerate(bits)]
        for name, bits in verdicts.items()
    }  # fmt: skip
    places = {name: run.model_copy(update={"directory": Path(name)}) for name, run in runs.items()}
    return compare([Run(summarise(records[name], [], places[name]), records[name]) for name in runs])


def grouped() -> Comparison:
    """Two runs with two samples of each problem, in two groups, of which the second answers alike."""
    runs = []
    for name, sampler in {"power": POWER, "plain": PLAIN}.items():
        records = [make_record(i, i > 1, k, chain={}, group=f"{i // 2}") for i in range(4) for k in range(2)]
        run = known(sampler, name=name, num_samples=2)
        if name == "power":
            extents = [Extent(num_problems=n, num_samples=2, answers=2) for n in (2, 4)]
            run = run.model_copy(update={"extents": extents})
        runs.append(Run(summarise(records, [], run), records))
    return compare(runs)


def test_a_comparison_word_for_word() -> None:
    compared = single()
    assert comparison_report(compared, "accuracy.svg") == SINGLE
    assert flips_text(compared, 1, whole=False) == FLIPS


def test_a_comparison_by_groups_word_for_word() -> None:
    assert comparison_report(grouped(), None) == GROUPED
    assert flips_text(grouped(), 1, whole=False) == SAME


def test_a_comparison_on_one_problem_word_for_word() -> None:
    runs = []
    for name, sampler in {"power": POWER, "plain": PLAIN}.items():
        records = [make_record(0, name == "power" or k == 0, k, chain={}) for k in range(2)]
        runs.append(Run(summarise(records, [], known(sampler, 1, name, num_samples=2)), records))
    report = comparison_report(compare(runs), None)
    cells = [cell.strip() for line in report.splitlines() if "± unknown" in line for cell in line.split("|")[1:-1]]
    assert cells[-6:] == ["power (alpha 4, 10 moves)", "+50.0 ± unknown", "unknown", "-", "1", "1"]
    assert flips_text(compare(runs), 1, whole=True).partition("\n\nProblem")[2] == FLIPPED


@pytest.mark.parametrize("module", [facts, warnings, run_text, comparison_text])
def test_no_phrase_is_in_none_of_these_texts(module: ModuleType) -> None:
    """A phrase that is new has to be in one of them, too."""
    said = " ".join(" ".join([REPORT, LITTLE, UNKNOWN, *WARNED, SINGLE, FLIPS, GROUPED, SAME]).split())
    tree = ast.parse(inspect.getsource(module))
    prose = {node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = [node for node in ast.walk(tree) if isinstance(node, ast.Constant) and node not in prose]
    texts = [node.value for node in constants if isinstance(node.value, str)]
    phrases = [" ".join(part.split()) for text in texts for part in re.split(r"\{.*?\}", text)]
    assert [phrase for phrase in phrases if re.search("[a-z] ", phrase) and phrase not in said] == []
