"""Measures a whole run of power sampling on one engine: wall time, tokens, accuracy, memory, and phases of the start.

    python benchmarks/end_to_end.py --model FOLDER --data gsm8k_test.jsonl --slots 256
    python benchmarks/end_to_end.py --model FOLDER --data gsm8k_test.jsonl --slots 10 --compare-generate 10

`demo_training/grow.py` makes models that answer as the embedded one at the cost of a real one. One process, no Ray:
what is measured is the engine with its chains. `--compare-generate N` first answers N problems by the library's
`generate`, scores kept, 10 at a time, and reports the device memory of both. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evals.engine.engine import Engine
    from evals.engine.model import Model
    from evals.record import Record
    from evals.tasks.task import Task
    from evals.types import Problem

SEED = 0
COMPARED_BATCH = 10


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what `argv` asks for; returns the exit code."""
    began = time.perf_counter()  # importing is a phase of the start
    args = parse(argv)
    from evals.types import UserError

    try:
        measure(args, began)
    except UserError as error:
        print(f"end_to_end.py: {error}", file=sys.stderr)
        return 2
    return 0


class Laps(dict[str, float]):
    """A stopwatch: the seconds of the phases of a start, by name."""

    def __init__(self, began: float) -> None:
        """`began` is on the clock of time.perf_counter."""
        super().__init__()
        self._last = began

    def lap(self, name: str) -> None:
        """Record the time since the last lap as the phase `name`."""
        now = time.perf_counter()
        self[name], self._last = now - self._last, now

    def restart(self) -> None:
        """Begin a lap now; the time since the last one belongs to no phase."""
        self._last = time.perf_counter()


def measure(args: argparse.Namespace, began: float) -> None:
    """Load model and engine, run, print the results."""
    from evals.config import EngineConfig, TaskConfig
    from evals.engine.checkpoint import load_model
    from evals.engine.decoding_speed import peak
    from evals.engine.device import release, reset_peak
    from evals.engine.engine import Engine
    from evals.tasks.task import make_task
    from orchestrator.commands.bench import json_line
    from orchestrator.inputs.models import resolve_model
    from orchestrator.inputs.preflight import check_lengths, measure_prompts
    from orchestrator.inputs.problems import load_problems
    from orchestrator.machine.description import describe
    from orchestrator.machine.gpus import visible_gpus

    laps = Laps(began)
    laps.lap("imports")
    problems = load_problems(args.data, "test", args.limit).problems
    task = make_task(TaskConfig(max_new_tokens=args.max_new_tokens), SEED)
    here = Path(args.model, "config.json").is_file()  # then it need not be hashed
    folder = args.model if here else resolve_model(args.model).folder
    laps.lap("sources")
    config = EngineConfig(dtype=args.dtype, execution=args.execution)
    model = load_model(folder, config, args.device or ("cuda" if visible_gpus() else "cpu"))
    longest = check_lengths(task, measure_prompts(task, problems, model.tokenizer.encode), model.context_length)
    laps.lap("load")
    compared = generated(model, task, problems[: args.compare_generate], args) if args.compare_generate else None
    release(model.device)
    reset_peak(model.device)
    laps.restart()
    engine = Engine.build(model, config, slots=args.slots, max_length=longest)
    laps.lap("engine")
    first_token(engine, task, problems[0])
    laps.lap("first_token")
    found = {"end_to_end": args.model, "data": args.data, "slots": engine.counters().slots} | sampled(
        engine, task, problems, args
    )
    found |= {"execution": engine.execution, "peak_bytes": peak(engine.memory()), "generate": compared}
    engine.close()
    found["start_up"] = {**laps, "total": sum(laps.values())}
    for name, value in found.items():
        print(f"{name}: {value}")
    print(json_line(**found, **asdict(describe())))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="local folder, hub name, or demo")
    parser.add_argument("--data", default="demo", help="JSONL in GSM8K's format, hub name, or demo")
    parser.add_argument("--limit", type=int, help="problems (all)")
    parser.add_argument("--slots", type=lambda text: None if text == "auto" else int(text), help="auto: what fits")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--moves", type=int, default=10, help="moves per answer")
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--prefetch", type=int, default=4, help="proposals of one chain at once where slots idle")
    parser.add_argument("--device", help="cpu or cuda (the GPU if there is one)")
    parser.add_argument("--dtype", default="auto", help="auto, float32, bfloat16 or float16")
    parser.add_argument("--execution", default="auto", help="auto, compiled, graphs or eager")
    parser.add_argument("--compare-generate", type=int, default=0, metavar="N", help="problems for generate (none)")
    return parser.parse_args(argv)


