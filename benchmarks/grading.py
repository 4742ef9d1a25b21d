"""How many answers a second one core grades: GSM8K's own solutions in ten endings, as `numeric` reads them.

    python -m benchmarks.grading --data ../shared/data/gsm8k/test.jsonl

Prints one JSON line: answers, seconds of CPU time, answers per second.
"""

from __future__ import annotations

import argparse
import json
import time

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
    began = time.process_time()
    right = sum(numeric(text, problem).correct for text, problem in answers)
    seconds = time.process_time() - began
    rate = round(len(answers) / seconds)
    print(json.dumps({"answers": len(answers), "right": right, "seconds": round(seconds, 3), "per_second": rate}))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
