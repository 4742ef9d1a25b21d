"""The run directory: durable, exactly once, one writer, and never mixed up with another run."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evals.record import AnsweredBy, Record, Timings, TokenCounts, encode, read_line
from evals.samplers.trace import MoveFigures
from evals.types import Grade, MemoryReading, Problem, UserError
from orchestrator.rundir.directory import RECORDS, RUN, TELEMETRY
from orchestrator.rundir.files import write_atomically
from orchestrator.rundir.reading.records import answered_records
from orchestrator.rundir.writing.run_store import RunStore, check_store, fresh_directory, open_store
from support.logs import read_records

FINGERPRINT = "0123456789abcdef"
CONTENT: dict[str, Any] = {"fingerprint": FINGERPRINT}


def record(problem_id: int, sample_index: int = 0, text: str = "#### 4 — ünïcode\u2028") -> Record:
    return Record(
        problem_id=problem_id,
        sample_index=sample_index,
        status="ok",
        text=text,
        token_ids=[1, 2],
        ended="eos",
        scores={"numeric": Grade(True, "4")},
        chain=MoveFigures(moves=10),
        timings=Timings(1.5, 2.25),
        memory=MemoryReading(1),
        tokens=TokenCounts(3, 2, 2, 3),
        worker=AnsweredBy(0),
    )


def problems(number: int) -> list[Problem]:
    return [Problem(i, "q", "#### 4") for i in range(number)]


def opened(directory: Path, run: dict[str, Any] | None = None) -> closing[RunStore]:
    return closing(open_store(directory, CONTENT | (run or {"config": {}})))


def filled(directory: Path, number: int, run: dict[str, Any] | None = None) -> Path:
    with opened(directory, run) as store:
        assert all(store.append(record(i)) for i in range(number))
    return directory


def test_records_survive_and_the_first_of_a_key_wins(tmp_path: Path) -> None:
    log = filled(tmp_path / "a" / "run", 3) / RECORDS
    log.write_bytes(log.read_bytes() + encode(record(0, text="late")))
    with opened(log.parent) as store:
        assert not store.append(record(1, text="second"))
        assert store.append(record(1, sample_index=1))
        assert list(store.records) == [(0, 0), (1, 0), (2, 0), (1, 1)]
        assert store.records[1, 0] == record(1)
        assert store.records[0, 0] == record(0)
        assert [(p.problem_id, i) for p, i in store.owed(problems(4), 2)] == [(0, 1), (2, 1), (3, 0), (3, 1)]
    assert len(read_records(log)) == 5


@pytest.mark.parametrize("kept", [1, 40, -2, -1])
def test_a_torn_tail_is_cut_and_owed_again(tmp_path: Path, kept: int) -> None:
    log = filled(tmp_path, 3) / RECORDS
    whole = log.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    log.write_bytes(whole[:start] + whole[start:][:kept])
    with opened(tmp_path) as store:
        assert store.cut_bytes == len(whole[start:][:kept])
        assert [p.problem_id for p, _ in store.owed(problems(3), 1)] == [2]
        assert store.append(record(2))
    assert log.read_bytes() == whole


def test_an_empty_line_is_damaged_also_where_it_is_the_only_one(tmp_path: Path) -> None:
    log = filled(tmp_path, 0) / RECORDS
    log.write_bytes(b"\n")
    with pytest.raises(UserError, match=r"records\.jsonl, line 1: not a record"):
        open_store(tmp_path, CONTENT)


@pytest.mark.parametrize("line", [b"{broken", b"[1]", b'{"problem_id": 1}', b"", b"\xff"])
def test_a_damaged_line_is_named(tmp_path: Path, line: bytes) -> None:
    log = filled(tmp_path, 2) / RECORDS
    lines = log.read_bytes().split(b"\n")
    log.write_bytes(b"\n".join([lines[0], line, lines[1], b""]))
    with pytest.raises(UserError, match=r"records\.jsonl, line 2: not a record"):
        open_store(tmp_path, CONTENT)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"problem_id": 20}, "problem_id is 20, but the run has 0 to 19"),
        ({"problem_id": -1}, "problem_id is -1"),
        ({"problem_id": True}, "problem_id is True"),
        ({"sample_index": 1}, "sample_index is 1, but the run has 0 to 0"),
        ({"status": "odd"}, "status is 'odd'"),
        ({"token_ids": [-5]}, "token_ids.0 is -5"),
        ({"token_ids": [5, "a"]}, "token_ids.1 is 'a'"),
        ({"token_ids": [2**31]}, "token_ids.0 is 2147483648"),
        ({"scores": {"numeric": {"correct": "false"}}}, "scores.numeric.correct is 'false'"),
        ({"chain": {"moves": "x"}}, "chain.moves is 'x'"),
        ({"chain": {"log_p": "x"}}, "chain.log_p is 'x'"),
        ({"chain": {"expected_correct": {"numeric": -100}}}, "chain.expected_correct.numeric is -100"),
        ({"timings": {"start": ""}}, "timings.start is ''"),
        ({"tokens": {"prefilled": []}}, "tokens.prefilled is"),
        ({"memory": {"peak_rss_bytes": "x"}}, "memory.peak_rss_bytes is 'x'"),
        ({"group": []}, "group is"),
    ],
)
def test_a_record_that_cannot_be_of_the_run_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    run = {"num_problems": 20, "config": {"num_samples": 1}}
    filled(tmp_path, 2, run)
    with (tmp_path / RECORDS).open("ab") as log:
        log.write(json.dumps(json.loads(encode(record(1))) | changes).encode() + b"\n")
    for use in (lambda: check_store(tmp_path, CONTENT | run), lambda: answered_records(tmp_path)):
        with pytest.raises(UserError, match=rf"records\.jsonl, line 3: not a record \({words}"):
            use()


def test_a_figure_of_a_chain_beyond_all_floats_is_damage(tmp_path: Path) -> None:
    log = filled(tmp_path, 0) / RECORDS
    log.write_bytes(
        encode(replace(record(0), chain=MoveFigures(moves=1, log_p=-12345.0))).replace(b"-12345.0", b"-1e999")
    )
    with pytest.raises(UserError, match=r"records\.jsonl, line 1: not a record \(chain\.log_p is -inf"):
        answered_records(tmp_path)


def test_one_writer_at_a_time_whose_children_do_not_hold_the_lock(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for use in (open_store, check_store):
            with pytest.raises(UserError, match=f"being written by process {os.getpid()} on "):
                use(tmp_path, CONTENT)
        assert not os.get_inheritable(store._lock)
        assert not os.get_inheritable(store._log)
    open_store(tmp_path, CONTENT).close()


def test_another_fingerprint_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    filled(tmp_path, 1, {"config": {"seed": 0, "sampler": {"alpha": 4.0}}})
    before = (tmp_path / RUN).read_bytes()
    with pytest.raises(UserError) as caught:
        open_store(tmp_path, {"config": {"seed": 0, "sampler": {"alpha": 2.0}}, "fingerprint": "f" * 16})
    message = str(caught.value)
    assert "sampler.alpha: 4.0 there, 2.0 now" in message
    assert message.endswith("or start over in a new one (run_dir, fresh).")
    assert "seed" not in message
    assert (tmp_path / RUN).read_bytes() == before


@pytest.mark.parametrize("log", [None, b"", b'{"problem_id": 1, "sam'])
def test_a_run_without_one_answer_is_nobodys(tmp_path: Path, log: bytes | None) -> None:
    open_store(tmp_path, {**CONTENT, "config": {"seed": 0}}).close()
    (tmp_path / TELEMETRY).write_text("{}\n")
    if log is None:
        (tmp_path / RECORDS).unlink()
    else:
        (tmp_path / RECORDS).write_bytes(log)
    store = open_store(tmp_path, {"config": {"seed": 1}, "fingerprint": "f" * 16})
    assert store.append(record(0))
    store.close()
    assert json.loads((tmp_path / RUN).read_text()) == {"config": {"seed": 1}, "fingerprint": "f" * 16}
    assert not (tmp_path / TELEMETRY).exists()
    assert [r.problem_id for r in read_records(tmp_path / RECORDS)] == [0]


def test_a_check_refuses_what_opening_would_and_writes_nothing(tmp_path: Path) -> None:
    check_store(tmp_path / "new", CONTENT)
    assert list(tmp_path.iterdir()) == []
    log = filled(tmp_path, 1) / RECORDS
    check_store(tmp_path, CONTENT)
    log.write_bytes(log.read_bytes() + b"{broken\n")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match="another run"):
        check_store(tmp_path, {"fingerprint": "f" * 16})
    with pytest.raises(UserError, match="line 2: not a record"):
        check_store(tmp_path, CONTENT)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_records_without_run_json_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / RECORDS).write_bytes(encode(record(0))[:-5])
    with pytest.raises(UserError, match=r"no run\.json"):
        open_store(tmp_path, CONTENT)
    assert (tmp_path / RECORDS).read_bytes() == encode(record(0))[:-5]


@pytest.mark.parametrize("use", [open_store, check_store])
def test_a_directory_of_other_files_is_not_taken(use: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"has no run\.json but other files \(notes\.md\).*\(run_dir\)"):
        use(tmp_path, CONTENT)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.md"]


def test_what_a_killed_start_has_left_is_taken(tmp_path: Path) -> None:
    for name in ("lock", TELEMETRY, f".{RUN}.1"):
        (tmp_path / name).write_text("")
    open_store(tmp_path, CONTENT).close()
    assert (tmp_path / RUN).exists()


def test_a_damaged_run_json_is_refused(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    (tmp_path / RUN).write_text("{")
    with pytest.raises(UserError, match="not valid JSON"):
        open_store(tmp_path, CONTENT)


def test_run_json_holds_fingerprint_and_what_it_is_given(tmp_path: Path) -> None:
    open_store(tmp_path, {**CONTENT, "config": {"seed": 3}}).close()
    assert json.loads((tmp_path / RUN).read_text()) == {"config": {"seed": 3}, "fingerprint": FINGERPRINT}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lock", RECORDS, RUN]


def test_an_unwritable_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for use in (open_store, check_store):
        with pytest.raises(UserError, match="cannot be written"):
            use(tmp_path / "file" / "run", CONTENT)


def test_fresh_starts_beside_the_old_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert fresh_directory(run) == run
    run.mkdir()
    assert fresh_directory(run) == tmp_path / "run-2"
    (tmp_path / "run-2").mkdir()
    assert fresh_directory(run) == tmp_path / "run-3"


@pytest.mark.parametrize("fault", ["File too large", "Input/output error"])
def test_a_record_that_cannot_be_written_whole_is_taken_back_and_ends_the_run(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with opened(filled(tmp_path, 1)) as store:
        whole = (tmp_path / RECORDS).read_bytes()
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        with monkeypatch.context() as failing:
            if fault == "File too large":
                resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 20, hard))
            else:
                failing.setattr(os, "fsync", fail)
            try:
                with pytest.raises(
                    UserError, match=rf"records\.jsonl \({fault}\); the 1 before it are kept: make room"
                ):
                    store.append(record(1))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert (tmp_path / RECORDS).read_bytes() == whole
        assert [p.problem_id for p, _ in store.owed(problems(2), 1)] == [1]


def test_a_failed_replacement_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomically(tmp_path / RUN, "old")

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / RUN, "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {RUN: "old"}


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, set[str]]]:
    """What is made durable, in order: the name of a file or directory, and the files that lie beside or in it then."""
    found: list[tuple[str, set[str]]] = []
    sync = os.fsync

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        found.append((path.name, {one.name for one in (path if path.is_dir() else path.parent).iterdir()}))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return found


def test_a_replaced_file_is_durable_before_its_name_is_and_both_before_the_call_returns(
    tmp_path: Path, synced: list[tuple[str, set[str]]]
) -> None:
    """Else a machine that loses power may have the name of the new file and no content, or the old file."""
    temporary = f".{RUN}.{os.getpid()}"
    for before in (set(), {RUN}):
        write_atomically(tmp_path / RUN, "content")
        assert synced == [(temporary, {temporary} | before), (tmp_path.name, {RUN})]
        synced.clear()


def test_the_log_is_durable_when_a_run_is_opened_and_with_every_record(
    tmp_path: Path, synced: list[tuple[str, set[str]]]
) -> None:
    with opened(tmp_path) as store:
        assert synced[-1] == (tmp_path.name, {"lock", RUN, RECORDS}), "its name, too"
        synced.clear()
        assert store.append(record(0))
        assert [name for name, _ in synced] == [RECORDS]
    with (tmp_path / RECORDS).open("ab") as log:
        log.write(b"torn")
    synced.clear()
    with opened(tmp_path):
        assert [name for name, _ in synced] == [RECORDS, tmp_path.name]


def test_what_a_killed_process_left_is_removed_and_a_living_one_is_not_disturbed(tmp_path: Path) -> None:
    killed = subprocess.Popen(["true"])
    killed.wait()
    dead, living, other = (tmp_path / f".{RUN}.{end}" for end in (killed.pid, os.getppid(), "bak"))
    for path in (dead, living, other):
        path.write_text("half")
    write_atomically(tmp_path / RUN, "new")
    assert sorted(tmp_path.iterdir()) == sorted([living, other, tmp_path / RUN])


def test_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        filled(tmp_path / "run", 1)
    finally:
        os.umask(old)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "run").iterdir()} == {0o640}


@pytest.mark.parametrize("use", [open_store, check_store])
def test_runs_do_not_lie_inside_one_another(use: Any, tmp_path: Path) -> None:
    filled(tmp_path / "demo" / "greedy", 1)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(
        UserError, match=r"demo holds the directory of another run, greedy; choose a new one, such as .*/demo/"
    ):
        use(tmp_path / "demo", CONTENT)
    with pytest.raises(UserError, match=r"deep/run lies inside the run .*demo/greedy; choose one beside it \(run_dir"):
        use(tmp_path / "demo" / "greedy" / "deep" / "run", CONTENT)
    assert sorted(tmp_path.rglob("*")) == before
    use(tmp_path / "demo" / "power", CONTENT)


def test_records_are_strict_json() -> None:
    assert read_line(encode(record(5)), Record) == record(5)
    with pytest.raises(ValueError, match="not JSON compliant"):
        encode(replace(record(0), timings=Timings(float("nan"))))
