"""`powersample plan`: computes where a GPU's memory would go and the batch that fits, without touching a device.

Options and output are here; the arithmetic is in evals/sizing/ and evals/engine/memory_forecast.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import yaml

from evals.config import AUTO_SLOTS, EngineConfig
from evals.sizing.shapes import SHAPES
from evals.sizing.slots import GIB
from evals.sizing.training import Training, training_budget
from evals.types import UserError
from orchestrator.commands.table import GPUS, make_parser
from orchestrator.machine import gpus
from orchestrator.rundir.files import write_atomically, writing
from orchestrator.settings.parser import suggestion

if TYPE_CHECKING:
    from evals.engine.memory_forecast import ModelSpec

COUNTS = {"parameters", "trainable_parameters", "batch", "num_gpus", "effective_batch", "in_flight"}
CHAIN_SEQUENCES = 2
"""The current answer and the proposed one, as power sampling needs."""
WAY_OUT = "take a larger --gpu, a smaller model, a higher --target or a shorter --length"
TRAINING_HEAD = "The batch of a training program, in its words; `powersample run` does not know them."
UNREAD = {False: ("trainable", "sample_bytes", "gradient_checkpointing"), True: ("batch_size",)}
"""Options that would be ignored, by whether a training is planned."""


class Plan(NamedTuple):
    """A memory plan: its inputs, the budget by names, notes on it, and the preset that --write saves, with its head."""

    inputs: dict[str, str | int]
    budget: dict[str, int | float]
    notes: list[str]
    head: str
    preset: dict[str, object]


def plan(args: argparse.Namespace) -> int:
    """Print the plan that `args` ask for, and write its preset where they say so. Returns 0.

    Raises UserError for impossible options, a model or GPU that is unknown, and where nothing fits.
    """
    for name in UNREAD[args.training]:
        if getattr(args, name) != make_parser("plan").get_default(name):
            kind = "training" if args.training else "evaluation"
            raise UserError(f"plan: --{name.replace('_', '-')} has no part in the {kind} budget; leave it out.")
    if args.overwrite and args.write is None:
        raise UserError("plan: --overwrite names no file; add --write FILE.")
    planned = training(args) if args.training else evaluation(args)
    if args.write is not None:
        if args.write.exists() and not args.overwrite:
            raise UserError(
                f"plan: {args.write} exists; name another file by --write, or add --overwrite to replace it."
            )
        with writing(f"plan: {args.write}", "name another file by --write"):
            write_atomically(args.write, f"# {planned.head}\n{yaml.safe_dump(planned.preset, sort_keys=False)}")
    if args.json:
        print(json.dumps({**planned.inputs, **planned.budget, "notes": planned.notes}))
        return 0
    print(", ".join(f"{name} {value}" for name, value in planned.inputs.items()))
    for name, value in planned.budget.items():
        print(f"  {name:<24}{show(name, value)}")
    print("\n".join(planned.notes))
    return 0


def evaluation(args: argparse.Namespace) -> Plan:
    """The plan of a run's slots, as the engine makes it, from computed instead of measured memory."""
    from evals.engine.memory_forecast import demand, forecast, peak
    from evals.sizing.slots import plan_slots

    ((name, model),) = models(args, most=1)
    config = EngineConfig(target_utilisation=args.target)
    most = AUTO_SLOTS["cuda"]
    gpu, total = gpu_memory(args.gpu)
    reading = forecast(model, total, min(args.batch_size or most, most), config)
    slot_plan = plan_slots(reading, demand(model, args.batch_size, args.length, CHAIN_SEQUENCES), config, WAY_OUT)
    parts = slot_plan.parts
    budget = {
        "gpu_memory": total,
        "parameters": model.parameters,
        "overhead": parts["context and others"],
        "weights": parts["weights"],
        "kv_per_token": model.kv_token_bytes,
        "kv_per_sequence": model.kv_bytes(args.length),
        "available": total - parts["reserve"] - parts["context and others"] - parts["weights"],
        "kv": parts["K/V"],
        "activations": parts["activations"],
        "graphs": parts["graphs"],
        "free": parts["free"],
        "reserve": parts["reserve"],
        "batch": slot_plan.slots,
        "num_gpus": args.num_gpus,
        "in_flight": slot_plan.slots * args.num_gpus,
        "utilisation": 1 - (parts["free"] + parts["reserve"]) / total,
        "peak": peak(model, reading, slot_plan, config),
    }
    notes = [f"kv: {CHAIN_SEQUENCES} sequences of full length for every problem in flight, in whole pages"]
    if model.kv_bytes(args.length) < args.length * model.kv_token_bytes:
        notes.append("kv_per_sequence: by the model's windows; the engine keeps sequences whole, and kv counts that")
    if slot_plan.lowered_from is not None:
        notes.append(f"batch: {slot_plan.lowered_from} do not fit")
    if model.refusal is not None:
        notes.append(f"this engine does not run the model, another one may. {model.refusal}")
    engine = {"target_utilisation": config.target_utilisation, "dtype": args.dtype}
    preset = {"batch_size": slot_plan.slots, "num_gpus": args.num_gpus, "engine": engine}
    if args.model:
        preset = {"model": without_file(name), **preset}
    return Plan(plan_inputs(args, name, gpu), budget, notes, f"powersample run --config {args.write}", preset)


