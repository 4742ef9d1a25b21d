"""`powersample plan`: where a GPU's memory would go, and the batch that it has room for. Touches no device.

Knows how a plan is asked for, shown and kept; evals/budget.py and evals/engine/forecast.py know the arithmetic.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from evals.budget import FOUNDING, Training, founding_notes, training_budget
from evals.config import AUTO_SLOTS, EngineConfig
from evals.types import UserError
from orchestrator import hardware
from orchestrator.arguments import parse
from orchestrator.bench import SHAPES
from orchestrator.durable import write_atomically

if TYPE_CHECKING:
    from evals.engine.anatomy import Anatomy

GIB = 2**30
GPUS = {
    "v100-16": 15.8, "v100-32": 31.7, "a100-40": 39.4, "a6000-48": 47.5, "a100-80": 79.1, "h100-80": 79.1,
    "h200-141": 139.8,
}  # fmt: skip
"""GiB that the driver leaves of the memory that the name says."""
COUNTS = {"parameters", "trainable_parameters", "batch", "num_gpus", "effective_batch", "in_flight"}
OF_TRAINING = ("trainable", "lora_rank", "adapter_size", "sample_bytes")
UNREAD = {
    "evaluation": (*OF_TRAINING, "gradient_checkpointing"),
    "training": ("batch_size",),
    "founding": (*OF_TRAINING, "model", "shape", "gpu", "training", "dtype", "length", "batch_size"),
}
"""Options that would be ignored, by kind of budget."""
CHAIN_SEQUENCES = 2
"""A state and a draft, as power sampling needs."""
Budget = dict[str, int | float]


class Plan(NamedTuple):
    """A plan, and how it may be kept."""

    inputs: dict[str, Any]
    budget: Budget
    notes: list[str]
    preset: dict[str, Any]


def plan(arguments: Sequence[str]) -> int:
    """Print the plan that `arguments` ask for, and keep its preset where they say so. Returns 0.

    Raises UserError for options that cannot be, a model or GPU that is unknown, and where nothing fits.
    """
    parser = make_parser()
    args = parse(parser, arguments)
    if args.help:
        print(parser.format_help().rstrip())
        return 0
    mode = founding if args.founding else training if args.training else evaluation
    for name in UNREAD[mode.__name__]:
        if getattr(args, name) != parser.get_default(name):
            raise UserError(
                f"plan: --{name.replace('_', '-')} has no part in the {mode.__name__} budget; leave it out."
            )
    found = mode(args)
    if args.write is not None:
        keep(found.preset, args.write, args.overwrite)
    if args.json:
        print(json.dumps({**found.inputs, **found.budget, "notes": found.notes}))
    else:
        print("\n".join(table(found)))
    return 0


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="powersample plan",
        description=(__doc__ or "").splitlines()[0],
        allow_abbrev=False,
        add_help=False,
        exit_on_error=False,
    )
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="NAME", help="folder, config.json, hub name, or demo")
    add("--shape", action="append", default=[], choices=SHAPES, help="a known shape in place of a model")
    add("--gpu", metavar="GPU", help=f"{', '.join(GPUS)}, or its memory in GiB (default: the one present)")
    add("--num-gpus", type=positive, default=1, metavar="N", help="GPUs, each with its own copy (%(default)s)")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the weights (%(default)s)")
    add("--length", type=positive, default=1024, metavar="N", help="tokens of the longest sequence (%(default)s)")
    add("--batch-size", type=positive, metavar="N", help="upper limit of an evaluation (default: what fits and pays)")
    add("--target", type=share, help="target utilisation: of the GPU, in training of the room for activations (0.8)")
    train = parser.add_argument_group("training of a small part beside frozen models")
    add = train.add_argument
    add("--training", action="store_true", help="every --model and --shape is frozen")
    add("--trainable", type=count, default=0, metavar="N", help="parameters that are trained, such as 100e6")
    add("--lora-rank", type=positive, metavar="R", help="LoRA beside all matrices of the last model's layers")
    add("--adapter-size", type=positive, metavar="N", help="two bottlenecks in every layer of the last model")
    add("--gradient-checkpointing", action="store_true", help="60 %% less for activations")
    add("--sample-bytes", type=count, metavar="N", help="activations of a sample, if measured (default: computed)")
    add("--founding", action="store_true", help="the founding document's budget, and where its sums do not add up")
    out = parser.add_argument_group("output")
    out.add_argument("--json", action="store_true", help="one JSON line, in bytes")
    out.add_argument("--write", type=Path, metavar="FILE", help="keep the batch as a preset in this YAML file")
    out.add_argument("--overwrite", action="store_true", help="even if the file exists")
    out.add_argument("--help", "-h", action="store_true", help="print this")
    return parser


def positive(text: str) -> int:
    if (number := count(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number


def count(text: str) -> int:
    """A whole number, also as 100e6."""
    try:
        number = float(text)
        if number.is_integer() and number >= 0:
            return int(number)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")


def share(text: str) -> float:
    try:
        if 0 < (number := float(text)) <= 1:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and up to 1")


def target(args: argparse.Namespace) -> float:
    return EngineConfig().target_utilisation if args.target is None else args.target


def evaluation(args: argparse.Namespace) -> Plan:
    """Slots of a run, as the engine plans them, from computed instead of measured memory."""
    from evals.engine.forecast import demand, forecast, peak
    from evals.engine.planning import plan_slots

    ((name, model),) = models(args, most=1)
    config = EngineConfig(target_utilisation=target(args))
    most = AUTO_SLOTS["cuda"]
    gpu, total = gpu_memory(args.gpu)
    reading = forecast(model, total, min(args.batch_size or most, most), config)
    found = plan_slots(reading, demand(model, args.batch_size, args.length, CHAIN_SEQUENCES), config)
    parts = found.parts
    budget: Budget = {
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
        "batch": found.slots,
        "num_gpus": args.num_gpus,
        "in_flight": found.slots * args.num_gpus,
        "utilisation": 1 - (parts["free"] + parts["reserve"]) / total,
        "peak": peak(model, reading, found, config),
    }
    notes = [f"kv: {CHAIN_SEQUENCES} sequences of full length for every problem in flight, in whole pages"]
    if model.kv_bytes(args.length) < args.length * model.kv_token_bytes:
        notes.append("kv_per_sequence: by the model's windows; the engine keeps sequences whole, and kv counts that")
    if found.lowered_from is not None:
        notes.append(f"batch: {found.lowered_from} do not fit")
    if model.refusal is not None:
        notes.append(f"this engine does not run the model, another one may. {model.refusal}")
    engine = {"target_utilisation": config.target_utilisation, "dtype": args.dtype}
    preset = {"batch_size": found.slots, "num_gpus": args.num_gpus, "engine": engine}
    if args.model:
        preset = {"model": name, **preset}
    return Plan(described(args, name, gpu), budget, notes, preset)


def training(args: argparse.Namespace) -> Plan:
    """The batch of a training with frozen parts."""
    frozen = models(args)
    _, adapted = frozen[-1]
    trainable = args.trainable
    if args.lora_rank is not None:
        trainable += adapted.lora_parameters(args.lora_rank)
    if args.adapter_size is not None:
        trainable += adapted.adapter_parameters(args.adapter_size)
    if not trainable:
        raise UserError("plan: nothing is trained; say what by --trainable, --lora-rank or --adapter-size.")
    gpu, total = gpu_memory(args.gpu)
    sample = args.sample_bytes or sum(model.training_bytes(args.length) for _, model in frozen)
    weights = sum(model.weight_bytes for _, model in frozen)
    asked = Training(total, weights, trainable, sample, adapted.itemsize)
    inputs = described(args, " + ".join(name for name, _ in frozen), gpu)
    notes = ["utilisation: of what is available for activations; gpu_utilisation is that of the whole GPU"]
    if args.sample_bytes is None:
        notes.append("activations_per_sample: computed, an upper bound for models whose weights are frozen")
    return trained(args, asked, inputs | {"trainable_parameters": trainable}, notes)


def founding(args: argparse.Namespace) -> Plan:
    """The founding document's budget from its own inputs."""
    if args.model or args.shape or args.gpu or args.training:
        raise UserError(
            "plan: --founding brings its models and its GPU; leave --model, --shape, --gpu, --training out."
        )
    inputs = {"model": "8B + 7B, frozen", "gpu": "H100, 80 GB", "trainable_parameters": FOUNDING.trainable}
    return trained(args, FOUNDING, inputs, founding_notes())


