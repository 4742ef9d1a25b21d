"""Reads from the headers of their files what weights a model folder has, and checks that they are there and whole."""

from __future__ import annotations

import json
from pathlib import Path

from evals.engine.tensors import Stored
from evals.types import UserError


def check_weights(folder: Path, allow_pickle: bool) -> dict[str, Stored]:
    """The tensors that transformers would load from `folder`, by name; none of a pickled file, which tells nothing.

    It prefers one file to shards and safetensors to pickle. Raises UserError unless all are there and whole.
    """
    named = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("transformers_weights")
    names = [named] if isinstance(named, str) else ["model.safetensors", "model.safetensors.index.json"]
    if allow_pickle:
        names += ["pytorch_model.bin", "pytorch_model.bin.index.json"]
    weights = next((folder / name for name in names if (folder / name).is_file()), None)
    if weights is None:
        raise UserError(
            f"The model folder {folder} has no weights ({' or '.join(names)}); download or convert them"
            + ("." if allow_pickle else ", or set engine.allow_pickle to load pickled ones from a source you trust.")
        )
    tensors = {}
    for file in shards(weights) if weights.suffix == ".json" else [weights]:
        if not file.is_file():
            raise UserError(
                f"The weights in {folder} are incomplete: {weights.name} names {file.name}; download it again."
            )
        if file.suffix == ".safetensors":
            tensors |= stored_tensors(file)
    return tensors


def stored_tensors(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file by name. Raises UserError unless the file is as long as its header says."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - it is no mapping
            return {name: Stored(part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"The weights {file} are damaged or cut off ({error}); download the file again.") from error


def shards(index: Path) -> list[Path]:
    """The files that an index of sharded weights names. Raises UserError if it names none."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [index.parent / name for name in sorted(names)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        files = []
    if not files:
        raise UserError(f"{index} has no weight_map from tensors to files; download it again.")
    if elsewhere := [file for file in files if file.parent != index.parent]:
        raise UserError(f"{index} names {elsewhere[0]}; put the weights beside it, and name them without a folder.")
    return files
