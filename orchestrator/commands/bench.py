"""`powersample bench`: measures the decoding speed of a model on this machine against its roofline and generate.

Options and output are here; evals/decoding_speed.py and evals/engine/baselines.py measure.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from evals.config import EngineConfig
from evals.sizing.slots import GIB
from evals.types import UserError

if TYPE_CHECKING:
    from evals.engine.baselines import Roofline
    from evals.engine.model import Model

Say = Callable[[str], None]


def bench(args: argparse.Namespace) -> int:
    """Measure and print what `args` ask for. Returns 0.

    Raises UserError for impossible options, and for a model that cannot be used or does not fit.
    """
    say: Say = (lambda line: None) if args.json else (lambda line: print(line, flush=True))
    model, config, name, laps = load(args)
    from evals.engine.baselines import roofline
    from orchestrator.machine.description import describe

    roof = roofline(model)
    numbers = [batch for batch in args.batch if batch is not None]
    results: dict[str, Any] = {"bench": name, "context": args.context, "steps": args.steps}
    results["dtype"] = str(model.cache_shape.dtype).removeprefix("torch.")
    results["roofline"] = {**roof._asdict(), "steps": show_roofline(roof, numbers, args, say)}
    results["generate"] = show_generate(model, numbers, args, say) if args.generate else []
    results["decode"] = show_decode(model, config, roof, results["generate"], args, say)
    first = {name: results["decode"][0][f"{name}_seconds"] for name in ("engine", "first_token")}
    results["start_up"] = start = {**laps, **first, "total": sum(laps.values()) + sum(first.values())}
    say("start to the first token: " + ", ".join(f"{name} {took:.2f} s" for name, took in start.items()))
    print(json_line(results | asdict(describe())))
    return 0


def load(args: argparse.Namespace) -> tuple[Model, EngineConfig, str, dict[str, float]]:
    """Load the model; returns it, the engine's settings, its name, and the seconds of imports, checks and load."""
    from evals import decoding_speed as measure
    from orchestrator.inputs.models import resolve_model
    from orchestrator.machine import gpus

    if measure.prompt_length(args.context, args.steps) < 1:
        raise UserError(
            f"bench: --context {args.context} leaves no prompt before the warm-up and half of --steps {args.steps}; "
            "raise the former or lower the latter."
        )
    laps = measure.Laps(args.began)
    laps.lap("imports")
    if present := gpus.visible_gpus():
        gpus.check_torch_sees_gpus(present)
    shape = args.shape or ("1.5b" if present else "tiny")
    folder = resolve_model(args.model).folder if args.model else None
    config = EngineConfig(dtype=args.dtype, execution=args.execution)
    laps.lap("checks")
    model = measure.load(folder, shape, config, "cuda" if present else "cpu")
    laps.lap("load")
    if (needed := measure.needed_length(args.context, args.steps)) > model.context_length:
        raise UserError(
            f"bench: --context {args.context} and half of --steps {args.steps} need {needed} tokens, more than the "
            f"model's context of {model.context_length}; lower them."
        )
    return model, config, args.model or shape, laps


def show_roofline(roof: Roofline, numbers: list[int], args: argparse.Namespace, say: Say) -> list[dict[str, Any]]:
    """Print and return the least time of a step at each number of slots."""
    say(
        f"weights {roof.weight_bytes / GIB:.2f} GiB a step, K/V {roof.kv_bytes / 1024:.1f} KiB a token, "
        f"copy {roof.bandwidth / 1e12:.3f} TB/s, products {roof.arithmetic / 1e12:.3g} TFLOP/s\n\n"
        f"roofline, context {args.context}\n   slots  memory ms  arithmetic ms  binds"
    )
    rows = []
    for slots in numbers:
        memory, arithmetic = (1e3 * f(slots, args.context) for f in (roof.memory_seconds, roof.arithmetic_seconds))
        rows.append({"slots": slots, "memory_ms": memory, "arithmetic_ms": arithmetic})
        say(f"{slots:8}  {memory:9.3f}  {arithmetic:13.3f}  {roof.binds(slots, args.context)}")
    return rows


