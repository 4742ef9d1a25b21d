"""`replay`: texts from a file, or the data's own answers, through the whole pipeline by the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tokenizers import Tokenizer as Fast
from tokenizers import models, normalizers, pre_tokenizers

from evals.config import TaskConfig
from evals.engine.tokenizer import load_tokenizer
from evals.evaluate import replayed_answer
from evals.record import Record, RecordKey
from evals.rng import RandomKey
from evals.samplers.single import Replay
from evals.tasks.task import make_task
from evals.types import Answer, Prompt, SamplingContext
from orchestrator.cli import main
from orchestrator.inputs.problems import load_problems
from orchestrator.rundir.reading.records import first_records
from support.places import ROOT
from support.shared_data import GSM8K_TEST, SHARED, needs_shared

DATA = [
    {"question": "1+1?", "answer": "1+1=2\n#### 2"},
    {"question": "2+2?", "answer": "#### 4"},
    {"question": "3+3?", "answer": "#### 6"},
]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def replay(directory: Path, data: Path, texts: object, *flags: object) -> int:
    """The command that replays."""
    chosen = ["--model", "demo", "--data", data, "--sampler.kind", "replay", "--sampler.texts", texts]
    return main(list(map(str, ["run", "--inline", "--num-gpus", 0, "--run-dir", directory, *chosen, *flags])))


def summary(directory: Path) -> dict[str, Any]:
    return json.loads((directory / "summary.json").read_text())


def records(directory: Path) -> dict[RecordKey, Record]:
    return first_records(directory / "records.jsonl")


GOLD = "GSM8K's own answers through the whole pipeline: 1,319 of 1,319 under all three scores"


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        pytest.param(ROOT / "evals/demo/problems.jsonl", 40, id="demo"),
        pytest.param(
            SHARED / GSM8K_TEST, 1319, marks=[pytest.mark.slow, needs_shared(GSM8K_TEST, claim=GOLD)], id="gsm8k"
        ),
    ],
)
def test_all_gold_answers_are_right_through_the_whole_pipeline(data: Path, rows: int, tmp_path: Path) -> None:
    assert replay(tmp_path / "run", data, "gold", "--limit", rows) == 0
    found = summary(tmp_path / "run")
    assert {name: score["mean"] for name, score in found["accuracy"].items()} == dict.fromkeys(
        ("strict", "flexible", "numeric"), 1.0
    )
    assert (found["num_records"], found["num_undecided"], found["no_answer_rate"]) == (rows, 0, 0)
    records = first_records(tmp_path / "run/records.jsonl")
    golds = {(problem.problem_id, 0): problem.solution for problem in load_problems(str(data), limit=rows).problems}
    assert {key: record.text for key, record in records.items()} == golds
    assert {(record.ended, record.tokens.generated) for record in records.values()} == {("eos", 0)}


def test_texts_of_a_file_are_graded_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In any order, several to a problem, empty, beyond the token limit, or going on after a stop string."""
    texts = [
        {"id": 2, "text": "So 6.\n#### 6\n\nQuestion: 9+9?\n#### 18"},
        {"id": 0, "text": ""},
        {"id": "1", "text": "é" * 300 + " #### 4"},
        {"id": 0, "text": "#### 2"},
        {"id": 1, "text": "#### 5"},
        {"id": 2, "text": " #### 6 <|im_end|> #### 7"},
    ]
    data, file = write(tmp_path / "data.jsonl", DATA), write(tmp_path / "texts.jsonl", texts)
    assert replay(tmp_path / "run", data, file, "--num-samples", 2) == 0
    assert "replay of texts.jsonl" in capsys.readouterr().out
    records = first_records(tmp_path / "run/records.jsonl")
    assert {key: (record.text, record.ended, record.scores["numeric"].correct) for key, record in records.items()} == {
        (0, 0): ("", "eos", False),
        (0, 1): ("#### 2", "eos", True),
        (1, 0): ("é" * 300 + " #### 4", "eos", True),
        (1, 1): ("#### 5", "eos", False),
        (2, 0): ("So 6.\n#### 6\n\n", "stop", True),
        (2, 1): (" #### 6 ", "stop", True),
    }
    assert (records[1, 0].tokens.answer or 0) > 160, "longer than the demo's limit"
    unknown = summary(tmp_path / "run")
    assert {unknown[name] for name in ("truncated_rate", "right_if_truncated", "right_if_finished")} == {None}
    report = (tmp_path / "run/report.md").read_text()
    assert "tokens, seed" not in report, "no limit is said"
    assert "truncated" not in report
    assert summary(tmp_path / "run")["accuracy"]["numeric"]["mean"] == pytest.approx(2 / 3)
    same = write(tmp_path / "elsewhere.jsonl", sorted(texts, key=lambda row: int(row["id"])))
    log = (tmp_path / "run/records.jsonl").read_bytes()
    assert replay(tmp_path / "run", data, same, "--num-samples", 2) == 0, "what counts is the texts, not their file"
    assert (tmp_path / "run/records.jsonl").read_bytes() == log
    capsys.readouterr()
    other = write(tmp_path / "other.jsonl", [*texts[:-1], {"id": 2, "text": "7"}])
    assert replay(tmp_path / "run", data, other, "--num-samples", 2) == 2
    assert "The texts to replay for problem 2 are not those that the run in" in capsys.readouterr().err


