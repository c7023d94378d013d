"""A job is what an engine runs; a result is what comes of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn

from freewheel.errors import ConfigurationError
from freewheel.events import Evaluated, Event, WorkerRestarted
from freewheel.methods import Method
from freewheel.metrics import Target, smaller_is_better
from freewheel.recording.trace import Trace
from freewheel.sources import Source
from freewheel.tasks import Task

if TYPE_CHECKING:
    from freewheel.checkpoints.origin import Origin
    from freewheel.checkpoints.saver import Saver
    from freewheel.elastic import Requests


@dataclass(frozen=True)
class Stop:
    """When a run ends: at whichever of these comes first.

    Attributes:
        epochs: passes over the data.
        max_samples: examples; rounded up to whole minibatches.
        max_seconds: of training; evaluation does not count.
        target: ``("accuracy", 0.9)``: reached when the metric is at least as good at two evaluations in a
            row. Names of costs (loss, error, perplexity, mse and so on) are better when smaller, others when
            larger; ``("latency", 0.1, "min")`` or ``"max"`` says it where the name does not.
    """

    epochs: int | None = None
    max_samples: int | None = None
    max_seconds: float | None = None
    target: Target | None = None

    def __post_init__(self) -> None:
        for name, kind in (("epochs", int), ("max_samples", int), ("max_seconds", int | float)):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, kind) and value > 0):
                what = "a whole number" if kind is int else "a number"
                raise ConfigurationError(
                    f"`{name}` must be {what} > 0, got {value!r}; leave it out for no limit"
                )
        self._check_target()
        if self.epochs is self.max_samples is self.max_seconds is None:
            raise ConfigurationError("a run must end: give `epochs`, `max_samples` or `max_seconds`")

    def _check_target(self) -> None:
        if self.target is None:
            return
        self._check_share(self.target)
        match self.target:
            case (str(), int() | float() as goal) if math.isfinite(goal):
                return
            case (str(), int() | float() as goal, "min" | "max") if math.isfinite(goal):
                return
        raise ConfigurationError(
            "`target` must be a metric and a number, ('accuracy', 0.9), and may end in 'min' or 'max', got"
            f" {self.target!r}"
        )

    @staticmethod
    def _check_share(target: Target) -> None:
        match target:
            case ("accuracy", int() | float() as goal, *_) if goal > 1:
                raise ConfigurationError(
                    f"`target` accuracy is a share from 0 to 1, got {goal!r}; 95 % is ('accuracy', 0.95)"
                )

    def check_metrics(self, names: Iterable[str]) -> None:
        """Refuses a target that is not among the metrics.

        Raises:
            ConfigurationError: the evaluation does not give the metric; the message lists those that it
                gives.
        """
        if self.target is not None and self.target[0] not in names:
            given = ", ".join(sorted(names)) or "nothing"
            raise ConfigurationError(
                f"`target` names {self.target[0]!r}, but the evaluation gives {given}; name one of these,"
                " or add yours to `metrics`"
            )

    def is_reached(self, metrics: dict[str, float]) -> bool:
        """Whether the target holds for these metrics."""
        if self.target is None:
            return False
        self.check_metrics(metrics)
        name, goal = self.target[:2]
        small = smaller_is_better(name, self.target)
        return metrics[name] <= goal if small else metrics[name] >= goal


@dataclass(frozen=True)
class Evaluation:
    """How a model is measured.

    Attributes:
        measure: the trained module, in evaluation mode -> metrics.
        every: examples between two evaluations; None is once an epoch.
    """

    measure: Callable[[nn.Module], dict[str, float]]
    every: int | None = None

    def __post_init__(self) -> None:
        if self.every is not None and not (isinstance(self.every, int) and self.every >= 1):
            raise ConfigurationError(
                f"`evaluate_every` must be a whole number >= 1 of examples, got {self.every!r}"
            )


@dataclass(frozen=True)
class Setup:
    """What a run is given of the machine.

    Attributes:
        workers: how many.
        intra_op_threads: PyTorch threads that each worker may use inside one operation.
        seed: of the shuffling, of the workers' generators, and of PyTorch's generator during the run.
        channels_last: store 4-D weights with the channels fastest.
        shards: spans of the weights, each with a version and a rule state of its own.
        former: workers that have a place in the books, those that have left among them, if there are more
            than work now.
    """

    workers: int = 1
    intra_op_threads: int = 1
    seed: int = 0
    channels_last: bool = False
    shards: int = 1
    former: int = 0

    @property
    def places(self) -> int:
        """How many have a place in the books."""
        return max(self.workers, self.former)

    def __post_init__(self) -> None:
        for name in ("workers", "intra_op_threads", "shards"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"`{name}` must be a whole number >= 1, got {value!r}")


@dataclass(frozen=True)
class Supervision:
    """What becomes of workers that fail.

    Attributes:
        on_error: "restart" replaces them, "stop" ends the run.
        max_restarts: of the whole run.
        step_timeout: seconds after which a step hangs; None: much longer than the longest so far, and on
            threads never.
    """

    on_error: Literal["restart", "stop"] = "stop"
    max_restarts: int = 10
    step_timeout: float | None = None

    def __post_init__(self) -> None:
        if self.on_error not in ("restart", "stop"):
            raise ConfigurationError(f"`on_error` must be 'restart' or 'stop', got {self.on_error!r}")
        restarts = self.max_restarts
        if not isinstance(restarts, int) or isinstance(restarts, bool) or restarts < 0:
            raise ConfigurationError(
                f"`max_restarts` must be a whole number >= 0, got {restarts!r};"
                " on_error='stop' replaces nobody"
            )
        timeout = self.step_timeout
        number = isinstance(timeout, int | float) and not isinstance(timeout, bool)
        if timeout is not None and not (number and timeout > 0):
            raise ConfigurationError(
                f"`step_timeout` must be a number of seconds > 0, got {timeout!r}; math.inf waits for ever"
            )


@dataclass(frozen=True)
class Checkpointing:
    """Where the state of a run is written to, and where it comes from.

    Attributes:
        identity: what of the job must be the same where a run goes on, as JSON values.
        saver: writes checkpoints; None for none.
        origin: what the run goes on from; None: it begins anew.
    """

    identity: dict[str, Any]
    saver: Saver | None = None
    origin: Origin | None = None


@dataclass(frozen=True)
class Job:
    """Everything that an engine needs.

    Attributes:
        module: the user's; at the end it holds the trained weights.
        task: what one worker computes in one step.
        method: how workers and the server relate.
        source: which batch comes next.
        stop: when it ends.
        setup: workers, threads, seed.
        evaluation: how and when the model is measured; None for never.
        config: further settings for the record, JSON values.
        trace: where the order of pulls and pushes is noted; None if the run is not recorded.
        checkpoints: where its state is kept, and comes from; None for neither.
        supervision: what becomes of workers that fail.
        requests: for another number of workers while it runs; None where nobody looks for any.
    """

    module: nn.Module
    task: Task[Any]
    method: Method
    source: Source
    stop: Stop
    setup: Setup = field(default_factory=Setup)
    evaluation: Evaluation | None = None
    config: dict[str, Any] = field(default_factory=dict)
    trace: Trace | None = None
    checkpoints: Checkpointing | None = None
    supervision: Supervision = field(default_factory=Supervision)
    requests: Requests | None = None


@dataclass(frozen=True)
class Worker:
    """What one worker did."""

    worker: int
    samples: int
    steps: int
    samples_per_second: float


@dataclass(frozen=True)
class Result:
    """What came of a run.

    Attributes:
        module: the trained module, the user's own object.
        reason: why it ended: "epochs", "max_samples", "max_seconds", "target" or "interrupted".
        history: one entry an evaluation, with seconds, samples and metrics.
        metrics: of the last evaluation.
        seconds: training time; evaluation does not count.
        wall_seconds: from start to end.
        cpu_seconds: processor time of this process and of worker processes while training.
        samples: examples used.
        steps: of all workers.
        staleness: staleness -> number of updates that had it.
        ledger: pushed = applied + absorbed + pending + the dropped by reason.
        workers: per worker.
        peak_rss_bytes: highest resident memory seen while the run went on; worker processes count, what they
            share counts once.
        start_rss_bytes: resident memory when it began.
        target_seconds: training time at which the target was first met; None if it was not.
        config: the settings.
        events: everything that happened, without the single steps.
    """

    module: nn.Module = field(repr=False)
    reason: str
    history: tuple[Evaluated, ...] = field(repr=False)
    metrics: dict[str, float]
    seconds: float
    wall_seconds: float
    cpu_seconds: float
    samples: int
    steps: int
    staleness: dict[int, int] = field(repr=False)
    ledger: dict[str, Any]
    workers: tuple[Worker, ...] = field(repr=False)
    peak_rss_bytes: int
    start_rss_bytes: int
    target_seconds: float | None
    config: dict[str, Any] = field(repr=False)
    events: tuple[Event, ...] = field(repr=False)

    @property
    def samples_per_second(self) -> float:
        """Examples per second of training, all workers together."""
        return self.samples / self.seconds if self.seconds > 0 else 0.0

    @property
    def mean_staleness(self) -> float:
        """Mean number of updates that were applied between a worker's pull and its push."""
        updates = sum(self.staleness.values())
        return sum(value * count for value, count in self.staleness.items()) / updates if updates else 0.0

    @property
    def restarts(self) -> int:
        """How often a worker that had failed was replaced."""
        return sum(isinstance(event, WorkerRestarted) for event in self.events)

    def report(self, path: str | Path, png: bool = False) -> Path:
        """Writes a self-contained HTML report with plots.

        Args:
            path: of the HTML file.
            png: write each plot as a PNG file beside it, too.

        Returns:
            The path of the HTML file.
        """
        from freewheel.report import Run, write

        return write([Run(self.config.get("label", self.config["method"]), list(self.events))], path, png=png)
