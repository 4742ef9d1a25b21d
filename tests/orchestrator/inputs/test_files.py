"""Data in the shapes that people have: the same rows are the same problems, and what cannot be read is told apart."""

from __future__ import annotations

import csv
import gzip
import io
import json
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from evals.config import TaskConfig
from evals.types import Problem, UserError
from orchestrator.inputs.files import read_lines
from orchestrator.inputs.problems import data_digest, load_problems
from support.command import DEMO, in_process

Rows = Sequence[dict[str, Any]]
ROWS = [json.loads(line) for line in (DEMO / "problems.jsonl").read_text().splitlines()[:3]]
TRICKY = [
    {"question": 'A "quoted", text;\nwith a second line\tand é', "answer": "007", "group": "a"},
    {"question": " NA ", "answer": "1,000", "group": "b"},
    {"question": "None", "answer": "NA", "group": "b"},
]
TEXTS = TaskConfig(preset="jsonl", template="{question}")
GENERATE = TaskConfig(preset="generate")


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def table(rows: Rows, delimiter: str = ",") -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def as_parquet(rows: Rows) -> bytes:
    buffer = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(list(rows)), buffer)
    return buffer.getvalue()


def conversations(rows: Rows) -> list[dict[str, Any]]:
    turns = (("user", "question"), ("assistant", "answer"))
    return [{"messages": [{"role": role, "content": row[key]} for role, key in turns]} for row in rows]


SHAPES: dict[str, Callable[[Rows], bytes]] = {
    "rows.jsonl": jsonl,
    "rows.json": lambda rows: json.dumps(rows, indent=1).encode(),
    "line.json": lambda rows: json.dumps(rows, ensure_ascii=False).encode("utf-8-sig"),
    "rows.csv": table,
    "excel.csv": lambda rows: b"\xef\xbb\xbf" + table(rows, ";"),
    "rows.tsv": lambda rows: table(rows, "\t"),
    "rows.parquet": as_parquet,
    "parquet.jsonl": as_parquet,
    "rows.jsonl.gz": lambda rows: gzip.compress(jsonl(rows)),
    "rows.json.gz": lambda rows: gzip.compress(json.dumps(rows).encode()),
    "rows.csv.gz": lambda rows: gzip.compress(table(rows)),
    "gzip.jsonl": lambda rows: gzip.compress(jsonl(rows)),
    "chat.jsonl": lambda rows: jsonl(conversations(rows)),
    "chat.parquet": lambda rows: as_parquet(conversations(rows)),
}
"""Name of a file -> what it holds of rows."""


def stored(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def answers(run: Path) -> list[tuple[int, list[int]]]:
    records = map(json.loads, (run / "records.jsonl").read_text().splitlines())
    return sorted((record["problem_id"], record["token_ids"]) for record in records)


def test_the_same_rows_in_any_shape_are_one_run(tmp_path: Path) -> None:
    """One digest, one fingerprint and one set of answers, by the command line."""
    runs = {}
    for name, content in SHAPES.items():
        run = tmp_path / f"{name}.run"
        flags = ("--model", "demo", "--data", stored(tmp_path / name, content(ROWS)), "--run-dir", run)
        short = ("--sampler.kind", "greedy", "--num-gpus", 0, "--inline", "--task.max-new-tokens", 8)
        assert in_process("run", *flags, *short) == 0
        kept = json.loads((run / "run.json").read_text())
        data = kept["provenance"]["data"]
        runs[name] = (kept["fingerprint"], data["sha256"], data["rows"], answers(run))
    assert runs["rows.jsonl"][2] == len(runs["rows.jsonl"][3]) == 3
    assert {name: run for name, run in runs.items() if run != runs["rows.jsonl"]} == {}


@pytest.mark.parametrize("name", [name for name in SHAPES if "chat" not in name])
def test_every_text_arrives_as_the_file_has_it(name: str, tmp_path: Path) -> None:
    loaded = load_problems(stored(tmp_path / name, SHAPES[name](TRICKY)), task=TEXTS)
    assert loaded.problems == [
        Problem.from_answer(number, row["question"], row["answer"], row["group"]) for number, row in enumerate(TRICKY)
    ]
    assert loaded.digest == data_digest(loaded.problems)
    assert load_problems(str(tmp_path / name), limit=1, task=TEXTS).digest == loaded.digest


def test_no_file_needs_the_library_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    digests = {load_problems(stored(tmp_path / name, content(ROWS))).digest for name, content in SHAPES.items()}
    assert len(digests) == 1


def test_parquet_without_its_library_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"is Parquet, and pyarrow is not installed; pip install pyarrow"):
        load_problems(stored(tmp_path / "rows.parquet", as_parquet(ROWS)))


