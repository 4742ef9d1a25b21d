"""Compares power sampling with every method at the same token budget, and its own score over alpha and over moves.

    python benchmarks/methods.py                                     the embedded model and problems
    python benchmarks/methods.py --model FOLDER --data FILE.jsonl --limit 200 --slots 64

Power's generated tokens per problem are the budget. Methods of K candidates get the K whose tokens come closest to it;
greedy and plain sampling stand beside with what one answer costs. Differences to power are paired by problem. Then
alpha and the number of moves are varied; 0 moves is the low-temperature run at every alpha.

Every method is an ordinary run directory, which is resumed, or only read if it is complete; all share one worker in
this process, without Ray. Each group has a report.md and an accuracy.svg in a directory of its own. Ends with one JSON
line; its p is the exact McNemar test's, with several answers per problem the sign-flip test's.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from typing import Any, NamedTuple

from pydantic import ValidationError

from evals.samplers.power import Power
from evals.samplers.registry import AnySampler, sampler_of
from evals.samplers.single import AtTemperature, Greedy
from evals.statistics import holm
from evals.types import UserError
from orchestrator.analysis.accuracy import PRIMARY_METRIC, question_means
from orchestrator.analysis.comparison import Pair, pair
from orchestrator.analysis.load import Run, load_run
from orchestrator.driver.open_runs import open_runs, prepare_runs
from orchestrator.driver.session import FAILED, answer_owed, show_progress, start_pool
from orchestrator.driver.signals import Stop
from orchestrator.inputs.preflight import resolve_inputs
from orchestrator.machine import description, gpus
from orchestrator.report.layout import table
from orchestrator.report.make import write_report
from orchestrator.settings.config import RunConfig, resolve
from orchestrator.wording import percent
from orchestrator.workers.pool import WorkerPool

ALPHAS, MOVES = (1.0, 2.0, 4.0, 8.0), (0, 2, 5, 10, 20, 40)
MAX_CANDIDATES = 64  # the engine keeps room for as many particles
GPUS = {"auto": None, "cpu": 0, "cuda": 1}
CANDIDATES = {"best_of": "low", "majority": "t1", "snis": "low", "smc": "low"}
"""Method of several candidates -> the run of single answers that are drawn in the same way."""


class Method(NamedTuple):
    """A method with its candidates per answer and its complete run."""

    name: str
    k: int
    run: Run

    @property
    def tokens(self) -> float:
        """Generated per answer, all candidates and moves together."""
        return self.run.summary.tokens.mean_generated or 0.0


class Laboratory:
    """Completes runs one after the other in directories below `root`, on a worker that starts when one owes answers."""

    def __init__(self, config: RunConfig, stack: ExitStack) -> None:
        """`config` is resolved; its sampler is the one that needs most memory. Raises UserError."""
        self._environment = description.describe()
        self._inputs, self._stack, self._stop = resolve_inputs(config, datetime.now().astimezone()), stack, Stop()
        self._pool: WorkerPool | None = None
        self.root = prepare_runs(self._inputs, self._environment)[0].directory
        if len(self._inputs.data.problems) < 2:
            raise UserError("Paired errors need at least two problems; raise --limit or name other --data.")

    def run(self, name: str, sampler: AnySampler) -> Run:
        """The complete run of `sampler`, in the directory `name`."""
        began, directory = time.time(), self.root / name
        config = self._inputs.config.model_copy(update={"name": name, "run_dir": directory, "sampler": sampler})
        inputs = self._inputs._replace(config=config)
        with ExitStack() as stack:
            prepared = prepare_runs(inputs, self._environment)
            runs = open_runs([one._replace(inputs=self._inputs) for one in prepared], stack)
            owing = [one for one in runs if one.owed]
            for one in owing:
                one.start(began, self._environment)
            if owing:
                self._pool = self._pool or start_pool(owing, self._stop, self._stack)
                answer_owed(self._pool, owing, self._stop, show_progress)
        return load_run(directory)

    def power(self, alpha: float, moves: int) -> Method:
        return Method("power", 1, self.run(f"power-a{alpha:g}-m{moves}", Power(alpha, moves)))

    def candidates(self, kind: str, k: int, alpha: float) -> Method:
        """A method of `k` candidates; a majority votes at temperature 1, the others draw at 1 / alpha."""
        law = {"temperature": 1.0} if kind == "majority" else {"alpha": alpha}
        sampler = sampler_of({"kind": kind, "num_candidates": k, **law})
        return Method(kind, k, self.run(f"{kind}{'' if kind == 'majority' else f'-a{alpha:g}'}-k{k}", sampler))

    def report(self, group: str, methods: Sequence[Method]) -> None:
        """Compare the runs of a group in a directory of its own."""
        out = self.root / group
        out.mkdir(exist_ok=True)
        write_report([method.run.directory for method in methods], out)
        print(f"{group}: {out / 'report.md'} and accuracy.svg")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what `argv` asks for; returns the exit code: 0, 2 for a mistake, 3 if problems were given up."""
    args = parse(argv)
    try:
        with ExitStack() as stack:
            return measure(Laboratory(configuration(args), stack), args)
    except ValidationError as error:
        first = error.errors()[0]
        print(f"methods.py: {'.'.join(map(str, first['loc']))} = {first['input']}: {first['msg']}", file=sys.stderr)
    except UserError as error:
        print(f"methods.py: {error}", file=sys.stderr)
    return 2


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="local folder, hub name, or demo")
    parser.add_argument("--data", default="demo", help="JSONL in GSM8K's format, hub name, or demo")
    parser.add_argument("--limit", type=int, help="problems (default: all)")
    parser.add_argument("--num-samples", type=int, default=1, help="answers per problem and method")
    parser.add_argument("--alpha", type=float, default=4.0, help="exponent of the target where it is not varied")
    parser.add_argument("--moves", type=int, default=10, help="moves per answer where they are not varied")
    parser.add_argument("--slots", type=int, default=32, help="problems at once")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-new-tokens", type=int, help="longest answer (default: that of powersample run)")
    parser.add_argument("--device", choices=sorted(GPUS), default="auto")
    parser.add_argument("--run-dir", help="where the runs are kept (default: runs/methods-FINGERPRINT)")
    parser.add_argument("--quick", action="store_true", help="two points for each of the two plots")
    return parser.parse_args(argv)


