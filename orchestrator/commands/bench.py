"""`powersample bench`: measures the decoding speed of a model on this machine against its roofline and generate.

Options and output are here; evals/engine/decoding_speed.py measures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from evals.config import EngineConfig
from evals.sizing.shapes import SHAPES
from evals.sizing.slots import GIB
from evals.types import UserError
from orchestrator.console import say as tell

if TYPE_CHECKING:
    from evals.engine.decoding_speed import DecodingStep
    from evals.engine.model import Model


def bench(args: argparse.Namespace) -> int:
    """Measure and print what `args` ask for. Returns 0.

    Raises UserError for impossible options, and for a model that cannot be used or does not fit.
    """
    from evals.engine.decoding_speed import lengths, roofline, time_decoding, time_generate
    from orchestrator.machine.description import describe

    say: Callable[[str], None] = (lambda _: None) if args.json else partial(print, flush=True)
    context, steps = args.context, args.steps
    length, new = lengths(context, steps)
    if length < 1:
        raise UserError(
            f"bench: --context {context} leaves no prompt before the warm-up and half of --steps {steps}; "
            "raise the former or lower the latter."
        )
    config = EngineConfig(dtype=args.dtype, execution=args.execution)
    model, name, start = load(args, config)
    if length + new > model.context_length:
        raise UserError(
            f"bench: --context {context} and half of --steps {steps} need {length + new} tokens, more than the "
            f"model's context of {model.context_length}; lower them."
        )
    roof = roofline(model)
    say(
        f"weights {roof.weight_bytes / GIB:.2f} GiB a step, K/V {roof.kv_bytes / 1024:.1f} KiB a token, "
        f"copy {roof.bandwidth / 1e12:.3f} TB/s, products {roof.arithmetic / 1e12:.3g} TFLOP/s\n\n"
        f"roofline, context {context}\n   slots  memory ms  arithmetic ms  binds"
    )
    numbers = [slots for slots in args.batch if slots is not None]
    least = []
    for slots in numbers:
        memory, arithmetic = roof.step_ms(slots, context)
        least.append({"slots": slots, "memory_ms": memory, "arithmetic_ms": arithmetic})
        say(f"{slots:8}  {memory:9.3f}  {arithmetic:13.3f}  {'memory' if memory >= arithmetic else 'arithmetic'}")
    generated, rates = [], dict[int, float]()
    if args.generate:
        say("\ngenerate, scores and logits kept\n   slots    ms/step    tokens/s  peak GiB")
    for slots in numbers if args.generate else []:
        ms = peak = None
        if (timed := time_generate(model, slots, context, steps)) is None:
            say(f"{slots:8}  out of memory")
        else:
            ms, rates[slots], peak = 1e3 * timed.seconds / steps, slots * steps / timed.seconds, timed.peak_bytes
            say(f"{slots:8}  {ms:9.3f}  {rates[slots]:10.0f}  {peak / GIB:8.2f}")
        generated.append({"slots": slots, "ms": ms, "tokens_per_second": rates.get(slots), "peak_bytes": peak})
    say(
        "\ndecoding, host loop included\n"
        "   slots    ms/step    tokens/s  of roofline  device waits  peak GiB  over generate  engine s"
    )
    rows, notes = [], ""
    for slots in args.batch:
        done, notes = time_decoding(model, config, slots, context, steps)
        asked, other = "auto" if slots is None else slots, rates.get(done.slots)
        of_roofline = max(roof.step_ms(done.slots, context)) / done.ms
        over_generate = done.tokens_per_second / other if other else None
        say(decode_line(done, of_roofline, over_generate, asked))
        rows.append({"asked": asked, "of_roofline": of_roofline, "over_generate": over_generate, **asdict(done)})
    say(f"\n{notes}\n" if notes else "")
    start |= {"engine": rows[0]["engine_seconds"], "first_token": rows[0]["first_token_seconds"]}
    start["total"] = sum(start.values())
    say("start to the first token: " + ", ".join(f"{phase} {took:.2f} s" for phase, took in start.items()))
    results = {
        "bench": name,
        "context": context,
        "steps": steps,
        "dtype": str(model.cache_shape.dtype).removeprefix("torch."),
        "roofline": {**asdict(roof), "steps": least},
        "generate": generated,
        "decode": rows,
        "start_up": start,
    }
    print(json_line(**results, **asdict(describe())))
    return 0


def load(args: argparse.Namespace, config: EngineConfig) -> tuple[Model, str, dict[str, float]]:
    """Load the model; returns it, its name, and the seconds of imports, checks and load."""
    from evals.engine.checkpoint import random_model, read_model
    from orchestrator.inputs.models import resolve_model
    from orchestrator.machine import gpus

    imported = time.perf_counter()
    if present := gpus.visible_gpus():
        gpus.check_torch_sees_gpus(present)
    elif args.execution not in ("auto", "eager"):
        tell("Without effect here: --execution (no GPU is used).")
    shape, device = args.shape or ("1.5b" if present else "tiny"), "cuda" if present else "cpu"
    folder = resolve_model(args.model).folder if args.model else None
    checked = time.perf_counter()
    model = read_model(folder, config, device) if folder else random_model(SHAPES[shape], config, device)
    start = {"imports": imported - args.began, "checks": checked - imported, "load": time.perf_counter() - checked}
    return model, args.model or shape, start


def decode_line(step: DecodingStep, of_roofline: float, over_generate: float | None, asked: int | str) -> str:
    """A row of the table of decoding as text."""
    waits = "-" if step.waits is None else f"{100 * step.waits:.1f} %"
    ratio = "-" if over_generate is None else f"{over_generate:.1f}"
    lowered = "" if asked == step.slots else f" (asked for {asked})"
    return (
        f"{step.slots:8}  {step.ms:9.3f}  {step.tokens_per_second:10.0f}  {of_roofline:11.3f}  {waits:>12}  "
        f"{step.peak_bytes / GIB:8.2f}  {ratio:>13}  {step.engine_seconds:8.2f}  {step.execution}{lowered}"
    )


def json_line(**results: object) -> str:
    """The last line of a benchmark: its results with the time, and with floats rounded."""
    line = json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **results})
    return json.dumps(json.loads(line, parse_float=rounded))


def rounded(number: str) -> float:
    """A number with five digits, whole from 100,000 on; more are noise."""
    value = float(number)
    return round(value) if abs(value) >= 1e5 else float(f"{value:.5g}")