def test_numbers_as_answers_are_what_a_person_writes(tmp_path: Path) -> None:
    """Whole ones without a point: a column with a gap is one of floats. By GSM8K's preset, too, as bare golds."""
    given = [18, 18.0, -7, 2.5, 1e22, 1e-7, 10**30]
    written = ["18", "18", "-7", "2.5", "1" + "0" * 22, "0.0000001", "1" + "0" * 30]
    rows, texts = ([{"question": "?", "answer": one} for one in column] for column in (given, written))
    expected = load_problems(stored(tmp_path / "texts.jsonl", jsonl(texts)))
    assert [problem.gold for problem in expected.problems] == written
    for name in ("numbers.jsonl", "numbers.json"):
        content = jsonl(rows) if name.endswith("l") else json.dumps(rows).encode()
        assert load_problems(stored(tmp_path / name, content)).problems == expected.problems
    for column in ([18, -7], [18.0, -7.0]):
        content = as_parquet([{"question": "?", "answer": one} for one in column])
        loaded = load_problems(stored(tmp_path / "numbers.parquet", content))
        assert [problem.gold for problem in loaded.problems] == ["18", "-7"]
    gap = as_parquet([{"question": "?", "answer": 18.0}, {"question": "?", "answer": None}])
    with pytest.raises(UserError, match=r"gap\.parquet, row 1: answer is None: input should be a valid string"):
        load_problems(stored(tmp_path / "gap.parquet", gap))


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{role} {number} #### 4"} for number, role in enumerate(roles)]


CHAT = TaskConfig(chat=True)


def test_a_conversation_ends_before_its_last_answer(tmp_path: Path) -> None:
    long = turns("system", "user", "assistant", "user", "assistant")
    rows = [
        {"messages": long},
        {"messages": long, "answer": 5},
        {"messages": long[:-1], "answer": "#### 6"},
        {"question": "Mine?", "answer": "#### 7", "messages": "anything"},
        {"question": long[3:], "id": 1},
        {"question": None, "messages": [{**turn, "tool_calls": None} for turn in long[3:]]},
    ]
    loaded = load_problems(stored(tmp_path / "d.jsonl", jsonl(rows)), task=CHAT).problems
    questions = [*["user 3 #### 4"] * 3, "Mine?", *["user 3 #### 4"] * 2]
    assert [(one.question, one.gold) for one in loaded] == [
        *zip(questions, ["4", "5", "6", "7", "4", "4"], strict=True)
    ]
    assert [one.turns for one in loaded] == [*[tuple(long[:3])] * 3, (), (), ()]
    bare = [one._replace(turns=()) for one in loaded]
    assert data_digest(loaded) != data_digest(bare), "what stands before a question is of the data"


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"messages": turns("system", "user", "assistant")},
            r"turns stand before the question, and only a chat holds them; ask in one \(task\.chat\)\.$",
        ),
        ({"messages": turns("user")}, "its conversation ends with no answer, and it has none beside"),
        ({"messages": turns("system", "assistant")}, "should end with a question of the user and its answer"),
        ({"messages": []}, "no answer, and it has none beside"),
        ({"messages": [{"from": "human", "value": "?"}]}, r"messages\.0\.role: field required \(found: from, value\)"),
        ({"messages": [{"role": "tool", "content": "?"}]}, r"messages\.0\.role is 'tool': input should be 'system'"),
        ({"messages": [{"role": "user", "content": [{"text": "?"}]}]}, r"messages\.0\.content is .* valid string"),
        ({"messages": "text"}, r": field required \(found: messages\)"),
    ],
)
def test_a_conversation_that_is_no_problem_is_told_why(row: Any, words: str, tmp_path: Path) -> None:
    data = stored(tmp_path / "d.jsonl", jsonl([row]))
    with pytest.raises(UserError, match=rf"d\.jsonl, line 1: .*{words}"):
        load_problems(data)
    with pytest.raises(UserError, match=words):
        load_problems(data, task=GENERATE if "no answer" not in words else TEXTS)


