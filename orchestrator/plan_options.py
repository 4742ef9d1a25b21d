"""The options of `powersample plan`, and the budget that they ask for. Knows no arithmetic."""

from __future__ import annotations

import argparse
from pathlib import Path

from evals.config import EngineConfig
from evals.types import UserError
from orchestrator.arguments import command_parser, count, positive
from orchestrator.bench import SHAPES

GPUS = {
    "v100-16": 15.8, "v100-32": 31.7, "a100-40": 39.4, "a6000-48": 47.5, "a100-80": 79.1, "h100-80": 79.1,
    "h200-141": 139.8,
}  # fmt: skip
"""GiB that the driver leaves of the memory that the name says."""
OF_TRAINING = ("trainable", "lora_rank", "adapter_size", "sample_bytes")
UNREAD = {
    "evaluation": (*OF_TRAINING, "gradient_checkpointing"),
    "training": ("batch_size",),
    "founding": (*OF_TRAINING, "model", "shape", "gpu", "training", "dtype", "length", "batch_size"),
}
"""Options that would be ignored, by kind of budget."""


def make_parser() -> argparse.ArgumentParser:
    """The options."""
    description = "Where a GPU's memory would go, and the batch that it has room for. Touches no device."
    parser = command_parser("plan", description=description)
    add = parser.add_argument
    add("--model", action="append", default=[], metavar="NAME", help="folder, config.json, hub name, or demo")
    add("--shape", action="append", default=[], choices=SHAPES, help="a known shape in place of a model")
    add("--gpu", metavar="GPU", help=f"{', '.join(GPUS)}, or its memory in GiB (default: the one present)")
    add("--num-gpus", type=positive, default=1, metavar="N", help="GPUs, each with its own copy (%(default)s)")
    add("--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16", help="of the weights (%(default)s)")
    add("--length", type=positive, default=1024, metavar="N", help="tokens of the longest sequence (%(default)s)")
    add("--batch-size", type=positive, metavar="N", help="upper limit of an evaluation (default: what fits and pays)")
    usual = EngineConfig().target_utilisation
    add(
        "--target",
        type=share,
        default=usual,
        help="share that may be used: of the GPU, in training of the room for activations (%(default)s)",
    )
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
    return parser


def share(text: str) -> float:
    try:
        if 0 < (number := float(text)) <= 1:
            return number
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and up to 1")


def check_read(parser: argparse.ArgumentParser, args: argparse.Namespace) -> str:
    """The kind of budget asked for. Raises UserError for an option that it would ignore."""
    kind = "founding" if args.founding else "training" if args.training else "evaluation"
    for name in UNREAD[kind]:
        if getattr(args, name) != parser.get_default(name):
            raise UserError(f"plan: --{name.replace('_', '-')} has no part in the {kind} budget; leave it out.")
    if args.overwrite and args.write is None:
        raise UserError("plan: --overwrite names no file; add --write FILE.")
    return kind
