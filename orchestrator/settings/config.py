"""The configuration of a run, and the fingerprint that identifies the run.

`RunConfig` holds what the user set, `resolve` fills in what depends on the machine, `runs_of` lists the runs of a
configuration, and `fingerprint` is what two starts must share to be the same run.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue

from evals.config import AUTO_SLOTS, EngineConfig, TaskConfig
from evals.samplers.power import Power
from evals.samplers.registry import SamplerSettings, settings_of
from evals.samplers.single import AtTemperature, Greedy
from evals.settings import Count, Positive, Settings, Text
from evals.tasks.presets import PRESETS
from evals.types import UserError

RECORD_FORMAT = 1  # raise it when a record of an older version could no longer stand beside a new one
DEMO = "demo"  # as a model or as data: what evals/demo holds
DEFAULT_MODEL, DEFAULT_DATA = "Qwen/Qwen2.5-Math-1.5B", "openai/gsm8k"
DEMO_RUNS = ("greedy", "t1", "low", "power")
DEMO_MAX_NEW_TOKENS = 160  # the embedded model's answers are shorter


def refuse_empty(value: Any) -> Any:
    """Raises ValueError for an empty path, which would be the current directory."""
    if value == "":
        raise ValueError("must not be empty; name a directory, or leave it out")
    return value


class RunConfig(Settings):
    """All settings of a run. The descriptions are what `powersample run --help` prints."""

    model_config = ConfigDict(protected_namespaces=())

    mode: Literal["auto", "demo", "run"] = Field(
        default="auto",
        description="demo: four samplers on the embedded model; run: one; auto: decided by what is there",
    )
    model: Text | None = Field(default=None, description=f"hub name, local folder, or demo (default: {DEFAULT_MODEL})")
    model_revision: Text | None = Field(
        default=None, description="branch, tag or commit of a model from the hub (default: main)"
    )
    data: Text | None = Field(
        default=None,
        description=f"file of rows, hub name, folder, or demo (default: the preset's, {DEFAULT_DATA} for gsm8k)",
    )
    data_split: Text = Field(default="test", description="split of a data set from the hub")
    limit: Positive | None = Field(default=None, description="only the first so many problems (default: all)")
    num_samples: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=1, description="answers per problem, each a sample of its own; from several come pass@k and maj@k"
    )
    seed: Annotated[int, Field(ge=0, le=2**64 - 1)] = Field(default=0, description="seed of every random draw")
    num_gpus: Count | None = Field(
        default=None, description="GPUs to use, one worker each; 0: CPUs (default: all that are there)"
    )
    num_workers: Annotated[int, Field(ge=1, le=1024)] = Field(default=2, description="workers where no GPU is used")
    batch_size: Annotated[int, Field(ge=1, le=65_536)] | Literal["auto"] = Field(
        default=10,
        description="problems at once per worker (slots, refilled as they fall free); a GPU takes fewer where its "
        f"memory holds fewer, and with auto as many as it holds, up to {AUTO_SLOTS['cuda']} (auto on CPUs: "
        f"{AUTO_SLOTS['cpu']})",
    )
    use_batched: bool = Field(default=True, description="several problems at once; off: one at a time per worker")
    inline: bool = Field(default=False, description="one worker in this process, without Ray")
    dashboard: bool = Field(default=True, description="Ray's dashboard, if its packages are there")
    dashboard_host: Text = Field(
        default="127.0.0.1", description="where the dashboard listens; beyond this machine only with a token"
    )
    run_dir: Annotated[Path, BeforeValidator(refuse_empty)] | None = Field(
        default=None,
        description="where the run is kept (default: runs/NAME-FINGERPRINT; for the demo runs/demo, or "
        "runs/demo-DIGEST where its settings are not the usual ones)",
    )
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9._/-]*$", max_length=100)] = Field(
        default="",
        description="first part of the name of its directory (default: that of the --config file, or of the task)",
    )
    fresh: bool = Field(default=False, description="start over in a new directory beside an existing run")
    track: Literal["wandb", "trackio"] | None = Field(
        default=None, description="send the run's metrics to this tracker, too (its package must be installed)"
    )
    sampler: SamplerSettings = Field(default=Power(), description="how an answer is sampled")
    task: TaskConfig = Field(default=TaskConfig(), description="how problems are put to the model")
    engine: EngineConfig = Field(default=EngineConfig(), description="how the model runs on a device")

    @property
    def slots(self) -> int:
        """Problems at once per worker, at most: a GPU may have room for fewer."""
        if not self.use_batched:
            return 1
        if self.batch_size == "auto":
            return AUTO_SLOTS["cuda" if self.use_gpus else "cpu"]
        return self.batch_size

    @property
    def use_gpus(self) -> bool:
        return bool(self.num_gpus)

    @property
    def num_actors(self) -> int:
        """Workers: one per GPU, or per `engine.gpus_per_model` GPUs, or `num_workers` on CPUs; one when inline."""
        if self.inline:
            return 1
        return self.num_gpus // self.engine.gpus_per_model if self.num_gpus else self.num_workers


def resolve(config: RunConfig, num_gpus_present: int, bfloat16: bool = True) -> RunConfig:
    """The configuration with all decided that depends on the machine; resolving it again changes nothing.

    Decides `num_gpus`, `mode`, `model`, `data`, `name`, and `engine.dtype` (by whether the GPUs have bfloat16). Raises
    UserError for more GPUs than present and for settings that contradict each other.
    """
    num_gpus = num_gpus_present if config.num_gpus is None else config.num_gpus
    if config.inline:
        if config.num_gpus is not None and config.num_gpus > config.engine.gpus_per_model:
            raise UserError(
                f"inline runs one worker but num_gpus is {config.num_gpus}; leave one out.", ("inline", "num_gpus")
            )
        num_gpus = min(num_gpus, config.engine.gpus_per_model)
    if num_gpus > num_gpus_present:
        has, way_out = "none (or CUDA_VISIBLE_DEVICES hides them)", "leave it out to run on CPUs"
        if num_gpus_present:
            has, way_out = str(num_gpus_present), f"ask for at most {num_gpus_present}, or leave it out to use all"
        gpus = f"{num_gpus} GPU{'s' if num_gpus > 1 else ''}"
        raise UserError(f"num_gpus asks for {gpus} but this machine has {has}; {way_out}.", ("num_gpus",))
    num_gpus = shared_gpus(config, num_gpus)
    mode, data = config.mode, config.data or PRESETS[config.task.preset].data
    if mode == "auto":
        mode = "demo" if config.model is None and data is None and num_gpus == 0 else "run"
    if mode == "demo":
        check_demo(config)
    model, data = (DEMO, DEMO) if mode == "demo" else (config.model or DEFAULT_MODEL, data or DEFAULT_DATA)
    task, engine = config.task, config.engine
    if model == DEMO and "max_new_tokens" not in task.model_fields_set:
        task = task.model_copy(update={"max_new_tokens": DEMO_MAX_NEW_TOKENS})
    own_examples = data == DEFAULT_DATA or task.preset == "lmeval-platinum"
    if task.num_shots and task.train_data is None and own_examples:
        task = task.model_copy(update={"train_data": data})
    if engine.dtype == "auto":
        half = "bfloat16" if bfloat16 else "float16"
        engine = engine.model_copy(update={"dtype": half if num_gpus else "float32"})
    decided = {"mode": mode, "model": model, "data": data, "num_gpus": num_gpus, "task": task, "engine": engine}
    name = config.name or (DEMO if mode == "demo" else f"{task.name}_{config.sampler.kind}")
    return config.model_copy(update={**decided, "name": name})


def shared_gpus(config: RunConfig, num_gpus: int) -> int:
    """How many of the GPUs are used if every worker takes `engine.gpus_per_model`. Raises UserError if that is none, or
    not all of those asked for."""
    each = config.engine.gpus_per_model
    if each > 1 and (num_gpus < each or (config.num_gpus and num_gpus % each)):
        raise UserError(
            f"engine.gpus_per_model gives every worker {each} GPUs, and there are {num_gpus} to use; ask for a "
            "multiple of it, or leave engine.gpus_per_model out.",
            ("num_gpus", "engine.gpus_per_model"),
        )
    return num_gpus - num_gpus % each


def check_demo(config: RunConfig) -> None:
    """Raises UserError for settings that the demo would have to ignore."""
    for field in ("model", "data"):
        if getattr(config, field) not in (None, DEMO):
            raise UserError(
                f"mode demo brings its own model and problems but {field} is {getattr(config, field)!r}; leave it out, "
                "or set mode to run.",
                (field, "mode"),
            )
    if config.data is None and (own := PRESETS[config.task.preset].data):
        raise UserError(
            f"mode demo brings its own problems but task.preset {config.task.preset} is of {own}; leave it out, or set "
            "mode to run.",
            ("task.preset", "mode"),
        )
    if config.sampler.kind != "power":
        raise UserError(
            "The demo compares greedy, two temperatures and power sampling and cannot take sampler.kind; leave it out, "
            "or run one sampler alone with demo, or a model and data of your own, as model and data.",
            ("model", "data"),
        )


def runs_of(config: RunConfig) -> list[RunConfig]:
    """The runs of a resolved configuration: itself, or in demo mode four that share model, problems and seed."""
    if config.mode != "demo":
        return [config]
    root, power = config.run_dir or demo_directory(config), config.sampler
    assert isinstance(power, Power), "check_demo refuses the others"
    samplers = [Greedy(), AtTemperature(1.0), AtTemperature(1 / power.alpha), power]
    return [
        config.model_copy(update={"mode": "run", "name": f"{DEMO}/{name}", "run_dir": root / name, "sampler": sampler})
        for name, sampler in zip(DEMO_RUNS, samplers, strict=True)
    ]


def demo_directory(config: RunConfig) -> Path:
    """`runs/demo` for the usual demo, else `runs/demo-DIGEST`: demos whose answers differ never share a directory."""
    demos = config, resolve(RunConfig(), 0)
    inputs = [Provenance(DEMO, DEMO, demo.task.train_data, adapter=demo.engine.adapter) for demo in demos]
    usual = fingerprint(demos[1], inputs[1])
    directory = default_directory(DEMO, config, inputs[0])
    return Path("runs") / DEMO if usual == fingerprint(config, inputs[0]) and not directory.exists() else directory


def run_directory(config: RunConfig, provenance: Provenance) -> Path:
    """The directory of a run."""
    return config.run_dir or default_directory(config.name, config, provenance)


def default_directory(name: str, config: RunConfig, provenance: Provenance) -> Path:
    """`runs/NAME-FINGERPRINT`; where an older version has begun the run, the name that it gave it."""
    own, former = (Path("runs") / f"{name}-{digest[:8]}" for digest in fingerprints(config, provenance))
    return former if former.exists() and not own.exists() else own


class Provenance(NamedTuple):
    """Digests of a run's inputs, whatever their names on this machine.

    Data and replayed texts may grow while the run stays the same: of them the first row and the first text identify it.
    """

    model: str
    """Digest of a local model's files, or the commit of a model from the hub."""
    data: str
    """Digest of all rows, before any limit; for runs of older versions."""
    train_data: str | None = None
    """Digest of the rows that solved examples come from; None without examples."""
    texts: str | None = None
    """Digest of the texts that are replayed, for runs of older versions; None where nothing is."""
    adapter: str | None = None
    """Digest of the adapter that is merged into the model; None without one."""
    first_row: str = ""
    first_text: str | None = None


