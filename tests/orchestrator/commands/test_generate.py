"""`powersample generate` and `validate`: rows in, rows out, what fails, what is refused, what a kill leaves."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo_training.problems import row
from evals.config import TaskConfig
from evals.evaluate import prompt_ids
from evals.record import AnsweredBy, Record, TokenCounts
from evals.rng import RandomKey
from evals.samplers.registry import SAMPLERS, sampler_of, settings_of
from evals.samplers.single import AtTemperature
from evals.tasks.task import make_task
from evals.types import Problem, Prompt, Submit, UserError
from orchestrator import cli
from orchestrator.commands.generate import advice, checked_config, cost, defaults
from orchestrator.commands.table import make_parser
from orchestrator.driver import session
from orchestrator.export import generate_output
from orchestrator.machine import gpus
from orchestrator.settings.config import Provenance, RunConfig, fingerprint, resolve
from orchestrator.settings.merge import build_config
from orchestrator.workers.pool import Work
from support.fake_worker import FakeWorker, install
from support.logs import read_records
from support.places import ROOT

BROKEN, RAISING = 2, 4
ROWS = [
    {"input": "one é?", "output": "old", "difficulty": "easy", "domain": "math"},
    {"prompt": "two?"},
    '{"input": "cut off',
    {"input": " \n"},
    {"input": "five?"},
    {"input": "six?", "difficulty": "hard", "id": "q6", "tags": ["é", None], "prompt": "6?"},
    {"input": "half \ud800", "domain": "x"},
    {"input": "eight?"},
]
GOOD, FAILED = [0, 1, 5, 7], [2, 3, 4, 6]


class Answering(FakeWorker):
    """Notes how many lines the output has when it answers; the row RAISING raises."""

    output = Path()
    seen: list[int]

    def __init__(self, rank: int, name: str) -> None:
        Answering.seen = []

    def answer(self, work: Work) -> Record | Exception:
        i = work.problem.problem_id
        if i == RAISING:
            return ValueError("cannot")
        self.seen.append(len(self.output.read_text().splitlines()))
        ended = "length" if i == 0 else "eos"
        return Record(i, 0, "ok", f"answer {i}", [1], ended, tokens=TokenCounts(generated=1), worker=AnsweredBy(rank=0))


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`powersample generate` on ROWS in `tmp_path` with a fake worker and preflight, one row at a time."""
    model = install(Answering, tmp_path, monkeypatch)
    jsonl(tmp_path / "in.jsonl", ROWS)
    monkeypatch.setattr(gpus, "visible_gpus", list)
    monkeypatch.setattr(Answering, "output", tmp_path / "out.jsonl")
    for name in [name for name in os.environ if name.startswith("POWERSAMPLE_")]:
        monkeypatch.delenv(name)
    files = ["--model_path", model, "--input_file", tmp_path / "in.jsonl"]

    def start(*flags: object) -> int:
        every = [*files, "--output_file", tmp_path / "out.jsonl", "--inline", "--batch_size", 1, *flags]
        return command("generate", *every)

    return start


