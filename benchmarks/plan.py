"""Compares the memory that `powersample plan` computes with what a GPU shows, for models of known shapes.

    python benchmarks/plan.py [--shapes 0.5b 1.5b 7b] [--slots 10 auto] [--length 1024]

First the largest passes, which the engine would measure before it plans (prompt pass, step, weights,
context), then a run of power sampling in so many slots as the plan gives, with nothing measured before: the
peak of allocated memory, which is to be within 10 % of the plan's, and at the end what the GPU has in use, which the
plan only bounds. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch

from evals.config import AUTO_SLOTS, EngineConfig
from evals.engine.checkpoint import random_model, shape_config
from evals.engine.decoding_speed import random_prompts
from evals.engine.device import release, reset_peak
from evals.engine.engine import Engine
from evals.engine.execution import measure, prepare
from evals.engine.memory_forecast import ModelSpec, demand, forecast, model_spec, peak
from evals.engine.model import Model
from evals.rng import RandomKey
from evals.samplers.power import Power
from evals.sizing.shapes import SHAPES
from evals.sizing.slots import GIB, plan_slots
from evals.types import Chain, Prompt

NEW_TOKENS = 48
DTYPE = "bfloat16"


def compare(shape: str, slots: list[int | None], length: int, config: EngineConfig) -> list[dict[str, Any]]:
    """Measure a model of this shape with random weights; a row for every number of slots (None: as many as fit)."""
    held = torch.cuda.memory_allocated()
    model = random_model(SHAPES[shape], config.model_copy(update={"dtype": DTYPE}), "cuda")
    computed = model_spec(shape_config(SHAPES[shape]), DTYPE, shape)
    prepare(model)
    return [{"shape": shape} | row(model, computed, number, length, config, held) for number in slots]


def row(
    model: Model, computed: ModelSpec, slots: int | None, length: int, config: EngineConfig, held: int
) -> dict[str, Any]:
    """Predicted and measured bytes for one number of slots; `held` are allocated by others in this process."""
    release(model.device)
    most = AUTO_SLOTS["cuda"]
    rows = min(slots or most, most)
    measured, config = measure(model, config, rows, length)
    expected = forecast(computed, measured.total, rows, config)
    asked = demand(computed, slots, length, sequences=2)
    plan = plan_slots(expected, asked, config)
    by_measurement = plan_slots(measured, asked._replace(page_bytes=model.cache_shape.page_bytes), config)
    release(model.device)
    reset_peak(model.device)
    engine = Engine.build(model, config, slots=plan.slots, max_length=length, num_pages=plan.num_pages)
    run(engine, plan.slots, length)
    found = torch.cuda.max_memory_allocated() - held
    free, total = torch.cuda.mem_get_info()
    execution = engine.execution
    engine.close()
    predicted = peak(computed, expected, plan, config)
    return {
        "slots": plan.slots,
        "slots_by_measurement": by_measurement.slots,
        "execution": execution,
        "peak": {"predicted": predicted, "measured": found},
        "error": predicted / found - 1,
        "in_use": {"planned": total - plan.parts["free"] - plan.parts["reserve"], "measured": total - free},
        **{
            name: {"predicted": getattr(expected, name), "measured": getattr(measured, name)}
            for name in ("weights", "others", "prompts", "step")
        },
    }


def run(engine: Engine, slots: int, length: int) -> None:
    """Power sampling with every slot busy, on prompts that leave room for a few tokens."""
    sampler, chains = Power(num_moves=2), []
    for index, tokens in enumerate(random_prompts(engine.model, slots, length - NEW_TOKENS)):
        prompt = Prompt(tuple(tokens), NEW_TOKENS, frozenset())
        chains.append(Chain(prompt, sampler.chain(prompt, RandomKey(0, index, 0))))
    engine.run(chains)


def line(found: dict[str, Any]) -> str:
    """A row as text, in GiB: predicted / measured."""
    pairs = [
        f"{name} {' / '.join(f'{value / GIB:.2f}' for value in found[name].values())}"
        for name in ("peak", "in_use", "weights", "others", "prompts", "step")
    ]
    slots = f"{found['slots']} slots (by measurement {found['slots_by_measurement']})"
    return f"{found['shape']}, {slots}, {found['execution']}: error {found['error']:+.1%}; " + ", ".join(pairs)


def slots_or_auto(text: str) -> int | None:
    return None if text == "auto" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["0.5b", "1.5b", "7b"])
    parser.add_argument("--slots", nargs="+", type=slots_or_auto, default=[10, None], help="numbers, or auto")
    parser.add_argument("--length", type=int, default=1024, help="tokens of the longest sequence")
    parser.add_argument("--execution", default="auto", help="as engine.execution of a run")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("it measures a CUDA device, and there is none")
    config = EngineConfig(execution=args.execution)
    found: list[dict[str, Any]] = []
    for shape in args.shapes:
        for one in compare(shape, args.slots, args.length, config):
            found.append(one)
            print(line(one), flush=True)
        torch._dynamo.reset()
        release(torch.device("cuda"))
    worst = max(abs(one["error"]) for one in found)
    print(
        json.dumps(
            {
                "bench": "plan",
                "device": torch.cuda.get_device_name(),
                "torch": torch.__version__,
                "length": args.length,
                "worst_error": worst,
                "within_10_percent": worst <= 0.1,
                "rows": found,
            }
        )
    )


if __name__ == "__main__":
    main()
