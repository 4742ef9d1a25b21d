"""`powersample plan`: computes where a GPU's memory would go and how many problems fit, without touching a device.

Options and output are here; the arithmetic is in evals/sizing/ and evals/engine/memory_forecast.py.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from evals.config import AUTO_SLOTS, EngineConfig
from evals.sizing.shapes import SHAPES
from evals.sizing.slots import GIB
from evals.types import UserError
from orchestrator.commands.table import GPUS
from orchestrator.machine import gpus
from orchestrator.settings.parser import local_path, suggestion

if TYPE_CHECKING:
    from evals.engine.memory_forecast import ModelSpec

COUNTS = {"parameters", "batch", "num_gpus", "in_flight"}
CHAIN_SEQUENCES = 2
"""The current answer and the proposed one, as power sampling needs."""
WAY_OUT = "take a larger --gpu, a smaller model, a higher --target or a shorter --length"


def plan(args: argparse.Namespace) -> int:
    """Print the plan of a run's slots, as the engine makes it, from computed instead of measured memory. Returns 0.

    Raises UserError for impossible options, a model or GPU that is unknown, and where nothing fits.
    """
    from evals.engine.memory_forecast import demand, forecast, peak
    from evals.sizing.slots import plan_slots

    model, config, most = model_of(args), EngineConfig(target_utilisation=args.target), AUTO_SLOTS["cuda"]
    gpu, total = gpu_memory(args.gpu)
    reading = forecast(model, total, min(args.batch_size or most, most), config)
    planned = plan_slots(reading, demand(model, args.batch_size, args.length, CHAIN_SEQUENCES), config, WAY_OUT)
    parts = planned.parts
    inputs = {"model": args.model or args.shape, "gpu": gpu, "dtype": args.dtype, "length": args.length}
    budget = {
        "gpu_memory": total,
        "parameters": model.parameters,
        "overhead": parts["context and others"],
        "weights": parts["weights"],
        "kv_per_token": model.kv_token_bytes,
        "kv_per_sequence": args.length * model.kv_token_bytes,
        "available": total - parts["reserve"] - parts["context and others"] - parts["weights"],
        "kv": parts["K/V"],
        "activations": parts["activations"],
        "graphs": parts["graphs"],
        "free": parts["free"],
        "reserve": parts["reserve"],
        "batch": planned.slots,
        "num_gpus": args.num_gpus,
        "in_flight": planned.slots * args.num_gpus,
        "utilisation": 1 - (parts["free"] + parts["reserve"]) / total,
        "peak": peak(model, reading, planned, config),
    }
    notes = [f"kv: {CHAIN_SEQUENCES} sequences of full length for every problem in flight, in whole pages"]
    if planned.lowered_from is not None:
        notes.append(f"batch: {planned.lowered_from} do not fit")
    if args.json:
        print(json.dumps({**inputs, **budget, "notes": notes}))
        return 0
    print(", ".join(f"{name} {value}" for name, value in inputs.items()))
    print("\n".join([*(f"  {name:<24}{show(name, value)}" for name, value in budget.items()), *notes]))
    return 0


def model_of(args: argparse.Namespace) -> ModelSpec:
    """The sizes of the model asked for. Raises UserError for none."""
    from evals.engine.checkpoint import shape_config
    from evals.engine.memory_forecast import model_spec
    from evals.engine.model_support import read_config

    if args.shape is not None:
        return model_spec(shape_config(SHAPES[args.shape]), args.dtype, args.shape)
    if args.model is None:
        raise UserError(f"plan: no model was named; name one by --model or --shape ({', '.join(SHAPES)}).")
    return model_spec(read_config(config_folder(args.model), False), args.dtype, args.model)


def config_folder(name: str) -> str:
    """The folder of a model's config.json, the only file that is fetched of a model on the hub."""
    from orchestrator.inputs.models import DEMO_MODEL, download, is_local
    from orchestrator.installation import DEMO_FOLDER
    from orchestrator.settings.config import DEMO

    if name == DEMO:
        return str(DEMO_FOLDER / DEMO_MODEL)
    if is_local(name):
        path = local_path(name)
        return str(path.parent if path.name == "config.json" else path)
    return str(download(name, None, ["config.json"])[0])


def gpu_memory(name: str | None) -> tuple[str, int]:
    """Name and bytes of the GPU called `name`, or of the present one. Raises UserError if it is unknown or there is
    none."""
    if name is None:
        present = gpus.visible_gpus()
        if not present or not present[0].memory_bytes:
            raise UserError(
                f"plan: this machine has no GPU whose memory can be read; name one by --gpu ({', '.join(GPUS)}, or its "
                "memory in GiB)."
            )
        return present[0].name, present[0].memory_bytes
    if name.lower() in GPUS:
        return name.lower(), round(GPUS[name.lower()] * GIB)
    try:
        if 0 < (size := float(name)) < 1e6:
            return f"{size:g} GiB", round(size * GIB)
    except ValueError:
        pass
    raise UserError(
        f"plan: no GPU is called {name}{suggestion(name.lower(), GPUS)}; known are {', '.join(GPUS)}, or give its "
        "memory in GiB."
    )


def show(name: str, value: float) -> str:
    """A figure of the budget as text: a share in %, a count, or bytes in GB as documents count and in GiB as we do."""
    if isinstance(value, float):
        return f"{value:12.1%}"
    if name in COUNTS:
        return f"{value:12,}"
    power = 1 if value < 10**6 else 2 if value < 10**9 else 3
    unit = "KMG"[power - 1]
    return f"{value / 1000**power:12.2f} {unit}B {value / 1024**power:10.2f} {unit}iB"
