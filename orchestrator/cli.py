"""The command `powersample`: from arguments to an exit code. Knows what to call, and how mistakes are told.

Exit codes: 0 complete, 2 a mistake of the user's (one sentence on stderr), 3 complete with failed problems, 130 and 143
stopped by a signal; anything else is ours.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.config import RunConfig
    from orchestrator.hardware import Gpu

GPU_DEFAULT = Path(__file__).parents[1] / "configs/gsm8k_power.yaml"
"""What runs on a machine with GPUs unless --config names another file."""

COMMANDS = (
    "run", "sweep", "report", "compare", "watch", "bench", "plan", "regrade", "export", "score", "generate", "validate",
)  # fmt: skip

HELP = """powersample: exact power sampling of language models, evaluated on GSM8K-style problems

usage: powersample run [--config FILE] [options]     evaluate; started again, it goes on where it was stopped
       powersample report RUN [RUN ...]              make summary and report of finished or unfinished runs again
       powersample sweep --knob NAME=A,B,... [options of run]
                                                     evaluate per value of a setting, each with the batch that fits
       powersample compare RUN RUN [RUN ...]         runs on their common problems: differences, tests, what flipped
       powersample watch RUN [--once]                show a run that another terminal drives, or one frame of it
       powersample bench [options]                   how fast this machine decodes, against its memory and generate
       powersample plan [options]                    where a GPU's memory would go, and the batch that fits
       powersample regrade RUN [--data FILE]         score a run's texts again, without a model
       powersample export RUN --to FORMAT [--out PATH]
                                                     write it for others' tools: lm-eval, inspect, parquet
       powersample score FILE.jsonl                  grade texts from anywhere: rows {id, text, gold}
       powersample generate --input_file FILE --output_file FILE [options]
                                                     answer every row of a JSONL file, without grades
       powersample validate FILE --input FILE        check what generate wrote against what it was given
       powersample --version | --help                (powersample run --help lists all options)

examples:
  powersample run
      no GPU: greedy, T = 1, T = 1/alpha and power sampling on the embedded model and problems;
      GPUs: GSM8K by power sampling on all of them
  powersample run --config configs/gsm8k_power.yaml --sampler.alpha 4 --num-gpus 2 --batch-size 16 --limit 100
  powersample run --model path/to/model --data problems.jsonl --run-dir runs/mine
  powersample compare runs/demo/t1 runs/demo/power --flips 50

Each option but --config is also a variable, --batch-size POWERSAMPLE_BATCH_SIZE and --sampler.alpha
POWERSAMPLE_SAMPLER__ALPHA, and a key of a YAML file. Options win over variables, variables over the file.

Exit codes: 0 complete, 2 refused with one sentence, 3 complete but some problems failed, 130 or 143 stopped by a signal
(the same command goes on)."""


UNUSABLE = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOSPC}
"""Of a path, or of standard output, that somebody named: mistakes of the user's wherever they show."""
BROKEN_PIPE = 128 + signal.SIGPIPE
REPORT_USAGE = """usage: powersample report RUN [RUN ...]

Makes summary.json, report.md and report.html again; compares several runs. A directory of runs, such as runs/demo,
stands for them."""
WATCH_USAGE = """usage: powersample watch RUN [--once]

Shows bar and workers of a run until it ends or Ctrl-C; --once shows it as it is now."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (without the program's name); returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ± shows ? instead
    try:
        return told(list(sys.argv[1:] if argv is None else argv)) if evals_is_ours() else 2
    except KeyboardInterrupt:
        print("powersample: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read has seen enough
        silence()
        return BROKEN_PIPE


def told(arguments: list[str]) -> int:
    """Do what they ask for; a mistake of the user's is one sentence."""
    from evals.types import UserError

    os.umask(0o077)  # runs, Ray's token and its logs are for nobody else's eyes
    try:
        code = dispatch(arguments)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"powersample: {error}", file=sys.stderr)
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        if error.filename is None:
            silence()
        print(f"powersample: {error.filename or 'standard output'} cannot be used: {error.strerror}", file=sys.stderr)
    return 2


