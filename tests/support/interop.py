"""Asks lm-eval and inspect-ai, which live in an environment of their own: `make test-interop` makes it."""

from __future__ import annotations

import json
import subprocess
from typing import Any

import pytest

from support.places import ROOT

PYTHON = ROOT / ".venv-interop/bin/python"
ASK = "import json, sys\ngiven = json.load(sys.stdin)\n{code}\nprint('\\n' + json.dumps(answer))"


def python() -> str:
    """The interpreter of that environment; where there is none, the test is skipped."""
    if not PYTHON.exists():
        pytest.skip("there is no .venv-interop with lm-eval and inspect-ai; make test-interop makes it")
    return str(PYTHON)


def theirs(code: str, given: Any) -> Any:
    """What `code`, which finds `given`, leaves in `answer` there (JSON values)."""
    command = [python(), "-W", "ignore", "-c", ASK.format(code=code)]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
