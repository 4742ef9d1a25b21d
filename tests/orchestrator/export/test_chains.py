"""`powersample export --to chains`: states rebuilt from it are answers of runs with fewer moves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evals.samplers.trace import MoveFigures
from support.command import answers, in_process
from support.logs import read_records
from support.made_up import refused

NUM_MOVES = 12


def sampled(directory: Path, *flags: object) -> Path:
    options = ["--model", "demo", "--data", "demo", "--limit", 2, "--num-samples", 2, "--num-gpus", 0, "--inline"]
    assert in_process("run", *options, "--run-dir", directory, *flags) == 0
    return directory


@pytest.mark.parametrize("flags", [[], ["--no-sampler.replay", "--no-sampler.early-rejection"]])
def test_states_are_the_answers_of_shorter_chains(
    flags: list[object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = sampled(tmp_path / "run", *flags, "--sampler.num-moves", NUM_MOVES, "--sampler.keep-states")
    capsys.readouterr()
    assert in_process("export", run, "--to", "chains") == 0
    path = Path(capsys.readouterr().out.strip())
    rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_text().splitlines()]
    assert path == run / "exports/chains.jsonl"
    for record in read_records(run / "records.jsonl"):
        mine = [row for row in rows if (row["problem_id"], row["sample_index"]) == record.key]
        assert isinstance(record.chain, MoveFigures)
        assert len(mine) == 1 + (record.chain.accepted or 0)
        assert mine[-1]["token_ids"] == record.token_ids
        assert [row["log_p"] for row in mine] == [(record.chain.log_p_trace or ())[row["move"]] for row in mine]
        assert mine[0]["prompt"].startswith("Question: ")
        assert {row["alpha"] for row in mine} == {4.0}
    assert len({row["move"] for row in rows}) > 3
    for moves in (0, 5):
        shorter = sampled(tmp_path / f"{moves}", *flags, "--sampler.num-moves", moves)
        last = {(row["problem_id"], row["sample_index"]): row["token_ids"] for row in rows if row["move"] <= moves}
        assert answers(shorter) == last


def test_a_run_without_states_says_what_keeps_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sampled(tmp_path / "run", "--sampler.num-moves", 2)
    assert "keep_states" not in (run / "run.json").read_text(), "as in runs from before it was a setting"
    capsys.readouterr()
    said = refused(["export", str(run), "--to", "chains"], capsys)
    assert "have no states of chains; power sampling keeps them where sampler.keep_states is set" in said
    assert not (run / "exports").exists()
