"""Settings from file, variables and options: which wins, what each can hold, and the sentence that refuses one."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from evals.samplers.power import Power
from evals.samplers.registry import SAMPLERS, sampler_of, settings_of
from evals.types import UserError
from orchestrator.settings.config import DEFAULT_DATA, DEFAULT_MODEL, resolve
from orchestrator.settings.merge import build_config
from orchestrator.settings.parser import flag_name, variable_name
from orchestrator.settings.schema import known_settings, settings_read
from support.configs import configured
from support.places import ROOT

LISTED = "`powersample run --help` lists all options."
CONFIGS = sorted(file for file in (ROOT / "configs").glob("*.yaml") if not file.stem.startswith("generate"))


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_options_win_over_variables_over_file(tmp_path: Path) -> None:
    file = write(tmp_path / "x.yaml", "batch_size: 5\nseed: 1\nsampler: {alpha: 9, num_moves: 3, kind: power}\n")
    environ = {"BATCH_SIZE": "6", "SAMPLER__NUM_MOVES": "7"}
    config = configured("--config", str(file), "--batch-size", "8", environ=environ)
    assert (config.batch_size, config.seed, config.name) == (8, 1, "x")
    assert settings_of(config.sampler).items() >= {"alpha": 9, "num_moves": 7}.items()
    assert configured(environ=environ, file=file).batch_size == 6
    assert configured(file=file).batch_size == 5
    assert configured().batch_size == 10
    assert configured("--config", str(file), file=tmp_path / "absent.yaml").batch_size == 5


def test_of_a_file_that_nobody_named_a_group_yields_to_another_choice() -> None:
    usual = ROOT / "configs/gsm8k_power.yaml"
    assert configured("--sampler.kind", "greedy", file=usual).sampler.kind == "greedy"
    assert configured("--sampler.kind", "power", "--sampler.alpha", "2", file=usual).sampler == Power(2.0, 10)
    published = configured("--task.preset", "lmeval-gsm8k", file=usual)
    assert (published.task.num_shots, published.task.max_new_tokens, published.model) == (5, 256, DEFAULT_MODEL)
    assert resolve(published, 1).data == DEFAULT_DATA
    other = resolve(configured("--task.preset", "math500", file=usual), 1)
    assert (other.model, other.data, other.task.name) == (DEFAULT_MODEL, "HuggingFaceH4/MATH-500", "math")
    assert configured("--task.preset", "math500", "--data", "mine.jsonl", file=usual).data == "mine.jsonl"
    assert configured("--task.chat", file=usual).task.max_new_tokens == 512
    named = configured("--config", str(usual), "--task.preset", "lmeval-gsm8k")
    assert (named.task.num_shots, named.task.max_new_tokens) == (0, 512)


@pytest.mark.parametrize(
    ("name", "text", "bad"),
    [
        ("run_dir", "caf\\udce9", r"\xe9"),
        ("model", "a\\0b", r"\x00"),
        ("data", "\\ud800", r"\ud800"),
        ("task.train_data", "caf\\udce9", r"\xe9"),
        ("sampler.texts", "caf\\udce9", r"\xe9"),
    ],
)
def test_texts_that_are_not_utf_8_are_refused(name: str, text: str, bad: str, tmp_path: Path) -> None:
    """In a file by its escapes, which YAML allows, in a variable as Python reads its bytes."""
    group, _, key = name.rpartition(".")
    line = f'{key}: "{text}"'
    file = write(tmp_path / "x.yaml", f"{group}: {{{line}}}" if group else line)
    environ = {variable_name(name)[len("POWERSAMPLE_") :]: text.encode().decode("unicode_escape")}
    for given in (partial(configured, file=file), partial(configured, environ=environ)):
        with pytest.raises(UserError) as refused:
            given()
        assert f"{bad} is no character of a text in UTF-8; rename what it names, or write" in str(refused.value)
        assert name in str(refused.value).lower().replace("__", ".")


def test_values_of_every_shape() -> None:
    environ = {"USE_BATCHED": "0", "TASK__STOP": '["a", "b"]', "MODEL": "", "PYTHON": "/usr/bin/python3"}
    config = configured("--fresh", "--inline", "--limit=3", "--run-dir", "runs/x", environ=environ)
    assert (config.slots, config.task.stop, config.model) == (1, ("a", "b"), None)
    assert (config.fresh, config.inline, config.limit, config.run_dir) == (True, True, 3, Path("runs/x"))
    assert configured("--no-use-batched", "--batch-size", "auto").slots == 1
    assert settings_of(configured("--no-sampler.replay").sampler)["replay"] is False


def test_a_file_may_say_that_there_is_none_of_something(tmp_path: Path) -> None:
    assert configured(file=write(tmp_path / "x.yaml", "limit: null\ntrack: ~\nmodel:\nname: 'null'\n")).name == "null"


@pytest.mark.parametrize(
    ("options", "environ", "sentence"),
    [
        (["--batch-size", "ten"], {}, "--batch-size=ten is refused; allowed: a whole number from 1 to 65536 or auto."),
        ([], {"SAMPLER__ALPHA": "nan"}, "POWERSAMPLE_SAMPLER__ALPHA=nan is refused; allowed: a number from 1 to 1000."),
        (["--sampler.temperature=0", "--sampler.kind=temperature"], {},
         "--sampler.temperature=0 is refused; allowed: a number above 0 to 100; for the likeliest token each time set "
         "sampler.kind to greedy and leave the temperature out."),
        (["--data="], {}, "--data= is refused; allowed: a text that is not empty."),
        (["--run-dir="], {}, "--run-dir= is refused: must not be empty; name a directory, or leave it out; allowed: a "
         "path."),
        (["--name", "a b"], {},
         "--name=a b is refused; allowed: a text of the characters A-Za-z0-9._/-, at most 100 of them."),
        ([], {"FRESH": "maybe"}, "POWERSAMPLE_FRESH=maybe is refused; allowed: true or false."),
        ([], {"TRACK": "wand"}, "POWERSAMPLE_TRACK=wand is refused; allowed: one of wandb, trackio."),
        ([], {"SAMPLER__KIND": "pwer"}, "POWERSAMPLE_SAMPLER__KIND=pwer is refused (did you mean power?); allowed: one "
         f"of {', '.join(SAMPLERS)}."),
        (["--task.stop", '["a'], {}, '--task.stop=["a is not valid JSON; allowed: a list of strings that are not empty,'
         ' in JSON such as ["Question:"].'),
        (["--task.chat-template-args", "{a: 1}"], {}, "--task.chat-template-args={a: 1} is not valid JSON; allowed: a "
         'JSON object such as {"enable_thinking": false}.'),
        (["--task.chat"], {"TASK__CHAT_TEMPLATE_ARGS": "[1]"}, "POWERSAMPLE_TASK__CHAT_TEMPLATE_ARGS=[1] is refused; "
         'allowed: a JSON object such as {"enable_thinking": false}.'),
        (["--task.chat-template-args", '{"a": 1}', "--no-task.chat"], {}, '--task.chat-template-args={"a": 1} and '
         "--task.chat=false do not go together: without task.chat no chat template reads them; set task.chat, or leave "
         "them out."),
        ([], {"TASK__STOP": '[""]'}, 'POWERSAMPLE_TASK__STOP=[""] is refused; allowed: a list of strings that are not '
         'empty, in JSON such as ["Question:"].'),
        ([], {"BATCHSIZE": "3"}, "Unknown environment variable POWERSAMPLE_BATCHSIZE=3 (did you mean "
         "POWERSAMPLE_BATCH_SIZE?); unset it (`powersample run --help` lists all)."),
        ([], {"SAMPLER__FOO": "3"},
         "Unknown environment variable POWERSAMPLE_SAMPLER__FOO=3; unset it (`powersample run --help` lists all)."),
        (["--batch_size=3"], {}, f"run: unknown option --batch_size (did you mean --batch-size?); {LISTED}"),
        (["--fresh=true"], {}, f"run: --fresh takes no value; write --fresh or --no-fresh; {LISTED}"),
        (["--limit"], {}, f"run: --limit needs a value: only the first so many problems (default: all); {LISTED}"),
        (["stray"], {}, f"run: stray belongs to no option; {LISTED}"),
        (["--sampler.kind", "greedy", "--sampler.blocks", "2"], {},
         "--sampler.blocks=2 and --sampler.kind=greedy do not go together: kind greedy does not read blocks, which "
         "belongs to power; leave blocks out or choose such a kind."),
        (["--sampler.num-moves", "10"], {"SAMPLER__KIND": "greedy"},  # as much as if it were not the usual number
         "--sampler.num-moves=10 and POWERSAMPLE_SAMPLER__KIND=greedy do not go together: kind greedy does not read "
         "num_moves, which belongs to power, paper; leave num_moves out or choose such a kind."),
        (["--config", "configs/gsm8k_greedy.yaml"], {"SAMPLER__ALPHA": "2"},
         "POWERSAMPLE_SAMPLER__ALPHA=2 and configs/gsm8k_greedy.yaml: sampler.kind=greedy do not go together: kind "
         "greedy does not read alpha, which belongs to power, paper, best_of, snis, smc; leave alpha out or choose "
         "such a kind."),
        (["--sampler.top-k", "8"], {}, "--sampler.top-k=8 is refused: kind power does not read top_k, which belongs to "
         "paper, temperature; leave top_k out or choose such a kind."),
        (["--sampler.num-moves", "5", "--sampler.num-effective-moves", "5"], {}, "--sampler.num-moves=5 and "
         "--sampler.num-effective-moves=5 do not go together: they exclude each other; set one."),
        (["--sampler.kind", "replay"], {},
         "--sampler.kind=replay is refused: name by sampler.texts what replay grades: "
         'a file of rows {"id": row of the data from 0, "text": answer}, one for each sample (without id: in the '
         "order of the data), or gold (the data's own answers)."),
    ],
)  # fmt: skip
def test_a_refusal_names_what_the_user_wrote(
    options: list[str], environ: dict[str, str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as refused:
        configured(*options, environ=environ)
    assert str(refused.value) == sentence


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sampler:\n  alpah: 3\n", "sampler.alpah is unknown (did you mean sampler.alpha?); sampler has kind, alpha, "),
        ("batchsize: 3\n", "batchsize is unknown (did you mean batch_size?); a configuration has mode, model, "),
        ("sampler: {kind: power, tests: 3}\n", "sampler.tests is unknown (did you mean sampler.texts?)"),
        ("batch_size: yes\n", "batch_size=yes is refused; allowed: a whole number from 1 to 65536 or auto."),
        ("sampler: {alpha: on}\n", "sampler.alpha=on is refused; allowed: a number from 1"),
        ("sampler: 3\n", "sampler=3 is refused; allowed: a group of kind, alpha"),
        ("task:\n", "task=null is refused; allowed: a group of preset, "),
        ("task: {stop: a}\n", "task.stop=a is refused; allowed: a list of strings"),
        ("seed: null\n", "seed=null is refused"),
        ("1: 2\n~: 3\n", "1 is unknown"),
    ],
)
def test_a_refusal_names_the_file(text: str, words: str, tmp_path: Path) -> None:
    file = write(tmp_path / "bad.yaml", text)
    with pytest.raises(UserError) as refused:
        configured(file=file)
    assert str(refused.value).startswith(f"{file}: {words}")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- 1\n", "holds a list"),
        ("a: [1\n", 'bad.yaml", line 2, column 1'),
        ("seed: 1\n\tlimit: 3\n", 'bad.yaml", line 2, column 1'),
        ("\0", "unacceptable character"),
        (
            "seed: 1\nlimit: 3\nseed: 1\n",
            'the key seed is there twice, leave one out in ".*bad.yaml", line 3, column 1',
        ),
        ("sampler:\n  alpha: 2\n  'alpha': 3\n", "the key alpha is there twice"),
        ("[" * 5000, "recursion"),
        (None, "No such file"),
    ],
)
def test_a_file_that_holds_no_settings_is_one_sentence(text: str | None, words: str, tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    if text is not None:
        write(file, text)
    with pytest.raises(UserError, match=words) as refused:
        configured(file=file)
    sentence = str(refused.value)
    assert sentence.startswith(str(file))
    assert sentence.endswith("; settings are `name: value` lines, see configs/gsm8k_power.yaml.")
    assert "\n" not in sentence


def test_a_binary_file_is_no_configuration() -> None:
    with pytest.raises(UserError, match=r"python\S* cannot be read \('utf-8' codec can't decode"):
        configured("--config", sys.executable)


OTHER: dict[str, Any] = {
    "sampler.kind": "smc", "sampler.alpha": 2.0, "sampler.num_moves": 3, "sampler.num_effective_moves": 3,
    "sampler.blocks": 4, "sampler.cuts": "entropy", "sampler.entropy_power": 2.0, "sampler.replay": False,
    "sampler.early_rejection": False, "sampler.temperature": 0.5, "sampler.top_k": 7, "sampler.num_candidates": 8,
    "sampler.smc_ramp": 5, "sampler.smc_interval": 6, "sampler.smc_threshold": 0.25, "task.name": "gsm8k",
    "task.num_shots": 2, "task.train_data": "t.jsonl", "task.max_new_tokens": 9, "task.stop": ["a", "b"],
    "task.preset": "power-paper", "task.chat": True, "task.template": "{question}?", "task.question_key": "problem",
    "task.answer_key": "gold", "task.max_prompt_tokens": 99, "task.thought_end": "[/THINK]", "sampler.top_p": 0.9,
    "task.chat_template_args": {"enable_thinking": False}, "task.data_config": "hard",
    "engine.dtype": "float16", "engine.trust_remote_code": True, "engine.allow_pickle": True, "engine.prefetch": 2,
    "engine.prefill_tokens": 64, "engine.execution": "eager", "engine.target_utilisation": 0.5,
    "engine.float32_logits": True, "engine.adapter": "lora", "engine.gpus_per_model": 2,
    "sampler.texts": "answers.jsonl", "sampler.keep_states": True,
}  # fmt: skip
"""A value of every nested setting, in most cases not the default."""


def beside(name: str) -> dict[str, Any]:
    """What else must be set for a setting to be read."""
    group, _, key = name.rpartition(".")
    if key == "chat_template_args":
        return {"task.chat": True}
    if group != "sampler" or key == "kind":
        return {}
    kind = next(kind for kind in SAMPLERS if key in settings_read(kind))
    return {"sampler.kind": kind, **({"sampler.cuts": "entropy"} if key == "entropy_power" else {})}


@pytest.mark.parametrize("name", OTHER)
def test_every_nested_setting_works_as_option_variable_and_key(name: str, tmp_path: Path) -> None:
    settings = {**beside(name), name: OTHER[name]}
    environ = {variable_name(k): v if isinstance(v, str) else json.dumps(v) for k, v in settings.items()}
    options: list[str] = []
    content: dict[str, Any] = {}
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value)
        flag = flag_name(key)
        options += [flag if value else "--no-" + flag[2:]] if isinstance(value, bool) else [flag, text]
        group, _, inner = key.rpartition(".")
        content.setdefault(group, {})[inner] = value
    file = write(tmp_path / "one.yaml", yaml.safe_dump(content))
    group, _, key = name.rpartition(".")
    for config in (configured(*options), build_config(Namespace(), environ), configured(file=file)):
        assert config.model_dump(mode="json")[group][key] == OTHER[name]


def test_no_nested_setting_is_left_out() -> None:
    assert {name for name in known_settings() if "." in name} == OTHER.keys()


@pytest.mark.parametrize("stop", [["apples", "\n\n"], ["c\td", "é"], ["a,b"], ["-"]])
def test_stop_strings_mean_the_same_as_option_variable_and_key(stop: list[str], tmp_path: Path) -> None:
    text = json.dumps(stop)
    configs = [
        configured("--task.stop", text),
        configured(f"--task.stop={text}", "--limit", "3"),
        configured(environ={"TASK__STOP": text}),
        configured(file=write(tmp_path / "run.yaml", json.dumps({"task": {"stop": stop}}))),
    ]
    assert [config.task.stop for config in configs] == [tuple(stop)] * 4


def test_arguments_of_a_chat_template_in_a_file_are_what_they_look_like(tmp_path: Path) -> None:
    text = "{a: False, b: 'no', c: no, d: 1.5, e: {f: ~, g: [1, x]}, h: 2026-01-01, i: \"3\"}"
    config = configured(file=write(tmp_path / "x.yaml", f"task:\n  chat: yes\n  chat_template_args: {text}\n"))
    typed = {"a": False, "b": "no", "c": False, "d": 1.5, "e": {"f": None, "g": [1, "x"]}, "h": "2026-01-01", "i": "3"}
    assert config.task.chat_template_args == typed
    as_text = write(tmp_path / "y.yaml", "task: {chat: yes, chat_template_args: '{\"a\": false}'}\n")
    assert configured(file=as_text).task.chat_template_args == {"a": False}


def test_a_stop_string_may_stand_as_it_is_and_options_add_up() -> None:
    assert configured("--task.stop", "a,b", "--task.stop", '["c", "d"]').task.stop == ("a,b", "c", "d")
    assert configured(environ={"TASK__STOP": "a,b"}).task.stop == ("a,b",)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_shipped_files_open_with_their_command_and_are_valid(file: Path) -> None:
    assert file.read_text().splitlines()[0] == f"# powersample run --config configs/{file.name}"
    asked = configured(file=file)
    config = resolve(asked, asked.num_gpus or 0)
    assert config.name == file.stem
    assert config.mode == ("demo" if file.stem == "demo" else "run")
    assert sampler_of(settings_of(config.sampler)) == config.sampler, "as run.json has it"
    if config.mode == "run":
        assert (config.model, config.data) == ("Qwen/Qwen2.5-Math-1.5B", "openai/gsm8k")
        assert (config.task.num_shots, config.task.max_new_tokens) == (0, 512)


def test_every_kind_of_sampler_has_a_file() -> None:
    assert {configured(file=file).sampler.kind for file in CONFIGS} == SAMPLERS.keys()


def test_loading_a_configuration_imports_nothing_heavy() -> None:
    code = (
        "import sys; from orchestrator.settings.merge import build_config;"
        "from orchestrator.settings.config import resolve;"
        "from orchestrator.commands.table import make_parser; args = make_parser('run').read(['--limit', '3']);"
        "resolve(build_config(args, {}, 'configs/demo.yaml'), 0);"
        "print({'torch', 'ray', 'transformers', 'datasets', 'huggingface_hub'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
