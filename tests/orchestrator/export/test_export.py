"""`powersample export`: what the files say, that nothing is overwritten or half there, and that others open them."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial, reduce
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from operator import getitem
from pathlib import Path
from subprocess import run as command
from threading import Thread
from typing import Any

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries

from evals.config import TaskConfig
from evals.grading.grade import NUMERIC, gsm8k
from evals.record import Record, Timings, TokenCounts, encode
from evals.samplers.power import Power
from evals.samplers.trace import MoveFigures
from evals.tasks.task import make_task
from evals.types import Answer, Problem, UserError
from orchestrator.analysis.load import load_run
from orchestrator.analysis.summarise import summarise
from orchestrator.cli import main
from orchestrator.driver.open_runs import run_content
from orchestrator.export import eval_results
from orchestrator.export.exported_run import Exported, load_exported
from orchestrator.inputs.models import ModelSource
from orchestrator.inputs.preflight import Inputs
from orchestrator.inputs.problems import GSM8K_SHA256, load_problems
from orchestrator.inputs.prompts import prompts_digest
from orchestrator.machine import description
from orchestrator.rundir import files
from orchestrator.rundir.reading.manifest import Manifest
from orchestrator.settings.config import RunConfig, resolve
from support.chromium import Browser, find_browser
from support.demo_inputs import NOON
from support.interop import needs_theirs, theirs
from support.made_up import changed, make_run, refused
from support.places import ROOT

FORMS = ["#### {n}", "#### {n}.00", "The answer is ${n}.", "I do not know", "#### 7\n#### {n}", r"\boxed{{{n}}}."]
"""Answers on which the three scores differ in every way, and one without a number."""
NUM_PROBLEMS, NUM_SAMPLES = 6, 2
PROBLEMS = ROOT / "evals/demo/problems.jsonl"


def make_record(problem: Problem, index: int) -> Record:
    text = FORMS[(problem.problem_id + index) % len(FORMS)].format(n=problem.gold)
    start, grades = 1e9 + problem.problem_id, gsm8k(Answer(text), problem, cot=False)
    return Record(
        problem.problem_id, index, "ok", text, [5, 6, 0], "length" if index else "eos", grades,
        MoveFigures(moves=10, log_p=-3.5), Timings(start, start + 2.5, 2.5), tokens=TokenCounts(40, 3, 30, 39),
    )  # fmt: skip


Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Writes a run of the embedded problems, the last answer of which failed."""

    def write(num_samples: int = NUM_SAMPLES, **task: Any) -> Path:
        given = {"model": "demo", "data": "demo", "limit": NUM_PROBLEMS, "num_samples": num_samples, "task": task}
        config = resolve(RunConfig.model_validate({**given, "sampler": Power()}), 0)
        data = load_problems("demo", limit=NUM_PROBLEMS)
        train = load_problems(str(PROBLEMS)) if config.task.num_shots else None
        digest = prompts_digest(make_task(config.task, config.seed, train.problems if train else ()), data.problems)
        inputs = Inputs(config, ModelSource("model", "demo", None, "m" * 64), data, train, 512, digest, "", NOON)
        content = run_content(config, inputs, description.describe())
        records = [make_record(problem, index) for problem in data.problems for index in range(num_samples)]
        records[-1] = changed(records[-1], status="failed", text="", scores={}, chain={}, tokens={}, error="it died")
        directory = tmp_path / "run"
        directory.mkdir()
        (directory / "run.json").write_text(json.dumps({**content, "fingerprint": "f" * 64}))
        (directory / "records.jsonl").write_bytes(b"".join(map(encode, reversed(records))))
        return directory

    return write


def exported(run: Path, name: str, capsys: pytest.CaptureFixture[str], *more: str) -> list[Path]:
    assert main(["export", str(run), "--to", name, *more]) == 0
    return [Path(line) for line in capsys.readouterr().out.splitlines()]


def member(path: Path, name: str) -> Any:
    """A JSON file in an inspect log."""
    with zipfile.ZipFile(path) as log:
        return json.loads(log.read(name))


