"""The table of commands: what each is for, which options it takes, and which function does it."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from operator import methodcaller
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from evals.sizing.shapes import SHAPES
from evals.thoughts import USUAL_END
from evals.types import Dtype, Execution
from orchestrator.settings.parser import Parser, count, flag_name, memory, option, positive, price, share, slots


class Command(NamedTuple):
    """One command of `powersample`."""

    sentence: str
    takes: tuple[methodcaller | tuple[methodcaller, methodcaller], ...] = ()
    """Options, and pairs that exclude each other."""
    about: str = ""
    """What the help says below the sentence."""
    settings: bool = False
    """Whether the settings of a run are options, too."""
    examples: str | None = None
    spellings: Mapping[str, str] = MappingProxyType({})
    """Setting -> what the user of this command changes in its place."""


def setting(name: str, flag: str, **how: Any) -> methodcaller:
    """An option that is a setting of a run under another name; the setting's own name is taken, too."""
    spellings = dict.fromkeys((flag, flag.replace("_", "-"), flag_name(name)))
    return option(*spellings, dest=name, default=argparse.SUPPRESS, **how)


DTYPES, EXECUTIONS = get_args(Dtype), get_args(Execution)
GPUS = {
    "v100-16": 15.8, "v100-32": 31.7, "a100-40": 39.4, "a6000-48": 47.5, "a100-80": 79.1, "h100-80": 79.1,
    "h200-141": 139.8,
}  # fmt: skip
"""GiB of memory that are usable: less than the name says, as the GPU's driver takes some."""

RUN = option("run", type=Path, metavar="RUN", help="a run directory")
RUNS = option("runs", type=Path, nargs="+", metavar="RUN", help="a run directory, or one of runs, such as runs/demo")
GRADER = option(
    "--grader",
    default="numeric",
    metavar="NAME",
    help="the score that is shown and compared: strict, flexible or numeric; of formulas math (%(default)s)",
)
DATA = option("--data", metavar="FILE", help="the data; its digest must be the run's (default: where run.json says)")
CONFIG = option("--config", default=argparse.SUPPRESS, metavar="FILE", help="a YAML file, such as those in configs/")
JSON = option("--json", action="store_true", help="one line of JSON and nothing else")

WAYS = """Each option of run but --config is also a variable, --batch-size POWERSAMPLE_BATCH_SIZE and
--sampler.num-moves POWERSAMPLE_SAMPLER__NUM_MOVES, and a key of a YAML file (sampler: num_moves). Options win over
variables, variables over the file. Of an option that is given twice the last counts, and a line says so;
another says which settings change nothing in the run that comes of them."""
RUN_EXAMPLES = """examples:
  powersample run
      without GPUs the demo, four samplers compared on the embedded problems; with GPUs all of GSM8K by power sampling
  powersample run --config configs/gsm8k_power.yaml --num-gpus 2 --batch-size 16 --limit 100 --run-dir runs/mine
  powersample run --model path/to/model --data problems.jsonl --task.num-shots 4 --task.train-data train.jsonl
  powersample run --model demo --data demo --sampler.kind temperature --num-samples 16
      16 answers to each problem, for pass@k and maj@k
  powersample run --config configs/gsm8k_power.yaml --task.stop "Question:" --task.stop '["\\n\\n"]'
      stop strings: as they are, or as a JSON list; several add up"""

