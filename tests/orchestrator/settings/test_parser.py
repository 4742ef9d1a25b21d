"""Names and options: the nearest right one, and how each command spells a setting."""

from __future__ import annotations

import pickle

import pytest

from evals.types import UserError
from orchestrator.commands.table import COMMANDS, make_parser
from orchestrator.settings.parser import suggestion
from orchestrator.settings.schema import known_settings


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("alpah", "sampler.alpha"),
        ("sampler.alpah", "sampler.alpha"),
        ("sampler_alpha", "sampler.alpha"),
        ("task.alpha", "sampler.alpha"),
        ("task.nam", "task.name"),
        ("nam", "name"),
        ("bath_size", "batch_size"),
        ("--max-new-token", "task.max_new_tokens"),
        ("POWERSAMPLE_BATCHSIZE", "batch_size"),
        ("POWERSAMPLE_ENGINE__TENSOR_PARALLEL", "engine.gpus_per_model"),
        ("sampler.foo", None),
        ("engine.frobnicate", None),
    ],
)
def test_the_nearest_name_is_suggested_however_it_is_spelt(name: str, near: str | None) -> None:
    assert suggestion(name, known_settings()) == (f" (did you mean {near}?)" if near else "")


@pytest.mark.parametrize(
    ("command", "setting", "spelling"),
    [
        ("run", "task.max_new_tokens", "--task.max-new-tokens or POWERSAMPLE_TASK__MAX_NEW_TOKENS"),
        ("run", "run_dir", "--run-dir or POWERSAMPLE_RUN_DIR"),
        ("generate", "run_dir", "--output_file"),
        ("generate", "limit", "--max_examples or POWERSAMPLE_LIMIT"),
        ("report", "run_dir", "--run-dir or POWERSAMPLE_RUN_DIR"),
        ("plan", "model", "--model"),
        ("validate", "data", "--input"),
    ],
)
def test_each_command_spells_settings_as_its_user_writes_them(command: str, setting: str, spelling: str) -> None:
    assert make_parser(command).spelling(setting) == spelling
    refused = UserError("This is wrong; choose another.", ("seed", setting))
    assert str(refused) == f"This is wrong; choose another (seed, {setting})."
    arrived = pickle.loads(pickle.dumps(refused))
    assert str(arrived.spelt(make_parser(command).spelling)).endswith(f", {spelling}).")


def test_options_and_paths_come_in_any_order() -> None:
    args = make_parser("compare").read(["a", "--flips", "3", "b", "--json"])
    assert ([str(run) for run in args.runs], args.flips, args.json) == (["a", "b"], 3, True)


def test_of_an_option_given_twice_the_last_counts_and_a_line_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    args = vars(make_parser("generate").read(["--max_examples=3", "--output_file", "o", "--limit", "2", "--seed", "1"]))
    assert (args["limit"], args["seed"]) == ("2", "1")
    assert capsys.readouterr().err == "--max_examples and --limit set the same; the last one counts.\n"
    assert vars(make_parser("run").read(["--fresh", "--no-fresh"]))["fresh"] is False
    assert capsys.readouterr().err == "--fresh and --no-fresh set the same; the last one counts.\n"
    make_parser("run").read(["--task.stop", "a", "--task.stop", "b", "--sampler.alpha", "2", "--task.num-shots", "2"])
    assert capsys.readouterr().err == ""


REQUIRED = {"generate": ["--output_file", "o"], "export": ["--to", "parquet"], "validate": ["--input", "i"]}
VALUES = {"--shape": "tiny", "--batch": "1", "--to": "parquet", "--dtype": "float32", "--execution": "eager"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_every_command_that_is_given_twice_is_told(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = make_parser(command)
    paths = [] if COMMANDS[command].settings or command in ("bench", "plan") else ["a"]
    for flag, action in parser.options.items():
        values: list[str] = [] if action.nargs == 0 else [VALUES.get(flag, "1")]
        needed = REQUIRED.get(command, [])
        usual = [] if {*needed} & {*action.option_strings} else needed
        twin = next(iter([one for one in action.option_strings if one != flag]), flag)
        for second in (flag, twin):
            read = parser.read([*paths, flag, *values, second, *values, *usual])
            said = capsys.readouterr().err
            if isinstance(added := getattr(read, action.dest), list) and action.dest not in ("batch", "runs"):
                assert (len(added), said) == (2, "")
            else:
                assert said.count("the last one counts.") == 1
                assert flag in said
                assert second in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["bench", "--shape", "1b"], "bench: --shape 1b is refused .*; there are tiny, 0.5b, "),
        (["bench", "--steps", "0"], "bench: --steps: '0' is not a whole number from 1; "),
        (["bench", "--batch", "1,x"], "bench: --batch: '1,x' is no list of slots"),
        (["bench", "--model", "m", "--shape", "tiny"], "bench: --shape: not allowed with argument --model; "),
        (["compare"], "compare: the following arguments are required: RUN; "),
    ],
)
def test_what_a_command_cannot_take_is_one_sentence(words: list[str], sentence: str) -> None:
    with pytest.raises(UserError, match=f"^{sentence}"):
        make_parser(words[0]).read(words[1:])
