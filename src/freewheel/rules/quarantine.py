"""Against workers that go wrong one push at a time: outliers are dropped, and who pushes many is shut out."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from freewheel.errors import ConfigurationError
from freewheel.rules.arguments import described, present, whole
from freewheel.rules.base import Rule, RuleContext, Span, State
from freewheel.rules.guard import NON_FINITE, norm
from freewheel.schedules import number
from freewheel.update import Update

OUTLIER = "outlier"
"""The verdict on an update that :func:`reject_outliers` finds too large."""

QUARANTINED = "quarantined"
"""The verdict on every update of a worker that :func:`quarantine` has shut out."""


def reject_outliers(factor: float = 10.0, window: int = 64, warmup: int = 1) -> Rule:
    r"""Drops an update whose norm is more than a factor times the median norm of the updates before it.

    The median is over the last `window` norms, those of dropped updates included: with accepted norms alone,
    a lasting change of the gradients' size would lock every worker out for good. So it bears bad updates
    while they are fewer than half, and follows a change within `window` / 2 updates. Of an even number it is
    the lower of the middle two, so that a bad update among the first two does not count. Needs no buffer of
    updates, and so works for pushes that come one by one; for bad updates of the usual size, see
    :func:`~freewheel.rules.krum`.

    The norm is over all gradients together. An update with a NaN or an infinity is dropped as "non-finite".

    Args:
        factor: > 1; small minibatches late in a run may need more than 10.
        window: norms that the median is taken of, >= 1.
        warmup: the first so many updates pass unjudged, >= 1: there is nothing to compare them with. More
            than 1 forgives gradients that start small, and lets that many bad updates through.

    Raises:
        ConfigurationError: an argument out of its range.

    Example:
        >>> reject_outliers(20.0).describe
        'reject_outliers(factor=20.0)'

    References:
        The test is that of AutoClip (Seetharaman et al. 2020, arXiv:2007.14469, algorithm 1), which clips at
        a percentile of all earlier norms; this drops at a multiple of their median.
    """
    limit = number("factor", factor, 1.0, math.inf, "10.0 is common; leave the rule out for no limit")
    if limit == 1:
        raise ConfigurationError(
            f"`factor` must be > 1, got {factor!r}: half of all updates are above a median"
        )
    size = whole("window", window, 1, "64 is common")
    first = whole("warmup", warmup, 1, "the first update has nothing to be compared with")

    def init(span: Span) -> State:
        norms = torch.zeros(size, dtype=torch.float64)
        return {"norms": span.once(norms), "seen": span.once(torch.zeros((), dtype=torch.int64))}

    def apply(update: Update, state: State, context: RuleContext) -> Update | None:
        norms, seen = state["norms"][0], state["seen"][0]
        length, before = norm(present(update)), int(seen.item())
        if not math.isfinite(length):
            context.verdict = NON_FINITE
            return None
        usual = norms[: min(before, size)].median().item() if before else math.inf
        # racing workers may both write the same place: one norm fewer in the window, so no lock is asked for
        norms[before % size] = length
        seen += 1
        if before < first or length <= limit * usual:
            return update
        context.verdict = OUTLIER
        return None

    settings = {"factor": limit, "window": size, "warmup": first}
    return Rule("update", init, apply, described(reject_outliers, **settings))


def quarantine(rule: Rule, after: int = 5, for_updates: int | None = None) -> Rule:
    """Shuts a worker out when the rule has dropped several of its updates in a row.

    Everything that the worker pushes from there on is dropped as "quarantined", unseen by the rule. After
    `for_updates` of that it is on probation: one more update that the rule drops, and it is shut out again;
    one that passes, and it starts afresh. A worker that is restarted keeps its record.

    Args:
        rule: what rejects: :func:`reject_outliers`, :func:`~freewheel.rules.finite`, or a chain of such.
        after: dropped updates in a row, >= 1.
        for_updates: dropped updates until probation, >= 1; None is for good.

    Raises:
        ConfigurationError: an argument out of its range, or a rule that writes the weights.

    Example:
        >>> from freewheel.rules import chain, finite, sgd
        >>> chain(quarantine(finite(), after=3), sgd(0.1)).describe
        'quarantine(finite(), after=3) > sgd(lr=0.1)'
    """
    _check(rule)
    strikes = whole("after", after, 1, "5 is common; leave the rule out never to shut a worker out")
    remedy = "leave it out to shut a worker out for good"
    term = None if for_updates is None else whole("for_updates", for_updates, 1, remedy)

    def init(span: Span) -> State:
        # one number a worker: drops in a row below `after`, from there on the term served
        return {"rule": rule.init(span), "record": span.once(torch.zeros(0, dtype=torch.int64))}

    def apply(update: Update, state: State, context: RuleContext) -> Update | None:
        record = _grown(state["record"][0], max(context.workers, context.worker + 1))
        count = int(record[context.worker].item())
        if count >= strikes and (term is None or count < strikes + term):
            record[context.worker] = count if term is None else count + 1
            context.verdict = QUARANTINED
            return None
        result = rule.apply(update, state["rule"], context)
        dropped = result is None and context.verdict != "absorbed"
        record[context.worker] = min(count, strikes - 1) + 1 if dropped else 0
        return result

    settings = described(quarantine, after=strikes, for_updates=term).removeprefix("quarantine(")
    describe = f"quarantine({rule.describe}{', ' * (settings != ')')}{settings}"
    return Rule("update", init, apply, describe, exclusive=True, needs_pulled=rule.needs_pulled)


def _grown(record: Tensor, workers: int) -> Tensor:
    """The record with room for every worker; in place, for others hold the same tensor."""
    known = record.numel()
    if known < workers:
        record.resize_(workers)[known:].zero_()
    return record


def _check(rule: Rule) -> None:
    if not isinstance(rule, Rule):
        raise ConfigurationError(f"`rule` must be a Rule, such as reject_outliers(), got {rule!r}")
    if rule.descends:
        raise ConfigurationError(
            f"`rule` {rule.describe} writes the weights; quarantine what rejects, and put the descent behind"
            " it: chain(quarantine(reject_outliers()), sgd(lr))"
        )
