"""The options of a simulated machine park, and the engine that they describe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Annotated

import typer

from freewheel.calibration import Calibration
from freewheel.commands.values import parse_corrupt, parse_die, parse_slow
from freewheel.engines import Simulated
from freewheel.errors import ConfigurationError
from freewheel.simulation import (
    Fault,
    Network,
    ServerCost,
    StepTimes,
    constant,
    from_trace,
    lognormal,
    lose,
    parse_rate,
    parse_seconds,
    slow,
)

_TIMES, _NETWORK, _FAULTS = "How long steps take", "Network and servers", "What goes wrong"


def _text(name: str, metavar: str, panel: str, words: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, metavar=metavar, rich_help_panel=panel, show_default=False, help=words
    )
    return option


StepTime = Annotated[
    str | None,
    _text("--step-time", "TIME", _TIMES, "Of one step, such as 10ms. Default: measured on this machine."),
]
Spread = Annotated[
    float | None,
    _text("--spread", "SIGMA", _TIMES, "How much steps differ: log-normal, 0.3 is some 30 %. Default: 0."),
]
TimesFrom = Annotated[
    str | None, _text("--times-from", "RUN", _TIMES, "Step times out of a run that recorded its steps.")
]
Slow = Annotated[
    list[str] | None,
    _text("--slow", "TIMESx:WORKER", _TIMES, "Slow machines: 4x:1 makes worker 1 four times slower."),
]
Stragglers = Annotated[
    int, typer.Option("--stragglers", metavar="N", rich_help_panel=_TIMES, help="The last N are slow.")
]
Slowdown = Annotated[
    float, typer.Option("--slowdown", metavar="X", rich_help_panel=_TIMES, help="How many times slower.")
]
Latency = Annotated[str | None, _text("--latency", "TIME", _NETWORK, "Of a message, such as 5ms.")]
Bandwidth = Annotated[
    str | None, _text("--bandwidth", "RATE", _NETWORK, "Of each worker's link, such as 1Gbit/s.")
]
SharedBandwidth = Annotated[
    str | None,
    _text("--shared-bandwidth", "RATE", _NETWORK, "Of the servers' link, which all workers share."),
]
ServerTime = Annotated[
    str | None,
    _text("--server-time", "TIME", _NETWORK, "Of the server for a push. Default: as measured, or 0."),
]
Shards = Annotated[
    int,
    typer.Option("--shards", metavar="N", rich_help_panel=_NETWORK, help="Servers that share the weights."),
]
InFlight = Annotated[
    int | None,
    _text("--in-flight", "N", _NETWORK, "Pushes that may be under way while the next step computes."),
]
Deaths = Annotated[
    list[str] | None,
    _text("--die", "W:STEP[:BACK]", _FAULTS, "Worker W dies in a step: 3:250; 3:250:5s comes back."),
]
Lose = Annotated[
    float, typer.Option("--lose", metavar="SHARE", rich_help_panel=_FAULTS, help="Pushes that are lost.")
]
Corruption = Annotated[
    str | None,
    _text("--corrupt", "SHARE[:X]", _FAULTS, "Pushes that become noise, X times as long: 0.1:100."),
]


@dataclass(frozen=True)
class Times:
    """How long steps take, as given on the command line."""

    step_time: str | None = None
    spread: float | None = None
    times_from: str | None = None
    slow: list[str] = field(default_factory=list)
    stragglers: int = 0
    slowdown: float = 4.0


@dataclass(frozen=True)
class Wires:
    """Network and servers, as given on the command line."""

    latency: str | None = None
    bandwidth: str | None = None
    shared_bandwidth: str | None = None
    server_time: str | None = None


def network_of(wires: Wires) -> Network:
    """The network.

    Raises:
        ConfigurationError: no time, or no rate.
    """
    return Network(
        parse_seconds(wires.latency or "0"),
        parse_rate(wires.bandwidth or "unlimited"),
        parse_rate(wires.shared_bandwidth or "unlimited"),
    )


def faults_of(deaths: list[str] | None, lost: float, corruption: str | None) -> list[Fault]:
    """What goes wrong.

    Raises:
        ConfigurationError: something that is none of these.
    """
    faults: list[Fault] = [parse_die(one) for one in deaths or ()]
    faults += [lose(lost)] if lost else []
    return faults + ([parse_corrupt(corruption)] if corruption is not None else [])


def factors_of(times: Times, workers: int) -> dict[int, float]:
    """Worker -> how many times slower it is.

    Raises:
        ConfigurationError: more stragglers than workers, or a worker that is named twice.
    """
    if not 0 <= times.stragglers <= workers:
        raise ConfigurationError(f"`stragglers` must be 0 to {workers}, the workers; got {times.stragglers}")
    factors = dict.fromkeys(range(workers - times.stragglers, workers), times.slowdown)
    for one in times.slow:
        for worker, factor in parse_slow(one).items():
            if worker in factors:
                raise ConfigurationError(
                    f"`slow` names worker {worker} twice, or it is one of the stragglers"
                )
            factors[worker] = factor
    return factors


def engine_of(
    times: Times, wires: Wires, faults: list[Fault], workers: int, measure: Callable[[], Calibration]
) -> Simulated:
    """The engine that the options describe.

    Args:
        times: how long steps take.
        wires: network and servers.
        faults: what goes wrong.
        workers: how many there are.
        measure: measures this machine; called only where no step times were given.

    Raises:
        ConfigurationError: options that cannot be used, or that contradict each other.
    """
    network, factors = network_of(wires), factors_of(times, workers)
    given = _given(times)
    calibrated = measure().engine(workers, machines=True) if given is None else Simulated(given)
    model = calibrated.times
    if given is None and times.spread:
        model = lognormal(median(model.samples), times.spread)  # type: ignore[union-attr]  # it was measured
    if factors:
        model = slow(model, factors)  # type: ignore[arg-type]  # no number: one of the above
    server = calibrated.server
    if wires.server_time is not None:
        server = ServerCost(seconds_per_push=parse_seconds(wires.server_time))
    return replace(calibrated, times=model, network=network, server=server, faults=faults)


def _given(times: Times) -> StepTimes | None:
    """The times that the user named; None: they are to be measured."""
    if times.times_from is not None:
        if times.step_time is not None or times.spread is not None:
            raise ConfigurationError("`times_from` has the times already; leave `step_time` and `spread` out")
        return from_trace(times.times_from)
    if times.step_time is None:
        return None
    seconds = parse_seconds(times.step_time)
    return lognormal(seconds, times.spread) if times.spread else constant(seconds)
