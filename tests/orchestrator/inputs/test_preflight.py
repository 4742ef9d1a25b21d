"""Models and data by name, what is wrong with them in one sentence, and the checks before anything starts."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import constants
from safetensors.numpy import save_file

from evals.config import EngineConfig, TaskConfig
from evals.grading.symbolic import RUNTIMES
from evals.tasks.task import Task, make_task
from evals.types import Problem, UserError
from orchestrator.inputs import preflight, problems
from orchestrator.inputs.models import ModelSource, resolve_model
from orchestrator.inputs.problems import load_problems
from orchestrator.machine import description, gpus
from orchestrator.machine.gpus import Gpu, visible
from orchestrator.rundir.directory import check_writable
from orchestrator.settings.config import RunConfig, resolve
from support.command import in_process
from support.places import ROOT
from support.shared_data import GSM8K_TEST, SHARED, needs_shared

ROW = {"question": "How many?", "answer": "Two. #### 2"}


def jsonl(path: Path, *rows: Any) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def model_folder(path: Path, **files: str) -> Path:
    path.mkdir()
    for name, content in {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": "w", **files}.items():
        (path / name).write_text(content)
    return path


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub that cannot be reached, whatever machine the tests run on."""

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("Name or service\nnot known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)


def test_rows_become_problems_in_order(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", ROW, "", {**ROW, "question": "é?", "extra": 1, "group": 7}, ROW)
    loaded = load_problems(data, limit=2)
    assert loaded.problems == [Problem(0, "How many?", "Two. #### 2", "2"), Problem(1, "é?", "Two. #### 2", "2", "7")]
    assert (loaded.name, loaded.num_rows) == (data, 3)


def test_the_digest_is_of_all_rows_and_of_nothing_else(tmp_path: Path) -> None:
    one = load_problems(jsonl(tmp_path / "1.jsonl", ROW, ROW), limit=1)
    same = load_problems(jsonl(tmp_path / "2.jsonl", {**ROW, "note": 1}, "", ROW))
    assert one.digest == same.digest
    assert load_problems(jsonl(tmp_path / "3.jsonl", ROW)).digest != one.digest


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"question": "q"', ["line 2", "invalid JSON", "EOF while parsing an object"]),
        ('["q", "a"]', ["line 2", "['q', 'a']: input should be an object"]),
        ({"question": "q"}, ["line 2", "answer: field required"]),
        ({}, ["line 2", "question: field required (found: nothing)"]),
        ({**ROW, "question": ""}, ["line 2", "question is '': there should be a text"]),
        ({"question": "q", "id": 3}, ["line 2", "answer: field required (found: question, id)"]),
        ({**ROW, "answer": None}, ["line 2", "answer is None: input should be a valid string"]),
        ({**ROW, "answer": True}, ["line 2", "answer is True: input should be a valid string"]),
        ({**ROW, "answer": "Two."}, ["line 2", "the gold is 'Two.', not a number"]),
        ({**ROW, "answer": "Two. ####"}, ["line 2", "the gold is '', not a number"]),
        ({**ROW, "answer": "#### two"}, ["line 2", "'two', not a number"]),
        ({**ROW, "answer": "#### 1/2"}, ["line 2", "'1/2', not a number"]),
    ],
)
def test_a_bad_line_is_named_with_its_file(line: Any, words: list[str], tmp_path: Path) -> None:
    data = jsonl(tmp_path / "d.jsonl", ROW, line, ROW)
    with pytest.raises(UserError) as refused:
        load_problems(data)
    for word in [data, *words, 'rows are {"question": "…", "answer": "… #### 42"}']:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_data_that_is_not_text_or_empty_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "latin.jsonl").write_bytes(json.dumps(ROW).encode() + b"\n\xe9\n")
    with pytest.raises(
        UserError, match=r"latin\.jsonl, line 2: the line: invalid JSON: .* \(it is not in UTF-8\); rows"
    ):
        load_problems(str(tmp_path / "latin.jsonl"))
    for text in ("", "\n \n"):
        (tmp_path / "empty.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"empty\.jsonl has no problems"):
            load_problems(str(tmp_path / "empty.jsonl"))
    with pytest.raises(UserError, match=r"none\.jsonl cannot be read .*\(data\)\.$"):
        load_problems("none.jsonl")


def test_a_row_that_begins_as_another_kind_of_file_is_a_row(tmp_path: Path) -> None:
    """A broken row of generate's input fails alone, also where it is the first."""
    for first in ('["q", "a"]', '[{"input": "', "PAR 1", "<b>"):
        path = jsonl(tmp_path / "rows.jsonl", first, {"input": "How?"})
        assert load_problems(path, task=TaskConfig(preset="generate")).refused.keys() == {0}
    assert load_problems(jsonl(tmp_path / "rows.csv", ROW)).num_rows == 1


def test_a_pipe_is_no_data(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        UserError, match=r"The data \S+/pipe is a pipe, and is read again for a report; save it as a file"
    ):
        load_problems(str(tmp_path / "pipe"))


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps(ROW), encoding="utf-8-sig")
    assert load_problems(str(tmp_path / "d.jsonl")).problems[0].question == "How many?"


