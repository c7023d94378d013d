"""Writes checkpoints while training goes on, in a thread of its own, one at a time."""

from __future__ import annotations

import threading
import time
import warnings
from collections import deque
from pathlib import Path
from typing import NamedTuple, final

from freewheel.checkpoints import folder
from freewheel.checkpoints.tree import Tree
from freewheel.errors import CheckpointError
from freewheel.events import CheckpointFailed, CheckpointWritten


class Cut(NamedTuple):
    """The state of a run at one moment.

    Attributes:
        steps: of all workers until then.
        seconds: training clock.
        tree: the state, in memory of its own.
    """

    steps: int
    seconds: float
    tree: Tree


@final
class Saver:
    """Decides when a checkpoint is due, and writes it beside the training.

    Args:
        parent: the folder of the run's checkpoints.
        every: seconds of training between two; None: only at the end of the run.
        keep: how many to keep.
    """

    def __init__(self, parent: Path, every: float | None, keep: int) -> None:
        self._parent, self._every, self._keep = parent, every, keep
        self._last_s = 0.0
        self._written = -1  # steps of the newest complete checkpoint that this run wrote
        self._thread: threading.Thread | None = None
        self._outcomes: deque[CheckpointWritten | CheckpointFailed] = deque()

    def begin(self, seconds: float, origin: Path | None = None) -> None:
        """The run begins; what a killed one left unfinished here is removed.

        Args:
            seconds: training time.
            origin: the checkpoint that it goes on from, which need not be written again.
        """
        self._last_s = seconds
        folder.sweep(self._parent)
        if origin is not None and origin.resolve().parent == self._parent.resolve():
            self._written = int(origin.name) if origin.name.isdecimal() else -1

    def is_due(self, seconds: float) -> bool:
        """Whether it is time for a checkpoint; not while the one before is still being written."""
        return self._every is not None and seconds - self._last_s >= self._every and not self._is_writing()

    def _is_writing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def save(self, cut: Cut) -> None:
        """Begins to write; returns at once, unless an earlier one is still being written."""
        self.wait()
        self._last_s = cut.seconds
        if cut.steps <= self._written:
            return
        self._thread = threading.Thread(
            target=self._write, args=(cut,), name="freewheel-checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def outcomes(self) -> list[CheckpointWritten | CheckpointFailed]:
        """What has come of checkpoints since the last call; failures are warned of, too."""
        found = [self._outcomes.popleft() for _ in range(len(self._outcomes))]
        for outcome in found:
            if isinstance(outcome, CheckpointFailed):
                warnings.warn(
                    f"no checkpoint of step {outcome.steps} in {self._parent}: {outcome.error}; the run goes"
                    " on, and earlier checkpoints are as they were",
                    stacklevel=2,
                )
        return found

    def _write(self, cut: Cut) -> None:
        began = time.perf_counter()
        try:
            path = folder.write(self._parent, cut.steps, cut.tree, self._keep)
            size = sum(file.stat().st_size for file in path.iterdir())
        except Exception as error:  # whatever it is, the run goes on, and must not do so without a word
            expected = isinstance(error, OSError | CheckpointError)
            text = str(error) if expected else f"{type(error).__name__}: {error}"
            self._outcomes.append(CheckpointFailed(cut.seconds, cut.steps, text))
            return
        self._written = cut.steps
        took = time.perf_counter() - began
        self._outcomes.append(CheckpointWritten(str(path), cut.seconds, cut.steps, size, took))