def show_generate(model: Model, numbers: list[int], args: argparse.Namespace, say: Say) -> list[dict[str, Any]]:
    """Time the library's generate with scores kept at each number of slots; None for figures where memory ran out."""
    from evals import decoding_speed as measure
    from evals.engine.baselines import generate_steps

    say("\ngenerate, scores and logits kept\n   slots    ms/step    tokens/s  peak GiB")
    rows, length = [], measure.prompt_length(args.context, args.steps)
    for slots in numbers:
        done = generate_steps(model, measure.random_prompts(model, slots, length), args.steps, measure.ALPHA)
        if done is None:
            rows.append({"slots": slots, "ms": None, "tokens_per_second": None, "peak_bytes": None})
            say(f"{slots:8}  out of memory")
            continue
        step, peak = done.seconds / done.steps, measure.peak(done.memory)
        rows.append({"slots": slots, "ms": 1e3 * step, "tokens_per_second": slots / step, "peak_bytes": peak})
        say(f"{slots:8}  {1e3 * step:9.3f}  {slots / step:10.0f}  {peak / GIB:8.2f}")
    return rows


def show_decode(
    model: Model,
    config: EngineConfig,
    roof: Roofline,
    generated: list[dict[str, Any]],
    args: argparse.Namespace,
    say: Say,
) -> list[dict[str, Any]]:
    """Time decoding through an engine of each number of slots, with ratios to `generated` rows of the same number."""
    from evals import decoding_speed as measure

    others = {row["slots"]: row["tokens_per_second"] for row in generated}
    say(
        "\ndecoding, host loop included\n"
        "   slots    ms/step    tokens/s  of roofline  device waits  peak GiB  over generate  engine s"
    )
    rows, notes = [], ""
    for asked in args.batch:
        done = measure.decode(model, config, asked, args.context, args.steps)
        notes = done.notes
        rate, other = done.slots / done.step_seconds, others.get(done.slots)
        rows.append(
            {
                "asked": "auto" if asked is None else asked,
                "ms": 1e3 * done.step_seconds,
                "tokens_per_second": rate,
                "of_roofline": roof.seconds(done.slots, args.context) / done.step_seconds,
                "over_generate": rate / other if other else None,
                **{name: value for name, value in done._asdict().items() if name not in ("step_seconds", "notes")},
            }
        )
        say(decode_line(rows[-1]))
    say(f"\n{notes}\n" if notes else "")
    return rows


def decode_line(row: dict[str, Any]) -> str:
    """A row of the decoding table as text."""
    waits = "-" if row["waits"] is None else f"{100 * row['waits']:.1f} %"
    ratio = "-" if row["over_generate"] is None else f"{row['over_generate']:.1f}"
    asked = "" if row["asked"] == row["slots"] else f" (asked for {row['asked']})"
    return (
        f"{row['slots']:8}  {row['ms']:9.3f}  {row['tokens_per_second']:10.0f}  {row['of_roofline']:11.3f}  "
        f"{waits:>12}  {row['peak_bytes'] / GIB:8.2f}  {ratio:>13}  {row['engine_seconds']:8.2f}  "
        f"{row['execution']}{asked}"
    )


def json_line(results: dict[str, Any]) -> str:
    """The last line of a benchmark: its results, rounded, with the time."""
    return json.dumps(rounded({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **results}))


def rounded(value: Any) -> Any:
    """`value` with its floats rounded to five digits, from 100,000 on to whole numbers; more digits are noise."""
    match value:
        case dict():
            return {key: rounded(item) for key, item in value.items()}
        case list():
            return [rounded(item) for item in value]
        case float():
            return round(value) if abs(value) >= 1e5 else float(f"{value:.5g}")
    return value