def first_token(engine: Engine, task: Task, problem: Problem) -> None:
    """Draw one token, with which the start-up ends."""
    from evals.evaluate import make_prompt
    from evals.rng import RandomKey
    from evals.samplers.single import one_draw
    from evals.types import Chain

    prompt = make_prompt(task, problem, engine.model.tokenizer)._replace(max_new_tokens=1)
    engine.run([Chain(prompt, one_draw(prompt, RandomKey(SEED, 0, 0), 1.0), 1)])


def sampled(engine: Engine, task: Task, problems: list[Problem], args: argparse.Namespace) -> dict[str, Any]:
    """Answer and grade every problem once; returns the figures. `device_waits` is None if memory ran out meanwhile."""
    from evals.evaluate import start_sample
    from evals.record import AnsweredBy
    from evals.samplers.power import Power

    sampler, worker = Power(args.alpha, args.moves), AnsweredBy()
    before = engine.counters()
    if engine.idle is not None:
        engine.idle.reset()
    began = time.perf_counter()
    engine.start()
    under_way = [start_sample(problem, 0, task, sampler, engine, worker, args.prefetch) for problem in problems]
    records = [future.result() for future in under_way]
    seconds = time.perf_counter() - began
    after, changes = engine.counters(), engine.take_slot_changes()
    tokens = after.generated_tokens - before.generated_tokens
    return {
        "problems": len(records),
        "seconds": seconds,
        "generated_tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "answer_tokens": sum(record.tokens.answer or 0 for record in records),
        "prefilled_tokens": after.prefilled_tokens - before.prefilled_tokens,
        "steps": after.steps - before.steps,
        "device_waits": None if engine.idle is None or changes else engine.idle.seconds / seconds,
        "slot_changes": [change._asdict() for change in changes],
        **judged(records),
    }


def judged(records: list[Record]) -> dict[str, Any]:
    """Accuracy by grader, and the share of accepted moves among those that proposed another answer."""
    moves, null, accepted = (
        sum(getattr(record.chain, name) for record in records) for name in ("moves", "null", "accepted")
    )
    return {
        "accuracy": {name: fmean(r.scores[name].correct for r in records) for name in records[0].scores},
        "acceptance": accepted / (moves - null) if moves > null else None,
        "null_moves": null / moves if moves else None,
    }


def generated(model: Model, task: Task, problems: list[Problem], args: argparse.Namespace) -> dict[str, Any]:
    """Answer the problems by the library's `generate`, scores kept, in batches; returns the figures."""
    from evals.engine.decoding_speed import generate

    prompts = [model.tokenizer.encode(task.asked(problem)) for problem in problems]
    batches = [prompts[at : at + COMPARED_BATCH] for at in range(0, len(prompts), COMPARED_BATCH)]
    done = [generate(model, batch, args.max_new_tokens, args.alpha) for batch in batches]
    return {
        "problems": len(prompts),
        "batch": COMPARED_BATCH,
        "seconds": sum(one.seconds for one in done),
        "steps": sum(one.steps for one in done),
        "peak_bytes": max(one.peak_bytes for one in done),
    }


if __name__ == "__main__":
    raise SystemExit(main())
