"""The Triton kernels against their torch twins, alone and under a decoder, in Triton's interpreter: no GPU needed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from support.places import ROOT

pytest.importorskip("triton", reason="triton is not installed")
SUPPORT = ROOT / "tests/support"


@pytest.mark.parametrize("cases", ["kernels", pytest.param("graph_decoder", marks=pytest.mark.slow)])
def test_cases_pass_in_the_interpreter(cases: str) -> None:
    """In a process of its own, because Triton decides when it is imported whether it interprets."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(SUPPORT / f"{cases}_interpreted.py")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
