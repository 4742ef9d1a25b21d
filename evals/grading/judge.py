"""The symbolic checker as a process of its own: a line of JSON in, [gold, answer], a line out. Knows no problem.

Run by symbolic.py as `python -m evals.grading.judge`. math-verify times itself by a signal of the main thread and can
hang all the same, so it runs where it has a main thread and can be killed. The pair is in LaTeX without `$`.
"""

from __future__ import annotations

import json
import sys
from typing import Any


def main() -> int:
    """Answer every line of standard input: `right`, `wrong`, or `error` followed by why; the first line is `ready`."""
    try:
        from math_verify import parse, verify
    except ImportError as error:
        print(f"absent {error}", flush=True)
        return 0

    def read(text: str) -> list[Any]:
        return parse(f"${text}$", parsing_timeout=None, raise_on_error=True)  # type: ignore[arg-type]

    print("ready", flush=True)
    for line in sys.stdin:
        gold, answer = json.loads(line)
        try:
            expected, found = read(gold), read(answer)
            right = bool(found) and verify(expected, found, timeout_seconds=None, raise_on_error=True)  # gold first
            print("right" if right else "wrong", flush=True)
        except Exception as error:  # noqa: BLE001 - told to whoever asked; the next pair is none of its business
            print(f"error {type(error).__name__}: {' '.join(str(error).split())[:200]}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
