"""The state of a run that goes on with another number of workers than it was taken with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from freewheel.book import Slot
from freewheel.checkpoints.tree import Tree
from freewheel.engines.plan import Segment, begun
from freewheel.rounds import Round
from freewheel.rules import RuleContext

LEFT = "left"
"""The reason of a drop: its round was not complete when the number of workers changed."""


def resized(tree: Tree, workers: int, fixed: bool, steps: Sequence[int] | None = None) -> Tree:
    """The same state for more or fewer workers.

    Workers that stay keep what they hold for themselves; those that come begin with the weights of the
    server; what those hold that leave is lost with them, unless they have pushed it. Former workers keep
    their place in the books. Everybody counts its steps from the same number on, so that nobody waits for
    newcomers to catch up.

    Args:
        tree: as :func:`freewheel.checkpoints.cut.taken` gives it; not changed.
        workers: how many go on.
        fixed: which batch a worker takes follows from its number and its step.
        steps: finished by each worker; left out, as its own state says.

    Returns:
        A tree that shares tensors with the other; where nobody has a state of its own, None stands for it.
    """
    states, place = list(tree["workers"]), tree["place"]
    if steps is None:
        steps = [0 if state is None else state["context"]["sequence"] for state in states]
    start = max(steps, default=0)
    if fixed:
        place = {**place, "rest": rest(begun(place), steps, place["began"])}
    seats = max(workers, len(tree["server"]["book"]["slots"]))
    progress = max(place["steps"], default=0)
    return {
        **tree,
        "place": {
            **place,
            "began": [start] * workers,
            "start": start,
            "steps": [progress] * workers,
            "progress": [progress] * workers,
        },
        "server": _server(tree["server"], workers, seats),
        "workers": [_moved(state, start) for state in _padded(states, workers, None)],
        "hopeless": _padded(tree["hopeless"], workers, 0),
        "record": _record(tree["record"], seats),
    }


def rest(segment: Segment, steps: Sequence[int], began: Sequence[int]) -> tuple[list[int], int]:
    """The batches of a segment that nobody has used, where step r of worker w takes position ``r W + w``.

    Args:
        segment: under way.
        steps: finished by each worker in the whole run.
        began: the same when the segment began.

    Example:
        >>> rest(Segment(10, 20), [3, 1], [0, 0])
        ([13], 15)
    """
    workers = len(steps)
    used = {
        step * workers + worker
        for worker, (now, then) in enumerate(zip(steps, began, strict=True))
        for step in range(now - then)
    }
    following = max(used, default=-1) + 1
    numbers = [segment.number(position) for position in range(following) if position not in used]
    listed = [] if segment.rest is None else list(segment.rest[0])
    return numbers + listed[following:], segment.number(max(following, len(listed)))


def _server(state: Tree, workers: int, seats: int) -> Tree:
    book, gathered = state["book"], state["round"]
    slots = _padded(book["slots"], seats, Slot(RuleContext()).state())
    if gathered is not None:
        for worker in gathered["round"]["closed"]:
            counts = slots[worker]["counts"]
            slots[worker] = {**slots[worker], "counts": {**counts, LEFT: counts.get(LEFT, 0) + 1}}
        gathered = {**gathered, "round": Round(set(range(workers))).state()}
    return {
        **state,
        "applied": [_padded(counts, seats, 0) for counts in state["applied"]],
        "book": {
            "slots": slots,
            "versions": _padded(book["versions"], seats, 0),
            "samples": _padded(book["samples"], seats, 0),
        },
        "round": gathered,
        "resized": True,
    }


def _record(state: Tree, seats: int) -> Tree:
    tally = state["tally"]
    grown = {name: _padded(tally[name], seats, 0) for name in ("samples", "steps")}
    return {**state, "tally": {**tally, **grown}}


def _moved(state: Tree, start: int) -> Tree:
    """A worker's own state, with its steps counted from another number."""
    return None if state is None else {**state, "context": {**state["context"], "sequence": start}}


def _padded(values: Sequence[Any], length: int, value: Any) -> list[Any]:
    """The first of some values, as many as are wanted."""
    return [*values[:length], *[value] * (length - len(values))]