def test_without_ids_the_texts_are_in_the_order_of_the_data(tmp_path: Path) -> None:
    data = write(tmp_path / "data.jsonl", DATA)
    texts = write(tmp_path / "texts.jsonl", [{"text": "#### 2"}, {"text": "#### 4"}, {"text": "#### 0"}])
    assert replay(tmp_path / "run", data, texts, "--limit", 2) == 0
    assert summary(tmp_path / "run")["accuracy"]["numeric"]["mean"] == 1


@pytest.mark.parametrize(
    ("rows", "flags", "words"),
    [
        ([{"text": "2"}], [], ["too few texts for 2 of 3 problems", "problem 1 (0 of 1)"]),
        ([{"text": "2"}] * 4, [], ["line 4", "row 3", "3 rows"]),
        ([{"id": 0, "text": "2"}] * 2, [], ["line 2", "text 2 for problem 0", "num_samples=1"]),
        ([{"id": True, "text": "2"}], [], ["line 1", "id is True: input should be"]),
        ([{"id": -1, "text": "2"}], [], ["line 1", "id is -1: string should match"]),
        ([{"id": "7" * 5000, "text": "2"}], [], ["line 1", "id is '7777", "should match"]),
        ([{"id": 1, "text": "2"}, {"text": "2"}], [], ["line 2", "no id", "give all rows an id"]),
        ([{"text": "2"}, {"id": 1, "text": "2"}], [], ["line 1", "no id", "give all rows an id"]),
        ([{"text": "2"}] * 3, ["--num-samples", "2"], ["line 1", "no id", "give all rows an id"]),
        ([{"id": 0, "answer": "2"}], [], ["line 1", "text: field required"]),
        (["2"], [], ["line 1", "'2': input should be an object"]),
        ([{"text": "2"}], ["--sampler.alpha", "2"], ["kind replay does not read alpha"]),
        ([{"text": "2"}], ["--sampler.kind", "greedy"], ["kind greedy does not read texts"]),
        ([{"text": "2"}], ["--sampler.texts", "absent"], ["absent cannot be read"]),
    ],
)
def test_what_is_wrong_is_one_sentence(
    rows: list[Any], flags: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = write(tmp_path / "data.jsonl", DATA), write(tmp_path / "texts.jsonl", rows)
    assert replay(tmp_path / "run", data, file, *flags) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 + err.count("is given twice; the last one counts.\n")
    assert all(word in err for word in words)
    assert not (tmp_path / "run").exists()


def test_replay_needs_texts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--model", "demo", "--data", "demo", "--sampler.kind", "replay"]) == 2
    assert "name by sampler.texts what replay grades" in capsys.readouterr().err


OHM = "The wire has 5 \u2126.\n#### 18"
ACCENT = "cafe\u0301\r\n #### 4 \ufb01n\x00"


def test_a_text_is_graded_as_it_was_given_whatever_the_tokenizer_makes_of_it(tmp_path: Path) -> None:
    """Signs that this tokenizer turns into others, in texts and in a stop string; the log is read again afterwards."""
    data = write(tmp_path / "data.jsonl", [{"question": "?", "answer": "#### 18"}, *DATA[1:]])
    texts = [{"text": OHM}, {"text": ACCENT}, {"text": "#### 6\u212b #### 7"}]
    file, run = write(tmp_path / "texts.jsonl", texts), tmp_path / "run"
    assert replay(run, data, file, "--task.stop", json.dumps(["\u212b"])) == 0
    found = {key: (one.text, one.ended, one.scores["numeric"].correct) for key, one in records(run).items()}
    assert found == {(0, 0): (OHM, "eos", True), (1, 0): (ACCENT, "eos", True), (2, 0): ("#### 6", "stop", True)}
    tokenizer = load_tokenizer(str(ROOT / "evals/demo/model"))
    assert tokenizer.decode(records(run)[0, 0].token_ids) == OHM.replace("\u2126", "\u03a9") + "<|endoftext|>"
    before = summary(run)["accuracy"]
    assert main(["regrade", str(run)]) == 0
    assert main(["report", str(run)]) == 0
    assert summary(run)["accuracy"] == before


def test_a_model_without_a_token_for_a_text_replays_it(tmp_path: Path) -> None:
    """Its tokenizer lowers all letters and knows neither digits nor lines."""
    model = shutil.copytree(ROOT / "evals/demo/model", tmp_path / "model")
    fast = Fast(models.WordLevel({"<unk>": 0, "so": 1, "question": 2}, unk_token="<unk>"))
    fast.normalizer, fast.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    fast.save(str(model / "tokenizer.json"))
    (model / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    data = write(tmp_path / "data.jsonl", DATA[:2])
    texts = write(
        tmp_path / "texts.jsonl", [{"text": "So it is\n#### 2"}, {"text": "SO #### 4\n\nQuestion: 1?\n#### 1"}]
    )
    assert replay(tmp_path / "run", data, texts, "--model", model) == 0
    found = records(tmp_path / "run")
    assert [found[row, 0].text for row in (0, 1)] == ["So it is\n#### 2", "SO #### 4\n\n"]
    assert summary(tmp_path / "run")["accuracy"]["strict"]["mean"] == 1


@pytest.mark.parametrize(
    ("text", "kept", "tokens", "ended"),
    [
        ("ab", "ab", "ab.", "eos"),
        ("", "", ".", "eos"),
        ("a.b", "a", "a.", "eos"),
        ("aSb", "a", "aS", "stop"),
        ("S", "", "S", "stop"),
        ("a.S", "a", "a.", "eos"),
    ],
)
def test_an_answer_ends_as_a_model_would_end_it(text: str, kept: str, tokens: str, ended: str) -> None:
    tokenizer: Any = SimpleNamespace(
        eos_ids=frozenset({ord(".")}), eos_texts=(".",), encode=lambda text, whole: list(map(ord, text))
    )
    given = replayed_answer(Answer(text), make_task(TaskConfig(stop=("T", "S")), 0), tokenizer)
    assert given == (kept, tuple(map(ord, tokens)), ended)
    prompt = Prompt((1,), 1, frozenset(), None)
    with pytest.raises(StopIteration) as over:
        next(Replay("gold").chain(prompt, RandomKey(0, 3, 1), SamplingContext(given=(given.tokens, given.ended))))
    assert (over.value.value.tokens, over.value.value.ended) == (given.tokens, given.ended)


def test_without_an_eos_token_a_text_ends_where_it_ends() -> None:
    tokenizer: Any = SimpleNamespace(eos_ids=frozenset(), eos_texts=(), encode=lambda text, whole: [len(text)])
    task = make_task(TaskConfig(), 0)
    assert replayed_answer(Answer("ab"), task, tokenizer) == ("ab", (2,), "eos")
    assert replayed_answer(Answer("ab", cut_off=True), task, tokenizer) == ("ab", (2,), "length")