COMMANDS = {
    "run": Command(
        "sample answers to math problems from a model, grade them and report; started again, it goes on",
        (CONFIG,),
        WAYS,
        settings=True,
        examples=RUN_EXAMPLES,
    ),
    "report": Command(
        "make summary and report of finished or unfinished runs again",
        (RUNS, GRADER),
        "`powersample report RUN` writes summary.json, report.md and report.html; several runs are compared.",
    ),
    "sweep": Command(
        "evaluate per value of settings, each with the batch that fits",
        (
            CONFIG,
            option("--knob", action="append", default=[], metavar="NAME=VALUES",
                   help="a setting of sampler or task, and its values (lists in JSON); several make a grid of all "
                   "combinations"),
            option("--start-from", metavar="VALUE", help="leave out the values of the first --knob before this one"),
            option("--auto-batch-size", action=argparse.BooleanOptionalAction, default=True,
                   help="find the largest batch that works for each value, up to --batch-size"),
            option("--memory-limit", type=memory, metavar="GIB", help="for each worker on CPUs (default: its share)"),
        ),
        settings=True,
    ),
    "compare": Command(
        "runs on their common problems: differences, tests, what flipped",
        (
            RUNS,
            GRADER,
            option("--flips", type=count, metavar="N",
                   help="flipped problems shown, those with the largest gaps first (default: 20; all with --json)"),
            option("--texts", action="store_true",
                   help="whole texts of the flipped problems, of all samples (default: the end of one of each run)"),
            option("--json", action="store_true", help="one JSON object: runs, pairs, flips with answers and texts"),
        ),
        """Compares runs on the problems that all of them have answered: paired differences with standard error, 95 %
interval and minimum detectable effect (MDE), exact McNemar tests (sign-flip permutation tests with several samples per
problem), Holm's correction, and the problems that flipped with every run's answer and text. Each run is compared with
the reference, the first run at temperature 1 or else the first, and each of power sampling with every other method.
Writes no file.""",
    ),
    "watch": Command(
        "show a run that another terminal drives, until it ends or Ctrl-C",
        (RUN, option("--once", action="store_true", help="show it as it is now")),
    ),
    "bench": Command(
        "how fast this machine decodes, against its memory and generate",
        (
            (
                option("--model", metavar="FOLDER", help="a model: local folder, hub name, or demo"),
                option("--shape", choices=SHAPES, help="random weights (default: 1.5b, without a GPU tiny)"),
            ),
            option("--batch", type=slots, default="1,10,16,64,256,auto", help="slots (%(default)s)"),
            option("--context", type=positive, default=300, help="mean context of the timed steps (%(default)s)"),
            option("--steps", type=positive, default=100, help="steps that are timed (%(default)s)"),
            option("--dtype", choices=("auto", *DTYPES), default="auto", help="as engine.dtype (%(default)s)"),
            option("--execution", choices=EXECUTIONS, default="auto", help="as engine.execution (%(default)s)"),
            option("--no-generate", dest="generate", action="store_false", help="skip the library's generate"),
            JSON,
        ),
        "The roofline, the library's generate, and decoding through the engine. Ends with one JSON line.",
    ),
    "plan": Command(
        "where a GPU's memory would go, and the batch that fits",
        (
            (
                option("--model", metavar="NAME", help="folder, config.json, hub name, demo"),
                option("--shape", choices=SHAPES, help="a known shape in place of a model"),
            ),
            option("--gpu", metavar="GPU", help=f"{', '.join(GPUS)}, or its memory in GiB (default: the one present)"),
            option("--num-gpus", type=positive, default=1, metavar="N", help="each with its own copy (%(default)s)"),
            option("--dtype", choices=DTYPES, default="bfloat16", help="of the weights (%(default)s)"),
            option("--length", type=positive, default=1024, metavar="N", help="tokens of a sequence (%(default)s)"),
            option("--batch-size", type=positive, metavar="N", help="upper limit (default: what fits and pays)"),
            option("--target", type=share, default=0.8, help="share of the GPU that may be used (%(default)s)"),
            JSON,
        ),
        "Touches no device.",
    ),
    "regrade": Command(
        "score a run's texts again, without a model",
        (
            RUN,
            DATA,
            option("--thought-end", metavar="TOKEN",
                   help="what ends a thought; '' for none (default: as its tokens told; in older runs by the text, "
                   f"{USUAL_END})"),
        ),
        "Writes scores.jsonl beside records.jsonl, then summary and report.",
    ),
    "export": Command(
        "write it for others' tools: lm-eval, inspect, parquet, chains, the hub, Every Eval Ever",
        (
            RUN,
            option("--to", choices=("lm-eval", "inspect", "parquet", "chains", "eval-results", "every-eval-ever"),
                   metavar="FORMAT", required=True,
                   help="lm-eval (results and samples files), inspect (a log), parquet (a row per answer), "
                   "chains (a line of JSON per accepted state of a chain, of a run with sampler.keep_states), "
                   "eval-results (an entry for a model's page on the hub, of a whole run on GSM8K; never pushed), "
                   "every-eval-ever (scores and answers in the schema of that collection)"),
            option("--out", type=Path, metavar="PATH",
                   help="a directory for lm-eval and every-eval-ever, else a file (default: below RUN/exports)"),
            DATA,
        ),
        "Nothing is overwritten.",
    ),
    "score": Command(
        "grade texts from anywhere: rows {id, text, gold}",
        (
            option("file", type=Path, metavar="FILE", help="rows to grade"),
            option("--preset", default="gsm8k", metavar="NAME", help="whose stop strings and format count (gsm8k)"),
            option("--thought-end", default=USUAL_END, metavar="TOKEN",
                   help="what ends a thought in a text; '' for none (%(default)s)"),
        ),
        """Writes rows {"id", "strict", "flexible", "numeric", "answers"} to standard output, in the order of the file.
gold is a worked answer with `#### number` or the bare number (for --preset math500 also LaTeX, and then only numeric is
given). Each text is first cut at the stop strings of the preset; lmeval-cot and lmeval-cot-zeroshot look for "The
answer is" in the score strict. A row may have its question: whether a percentage was asked for depends on it. The score
numeric does not read thoughts; of a row with "ended": "length", which a token limit cut off, it reads a marked answer
alone.""",
    ),
    "generate": Command(
        "answer every row of a file, without grades",
        (
            CONFIG,
            setting("model", "--model_path", metavar="MODEL", help="hub name or local folder"),
            setting("data", "--input_file", metavar="IN.jsonl",
                    help="rows with a text under `input` or `prompt`, or a batch of OpenAI's"),
            option("--output_file", "--output-file", type=Path, required=True, metavar="OUT.jsonl",
                   help="grows in the order in which answers come, and is put in that of its rows at the end"),
            setting("batch_size", "--batch_size", metavar="N",
                    help="rows at once per GPU (default: auto, as many as its memory holds; to start from by hand, for "
                    "8B models at 2,048 tokens: H200 32, H100 16, A6000 10, A100 8)"),
            setting("task.max_new_tokens", "--max_new_tokens", metavar="N", help="longest answer (default: 2048)"),
            setting("limit", "--max_examples", metavar="N", help="only the first so many rows; try 10 first"),
            setting("sampler.temperature", "--temperature", metavar="T",
                    help="of the draws (default: 0.7); 0: the likeliest token each time, as --sampler.kind greedy"),
            setting("sampler.top_p", "--top_p", metavar="P", help="of the draws (default: 0.9)"),
            setting("sampler.alpha", "--alpha", metavar="A", help="power sampling from p^A instead"),
            setting("sampler.num_moves", "--num_moves", metavar="N",
                    help="Metropolis-Hastings moves per answer of power sampling (default: 10)"),
            option("--hourly_rate", "--hourly-rate", type=price, metavar="X",
                   help="price of all GPUs together for an hour: the cost is told after a warm-up and at the end"),
        ),
        """Answers every row of IN.jsonl on all GPUs (or --num-workers processes on CPUs). The run behind the output is
kept in OUT.jsonl.run, and the same command goes on from there.

All options of `powersample run --help` that do not contradict these are taken, too, such as --task.chat,
--task.template "Question: {question}" or --num-gpus; the defaults are in configs/generate.yaml, or, with --alpha or
--num_moves, in configs/generate_power.yaml; another --sampler.kind has defaults of its own. Prompts are cut at
--task.max-prompt-tokens (2048).

Of rows {"custom_id", "method", "url", "body"} as OpenAI's batch API takes them the output is such a batch's, with n
choices a row and an error for each that failed. What all bodies ask alike of max_tokens, stop, n and seed is taken
unless an option says otherwise, /v1/chat/completions as --task.chat; model, temperature and top_p are not; a body that
asks for anything else, such as tools, is refused.

Exit codes: 0 complete, 2 refused with one sentence, 3 complete but some rows failed (they are listed).""",
        settings=True,
        spellings=MappingProxyType({"run_dir": "--output_file", "fresh": "--output_file"}),
    ),
    "validate": Command(
        "check what generate wrote against what it was given",
        (
            option("file", type=Path, metavar="OUT.jsonl", help="what generate wrote"),
            option("--input", dest="data", type=Path, required=True, metavar="IN.jsonl", help="what it was given"),
        ),
        "Checks schema, counts, order, duplicates, texts and parameters; exit code 1: a list of what is wrong.",
    ),
}  # fmt: skip


