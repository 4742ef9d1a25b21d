"""Whether every tensor of a checkpoint has a place in its model, and every place a tensor.

`check_tensors` compares what the files' headers say with the library's model without weights, before anything is
loaded; what the library renames while it loads is seen by `check_load`, in the library's own account of the load.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from evals.types import UserError

FLOATS = {"F64", "F32", "F16", "BF16"}
HARMLESS = re.compile(r"rotary_emb\.inv_freq$|(^|\.)position_ids$|(attn|attention)\.(masked_)?bias$")
"""Tensors that older versions of the library wrote and computed themselves: frequencies, positions, causal masks."""
QUANTISED = re.compile(
    r"(scale_inv|(weight|input|output|activation|act|[kqv])_scales?(_\d)?|_scale_\d|scales|_blocks|qweight|qzeros|g_idx"
    r"|zero_points?|zeros|absmax|quant_map|SCB|weight_format|weight_packed|weight_shape|packed_weight|codebooks?|codes"
    r"|amax|\.quant_state\..*|_quantizer\..*|\.W_q|_qtype|_data)$"
)
"""Names of what quantisers keep beside, or instead of, a weight."""
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")


class Stored(NamedTuple):
    """A tensor of a checkpoint, as the header of its file describes it."""

    dtype: str
    """As safetensors calls it, such as BF16."""
    shape: tuple[int, ...]


def check_tensors(folder: str, tensors: Mapping[str, Stored], network: Any | None) -> None:
    """Check the tensors of the checkpoint in `folder` against `network`, the library's model without weights.

    Raises UserError for quantised tensors, and for tensors without a place, places without a tensor and other shapes as
    far as names tell without the library's renaming: of a kind (the name without its numbers) that file and model
    share. Without a `network` only for quantised ones.
    """
    prefix = "" if network is None else f"{network.base_model_prefix}."
    ours = {} if network is None else network.state_dict()
    places = {bare(name, prefix): place for name, place in ours.items()}
    ignored = [] if network is None else network._keys_to_ignore_on_load_unexpected or []
    kinds, stored, homeless = {kind(name) for name in places}, set[str](), list[str]()
    for name in natural(tensors):
        place, dtype = places.get(bare(name, prefix)), tensors[name].dtype
        if place is None and (HARMLESS.search(name) or any(re.search(pattern, name) for pattern in ignored)):
            continue
        if dtype not in FLOATS and (place is None or place.is_floating_point()):
            raise quantised(folder, f"its tensor {name} is {dtype}")
        if place is None and QUANTISED.search(name):
            raise quantised(folder, f"it has {name}")
        if place is not None and tensors[name].shape != tuple(place.shape):
            raise misshapen(folder, name, tensors[name].shape, place.shape)
        if bare(name, prefix) in stored or (place is None and kind(bare(name, prefix)) in kinds):
            homeless.append(name)
        stored.add(bare(name, prefix))
    if homeless:
        raise without_place(folder, homeless, type(network).__name__)
    there = {kind(name) for name in stored}
    if lacking := [name for name in ours if bare(name, prefix) not in stored and kind(bare(name, prefix)) in there]:
        raise incomplete(folder, lacking)


def check_load(folder: str, network: Any, report: Mapping[str, Any]) -> None:
    """Check the library's account of a load. Raises UserError as `check_tensors` does, whatever was renamed."""
    homeless = natural(name for name in report["unexpected_keys"] if not HARMLESS.search(name))
    if scales := [name for name in homeless if QUANTISED.search(name)]:
        raise quantised(folder, f"it has {scales[0]}")
    if homeless:
        raise without_place(folder, homeless, type(network).__name__)
    for name, theirs, ours in sorted(report["mismatched_keys"]):
        raise misshapen(folder, name, theirs, ours)
    if lacking := natural(report["missing_keys"]):
        raise incomplete(folder, lacking)


def check_finite(folder: str, network: Any) -> None:
    """Raises UserError naming the first parameter that holds NaN or infinity."""
    for name, weight in network.named_parameters():
        least, most = map(float, weight.detach().aminmax())  # one pass, without a copy; NaN goes through
        if not (least > -float("inf") and most < float("inf")):
            what = "NaN" if least != least or most != most else "infinity"
            dtype = str(weight.dtype).removeprefix("torch.")
            way_out = ", or set engine.dtype to bfloat16 or float32" if dtype == "float16" else ""
            raise UserError(
                f"The weights in {folder} hold {what} as {dtype}, first in {name}; download them again or choose "
                f"another checkpoint{way_out}."
            )


def quantised(folder: str, reason: str, way_out: str = "") -> UserError:
    """The error for a model that would be read as another one without its quantiser."""
    return UserError(
        f"The model in {folder} is quantised ({reason}), and the engine runs none that is; choose it in bfloat16, or "
        f"dequantise it first{way_out}."
    )


def without_place(folder: str, names: list[str], architecture: str) -> UserError:
    return other_weights(folder, f"{names[0]}{others(names)} without a place in {architecture}")


def misshapen(folder: str, name: str, theirs: Iterable[int], ours: Iterable[int]) -> UserError:
    return other_weights(folder, f"{name} is {list(theirs)} and should be {list(ours)}")


def incomplete(folder: str, names: list[str]) -> UserError:
    return UserError(
        f"The weights in {folder} are incomplete: {names[0]}{others(names)} missing; "
        "download both again from one source."
    )


def other_weights(folder: str, reason: str) -> UserError:
    """The error for weights that are not those of the model that config.json describes."""
    return UserError(
        f"The weights in {folder} are not those of its config.json: {reason}; download both again from one source."
    )


def others(names: list[str]) -> str:
    return f" and {len(names) - 1} others are" if len(names) > 1 else " is"


def bare(name: str, prefix: str) -> str:
    """A tensor's name without the model's prefix, with or without which it may be stored."""
    return name.removeprefix(prefix)


def kind(name: str) -> str:
    """A tensor's name without its numbers, of layers and experts."""
    return NUMBER.sub("*", name)


def natural(names: Iterable[str]) -> list[str]:
    """The names in order, layer 10 after layer 9."""
    return sorted(names, key=lambda name: re.sub(r"\d+", lambda number: number[0].zfill(9), name))