def test_a_chat_is_asked_with_its_turns(tmp_path: Path) -> None:
    model = shutil.copytree(DEMO / "model", tmp_path / "model")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": template}))
    data = stored(tmp_path / "d.jsonl", jsonl([{"messages": turns("system", "user", "assistant")}]))
    plain = stored(tmp_path / "p.jsonl", jsonl([{"messages": turns("system", "user", "assistant")[1:]}]))
    tokens = []
    for path in (data, plain):
        run = Path(f"{path}.run")
        flags = ("--model", model, "--data", path, "--sampler.kind", "greedy", "--num-gpus", 0, "--inline")
        assert in_process("run", *flags, "--task.chat", "--task.max-new-tokens", 4, "--run-dir", run) == 0
        tokens.append(json.loads((run / "records.jsonl").read_text())["tokens"]["prompt"])
    assert "[system]\\nsystem 0 #### 4\\n\\n[user]\\nQuestion: user 1" in Path(f"{data}.run/report.html").read_text()
    assert tokens[0] > tokens[1], "the model was given them"


def test_conversations_are_no_solved_examples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = stored(tmp_path / "d.jsonl", jsonl([{"messages": turns("system", "user", "assistant")}]))
    flags = ("run", "--model", "demo", "--data", data, "--num-gpus", 0, "--inline", "--task.chat")
    assert in_process(*flags, "--task.num-shots", 1, "--task.train-data", data, "--run-dir", tmp_path / "run") == 2
    assert f"Row 0 of {data} has turns before its question, and a solved example has" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_generate_score_and_replay_take_the_same_shapes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"messages": turns("user", "assistant"), "id": "a"}, {"messages": turns("user"), "id": "b"}]
    source, out = stored(tmp_path / "in.parquet", as_parquet(asked)), tmp_path / "out.jsonl"
    flags = ("--model_path", "demo", "--input_file", source, "--output_file", out, "--num-gpus", 0, "--inline")
    assert in_process("generate", *flags, "--max_new_tokens", 4) == 0
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["input"] for line in written] == ["user 0 #### 4"] * 2
    assert [line["metadata"]["original_output"] for line in written] == ["assistant 1 #### 4", None]
    assert [line["metadata"]["other_fields"] for line in written] == asked
    assert in_process("validate", out, "--input", source) == 0
    texts = [{"id": "0", "text": "So 18."}, {"id": "1", "text": ""}, {"id": "2", "text": "#### 7"}]
    rows = [{**row, "gold": gold} for row, gold in zip(texts, ("18", "7", "7"), strict=True)]
    capsys.readouterr()
    for name in ("rows.jsonl", "rows.csv.gz", "rows.parquet"):
        assert in_process("score", stored(tmp_path / name, SHAPES[name](rows))) == 0
        verdicts = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [verdict["numeric"] for verdict in verdicts] == [True, False, True]
    data = stored(tmp_path / "data.jsonl", jsonl(ROWS))
    flags = ("--model", "demo", "--data", data, "--sampler.kind", "replay", "--num-gpus", 0, "--inline")
    given = stored(tmp_path / "texts.csv", table(texts))
    assert in_process("run", *flags, "--sampler.texts", given, "--run-dir", tmp_path / "run") == 0
    records = map(json.loads, (tmp_path / "run/records.jsonl").read_text().splitlines())
    assert {record["problem_id"]: record["text"] for record in records} == {0: "So 18.", 1: "", 2: "#### 7"}


