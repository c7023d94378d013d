"""Shows how a run stands: a live display in a terminal, plain lines elsewhere."""

from __future__ import annotations

import atexit
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from freewheel.events import (
    Dropped,
    Evaluated,
    Evaluating,
    Event,
    Monitor,
    Resumed,
    RunFinished,
    RunStarted,
    Tick,
    WorkerFailed,
    WorkerRestarted,
    WorkersChanged,
    WorkersKept,
    WorkerSlowed,
)
from freewheel.report import wording

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.live import Live

EVERY_S = 5.0  # plain lines: at most one in this many seconds of the training clock
SLOW_S = 1.0  # plain lines: an evaluation is said to begin where the one before took as long
WINDOW_S = 5.0  # samples per second are a mean over this long
MOST_WORKERS = 8  # more than these are shown as a range

_REASONS = {
    "epochs": "done",
    "max_samples": "done",
    "max_seconds": "time is up",
    "target": "target reached",
    "interrupted": "interrupted",
    "error": "ended with an error",
}


@dataclass
class _State:
    """What is known of the run; `take` updates it, the functions below only read it."""

    started: RunStarted
    recent: deque[tuple[float, tuple[int, ...]]] = field(default_factory=lambda: deque([(0.0, ())]))
    seconds: float = 0.0
    loss: float = math.nan
    staleness: float = math.nan
    rss_bytes: float = math.nan
    evaluated: Evaluated | None = None
    evaluating: float | None = None  # when the evaluation that goes on began; None if there is none
    evaluation_s: float = math.inf  # how long the last one took: unknown
    dropped: dict[tuple[int, str], int] = field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(self.recent[-1][1])

    def take(self, event: Event) -> None:
        if isinstance(event, Tick):
            self.seconds, self.evaluating = event.seconds, None
            self.loss = (
                event.loss if math.isfinite(event.loss) else self.loss
            )  # NaN: no step since the last tick
            self.staleness = event.staleness if math.isfinite(event.staleness) else self.staleness
            self.rss_bytes = event.rss_bytes
            self.recent.append((event.seconds, tuple(event.samples)))
            while len(self.recent) > 2 and self.recent[1][0] <= event.seconds - WINDOW_S:
                self.recent.popleft()
        elif isinstance(event, Resumed):
            self.seconds = event.seconds
            self.recent = deque([(event.seconds, tuple(event.samples))])
        elif isinstance(event, Evaluating):
            self.evaluating = time.perf_counter()
        elif isinstance(event, Evaluated):
            self.evaluated = event
            if self.evaluating is not None:
                self.evaluation_s, self.evaluating = time.perf_counter() - self.evaluating, None
        elif isinstance(event, Dropped):
            self.dropped[event.worker, event.reason] = event.count


def progress(console: Console | None = None) -> Monitor:
    """A monitor that shows how a run stands.

    In a terminal it is a display that is drawn anew at every tick: progress and time left, loss, the last
    evaluation, samples per second in total and by worker, mean staleness, memory. Elsewhere (a pipe, a log,
    a notebook) it is a line for each evaluation (two where it takes long, so that nobody wonders why nothing
    happens) and at most one in five seconds of the training clock. Either
    way the end of the run is one line. It starts no thread, and serves several runs one after the other.

    Args:
        console: where to; standard error if left out, so that standard output stays for results.

    Example:
        >>> import io
        >>> from rich.console import Console
        >>> from freewheel.events import RunStarted
        >>> show = progress(Console(file=io.StringIO()))
        >>> show(RunStarted("hogwild", "threads", 2, 16, 0, 1000, None, 10, None))
    """
    if console is None:
        from rich.console import Console as RichConsole

        console = RichConsole(stderr=True)
    return _terminal(console) if console.is_terminal and not console.is_dumb_terminal else _plain(console)


def _plain(console: Console) -> Monitor:
    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    state: _State | None = None
    said = 0.0  # training clock of the last line

    def show(event: Event) -> None:
        nonlocal state, said
        if isinstance(event, RunStarted):
            state, said = _State(event), 0.0
            say(title(event))
        if state is None:
            return
        state.take(event)
        if isinstance(event, Tick) and event.seconds - said >= EVERY_S:
            said = event.seconds
            say(_line(state))
        elif isinstance(event, Evaluating) and state.evaluation_s >= SLOW_S:
            say(f"{state.seconds:9.1f} s  {wording.count(state.samples)} samples  evaluating")
        elif isinstance(event, Evaluated):
            said = max(said, event.seconds)
            at = f"{event.seconds:9.1f} s  {wording.count(event.samples)} samples"
            say(f"{at}  evaluated: {_metrics(event.metrics)}")
        _ending(event, state, say)

    return show


