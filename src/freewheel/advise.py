"""``advise``: measures a model, simulates methods with it, and says which to use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from freewheel import methods
from freewheel.advice import Advice, Prediction, common_level
from freewheel.calibrate import RATE, calibrate
from freewheel.calibration import Calibration
from freewheel.engines import Simulated
from freewheel.errors import ConfigurationError, TrainingError
from freewheel.events import Event, Monitor, Steps
from freewheel.fresh_process import Entry
from freewheel.methods import DEFAULT_LR, Method
from freewheel.metrics import Target
from freewheel.park import Park, contestants_of, park_of
from freewheel.schedules import annealed
from freewheel.simulation import Network, as_times
from freewheel.simulation import slow as slowed
from freewheel.simulation.checks import positive
from freewheel.train import fit

EVALUATIONS = 10
MOST_EPOCHS = 3
OF_TIME = 0.6  # of the time for gradients; evaluation, the server's part and measuring take the rest
FEWEST_ROUNDS = 40


def advise(
    model: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    evaluate: Any,
    target: Target | None = None,
    workers: int | None = None,
    network: Network | None = None,
    slow: Mapping[int, float] | None = None,
    contestants: Mapping[str, Method] | None = None,
    lr: float = DEFAULT_LR,
    seconds: float = 60.0,
    max_samples: int | None = None,
    calibration: Calibration | None = None,
    seed: int = 0,
    progress: bool = True,
    **fit_arguments: Any,
) -> Advice:
    """Says which method to use for a model with the workers that one has, or plans to have.

    Measures the model's steps on this machine for some seconds, then trains it by several methods on the
    simulated engine: true gradients, predicted time. All get the same examples, and are compared by the time
    to the target; without one, to the worst metric among those that end near what one worker reaches.

    Args:
        model: a module, or a function that makes one. A module is copied, not changed.
        data: as in :func:`freewheel.fit`.
        evaluate: as in :func:`freewheel.fit`.
        target: what to reach, ``("accuracy", 0.9)``.
        workers: how many; None is one for each core of this machine. More than it has cores are taken as
            machines of their own.
        network: between workers and server; with one, every worker has a machine like this one to itself.
        slow: worker -> how many times slower it is than this machine.
        contestants: label -> method, in place of the usual ones; one worker, who trains like the synchronous
            one of them, comes first in any case.
        lr: learning rate of the usual methods, annealed over the budget; Downpour takes half of it.
        seconds: about how long to take altogether, if not `max_samples` is given.
        max_samples: examples that every method gets.
        calibration: of this model, if there is one already; else steps are measured.
        seed: of weights and order of data.
        progress: show how it stands.
        **fit_arguments: of :func:`freewheel.fit`: ``loss`` or ``step``, ``batch_size``, ``bptt`` and so on.

    Returns:
        Predictions, and advice in words: ``print(advice)``.

    Raises:
        ConfigurationError: an argument cannot be used.
        DataError: the data does not fit.
        KeyboardInterrupt: Ctrl-C.

    Example:
        >>> import torch, freewheel
        >>> x = torch.randn(512, 8); y = (x.sum(1) > 0).long()
        >>> advice = freewheel.advise(torch.nn.Linear(8, 2), (x, y), loss=torch.nn.CrossEntropyLoss(),
        ...                           evaluate=(x, y), workers=8, seconds=2.0, progress=False,
        ...                           network=freewheel.simulation.Network.lan())
        >>> advice.best.label in [one.label for one in advice.predictions]
        True
    """
    park = park_of(workers, network, slow)
    table = contestants_of(contestants, park, lr)
    positive("seconds", seconds, "60 is about a minute")
    base = copy.deepcopy(model) if isinstance(model, nn.Module) else _made(model, seed)
    times = _Times(base, data, park, calibration, fit_arguments, seconds)
    budget = max_samples or _budget(times.of_copies, len(table) + 1, seconds, park, fit_arguments)
    arguments = {
        "evaluate": evaluate,
        "target": target,
        "max_samples": budget,
        "evaluate_every": max(1, budget // EVALUATIONS),
        "seed": seed,
        **({} if max_samples else {"epochs": MOST_EPOCHS}),
        **fit_arguments,
    }
    entries = [("one worker", _alone(table, lr), 1)]
    if park.workers > 1:
        entries += [(label, method, park.workers) for label, method in table.items()]
    predictions = _predicted(base, data, entries, times, arguments, progress)
    return _advice(predictions, times.of_copies, target, park)


def _alone(table: Mapping[str, Method], lr: float) -> Method:
    """What one worker does: the synchronous contestant, if there is one that a single worker can run."""
    plain = (one for one in table.values() if one.name == "synchronous" and not one.backup)
    return next(plain, methods.synchronous(annealed(lr)))


class _Times:
    """The measured times, of steps on copies of the weights and, within one machine, on the live ones."""

    def __init__(
        self,
        model: nn.Module,
        data: Any,
        park: Park,
        known: Calibration | None,
        arguments: Mapping[str, Any],
        seconds: float,
    ) -> None:
        self._park = park
        numbers = (1,) if park.apart else tuple(sorted({1, park.workers}))
        taken = ("loss", "step", "batch_size", "bptt", "precision", "channels_last")
        options = {name: value for name, value in arguments.items() if name in taken}
        options |= {"workers": numbers, "seconds": min(2.0, max(0.4, seconds / 20))}
        self.of_copies = calibrate(model, data, **options) if known is None else known
        self._of_live = self.of_copies
        if known is None and not park.apart:
            live = methods.hogwild(RATE, 0.9)
            self._of_live = calibrate(model, data, method=live, **options)

    def engine(self, method: Method, workers: int) -> Simulated:
        """The engine for a method; one worker is a thread of this machine in any case."""
        found = self._of_live if method.exchange is None else self.of_copies
        if workers == 1:
            return found.engine(1)
        park = self._park
        engine = found.engine(workers, network=park.network, machines=park.apart)
        if park.slow:
            engine = replace(engine, times=slowed(as_times(engine.times), park.slow))
        return engine


def _made(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    if not callable(factory):
        raise ConfigurationError(
            f"`model` must be a torch.nn.Module or a function that makes one, got {type(factory).__name__}"
        )
    torch.manual_seed(seed)
    return factory()


def _budget(found: Calibration, runs: int, seconds: float, park: Park, arguments: Mapping[str, Any]) -> int:
    """Examples for each run, so that all together take about so many seconds."""
    of_rounds = FEWEST_ROUNDS * park.workers * int(arguments.get("batch_size", 16))
    return max(of_rounds, round(OF_TIME * seconds * found.at(1).samples_per_second / runs))


def _predicted(
    base: nn.Module,
    data: Any,
    entries: list[tuple[str, Method, int]],
    times: _Times,
    arguments: Mapping[str, Any],
    progress: bool,
) -> tuple[Prediction, ...]:
    from freewheel.report import Run
    from freewheel.scoreboard import scoreboard, silence

    made = []
    with (scoreboard if progress else silence)(len(entries)) as begin:
        for label, method, workers in entries:
            events: list[Event] = []
            monitors = [_keeper(events), begin(Entry(label, int(arguments["seed"])))]
            _run(base, data, method, workers, times.engine(method, workers), monitors, arguments)
            made.append(Prediction(label, method, workers, Run(label, tuple(events))))
    return tuple(made)


def _run(
    base: nn.Module,
    data: Any,
    method: Method,
    workers: int,
    engine: Simulated,
    monitors: list[Monitor],
    arguments: Mapping[str, Any],
) -> None:
    """One simulated run; one that diverges is a result, too.

    Raises:
        KeyboardInterrupt: it was interrupted; half a run says nothing about the method.
    """
    own: dict[str, Any] = {"method": method, "workers": workers, "engine": engine, "monitors": monitors}
    try:
        result = fit(copy.deepcopy(base), data, **own, **arguments)
    except TrainingError as error:
        if "diverged" not in str(error):
            raise
        return
    if result.reason == "interrupted":
        raise KeyboardInterrupt


def _keeper(events: list[Event]) -> Monitor:
    def keep(event: Event) -> None:
        if not isinstance(event, Steps):
            events.append(event)

    return keep


def _advice(
    predictions: tuple[Prediction, ...], found: Calibration, target: Target | None, park: Park
) -> Advice:
    from freewheel.report.runs import main_metric

    if target is not None and any(one.run.finished.target_seconds is not None for one in predictions):
        return Advice(predictions, found, target[0], float(target[1]), target, park.describe)
    metric = target[0] if target is not None else main_metric([one.run for one in predictions])
    return Advice(predictions, found, metric, common_level(predictions, metric), None, park.describe)
