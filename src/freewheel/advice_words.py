"""Advice in words and as a table."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from freewheel.advice import MARGIN, Advice, Prediction
from freewheel.report import wording

if TYPE_CHECKING:
    from rich.table import Table


def sentences(advice: Advice) -> list[str]:
    """What to use, what to expect, why, and what not to trust; the first says what to use."""
    best = advice.best
    if advice.time(best) is None:
        return [_undecided(advice), *_failed(advice), _caveat(advice)]
    if _is_too_short(advice):
        return [_too_short(advice), *_waiting(advice), *_failed(advice), _caveat(advice)]
    stays = best.method.rounds or best.workers == 1
    head = _stay(advice, best) if stays else _go(advice, best)
    return [
        head,
        _expect(advice, best),
        *_settings(best),
        *_waiting(advice),
        *_failed(advice),
        _caveat(advice),
    ]


def table(advice: Advice) -> Table:
    """A row for each method."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column("Method", no_wrap=True)
    goal = f"{advice.metric.replace('_', ' ')}\n{wording.metric(advice.level)}"
    final = f"Final\n{advice.metric.replace('_', ' ')}"
    heads = ("Workers", "Samples\nper s", f"Time to\n{goal}", final, "Stale-\nness", "Com-\nputing")
    for head in heads:
        made.add_column(head, justify="right")
    for one in advice.predictions:
        seconds = advice.time(one)
        cells = (
            str(one.workers),
            wording.rate(one.samples_per_second),
            "not reached" if seconds is None else wording.duration(seconds),
            "diverged" if one.diverged else wording.metric(one.final(advice.metric)),
            wording.rate(one.run.mean_staleness),
            _percent(one.computing),
        )
        made.add_row(one.label, *cells, style="bold" if one is advice.best else None)
    return made


def _go(advice: Advice, best: Prediction) -> str:
    return f"Use {_who(best)}: {_reaches(advice, best)}{_compared(advice, best)}."


def _compared(advice: Advice, best: Prediction) -> str:
    """How many times as fast as the fastest synchronous method, and as one worker."""
    mine = advice.time(best)
    others = {id(one): one for one in (advice.fastest(rounds=True), advice.predictions[0]) if one is not None}
    parts = []
    for one in others.values():
        theirs = advice.time(one)
        if one is not best and theirs is not None and mine:
            parts.append(f"{theirs / mine:.1f} times as fast as {_who(one)}")
    return f", {' and '.join(parts)}" if parts else ""


def _stay(advice: Advice, best: Prediction) -> str:
    start = "Stay with one worker" if best.workers == 1 else "Stay synchronous"
    said = f"{start}: {_who(best)} {_reaches(advice, best)}{_compared(advice, best)}"
    rival = advice.fastest(rounds=False)
    mine = advice.time(best)
    theirs = advice.time(rival) if rival is not None else None
    if rival is None or mine is None or theirs is None:
        return f"{said}; no asynchronous method reaches it in this budget."
    ratio = mine / theirs if theirs else math.nan
    gain = f"{ratio:.2f} times as fast" if ratio >= 1 else f"slower by {100 * (1 / ratio - 1):.0f} %"
    why = f", less than the {100 * (MARGIN - 1):.0f} % by which predictions may err" if ratio >= 1 else ""
    return f"{said}. The best asynchronous method, {rival.label}, is predicted to be {gain}{why}."


def _expect(advice: Advice, best: Prediction) -> str:
    first = advice.predictions[0]
    ends = f"{advice.metric} {wording.metric(best.final(advice.metric))}"
    compared = f" (one worker: {wording.metric(first.final(advice.metric))})" if best is not first else ""
    samples = wording.count(best.run.finished.samples)
    return (
        f"Expect {wording.rate(best.samples_per_second)} samples/s, a mean staleness of"
        f" {wording.rate(best.run.mean_staleness)}, and {ends} after {samples} samples in"
        f" {wording.duration(best.seconds)}{compared}."
    )


def _settings(best: Prediction) -> Iterator[str]:
    chosen = {key: value for key, value in best.method.settings.items() if key != "keeps_pulled"}
    if chosen:
        yield f"Its settings: {', '.join(f'{key}={value}' for key, value in chosen.items())}."


def _waiting(advice: Advice) -> Iterator[str]:
    """How much of the time workers wait in synchronous training: what asynchrony can win at most."""
    plain = next(
        (one for one in advice.predictions if one.method.name == "synchronous" and one.workers > 1), None
    )
    if plain is None or not math.isfinite(plain.computing):
        return
    yield (
        f"Synchronous workers compute {_percent(plain.computing)} of the time; the rest they wait for the"
        " slowest and for messages. Where that is near 100 %, stay synchronous: nothing is stale there."
    )


def _failed(advice: Advice) -> Iterator[str]:
    late = [one.label for one in advice.predictions if advice.time(one) is None and not one.diverged]
    broken = [one.label for one in advice.predictions if one.diverged]
    if late and advice.time(advice.best) is not None:
        yield f"Not at {_goal(advice)} within the budget: {'; '.join(late)}."
    if broken:
        yield f"Diverged: {'; '.join(broken)}; a lower learning rate may help."


def _undecided(advice: Advice) -> str:
    return (
        f"Undecided: no method reaches {_goal(advice)} in this budget; give more `seconds` or `max_samples`,"
        " a nearer target, or another learning rate."
    )


def _is_too_short(advice: Advice) -> bool:
    """Several workers learn, but only one alone reaches the level: the budget says nothing about several."""
    learning = [one for one in advice.predictions if one.workers > 1 and not one.diverged]
    return bool(learning) and advice.best.workers == 1 and all(advice.time(one) is None for one in learning)


def _too_short(advice: Advice) -> str:
    samples = wording.count(advice.best.run.finished.samples)
    return (
        f"Undecided: with {samples} samples only one worker reaches {_goal(advice)}. Several workers take"
        " fewer or later updates from as many samples, so a short budget says nothing about them; give more"
        " `seconds` or `max_samples`, or a nearer target."
    )


def _caveat(advice: Advice) -> str:
    return (
        f"Predicted for {advice.where}, from steps measured here; one seed, true gradients. Differences below"
        f" {100 * (MARGIN - 1):.0f} % mean nothing."
    )


def _who(one: Prediction) -> str:
    if one.workers == 1:
        return "one worker"
    return f"{one.label} with {one.workers} workers"


def _reaches(advice: Advice, one: Prediction) -> str:
    return f"reaches {_goal(advice)} in {wording.duration(advice.time(one) or 0.0)}"


def _goal(advice: Advice) -> str:
    return f"{advice.metric} {wording.metric(advice.level)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %" if math.isfinite(share) else wording.MISSING
