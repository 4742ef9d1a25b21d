"""Finds a model by its name: its folder on this machine, downloaded if need be, and the digest that identifies it.

A name is `demo`, a local folder, or a model on the hub; one that cannot be had raises a UserError that names the
setting, within seconds also offline.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from evals.config import EngineConfig
from evals.types import UserError
from orchestrator.settings.config import DEMO

DEMO_FOLDER = Path(__file__).parents[2] / "evals" / "demo"
DEMO_MODEL = "model"  # in DEMO_FOLDER
HUB_SECONDS = 10.0
CAREFUL = EngineConfig()  # runs no code of a model, loads no pickled weights
MODEL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
PICKLE_FILES = ("*.bin", "*.pt", "*.pth")


class ModelSource(NamedTuple):
    """A model's folder on this machine, and what identifies the model."""

    folder: str
    name: str
    """As the user gave it."""
    revision: str | None
    """Commit on the hub; None for a local folder."""
    digest: str
    """What enters the fingerprint: the commit, or sha256 over a local folder's files."""


def is_local(name: str) -> bool:
    """Whether `name` is a path: it exists here, or is neither `owner/name` nor a bare word as hub names are."""
    return Path(name).expanduser().exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1


def resolve_model(name: str, revision: str | None = None, engine: EngineConfig = CAREFUL) -> ModelSource:
    """The model's folder on this machine, downloaded if need be. Raises UserError naming `model`.

    Code and pickled weights are neither fetched nor counted unless asked for.
    """
    patterns = model_files(engine)
    if name == DEMO or is_local(name):
        folder = DEMO_FOLDER / DEMO_MODEL if name == DEMO else Path(name).expanduser()
        if revision is not None:
            raise UserError(
                f"model_revision={revision} is for models from the hub but the model {name} is local; leave it out."
            )
        check_folder(folder, f"folder {folder}")
        return ModelSource(str(folder.resolve()), name, None, folder_digest(folder, patterns))
    folder, commit = download(name, revision, patterns)
    check_folder(folder, f"model {name} on the hub (commit {commit[:8]})")
    return ModelSource(str(folder), name, commit, commit)


def folder_on_node(model: ModelSource, engine: EngineConfig) -> str:
    """The folder of `model` on a worker's node, which need not be the driver's.

    A model from the hub is downloaded at the driver's commit, each file once: the hub's client locks it. Raises
    UserError for a local folder that this node does not have.
    """
    if Path(model.folder).is_dir():
        return model.folder
    if model.revision is None:
        raise UserError(
            f"There is no model folder {model.folder} on the node {socket.gethostname()}; put it on storage that all "
            "nodes share, or on each of them."
        )
    return str(download(model.name, model.revision, model_files(engine))[0])


def model_files(engine: EngineConfig) -> list[str]:
    """Patterns of the files of a model's repository that are needed."""
    code, pickled = ["*.py"] if engine.trust_remote_code else [], PICKLE_FILES if engine.allow_pickle else []
    return [*MODEL_FILES, *code, *pickled]


def check_folder(folder: Path, model: str) -> None:
    """Raises UserError unless `folder` can hold a model; the message calls it `model`."""
    way_out = "name one on the hub or a folder with config.json, tokenizer and weights"
    if not folder.is_dir():
        raise UserError(f"There is no model folder {folder}; {way_out}.", ("model",))
    if not (folder / "config.json").is_file():
        raise UserError(f"The {model} has no config.json, so it is no model for transformers; {way_out}.", ("model",))


def folder_digest(folder: Path, patterns: list[str]) -> str:
    """Hex sha256 over names and contents of the files directly in `folder` that match."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def download(name: str, revision: str | None, patterns: list[str]) -> tuple[Path, str]:
    """Folder and commit of a model from the hub; with HF_HUB_OFFLINE=1 only from the cache on this machine."""
    from huggingface_hub import HfApi, constants, snapshot_download

    with hub(f"model {name!r} is no folder", "name a local folder or another model", "model"):
        if not constants.HF_HUB_OFFLINE:
            revision = HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS).sha
        others = ["*/*", "consolidated*"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, ignore_patterns=others))
    return folder, folder.name


@contextmanager
def hub(what: str, way_out: str, setting: str) -> Iterator[None]:
    """Turns what the hub's client raises into a UserError: `what` cannot be had, and the `way_out` by `setting`."""
    from huggingface_hub import constants

    try:
        yield
    except Exception as error:  # errors of several libraries
        text = " ".join(str(error).split()) or type(error).__name__
        why = f"cannot be had from the Hugging Face hub ({text if len(text) <= 160 else text[:157] + '...'})"
        other = "set HF_HUB_OFFLINE=1 if it is in the hub's cache"
        if constants.HF_HUB_OFFLINE:
            why = "not in the hub's cache, and the hub is not asked because HF_HUB_OFFLINE is set"
            other = "unset HF_HUB_OFFLINE"
        raise UserError(f"The {what} on this machine and {why}; {other}, or {way_out}.", (setting,)) from error
