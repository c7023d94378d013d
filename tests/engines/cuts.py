"""Runs that write a checkpoint at a chosen step, whatever the clock says, and what must be equal after it."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from laws import state
from torch import Tensor, nn

import freewheel
from freewheel.checkpoints.folder import CHECKPOINTS
from freewheel.checkpoints.saver import Saver
from freewheel.engines.threads import _Crew


def checkpoints(run: Path) -> dict[int, Path]:
    """The checkpoints of a run by their number of steps."""
    return {int(path.name): path for path in sorted((run / CHECKPOINTS).iterdir())}


def cut_after(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Has a serial run write a checkpoint after each of these steps; other runs write theirs at the end."""
    looks = itertools.count(1)
    monkeypatch.setattr(Saver, "is_due", lambda saver, seconds: next(looks) in steps)


class CutInStep:
    """Has a run on threads take a checkpoint while a step is computed, so that it is cut in the middle.

    Its ``loss`` is the run's: the step does not end before the main thread has asked for the checkpoint.
    """

    def __init__(self) -> None:
        self.step = 0
        self.steps = itertools.count(1)
        self.reached, self.asked = threading.Event(), threading.Event()

    def patch(self, monkeypatch: pytest.MonkeyPatch, step: int) -> None:
        def noted(crew: _Crew, name: str, value: Any) -> None:
            object.__setattr__(crew, name, value)
            if name == "wanted" and value:
                self.asked.set()

        self.step = step
        monkeypatch.setattr(_Crew, "__setattr__", noted)
        monkeypatch.setattr(Saver, "is_due", self.is_due)

    def is_due(self, seconds: float) -> bool:
        return self.reached.is_set() and not self.asked.is_set()

    def loss(self, prediction: Tensor, target: Tensor) -> Tensor:
        trains = threading.current_thread() is not threading.main_thread()
        if trains and next(self.steps) == self.step:
            self.reached.set()
            assert self.asked.wait(60)
        return nn.functional.cross_entropy(prediction, target)


def assert_equal(resumed: freewheel.Result, whole: freewheel.Result) -> None:
    """Everything that does not depend on time is the same, bit for bit."""
    assert torch.equal(state(resumed.module), state(whole.module))
    assert resumed.ledger == whole.ledger
    assert resumed.staleness == whole.staleness
    assert (resumed.reason, resumed.samples, resumed.steps) == (whole.reason, whole.samples, whole.steps)
    assert [(w.samples, w.steps) for w in resumed.workers] == [(w.samples, w.steps) for w in whole.workers]
    assert [(e.samples, e.metrics) for e in resumed.history] == [
        (e.samples, e.metrics) for e in whole.history
    ]