def trained(args: argparse.Namespace, asked: Training, inputs: dict[str, Any], notes: list[str]) -> Plan:
    budget = training_budget(asked, target(args), args.num_gpus, args.gradient_checkpointing)
    preset = {
        "batch_size": budget["batch"],
        "effective_batch_size": budget["effective_batch"],
        "elastic_target_util": target(args),
    }
    return Plan(inputs, budget, notes, preset)


def described(args: argparse.Namespace, name: str, gpu: str) -> dict[str, Any]:
    return {"model": name, "gpu": gpu, "dtype": args.dtype, "length": args.length}


def models(args: argparse.Namespace, most: int | None = None) -> list[tuple[str, Anatomy]]:
    """The sizes of the models asked for. Raises UserError for none, and for more than `most`."""
    number = len(args.model) + len(args.shape)
    if not number or (most is not None and number > most):
        raise UserError(
            f"plan: {number or 'no'} models were named; name {'one' if most else 'those that are frozen'} by --model "
            f"or --shape ({', '.join(SHAPES)})."
        )
    from evals.bench import SHAPES as KNOWN
    from evals.engine.anatomy import anatomy
    from evals.engine.model import read_config, shape_config

    configs = [(name, read_config(config_folder(name), False)) for name in args.model]
    configs += [(name, shape_config(KNOWN[name].kind, KNOWN[name].sizes)) for name in args.shape]
    return [(name, anatomy(config, args.dtype, name)) for name, config in configs]


