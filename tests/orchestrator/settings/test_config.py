"""Settings from file, environment and flags; what is decided for a machine; plan and fingerprint."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from evals.config import READS
from evals.samplers.power import Power
from evals.types import Problem, UserError
from orchestrator.commands.table import make_parser
from orchestrator.driver.open_runs import run_content
from orchestrator.inputs.models import ModelSource
from orchestrator.inputs.preflight import Inputs
from orchestrator.inputs.problems import DataSource
from orchestrator.settings import merge
from orchestrator.settings.config import Provenance, RunConfig, fingerprint, resolve, run_directory, runs_of
from orchestrator.settings.merge import read_options, variable_name
from orchestrator.settings.schema import allowed, flag_name, is_group, known_settings
from support.places import ROOT

CONFIGS = sorted(file for file in (ROOT / "configs").glob("*.yaml") if not file.stem.startswith("generate"))
INPUTS = Provenance("m" * 64, "d" * 64)


def build_config(flags: list[str], environ: dict[str, str], path: Path | str | None = None) -> RunConfig:
    return merge.build_config(make_parser("run").read(flags), environ, path)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "1000")


def run_help() -> str:
    return make_parser("run").format_help().rstrip()


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    file = write(tmp_path / "x.yaml", "batch_size: 5\nseed: 1\nsampler: {alpha: 9, num_moves: 3, kind: power}\n")
    environ = {"POWERSAMPLE_BATCH_SIZE": "6", "POWERSAMPLE_SAMPLER__NUM_MOVES": "7", "PATH": "/bin"}
    config = build_config(["--config", str(file), "--batch-size", "8"], environ)
    assert (config.batch_size, config.seed, config.name) == (8, 1, "x")
    assert (config.sampler.alpha, config.sampler.num_moves) == (9, 7)
    assert build_config([], environ, file).batch_size == 6
    assert build_config([], {}, file).batch_size == 5
    assert build_config([], {}).batch_size == 10
    assert build_config([], {"POWERSAMPLE_BATCH_SIZE": "auto"}).batch_size == "auto"


def test_values_of_every_shape() -> None:
    environ = {
        "POWERSAMPLE_USE_BATCHED": "0",
        "POWERSAMPLE_TASK__STOP": '["a", "b"]',
        "POWERSAMPLE_MODEL": "",
        "POWERSAMPLE_PYTHON": "/usr/bin/python3",
    }
    config = build_config(["--fresh", "--inline", "--limit=3", "--run-dir", "runs/x"], environ)
    assert (config.slots, config.task.stop, config.model) == (1, ("a", "b"), None)
    assert (config.fresh, config.inline, config.limit, config.run_dir) == (True, True, 3, Path("runs/x"))
    assert build_config(["--no-use-batched", "--task.stop", "a"], {}).task.stop == ("a",)
    assert build_config(["--no-sampler.replay"], {}).sampler.replay is False


@pytest.mark.parametrize(
    ("flags", "environ", "words"),
    [
        (["--batch-size", "0"], {}, ["--batch-size=0", "from 1 to"]),
        (["--batch-size", "ten"], {}, ["--batch-size=ten", "whole number"]),
        ([], {"BATCH_SIZE": "ten"}, ["POWERSAMPLE_BATCH_SIZE=ten", "from 1 to 65536 or auto"]),
        ([], {"BATCHSIZE": "3"}, ["POWERSAMPLE_BATCHSIZE=3", "did you mean POWERSAMPLE_BATCH_SIZE?"]),
        ([], {"ALPHA": "3"}, ["did you mean POWERSAMPLE_SAMPLER__ALPHA?"]),
        ([], {"ENGINE__TENSOR_PARALLEL": "2"}, ["did you mean POWERSAMPLE_ENGINE__GPUS_PER_MODEL?"]),
        ([], {"SAMPLER__ALPHA": "0.5"}, ["POWERSAMPLE_SAMPLER__ALPHA=0.5", "from 1 to 1000"]),
        ([], {"SAMPLER__ALPHA": "nan"}, ["POWERSAMPLE_SAMPLER__ALPHA=nan", "from 1 to 1000"]),
        ([], {"SAMPLER__KIND": "pwer"}, ["did you mean power?", "power, paper, temperature, greedy"]),
        ([], {"SAMPLER__FOO": "3"}, ["POWERSAMPLE_SAMPLER__FOO=3; unset it"]),
        ([], {"SAMPLER": "3"}, ["POWERSAMPLE_SAMPLER=3", "a group of kind, alpha"]),
        ([], {"ENGINE__PREFETCH": "100"}, ["POWERSAMPLE_ENGINE__PREFETCH=100", "from 0 to 64"]),
        (["--seed", str(2**64)], {}, ["from 0 to 18446744073709551615"]),
        (["--name", "a b"], {}, ["--name=a b", "the characters A-Za-z0-9._/-, at most 100"]),
        (["--sampler.num_moves", "5"], {}, ["did you mean --sampler.num-moves?"]),
        (["--sampler", "{}"], {}, ["--sampler (a group of settings, such as --sampler.kind)"]),
        (["--fresh=true"], {}, ["--fresh takes no value; write --fresh or --no-fresh"]),
        ([], {"SAMPLER": "{"}, ["POWERSAMPLE_SAMPLER={", "JSON"]),
        ([], {"TASK__STOP": "Question:"}, ["POWERSAMPLE_TASK__STOP=Question:", "JSON"]),
        ([], {"FRESH": "maybe"}, ["POWERSAMPLE_FRESH=maybe", "true or false"]),
        (["--limit", "0"], {}, ["--limit=0", "from 1"]),
        (["--seed", "-1"], {}, ["--seed=-1", "from 0"]),
        (["--sampler.temperature", "0"], {}, ["--sampler.temperature=0", "above 0"]),
        (["--data", ""], {}, ["--data=", "not empty"]),
        (["--bath-size", "3"], {}, ["--bath-size", "did you mean --batch-size?"]),
        (["--batch_size=3"], {}, ["--batch_size", "did you mean --batch-size?"]),
        (["--alpha", "3"], {}, ["did you mean --sampler.alpha?"]),
        (["--engine.tensor-parallel", "2"], {}, ["did you mean --engine.gpus-per-model?"]),
        (["--confg", "x"], {}, ["did you mean --config?"]),
        (["--limit"], {}, ["--limit needs a value: a whole number from 1"]),
        (["stray"], {}, ["stray belongs to no option"]),
        (["--config"], {}, ["--config needs"]),
        (["--config", "no/such.yaml"], {}, ["no/such.yaml", "No such file"]),
    ],
)
def test_what_is_wrong_is_named(flags: list[str], environ: dict[str, str], words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        build_config(flags, {f"POWERSAMPLE_{name}": value for name, value in environ.items()})
    sentence = str(refused.value)
    assert sentence.endswith((".", ")."))
    for word in words:
        assert word in sentence
    for phrase in ("\n", "Input should", "should have", "Value error", "None", "valid dictionary"):
        assert phrase not in sentence
    assert sentence.count("allowed:") <= 1


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (
            ["--sampler.kind", "greedy", "--sampler.blocks", "2"],
            "--sampler.blocks=2 and --sampler.kind=greedy do not go together: kind greedy does not read blocks, which "
            "belongs to power; leave blocks out or choose such a kind.",
        ),
        (
            ["--config", "configs/gsm8k_greedy.yaml", "--sampler.blocks", "2"],
            "--sampler.blocks=2 and configs/gsm8k_greedy.yaml: sampler.kind=greedy do not go together: kind greedy "
            "does not read blocks, which belongs to power; leave blocks out or choose such a kind.",
        ),
        (
            ["--sampler.top-k", "8"],
            "--sampler.top-k=8 is refused: kind power does not read top_k, which belongs to paper, temperature; leave "
            "top_k out or choose such a kind.",
        ),
        (
            ["--sampler.kind", "greedy", "--sampler.num-moves", "10"],  # as much as if it were not the usual number
            "--sampler.num-moves=10 and --sampler.kind=greedy do not go together: kind greedy does not read num_moves, "
            "which belongs to power, paper; leave num_moves out or choose such a kind.",
        ),
        (
            ["--sampler.num-moves", "5", "--sampler.num-effective-moves", "5"],
            "--sampler.num-moves=5 and --sampler.num-effective-moves=5 do not go together: they exclude each other; "
            "set one.",
        ),
        (
            ["--sampler.entropy-power", "2"],
            "--sampler.entropy-power=2 is refused: entropy_power needs cuts = entropy.",
        ),
    ],
)
def test_samplers_settings_that_do_not_go_together(
    flags: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UserError) as refused:
        build_config(flags, {})
    assert str(refused.value) == sentence


def test_a_conflict_names_the_variable_that_it_comes_from() -> None:
    with pytest.raises(UserError, match=r"^POWERSAMPLE_SAMPLER__ALPHA=2 and POWERSAMPLE_SAMPLER__KIND=greedy do not"):
        build_config([], {"POWERSAMPLE_SAMPLER__ALPHA": "2", "POWERSAMPLE_SAMPLER__KIND": "greedy"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sampler:\n  alpah: 3\n", ["sampler.alpah", "did you mean sampler.alpha?", "num_moves"]),
        ("batchsize: 3\n", ["batchsize", "did you mean batch_size?"]),
        ("engine:\n  tensor_parallel: 2\n", ["engine.tensor_parallel", "did you mean engine.gpus_per_model?"]),
        ("batch_size: 0\n", ["batch_size=0", "from 1 to"]),
        ("batch_size: yes\n", ["batch_size=true", "whole number"]),
        ("sampler: {alpha: on}\n", ["sampler.alpha=true", "a number"]),
        ("sampler: 3\n", ["sampler=3", "a group of"]),
        ("task: {stop: ['']}\n", ["task.stop", "list of strings"]),
        ("- 1\n", ["name: value"]),
        ("a: [1\n", ["bad.yaml, line 2: not valid YAML"]),
        ("seed: 1\n\tlimit: 3\n", ["bad.yaml, line 2: not valid YAML"]),
        ("seed: 2024-13-45\n", ["not valid YAML", "in quotes"]),
        ("seed: null\n", ["seed=null"]),
        ("\0", ["not a text", "configs/gsm8k_power.yaml"]),
        ("1: 2\n", ["1 is unknown"]),
        ("seed: 1\nlimit: 3\nseed: 1\n", ["bad.yaml, line 3: not valid YAML (the key seed is there twice; leave"]),
        ("sampler:\n  alpha: 2\n  'alpha': 3\n", ["bad.yaml, line 3:", "the key alpha is there twice"]),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file(text: str, words: list[str], tmp_path: Path) -> None:
    file = write(tmp_path / "bad.yaml", text)
    with pytest.raises(UserError) as refused:
        build_config([], {}, file)
    for word in [str(file), *words]:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_merged_mapping_may_be_overridden(tmp_path: Path) -> None:
    text = "sampler: &base {alpha: 2, num_moves: 3}\nsampler2: &more {<<: *base, alpha: 5}\n"
    with pytest.raises(UserError, match="sampler2 is unknown"):
        build_config([], {}, write(tmp_path / "x.yaml", text))


def test_a_binary_file_is_no_configuration() -> None:
    with pytest.raises(UserError, match=r"python\S* is not a text in UTF-8; name a YAML file such as configs/"):
        build_config(["--config", sys.executable], {})


OTHER: dict[str, Any] = {
    "sampler.kind": "smc", "sampler.alpha": 2.0, "sampler.num_moves": 3, "sampler.num_effective_moves": 3,
    "sampler.blocks": 4, "sampler.cuts": "entropy", "sampler.entropy_power": 2.0, "sampler.replay": False,
    "sampler.early_rejection": False, "sampler.temperature": 0.5, "sampler.top_k": 7, "sampler.num_candidates": 8,
    "sampler.smc_ramp": 5, "sampler.smc_interval": 6, "sampler.smc_threshold": 0.25, "task.name": "gsm8k",
    "task.num_shots": 2, "task.train_data": "t.jsonl", "task.max_new_tokens": 9, "task.stop": ["a", "b"],
    "task.preset": "power-paper", "task.chat": True, "task.template": "{question}?", "task.question_key": "problem",
    "task.answer_key": "gold", "task.max_prompt_tokens": 99, "sampler.top_p": 0.9,
    "engine.dtype": "float16", "engine.trust_remote_code": True, "engine.allow_pickle": True, "engine.prefetch": 2,
    "engine.prefill_tokens": 64, "engine.execution": "eager", "engine.target_utilisation": 0.5, "num_samples": 4,
    "engine.float32_logits": True, "engine.gpus_per_model": 2, "sampler.texts": "answers.jsonl",
}  # fmt: skip
"""A value of every nested setting, in most cases not the default."""


def beside(name: str) -> dict[str, Any]:
    """What else must be set for a setting to be read."""
    group, _, key = name.rpartition(".")
    if group != "sampler" or key == "kind":
        return {}
    kind = next(kind for kind in READS if key in READS[kind])
    return {
        "sampler.kind": kind,
        **({"sampler.texts": "gold"} if kind == "replay" else {}),
        **({"sampler.cuts": "entropy"} if key == "entropy_power" else {}),
    }


@pytest.mark.parametrize("name", OTHER)
def test_every_nested_setting_works_as_flag_variable_and_key(name: str, tmp_path: Path) -> None:
    settings = {**beside(name), name: OTHER[name]}
    environ = {variable_name(k): v if isinstance(v, str) else json.dumps(v) for k, v in settings.items()}
    flags: list[str] = []
    content: dict[str, Any] = {}
    for key, value in settings.items():
        text = value if isinstance(value, str) else json.dumps(value)
        flag = flag_name(key)
        flags += [flag if value else "--no-" + flag[2:]] if isinstance(value, bool) else [flag, text]
        group, _, inner = key.rpartition(".")
        (content.setdefault(group, {}) if group else content)[inner] = value
    file = write(tmp_path / "one.yaml", yaml.safe_dump(content))
    for config in (build_config(flags, {}), build_config([], environ), build_config([], {}, file)):
        found = config.model_dump(mode="json")
        for part in name.split("."):
            found = found[part]
        assert found == OTHER[name]


def test_no_nested_setting_is_left_out() -> None:
    assert {name for name in known_settings() if "." in name} == OTHER.keys() - {"num_samples"}


def test_nothing_given_and_no_gpu_is_the_demo() -> None:
    config = resolve(RunConfig(), 0)
    assert (config.mode, config.model, config.data, config.num_gpus) == ("demo", "demo", "demo", 0)
    assert (config.task.max_new_tokens, config.task.num_shots, config.engine.dtype) == (160, 0, "float32")
    assert config.num_actors == 2
    assert resolve(config, 0) == config


def test_as_many_problems_at_once_as_fit() -> None:
    assert resolve(RunConfig(batch_size="auto"), 8).slots == 256
    assert resolve(RunConfig(batch_size="auto"), 0).slots == 10
    assert resolve(RunConfig(batch_size="auto", use_batched=False), 8).slots == 1


def test_nothing_given_and_gpus_is_gsm8k_on_all_of_them() -> None:
    config = resolve(RunConfig(), 8)
    assert (config.mode, config.model, config.data) == ("run", "Qwen/Qwen2.5-Math-1.5B", "openai/gsm8k")
    assert (config.num_actors, config.slots, config.engine.dtype) == (8, 10, "bfloat16")
    assert (config.task.max_new_tokens, config.sampler.alpha, config.sampler.num_moves) == (512, 4, 10)
    assert resolve(RunConfig(), 8, bfloat16=False).engine.dtype == "float16"
    shipped = resolve(build_config([], {}, ROOT / "configs/gsm8k_power.yaml"), 8)
    assert shipped.model_dump() == config.model_dump()


@pytest.mark.parametrize("given", [{"model": "m"}, {"data": "d.jsonl"}])
def test_a_model_or_data_without_gpus_runs_on_the_cpu(given: dict[str, Any]) -> None:
    config = resolve(RunConfig(**given), 0)
    assert config.mode == "run"
    assert config.model == given.get("model", "Qwen/Qwen2.5-Math-1.5B")
    assert config.data == given.get("data", "openai/gsm8k")
    assert (config.use_gpus, config.num_actors) == (False, 2)
    assert resolve(RunConfig(**given, inline=True), 0).num_actors == 1


def test_gpus_are_counted() -> None:
    assert resolve(RunConfig(num_gpus=2), 8).num_actors == 2
    assert resolve(RunConfig(num_gpus=0), 8).mode == "demo"
    assert resolve(RunConfig(inline=True), 8).num_gpus == 1
    with pytest.raises(UserError, match=r"--inline runs one worker"):
        resolve(RunConfig(inline=True, num_gpus=2), 8)
    with pytest.raises(
        UserError, match=r"POWERSAMPLE_NUM_GPUS .* asks for 9 GPUs but this machine has 8; .* at most 8"
    ):
        resolve(RunConfig(num_gpus=9), 8)
    with pytest.raises(UserError, match=r"asks for 2 GPUs but this machine has none .*; leave it out to run on CPUs"):
        resolve(RunConfig(num_gpus=2), 0)


def test_the_demo_refuses_what_it_would_ignore() -> None:
    with pytest.raises(UserError, match=r"model is 'x'"):
        resolve(RunConfig(mode="demo", model="x"), 0)
    with pytest.raises(UserError, match=r"cannot take sampler\.kind"):
        resolve(build_config(["--sampler.kind", "greedy"], {}), 0)
    with pytest.raises(UserError, match=r"cannot take sampler\.kind; leave it out, or run one"):
        resolve(build_config(["--sampler.kind", "smc", "--sampler.smc-ramp", "8"], {}), 0)
    with pytest.raises(UserError, match=r"temperature=1 is refused: kind power does not read temperature"):
        build_config(["--sampler.temperature", "1"], {})
    assert resolve(build_config(["--sampler.kind", "power", "--sampler.blocks", "2"], {}), 0).mode == "demo"
    one = resolve(build_config(["--model", "demo", "--data", "demo", "--sampler.kind", "greedy"], {}), 0)
    assert (one.mode, one.task.max_new_tokens) == ("run", 160)


def test_the_demo_is_four_runs_that_differ_in_the_sampler() -> None:
    usual = runs_of(resolve(RunConfig(), 0))
    assert [run.run_dir for run in usual] == [Path("runs/demo") / name for name in ("greedy", "t1", "low", "power")]
    runs = runs_of(resolve(RunConfig(limit=5, sampler=Power(alpha=2, num_moves=3)), 0))
    assert [run.sampler.kind for run in runs] == ["greedy", "temperature", "temperature", "power"]
    assert [run.sampler.temperature for run in runs[1:3]] == [1, 0.5]
    assert (runs[3].sampler.alpha, runs[3].sampler.num_moves) == (2, 3)
    assert {(run.mode, run.limit, run.model) for run in runs} == {("run", 5, "demo")}
    elsewhere = runs_of(resolve(RunConfig(run_dir=Path("there")), 0))
    assert elsewhere[0].run_dir == Path("there/greedy")
    one = resolve(RunConfig(model="m"), 0)
    assert runs_of(one) == [one]


def demo_root(**settings: Any) -> Path:
    (root,) = {(run.run_dir or Path()).parent for run in runs_of(resolve(RunConfig(**settings), 0))}
    return root


def test_a_demo_with_other_answers_has_a_directory_of_its_own() -> None:
    others: list[dict[str, Any]] = [
        {"limit": 20}, {"seed": 1}, {"num_samples": 2}, {"sampler": {"alpha": 2}}, {"task": {"max_new_tokens": 100}},
        {"sampler": {"alpha": 2}, "limit": 20}, {"task": {"num_shots": 1}}, {"engine": {"dtype": "bfloat16"}},
        {"task": {"num_shots": 1, "train_data": "t.jsonl"}},
    ]  # fmt: skip
    roots = [demo_root(**settings) for settings in others]
    assert len({*roots, Path("runs/demo")}) == len(others) + 1
    assert all(re.fullmatch(r"runs/demo-[0-9a-f]{8}", str(root)) for root in roots)
    assert demo_root(limit=20, run_dir=Path("x")) == Path("x")
    for same in ({"batch_size": 3}, {"num_workers": 4}, {"sampler": {"alpha": 4}}, {"inline": True}):
        assert demo_root(**same) == Path("runs/demo")


def test_several_gpus_may_share_a_model() -> None:
    shared: Any = {"model": "m", "engine": {"gpus_per_model": 2}}
    for given, present, gpus, actors in [(None, 4, 4, 2), (None, 5, 4, 2), (2, 5, 2, 1)]:
        config = resolve(RunConfig(**shared, num_gpus=given), present)
        assert (config.num_gpus, config.num_actors) == (gpus, actors)
        assert resolve(config, present) == config
    inline = resolve(RunConfig(**shared, inline=True), 4)
    assert (inline.num_gpus, inline.num_actors) == (2, 1)
    for given, present in [(None, 1), (3, 4), (1, 4), (0, 4), (None, 0)]:
        with pytest.raises(UserError, match=r"engine\.gpus_per_model gives every worker 2 GPUs, and there are \d to"):
            resolve(RunConfig(**shared, num_gpus=given), present)


def test_the_directory_has_the_names_of_file_and_fingerprint(tmp_path: Path) -> None:
    file = write(tmp_path / "my run.yaml", "model: m\n")
    assert run_directory(resolve(build_config([], {}, file), 0), "0123456789") == Path("runs/my-run-01234567")
    assert run_directory(resolve(RunConfig(model="m"), 0), "abcdefghi") == Path("runs/gsm8k_power-abcdefgh")
    assert run_directory(RunConfig(run_dir=Path("x")), "abc") == Path("x")


def digest(inputs: Provenance = INPUTS, **changes: Any) -> str:
    return fingerprint(resolve(RunConfig(**{"model": "m", "data": "d", **changes}), 4), inputs)


def test_the_fingerprint_is_stable() -> None:
    assert digest() == "6c8390ed5138a45868668750982525a45e2d46b5ab8a92d8428731db338d4b7d"


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 3}, {"use_batched": False}, {"num_gpus": 2}, {"num_workers": 4}, {"run_dir": Path("x")},
     {"name": "x"}, {"model": "other/name"}, {"data": "other.jsonl"}, {"dashboard": False}, {"fresh": True},
     {"inline": True}, {"task": {"train_data": "somewhere"}}, {"engine": {"dtype": "bfloat16"}},
     {"engine": {"gpus_per_model": 2}}],
)  # fmt: skip
def test_what_may_change_from_one_start_to_the_next(changes: dict[str, Any]) -> None:
    assert digest(**changes) == digest()


@pytest.mark.parametrize(
    "changes",
    [{"inputs": INPUTS._replace(model="x")}, {"inputs": INPUTS._replace(data="x")},
     {"inputs": INPUTS._replace(train_data="x")}, {"limit": 3}, {"seed": 1}, {"num_samples": 2}, {"num_gpus": 0},
     {"engine": {"dtype": "float32"}}, {"engine": {"float32_logits": True}}, {"task": {"max_new_tokens": 100}},
     {"task": {"num_shots": 4}}, {"task": {"stop": ["x"]}}, {"sampler": {"alpha": 2.0}}, {"sampler": {"num_moves": 2}},
     {"sampler": {"replay": False}}, {"sampler": {"kind": "greedy"}}],
)  # fmt: skip
def test_what_makes_another_run(changes: dict[str, Any]) -> None:
    assert digest(**changes) != digest()


def test_run_json_says_what_the_report_reads() -> None:
    config = resolve(RunConfig(model="m", data="d", run_dir=Path("x"), fresh=True), 0)
    data = DataSource([Problem(i, "q", "#### 4") for i in range(5)], "d", "2", 9)
    inputs = Inputs(config, ModelSource("m", "m", None, "1"), data, None, 100, "3")
    run = json.loads(json.dumps(run_content(config, inputs, {"git_commit": "c"})))
    assert run["num_problems"] == 5
    assert run["fingerprint"] == fingerprint(config, Provenance("1", "2"))
    assert run["provenance"] == {
        "model": {"name": "m", "revision": None, "sha256": "1"},
        "data": {"name": "d", "sha256": "2", "rows": 9},
        "prompts_sha256": "3",
        "dtype": "float32",
        "record_format": 1,
        "git_commit": "c",
    }
    assert run["config"]["sampler"] == Power().read()
    assert run["config"]["run_dir"] == "x"
    assert not {"fresh", "inline"} & run["config"].keys()


@pytest.mark.parametrize("file", CONFIGS, ids=lambda path: path.stem)
def test_shipped_files_open_with_their_command_and_are_valid(file: Path) -> None:
    assert file.read_text().splitlines()[0] == f"# powersample run --config configs/{file.name}"
    asked = build_config([], {}, file)
    config = resolve(asked, asked.num_gpus or 0)
    assert config.name == file.stem
    assert config.mode == ("demo" if file.stem == "demo" else "run")
    assert Power(**config.sampler.read()) == config.sampler, "as run.json has it"
    if config.mode == "run":
        assert (config.model, config.data) == ("Qwen/Qwen2.5-Math-1.5B", "openai/gsm8k")
        assert (config.task.num_shots, config.task.max_new_tokens) == (0, 512)


def test_every_kind_of_sampler_has_a_file() -> None:
    assert {build_config([], {}, file).sampler.kind for file in CONFIGS} == READS.keys()


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


@pytest.mark.parametrize("stop", [["apples", "\n\n"], ["c\td", "é"], ["a,b"], ["-"]])
def test_stop_strings_mean_the_same_as_flag_variable_and_file(stop: list[str], tmp_path: Path) -> None:
    text = json.dumps(stop)
    (tmp_path / "run.yaml").write_text(json.dumps({"task": {"stop": stop}}))
    configs = [
        build_config(["--task.stop", text], {}),
        build_config([f"--task.stop={text}", "--limit", "3"], {}),
        build_config([], {"POWERSAMPLE_TASK__STOP": text}),
        build_config([], {}, tmp_path / "run.yaml"),
    ]
    assert [config.task.stop for config in configs] == [tuple(stop)] * 4


def test_a_stop_flag_is_one_string_or_a_list_and_adds_up() -> None:
    assert build_config(["--task.stop", "a,b", "--task.stop", '["c", "d"]'], {}).task.stop == ("a,b", "c", "d")
    with pytest.raises(UserError, match=r'--task\.stop=\["a is not valid JSON'):
        build_config(["--task.stop", '["a'], {})


def line_of(flag: str) -> str:
    """Flag and explanation, which stands on a line of its own where the flag is long."""
    text = re.sub(r"\n {24}", "  ", run_help())
    (line,) = [line for line in text.splitlines() if re.match(rf"  {re.escape(flag)}[ ,]", line)]
    return line


def test_it_opens_with_one_sentence_for_users() -> None:
    usage, empty, sentence, after, *_ = run_help().splitlines()
    assert usage == "usage: powersample run [--config FILE] [options]"
    assert (empty, after) == ("", "")
    assert sentence.startswith("Sample answers to math problems")
    assert sentence.count(".") == 1


def test_every_setting_is_there_once_with_at_most_one_default() -> None:
    for name, about in known_settings().items():
        assert allowed(name)
        if not is_group(name):
            assert line_of(flag_name(name)).count("(default") <= 1
            assert about["description"] in line_of(flag_name(name))
    for word in ("null", "None", "tuple", "==", "RunConfig"):
        assert word not in run_help()


def test_defaults_and_values_are_shown_as_a_user_writes_them() -> None:
    assert line_of("--sampler.alpha").endswith("(default: 4)")
    assert line_of("--limit").endswith("(default: all)")
    assert line_of("--use-batched").endswith("(default: on)")
    assert line_of("--engine.allow-pickle").endswith("(default: off)")
    stop = line_of("--task.stop")
    shown = stop[stop.index("(default: ") + 10 : -1]
    assert read_options(make_parser("run").read(["--task.stop", shown])).values == {"task": {"stop": json.loads(shown)}}
    for words in ("answers per problem", "pass@k", "maj@k"):
        assert words in line_of("--num-samples")


def test_it_says_which_settings_belong_to_which_kind() -> None:
    for kind, names in READS.items():
        (line,) = re.findall(rf"^ +{kind}  +(.+)$", run_help(), re.MULTILINE)
        assert set(line.split(", ")) == (names or {"nothing"})
        assert kind in (SamplerConfig.model_fields["kind"].description or "")


def test_it_ends_with_examples() -> None:
    assert run_help().rpartition("\n\n")[2].startswith("examples:\n  powersample run\n")


def test_flags_become_nested_texts() -> None:
    flags = ["--config", "a.yaml", "--limit=3", "--sampler.num-moves", "2", "--no-sampler.replay", "--config", "b.yaml"]
    args = make_parser("run").read(flags)
    assert args.config == "b.yaml"
    assert read_options(args).values == {"limit": "3", "sampler": {"num_moves": "2", "replay": False}}
    assert vars(make_parser("run").read([])) == {}