def silence() -> None:
    """Nothing more reaches standard output, not even what waits to be flushed at the end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def dispatch(arguments: list[str]) -> int:
    """Call what the first argument names."""
    from evals.types import UserError

    command, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    match command:
        case "run":
            return run(rest)
        case "report":
            return report(rest)
        case "compare":
            from orchestrator.versus import versus

            return versus(rest)
        case "regrade":
            from orchestrator.regrade import regrade

            return regrade(rest)
        case "export":
            from orchestrator.export import export

            return export(rest)
        case "score":
            from orchestrator.score import score

            return score(rest)
        case "generate":
            from orchestrator.generate import generate

            return generate(rest, start)
        case "validate":
            from orchestrator.validate import validate

            return validate(rest)
        case "watch":
            return watch(rest)
        case "bench":
            return bench(rest)
        case "plan":
            from orchestrator.plan import plan

            return plan(rest)
        case "sweep":
            from orchestrator.sweep import sweep

            return outlasting(lambda: sweep(rest, lambda flags: resolved(*asked(flags))))
        case "--version" | "-V":
            print(f"powersample {version()}")
        case "--help" | "-h" | "help":
            print(HELP)
        case _:
            from orchestrator.names import suggestion

            near = suggestion(command, [*COMMANDS, "--version", "--help"])
            raise UserError(f"unknown command {command}{near}; there are {', '.join(COMMANDS)}.")
    return 0


def run(flags: list[str]) -> int:
    """`powersample run`: resolve the configuration for this machine, then hand it to the session."""
    if {"--help", "-h"} & set(flags):
        from orchestrator.flags import help_text

        print(help_text())
        return 0
    return start(*asked(flags))


def asked(flags: list[str]) -> tuple[RunConfig, list[Gpu]]:
    """What flags, environment and file ask for, and the GPUs that are there. Raises UserError."""
    from orchestrator import hardware
    from orchestrator.config import DEMO
    from orchestrator.settings import build_config

    present = hardware.gpus()
    config = build_config(flags, os.environ)
    for_demo = DEMO in (config.mode, config.model)
    if present and config.num_gpus != 0 and not for_demo:  # a file that --config names takes its place
        config = build_config(flags, os.environ, GPU_DEFAULT)
    if config.task.name == "open":
        from evals.types import UserError

        raise UserError("task.name open has no answers to grade by; use powersample generate, or another format.")
    return config, present


def start(config: RunConfig, present: Sequence[Gpu], **outlets: Any) -> int:
    """Resolve a configuration for this machine with the GPUs `present` and run it; `outlets` as `session.run` has."""
    config = resolved(config, present)
    from orchestrator.session import run as run_session

    return outlasting(lambda: run_session(config, **outlets))


def resolved(config: RunConfig, present: Sequence[Gpu]) -> RunConfig:
    """The configuration with all decided that depends on this machine, with the GPUs `present`. Raises UserError."""
    from orchestrator import hardware
    from orchestrator.config import resolve

    remote = os.environ.get("RAY_ADDRESS") and config.num_gpus  # a cluster has GPUs of its own; Ray counts them
    bfloat16 = all(gpu.has_bfloat16 for gpu in present)
    automatic = config.engine.dtype == "auto"
    config = resolve(config, int(remote) if remote else len(present), bfloat16 or bool(remote))
    if automatic and config.engine.dtype == "float16":
        print("These GPUs have no bfloat16: the model runs in float16 (engine.dtype).", file=sys.stderr)
    if config.use_gpus and not remote:
        hardware.check_torch_sees_gpus(present)
    return config


def outlasting(drive: Callable[[], int]) -> int:
    """The exit code of `drive`; 1, and how to go on, where its workers are lost."""
    from orchestrator.crew import WorkersLost

    try:
        return drive()
    except WorkersLost as lost:
        print(f"powersample: {lost}; the answers so far are kept, start again to go on.", file=sys.stderr)
        return 1


def report(arguments: list[str]) -> int:
    """`powersample report RUN …`."""
    from evals.types import UserError
    from orchestrator.arguments import paths_and_options

    if (asked := paths_and_options(arguments, REPORT_USAGE)) is None:
        return 0
    if not asked[0]:
        raise UserError("report needs a run directory, such as `powersample report runs/demo/power`.")
    from orchestrator.report import report as make

    return make(arguments)


def watch(arguments: list[str]) -> int:
    """`powersample watch RUN`."""
    from orchestrator.arguments import path_and_options

    if (asked := path_and_options(arguments, WATCH_USAGE, switches=["--once"])) is None:
        return 0
    from orchestrator.watch import watch as show

    return show(asked[0], "--once" in asked[1])


def bench(arguments: list[str]) -> int:
    """`powersample bench`: its imports are a phase of what it measures."""
    began = time.perf_counter()
    from orchestrator.bench import bench as measure

    return measure(arguments, began)


def version() -> str:
    """Version of the installed package, or of the checkout's pyproject.toml when it is run without being installed."""
    import tomllib
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    project = Path(__file__).parents[1] / "pyproject.toml"
    if project.is_file():
        return tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"]
    try:
        return installed("powersample")
    except PackageNotFoundError:
        return "of unknown version"


def evals_is_ours() -> bool:
    """Another distribution has a package `evals`, too; says on stderr where the wrong one is and how to mend it."""
    ours = Path(__file__).resolve().parents[1] / "evals"
    spec = find_spec("evals")
    places = [Path(place).resolve() for place in spec.submodule_search_locations or ()] if spec else []
    if ours in places[:1]:
        return True
    found = places[0] if places else "nowhere"
    print(
        f"powersample: the package evals is imported from {found} instead of powersample's own {ours}; uninstall the "
        "other (pip uninstall evals), or start from another directory and with a clean PYTHONPATH.",
        file=sys.stderr,
    )
    return False
