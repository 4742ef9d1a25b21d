"""Data and a model too large for the project, which a clone does not have: tests that need them are skipped there, and
conftest.py has the run end with what README claims and they would have checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from support.places import ROOT

SHARED = Path(os.environ.get("TESTS_SHARED", ROOT.parent / "shared"))
GSM8K_TEST, GSM8K_TRAIN, GSM8K_MODEL = "data/gsm8k/test.jsonl", "data/gsm8k/train.jsonl", "models/gsm8k-25m"
UNCHECKED, NEEDS = "not checked: ", "; needs "


def needs_shared(*paths: str, claim: str) -> pytest.MarkDecorator:
    """Skips a test where one of `paths` below ../shared is absent; `claim` is what README says and the test checks."""
    absent = ", ".join(f"../shared/{path}" for path in paths if not (SHARED / path).exists())
    return pytest.mark.skipif(bool(absent), reason=f"{UNCHECKED}{claim}{NEEDS}{absent}")


def unchecked(reports: Iterable[Any]) -> dict[str, str]:
    """The claims of pytest's reports of skipped tests, each with the places where its data would have to be."""
    found: dict[str, dict[str, None]] = {}
    for report in reports:
        reason = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        if UNCHECKED in reason:
            claim, _, places = reason.partition(UNCHECKED)[2].rpartition(NEEDS)
            found.setdefault(claim, {}).update(dict.fromkeys(places.split(", ")))
    return {claim: ", ".join(places) for claim, places in found.items()}