@pytest.mark.usefixtures("no_hub")
def test_what_the_hub_would_have_is_refused_with_the_variables() -> None:
    with pytest.raises(UserError, match=r"'openai/gsm8k' .*Name or service not known.*\(data\)\.$"):
        load_problems("openai/gsm8k")
    with pytest.raises(UserError, match=r"'a/b' \(split train\) .*\(task\.train_data\)\.$"):
        load_problems("a/b", "train", setting="task.train_data")
    with pytest.raises(UserError, match=r"'Qwen/Qwen2.5-Math-1.5B' .*Name or service not known.*\(model\)\.$"):
        resolve_model("Qwen/Qwen2.5-Math-1.5B")


@pytest.mark.parametrize("find", [load_problems, resolve_model])
def test_offline_on_purpose_is_not_told_to_go_offline(find: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def not_in_the_cache(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach the hub: offline mode is enabled")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets, "load_dataset", not_in_the_cache)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", not_in_the_cache)
    with pytest.raises(UserError, match=r"not in the hub's cache, and .*; unset HF_HUB_OFFLINE, or name ") as refused:
        find("someone/nothing")
    assert "HF_HUB_OFFLINE=1" not in str(refused.value)


def test_gsm8k_comes_from_the_hub_at_one_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*names: Any, **options: Any) -> list[dict[str, str]]:
        asked.append((names, options))
        return [ROW]

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_problems("openai/gsm8k", "train").problems == [Problem.from_answer(0, *ROW.values())]
    load_problems("someone/else")
    load_problems("someone/else", "validation", task=TaskConfig(data_config="hard"))
    load_problems("openai/gsm8k", task=TaskConfig(data_config="socratic"))
    load_problems("madrylab/gsm8k-platinum", "train", setting="task.train_data")
    load_problems("madrylab/gsm8k-platinum", "validation")
    assert asked == [
        (("openai/gsm8k", "main"), {"split": "train", "revision": problems.GSM8K_REVISION}),
        (("someone/else", None), {"split": "test", "revision": None}),
        (("someone/else", "hard"), {"split": "validation", "revision": None}),
        (("openai/gsm8k", "socratic"), {"split": "test", "revision": problems.GSM8K_REVISION}),
        (("madrylab/gsm8k-platinum", "main"), {"split": "test", "revision": None}),
        (("madrylab/gsm8k-platinum", "main"), {"split": "validation", "revision": None}),
    ]


def test_a_model_from_the_hub_is_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, asked = model_folder(tmp_path / "abc123"), []

    class Info:
        sha = "abc123"

    def snapshot_download(name: str, **options: Any) -> str:
        asked.append((name, options))
        return str(folder)

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: Info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = resolve_model("owner/name")
    assert model == ModelSource(str(folder), "owner/name", "abc123", "abc123")
    resolve_model("owner/name", engine=EngineConfig(trust_remote_code=True, allow_pickle=True))
    assert [options["revision"] for _, options in asked] == ["abc123", "abc123"]
    careful, trusting = ({*options["allow_patterns"]} for _, options in asked)
    assert trusting - careful == {"*.py", "*.bin", "*.pt", "*.pth"}