def training(args: argparse.Namespace) -> Plan:
    """The plan of the batch of a training in which the named models are frozen."""
    frozen = models(args)
    if not args.trainable:
        raise UserError("plan: nothing is trained; say how much by --trainable.")
    gpu, total = gpu_memory(args.gpu)
    sample = args.sample_bytes or sum(model.training_bytes(args.length) for _, model in frozen)
    weights = sum(model.weight_bytes for _, model in frozen)
    asked = Training(total, weights, args.trainable, sample, frozen[-1][1].itemsize)
    budget = training_budget(asked, args.target, args.num_gpus, args.gradient_checkpointing)
    inputs = plan_inputs(args, " + ".join(name for name, _ in frozen), gpu) | {"trainable_parameters": args.trainable}
    notes = ["utilisation: of what is available for activations; gpu_utilisation is that of the whole GPU"]
    if args.sample_bytes is None:
        notes.append("activations_per_sample: computed, an upper bound for models whose weights are frozen")
    preset = {
        "batch_size": budget["batch"],
        "effective_batch_size": budget["effective_batch"],
        "elastic_target_util": args.target,
    }
    return Plan(inputs, budget, notes, TRAINING_HEAD, preset)


def plan_inputs(args: argparse.Namespace, name: str, gpu: str) -> dict[str, str | int]:
    """The inputs of a plan, as they are shown."""
    return {"model": name, "gpu": gpu, "dtype": args.dtype, "length": args.length}


def models(args: argparse.Namespace, most: int | None = None) -> list[tuple[str, ModelSpec]]:
    """Name and spec of each model asked for. Raises UserError for none, and for more than `most`."""
    number = len(args.model) + len(args.shape)
    if not number or (most is not None and number > most):
        raise UserError(
            f"plan: {number or 'no'} models were named; name {'one' if most else 'those that are frozen'} by --model "
            f"or --shape ({', '.join(SHAPES)})."
        )
    from evals.engine.checkpoint import shape_config
    from evals.engine.memory_forecast import model_spec
    from evals.engine.model_support import read_config

    configs = [(name, read_config(config_folder(name), False)) for name in args.model]
    configs += [(name, shape_config(SHAPES[name])) for name in args.shape]
    return [(name, model_spec(config, args.dtype, name)) for name, config in configs]


def config_folder(name: str) -> str:
    """The folder of a model's config.json, the only file that is fetched of a model on the hub."""
    from orchestrator.inputs.models import DEMO_FOLDER, DEMO_MODEL, download, is_local
    from orchestrator.settings.config import DEMO

    if name == DEMO:
        return str(DEMO_FOLDER / DEMO_MODEL)
    if is_local(name):
        return str(Path(without_file(name)).expanduser())
    return str(download(name, None, ["config.json"])[0])


def without_file(name: str) -> str:
    """The model's name as a run takes it: where its config.json was named, its folder."""
    return str(Path(name).parent) if Path(name).name == "config.json" else name


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