def configuration(args: argparse.Namespace) -> RunConfig:
    """The configuration that all runs share; its sampler is the one that needs most memory. Raises UserError."""
    given = {
        "mode": "run",
        "name": "methods",
        "inline": True,
        "model": args.model,
        "data": args.data,
        "limit": args.limit,
        "num_samples": args.num_samples,
        "batch_size": args.slots,
        "seed": args.seed,
        "num_gpus": GPUS[args.device],
        "run_dir": args.run_dir,
        "task": {} if args.max_new_tokens is None else {"max_new_tokens": args.max_new_tokens},
        "sampler": {"kind": "smc", "num_candidates": MAX_CANDIDATES},
    }
    return resolve(RunConfig.model_validate(given), len(gpus.visible_gpus()))


def measure(laboratory: Laboratory, args: argparse.Namespace) -> int:
    """Run all groups, printing each when it is complete; returns the exit code."""
    methods = equal_budget(laboratory, args.alpha, args.moves)
    rows = against_power(methods)
    print(methods_table(rows), flush=True)
    laboratory.report("methods", methods)
    alphas = (1.0, args.alpha) if args.quick else ALPHAS
    counts = (0, args.moves) if args.quick else MOVES
    groups = {
        "alpha": [laboratory.power(alpha, moves) for alpha in alphas for moves in (0, args.moves)],
        "moves": [laboratory.power(args.alpha, moves) for moves in counts],
    }
    for name, group in groups.items():
        laboratory.report(name, group)
    print(json.dumps({"methods": rows, **{name: [swept(one) for one in group] for name, group in groups.items()}}))
    every = [*methods, *groups["alpha"], *groups["moves"]]
    return FAILED if any(method.run.summary.num_failed for method in every) else 0


