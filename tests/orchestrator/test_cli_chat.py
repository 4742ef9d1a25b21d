"""Chats on the command line: prompts stay those of the run's start; templates and arguments work or are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from support.command import DEMO, in_process, powersample
from support.places import ROOT

TURNS = "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
CLOCK = "It is {{ strftime_now('%A %d %B %Y, %H:%M, %s%% %Z') }}.\n" + TURNS
SHORT = ["--data", "demo", "--inline", "--num-gpus", 0, "--sampler.kind", "greedy", "--task.max-new-tokens", 8]
EAST, WEST = "Pacific/Kiritimati", "Pacific/Pago_Pago"  # 25 hours apart


def model(folder: Path, template: Any, **files: str) -> Path:
    """The embedded model with a chat template, and further `files`."""
    shutil.copytree(DEMO / "model", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    return folder


def run_json(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "run.json").read_text())


def records(directory: Path) -> dict[int, list[int]]:
    rows = [json.loads(line) for line in (directory / "records.jsonl").read_text().splitlines()]
    return {row["problem_id"]: row["token_ids"] for row in rows}


def owe(directory: Path, kept: int) -> set[int]:
    """Have a run owe all but its first `kept` answers; returns the problems that it still has."""
    lines = (directory / "records.jsonl").read_bytes().splitlines(keepends=True)
    (directory / "records.jsonl").write_bytes(b"".join(lines[:kept]))
    return {*records(directory)}


def refused(capsys: pytest.CaptureFixture[str], place: Path, *options: object) -> str:
    """The one sentence that refuses a run, which leaves nothing behind."""
    capsys.readouterr()
    assert in_process("run", *SHORT, "--limit", 2, "--run-dir", place, *options) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert not place.exists()
    return err


@pytest.mark.parametrize(
    "shape",
    [
        ["--inline"],
        pytest.param(["--num-workers", 1, "--no-inline", "--no-dashboard"], marks=[pytest.mark.ray, pytest.mark.slow]),
    ],
    ids=["inline", "ray"],
)
def test_a_run_keeps_its_time_wherever_and_whenever_it_goes_on(shape: list[object], tmp_path: Path) -> None:
    options = [*SHORT, "--model", model(tmp_path / "model", CLOCK), "--task.chat", "--limit", 4, *shape]

    def start(name: str, zone: str) -> dict[str, Any]:
        done = powersample("run", *options, "--run-dir", tmp_path / name, TZ=zone)
        assert done.returncode == 0, done.stderr
        return run_json(tmp_path / name)

    begun = start("run", EAST)
    whole = records(tmp_path / "run")
    assert begun["provenance"]["prompts_time"].endswith("+14:00")
    owe(tmp_path / "run", 1)
    assert start("run", WEST) == begun
    assert records(tmp_path / "run") == whole
    other = start("other", WEST)
    assert other["provenance"]["prompts_time"].endswith("-11:00")
    assert other["fingerprint"] == begun["fingerprint"]
    assert other["provenance"]["prompts_sha256"] == begun["provenance"]["prompts_sha256"], "of the turns alone"
    assert len(begun["prompt_ids_sha256"]) == 8 * 4
    assert other["prompt_ids_sha256"] != begun["prompt_ids_sha256"]


def test_going_on_with_other_token_ids_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = tmp_path / "run"
    options = [*SHORT, "--model", model(tmp_path / "model", CLOCK), "--task.chat", "--limit", 3]
    assert in_process("run", *options, "--run-dir", directory) == 0
    begun, whole = run_json(directory), records(directory)
    has = owe(directory, 1)
    (first, second) = sorted({0, 1, 2} - has)

    def changed(*problems: int, **more: Any) -> int:
        kept = begun["prompt_ids_sha256"]
        digests = ["0" * 8 if i in problems else kept[8 * i : 8 * i + 8] for i in range(3)]
        (directory / "run.json").write_text(json.dumps({**begun, "prompt_ids_sha256": "".join(digests), **more}))
        capsys.readouterr()
        return in_process("run", *options, "--run-dir", directory)

    before = {path: path.read_bytes() for path in directory.iterdir() if path.name != "run.json"}
    for problems in ((first, second, *has), (second,)):
        assert changed(*problems) == 2
        said = capsys.readouterr().err
        assert f"powersample: The prompt of problem {min(set(problems) - has)}, which the run in {directory} " in said
        assert "chat template or the versions of transformers and tokenizers have changed; restore them" in said
        assert {path: path.read_bytes() for path in directory.iterdir() if path.name != "run.json"} == before
    assert changed(*has) == 0, "what is answered is not asked again"
    assert records(directory) == whole
    owe(directory, 1)
    older = {**begun, "provenance": {**begun["provenance"]}}
    del older["prompt_ids_sha256"], older["provenance"]["prompts_time"], older["extents"]
    (directory / "run.json").write_text(json.dumps(older))
    assert in_process("run", *options, "--run-dir", directory) == 0, "a run of an older version goes on"
    assert run_json(directory) == older


def test_a_fresh_run_and_a_damaged_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*SHORT, "--model", model(tmp_path / "model", CLOCK), "--task.chat", "--limit", 1]
    options += ["--run-dir", tmp_path / "run"]
    assert in_process("run", *options) == 0
    content = run_json(tmp_path / "run")
    content["provenance"]["prompts_time"] = "2026-01-01T12:00:00+01:00"
    content["prompt_ids_sha256"] = "0" * 8
    (tmp_path / "run/run.json").write_text(json.dumps(content))
    assert in_process("run", *options, "--fresh") == 0
    assert run_json(tmp_path / "run-2")["provenance"]["prompts_time"] > "2026-02"
    content["provenance"]["prompts_time"] = "noon"
    (tmp_path / "run/run.json").write_text(json.dumps(content))
    capsys.readouterr()
    assert in_process("run", *options) == 2
    assert "run.json is damaged: it does not say provenance.prompts_time" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% for m in messages %}{{ m['content'] }}", "problem 0 (Unexpected end of template."),
        ("{{ raise_exception('Only for\n poets.') }}", "problem 0 (Only for); mend the template in the model's folder"),
        ("{{ messages[0].content.more.less }}", "('str object' has no attribute 'more')"),
        ("{{ 1 / 0 }}", "(division by zero)"),
        ("{{ raise_exception('long ' * 999) }}", "long long …); mend"),
        ("{% if '?' in messages[0].content %}{{ raise_exception('Never ask') }}{% endif %}", "problem 0 (Never ask)"),
        ("{% for t in tools %}{{ t }}{% endfor %}" + TURNS, "it wants tools, and there are none"),
        ("{{ ['a', 'b'] | random }}" + TURNS, "(it draws by chance, with random)"),
        ("{{ ['ab', 'cd'] | map('random') | join }}" + TURNS, "(it draws by chance, with random)"),
        ("{{ lipsum() }}" + TURNS, "(it draws by chance, with lipsum)"),
        ("Hello!", "leaves out what the user says"),
        ("{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}", "what the user"),
        ([{"name": "rag", "template": TURNS}, {"name": "tool_use", "template": TURNS}],
         "has several chat templates (rag, tool_use) and none is called default"),
    ],
)  # fmt: skip
def test_a_template_that_cannot_be_used_is_one_sentence(
    template: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = model(tmp_path / "model", template)
    said = refused(capsys, tmp_path / "run", "--model", folder, "--task.chat")
    assert said.startswith("powersample: The model's ")
    assert words in said
    assert said.endswith(", or set task.chat to false.\n")


def test_templates_in_files_of_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = model(tmp_path / "broken", TURNS, **{"chat_template.jinja": "{% if %}"})
    assert "problem 0 (Expected an expression" in refused(capsys, tmp_path / "run", "--model", broken, "--task.chat")
    named = model(tmp_path / "named", None, **{"additional_chat_templates/rag.jinja": TURNS})
    assert "chat templates (rag) and none" in refused(capsys, tmp_path / "run", "--model", named, "--task.chat")
    (named / "chat_template.jinja").write_text(TURNS)
    assert in_process("run", *SHORT, "--limit", 1, "--run-dir", tmp_path / "run", "--model", named, "--task.chat") == 0


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{% if messages[0].role == 'system' %}{{ raise_exception('No system!') }}{% endif %}" + TURNS,
         "problem 0 (No system!); it takes no system turn, which is where task.preset puts the solved examples: set "
         "task.num_shots to 0, take task.preset lmeval-gsm8k with task.chat, "),
        ("{% for m in messages if m.role != 'system' %}{{ m.content }}{% endfor %}",
         "leaves out what the system says, so the model would not see it"),
    ],
)  # fmt: skip
def test_a_template_without_system_turns(
    template: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text((ROOT / "evals/demo/problems.jsonl").read_text() * 20)
    options = ["--model", model(tmp_path / "model", template), "--task.train-data", train, "--task.num-shots", 1]
    assert words in refused(capsys, tmp_path / "run", *options, "--task.preset", "inspect-gsm8k")
    way_out = [*options, "--task.preset", "lmeval-gsm8k", "--task.chat", "--limit", 1]
    assert in_process("run", *SHORT, *way_out, "--run-dir", tmp_path / "run") == 0


THINKING = "{% if enable_thinking is defined and enable_thinking is false %}Be quick. {% endif %}{{ effort }}" + TURNS


def test_arguments_reach_the_template_and_the_fingerprint(tmp_path: Path) -> None:
    options = [*SHORT, "--model", model(tmp_path / "model", THINKING), "--task.chat", "--limit", 1]
    runs: dict[str, dict[str, Any]] = {}
    for args in ("{}", '{"enable_thinking": true}', '{"effort": "high", "enable_thinking": false}'):
        directory = tmp_path / str(len(runs))
        given = ["--task.chat-template-args", args] if args != "{}" else []
        assert in_process("run", *options, *given, "--run-dir", directory) == 0
        runs[args] = run_json(directory)
        assert runs[args]["config"]["task"]["chat_template_args"] == json.loads(args)
    assert len({content["fingerprint"] for content in runs.values()}) == 3
    none, same, other = (content["prompt_ids_sha256"] for content in runs.values())
    assert none == same != other


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ('{"enable_thinkng": false}',
         "enable_thinkng is no argument for the model's chat template: it reads effort, enable_thinking (did you mean "
         "enable_thinking?) (--task.chat-template-args or POWERSAMPLE_TASK__CHAT_TEMPLATE_ARGS)."),
        ('{"effort": 1, "zzz": 2}', "zzz is no argument for the model's chat template: it reads effort, "),
        *((f'{{"{name}": []}}', f"{name} is no argument for the model's chat template: this name is the library's own")
          for name in ("messages", "tools", "add_generation_prompt", "tokenize", "chat_template", "strftime_now")),
    ],
)  # fmt: skip
def test_arguments_that_no_template_reads_are_refused(
    args: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", model(tmp_path / "model", THINKING), "--task.chat-template-args", args]
    assert words in refused(capsys, tmp_path / "run", *options, "--task.chat")


RAW = "The model has a chat template and is asked without it: its prompts are raw texts (task.chat is false).\n"


def test_a_chat_model_that_is_asked_raw_is_told_so_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = model(tmp_path / "model", TURNS)
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"input": "How many?"}\n')
    files = ["--input_file", rows, "--inline", "--num-gpus", 0, "--max_new_tokens", 4]
    commands: list[tuple[int, list[object]]] = [
        (1, ["run", *SHORT, "--limit", 1, "--model", folder, "--run-dir", tmp_path / "raw"]),
        (1, ["generate", "--model_path", folder, *files, "--output_file", tmp_path / "raw.jsonl"]),
        (0, ["generate", "--model_path", folder, *files, "--output_file", tmp_path / "chat.jsonl", "--task.chat"]),
        (1, ["sweep", "--knob", "task.max_new_tokens=2,3", *SHORT[:-2], "--limit", 1, "--model", folder,
             "--run-dir", tmp_path / "sweep", "--no-auto-batch-size"]),
    ]  # fmt: skip
    for times, command in commands:
        capsys.readouterr()
        assert in_process(*command) == 0
        assert capsys.readouterr().err.count(RAW) == times, command