def config_folder(name: str) -> str:
    """The folder of a model's config.json; of a model on the hub nothing else is fetched."""
    from orchestrator.config import DEMO
    from orchestrator.sources import DEMO_FOLDER, DEMO_MODEL, download, is_local

    if name == DEMO:
        return str(DEMO_FOLDER / DEMO_MODEL)
    if is_local(name):
        path = Path(name).expanduser()
        return str(path.parent if path.name == "config.json" else path)
    return str(download(name, None, ["config.json"])[0])


def gpu_memory(name: str | None) -> tuple[str, int]:
    """Name and bytes of a GPU. Raises UserError for an unknown one, and for none where none is present."""
    if name is None:
        present = hardware.gpus()
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
    from orchestrator.names import suggestion

    raise UserError(
        f"plan: no GPU is called {name}{suggestion(name.lower(), GPUS)}; known are {', '.join(GPUS)}, or give its "
        "memory in GiB."
    )


def keep(preset: dict[str, Any], path: Path, overwrite: bool) -> None:
    """Write the preset. Raises UserError if the file is there or cannot be written."""
    if path.exists() and not overwrite:
        raise UserError(f"plan: {path} exists; name another file by --write, or add --overwrite to replace it.")
    try:
        write_atomically(path, yaml.safe_dump(preset, sort_keys=False))
    except OSError as error:
        raise UserError(f"plan: {path} cannot be written ({error.strerror}); name another file by --write.") from error


def table(found: Plan) -> list[str]:
    """The plan as lines; both units, because documents count in GB and this engine in GiB."""
    lines = [", ".join(f"{name} {value}" for name, value in found.inputs.items())]
    return lines + [f"  {name:<24}{show(name, value)}" for name, value in found.budget.items()] + found.notes


def show(name: str, value: float) -> str:
    if isinstance(value, float):
        return f"{value:12.1%}"
    if name in COUNTS:
        return f"{value:12,}"
    power = 1 if value < 10**6 else 2 if value < 10**9 else 3
    unit = "KMG"[power - 1]
    return f"{value / 1000**power:12.2f} {unit}B {value / 1024**power:10.2f} {unit}iB"
