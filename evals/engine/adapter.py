"""LoRA adapters: which ones can be merged into a model, and the merge, by peft.

An adapter is evaluated whole or not at all: each of its settings and tensors is one that the merge takes in.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any

from evals.engine.model_support import first_line
from evals.engine.tensors import Stored, natural
from evals.types import UserError

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
MERGED = {
    "alpha_pattern", "exclude_modules", "fan_in_fan_out", "layers_pattern", "layers_to_transform", "lora_alpha", "r",
    "rank_pattern", "target_modules", "use_dora", "use_rslora",
    *("auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "inference_mode"),
    *("loftq_config", "lora_dropout", "megatron_core", "peft_version", "qalora_group_size", "revision"),
}  # fmt: skip
"""Settings of peft's LoraConfig that the merge heeds, then those that change no trained adapter."""
ALLOWED = {
    "peft_type": ("LORA",),
    "task_type": ("CAUSAL_LM", None),
    "bias": ("none", None),
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),  # the others change the base as well
}
NAME = re.compile(r"base_model\.model\.(.+)\.(lora_A\.weight|lora_B\.weight|lora_magnitude_vector(?:\.weight)?)")
UNMERGED = "merge it by the library that trained it, and name the folder of the result"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def read_adapter(folder: str) -> Mapping[str, Any]:
    """The configuration of the adapter in a folder.

    Raises UserError where there is none, where it is of a kind that cannot be merged, and where peft is not installed.
    """
    path = Path(folder) / ADAPTER_CONFIG
    if not path.is_file():
        raise UserError(f"There is no {ADAPTER_CONFIG} in {folder}, so it is no adapter.", ("engine.adapter",))
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rest = {name: value for name, value in config.items() if name not in MERGED}
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({first_line(error)}); download it again.") from error
    for name, values in ALLOWED.items():
        if (value := rest.pop(name, None)) not in values or (name == "peft_type" and value is None):
            raise UserError(
                f"The adapter in {folder} has {name} {value!r}, which the engine does not merge; {UNMERGED}."
            )
    if others := sorted(name for name, value in rest.items() if value):
        raise UserError(f"The adapter in {folder} sets {others[0]}, which the engine does not merge; {UNMERGED}.")
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise UserError(f"{path} is damaged (r is {rank!r}, lora_alpha {alpha!r}); download it again.")
    if not (path.parent / ADAPTER_WEIGHTS).is_file():
        raise UserError(f"The adapter in {folder} has no {ADAPTER_WEIGHTS}; save it as safetensors.")
    if find_spec("peft") is None:
        raise UserError(
            f"{folder} holds an adapter, which peft merges, and peft is not installed; pip install "
            "'powersample[adapters]', or merge the adapter elsewhere and name the folder of the result."
        )
    return config


def check_fit(folder: str, tensors: Mapping[str, Stored], network: Any | None) -> None:
    """Check the tensors of the adapter in `folder` against `network`, the base without weights.

    Raises UserError unless each belongs to a linear layer of the base, of its shape; without a `network`, names alone
    are checked.
    """
    found = dict[str, dict[str, tuple[int, ...]]]()
    for name in natural(tensors):
        if (match := NAME.fullmatch(name)) is None:
            raise UserError(
                f"The adapter in {folder} has {name}, which is no part of a LoRA pair and would be lost; {UNMERGED}."
            )
        found.setdefault(match[1], {})[match[2]] = tensors[name].shape
    modules = {} if network is None else dict(network.named_modules())
    for module, shapes in found.items():
        a, b = shapes.get("lora_A.weight", ()), shapes.get("lora_B.weight", ())
        if len(a) != 2 or len(b) != 2 or a[0] != b[1]:
            raise UserError(f"The adapter in {folder} is incomplete at {module}; download it again.")
        weight = None if network is None else getattr(modules.get(module), "weight", None)
        if network is not None and (weight is None or sorted(weight.shape) != sorted((a[1], b[0]))):
            fact = f"whose shape is {list(weight.shape)} there" if weight is not None else "which is not there"
            raise UserError(
                f"The adapter in {folder} is for another base: it changes {module} by {[b[0], a[1]]}, {fact}; name its "
                "own base.",
                ("model", "engine.adapter"),
            )
        if network is not None and weight is network.get_input_embeddings().weight:
            raise UserError(
                f"The adapter in {folder} changes {module}, which shares its weights with the embedding; {UNMERGED}."
            )


