"""What replay and early rejection save: generated tokens of the same chains, counted four ways.

    python benchmarks/sampler.py --model FOLDER --data FILE.jsonl --limit 200 --moves 10

Two runs with the same keys make the same decisions, with and without early rejection; both replay. The naive kernel
would have drawn the replayed tokens as well, so its count for the same cuts and proposals is exact, not estimated.
Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import time

from tqdm import tqdm

from evals.config import EngineConfig, SamplerConfig, TaskConfig
from evals.engine.engine import Engine
from evals.engine.model import load_model
from evals.evaluate import evaluate
from evals.samplers.make import make_sampler
from evals.tasks.gsm8k import make_task
from evals.types import Record
from orchestrator.sources import load_problems, resolve_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo", help="local folder, hub name, or demo")
    parser.add_argument("--data", default="demo", help="JSONL in GSM8K's format, hub name, or demo")
    parser.add_argument("--limit", type=int, default=200, help="problems")
    parser.add_argument("--moves", type=int, default=10, help="moves per answer")
    parser.add_argument("--alpha", type=float, default=4.0)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--max-new-tokens", type=int, default=320)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args()
    problems = load_problems(args.data, "test", args.limit).problems
    model = load_model(resolve_model(args.model).folder, EngineConfig(), args.device)
    task = make_task(TaskConfig(max_new_tokens=args.max_new_tokens), seed=0)

    def run(early_rejection: bool) -> list[Record]:
        sampler = SamplerConfig(alpha=args.alpha, num_moves=args.moves, early_rejection=early_rejection)
        engine = Engine(model, EngineConfig(), slots=args.slots, max_length=model.limits.context_length)
        engine.start()
        records = evaluate(problems, task, make_sampler(sampler), engine, max_new_tokens=args.max_new_tokens, seed=0)
        label = "both" if early_rejection else "replay"
        found = sorted(tqdm(records, desc=label, total=len(problems)), key=lambda record: record.problem_id)
        engine.close()
        return found

    def total(records: list[Record], name: str) -> int:
        return sum(record.chain[name] for record in records)

    began = time.monotonic()
    replay, both = run(early_rejection=False), run(early_rejection=True)
    if [r.token_ids for r in replay] != [r.token_ids for r in both]:
        raise SystemExit("early rejection changed an answer: that is an error")
    first, kept = total(both, "initial_tokens"), total(both, "replayed_tokens")
    replay_tokens, both_tokens = (total(records, "generated") - first for records in (replay, both))
    naive_tokens = replay_tokens + kept
    print(
        json.dumps(
            {
                "initial_tokens": first,
                "naive_tokens": naive_tokens,
                "early_rejection_tokens": both_tokens + kept,
                "replay_tokens": replay_tokens,
                "both_tokens": both_tokens,
                "ratio": round(both_tokens / naive_tokens, 4) if naive_tokens else None,
                "moves": total(both, "moves"),
                "null_moves": total(both, "null"),
                "accepted": total(both, "accepted"),
                "rejected_early": total(both, "rejected_early"),
                "problems": len(problems),
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