def test_a_local_model_is_its_files(tmp_path: Path) -> None:
    one = resolve_model(str(model_folder(tmp_path / "one")))
    copy = resolve_model(str(model_folder(tmp_path / "copy", README="x")))
    other = resolve_model(str(model_folder(tmp_path / "other", **{"model.safetensors": "v"})))
    assert (one.revision, one.folder) == (None, str(tmp_path / "one"))
    assert one.digest == copy.digest != other.digest


def test_a_model_that_is_not_there_or_not_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model folder /no/such/model; name one .*\(model\)\.$"):
        resolve_model("/no/such/model")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"^The folder \S+ has no config\.json, .*\(model\)\.$") as refused:
        resolve_model(str(tmp_path / "empty"))
    assert str(refused.value).count(str(tmp_path / "empty")) == 1
    with pytest.raises(UserError, match=r"model_revision=main"):
        resolve_model(str(model_folder(tmp_path / "m")), "main")


@needs_shared(GSM8K_TEST, claim="GSM8K's test set is recognised by its sha256")
def test_gsm8k_itself() -> None:
    loaded = load_problems(str(SHARED / GSM8K_TEST), limit=10)
    assert (len(loaded.problems), loaded.num_rows) == (10, 1319)
    assert loaded.digest == problems.GSM8K_SHA256


def test_the_embedded_model_and_problems() -> None:
    loaded = load_problems("demo", limit=3)
    assert (len(loaded.problems), loaded.num_rows) == (3, 200)
    assert Path(resolve_model("demo").folder).is_dir()


def test_longest_prompt_and_answer_must_fit_the_context() -> None:
    """Prompts are measured as they will be put, in characters here."""
    short, long = Problem(0, "q" * 5), Problem(7, "q" * 13)
    task = make_task(TaskConfig(max_new_tokens=100), 0)
    assert len(str(task.prompt(long))) == 31

    def check(context_length: int, task: Task = task) -> int:
        sizes = preflight.measure_prompts(task, [short, long], lambda text: list(map(ord, text)))
        return preflight.check_lengths(task, sizes, context_length)

    assert check(131) == 131
    with pytest.raises(UserError, match=r"Problem 7 .* 31 tokens .* 100 .* 130 \(1 of 2 .* to 99 or less") as refused:
        check(130)
    assert "num_shots" not in str(refused.value)
    shots = make_task(TaskConfig(max_new_tokens=100, num_shots=4), 0, [Problem(i, f"{i}", "#### 1") for i in range(4)])
    with pytest.raises(UserError, match=r"; use fewer than 4 examples \(task\.num_shots\), leave the problem out"):
        check(20, shots)
    with pytest.raises(UserError, match="prompt of problem 7 has no tokens"):
        preflight.check_lengths(task, preflight.measure_prompts(task, [long], lambda _: []), 130)


