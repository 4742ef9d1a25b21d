"""`powersample generate` of a batch of OpenAI's: its lines in and out, what bodies set, what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evals.record import AnsweredBy, Record, Timings, TokenCounts
from evals.types import UserError
from orchestrator import cli
from orchestrator.driver import session
from orchestrator.machine import gpus
from orchestrator.workers.pool import Work
from support.command import DEMO, in_process
from support.fake_worker import FakeWorker, install
from support.logs import read_records

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
QUESTION = "Question: Tom has 3 apples and buys 4. How many has he?\nAnswer:"


def asking(custom_id: str, url: str = CHAT, **body: Any) -> dict[str, Any]:
    usual = {"messages": [{"role": "user", "content": f"{custom_id}?"}]} if url == CHAT else {"prompt": QUESTION}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": {"model": "gpt", **usual, **body}}


def jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def written(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


class Answering(FakeWorker):
    """Answers the samples of a row by their numbers; the second row's second sample raises."""

    output = Path()
    seen: list[int]

    def __init__(self, rank: int, name: str) -> None:
        Answering.seen = []

    def answer(self, work: Work) -> Record | Exception:
        i, k = work.key
        Answering.seen.append(len(self.output.read_bytes().splitlines()))
        if (i, k) == (1, 1):
            return ValueError("cannot")
        ended = "length" if k else "eos"
        counts, timings = TokenCounts(prompt=5, answer=2 + k), Timings(end=1000.5 + i)
        return Record(i, k, "ok", f"é {i} {k}", [1], ended, tokens=counts, timings=timings, worker=AnsweredBy(rank=0))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`powersample generate` in `tmp_path` with a fake worker and preflight, one answer at a time."""
    model = install(Answering, tmp_path, monkeypatch)
    monkeypatch.setattr(gpus, "visible_gpus", list)
    monkeypatch.setattr(Answering, "output", tmp_path / "out.jsonl")

    def start(rows: list[Any], *flags: object) -> int:
        files = ["--model", model, "--data", jsonl(tmp_path / "in.jsonl", rows)]
        every = ["generate", *files, "--output_file", tmp_path / "out.jsonl", "--inline", "--batch_size", 1, *flags]
        return cli.call_command(list(map(str, every)))

    return start


def test_a_batch_in_is_a_batch_out(run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [asking(name, n=2, max_completion_tokens=9, tools=[], stream=False, user="me") for name in ("b", "a", "c")]
    rows[2]["body"]["messages"].insert(0, {"role": "system", "content": "Be brief."})
    assert run(rows) == session.FAILED
    lines, out = written(tmp_path / "out.jsonl"), (tmp_path / "out.jsonl").read_bytes()
    assert [line["custom_id"] for line in lines] == ["b", "a", "c"], "as in the input"
    assert Answering.seen[:3] == [0, 0, 1], "a line is there once all choices are"
    body = lines[2]["response"].pop("body")
    assert (lines[2]["response"]["status_code"], lines[2]["error"]) == (200, None)
    assert (body["object"], body["created"], body["model"]) == ("chat.completion", 1002, str(tmp_path / "model"))
    assert [(one["index"], one["message"], one["finish_reason"]) for one in body["choices"]] == [
        (0, {"role": "assistant", "content": "é 2 0"}, "stop"),
        (1, {"role": "assistant", "content": "é 2 1"}, "length"),
    ]
    assert body["usage"] == {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
    assert lines[1]["response"] is None
    assert lines[1]["error"]["code"] == "failed"
    assert "ValueError: cannot" in lines[1]["error"]["message"]
    ids = [line["id"] for line in lines]
    assert len(set(ids)) == 3
    assert all(name.startswith("batch_req_") for name in ids)
    said = capsys.readouterr()
    taken = "task.chat true, task.max_new_tokens 9, num_samples 2."
    assert f"Taken from the bodies of {tmp_path / 'in.jsonl'}: {taken}" in said.err
    not_taken = f"Not taken, as this run is temperature 0.7, top_p 0.9 of {tmp_path / 'model'}, from the bodies of "
    assert f'{not_taken}{tmp_path / "in.jsonl"}: model "gpt".\n' in said.err
    assert "Failed: row 1: " in said.out
    (tmp_path / "out.jsonl").unlink()
    assert run(rows) == session.FAILED
    assert (tmp_path / "out.jsonl").read_bytes() == out, "the same bytes"
    with pytest.raises(UserError, match=r"out.jsonl is of a batch: the `powersample generate` that wrote it writes"):
        cli.call_command(["validate", str(tmp_path / "out.jsonl"), "--input", str(tmp_path / "in.jsonl")])


def test_what_an_option_sets_counts_for_all_rows(
    run: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [asking("a", COMPLETIONS, max_tokens=9, seed=3), asking("b", COMPLETIONS, max_tokens=8, temperature=0.5)]
    with pytest.raises(UserError, match=r"ask for task.max_new_tokens 8 and 9, and a run has one .*\(--max_new_toke"):
        run(rows)
    assert run(rows, "--max_new_tokens", 7, "--seed", 1) == 0
    said = ': task.max_new_tokens 8 and 9, seed 3, model "gpt", sampler.temperature 0.5.'
    assert said in capsys.readouterr().err
    config = json.loads((tmp_path / "out.jsonl.run/run.json").read_text())["config"]
    assert (config["task"]["max_new_tokens"], config["task"]["chat"], config["seed"]) == (7, False, 1)
    assert written(tmp_path / "out.jsonl")[1]["response"]["body"]["choices"][0]["text"] == "é 1 0"


SYSTEM = {"role": "system", "content": "Be brief."}
REFUSED = {
    r"line 2: body.tools is \[\{'type'.*: generate cannot do that; leave it out": asking("b", tools=[{"type": "f"}]),
    "line 2: body.response_format is": asking("b", response_format={"type": "json_object"}),
    "line 2: body.logit_bias is": asking("b", logit_bias={"5": 1}),
    "line 2: body.presence_penalty is 0.5": asking("b", presence_penalty=0.5),
    "line 2: body.stream is True": asking("b", stream=True),
    "line 2: body.max_tokens is 0": asking("b", max_tokens=0),
    "line 2: url is '/v1/embeddings'": asking("b", "/v1/embeddings"),
    "line 2: .*should have a prompt, or messages that end with the user's": asking("b", messages=[SYSTEM]),
    "line 2: .*should have a prompt, or": asking("b", COMPLETIONS, prompt=" "),
    "line 2: the custom_id 'a' is that of .*line 1, too": asking("a"),
    "line 2: custom_id: field required": {"input": "b?"},
    "line 2: body.messages.0.tool_calls is": asking(
        "b", messages=[{"role": "user", "content": "?", "tool_calls": [{"id": "x"}]}]
    ),
    "ask for num_samples 2 and null, and a run has one for all; split the file[.]$": asking("b", n=2),
    "ask for task.chat false and true, .*task.chat": asking("b", COMPLETIONS),
    "line 2: turns stand before the question, and only a chat holds them; ask in one": [
        asking("b", messages=[SYSTEM, {"role": "user", "content": "?"}]), "--no-task.chat",
    ],
}  # fmt: skip


@pytest.mark.parametrize("words", REFUSED)
def test_what_cannot_be_done_is_refused_before_anything_is_written(
    words: str, run: Callable[..., int], tmp_path: Path
) -> None:
    row, *flags = REFUSED[words] if isinstance(REFUSED[words], list) else [REFUSED[words]]
    with pytest.raises(UserError, match=words):
        run([asking("a"), row], *flags)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.jsonl", "model"]


def test_the_embedded_model_is_asked_as_by_rows_of_generate(tmp_path: Path) -> None:
    model = shutil.copytree(DEMO / "model", tmp_path / "model")
    config = json.loads((model / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps(config | {"chat_template": template}))
    turns = [{"role": "system", "content": "Question: "}, {"role": "user", "content": QUESTION[10:]}]
    files = {
        "plain": [{"prompt": QUESTION}],
        "completions": [asking("a", COMPLETIONS, max_tokens=24, stop=["\n"], n=2)],
        "chat": [asking("a", messages=turns, max_completion_tokens=24, stop="\n", n=2)],
    }
    for name, rows in files.items():
        path, out = jsonl(tmp_path / f"{name}.jsonl", rows), tmp_path / f"{name}.out"
        flags = ["--max_new_tokens", 24, "--task.stop", "\n"] if name == "plain" else []
        options = ["--model", model, "--num-gpus", 0, "--inline", "--alpha", 2, "--num_moves", 2, *flags]
        assert in_process("generate", "--input_file", path, "--output_file", out, *options) == 0
    (plain,), records = written(tmp_path / "plain.out"), read_records(tmp_path / "chat.out.run/records.jsonl")
    for name in ("completions", "chat"):
        (line,) = written(tmp_path / f"{name}.out")
        first, second = line["response"]["body"]["choices"]
        assert (first["text"] if name == "completions" else first["message"]["content"]) == plain["output"]
        assert (first["index"], second["index"]) == (0, 1)
        usage = line["response"]["body"]["usage"]
        assert usage["completion_tokens"] == sum(len(record.token_ids) for record in records)
        assert usage["prompt_tokens"] == records[0].tokens.prompt
