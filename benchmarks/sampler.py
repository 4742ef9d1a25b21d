"""Measures what replay, early rejection and prefetch save: tokens of the same chains counted four ways, and seconds.

    python benchmarks/sampler.py --model FOLDER --data FILE.jsonl --limit 200 --moves 10
    python benchmarks/sampler.py --limit 4 --slots 16 --prefetch 4

Two runs with the same keys, with and without early rejection, make the same decisions, which is checked move by move
(`differing_chains`; on a GPU products round differently in another batch, so there it need not be 0); both replay. The
naive kernel would have drawn the replayed tokens as well, so its count for the same cuts and proposals is exact, not
estimated. Its own chain draws other proposals: `--measure-naive` runs it, too, as a check of that count.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

from evals.config import EngineConfig, TaskConfig
from evals.engine.checkpoint import load_model
from evals.engine.engine import Engine
from evals.evaluate import start_sample
from evals.record import AnsweredBy, Record
from evals.samplers.power import Power
from evals.tasks.task import make_task
from evals.types import Problem, UserError
from orchestrator.inputs.models import resolve_model
from orchestrator.inputs.preflight import check_lengths, measure_prompts
from orchestrator.inputs.problems import load_problems

REPEATS = 3  # of a timed run; the fastest counts
DECISIONS = ("moves", "null", "accepted", "mean_cut", "log_p_trace")
"""Fields of a record's chain by which two chains are compared: where the moves cut, and log p after each of them."""

T = TypeVar("T", int, float)
Run = Callable[..., list[Record]]
"""`run(label, prefetch=0, replay=..., early_rejection=...)`: one record per problem, in their order."""


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what `argv` asks for; returns the exit code."""
    args = parse(argv)
    try:
        problems = load_problems(args.data, "test", args.limit).problems
        model = load_model(resolve_model(args.model).folder, EngineConfig(), args.device)
        task = make_task(TaskConfig(max_new_tokens=args.max_new_tokens), seed=0)
        longest = check_lengths(task, measure_prompts(task, problems, model.tokenizer.encode), model.context_length)
        engine = Engine.build(model, EngineConfig(), slots=args.slots, max_length=longest)
    except UserError as error:
        print(f"sampler.py: {error}", file=sys.stderr)
        return 2
    engine.start()
    run = partial(run_chains, engine, task, problems, args)
    found = savings(run, len(problems))
    if args.measure_naive:
        found |= measured(run)
    if args.prefetch:
        found |= prefetch_gain(run, args.prefetch)
    engine.close()
    print(json.dumps(found))
    if args.device == "cpu" and any(found[name] for name in found if name.endswith("differing_chains")):
        print("sampler.py: chains decided differently, which in float32 on a CPU is an error", file=sys.stderr)
        return 1
    return 0


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="local folder, hub name, or demo")
    parser.add_argument("--data", default="demo", help="JSONL in GSM8K's format, hub name, or demo")
    parser.add_argument("--limit", type=at_least(1), default=200, help="problems")
    parser.add_argument("--moves", type=at_least(0), default=10, help="moves per answer")
    parser.add_argument("--alpha", type=at_least(1.0), default=4.0)
    parser.add_argument("--slots", type=at_least(1), default=16)
    parser.add_argument("--max-new-tokens", type=at_least(1), default=320)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--measure-naive", action="store_true", help="run the kernels without replay, too")
    ahead = "time the run with K drafts ahead, too; fewer problems than slots show the gain"
    parser.add_argument("--prefetch", type=at_least(0), default=0, metavar="K", help=ahead)
    return parser.parse_args(argv)


def at_least(low: T) -> Callable[[str], T]:
    """The type of an argument that is no smaller than `low`."""

    def number(text: str) -> T:
        value = type(low)(text)
        if not value >= low:
            raise argparse.ArgumentTypeError(f"{text} is less than {low}")
        return value

    return number


def run_chains(
    engine: Engine,
    task: Any,
    problems: Sequence[Problem],
    args: argparse.Namespace,
    label: str,
    prefetch: int = 0,
    *,
    replay: bool = True,
    early_rejection: bool = True,
) -> list[Record]:
    """One record per problem, in their order, from power sampling."""
    sampler = Power(args.alpha, args.moves, replay, early_rejection)
    begun = [start_sample(problem, 0, task, sampler, engine, AnsweredBy(), prefetch) for problem in problems]
    return [record.result() for record in tqdm(begun, desc=label)]


def savings(run: Run, num_problems: int) -> dict[str, Any]:
    """Tokens that the moves drew under the four settings, for the decisions of one and the same chain."""
    began = time.monotonic()
    replay, both = run("replay", early_rejection=False), run("both")
    kept = total(both, "replayed_tokens")
    naive_tokens, both_tokens = total(replay, "naive_tokens"), move_tokens(both)
    return {
        "initial_tokens": total(both, "initial_tokens"),
        "naive_tokens": naive_tokens,
        "early_rejection_tokens": both_tokens + kept,
        "replay_tokens": move_tokens(replay),
        "both_tokens": both_tokens,
        "ratio": round(both_tokens / naive_tokens, 4) if naive_tokens else None,
        "moves": total(both, "moves"),
        "null_moves": total(both, "null"),
        "accepted": total(both, "accepted"),
        "rejected_early": total(both, "rejected_early"),
        "problems": num_problems,
        "differing_chains": differing(replay, both),
        "seconds": round(time.monotonic() - began, 1),
    }


def measured(run: Run) -> dict[str, Any]:
    """Tokens that the moves draw without replay, in chains of their own with the same distribution."""
    naive = run("naive", replay=False, early_rejection=False)
    early = run("early rejection", replay=False)
    return {
        "measured_naive_tokens": move_tokens(naive),
        "measured_early_rejection_tokens": move_tokens(early),
        "measured_differing_chains": differing(naive, early),
    }


def prefetch_gain(run: Run, prefetch: int) -> dict[str, Any]:
    """Seconds with no proposal ahead and with `prefetch` of them, each the fastest of REPEATS, and discarded tokens.

    The two take turns, so that what else the machine does falls on both alike.
    """
    seconds: dict[int, list[float]] = {0: [], prefetch: []}
    records: dict[int, list[Record]] = {}
    for _ in range(REPEATS):
        for ahead in seconds:
            began = time.monotonic()
            records[ahead] = run(f"prefetch {ahead}", ahead)
            seconds[ahead].append(time.monotonic() - began)
    best = {ahead: min(times) for ahead, times in seconds.items()}
    return {
        "prefetch": prefetch,
        "prefetch_0_seconds": round(best[0], 3),
        "prefetch_seconds": round(best[prefetch], 3),
        "prefetch_speedup": round(best[0] / best[prefetch], 3),
        "generated_tokens": total(records[prefetch], "generated"),
        "discarded_tokens": total(records[prefetch], "discarded_tokens"),
        "prefetch_differing_chains": differing(records[0], records[prefetch]),
    }


def differing(one: Sequence[Record], other: Sequence[Record]) -> int:
    """Number of problems whose two chains differ in the decision of a move or in a token of the answer."""
    return sum(
        a.token_ids != b.token_ids or any(getattr(a.chain, name) != getattr(b.chain, name) for name in DECISIONS)
        for a, b in zip(one, other, strict=True)
    )


def move_tokens(records: Sequence[Record]) -> int:
    """Tokens drawn after the first answers."""
    return total(records, "generated") - total(records, "initial_tokens")


def total(records: Sequence[Record], name: str) -> int:
    return sum(getattr(record.chain, name) for record in records)


if __name__ == "__main__":
    sys.exit(main())
