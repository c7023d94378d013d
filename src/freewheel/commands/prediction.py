"""What a simulated run predicts, as a table for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import median

from rich.table import Table

from freewheel import Result
from freewheel.report import Run, wording

FEW_STEPS = 5


def table(result: Result, title: str, took_s: float) -> Table:
    """The prediction in rows."""
    shown = Table(title=f"Simulated: {title}", title_justify="left", show_header=False)
    shown.add_column()
    shown.add_column(justify="right")
    for name, value in [*_trained(result), *_park(result), ("The simulation took", wording.duration(took_s))]:
        shown.add_row(name, value)
    return shown


def _trained(result: Result) -> list[tuple[str, str]]:
    rows = [("Method", f"{result.config['method']}, {wording.plural(len(result.workers), 'worker')}")]
    rows += [
        (name.replace("_", " ").capitalize(), wording.metric(value)) for name, value in result.metrics.items()
    ]
    rows.append(("Predicted time", wording.duration(result.seconds)))
    run = Run("run", result.events)
    if run.started.target is not None:
        reached = result.target_seconds
        when = "not reached" if reached is None else wording.duration(reached)
        rows.append(("Predicted time to target", when))
    most = f", at most {max(result.staleness)}" if result.staleness else ""
    rows += [
        ("Samples", wording.count(result.samples)),
        ("Predicted samples per second", wording.rate(result.samples_per_second)),
        ("Mean staleness", f"{wording.rate(result.mean_staleness)}{most}"),
    ]
    dropped = sum(result.ledger.get("dropped", {}).values())
    rows += [("Updates dropped", wording.count(dropped))] if dropped else []
    return [*rows, ("Ended by", result.reason)]


def _park(result: Result) -> list[tuple[str, str]]:
    """Who was busy, and what crossed the network."""
    event = Run("run", result.events).traffic
    if event is None or not result.seconds:
        return []
    computing, serving = (
        [min(busy / result.seconds, 1.0) for busy in seconds]
        for seconds in (event.worker_busy_s, event.shard_busy_s)
    )
    sent, received = event.worker_bytes_sent, event.worker_bytes_received
    rows = [
        ("Workers computing", _spread(computing, _percent)),
        ("Servers at work", _spread(serving, _percent)),
        ("Pushed per worker", _spread(sent, wording.size)),
        ("Pulled per worker", _spread(received, wording.size)),
        ("Traffic per server", _spread(event.shard_bytes, wording.size)),
    ]
    link = max(event.link_busy_s) / result.seconds
    rows += [("Shared link in use", _percent(min(link, 1.0)))] if link else []
    happened = ", ".join(f"{name} {wording.count(number)}" for name, number in event.faults.items())
    return rows + ([("Faults", happened)] if happened else [])


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _spread(values: Sequence[float], words: Callable[[float], str]) -> str:
    """The median, and the range where they differ."""
    middle, low, high = words(median(values)), words(min(values)), words(max(values))
    return middle if low == high else f"{middle} ({low} to {high})"


def doubts(result: Result) -> list[str]:
    """What makes a prediction of little worth: too few steps for so many workers, or a loss that grew."""
    found, number = [], max(len(result.workers), 1)
    steps = result.steps / number
    if number > 1 and steps < FEW_STEPS:
        found.append(
            f"{steps:.1f} steps for each worker say little of how well so many learn; give more --epochs, or"
            " fewer --workers"
        )
    losses = [one.metrics["loss"] for one in Run("run", result.events).evaluations if "loss" in one.metrics]
    if len(losses) > 1 and not losses[-1] <= losses[0]:
        found.append(
            f"the loss grew from {wording.metric(losses[0])} to {wording.metric(losses[-1])}, at a mean"
            f" staleness of {wording.rate(result.mean_staleness)}; give a lower --lr"
        )
    return found
