"""Metrics: every one filled from records and rows, the trackers, and what is drawn of them."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from evals.types import UserError
from orchestrator.cluster.ray_session import dashboard_line
from orchestrator.driver.session import publishing, sinks
from orchestrator.inputs.preflight import check_tracker
from orchestrator.live.metrics import METRICS, Metrics
from orchestrator.live.progress import Progress
from orchestrator.rundir.reading.telemetry import read_telemetry
from orchestrator.rundir.telemetry_rows import Event
from orchestrator.rundir.writing.telemetry_log import Telemetry
from orchestrator.settings.config import RunConfig, resolve
from support.made_up import failed_record, make_record, on_gpu
from support.places import ROOT

LAUNCH = ROOT / "launch"


class Recorder:
    """A sink that keeps what it is given."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def emit(self, name: str, value: float, labels: Mapping[str, str]) -> None:
        assert tuple(labels) == METRICS[name].labels
        place = name, *labels.values()
        if METRICS[name].kind == "counter":
            assert value >= 0
            value += self.values.get(place, 0)
        self.values[place] = value

    def close(self) -> None: ...


def test_every_metric_is_filled() -> None:
    sink, progress = Recorder(), Progress("mine", 9, out=io.StringIO())
    metrics = Metrics("mine", progress, [sink])
    for record in (make_record(0), make_record(1, correct=False), failed_record(2), make_record(0, sample_index=1)):
        progress.add(record)
        metrics.record(record)
    metrics.add_row(on_gpu("gpu0", tokens_per_second=70.0, nvml_used_bytes=7))
    metrics.add_row(Event(event="death", time=1.0, worker="gpu0"))
    metrics.add_row(Event(event="ready", time=1.0, worker="gpu0"))
    assert sink.values == {
        (name, "mine", *labels.split()): value
        for name, labels, value in (
            ("problems_total", "ok", 3), ("problems_total", "failed", 1), ("tokens_total", "", 3 * 330),
            ("answer_seconds_total", "", 7.0), ("moves_total", "", 30), ("failures_total", "death", 1),
            ("accuracy", "", pytest.approx(1 / 3)), ("owed", "", 5), ("slots", "gpu0", 10), ("active_slots", "gpu0", 9),
            ("tokens_per_second", "gpu0", 70.0), ("memory_bytes", "gpu0", 30 << 30), ("utilisation", "gpu0", 0.97),
            ("device_memory_bytes", "gpu0", 7),
        )
    }  # fmt: skip
    assert {key[0] for key in sink.values} == METRICS.keys()


def test_a_tracker_gets_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def init(**options: Any) -> Any:
        calls.append(options)
        return SimpleNamespace(log=calls.append, finish=lambda: calls.append("finish"))

    monkeypatch.setitem(sys.modules, "trackio", SimpleNamespace(init=init))
    config = resolve(RunConfig(model="m", data="d", inline=True, track="trackio"), 0)
    outlets = sinks(config)
    telemetry, progress = Telemetry(tmp_path / "telemetry.jsonl"), Progress("mine", 2, out=io.StringIO())
    with publishing(telemetry, progress, outlets, config.name):
        progress.add(make_record(0))
        telemetry.write_state(on_gpu("cpu0"))
    telemetry.close()
    assert calls[0]["project"] == "powersample"
    assert calls[0]["config"]["sampler"]["kind"] == "power"
    assert calls[1]["tokens_total"] == 330
    assert calls[1]["active_slots/cpu0"] == 9
    assert calls[2:] == ["finish"]
    assert "9 of 10" in progress.as_text()


@pytest.mark.parametrize("error", [None, KeyboardInterrupt])
def test_nobody_hears_of_rows_after_the_run_has_been_driven(error: type[BaseException] | None, tmp_path: Path) -> None:
    """A tracker has finished by then, and the progress has said its last line."""
    sink, out = Recorder(), io.StringIO()
    telemetry, progress = Telemetry(tmp_path / "telemetry.jsonl"), Progress("mine", 2, out=out)
    with pytest.raises(error) if error else nullcontext(), publishing(telemetry, progress, [sink], "mine"):
        telemetry.write_state(on_gpu("cpu0"))
        if error:
            raise error
    frame, values = progress.as_text(), dict(sink.values)
    assert values["active_slots", "mine", "cpu0"] == 9
    telemetry.write_state(on_gpu("cpu1"))
    telemetry.write(Event(event="death", time=1.0, worker="cpu0", cause="crash", lost=1, reason="killed"))
    telemetry.close()
    assert (progress.as_text(), sink.values) == (frame, values)
    assert len(read_telemetry(tmp_path / "telemetry.jsonl")) == 3


def test_a_tracker_that_is_not_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestrator.inputs.preflight.find_spec", lambda name: None)
    check_tracker(None)
    with pytest.raises(UserError, match="The tracker wandb is not installed; pip install wandb"):
        check_tracker("wandb")


def test_the_dashboard_says_how_to_come_in() -> None:
    said = dashboard_line("127.0.0.1:8270")
    assert "http://127.0.0.1:8270 " in said
    assert re.search(r"`\S+ get-auth-token`", said)
    assert "ssh -L 8270:127.0.0.1:8270 THIS_HOST" in said


def test_grafana_draws_metrics_that_exist() -> None:
    board = json.loads((LAUNCH / "grafana.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    named = {name for query in queries for name in re.findall(r"ray_powersample_(\w+)", query)}
    assert named == METRICS.keys(), "every metric is drawn, and no other"
    for query in queries:
        for name in re.findall(r"ray_powersample_(\w+)", query):
            assert (METRICS[name].kind == "counter") == bool(
                re.search(rf"(rate|increase)\(ray_powersample_{name}", query)
            )
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)


def test_prometheus_asks_every_node_of_ray() -> None:
    jobs = yaml.safe_load((LAUNCH / "prometheus.yml").read_text())["scrape_configs"]
    assert jobs[0]["file_sd_configs"][0]["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]


def test_the_documented_table_is_that_of_the_code() -> None:
    text = (LAUNCH.parent / "docs" / "monitoring.md").read_text()
    rows = [
        f"| `powersample_{name}` | {kind} | {', '.join(labels)} | {what} |"
        for name, (kind, labels, what) in METRICS.items()
    ]
    assert text.rstrip().splitlines()[-len(rows) :] == rows
