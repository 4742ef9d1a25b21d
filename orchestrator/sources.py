"""From names to things: a model's folder and a data set's problems, each with the digest that identifies it.

A name is `demo` (what comes with the project), something on this machine, or something on the Hugging Face hub. Knows
no tokenizer and no device. What cannot be had is a UserError that names the variable, within seconds also offline.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import socket
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from evals.config import EngineConfig, TaskConfig
from evals.grading.numeric import gold
from evals.types import Problem, UserError
from orchestrator.config import DEFAULT_DATA, DEMO

DEMO_FOLDER = Path(__file__).parents[1] / "evals" / "demo"
DEMO_MODEL, DEMO_PROBLEMS, DEMO_TRAIN = "model", "problems.jsonl", "train.jsonl"  # in DEMO_FOLDER
GSM8K_REVISION = "cc7b047b6e5bb11b4f1af84efc572db110a51b3c"
PLATINUM = "madrylab/gsm8k-platinum"  # has a test split alone, from which its solved examples come, too
HUB_SECONDS = 10.0
GSM8K_FORMAT = TaskConfig()
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can write one alone, UTF-8 and tokenizers cannot
MODEL_FILES = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")
PICKLE_FILES = ("*.bin", "*.pt", "*.pth")
MODEL_SETTING = "--model (of a run also POWERSAMPLE_MODEL)"
DATA_SETTING = "POWERSAMPLE_DATA (--data)"
TRAIN_SETTING = "POWERSAMPLE_TASK__TRAIN_DATA (--task.train-data)"


class ModelSource(NamedTuple):
    """A model on this machine."""

    folder: str
    name: str
    """As it was asked for."""
    revision: str | None
    """Commit on the hub; None for a local folder."""
    digest: str
    """What the fingerprint takes: the commit, or sha256 over a local folder's files."""

    def describe(self) -> dict[str, Any]:
        """For run.json."""
        return {"name": self.name, "revision": self.revision, "sha256": None if self.revision else self.digest}


class DataSource(NamedTuple):
    """Problems in the order of their data set."""

    problems: list[Problem]
    """Within the limit."""
    name: str
    digest: str
    """sha256 of all rows, the same for a file and the hub, whatever the limit."""
    num_rows: int
    """Rows of the whole data set."""
    refused: Mapping[int, str] = MappingProxyType({})
    """Row -> why it is no problem; only where nothing is graded, since a score is of all rows."""

    @property
    def num_problems(self) -> int:
        """Within the limit, refused ones included."""
        return len(self.problems) + len(self.refused)

    def describe(self) -> dict[str, Any]:
        """For run.json."""
        return {"name": self.name, "sha256": self.digest, "rows": self.num_rows}


def resolve_model(
    name: str, revision: str | None = None, *, trust_remote_code: bool = False, allow_pickle: bool = False
) -> ModelSource:
    """The model's folder on this machine, downloaded if need be. Raises UserError naming POWERSAMPLE_MODEL.

    Code and pickled weights are neither fetched nor counted unless asked for.
    """
    patterns = model_files(trust_remote_code, allow_pickle)
    if name == DEMO or is_local(name):
        folder = DEMO_FOLDER / DEMO_MODEL if name == DEMO else Path(name).expanduser()
        if revision is not None:
            raise UserError(
                f"model_revision={revision} is for models from the hub but the model {name} is local; leave it out."
            )
        check_folder(folder, name)
        return ModelSource(str(folder.resolve()), name, None, folder_digest(folder, patterns))
    folder, commit = download(name, revision, patterns)
    check_folder(folder, name, commit)
    return ModelSource(str(folder), name, commit, commit)


def on_this_node(model: ModelSource, engine: EngineConfig) -> str:
    """The folder of `model` for a worker, whose node need not be the driver's.

    A model from the hub is downloaded by the first worker of a node, at the driver's commit, while the others wait. The
    lock goes with the process that holds it. Raises UserError for a local folder that this node does not have.
    """
    if Path(model.folder).is_dir():
        return model.folder
    if model.revision is None:
        raise UserError(
            f"There is no model folder {model.folder} on the node {socket.gethostname()}; put it on storage that all "
            "nodes share, or on each of them."
        )
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".powersample.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patterns = model_files(engine.trust_remote_code, engine.allow_pickle)
        return str(download(model.name, model.revision, patterns)[0])


def model_files(trust_remote_code: bool, allow_pickle: bool) -> list[str]:
    """What of a model's repository is needed."""
    return [*MODEL_FILES, *(["*.py"] if trust_remote_code else []), *(PICKLE_FILES if allow_pickle else [])]


def is_local(name: str) -> bool:
    """A hub name is `owner/name` or a bare word; anything else, and whatever exists here, is a path."""
    return Path(name).expanduser().exists() or name.startswith(("/", ".", "~")) or name.count("/") > 1


