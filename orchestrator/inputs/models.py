"""Finds a model by its name: its folder on this machine, downloaded if need be, and the digest that identifies it.

A name is `demo`, a local folder, or a model on the hub; one that cannot be had raises a UserError that names the
setting, within seconds also offline.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evals.config import EngineConfig
from evals.types import UserError
from orchestrator.installation import DEMO_FOLDER
from orchestrator.settings.config import DEMO
from orchestrator.settings.parser import local_path

if TYPE_CHECKING:
    from pydantic import JsonValue

DEMO_MODEL = "model"  # in DEMO_FOLDER
HUB_SECONDS = 10.0
CAREFUL = EngineConfig()  # runs no code of a model, loads no pickled weights
MODEL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
PICKLE_FILES = ("*.bin", "*.pt", "*.pth")
WAY_OUT = "name one on the hub or a folder with config.json, tokenizer and weights"


class ModelSource(NamedTuple):
    """A model's folder on this machine, and what identifies the model."""

    folder: str
    name: str
    """As the user gave it."""
    revision: str | None
    """Commit on the hub; None for a local folder."""
    digest: str
    """What enters the fingerprint: the commit, or sha256 over a local folder's files."""
    adapter: ModelSource | None = None
    """What is merged into the model."""

    def describe(self) -> dict[str, JsonValue]:
        """Its name and what identifies it, for run.json."""
        of_files = None if self.revision else self.digest
        return {"name": self.name, "revision": self.revision, "sha256": of_files}


def is_local(name: str) -> bool:
    """Whether `name` is a path: it exists here, or is neither `owner/name` nor a bare word as hub names are."""
    return local_path(name).exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1


def resolve_model(name: str, revision: str | None = None, engine: EngineConfig = CAREFUL) -> ModelSource:
    """The model's folder on this machine with its adapter, downloaded if need be. Raises UserError naming `model`.

    A model that is an adapter without its base is the base that it names, with that adapter. Code and pickled weights
    are neither fetched nor counted unless asked for.
    """
    from evals.engine.adapter import ADAPTER_CONFIG, is_adapter, read_adapter, unnamed_adapter

    model = find(name, revision, model_files(engine))
    if not is_adapter(Path(model.folder)):
        check_folder(Path(model.folder), f"model {name} on the hub" if model.revision else f"folder {model.folder}")
        if engine.adapter is not None:
            return model._replace(adapter=find_adapter(engine.adapter))
        if (Path(model.folder) / ADAPTER_CONFIG).is_file():
            raise unnamed_adapter(model.folder)
        return model
    if engine.adapter is not None:
        raise UserError(f"The model {name} is an adapter itself; name its base.", ("model", "engine.adapter"))
    config = read_adapter(model.folder)
    if not isinstance(base := config.get("base_model_name_or_path"), str) or not base:
        raise UserError(f"{name} is an adapter and names no base; name both.", ("model", "engine.adapter"))
    try:
        found = find(base, None if is_local(base) else config.get("revision"), model_files(engine))
        check_folder(Path(found.folder), f"base {base}")
    except UserError as error:
        raise UserError(f"{name} is an adapter, and its base cannot be used: {error.reason}", error.settings) from error
    return found._replace(adapter=find_adapter(name, revision))


def find_adapter(name: str, revision: str | None = None) -> ModelSource:
    """The adapter's folder on this machine, downloaded if need be. Raises UserError where it cannot be merged."""
    from evals.engine.adapter import ADAPTER_CONFIG, ADAPTER_WEIGHTS, read_adapter

    adapter = find(name, revision, MODEL_FILES, "adapter", "engine.adapter")
    read_adapter(adapter.folder)
    if adapter.revision is not None:
        return adapter
    return adapter._replace(digest=folder_digest(Path(adapter.folder), [ADAPTER_CONFIG, ADAPTER_WEIGHTS]))


def find(
    name: str, revision: str | None, patterns: Sequence[str], what: str = "model", setting: str = "model"
) -> ModelSource:
    """The folder that `name` means, downloaded if need be, and its digest. Raises UserError naming the setting."""
    if name != DEMO and not is_local(name):
        folder, commit = download(name, revision, patterns, what, setting)
        return ModelSource(str(folder), name, commit, commit)
    folder = DEMO_FOLDER / DEMO_MODEL if name == DEMO else local_path(name)
    if revision is not None:
        raise UserError(
            f"model_revision={revision} is for models from the hub but the model {name} is local; leave it out."
        )
    if not folder.is_dir():
        raise UserError(f"There is no {what} folder {folder}; {WAY_OUT}.", (setting,))
    return ModelSource(str(folder.resolve()), name, None, folder_digest(folder, patterns))


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
    if not (folder / "config.json").is_file():
        raise UserError(f"The {model} has no config.json, so it is no model for transformers; {WAY_OUT}.", ("model",))


def folder_digest(folder: Path, patterns: Iterable[str]) -> str:
    """Hex sha256 over names and contents of the files directly in `folder` that match."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def download(
    name: str, revision: str | None, patterns: Sequence[str], what: str = "model", setting: str = "model"
) -> tuple[Path, str]:
    """Folder and commit of a model from the hub; with HF_HUB_OFFLINE=1 only from the cache on this machine."""
    from huggingface_hub import HfApi, constants, snapshot_download

    with hub(f"{what} {name!r} is no folder", f"name a local folder or another {what}", setting):
        if not constants.HF_HUB_OFFLINE:
            revision = HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS).sha
        others = ["*/*", "consolidated*"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=[*patterns], ignore_patterns=others))
    return folder, folder.name


@contextmanager
def hub(what: str, way_out: str, setting: str) -> Iterator[None]:
    """Turns what the hub's client raises into a UserError: `what` cannot be had, and the `way_out` by `setting`."""
    from huggingface_hub import constants

    try:
        yield
    except UserError:
        raise
    except Exception as error:  # errors of several libraries
        text = " ".join(str(error).split()) or type(error).__name__
        why = f"cannot be had from the Hugging Face hub ({text if len(text) <= 160 else text[:157] + '...'})"
        other = "set HF_HUB_OFFLINE=1 if it is in the hub's cache"
        if constants.HF_HUB_OFFLINE:
            why = "not in the hub's cache, and the hub is not asked because HF_HUB_OFFLINE is set"
            other = "unset HF_HUB_OFFLINE"
        raise UserError(f"The {what} on this machine and {why}; {other}, or {way_out}.", (setting,)) from error
