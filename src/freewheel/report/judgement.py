"""Which method won, by how much, and whether that is more than the spread: in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from freewheel.metrics import smaller_is_better
from freewheel.report import wording
from freewheel.report.runs import Repeat, Summary

POINTS = 0.5  # an accuracy that is lower by more than this many percentage points is a loss
SHARE = 0.01  # the same for metrics that are no accuracy, relative to the baseline
FEW = 3  # fewer pairs than this are an indication only, and the headline is worded as one

Pairs = list[tuple[Repeat, Repeat]]  # (baseline, other) of the same seed


class Speed(NamedTuple):
    """How fast a method was against the baseline; above 1 it was faster."""

    measure: str
    ratio: float  # of the medians
    low: float  # smallest and largest ratio of a pair
    high: float
    overlap: bool  # the ranges of the two methods have values in common


class Change(NamedTuple):
    """How a metric differs from the baseline, signed so that below 0 is worse."""

    amount: float  # points of accuracy, or a share of the baseline's value; difference of the medians
    low: float
    high: float
    unit: str
    limit: float
    worse: bool  # by more than the limit, or not a number at all


def verdict(summaries: Sequence[Summary], baseline: str | None = None) -> list[str]:
    """What a comparison shows, and what it does not, as sentences; the first is the headline.

    Runs are paired by seed. A ratio is one of medians, its range that of the pairs. The speed is the time to
    the target where every run reached it, samples per second otherwise. Asynchrony did not pay when it was
    slower, when it reached the target less often, or when it lost more than 0.5 points of accuracy (1 % for
    other metrics). Fewer than 3 pairs are said to look like something, no more. Runs that broke off are left
    out, and said to be.

    Args:
        summaries: one for each method; those whose method begins with "synchronous" are baselines.
        baseline: the label of the one to judge by. If left out, it is the first to reach the target, by
            medians, of those whose every run reached it; without such the one with most samples per second.

    Example:
        >>> slow = Summary("sync", "synchronous", "accuracy", (Repeat(0, 10.0, 100.0, 0.9),))
        >>> fast = Summary("hogwild", "hogwild", "accuracy", (Repeat(0, 5.0, 200.0, 0.9),))
        >>> verdict([slow, fast])[0].split(" (")[0]
        'hogwild looks faster: 2.00 times as fast as sync in samples per second'
    """
    broken = [_left_out(one) for one in summaries if len(one.complete) < len(one.repeats)]
    usable = [one for one in summaries if one.complete]
    baselines = [one for one in usable if one.synchronous and baseline in (None, one.label)]
    others = [one for one in usable if not one.synchronous]
    if not usable:
        return ["No run came to its end, so there is nothing to compare.", *broken]
    if not baselines:
        missing = "synchronous run" if baseline is None else f"finished run of the baseline {baseline}"
        return [
            f"There is no {missing} to compare with, so this says nothing about asynchrony.",
            *broken,
        ]
    if not others:
        return ["There is no asynchronous run to compare with the synchronous one.", *broken]
    best, why = _fastest(baselines)
    judged = sorted((_judge(best, other) for other in others), key=lambda each: each[:2], reverse=True)
    lines = [line for _, _, sentences in judged for line in sentences]
    if len(baselines) > 1:
        lines.append(f"The baseline is {best.label}, {why} of {len(baselines)} synchronous methods.")
    fewest = min(len(_pairs(best, other)) for other in others)
    return [*lines, *_caution(fewest), *broken]


def _fastest(baselines: Sequence[Summary]) -> tuple[Summary, str]:
    """The one to judge by, and in what it is the best.

    Samples per second alone would choose large minibatches, which are quick per sample and late at the
    target, and asynchrony would be held to less than the synchronous side can do.
    """
    times = {
        position: median(known)
        for position, one in enumerate(baselines)
        if len(known := [run.target_seconds for run in one.complete if run.target_seconds is not None])
        == len(one.complete)
    }
    if times:
        return baselines[min(times, key=times.__getitem__)], "the fastest to the target"
    rate = max(baselines, key=lambda one: _or(median([run.samples_per_second for run in one.complete]), 0.0))
    return rate, "the fastest"


def _judge(baseline: Summary, other: Summary) -> tuple[int, float, list[str]]:
    """How good (2 faster, 1 unclear, 0 did not pay), the ratio, and the sentences."""
    pairs = _pairs(baseline, other)
    speed, change = _speed(pairs), _change(pairs, other)
    reached = _reached(baseline, other)
    over = _pairing(baseline, other, len(pairs))
    facts = f"{_speed_words(speed, baseline.label, over)}{_change_words(change, other.metric, len(pairs))}."
    more = [sentence for sentence in (reached[1], _cost(pairs, baseline.label, other.label)) if sentence]
    enough = len(pairs) >= FEW
    if not speed.ratio >= 1 or change.worse or reached[0]:
        did_not = "did not pay" if enough else "does not seem to pay"
        why = _why_not(speed, change, other.metric, reached[0])
        return (
            0,
            _or(speed.ratio, 0.0),
            [f"Asynchrony {did_not} here: {other.label} {why}; it was {facts}", *more],
        )
    if speed.overlap:
        both = f"{other.label} and {baseline.label}"
        head = f"No clear winner: the difference between {both} is within the spread of the runs"
        return 1, speed.ratio, [f"{head}; {other.label} was {facts}", *more]
    won = "won" if enough else "looks faster"
    return 2, speed.ratio, [f"{other.label} {won}: {facts}", *more]


def _why_not(speed: Speed, change: Change, metric: str, missed: bool) -> str:
    reasons = []
    if math.isnan(speed.ratio):
        reasons.append("trained nothing that can be timed")
    elif speed.ratio < 1:
        reasons.append("was slower, though within the spread of the runs" if speed.overlap else "was slower")
    if missed:
        reasons.append("reached the target less often")
    if change.worse:
        lost = (
            f"{abs(change.amount):.1f}{change.unit} of {metric}"
            if math.isfinite(change.amount)
            else f"its {metric}"
        )
        reasons.append(f"lost {lost}")
    return " and ".join(reasons)


def _pairs(baseline: Summary, other: Summary) -> Pairs:
    """Runs of the same seed; where the two have no seed in common, runs in order."""
    waiting: dict[int, list[Repeat]] = {}
    for run in baseline.complete:
        waiting.setdefault(run.seed, []).append(run)
    paired = [(waiting[run.seed].pop(0), run) for run in other.complete if waiting.get(run.seed)]
    return paired or list(zip(baseline.complete, other.complete, strict=False))


def _pairing(baseline: Summary, other: Summary, number: int) -> str:
    common = {run.seed for run in baseline.complete} & {run.seed for run in other.complete}
    words = wording.plural(number, "pair of runs", "pairs of runs")
    return words if common else f"{words} with different seeds"


def _speed(pairs: Pairs) -> Speed:
    measure = "samples per second"
    values = [(1 / a.samples_per_second, 1 / b.samples_per_second) for a, b in pairs if _positive(a, b)]
    if all(run.target_seconds for pair in pairs for run in pair):
        measure = "time to the target"
        values = [(a.target_seconds or 1.0, b.target_seconds or 1.0) for a, b in pairs]
    if len(values) < len(pairs):
        return Speed(measure, math.nan, math.nan, math.nan, True)
    ours, theirs = [value for _, value in values], [value for value, _ in values]
    ratios = [base / other for base, other in values]
    overlap = min(ours) <= max(theirs) and min(theirs) <= max(ours)
    return Speed(measure, median(theirs) / median(ours), min(ratios), max(ratios), overlap)


def _positive(first: Repeat, second: Repeat) -> bool:
    return first.samples_per_second > 0 and second.samples_per_second > 0


def _change(pairs: Pairs, summary: Summary) -> Change:
    sign = -1.0 if smaller_is_better(summary.metric, summary.target) else 1.0
    points = summary.metric == "accuracy"
    unit, limit, scale = (" points", POINTS, 100.0) if points else (" %", 100 * SHARE, 100.0)
    sound = [(a.metric, b.metric) for a, b in pairs if math.isfinite(a.metric)]
    if not sound:  # the baseline measured nothing: there is nothing to be worse than
        return Change(math.nan, math.nan, math.nan, unit, limit, False)
    if not all(math.isfinite(ours) for _, ours in sound):
        return Change(math.nan, math.nan, math.nan, unit, limit, True)

    def differs(theirs: float, ours: float) -> float:
        return sign * scale * (ours - theirs) / (1.0 if points else abs(theirs) or 1.0)

    each = [differs(theirs, ours) for theirs, ours in sound]
    amount = differs(median([theirs for theirs, _ in sound]), median([ours for _, ours in sound]))
    return Change(amount, min(each), max(each), unit, limit, amount < -limit - 1e-9)


def _speed_words(speed: Speed, baseline: str, over: str) -> str:
    if math.isnan(speed.ratio):
        return f"not comparable with {baseline} in speed"
    span = f" ({over})" if over.startswith("1 ") else f" ({speed.low:.2f} to {speed.high:.2f} over {over})"
    return f"{speed.ratio:.2f} times as fast as {baseline} in {speed.measure}{span}"


def _change_words(change: Change, metric: str, number: int) -> str:
    if math.isnan(change.amount):
        return f", with no finite {metric}" if change.worse else ""
    span = f" ({_signed(change.low)} to {_signed(change.high)})" if number > 1 else ""
    if change.unit == " points":
        return f", {metric} {_signed(change.amount)} points{span}"
    side = "better" if change.amount >= 0 else "worse"
    return f", {metric} {abs(change.amount):.1f} % {side}{span}"


def _signed(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}"  # + 0.0: no minus zero


def _reached(baseline: Summary, other: Summary) -> tuple[bool, str]:
    """Whether the target was reached less often than by the baseline, and a sentence if not always."""
    if other.target is None:
        return False, ""
    ours = [run.target_seconds is not None for run in other.complete]
    theirs = [run.target_seconds is not None for run in baseline.complete]
    if all(ours) and all(theirs):
        return False, ""
    words = f"{sum(ours)} of {wording.plural(len(ours), 'run')} of {other.label} reached the target of "
    words += f"{other.target[0]} {other.target[1]:g}, and {sum(theirs)} of {len(theirs)} of {baseline.label}."
    return sum(ours) / len(ours) < sum(theirs) / len(theirs), words


def _cost(pairs: Pairs, baseline: str, other: str) -> str:
    cpu = _ratio([(a.cpu_seconds, b.cpu_seconds) for a, b in pairs])
    peak = _ratio([(a.peak_bytes, b.peak_bytes) for a, b in pairs])
    parts = [
        f"{value:.2f} times the {what}"
        for value, what in ((cpu, "CPU-seconds"), (peak, "peak memory"))
        if value
    ]
    return f"{other} took {' and '.join(parts)} of {baseline}." if parts else ""


def _ratio(values: list[tuple[float, float]]) -> float:
    """Ratio of the medians; 0 where something is unknown."""
    if not values or not all(a > 0 and b > 0 for a, b in values):
        return 0.0
    return median([b for _, b in values]) / median([a for a, _ in values])


def _caution(pairs: int) -> list[str]:
    if pairs == 1:
        return ["There is one pair of runs, so the spread is unknown: an observation, not a measurement."]
    if pairs < FEW:
        return [f"There are only {pairs} pairs of runs: an indication, not a measurement."]
    return []


def _left_out(summary: Summary) -> str:
    missing = len(summary.repeats) - len(summary.complete)
    did = (
        "did not come to an end and is left out"
        if missing == 1
        else "did not come to an end and are left out"
    )
    return f"{wording.plural(missing, 'run')} of {summary.label} {did}."


def _or(value: float, instead: float) -> float:
    return value if math.isfinite(value) else instead