def check_folder(folder: Path, name: str, commit: str | None = None) -> None:
    """Raises UserError unless `folder`, which has the model `name` (at a commit on the hub), can be one."""
    way_out = f"set {MODEL_SETTING} to a hub name or a folder with config.json, tokenizer and weights"
    if not folder.is_dir():
        raise UserError(f"There is no model folder {folder}; {way_out}.")
    if not (folder / "config.json").is_file():
        model = f"model {name} on the hub (commit {commit[:8]})" if commit else f"folder {folder}"
        raise UserError(f"The {model} has no config.json, so it is no model for transformers; {way_out}.")


def folder_digest(folder: Path, patterns: Iterable[str]) -> str:
    """Hex sha256 over names and contents of the files directly in `folder` that match."""
    total = hashlib.sha256()
    for path in sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}):
        with path.open("rb") as file:
            total.update(f"{path.name}\0{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return total.hexdigest()


def download(name: str, revision: str | None, patterns: list[str]) -> tuple[Path, str]:
    """Folder and commit of a model from the hub; with HF_HUB_OFFLINE=1 only the cache on this machine is looked at."""
    from huggingface_hub import HfApi, constants, snapshot_download

    wanted: dict[str, Any] = {"allow_patterns": patterns, "ignore_patterns": ["*/*", "consolidated*"]}
    try:
        if not constants.HF_HUB_OFFLINE:
            revision = HfApi().model_info(name, revision=revision, timeout=HUB_SECONDS).sha
        folder = Path(snapshot_download(name, revision=revision, **wanted))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise UserError(
            f"The model {name!r} is no folder on this machine and {unavailable(error)}; set {MODEL_SETTING} "
            f"to a local folder or another hub name, or {other_way()}."
        ) from error
    return folder, folder.name


def load_problems(
    data: str,
    split: str = "test",
    limit: int | None = None,
    task: TaskConfig = GSM8K_FORMAT,
    setting: str = DATA_SETTING,
) -> DataSource:
    """The problems of `demo`, a JSONL file, or a data set on the hub, in the format of `task`; problem_id is the row.

    Raises UserError: unreachable (naming `setting`, by which `data` was chosen), empty, or a row that is no problem
    (file and line named).
    """
    if data == DEMO or is_local(data) or data.endswith((".jsonl", ".json")):
        path = DEMO_FOLDER / (DEMO_TRAIN if split == "train" else DEMO_PROBLEMS) if data == DEMO else Path(data)
        problems, refused = read_jsonl(path.expanduser(), task, setting)
    else:
        rows, refused = hub_rows(data, split, setting), {}
        problems = [check_row(row, number, f"{data}, row {number}", task) for number, row in enumerate(rows)]
        if not problems:
            raise UserError(f"The data set {data} has no rows in split {split}; set {setting} to another.")
    pairs: list[list[Any]] = [[problem.question, problem.answer] for problem in problems]
    content = json.dumps([*pairs, *([row] for row in refused)], ensure_ascii=False)
    digest, num_rows = hashlib.sha256(content.encode()).hexdigest(), len(problems) + len(refused)
    within = num_rows if limit is None else limit
    problems = [problem for problem in problems if problem.problem_id < within]
    if not problems:
        raise UserError(f"No row of {data} within the limit can be used; the first: {next(iter(refused.values()))}")
    return DataSource(
        problems, data, digest, num_rows, {row: reason for row, reason in refused.items() if row < within}
    )


def read_jsonl(path: Path, task: TaskConfig, setting: str) -> tuple[list[Problem], dict[int, str]]:
    """The problems of a JSONL file, and why other rows are none, which only an open task does not raise at once.

    Raises UserError where there is no row.
    """
    way_out = f"set {setting} to a JSONL file in GSM8K's format or a hub name"
    problems, refused = [], {}
    for number, (where, line) in enumerate(jsonl_lines(path, way_out)):
        try:
            problems.append(check_row(parsed(line, where), number, where, task))
        except UserError as error:
            if task.name != "open":
                raise
            refused[number] = str(error)
    if not problems and not refused:
        raise UserError(f"The data file {path} has no problems in it; {way_out}.")
    return problems, refused


def jsonl_rows(path: Path, way_out: str) -> Iterator[tuple[str, Any]]:
    """What the lines of a JSONL file hold, each with where it stands. Raises UserError for a line that is no JSON."""
    return ((where, parsed(line, where)) for where, line in jsonl_lines(path, way_out))


def jsonl_lines(path: Path, way_out: str) -> Iterator[tuple[str, bytes]]:
    """The rows of a JSONL file as they are written, each with where it stands; blank lines count as lines but not as
    rows.

    Raises UserError: `way_out` says what else to name where the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"The data file {path} cannot be read ({error.strerror}); {way_out}.") from error
    for number, line in enumerate(content.removeprefix(BOM_UTF8).split(b"\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line


def parsed(line: bytes, where: str) -> Any:
    """What a line of JSON holds. Raises UserError."""
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start + 1} of the line); save the file as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where}: not a line of JSON ({error.msg} at column {error.colno}); repair or remove the line."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, brackets in too many brackets
        raise UserError(f"{where}: no problem can be read from it ({error}); repair or remove the line.") from error


def check_row(row: Any, problem_id: int, where: str, task: TaskConfig = GSM8K_FORMAT) -> Problem:
    """A row as a problem: question and answer are texts, and the answer ends in a `#### number` that can be graded.

    In the format `math` the whole answer is what is graded, unless it has a `####`, too; in the format `open` there is
    none.
    """
    open_ended, has_gold = task.name == "math", task.name != "open"
    question_key = find_question(row, task)
    asked = {question_key: "…", task.answer_key: "42" if open_ended else "… #### 42"}
    form = json.dumps(asked if has_gold else {question_key: "…"}, ensure_ascii=False)
    if not isinstance(row, Mapping):
        raise UserError(f"{where}: a {type(row).__name__} instead of an object such as {form}.")
    for key in (question_key, task.answer_key) if has_gold else (question_key,):
        if key not in row:
            raise UserError(
                f"{where}: the key {key!r} is missing (it has {', '.join(row) or 'none'}); rows are {form}."
            )
        if not isinstance(row[key], str) or not row[key].strip():
            raise UserError(f"{where}: {key!r} must be a text that is not empty; rows are {form}.")
        if SURROGATE.search(row[key]):
            raise UserError(
                f"{where}: {key!r} has half a character (\\ud800 to \\udfff alone); repair or remove the row."
            )
    group = row.get("group")
    if not has_gold:
        if SURROGATE.search(json.dumps(row, ensure_ascii=False)):  # its other fields are carried into the output
            raise UserError(f"{where}: it has half a character (\\ud800 to \\udfff alone); repair or remove the row.")
        return Problem(problem_id, row[question_key], "", None if group is None else str(group))
    question, answer = row[question_key], row[task.answer_key]
    problem = Problem(problem_id, question, answer, None if group is None else str(group))
    if open_ended and "####" not in answer:
        return problem._replace(answer=f"#### {answer.strip()}")
    if not answer.rpartition("####")[1] or not answer.rpartition("####")[2].strip():
        raise UserError(
            f"{where}: the answer has no `#### number` at its end, so nothing can be graded; rows are {form}."
        )
    if open_ended:
        return problem
    try:
        gold(problem)
    except UserError as error:  # which knows the problem but not where it stands
        written = problem.answer.rpartition("####")[2].strip()
        raise UserError(f"{where}: the answer after `####` is {written!r}, not a number; rows are {form}.") from error
    return problem


def find_question(row: Any, task: TaskConfig) -> str:
    """Under which name a row has its question: where nothing is graded, `prompt` is as good as the usual one."""
    either = task.name == "open" and isinstance(row, Mapping) and task.question_key not in row and "prompt" in row
    return "prompt" if either else task.question_key


def hub_rows(name: str, split: str, setting: str) -> list[dict[str, Any]]:
    """Rows of a data set from the hub; with HF_HUB_OFFLINE=1 only the cache on this machine is looked at.

    The hub is asked first by one short call: `load_dataset` alone retries for half a minute when offline.
    """
    from huggingface_hub import HfApi, constants

    revision, configuration = (GSM8K_REVISION, "main") if name == DEFAULT_DATA else (None, None)
    if name == PLATINUM:
        configuration, split = "main", "test"
    try:
        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(name, revision=revision, timeout=HUB_SECONDS)
        import datasets

        loaded = datasets.load_dataset(name, configuration, split=split, revision=revision)
        return [dict(row) for row in loaded]
    except Exception as error:  # the hub's client raises errors of several libraries
        raise UserError(
            f"The data set {name!r} (split {split}) is no file on this machine and {unavailable(error)}; set "
            f"{setting} to a JSONL file in GSM8K's format or another hub name, or {other_way()}."
        ) from error


def unavailable(error: BaseException) -> str:
    """Why a thing on the hub cannot be had, as the end of a clause."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "not in the hub's cache, and the hub is not asked because HF_HUB_OFFLINE is set"
    return f"cannot be had from the Hugging Face hub ({reason(error)})"


def other_way() -> str:
    """What else to set where a thing on the hub cannot be had."""
    from huggingface_hub import constants

    return "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "set HF_HUB_OFFLINE=1 if it is in the hub's cache"


def reason(error: BaseException) -> str:
    """An exception in a few words, on one line."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