def _terminal(console: Console) -> Monitor:
    from rich.live import Live

    state: _State | None = None
    live: Live | None = None

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(event: Event) -> None:
        nonlocal state, live
        if isinstance(event, RunStarted):
            if live is not None:  # the run before broke off without a word
                live.stop()
                atexit.unregister(live.stop)
            state = _State(event)
            live = Live(_panel(state), console=console, auto_refresh=False, transient=True)
            live.start()
            atexit.register(live.stop)  # a run that breaks off must not leave the terminal without its cursor
        if state is None or live is None:
            return
        state.take(event)
        if isinstance(event, RunFinished):
            live.stop()
            atexit.unregister(live.stop)
            live = None
            say(title(state.started))
        elif isinstance(event, (Tick, Evaluating, Evaluated)):
            live.update(_panel(state), refresh=True)
        _ending(event, state, say)

    return show


def _ending(event: Event, state: _State, say: Callable[[str], None]) -> None:
    if isinstance(event, Resumed):
        done = wording.plural(sum(event.samples), "sample")
        say(f"goes on from {event.checkpoint}: {done} in {wording.duration(event.seconds)} were done")
    elif isinstance(event, WorkerFailed):
        then = "; another takes its place" if event.replaced else ""
        say(f"worker {event.worker} failed in its step {event.sequence}: {event.error}{then}")
    elif isinstance(event, WorkerRestarted):
        say(f"worker {event.worker} is there again, in its life number {event.incarnation + 1}")
    elif isinstance(event, WorkerSlowed):
        what = f"is slow: its steps take {event.times:.1f} times as long as the others'"
        say(f"worker {event.worker} {what if event.slow else 'keeps up again'}")
    elif isinstance(event, WorkersChanged) and event.before != event.after:
        number = wording.plural(event.after, "worker")
        pause = f", after {wording.duration(event.took_s)}" if event.took_s else ""
        say(f"goes on with {number} in place of {event.before}{pause}")
    elif isinstance(event, WorkersKept):
        say(f"keeps {wording.plural(event.workers, 'worker')}: {event.reason}")
    elif isinstance(event, RunFinished):
        say(summary(event, state.started))


def title(run: RunStarted) -> str:
    """What is being trained, and how.

    >>> title(RunStarted("hogwild", "threads", 2, 16, 0, 30000, None, 421642, None))
    'hogwild on threads, 2 workers: 421,642 weights, batch 16, seed 0, 30,000 samples planned'
    """
    model = run.config.get("model")
    what = f"{model}, {run.trainable:,} weights" if isinstance(model, str) else f"{run.trainable:,} weights"
    planned = [f"{run.planned_samples:,} samples"] if run.planned_samples is not None else []
    planned += [f"at most {wording.duration(run.max_seconds)}"] if run.max_seconds is not None else []
    plan = f", {', '.join(planned)} planned" if planned else ""
    goal = f", until {run.target[0]} {run.target[1]:g}" if run.target else ""
    how = f"{run.method} on {run.engine}, {wording.plural(run.workers, 'worker')}"
    reason = run.config.get("engine_reason")
    why = f"; {run.engine} chosen: {reason}" if reason else ""
    return f"{how}: {what}, batch {run.batch_size}, seed {run.seed}{plan}{goal}{why}"


def summary(done: RunFinished, run: RunStarted) -> str:
    """How the run ended, in one line."""
    how = _REASONS.get(done.reason, done.reason)
    rate = f" ({wording.rate(done.samples / done.seconds)}/s)" if done.seconds > 0 else ""
    parts = [f"{how}: {wording.plural(done.samples, 'sample')} in {wording.duration(done.seconds)}{rate}"]
    parts += [_metrics(done.metrics)] if done.metrics else []
    if run.target is not None:
        when = done.target_seconds
        parts.append(f"target after {wording.duration(when)}" if when is not None else "target not reached")
    updates = sum(done.staleness.values())
    if updates:
        mean = sum(value * count for value, count in done.staleness.items()) / updates
        parts.append(f"mean staleness {mean:.2f}")
    dropped = done.ledger.get("dropped") or {}
    parts += [f"{wording.plural(count, 'update')} dropped ({reason})" for reason, count in dropped.items()]
    parts += [f"peak memory {wording.size(done.peak_rss_bytes)}"] if done.peak_rss_bytes else []
    return ", ".join(parts)