def zipped(*names: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "content " * 40)
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("rows.jsonl"))
    return buffer.getvalue()


UTF_16 = "text in UTF-16; write it in UTF-8, by `iconv -f UTF-16 -t UTF-8 FILE > NEW`"
AGAIN = "; download or write it again"
KINDS: dict[str, tuple[bytes, str]] = {
    "cut.jsonl": (as_parquet(ROWS)[:-9], f"a Parquet file that is cut off{AGAIN}"),
    "bad.parquet": (b"PAR1 nothing PAR1", "a Parquet file that pyarrow cannot read ("),
    "cut.json": (b'[\n {"question": "q"},\n {"que', "a JSON array that is cut off or broken (EOF while parsing"),
    "object.json": (
        b'{\n "data": []\n}',
        "one JSON object on several lines; write every row on a line of its own, by `jq",
    ),
    "cut.jsonl.gz": (gzip.compress(jsonl(ROWS))[:-9], "a gzip file that is cut off (Compressed file ended"),
    "bad.jsonl.gz": (gzip.compress(jsonl(ROWS))[:-4] + b"size", "a gzip file that is damaged ("),
    "twice.gz": (gzip.compress(gzip.compress(b"")), "gzip of compressed by gzip twice; unpack it (gunzip)"),
    "data.tar.gz": (gzip.compress(tarred()), "gzip of a tar archive; unpack it (tar xf), and name a file in it"),
    "book.jsonl": (
        zipped("[Content_Types].xml", "xl/workbook.xml"),
        "an Excel workbook; save its sheet as CSV (UTF-8)",
    ),
    "book.csv.gz": (
        gzip.compress(zipped("xl/workbook.xml")),
        "gzip of an Excel workbook; save its sheet as CSV (UTF-8)",
    ),
    "old.xls": (
        b"\xd0\xcf\x11\xe0\xa1\xb1",
        "an old Excel workbook (xls) or another document of Office; save its sheet",
    ),
    "table.ods": (zipped("mimetype", "content.xml"), "a document of LibreOffice; save its sheet as CSV"),
    "data.zip": (
        zipped("a", "b", "c", "d"),
        "a PK zip archive of a, b, c and 1 more; unpack it (unzip), and name the fil",
    ),
    "cut.zip": (zipped("a")[:90], f"a PK zip archive that is cut off or damaged{AGAIN}"),
    "data.zst": (b"\x28\xb5\x2f\xfd ", "compressed by zstd; unpack it (unzstd)"),
    "data.bz2": (b"BZh9", "compressed by bzip2; unpack it (bunzip2)"),
    "data.xz": (b"\xfd7zXZ\0", "compressed by xz; unpack it (unxz)"),
    "data.arrow": (b"ARROW1\0\0", "an Arrow file; write it as Parquet, by Python's `datasets` or `pyarrow`"),
    "data.db": (b"SQLite format 3\0", "an SQLite database; write its rows as CSV, by `sqlite3 -csv -header FILE"),
    "data.pkl": (b"\x80\x05\x95", "a Python pickle; write its rows as lines of JSON"),
    "pointer.parquet": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "a pointer of Git LFS, not the file itself; fetch it (git lfs pull)",
    ),
    "page.parquet": (
        b"\n<!doctype html>\n<html>",
        "a web page or XML; download the file itself; of a file on the Hugging Face hub the link has /resolve/ in it",
    ),
    "page.csv": (b"<HTML>", "a web page or XML; "),
    "wide.jsonl": (jsonl(ROWS).decode().encode("utf-16"), UTF_16),
    "wide.json": (json.dumps(ROWS).encode("utf-16-le"), UTF_16),
    "wide.csv": (table(ROWS).decode().encode("utf-16-be"), UTF_16),
    "latin.csv": (
        "question,answer\nq,1\né,2\n".encode("latin-1"),
        "a table in another encoding than UTF-8 (line 3: byte 0xe9); write it in UTF-8, by `iconv -f CP1252",
    ),
    "table.jsonl": (table(ROWS), "a table or another text, without one row in JSON; let a table's name end in .csv or"),
    "ragged.csv": (
        b'question,answer\n"one\ntwo",1\nthree, four,2\n',
        "a table with 2 columns and 3 cells in the row on line 4; put quotes around a cell with ',' in it",
    ),
    "open.csv": (b'question,answer\n"one,1\n', "a table that is broken in the row on line 2 (unexpected end of data)"),
    "twice.csv": (b"answer,question,answer\n1,q,2\n", "a table with two columns 'answer'; rename one of them"),
}
"""File -> its content, and what is said of it."""


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_another_kind_is_told_what_it_is(name: str, tmp_path: Path) -> None:
    content, words = KINDS[name]
    path = stored(tmp_path / name, content)
    for task in (TaskConfig(), GENERATE):
        with pytest.raises(UserError) as refused:
            load_problems(path, task=task)
        assert str(refused.value).startswith(f"The data file {path} is {words}")
        assert str(refused.value).endswith(" (data).")
        assert "\n" not in str(refused.value)