def check_tokenizer(folder: str, base: str) -> None:
    """Raises UserError if the adapter has a tokenizer, a chat template or EOS tokens of its own, unlike its base's."""
    from tokenizers import Tokenizer

    def of_json(path: Path, name: str) -> Any:
        return json.loads(path.read_text(encoding="utf-8")).get(name) if path.is_file() else None

    def tokenizer(place: Path) -> str | None:
        if not (path := place / "tokenizer.json").is_file():
            return None
        found = Tokenizer.from_file(str(path))
        found.no_padding()
        found.no_truncation()
        return found.to_str()

    def template(place: Path) -> str | None:
        if (path := place / "chat_template.jinja").is_file():
            return path.read_text(encoding="utf-8")
        return of_json(place / "tokenizer_config.json", "chat_template")

    def eos_token(place: Path) -> str | None:
        token = of_json(place / "tokenizer_config.json", "eos_token")
        return token["content"] if isinstance(token, dict) else token

    def eos_ids(place: Path) -> set[int] | None:
        ids = of_json(place / "generation_config.json", "eos_token_id")
        return None if ids is None else set(ids if isinstance(ids, list) else [ids])

    own_things = {
        "a tokenizer.json": tokenizer,
        "a chat template": template,
        "an EOS token": eos_token,
        "EOS ids": eos_ids,
    }
    for what, read in own_things.items():
        try:
            differs = (own := read(Path(folder))) is not None and own != read(Path(base))
        except Exception as error:  # tokenizers raises Exception itself
            raise UserError(f"The files for {what} in {folder} or {base} are damaged ({first_line(error)}).") from error
        if differs:
            raise UserError(
                f"The adapter in {folder} has {what} of its own, unlike the base's; take its file out of the folder to "
                f"use the base's, or {UNMERGED}."
            )


def merge(network: Any, folder: str) -> None:
    """Merge the adapter in `folder` into a network, in the type of the network's weights.

    Raises UserError for an adapter that does not fit, or not entirely.
    """
    read_adapter(folder)
    from peft import LoraConfig, get_peft_model, set_peft_model_state_dict  # pyright: ignore[reportMissingImports]
    from safetensors.torch import load_file

    try:
        with warnings.catch_warnings(action="ignore"):
            config: Any = LoraConfig.from_pretrained(folder)
            config.init_lora_weights = True  # all are overwritten
            adapted = get_peft_model(network, config)
            result = set_peft_model_state_dict(adapted, load_file(Path(folder) / ADAPTER_WEIGHTS))
            lacking = [name for name in result.missing_keys if ".lora_" in name]
            if odd := natural(lacking or result.unexpected_keys):
                what = "lacks" if lacking else "has no place for"
                raise ValueError(f"it {what} {odd[0]}")
            adapted.merge_and_unload(safe_merge=True)
    except Exception as error:  # peft and torch raise anything over what does not fit
        said = shorten(str(error), 300, placeholder=" …")  # its first line is a mere heading
        raise UserError(f"The adapter in {folder} cannot be merged: {said.rstrip('.')}.") from error


@contextmanager
def base_alone(folder: str) -> Iterator[str]:
    """A folder of links to the files of the model in `folder` without the adapter's, which transformers would load."""
    with TemporaryDirectory() as alone:
        for path in Path(folder).iterdir():
            if not path.name.startswith("adapter_"):
                (Path(alone) / path.name).symlink_to(path.resolve())
        yield alone


def unnamed_adapter(folder: str) -> UserError:
    """The error for a model beside an adapter of which nobody said whether it is meant."""
    return UserError(
        f"Beside the model in {folder} there is an adapter ({ADAPTER_CONFIG}); name the folder as the adapter to "
        "evaluate both together, or move the adapter out of it.",
        ("engine.adapter",),
    )