def equal_budget(laboratory: Laboratory, alpha: float, moves: int) -> list[Method]:
    """Run all methods at the token budget of power; returns them in the order of the table, power last."""
    power = laboratory.power(alpha, moves)
    plain = {
        "greedy": Greedy(),
        "t1": AtTemperature(1.0),
        "low": AtTemperature(1 / alpha),
    }
    names = {"low": f"low-a{alpha:g}"}
    single = {kind: Method(kind, 1, laboratory.run(names.get(kind, kind), plain[kind])) for kind in plain}
    several = [fitted(laboratory, kind, alpha, single[one].tokens, power.tokens) for kind, one in CANDIDATES.items()]
    return [*single.values(), *several, power]


def fitted(laboratory: Laboratory, kind: str, alpha: float, tokens: float, budget: float) -> Method:
    """Run `kind` with the K whose tokens come closest to `budget`: first estimated from the `tokens` of one answer,
    then corrected by its own mean."""
    first = laboratory.candidates(kind, nearest(budget, tokens), alpha)
    k = nearest(budget, first.tokens / first.k)
    if k == first.k:
        return first
    return min(first, laboratory.candidates(kind, k, alpha), key=lambda method: abs(method.tokens - budget))


def nearest(budget: float, tokens: float) -> int:
    """The number of candidates, each of so many tokens, that comes closest to `budget`."""
    return max(1, min(MAX_CANDIDATES, round(budget / tokens))) if tokens else 1


def against_power(methods: Sequence[Method]) -> list[dict[str, Any]]:
    """The table's row of each method; p and its Holm adjustment are over all differences to power, the last method."""
    means = [question_means(method.run.records, PRIMARY_METRIC) for method in methods]
    ids = sorted(means[-1])
    rows = [[mean[problem_id] for problem_id in ids] for mean in means]
    single = all(method.run.summary.num_samples == 1 for method in methods)
    names = [method.name for method in methods]
    pairs = [pair((names[i], "power"), rows[i], rows[-1], single) for i in range(len(methods) - 1)]
    adjusted = holm([one.p for one in pairs])
    found = [scored(method) for method in methods]
    for row, one, p_holm in zip(found, pairs, adjusted, strict=False):
        row |= differing(one) | {"p_holm": p_holm}
    return found


def scored(method: Method) -> dict[str, Any]:
    score = method.run.summary.accuracy[PRIMARY_METRIC]
    return {
        "name": method.name,
        "k": method.k,
        "tokens_per_problem": round(method.tokens, 1),
        "accuracy": score.mean,
        "stderr": score.stderr,
        **dict.fromkeys(("difference", "difference_stderr", "p", "p_holm")),
    }


def differing(one: Pair) -> dict[str, Any]:
    return {"difference": one.difference.mean, "difference_stderr": one.difference.stderr, "p": one.p}


def swept(method: Method) -> dict[str, Any]:
    """One point of a plot."""
    sampler, row = method.run.manifest.sampler, scored(method)
    point = {name: row[name] for name in ("tokens_per_problem", "accuracy", "stderr")}
    return {"alpha": sampler["alpha"], "moves": sampler["num_moves"], **point}


def methods_table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown, scores and differences in points."""
    head = ["method", "K", "tokens/problem", "% right", "to power", "p", "Holm p"]
    lines = []
    for row in rows:
        cells = [row["name"], str(row["k"]), f"{row['tokens_per_problem']:,.1f}"]
        cells.append(f"{percent(row['accuracy'])} ± {percent(row['stderr'])}")
        if row["p"] is None:
            cells += [""] * 3
        else:
            cells.append(f"{100 * row['difference']:+.1f} ± {percent(row['difference_stderr'])}")
            cells += [f"{row[name]:.2g}" for name in ("p", "p_holm")]
        lines.append(cells)
    return table(head, lines)


if __name__ == "__main__":
    sys.exit(main())
