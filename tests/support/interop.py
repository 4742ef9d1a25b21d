"""Asks lm-eval and inspect-ai, in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import pytest

ASK = "import json, sys\ngiven = json.load(sys.stdin)\n{code}\nprint('\\n' + json.dumps(answer))"


needs_theirs = pytest.mark.skipif(
    not (find_spec("lm_eval") and find_spec("inspect_ai")),
    reason="lm-eval or inspect-ai is not installed; make setup installs them",
)


def theirs(code: str, given: Any) -> Any:
    """What `code`, which finds `given`, leaves in `answer` there (JSON values)."""
    command = [sys.executable, "-W", "ignore", "-c", ASK.format(code=code)]
    done = subprocess.run(command, input=json.dumps(given), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])