def fingerprint(config: RunConfig, provenance: Provenance) -> str:
    """Hex sha256 of all that decides an answer: what two starts must share to be the same run. Needs a resolved config.

    Slots, workers, GPUs, paths and report options are not in it: they may change from one start to the next. Neither
    are the limit and the number of samples, by which a run grows.
    """
    own = {"first_row": provenance.first_row, "first_text": provenance.first_text}
    return hashed(config, provenance, {name: digest for name, digest in own.items() if digest})


def former_fingerprint(config: RunConfig, provenance: Provenance) -> str:
    """The fingerprint that versions without extents gave a run: its size, and all data and texts, are in it."""
    own = {"data": provenance.data, "limit": config.limit, "num_samples": config.num_samples}
    return hashed(config, provenance, own | ({"texts": provenance.texts} if provenance.texts else {}))


def fingerprints(config: RunConfig, provenance: Provenance) -> tuple[str, str]:
    """The fingerprints by which a run directory may know this run."""
    return fingerprint(config, provenance), former_fingerprint(config, provenance)


def hashed(config: RunConfig, provenance: Provenance, own: Mapping[str, JsonValue]) -> str:
    """Hex sha256 of what both kinds of fingerprint have in common, and of their `own`."""
    sampler = {name: value for name, value in settings_of(config.sampler).items() if name != "texts"}  # a path
    newer = {"max_prompt_tokens", "chat_template_args", "thought_end"}  # which older runs did not know
    unset = {name for name in newer if getattr(config.task, name) in (None, {})}
    contents = {
        "record_format": RECORD_FORMAT,
        "model": provenance.model,
        "train_data": provenance.train_data,
        "task": config.task.model_dump(exclude={"train_data", "data_config", *unset}),
        "sampler": sampler,
        "seed": config.seed,
        "dtype": config.engine.dtype,
        **({"adapter": provenance.adapter} if provenance.adapter else {}),
        **({"float32_logits": True} if config.engine.float32_logits else {}),
        **own,
    }
    return hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