def help_text() -> str:
    listed = "\n".join(f"  {name:<9} {command.sentence}" for name, command in COMMANDS.items())
    return f"""powersample: exact power sampling of language models, evaluated on GSM8K-style problems

usage: powersample COMMAND [arguments]     (powersample COMMAND --help says what it takes)
       powersample --version | --help

{listed}

{WAYS}

Exit codes: 0 complete, 2 refused with one sentence, 3 complete but some problems failed, 130 or 143 stopped by a signal
(the same command goes on)."""


def make_parser(name: str, settings: bool = True) -> Parser:
    """The parser of a command's arguments, which also writes its help; `settings` says whether those of a run, where
    the command takes them, are among them."""
    command = COMMANDS[name]
    about = f"{command.sentence[0].upper()}{command.sentence[1:]}.\n\n{command.about}".rstrip()
    parser = Parser(command.spellings, prog=f"powersample {name}", description=about, epilog=command.examples)
    group = parser.add_argument_group("arguments")
    for item in command.takes:
        if isinstance(item, tuple):
            parser.add(group.add_mutually_exclusive_group(), *item)
        else:
            parser.add(group, item)
    if command.settings and settings:
        from orchestrator.settings.schema import add_settings

        parser.usage, parser.reads_variables = "%(prog)s [--config FILE] [options]", True
        add_settings(parser)
    return parser
