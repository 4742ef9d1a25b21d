"""What the engine refuses, read off a model's configuration before any weight is loaded. Knows no model code.

The self-check at start-up catches what a configuration does not name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

LAYERS = {"full_attention", "sliding_attention"}
LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
SINKS = {"gpt_oss"}


class ModelLimits(NamedTuple):
    """What is known of a model without its weights."""

    architecture: str
    """Class name, e.g. Qwen2ForCausalLM."""
    context_length: int
    """Longest prompt plus answer, in tokens."""
    vocab_size: int
    """Rows of the embedding."""


def objection(config: Any) -> str | None:
    """Why a model of this configuration cannot be served, as the end of a sentence; None if nothing is known."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, not a causal language model"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS)
    if others:
        return f"it has layers of type {', '.join(others)}; only {' and '.join(sorted(LAYERS))} are supported"
    if config.model_type in SINKS:
        return "its attention has sinks, which are not supported"
    if "dynamic" in set(rope_types(config)):
        return "its rotary embedding is `dynamic`: one long row would change the others of its batch"
    return None


def rope_types(config: Any) -> Iterator[str]:
    """Types of rotary embedding that a configuration names, one or one per kind of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        if isinstance(found, Mapping):
            for group in (found, *(value for value in found.values() if isinstance(value, Mapping))):
                kind = group.get("rope_type", group.get("type"))
                if isinstance(kind, str):
                    yield kind


def context_length(config: Any) -> int | None:
    """Longest sequence in tokens; `longrope` counts only up to where its factors change for a whole batch."""
    lengths = [value for name in LENGTHS if isinstance(value := getattr(config, name, None), int) and value > 0]
    if not lengths:
        return None
    original = getattr(config, "original_max_position_embeddings", None)
    for name in ("rope_parameters", "rope_scaling"):
        if isinstance(found := getattr(config, name, None), Mapping):
            original = found.get("original_max_position_embeddings", original)
    if "longrope" in set(rope_types(config)) and isinstance(original, int):
        return min(lengths[0], original)
    return lengths[0]


def windows(config: Any) -> bool:
    """True if some layer sees only the latest tokens, as far as the configuration says."""
    if getattr(config, "use_sliding_window", True) is False:
        return False
    kinds = getattr(config, "layer_types", None)
    return bool(getattr(config, "sliding_window", None)) and (kinds is None or "sliding_attention" in kinds)
