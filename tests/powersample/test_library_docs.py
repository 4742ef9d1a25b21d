"""docs/library.md, block by block, as a reader would paste it into one notebook."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from support.places import ROOT

PAGE = (ROOT / "docs/library.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.slow
def test_every_block_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for block in BLOCKS:
        code = block.replace('LLM("demo", num_gpus=8)', 'LLM("demo", num_gpus=0, num_workers=2)')
        exec(compile(code, "library.md", "exec"), names)
    said = capsys.readouterr()
    assert said.err == ""
    assert (tmp_path / "moves.png").stat().st_size > 5000
    assert all(len(one.outputs) == 8 for one in names["power"] + names["cold"])
    started, ended = (
        [answer.chain.log_p_by_move[move] for one in names["power"] for answer in one.outputs] for move in (0, -1)
    )
    assert sum(ended) > sum(started)
    assert len(names["outputs"]) == 1


def test_the_readme_shows_the_library_in_six_lines(capsys: pytest.CaptureFixture) -> None:
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(block.splitlines()) == 6
    exec(compile(block, "README.md", "exec"), {})
    said = capsys.readouterr()
    assert len(said.out.splitlines()) >= 2
    assert said.err == ""