def fraction(state: _State) -> float | None:
    """How much of the plan is done, 0 to 1; None where the run has no end but its target."""
    run = state.started
    parts = [state.samples / run.planned_samples] if run.planned_samples else []
    parts += [state.seconds / run.max_seconds] if run.max_seconds else []
    return min(max(parts), 1.0) if parts else None


def rates(state: _State) -> list[float]:
    """Samples per second of each worker, lately."""
    (begin, before), (end, now) = state.recent[0], state.recent[-1]
    if end <= begin:
        return []
    before = before + (0,) * (len(now) - len(before))
    return [(after - count) / (end - begin) for after, count in zip(now, before, strict=False)]


def left(state: _State) -> float | None:
    """Seconds of training until the plan is done; None where that is unknown."""
    run, rate = state.started, sum(rates(state))
    ways = [(run.planned_samples - state.samples) / rate] if run.planned_samples and rate > 0 else []
    ways += [run.max_seconds - state.seconds] if run.max_seconds else []
    return max(min(ways), 0.0) if ways else None


def _metrics(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {wording.metric(value)}" for name, value in metrics.items())


def _line(state: _State) -> str:
    share, remaining = fraction(state), left(state)
    parts = [f"{state.seconds:9.1f} s", f"{wording.count(state.samples)} samples"]
    parts += [f"{share:.0%}"] if share is not None else []
    parts += [f"{wording.rate(sum(rates(state)))}/s", f"loss {wording.metric(state.loss)}"]
    parts += [f"staleness {state.staleness:.2f}"] if math.isfinite(state.staleness) else []
    parts += [f"memory {wording.size(state.rss_bytes)}"]
    parts += [f"{wording.duration(remaining)} left"] if remaining is not None else []
    return "  ".join(parts)


def _panel(state: _State) -> RenderableType:
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    share, remaining = fraction(state), left(state)
    until = f"{wording.duration(remaining)} left" if remaining is not None else ""
    head = Table.grid(padding=(0, 1), expand=True)
    head.add_column(ratio=1)
    for _ in range(3):
        head.add_column(no_wrap=True)
    bar = (
        ProgressBar(total=1.0, completed=share)
        if share is not None
        else Text("until the target", style="dim")
    )
    head.add_row(
        bar,
        f"{share:.0%}" if share is not None else f"{state.samples:,} samples",
        Text(wording.duration(state.seconds), style="dim"),
        Text(until, style="dim") if state.evaluating is None else Text("evaluating", style="bold"),
    )
    body = Table.grid(padding=(0, 2))
    body.add_column(style="dim", no_wrap=True)
    body.add_column()
    for name, value in _rows(state):
        body.add_row(name, Text(value))
    return Group(Text(title(state.started), style="bold"), head, body)


def _rows(state: _State) -> list[tuple[str, str]]:
    by_worker = rates(state)
    rows = [("loss", wording.metric(state.loss))]
    if state.evaluated is not None:
        rows.append(("evaluated", f"{_metrics(state.evaluated.metrics)} (epoch {state.evaluated.epoch:.2f})"))
    if by_worker:
        each = "  ".join(wording.rate(rate) for rate in by_worker)
        if len(by_worker) > MOST_WORKERS:
            each = f"{wording.rate(min(by_worker))} to {wording.rate(max(by_worker))}"
        rows.append(("samples/s", f"{wording.rate(sum(by_worker))}  (by worker: {each})"))
    if math.isfinite(state.staleness):
        rows.append(("staleness", f"{state.staleness:.2f}"))
    if math.isfinite(state.rss_bytes):
        rows.append(("memory", wording.size(state.rss_bytes)))
    if state.dropped:
        rows.append(("dropped", f"{wording.plural(sum(state.dropped.values()), 'update')}"))
    return rows