def test_lm_eval_files_say_what_the_report_says(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(num_samples=1)
    samples, results = exported(run, "lm-eval", capsys)
    assert samples.parent == run / "exports/lm-eval/demo"
    date = "2001-09-09T01-46-47.500000"
    assert (samples.name, results.name) == (f"samples_demo_{date}.jsonl", f"results_{date}.json")
    whole = json.loads(results.read_text())
    scored = whole["results"]["demo"]
    assert (whole["versions"], whole["configs"]["demo"]["metadata"]["version"]) == ({"demo": "1"}, "1")
    said = load_run(run).summary.accuracy
    for grader, name in {"strict": "strict-match", "flexible": "flexible-extract", "numeric": "numeric"}.items():
        assert scored[f"exact_match,{name}"] == said[grader].mean
        assert scored[f"exact_match_stderr,{name}"] == pytest.approx(said[grader].stderr)
    assert len({value.mean for value in said.values()}) == 3, "the made-up answers must tell the scores apart"
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert [(row["doc_id"], row["filter"]) for row in rows[:4]] == [
        (0, "strict-match"), (0, "flexible-extract"), (0, "numeric"), (1, "strict-match"),
    ]  # fmt: skip
    assert (rows[-1]["resps"], rows[-1]["filtered_resps"], rows[-1]["exact_match"]) == ([[""]], ["[invalid]"], 0.0)


def test_exact_match_is_of_the_first_sample_and_the_mean_has_its_name(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make()
    scored = json.loads(exported(run, "lm-eval", capsys)[1].read_text())["results"]["demo"]
    found = load_run(run)
    assert scored["exact_match_mean,numeric"] == pytest.approx(found.summary.accuracy["numeric"].mean)
    first = [record.scores["strict"].correct for record in found.records if record.sample_index == 0]
    assert scored["exact_match,strict-match"] == sum(first) / NUM_PROBLEMS != scored["exact_match_mean,strict-match"]


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"name": "openai/gsm8k"}, "gsm8k"),
        ({"name": "mine/test.jsonl", "sha256": GSM8K_SHA256}, "gsm8k"),
        ({"name": "mine/test-1.5.jsonl"}, "test-1.5"),
        ({"name": "madrylab/gsm8k-platinum"}, "gsm8k-platinum"),
    ],
)
def test_only_gsm8k_is_called_so(data: dict[str, str], name: str) -> None:
    content = make_run()
    content["provenance"]["data"] = data
    run = Manifest.of(Path("run"), content)
    assert Exported(run, summarise([], [], run), TaskConfig(), [], {}, {}).name == name


