"""Measures what the library costs: `LLM.generate` against the same chains given to its engine directly.

    python -m benchmarks.library [--model demo] [--num-gpus 1] [--requests 1024] [--in-flight 64] [--turns 3]

Prompts are the embedded problems over and over; alpha 4, 10 moves, one sample each, at most 160 tokens. Both ways
run by turns on one model in one process, on as many slots as there are requests in flight, after one turn of each that
does not count. Their answers must be the same tokens on a CPU. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import time
from statistics import median

from evals.evaluate import make_prompt
from evals.rng import chain_key
from evals.tasks.task import make_task
from evals.types import Chain, Problem, SamplingContext
from orchestrator.installation import DEMO_FOLDER
from orchestrator.workers.inline_pool import InlineWorkerPool
from powersample import LLM, Sampling
from powersample.llm import TASK

STOPS = ("Question:",)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--num-gpus", type=int, default=0)
    parser.add_argument("--requests", type=int, default=1024)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=160)
    parser.add_argument("--turns", type=int, default=3)
    args = parser.parse_args()
    lines = (DEMO_FOLDER / "problems.jsonl").read_text().splitlines()
    questions = [f"Question: {json.loads(line)['question']}\nAnswer:" for line in lines]
    prompts = [questions[row % len(questions)] for row in range(args.requests)]
    sampling = Sampling(max_tokens=args.max_tokens, stop=STOPS)
    task = make_task(TASK.model_copy(update={"max_new_tokens": args.max_tokens, "stop": STOPS}), 0)
    seconds: dict[str, list[float]] = {"library": [], "engine": []}
    with LLM(args.model, num_gpus=args.num_gpus, batch_size=args.in_flight) as llm:
        assert isinstance(llm._requests._pool, InlineWorkerPool)
        engine = llm._requests._pool._worker._engine
        prefetch = SamplingContext(engine._config.prefetch)

        def by_library() -> list[list[int]]:
            outputs = llm.generate(prompts, sampling, keys=[(row, 0) for row in range(len(prompts))])
            return [one.outputs[0].token_ids for one in outputs]

        def by_engine() -> list[list[int]]:
            futures = []
            for row, text in enumerate(prompts):
                prompt = make_prompt(task, Problem(row, text), engine.model.tokenizer)
                steps = sampling.sampler.chain(prompt, chain_key(0, row, 0), prefetch)
                futures.append(engine.submit(Chain(prompt, steps, sampling.sampler.sequences)))
            return [list(future.result().tokens) for future in futures]

        answers = {}
        for turn in range(args.turns + 1):
            for name, ask in (("library", by_library), ("engine", by_engine)):
                began = time.perf_counter()
                answers[name] = ask()
                if turn:
                    seconds[name].append(time.perf_counter() - began)
    same = sum(one == other for one, other in zip(*answers.values(), strict=True))
    assert args.num_gpus or same == len(prompts), "other tokens on a CPU"
    ratios = [direct / own for own, direct in zip(seconds["library"], seconds["engine"], strict=True)]
    tokens = sum(map(len, answers["library"]))
    print(f"{same} of {len(prompts)} answers are the same tokens; {tokens / median(seconds['library']):.0f} tokens/s")
    print(json.dumps({**vars(args), "seconds": seconds, "ratios": ratios, "ratio": median(ratios)}))


if __name__ == "__main__":
    main()
