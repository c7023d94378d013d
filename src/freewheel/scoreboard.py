"""How a comparison stands, run by run: bars in a terminal, plain lines elsewhere."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from freewheel.events import Evaluated, Evaluating, Event, RunFinished, RunStarted, Tick
from freewheel.fresh_process import Entry
from freewheel.report import wording

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

EVERY_S = 5.0  # plain lines: one in this many seconds

Begin = Callable[[Entry], Callable[[Event], None]]
"""Called when a run begins; what it returns is called with the run's events."""


class Standing(NamedTuple):
    """How one run stands."""

    started: RunStarted | None = None
    seconds: float = 0.0
    samples: int = 0
    loss: float = math.nan
    metrics: dict[str, float] = {}  # noqa: RUF012 - never changed, only replaced
    finished: RunFinished | None = None
    evaluating: bool = False

    def after(self, event: Event) -> Standing:
        """The standing when this has happened, too."""
        if isinstance(event, RunStarted):
            return self._replace(started=event)
        if isinstance(event, Tick):
            loss = event.loss if math.isfinite(event.loss) else self.loss
            samples = sum(event.samples)
            return self._replace(seconds=event.seconds, samples=samples, loss=loss, evaluating=False)
        if isinstance(event, Evaluating):
            return self._replace(evaluating=True)
        if isinstance(event, Evaluated):
            return self._replace(metrics=event.metrics, evaluating=False)
        return self._replace(finished=event) if isinstance(event, RunFinished) else self

    @property
    def share(self) -> float | None:
        """Of the budget that is used up, 0 to 1; None where that is unknown."""
        if self.finished is not None:
            return 1.0
        if self.started is None:
            return 0.0
        planned, most = self.started.planned_samples, self.started.max_seconds
        parts = ([self.samples / planned] if planned else []) + ([self.seconds / most] if most else [])
        return min(max(parts), 1.0) if parts else None

    def words(self) -> str:
        """The standing in a few words."""
        if self.started is None or not (self.samples or self.finished):
            return "starting"
        done = self.finished
        seconds, samples = (done.seconds, done.samples) if done else (self.seconds, self.samples)
        metrics = done.metrics if done and done.metrics else self.metrics
        shown = metrics or {"loss": self.loss}
        name = next((name for name in ("accuracy", "loss") if name in shown), min(shown))
        parts = [f"{name} {wording.metric(shown[name])}"]
        parts.append(f"{wording.rate(samples / seconds)}/s" if seconds > 0 else "")
        parts.append(wording.duration(seconds))
        parts.append({"error": "diverged", "target": "target reached"}.get(done.reason, "") if done else "")
        parts.append("evaluating" if self.evaluating and not done else "")
        return ", ".join(part for part in parts if part)


@contextmanager
def scoreboard(runs: int, console: Console | None = None) -> Iterator[Begin]:
    """Shows a comparison of that many runs.

    Args:
        runs: how many there will be.
        console: where to; standard error if left out, so that standard output stays for results.
    """
    if console is None:
        from rich.console import Console as RichConsole

        console = RichConsole(stderr=True)
    if console.is_terminal and not console.is_dumb_terminal:
        with _bars(console) as progress:
            yield _in_terminal(progress, runs)
    else:
        yield _in_lines(console, runs)


def _bars(console: Console) -> Progress:
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

    return Progress(
        SpinnerColumn(finished_text="[green]*"),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[note]}", markup=False),
        console=console,
    )


def _in_terminal(progress: Progress, runs: int) -> Begin:
    def begin(entry: Entry) -> Callable[[Event], None]:
        number = len(progress.tasks) + 1
        name = f"{number}/{runs} {entry.label}, seed {entry.seed}"
        task = progress.add_task(name, total=1.0, note="starting")
        standing = Standing()

        def listen(event: Event) -> None:
            nonlocal standing
            standing = standing.after(event)
            share = standing.share
            progress.update(
                task, completed=share or 0.0, total=None if share is None else 1.0, note=standing.words()
            )

        return listen

    return begin


def _in_lines(console: Console, runs: int) -> Begin:
    number = 0

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def begin(entry: Entry) -> Callable[[Event], None]:
        nonlocal number
        number += 1
        name = f"{number}/{runs} {entry.label}, seed {entry.seed}"
        say(f"{name}: starting")
        standing, said = Standing(), time.monotonic()

        def listen(event: Event) -> None:
            nonlocal standing, said
            standing = standing.after(event)
            done = isinstance(event, RunFinished)
            if not done and (not standing.samples or time.monotonic() - said < EVERY_S):
                return
            said = time.monotonic()
            share = standing.share
            how = "done, " if done else "" if share is None else f"{share:.0%}, "
            say(f"{name}: {how}{standing.words()}")

        return listen

    return begin


@contextmanager
def silence(runs: int) -> Iterator[Begin]:
    """Shows nothing."""
    yield lambda entry: lambda event: None
