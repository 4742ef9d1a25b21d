"""Checks that the weights in a model folder are all there and whole."""

from __future__ import annotations

import json
from pathlib import Path

from evals.types import UserError


def check_weights(folder: Path, allow_pickle: bool) -> None:
    """Raises UserError unless the weights that transformers would load from `folder` are all there and whole.

    It prefers one file to shards and safetensors to pickle; of a pickled file nothing can be known without loading it.
    """
    from safetensors import SafetensorError, safe_open

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
    for file in shards(weights) if weights.suffix == ".json" else [weights]:
        if not file.is_file():
            raise UserError(
                f"The weights in {folder} are incomplete: {weights.name} names {file.name}; download it again."
            )
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="numpy"):  # the header can be read, and the file is as long as it says
                    pass
            except (SafetensorError, OSError) as error:
                raise UserError(
                    f"The weights {file} are damaged or cut off ({error}); download the file again."
                ) from error


def shards(index: Path) -> list[Path]:
    """The files that an index of sharded weights names. Raises UserError if it names none."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        files = [index.parent / name for name in sorted(names)]
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        files = []
    if not files:
        raise UserError(f"{index} has no weight_map from tensors to files; download it again.")
    return files