@pytest.mark.parametrize(("texts", "name"), [("gold", "gold"), ("some/texts.jsonl", "texts.jsonl")])
def test_a_replay_is_not_the_models_own_result(
    texts: str, name: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make()
    content = json.loads((run / "run.json").read_text())
    content["config"]["sampler"] = {"kind": "replay", "texts": texts}
    (run / "run.json").write_text(json.dumps({**content, "fingerprint": "f" * 64}))
    samples, results = exported(run, "lm-eval", capsys)
    said, row = json.loads(results.read_text()), json.loads(samples.read_text().splitlines()[0])
    assert said["model_name"] == samples.parent.name == f"replay-of-{name}"
    assert said["config"]["gen_kwargs"] == row["arguments"]["gen_args_0"]["arg_1"]
    assert (said["config"]["gen_kwargs"]["do_sample"], said["config"]["model_sha"]) == (False, None)
    spec = member(exported(run, "inspect", capsys)[0], "header.json")["eval"]
    assert (spec["task"], spec["model"]) == ("demo", f"powersample/replay-of-{name}")
    assert spec["model_generate_config"]["max_tokens"] is None


def test_parquet_has_a_row_for_every_answer(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("datasets")
    run = make(num_shots=2, train_data=str(PROBLEMS))
    (path,) = exported(run, "parquet", capsys)
    rows = datasets.load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache"))
    found, problems = load_run(run).records, load_problems("demo", limit=NUM_PROBLEMS).problems
    assert [(row["problem_id"], row["sample_index"]) for row in rows] == [record.key for record in found]
    for row, record in zip(rows, found, strict=True):
        assert (row["text"], row["token_ids"]) == (record.text, record.token_ids)
        assert json.loads(row["chain"]) == record.chain.reported()
        assert row["numeric_correct"] == ("numeric" in record.scores and record.scores["numeric"].correct)
        assert row["prompt"].count("Question:") == 3
        problem = problems[record.problem_id]
        assert (row["question"], row["solution"], row["wall_seconds"]) == (problem.question, problem.solution, 2.5)
        counted = {name: row[f"{name}_tokens"] for name in ("prompt", "answer", "generated")}
        assert counted == {name: getattr(record.tokens, name) for name in counted}
    assert (rows[-1]["error"], rows[-1]["numeric_answer"], rows[-1]["generated_tokens"]) == ("it died", None, None)
    from pyarrow.parquet import read_schema

    assert json.loads(read_schema(path).metadata[b"powersample"])["fingerprint"] == "f" * 64


def test_new_scores_are_exported(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(num_samples=1)
    wrong = {"correct": False, "answer": "0", "kind": "number"}
    scores = {"strict": wrong, "flexible": wrong, "numeric": wrong | {"version": NUMERIC}}
    row = {"problem_id": 0, "sample_index": 0, "scores": scores}
    (run / "scores.jsonl").write_text(json.dumps(row) + "\n")
    (path,) = exported(run, "inspect", capsys)
    assert member(path, "samples/0_epoch_1.json")["scores"]["strict"]["value"] == "I"


def test_an_unfinished_run_says_so(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make()
    log = (run / "records.jsonl").read_bytes()
    (run / "records.jsonl").write_bytes(log.splitlines(keepends=True)[0])
    assert main(["export", str(run), "--to", "inspect"]) == 0
    out, err = capsys.readouterr()
    assert "still owes 11 answers" in err
    assert member(Path(out.strip()), "header.json")["status"] == "cancelled"


@pytest.mark.parametrize("name", ["lm-eval", "inspect", "parquet"])
def test_nothing_is_overwritten(name: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make()
    first = exported(run, name, capsys, "--out", str(tmp_path / "out"))
    content = [path.read_bytes() for path in first]
    assert "exists already" in refused(["export", str(run), "--to", name, "--out", str(tmp_path / "out")], capsys)
    assert [path.read_bytes() for path in first] == content
    assert not (run / "exports").exists()


def test_a_full_disk_leaves_no_file(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, calls = make(), []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:  # the first file and its directory are synced, the second is not
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    assert "No space left on device" in refused(["export", str(run), "--to", "lm-eval"], capsys)
    assert len(calls) == 3
    assert [path for path in (run / "exports").rglob("*") if path.is_file()] == []


def test_mistakes_are_one_sentence(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make()
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    content = json.loads((run / "run.json").read_text())
    for arguments, other_provenance, words in [
        ([str(run)], {}, "arguments are required: --to"),
        ([str(run), "--to", "parket"], {}, "parquet"),
        ([str(tmp_path), "--to", "inspect"], {}, "not a run directory"),
        ([str(run), "--to", "inspect", "--data", str(other)], {}, "sha256"),
        ([str(run), "--to", "inspect", "--out", f"{other}/x"], {}, "cannot be written"),
        ([str(run), "--to", "inspect"], {"prompts_sha256": "0" * 64}, "cannot be made again"),
        ([str(run), "--to", "inspect"], {"versions": None}, "'versions' is missing"),
    ]:
        provenance = {
            key: value for key, value in {**content["provenance"], **other_provenance}.items() if value is not None
        }
        (run / "run.json").write_text(json.dumps({**content, "provenance": provenance}))
        assert words in refused(["export", *arguments], capsys)
    (run / "records.jsonl").write_text("")
    assert "no answer yet" in refused(["export", str(run), "--to", "inspect"], capsys)
    assert not (run / "exports").exists()


LM_EVAL = r"""
from importlib.resources import files
import yaml, datasets
from lm_eval.api.metrics import exact_match_fn, mean, sample_stddev
from lm_eval.filters.extraction import RegexFilter
from lm_eval.utils import get_file_task_name, get_latest_filename, get_results_filenames, get_sample_results_filenames
from lm_eval.utils import hash_string, make_table

results = json.load(open(get_latest_filename(get_results_filenames(given))))
path = get_latest_filename(get_sample_results_filenames(given))
rows = [json.loads(line) for line in open(path)]
task = yaml.safe_load((files("lm_eval") / "tasks/gsm8k/gsm8k.yaml").read_text())
metric = {key: value for key, value in task["metric_list"][0].items() if "ignore" in key}
scored = {}
for one in task["filter_list"]:
    rule = RegexFilter(**{key: value for key, value in one["filter"][0].items() if key != "function"})
    mine = [row for row in rows if row["filter"] == one["name"]]
    values = []
    for row in mine:
        extracted = list(rule.apply(row["resps"], [row["doc"]]))[0][0]
        values.append(exact_match_fn(predictions=[extracted], references=[row["target"]], **metric)["exact_match"])
        assert row["filtered_resps"] == [extracted] and row["exact_match"] == values[-1], row
        assert row["prompt_hash"] == hash_string(row["arguments"]["gen_args_0"]["arg_0"])
        assert row["doc_hash"] == hash_string(json.dumps(row["doc"], indent=2, ensure_ascii=False))
    scored[f"exact_match,{one['name']}"] = mean(values)
    scored[f"exact_match_stderr,{one['name']}"] = sample_stddev(values) / len(values) ** 0.5
name = get_file_task_name(path.rpartition("/")[2])
assert len(datasets.load_dataset("json", data_files=path, split="train")) == len(rows)
hashes = hash_string("".join(row["doc_hash"] + row["prompt_hash"] + row["target_hash"] for row in rows))
assert results["task_hashes"] == {name: hashes}
answer = {"task": name, "table": make_table(results), "scored": scored}
"""


@needs_theirs
def test_lm_eval_reads_its_files_and_scores_the_texts_alike(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    files = exported(make(), "lm-eval", capsys)
    found = theirs(LM_EVAL, [str(path) for path in files])
    scored = json.loads(files[1].read_text())["results"]["demo"]
    assert found["scored"] == pytest.approx({name: scored[name] for name in found["scored"]})
    assert len(found["scored"]) == 4
    assert found["task"] == "demo"
    assert all(word in found["table"] for word in ("strict-match", "flexible-extract", "numeric", "exact_match_mean"))


def test_an_entry_for_the_hub_says_how_it_was_sampled(make: Make) -> None:
    run = make()
    loaded, content = load_exported(run, None), (run / "run.json").read_text()

    def entry_of(**changes: Any) -> dict[Path, str]:
        given = json.loads(content)
        given["provenance"]["data"] = {"name": "openai/gsm8k", "sha256": GSM8K_SHA256, "rows": NUM_PROBLEMS}
        for place, value in changes.items():
            *path, name = place.split("__")
            reduce(getitem, path, given)[name] = value
        return eval_results.files(loaded._replace(run=Manifest.of(run, given)), None, run)

    for words, changes in {
        "it is of mine.jsonl": {"provenance__data": {"name": "mine.jsonl", "sha256": "1", "rows": NUM_PROBLEMS}},
        f"has 12 answers to {NUM_PROBLEMS} of 1,319 problems": {"provenance__data__rows": 1319},
        "its texts are replayed": {"config__sampler": {"kind": "replay", "texts": "t"}},
    }.items():
        with pytest.raises(UserError, match=re.escape(words)):
            entry_of(**changes)
    ((path, text),) = entry_of().items()
    assert path == run / ".eval_results/gsm8k-powersample-ffffffff.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(text))
    score = loaded.summary.accuracy["numeric"]
    assert (entry.dataset_id, entry.task_id, entry.value) == (
        "openai/gsm8k",
        "gsm8k",
        round(100 * (score.mean or 0), 2),
    )
    assert entry.date == "2001-09-09"
    assert "Sampled by power (alpha 4, 10 moves) (" in (entry.notes or "")
    assert f"mean of 2 answers per problem, {score.words} %" in (entry.notes or "")


def test_every_eval_ever_has_scores_and_answers(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make()
    samples, whole = exported(run, "every-eval-ever", capsys)
    assert whole.parent == run / "exports/every-eval-ever/data/demo/unknown/demo"
    content, said = json.loads(whole.read_text()), load_run(run).summary.accuracy
    results = {one["metric_config"]["metric_id"]: one for one in content["evaluation_results"]}
    for name, one in results.items():
        uncertainty, score = one["score_details"]["uncertainty"], said[name]
        assert one["score_details"]["score"] == score.mean
        assert uncertainty["standard_error"]["value"] == score.stderr
        assert (uncertainty["confidence_interval"]["lower"], uncertainty["num_samples"]) == ((score.ci95 or [0])[0], 6)
        details = one["generation_config"]["additional_details"]
        assert (details["alpha"], details["preset"], details["preset_version"]) == ("4.0", "gsm8k", "1")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    assert len(rows) == 3 * NUM_PROBLEMS * NUM_SAMPLES == content["detailed_evaluation_results"]["total_rows"]
    for name, one in results.items():
        mine = [row for row in rows if row["evaluation_result_id"] == one["evaluation_result_id"]]
        assert sum(row["evaluation"]["score"] for row in mine) / len(mine) == pytest.approx(said[name].mean)
    assert rows[0]["token_usage"]["output_tokens"] == 3, "the answer's, not all that was generated"
    assert rows[0]["metadata"]["generated_tokens"] == "30"
    assert rows[-1]["error"] == "it died"


EVERY_EVAL_EVER = """
from importlib.resources import files
from jsonschema import Draft7Validator

schemas = files("every_eval_ever") / "schemas"
log, instance = (Draft7Validator(json.loads((schemas / f"{name}.schema.json").read_text()))
                 for name in ("eval", "instance_level_eval"))
log.validate(json.load(open(given[1])))
rows = [json.loads(line) for line in open(given[0])]
for row in rows:
    instance.validate(row)
answer = [len(rows), log.is_valid({})]
"""


@pytest.mark.skipif(not find_spec("every_eval_ever"), reason="every-eval-ever is not there: it asks for Python 3.12")
def test_every_eval_ever_is_valid_by_its_schema(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    files = exported(make(), "every-eval-ever", capsys)
    assert theirs(EVERY_EVAL_EVER, [str(path) for path in files]) == [3 * NUM_PROBLEMS * NUM_SAMPLES, False]


INSPECT = r"""
from inspect_ai.analysis import samples_df
from inspect_ai.log import read_eval_log, read_eval_log_sample_summaries, write_eval_log
from inspect_ai.scorer import value_to_float

log = read_eval_log(given)
summaries = read_eval_log_sample_summaries(given)
frame = samples_df(given)
write_eval_log(log, given + ".again.eval")
again = read_eval_log(given + ".again.eval")
assert again.results == log.results and again.samples == log.samples
number = value_to_float()
answer = {
    "status": log.status, "epochs": log.eval.config.epochs, "total": log.results.total_samples,
    "completed": log.results.completed_samples,
    "version": log.eval.task_version,
    "scores": {one.name: {name: metric.value for name, metric in one.metrics.items()} for one in log.results.scores},
    "means": {one.name: sum(number((s.scores or {}).get(one.name).value) if s.scores else 0 for s in log.samples)
              / len(log.samples) for one in log.results.scores},
    "keys": [[one.id, one.epoch] for one in log.samples], "completions": [one.output.completion for one in log.samples],
    "reasons": [one.output.stop_reason if one.output.choices else one.error.message for one in log.samples],
    "texts": [one.messages[-1].text for one in log.samples], "roles": [one.messages[0].role for one in log.samples],
    "usage": [one.stats.model_usage["powersample/demo"].output_tokens for one in [log]],
    "done": [one.completed for one in summaries], "rows": len(frame), "column": list(frame["score_numeric"])[:2],
}
"""


@needs_theirs
@pytest.mark.parametrize("task", [{}, {"preset": "inspect-gsm8k-0shot"}])
def test_inspect_reads_its_log(task: dict[str, Any], make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make(**task)
    (path,) = exported(run, "inspect", capsys)
    found, ours = theirs(INSPECT, str(path)), load_run(run)
    answers = NUM_PROBLEMS * NUM_SAMPLES
    assert (found["status"], found["epochs"]) == ("success", NUM_SAMPLES)
    assert found["version"] == "1"
    assert (found["total"], found["completed"], found["rows"]) == (answers, answers - 1, answers)
    for name, score in ours.summary.accuracy.items():
        assert found["scores"][name] == pytest.approx({"accuracy": score.mean, "stderr": score.stderr})
        assert found["means"][name] == pytest.approx(score.mean)
    order = sorted(ours.records, key=lambda record: (record.sample_index, record.problem_id))  # as inspect sorts
    assert found["keys"] == [[record.problem_id, record.sample_index + 1] for record in order]
    assert found["completions"] == [record.text for record in order]
    assert found["texts"][:-1] == found["completions"][:-1]
    assert set(found["roles"]) == {"user"}
    assert found["reasons"] == ["stop"] * NUM_PROBLEMS + ["max_tokens"] * (NUM_PROBLEMS - 1) + ["it died"]
    assert found["usage"] == [3 * (answers - 1)], "tokens of the answers"
    assert sorted(found["done"]) == [False] + [True] * (answers - 1)


@pytest.fixture
def viewer(make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[str]:
    """Address of inspect's own viewer over an exported log."""
    exported(make(), "inspect", capsys, "--out", str(tmp_path / "logs/mine.eval"))
    bundle = [sys.executable, "-m", "inspect_ai", "view", "bundle", "--log-dir", str(tmp_path / "logs")]
    done = command([*bundle, "--output-dir", str(tmp_path / "view")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "view")))
    thread = Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/#/tasks/mine.eval"
    server.shutdown()
    thread.join()
    server.server_close()


@needs_theirs
@pytest.mark.slow
def test_inspects_viewer_shows_it(viewer: str, tmp_path: Path) -> None:
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium to look at the viewer with")
    browser = Browser(program, tmp_path / "profile", {})
    try:
        shown = asyncio.run(
            browser.visit(viewer, ["powersample/demo", "accuracy", "numeric", "stickers"], tmp_path / "p")
        )
    finally:
        browser.close()
    assert "demo" in shown