def demo_model(folder: Path, **tokens: int) -> str:
    """The embedded model with more tokens (content -> id) in its tokenizer, and a chat template with both."""
    source = Path(resolve_model("demo").folder)
    folder.mkdir()
    for path in source.iterdir():
        (folder / path.name).symlink_to(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    for content, number in tokens.items():
        tokenizer["added_tokens"].append({"id": number, "content": f"<|{content}|>", "special": True, **flags})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    config = json.loads((source / "tokenizer_config.json").read_text())
    turns = "<|start|>{{ messages[-1]['content'] }}<|end|>"
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": turns}))
    return str(folder)


def refused(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What `powersample run` says of a model that it refuses before it writes anything."""
    data = jsonl(tmp_path / "data.jsonl", ROW, ROW)
    before = sorted(tmp_path.rglob("*"))
    command = ["run", "--model", model, "--data", data, "--inline", "--num-gpus", "0", "--run-dir", tmp_path / "run"]
    assert in_process(*command, *flags) == 2
    assert sorted(tmp_path.rglob("*")) == before
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def test_ids_beyond_the_embedding_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only prompts that have such ids: the embedding may lack tokens that nobody uses."""
    model = demo_model(tmp_path / "model", start=1024, end=1025)
    said = refused(model, tmp_path, capsys, "--task.chat")
    assert said.startswith("powersample: The prompt of problem 0 has the token '<|end|>' (id 1025) but the model in ")
    assert "has embeddings for ids below 1024 only (2 of 2 prompts); use the tokenizer that the model was" in said
    assert said.endswith("(--model or POWERSAMPLE_MODEL).\n")
    assert "(id 1024)" in refused(model, tmp_path, capsys, "--task.template", "<|start|>{question}")
    config = resolve(RunConfig(model=model, data="x", run_dir=tmp_path / "run", task=TaskConfig(max_new_tokens=9)), 0)
    problems = [Problem(0, "How?", "#### 8")]
    assert preflight.check_model(config, model, make_task(config.task, 0), problems).max_length > 9


def test_a_model_that_can_draw_no_end_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Path(demo_model(tmp_path / "model", end=1024))
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        content = json.loads((folder / name).read_text())
        (folder / name).unlink()
        eos = {"eos_token": "<|end|>"} if name == "tokenizer_config.json" else {"eos_token_id": [1024, 2000]}
        (folder / name).write_text(json.dumps(content | eos))
    said = refused(str(folder), tmp_path, capsys)
    assert "can draw none of its EOS ids (1024, 2000), as it has ids below 1024 only; use the tokenizer" in said
    assert "or name another eos_token_id in its generation_config.json (--model or POWERSAMPLE_MODEL)." in said


def test_a_link_to_a_folder_whose_name_is_not_utf_8_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    demo_model(tmp_path / "caf\udce9")
    (tmp_path / "model").symlink_to(tmp_path / "caf\udce9")
    assert "caf\\xe9 is refused: \\xe9 is no character of a text in UTF-8" in refused(
        str(tmp_path / "model"), tmp_path, capsys
    )


def test_run_directories_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(UserError, match=r"cannot be written .*\(run_dir\)\.$"):
            check_writable(directory)
    check_writable(tmp_path / "new/deep")
    assert not (tmp_path / "new").exists()


def test_the_whole_check_on_a_real_model(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model, task = resolve_model("demo").folder, TaskConfig(max_new_tokens=160)
    config = resolve(RunConfig(model=model, data="x", run_dir=tmp_path / "run", task=task), 0)
    problems = [Problem(0, "How many legs have two dogs?", "#### 8"), Problem(1, "How?", "#### 8")]
    checked = preflight.check_model(config, model, make_task(config.task, 0), problems)
    assert 160 + 8 < checked.max_length < 160 + 40
    assert (len(checked.prompt_ids), checked.asked_raw) == (16, False)
    long = [*problems, Problem(2, "dog " * 5000, "#### 8")]
    with pytest.raises(UserError, match=r"Problem 2 does not fit the model"):
        preflight.check_model(config, model, make_task(config.task, 0), long)
    assert "longer than" not in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    nowhere = config.model_copy(update={"run_dir": tmp_path / "file/run"})
    with pytest.raises(UserError, match=r"file/run cannot be written"):
        preflight.check_model(nowhere, model, make_task(config.task, 0), problems)


def weights(path: Path, **files: bytes | None) -> Path:
    """A model folder with a good model.safetensors, and `files` (dots as __) beside, or instead, or left out."""
    path.mkdir()
    save_file({"w": np.zeros(100, dtype=np.float32)}, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    for name, content in files.items():
        file = path / name.replace("__", ".")
        if content is None:
            file.unlink()
        else:
            file.write_bytes(content)
    return path


def whole(path: Path) -> bytes:
    return (weights(path) / "model.safetensors").read_bytes()


def test_weights_must_be_there(tmp_path: Path) -> None:
    preflight.check_weights(weights(tmp_path / "good"), False)
    pickled = weights(tmp_path / "pickled", model__safetensors=None, pytorch_model__bin=b"p")
    with pytest.raises(UserError, match=r"pickled has no weights .*model\.safetensors.*engine\.allow_pickle"):
        preflight.check_weights(pickled, False)
    preflight.check_weights(pickled, True)
    with pytest.raises(UserError, match=r"none has no weights"):
        preflight.check_weights(weights(tmp_path / "none", model__safetensors=None), True)


@pytest.mark.parametrize("kept", [0, 4, 30, -1])
def test_weights_that_are_cut_off_are_named(kept: int, tmp_path: Path) -> None:
    content = whole(tmp_path / "whole")
    folder = weights(tmp_path / "cut", model__safetensors=content[:kept])
    with pytest.raises(UserError, match=r"cut/model\.safetensors are damaged or cut off") as refused:
        preflight.check_weights(folder, False)
    assert "\n" not in str(refused.value)


def test_every_shard_of_an_index_must_be_there_and_whole(tmp_path: Path) -> None:
    shard = whole(tmp_path / "whole")
    index = json.dumps({"weight_map": {"a": "1.safetensors", "b": "2.safetensors", "c": "1.safetensors"}}).encode()
    files = {"model__safetensors": None, "model__safetensors__index__json": index, "1__safetensors": shard}
    preflight.check_weights(weights(tmp_path / "good", **files, **{"2__safetensors": shard}), False)
    with pytest.raises(UserError, match=r"incomplete: model\.safetensors\.index\.json names 2\.safetensors"):
        preflight.check_weights(weights(tmp_path / "missing", **files), False)
    with pytest.raises(UserError, match=r"2\.safetensors are damaged or cut off"):
        preflight.check_weights(weights(tmp_path / "cut", **files, **{"2__safetensors": shard[:-1]}), False)
    index = index.replace(b"2.safetensors", b"more/2.safetensors")
    elsewhere = weights(tmp_path / "elsewhere", **{**files, "model__safetensors__index__json": index})
    with pytest.raises(UserError, match=r"names \S+more/2\.safetensors; put the weights beside it, and name them wit"):
        preflight.check_weights(elsewhere, False)
    for number, broken in enumerate((b"{", b"[]", b"{}")):
        with pytest.raises(UserError, match=r"model\.safetensors\.index\.json"):
            preflight.check_weights(
                weights(tmp_path / str(number), **{**files, "model__safetensors__index__json": broken}), False
            )


GPUS = [Gpu(index, f"GPU-{index}{index}ab", "H100", 80 << 30) for index in range(4)]


@pytest.mark.parametrize(
    ("devices", "indices"),
    [(None, [0, 1, 2, 3]), ("", []), ("-1", []), ("2,0", [2, 0]), ("1,9,2", [1]), ("GPU-33ab", [3]), ("MIG-x", [-1])],
)
def test_hidden_gpus_do_not_count(devices: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in visible(GPUS, devices)] == indices


def test_gpus_that_torch_cannot_use_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpus, "PROBE", "print('[false, \"2.13.0\", null]')")
    monkeypatch.setattr(gpus, "driver_version", lambda: "580.1")
    with pytest.raises(UserError, match=r"4 GPUs \(H100, driver 580\.1\) but torch 2\.13\.0 .* without CUDA"):
        gpus.check_torch_sees_gpus(GPUS)
    with pytest.raises(UserError, match=r"has 1 GPU \(H100"):
        gpus.check_torch_sees_gpus(GPUS[:1])
    monkeypatch.setattr(gpus, "PROBE", 'print(\'[true, "2.13.0", "13.0"]\')')
    gpus.check_torch_sees_gpus(GPUS)
    monkeypatch.setattr(gpus, "PROBE", "raise ImportError('libcudart')")
    with pytest.raises(UserError, match="libcudart"):
        gpus.check_torch_sees_gpus(GPUS)


def test_provenance_is_json_and_names_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["powersample", "run", "--name", "a b"])
    found = json.loads(json.dumps(asdict(description.describe())))
    assert found["command"] == "powersample run --name 'a b'"
    assert found["versions"]["pydantic"] != "missing"
    assert found["versions"]["antlr4-python3-runtime"] in RUNTIMES
    assert found["hardware"]["num_cpus"] >= 1
    if (ROOT / ".git").exists():
        assert len(found["git_commit"]) == 40
    assert description.git_state(Path("/")) == (None, None)
