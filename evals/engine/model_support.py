"""Whether the engine can serve the model in a folder, from its configuration alone.

No weight is loaded. The self-check at start-up catches what a configuration does not name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.utils import logging

from evals.engine.tensors import quantised
from evals.types import UserError

LAYERS = {"full_attention", "sliding_attention"}
LENGTHS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
SINKS = {"gpt_oss"}
FAMILIES = "Llama, Qwen2, Qwen3, Mistral, Gemma 2, Phi-3, GPT-2 and most other decoder-only families work"


def read_config(folder: str, trust_remote_code: bool) -> Any:
    """The configuration in a local folder. Raises UserError where the folder, the file or the model type is missing."""
    path = Path(folder)
    if not path.is_dir():
        raise UserError(f"The model folder {folder} does not exist; name one that does.", ("model",))
    if not (path / "config.json").is_file():
        raise UserError(f"The model folder {folder} has no config.json; use one that `save_pretrained` wrote.")
    try:
        with quiet():
            return AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except Exception as error:  # the library raises anything over damaged files
        cause = error.__cause__ if isinstance(error, StrictDataclassError) else None  # which says what was expected
        if "custom code" in (reason := first_line(cause or error)):
            way_out = "a run with engine.trust_remote_code=true takes it, if you trust it"
            raise UserError(
                f"{path / 'config.json'} cannot be used: it brings Python code of its own; {way_out}."
            ) from error
        raise unusable_config(folder, reason) from error


def check_architecture(folder: str, trust_remote_code: bool = False) -> int:
    """Check, before its weights are loaded, that the engine can serve the model in this folder.

    Returns the longest prompt plus answer in tokens. Raises UserError naming folder and architecture.
    """
    config = read_config(folder, trust_remote_code)
    names, code = getattr(config, "architectures", None) or [None], getattr(config, "auto_map", None) or {}
    if not isinstance(names, list) or not isinstance(code, Mapping):
        raise unusable_config(folder, f"its architectures or auto_map say {names if code == {} else code}")
    class_name, remote = names[0], "AutoModelForCausalLM" in code
    classes: list[Any] = model_classes(config)
    architecture = class_name or (classes[0].__name__ if classes else type(config).__name__)
    if remote and not trust_remote_code:
        raise refusal(folder, architecture, "it brings Python code of its own; engine.trust_remote_code=true allows it")
    chosen = [cls for cls in classes if class_name in (None, cls.__name__)]
    if any(getattr(cls, "_is_stateful", False) for cls in chosen):
        raise refusal(folder, architecture, "it keeps a recurrent state, which cannot be rewound")
    if (method := quantisation(config)) is not None:
        raise quantised(
            folder,
            f"quantization_config of its config.json says {method}",
            ", or, if its weights are plain ones already, take that out",
        )
    if (reason := unsupported_reason(config)) is not None:
        raise refusal(folder, architecture, reason)
    if not remote:
        if not chosen or not chosen[0].__name__.endswith(("ForCausalLM", "LMHeadModel")):
            raise refusal(folder, architecture, "it is not a text-only causal language model")
        if not chosen[0]._can_set_attn_implementation():
            raise refusal(folder, architecture, "its attention cannot be replaced (it does not use AttentionInterface)")
    length = context_length(config)
    if length is None:
        raise refusal(folder, architecture, "its configuration names no longest sequence")
    return length


def unsupported_reason(config: Any) -> str | None:
    """Why a model of this configuration cannot be served, as the end of a sentence; None if nothing is known."""
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, not a causal language model"
    others = sorted(set(getattr(config, "layer_types", None) or ()) - LAYERS)
    if others:
        return f"it has layers of type {', '.join(others)}; only {' and '.join(sorted(LAYERS))} are supported"
    if config.model_type in SINKS:
        return "its attention has sinks, which are not supported"
    if any(rope.get("rope_type") == "dynamic" for rope in ropes(config)):
        return "its rotary embedding is `dynamic`: one long row would change the others of its batch"
    return None


def quantisation(config: Any) -> str | None:
    """The method that a configuration says its weights are quantised by; None for plain ones."""
    texts = [config, config.get_text_config(decoder=True)]
    for name in ("quantization_config", "compression_config"):
        for found in (getattr(part, name, None) for part in texts):
            if found is not None:
                method = found.get("quant_method") if isinstance(found, Mapping) else found
                return f"`{method}`" if isinstance(method, str) else "no method"
    return None


def ropes(config: Any) -> list[Mapping]:
    """A configuration's settings of rotary embeddings, and those for each kind of layer where they differ."""
    rope = getattr(config, "rope_parameters", None) or {}
    return [rope, *(group for group in rope.values() if isinstance(group, Mapping))]


def context_length(config: Any) -> int | None:
    """Longest sequence in tokens, None if not named; of `longrope` only up to where its factors change for a batch."""
    lengths = [value for name in LENGTHS if isinstance(value := getattr(config, name, None), int) and value > 0]
    if not lengths:
        return None
    original = getattr(config, "original_max_position_embeddings", None)
    for rope in ropes(config):
        if rope.get("rope_type") == "longrope":
            return min(lengths[0], rope.get("original_max_position_embeddings") or original or lengths[0])
    return lengths[0]


def windows(config: Any) -> bool:
    """Whether a layer sees only the latest tokens, as far as the configuration says."""
    if getattr(config, "use_sliding_window", True) is False:
        return False
    kinds = getattr(config, "layer_types", None)
    return bool(getattr(config, "sliding_window", None)) and (kinds is None or "sliding_attention" in kinds)


def model_classes(config: Any) -> list[Any]:
    """The library's classes of causal language models for this configuration; none if it has none."""
    classes: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return [] if classes is None else list(classes) if isinstance(classes, tuple) else [classes]


def refusal(folder: str, architecture: str, reason: str) -> UserError:
    """The error for a model that cannot be served."""
    return UserError(f"The model in {folder} ({architecture}) cannot be used: {reason}; {FAMILIES}.")


def unusable_config(folder: str, reason: str) -> UserError:
    """The error for a config.json of which no model can be made."""
    return UserError(
        f"{Path(folder) / 'config.json'} cannot be used: {reason}; choose another model, or download it again if it "
        "should be one."
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the library's warnings, tables and progress bars: what they are about is refused in one sentence."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def first_line(error: BaseException) -> str:
    """The beginning of an error's text, without its full stop; a text that is but a word with the error's name."""
    text = (str(error).strip().splitlines() or [""])[0].rstrip(".")
    if isinstance(error, KeyError):
        return f"transformers does not know {text}"
    return text if " " in text else f"{type(error).__name__} {text}".rstrip()
