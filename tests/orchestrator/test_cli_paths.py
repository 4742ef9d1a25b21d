"""Paths as a user types them that no run can have: one sentence and code 2, before anything is written."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from support.command import clean, in_process
from support.places import ROOT

LATIN = "caf\udce9"  # as Python reads the bytes of Latin-1
RUN = ["run", "--model", "demo", "--data", "demo", "--limit", "1", "--inline", "--num-gpus", "0"]
GENERATE = ["generate", "--model_path", "demo", "--inline", "--num-gpus", "0"]


@pytest.mark.parametrize(
    "arguments",
    [
        [*RUN, "--run-dir", LATIN],
        [*RUN, f"--run-dir={LATIN}"],
        [*RUN, "--config", LATIN],
        [*RUN, "--task.num-shots", "1", "--task.train-data", LATIN],
        [*RUN, "--sampler.kind", "replay", "--sampler.texts", LATIN],
        ["run", "--model", LATIN],
        ["run", "--data", LATIN],
        [*GENERATE, "--input_file", LATIN, "--output_file", "o.jsonl"],
        [*GENERATE, "--input_file", "in.jsonl", "--output_file", LATIN],
        ["sweep", "--knob", "sampler.alpha=1,2", "--run-dir", LATIN],
        ["report", LATIN],
        ["compare", "one", LATIN],
        ["watch", LATIN],
        ["regrade", "one", "--data", LATIN],
        ["export", "one", "--to", "parquet", "--out", LATIN],
        ["score", LATIN],
        ["validate", LATIN, "--input", "in.jsonl"],
        ["validate", "o.jsonl", "--input", LATIN],
        ["plan", "--model", LATIN],
        ["bench", "--model", LATIN],
    ],
)
def test_arguments_that_are_not_utf_8(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in.jsonl").write_text('{"input": "2+3?"}\n')
    (tmp_path / LATIN).mkdir()
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert in_process(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("powersample: The argument ")
    assert said.endswith(
        "caf\\xe9 is refused: \\xe9 is no character of a text in UTF-8; rename what it names, or write it in UTF-8.\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_an_output_that_a_working_directory_or_a_link_makes_unwritable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / LATIN).mkdir()
    for place in (tmp_path, tmp_path / LATIN):
        (place / "in.jsonl").write_text('{"input": "2+3?"}\n')
    (tmp_path / "out.jsonl").symlink_to(f"{LATIN}/out.jsonl")
    for place in (tmp_path, tmp_path / LATIN):
        monkeypatch.chdir(place)
        assert in_process(*GENERATE, "--input_file", "in.jsonl", "--output_file", "out.jsonl") == 2
        assert "caf\\xe9/" in (said := capsys.readouterr().err)
        assert "is refused: \\xe9 is no character of a text in UTF-8" in said
    assert [path.name for path in (tmp_path / LATIN).iterdir()] == ["in.jsonl"]


def test_a_deleted_working_directory(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = "import os, sys; os.rmdir(os.getcwd()); from orchestrator.cli import main; sys.exit(main(sys.argv[1:]))"
    for arguments, status in ((RUN, 2), (["report", "runs/x"], 2), (["--version"], 0)):
        gone.mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=gone,
            env=clean(PYTHONPATH=ROOT),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stderr
        deleted = "powersample: The working directory was deleted; change to one that is there (cd).\n"
        assert done.stderr == (deleted if status else "")


def test_a_folder_for_sockets_that_ray_cannot_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*(flag for flag in RUN if flag != "--inline"), "--run-dir", tmp_path / "run"]
    for folder, words in (
        (tmp_path / ("a" * 90), "is too long for Ray's sockets, whose paths would have "),
        ("/dev/null", "cannot be written (/dev/null is not a directory)"),
        ("/tmp/" + LATIN, "is not UTF-8"),
    ):
        assert in_process(*flags, RAY_TMPDIR=folder) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"powersample: RAY_TMPDIR={str(folder).replace(LATIN, 'caf' + chr(92) + 'xe9')} {words}")
        assert said.endswith("; set it to another directory, such as /tmp.\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_a_tmpdir_that_ray_cannot_use_is_left_to_others(tmp_path: Path) -> None:
    from support.command import powersample

    folder = tmp_path / ("a" * 90)
    folder.mkdir()
    flags = [*(flag for flag in RUN if flag != "--inline"), "--num-workers", 1, "--no-dashboard", "--run-dir"]
    done = powersample(*flags, tmp_path / "run", "--task.max-new-tokens", 4, TMPDIR=folder)
    assert done.returncode == 0, done.stderr
    assert f"TMPDIR={folder} is too long for Ray's sockets, whose paths would have " in done.stderr
    assert " bytes, so Ray's sockets and logs are in /tmp/ray (RAY_TMPDIR).\n" in done.stderr
    assert done.stderr.count("RAY_TMPDIR") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--data", "demo", "--model", "~nobody-has-this/m"],
        ["run", "--model", "demo", "--data", "~nobody-has-this/d.jsonl"],
        [*RUN, "--engine.adapter", "~nobody-has-this/a"],
        [*RUN, "--task.num-shots", "1", "--task.train-data", "~nobody-has-this/t.jsonl"],
        [*RUN, "--sampler.kind", "replay", "--sampler.texts", "~nobody-has-this/x.jsonl"],
        ["plan", "--model", "~nobody-has-this/m", "--gpu", "h100-80"],
    ],
)
def test_a_home_that_nobody_has(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("powersample: There is no home directory for ~nobody-has-this/")
    assert said.endswith("; write the path out, from / on.\n")