def command(*arguments: object) -> int:
    """The exit code of a command; what it refuses is raised."""
    return cli.call_command(list(map(str, arguments)))


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_row_that_can_be_answered_is_and_the_others_are_listed(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("--hourly_rate", 2.5) == session.FAILED
    said = capsys.readouterr()
    rows = written(tmp_path / "out.jsonl")
    assert [row["metadata"]["example_id"] for row in rows] == GOOD
    assert rows[0] == {
        "input": "one é?",
        "output": "answer 0",
        "difficulty": "easy",
        "domain": "math",
        "metadata": {
            "original_output": "old",
            "example_id": 0,
            "teacher_model": str(tmp_path / "model"),
            "generation_params": {"temperature": 0.7, "top_p": 0.9, "max_new_tokens": 2048},
        },
    }
    assert (rows[1]["input"], rows[1]["difficulty"], rows[2]["difficulty"]) == ("two?", None, "hard")
    assert rows[2]["metadata"]["other_fields"] == {"id": "q6", "tags": ["é", None], "prompt": "6?"}
    assert "other_fields" not in rows[1]["metadata"]
    assert "é" in (tmp_path / "out.jsonl").read_text(encoding="utf-8")
    assert [line.split(":")[1] for line in said.out.splitlines() if line.startswith("Failed")] == [
        f" row {row}" for row in FAILED
    ]
    assert "4 answers, 1 of them cut off" in said.out
    assert "ValueError: cannot" in said.out
    assert re.search(r"^\S+ s in all, \d+ examples/minute while sampling, \$0.00 at \$2.5 an hour$", said.out, re.M)
    assert "out.jsonl.run: 0 of 8 answers are there, 3 rows refused, 5 are owed." in said.err
    assert "Progress: 8/8 (100.0%) - Generated: 4, Failed: 4 - batch 8/8, " in said.err
    assert Answering.seen == [0, 1, 2, 3], "a line is there before the next answer is"
    assert command("validate", tmp_path / "out.jsonl", "--input", tmp_path / "in.jsonl") == 0


def test_a_second_start_goes_on_and_heals_the_output(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    whole, log = (tmp_path / "out.jsonl").read_bytes(), tmp_path / "out.jsonl.run/records.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    assert [record.problem_id for record in read_records(log)[:3]] == [2, 3, 6], "refused before a worker starts"
    log.write_bytes(b"".join(lines[:5]) + b'{"problem')
    (tmp_path / "out.jsonl").write_bytes(b'{"input": "torn')
    assert run() == session.FAILED
    assert (tmp_path / "out.jsonl").read_bytes() == whole
    assert Answering.seen[0] == 2
    Answering.seen = []
    capsys.readouterr()
    assert run("--hourly_rate", 2.5) == session.FAILED
    assert Answering.seen == []
    out, err = capsys.readouterr()
    assert "in all" not in out
    assert "are few" not in err
    assert "5 of 8 answers are there, 3 rows refused, 0 are owed" in err
    with pytest.raises(UserError, match=r"temperature: 0.7 there, 0.5 now\); .* \(--output_file\)\.$"):
        run("--temperature", 0.5)
    assert (tmp_path / "out.jsonl").read_bytes() == whole


def test_max_examples_and_power_sampling(run: Callable[..., int], tmp_path: Path) -> None:
    assert run("--max_examples", 2, "--alpha", 3) == 0
    rows = written(tmp_path / "out.jsonl")
    assert [row["metadata"]["example_id"] for row in rows] == [0, 1]
    params = rows[0]["metadata"]["generation_params"]
    assert (params["kind"], params["alpha"], params["num_moves"], params["max_new_tokens"]) == ("power", 3, 10, 2048)
    assert command("validate", tmp_path / "out.jsonl", "--input", tmp_path / "in.jsonl") == 0


@pytest.mark.parametrize(
    ("flags", "variables", "params"),
    [
        (["--sampler.kind", "greedy"], {}, {"kind": "greedy"}),
        ([], {"SAMPLER__KIND": "greedy"}, {"kind": "greedy"}),
        (["--temperature", "0"], {}, {"kind": "greedy"}),
        (["--temperature", "0", "--sampler.kind", "greedy"], {}, {"kind": "greedy"}),
        (["--temperature", "0"], {"SAMPLER__KIND": "greedy"}, {"kind": "greedy"}),
        (["--temperature=0.0", "--top_p", "0.9"], {"SAMPLER__TEMPERATURE": "0.5"}, {"kind": "greedy"}),
        ([], {"SAMPLER__TEMPERATURE": "0"}, {"kind": "greedy"}),
        (["--sampler.kind", "temperature"], {}, {"temperature": 0.7, "top_p": 0.9}),
        (["--sampler.kind=majority"], {}, {"kind": "majority", "num_candidates": 16, "temperature": 1.0}),
        (["--sampler.kind=best_of", "--alpha", "2"], {}, {"kind": "best_of", "num_candidates": 16, "alpha": 2.0}),
        ([], {"SAMPLER__ALPHA": "2"}, {"kind": "power", "alpha": 2.0}),
    ],
)
def test_an_option_or_a_variable_replaces_a_file_that_nobody_named(
    flags: list[str],
    variables: dict[str, str],
    params: dict[str, Any],
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(f"POWERSAMPLE_{name}", value)
    assert run("--max_examples", 2, *flags) == 0
    has = written(tmp_path / "out.jsonl")[0]["metadata"]["generation_params"]
    assert has.items() >= params.items()
    assert has["max_new_tokens"] == 2048


@pytest.mark.parametrize("kind", [kind for kind in SAMPLERS if kind != "replay"])
def test_every_kind_of_sampler_can_be_had_without_a_file(kind: str, run: Callable[..., int], tmp_path: Path) -> None:
    assert run("--max_examples", 2, "--sampler.kind", kind) == 0
    made = json.loads((tmp_path / "out.jsonl.run/run.json").read_text())["config"]["sampler"]
    usual = {"temperature": 0.7, "top_p": 0.9} if kind == "temperature" else {}
    assert made == settings_of(sampler_of({"kind": kind, **usual}))


def test_a_file_that_was_named_and_two_options_that_contradict_each_other_are_not_replaced(
    run: Callable[..., int], tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("task: {preset: generate}\nsampler: {kind: temperature, temperature: 0.7}\n")
    with pytest.raises(UserError, match=r"mine.yaml: sampler.temperature=0.7 and --sampler.kind=greedy do not go"):
        run("--config", file, "--sampler.kind", "greedy")
    with pytest.raises(UserError, match=r"^--temperature=0 and --alpha=2 do not go together: kind power does not read"):
        run("--temperature", 0, "--alpha", 2)
    with pytest.raises(
        UserError, match=r"^--top_p=0.5 and --num_moves=3 do not go together: .* belongs to temperature"
    ):
        run("--top_p", 0.5, "--num_moves", 3)
    with pytest.raises(UserError, match=r"^--sampler.blocks=2 is refused: kind temperature does not read blocks"):
        run("--sampler.blocks", 2)
    assert not (tmp_path / "out.jsonl.run").exists()


def test_what_reads_scores_says_that_there_are_none(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    directory = tmp_path / "out.jsonl.run"
    for name, *options in (["report"], ["regrade"], ["export", "--to", "parquet"]):
        with pytest.raises(UserError, match=r"is a run of generate, which grades nothing"):
            command(name, directory, *options)
    capsys.readouterr()
    assert command("watch", directory, "--once") == 0
    shown = capsys.readouterr().out
    assert "8 of 8" in shown
    assert "numeric" not in shown


def test_rows_that_no_line_of_json_can_carry_fail_alone(run: Callable[..., int], tmp_path: Path) -> None:
    at, near, beyond, far = (f'{{"input": "?", "x": {"[" * depth}{"]" * depth}}}' for depth in (190, 199, 300, 900))
    jsonl(tmp_path / "in.jsonl", [at, {"input": "?", "x": 10**4000}, beyond, '{"input": "?", "x": NaN}', far, near])
    run()
    failed = {r.problem_id for r in read_records(tmp_path / "out.jsonl.run/records.jsonl") if r.status == "failed"}
    assert failed >= {2, 3, RAISING}
    assert failed.isdisjoint({0, 1})
    assert command("validate", tmp_path / "out.jsonl", "--input", tmp_path / "in.jsonl") == 0


def test_a_file_without_one_good_row_is_refused(run: Callable[..., int], tmp_path: Path) -> None:
    jsonl(tmp_path / "in.jsonl", ["{", {"input": 3}])
    with pytest.raises(UserError, match=r"No row of .* can be used; the first: .*line 1: the line: invalid JSON"):
        run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "model"]


def test_an_output_that_cannot_be_written_loses_no_answer(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr("orchestrator.commands.generate.write_atomically", full)
        with pytest.raises(UserError, match=r"out.jsonl cannot be written \(No space left"):
            run()
    assert run() == session.FAILED
    assert [row["metadata"]["example_id"] for row in written(tmp_path / "out.jsonl")] == GOOD


def test_an_output_that_is_a_link_stays_one(run: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.jsonl").symlink_to("elsewhere/real.jsonl")
    for _ in range(2):
        assert run() == session.FAILED
        assert (tmp_path / "out.jsonl").is_symlink()
        assert [row["metadata"]["example_id"] for row in written(tmp_path / "elsewhere/real.jsonl")] == GOOD
    assert (tmp_path / "elsewhere/real.jsonl.run").is_dir()
    assert command("validate", tmp_path / "out.jsonl", "--input", tmp_path / "in.jsonl") == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--max_examples", "0"], "--max_examples=0 is refused"),
        (["--top_p", "2"], "--top_p=2 is refused"),
        (["--num_moves", "x"], "--num_moves=x is refused"),
        (["--output_file", __file__ + "/out.jsonl"], "cannot be written .*; choose another [(]--output_file[)]"),
        (["--output_file", ""], "[.] is a directory; name a file by --output_file"),
        (["--output_file", "/tmp"], "/tmp is a directory; name a file by --output_file"),
        (["--output_file"], "--output_file needs a value: grows in the order"),
        (["--hourly_rate", "cheap"], "--hourly_rate: 'cheap' is not a price"),
        (["--hourly-rate=-1"], "--hourly_rate: '-1' is not a price"),
        (["--max_exmples=3"], "did you mean --max.examples"),
    ],
)
def test_refusals_name_the_options_that_generate_has(run: Callable[..., int], flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        run(*flags)
    assert not re.search("--(limit|sampler|run-dir)", str(refused.value))


def test_validate_names_its_own_option(tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").touch()
    with pytest.raises(UserError, match=r"absent cannot be read .*; name a file of rows .*[(]--input[)][.]"):
        command("validate", tmp_path / "out.jsonl", "--input", tmp_path / "absent")
    with pytest.raises(UserError, match=r"absent cannot be read .*; name the file that generate wrote"):
        command("validate", tmp_path / "absent", "--input", tmp_path / "out.jsonl")


def test_an_output_that_is_not_ours_stays(run: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        run()
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_run_grades_and_so_takes_no_open_task(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--task.preset", "generate", "--data", __file__, "--num-gpus", "0"]) == 2
    assert "use powersample generate" in capsys.readouterr().err


def test_options_are_settings_of_a_run_in_any_spelling() -> None:
    options = ["--top-p=0.5", "--max_examples", "3", "--output-file", "o.jsonl", "--seed", "4", "--limit=2"]
    given = {"sampler.top_p": "0.5", "limit": "2", "output_file": Path("o.jsonl"), "hourly_rate": None, "seed": "4"}
    assert vars(make_parser("generate").read(options)).items() >= given.items()
    with pytest.raises(UserError, match="arguments are required: --output_file"):
        make_parser("generate").read(["--model_path", "demo"])


OPEN: dict[str, Any] = {"model": "m", "data": __file__, "task": {"preset": "generate"}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"run_dir": "x"}, "leave run_dir out"),
        ({"fresh": True}, "leave fresh out"),
        ({"num_samples": 2}, "leave num_samples out"),
        ({"task": {}}, "task.name is gsm8k; set it to open"),
        ({"model": None}, "needs model; .*\\(model\\)"),
        ({"data": None}, "needs data; "),
        ({"data": "/none.jsonl"}, "no file /none.jsonl"),
    ],
)
def test_settings_that_are_refused(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        checked_config(RunConfig(**{**OPEN, **settings}), tmp_path / "o.jsonl")


def test_an_output_may_not_be_the_input(tmp_path: Path) -> None:
    data = jsonl(tmp_path / "in.jsonl", ROWS)
    generate_output.run_of(data).mkdir()
    with pytest.raises(UserError, match="is there already"):
        checked_config(RunConfig(**{**OPEN, "data": str(data)}), data)


def change(number: int, **fields: Any) -> Callable[[list[Any]], None]:
    def apply(rows: list[Any]) -> None:
        rows[number].update(fields)

    return apply


def params(rows: list[Any]) -> None:
    rows[1]["metadata"]["generation_params"]["temperature"] = 1.0


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda rows: rows.pop(1), "rows without an answer: 1 (1)"),
        (lambda rows: rows.append(rows[3]), "rows that are answered twice: 1 (7)"),
        (lambda rows: rows.reverse(), "not in the order"),
        (lambda rows: rows.insert(0, '{"input": "torn'), "line 1: the line: invalid JSON"),
        (change(2, output=" "), "line 3: the output of row 5 is empty"),
        (change(2, output="other"), "line 3: output of row 5 is 'other' instead of 'answer 5'"),
        (change(2, input="other"), "line 3: input of row 5 is 'other' instead of 'six?'"),
        (change(2, difficulty="easy"), "line 3: difficulty of row 5 is 'easy' instead of 'hard'"),
        (change(2, extra=1), "line 3: extra is 1: extra inputs"),
        (change(2, output=None), "line 3: output is None: input should be a valid string"),
        (
            lambda rows: rows[3]["metadata"].update(example_id=8),
            "line 4: row 8 has no answer: it failed, or is none of the input",
        ),
        (
            lambda rows: rows[3]["metadata"].update(example_id=BROKEN),
            "line 4: row 2 has no answer: it failed, or is none of the input",
        ),
        (
            lambda rows: rows[2]["metadata"].update(example_id=RAISING),
            "line 3: row 4 has no answer: it failed, or is none of the input",
        ),
        (
            lambda rows: rows[2]["metadata"].update(original_output="x"),
            "line 3: original_output of row 5 is 'x' instead of None",
        ),
        (
            lambda rows: rows[2]["metadata"].pop("other_fields"),
            "line 3: other_fields of row 5 is {} instead of {'id': 'q6'",
        ),
        (
            lambda rows: rows[2]["metadata"].update(teacher_model="x"),
            "line 3: teacher_model of row 5 is 'x' instead of ",
        ),
        (params, "line 2: generation_params of row 1 is {'temperature': 1.0"),
    ],
)
def test_what_is_wrong_with_an_output_is_said(
    harm: Callable[[list[Any]], Any],
    words: str,
    run: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run()
    rows: list[Any] = written(tmp_path / "out.jsonl")
    harm(rows)
    jsonl(tmp_path / "out.jsonl", rows)
    capsys.readouterr()
    assert command("validate", tmp_path / "out.jsonl", "--input", tmp_path / "in.jsonl") == 1
    assert words in capsys.readouterr().out


def test_without_its_run_an_output_has_to_answer_every_row(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run()
    (tmp_path / "out.jsonl").rename(tmp_path / "moved.jsonl")
    assert command("validate", tmp_path / "moved.jsonl", "--input", tmp_path / "in.jsonl") == 1
    said = capsys.readouterr().out
    assert "rows without an answer: 1 (4)" in said
    assert "4 answers to 8 rows" in said
    assert "there is no run" in said
    rows = written(tmp_path / "moved.jsonl")
    rows[1]["input"], rows[2]["metadata"]["teacher_model"] = "other", "x"
    jsonl(tmp_path / "moved.jsonl", rows)
    assert command("validate", tmp_path / "moved.jsonl", "--input", tmp_path / "in.jsonl") == 1
    said = capsys.readouterr().out
    assert "line 2: input of row 1 is 'other' instead of 'two?'" in said
    assert "line 3: teacher_model of row 5 is 'x' instead of " in said


class Letters:
    """A task with something after the question, in characters."""

    def __init__(self, most: int) -> None:
        config = TaskConfig(preset="generate", template="<{question}>", max_prompt_tokens=most)
        self.task = make_task(config, 0)

    def text(self, question: str) -> str:
        ids = prompt_ids(self.task, Problem(0, question, ""), lambda text: list(map(ord, text)))
        return "".join(map(chr, ids))


def test_a_long_question_is_cut_and_what_stands_after_it_stays() -> None:
    assert Letters(6).text("abcd") == "<abcd>"
    assert Letters(6).text("abcde") == "<abcd>"
    assert Letters(3).text("abcdefgh") == "<a>"
    with pytest.raises(UserError, match="Nothing of problem 0's question fits"):
        Letters(2).text("ab")


def test_top_p_reaches_the_request_and_leaves_older_fingerprints_alone() -> None:
    def first(sampler: AtTemperature) -> Submit:
        operation = next(sampler.chain(Prompt((1,), 4, frozenset({0})), RandomKey(0, 0, 0)))[0]
        assert isinstance(operation, Submit)
        return operation

    request = first(AtTemperature(temperature=0.5, top_p=0.9)).request
    assert (request.alpha, request.top_p) == (2.0, 0.9)
    plain = AtTemperature(temperature=0.5)
    assert settings_of(plain) == {"kind": "temperature", "temperature": 0.5, "top_k": None}

    def digest(**settings: Any) -> str:
        return fingerprint(resolve(RunConfig(model="m", data="d", **settings), 0), Provenance("m", "d"))

    assert digest(sampler=plain) != digest(sampler=AtTemperature(temperature=0.5, top_p=0.9))
    assert digest(task={}) != digest(task={"max_prompt_tokens": 9})


def test_advice_names_what_would_help() -> None:
    config = resolve(RunConfig(**OPEN, batch_size=4, num_gpus=1), 1)
    assert advice(0.9, 300.0, config) == []
    busy, slow = advice(0.4, 100.0, config)
    assert "busy 40% of the time: a larger --batch_size" in busy
    assert "100 examples/minute" in slow
    assert "4 rows at once" in slow
    (few,) = advice(None, 100.0, resolve(RunConfig(**OPEN, batch_size="auto"), 0))
    assert "CPUs instead of GPUs" in few
    assert cost(1800.0, 3.0) == ", $1.50 at $3 an hour"
    assert cost(1800.0, None) == ""


@pytest.mark.parametrize(
    ("name", "kind", "flag"), [("generate", "temperature", ""), ("generate_power", "power", "--alpha 4 ")]
)
def test_shipped_files_open_with_their_command_and_are_valid(name: str, kind: str, flag: str) -> None:
    file = ROOT / f"configs/{name}.yaml"
    words = f"# powersample generate {flag}--model_path MODEL --input_file IN.jsonl --output_file OUT.jsonl"
    assert file.read_text().splitlines()[0] == words
    assert defaults(make_parser("generate").read(words.split()[3:]), {}) == file
    config = build_config(Namespace(), {}, file)
    assert (config.sampler.kind, config.task.name, config.batch_size) == (kind, "open", "auto")
    assert (config.task.max_new_tokens, config.task.max_prompt_tokens) == (2048, 2048)


@pytest.mark.slow
@pytest.mark.serial
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_2000_rows_with_a_bad_one_survive_a_kill(tmp_path: Path) -> None:
    """Two actors, kill -9 of the driver in the middle, a resume: 1,999 rows in order, one listed."""
    made = [row(9, index) for index in range(2000)]
    rows: list[Any] = [{"input": one.question, "output": one.answer, "domain": "math"} for one in made]
    rows[777] = '{"input": "'
    data, out = jsonl(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl"
    flags = ["--model_path", "demo", "--input_file", data, "--output_file", out, "--max_new_tokens", 4]
    options = [*map(str, flags), "--batch_size", "20", "--num-workers", "2"]
    words = [sys.executable, "-m", "orchestrator", "generate", *options]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("POWERSAMPLE_", "RAY_"))}
    env = clean | {"POWERSAMPLE_NUM_GPUS": "0"}
    quiet: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(words, cwd=ROOT, env=env, **quiet)
    while not (out.exists() and out.read_bytes().count(b"\n") >= 900):
        assert process.poll() is None, "it ended before it was to be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait(60) == -signal.SIGKILL
    before = written(out)
    assert 900 <= len(before) < 1999
    done = subprocess.run(words, cwd=ROOT, env=env, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == session.FAILED, done.stderr
    after = {row["metadata"]["example_id"]: row for row in written(out)}
    assert list(after) == [row for row in range(2000) if row != 777]
    assert all(after[row["metadata"]["example_id"]] == row for row in before), "answers from before the kill stay"
    assert [line for line in done.stdout.splitlines() if line.startswith("Failed")] == [
        f"Failed: row 777: {data}, line 778: the line: invalid JSON: EOF while parsing a string at column 11; rows are "
        '{"input": "…"}.'
    ]
    assert command("validate", out, "--input", data) == 0