def test_a_refused_file_ends_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = stored(tmp_path / "book.csv", zipped("xl/workbook.xml"))
    assert in_process("run", "--model", "demo", "--data", path, "--run-dir", tmp_path / "run") == 2
    assert (
        f"The data file {path} is an Excel workbook; save its sheet as CSV (UTF-8) (--data or "
        in capsys.readouterr().err
    )
    assert in_process("score", path) == 2
    assert "is an Excel workbook; save its sheet as CSV" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["empty.csv", "empty.json", "empty.jsonl.gz", "empty.parquet"])
def test_no_rows_are_no_problems_in_any_shape(name: str, tmp_path: Path) -> None:
    nothing = pyarrow.table({"question": pyarrow.array([], pyarrow.string())})
    buffer = io.BytesIO()
    parquet.write_table(nothing, buffer)
    contents = {"empty.csv": b"question,answer\n", "empty.json": b"[]", "empty.jsonl.gz": gzip.compress(b"\n")}
    path = stored(tmp_path / name, contents.get(name, buffer.getvalue()))
    with pytest.raises(UserError, match=rf"The data file {path} has no problems in it; name a file of rows \(JSONL, "):
        load_problems(path)


def test_places_and_columns_are_those_of_the_file(tmp_path: Path) -> None:
    rows = [{"prompt": "a\nb", "target": "1"}, {"prompt": "c", "target": ""}]
    for name, first in (("rows.csv", "line 2"), ("rows.json", "row 0"), ("rows.parquet", "row 0")):
        path = stored(tmp_path / name, SHAPES[name](rows))
        with pytest.raises(
            UserError, match=rf"{path}, {first}: question: field required \(found: prompt, target\); .* \(task.qu"
        ):
            load_problems(path)
    assert [where for where, _ in read_lines(tmp_path / "rows.csv", "")] == [
        f"{tmp_path}/rows.csv, line {line}" for line in (2, 4)
    ]
    with pytest.raises(UserError, match=r"rows\.csv, line 4: target is '': there should be a text"):
        load_problems(str(tmp_path / "rows.csv"), task=TaskConfig(question_key="prompt", answer_key="target"))


def test_columns_of_other_types_are_no_obstacle(tmp_path: Path) -> None:
    """Dates and bytes beside the question, and texts that their writer marked as bytes."""
    from datetime import date
    from decimal import Decimal

    rows = [{"question": b"Caf\xc3\xa9?", "answer": Decimal("18.50"), "day": date(2026, 12, 1), "image": b"\xff\xd8"}]
    loaded = load_problems(stored(tmp_path / "rows.parquet", as_parquet(rows)))
    assert loaded.problems == [Problem.from_answer(0, "Café?", "18.50")]


def test_an_empty_cell_is_no_group(tmp_path: Path) -> None:
    rows = [{**row, "group": group} for row, group in zip(TRICKY, ("", "", "x"), strict=True)]
    loaded = load_problems(stored(tmp_path / "rows.csv", table(rows)), task=TEXTS)
    assert [problem.group for problem in loaded.problems] == [None, None, "x"]
