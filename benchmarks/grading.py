"""How many answers a second one core grades: GSM8K's own solutions in ten endings, whole and cut off, as
`numeric` reads them.

    python -m benchmarks.grading --data ../shared/data/gsm8k/test.jsonl

Prints two JSON lines: answers, seconds of CPU time, answers per second. A cut-off answer goes on with the
question and ends within 40 characters, or ends up to 40 characters early.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable

from evals.grading.cut_off import finished
from evals.grading.numeric import numeric
from orchestrator.inputs.problems import load_problems

ENDINGS = (
    "\n#### {n}", "\nThe answer is {n}.", "\n#### ${n}", " So \\boxed{{{n}}}.", "\nSo he has {n} dollars left.",
    "\n**Answer: {n}**", " $\\boxed{{{n} \\text{{ dollars}}}}$", " It is {n} dollars per day for 5 days.", "", " = {n}",
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="demo", help="JSONL in GSM8K's format, hub name, or demo")
    problems = load_problems(parser.parse_args(arguments).data).problems
    answers = [(f"{one.reasoning}{end.format(n=one.gold)}", one) for one in problems for end in ENDINGS]
    show("whole", lambda: sum(numeric(text, problem).correct for text, problem in answers), len(answers))
    cut = [f"{text}\n{one.question}"[: len(text) + i % 79 - 39] for i, (text, one) in enumerate(answers)]
    show("cut off", lambda: sum(finished(text) is not None for text in cut), len(answers))
    return 0


def show(what: str, grade: Callable[[], int], number: int) -> None:
    """Time one pass over so many answers; it returns how many of them count."""
    began = time.process_time()
    counted = grade()
    seconds = time.process_time() - began
    print(
        json.dumps(
            {what: number, "count": counted, "seconds": round(seconds, 3), "per_second": round(number / seconds)}
        )
    )


if __name__ == "__main__":
    raise SystemExit(main())
