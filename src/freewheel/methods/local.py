"""Several steps between two exchanges: Downpour, elastic averaging, local SGD, parallel SGD, DiLoCo."""

from __future__ import annotations

from functools import partial
from typing import Any

from freewheel.errors import ConfigurationError
from freewheel.exchanges import Accruing, Differing, Elastic, Local
from freewheel.gates import Gate, barrier, free, warm_start
from freewheel.methods.base import Method, check_whole, checked_rule, own_rule, plain_sgd
from freewheel.rules import Rule, adagrad, adamw, sgd
from freewheel.rules.staleness import delayed_nesterov
from freewheel.schedules import Rate, number


def downpour(
    lr: Rate = 0.01,
    push_every: int = 5,
    pull_every: int = 5,
    *,
    server: Rule | None = None,
    local: Rule | None = None,
    warm_start: int = 0,
    in_flight: int = 0,
    compression: Rule | None = None,
) -> Method:
    """Downpour SGD: workers push sums of gradients and fetch weights now and then, whenever they are ready.

    A worker fetches the weights at every `pull_every`-th step, goes on with SGD steps of its own in between,
    and pushes the sum of its gradients at every `push_every`-th. The server applies it by Adagrad.

    Args:
        lr: learning rate of the server's Adagrad and of the workers' own SGD steps.
        push_every: steps between pushes, >= 1.
        pull_every: steps between fetches, >= 1.
        server: what the server does with a sum of gradients, in place of Adagrad.
        local: what a worker does to its own weights between fetches, in place of SGD at `lr`.
        warm_start: steps of the first worker before the others begin.
        in_flight: pushes that may be under way while the next step computes.
        compression: what a worker does to a sum before it pushes it, such as ``rules.top_k(0.01)``.

    Raises:
        ConfigurationError: an argument out of its range.

    References:
        Dean et al. 2012, "Large scale distributed deep networks", algorithm 7.1 of the appendix, and section
        4.1 for Adagrad and warm starts. As there, the very first step pushes, and a step that both fetches
        and pushes fetches first, so that a worker sees its own sum at the next fetch only: even one worker is
        not plain SGD. What is left over is pushed at the end of the run.

    Example:
        >>> downpour(0.05, push_every=2).settings
        {'server': 'adagrad(lr=0.05)', 'local': 'sgd(lr=0.05)', 'push_every': 2, 'pull_every': 5}
    """
    check_whole("push_every", push_every, 1, "1 pushes every gradient")
    check_whole("pull_every", pull_every, 1, "1 fetches before every step")
    check_whole("warm_start", warm_start, 0, "0 lets all begin at once")
    outer = adagrad(lr) if server is None else checked_rule("server", server)
    inner = sgd(lr) if local is None else checked_rule("local", local)
    return Method(
        "downpour",
        gate_after(warm_start),
        False,
        lambda workers: outer,
        settings=described(
            server=outer,
            local=inner,
            push_every=push_every,
            pull_every=pull_every,
            warm_start=warm_start,
            in_flight=in_flight,
            compression=compression,
        ),
        exchange=partial(Accruing, push_every=push_every, pull_every=pull_every, rule=inner),
        in_flight=in_flight,
        compression=None if compression is None else checked_rule("compression", compression, descends=False),
    )


def elastic_averaging(
    lr: Rate | None = None,
    alpha: float | None = None,
    period: int = 10,
    *,
    momentum: float = 0.0,
    weight_decay: float | None = None,
) -> Method:
    r"""EASGD: workers with weights of their own, tied to a centre by springs; with momentum, EAMSGD.

    Every `period` steps :math:`x^i \leftarrow x^i - \alpha (x^i - \tilde x)` and
    :math:`\tilde x \leftarrow \tilde x + \alpha (x^i - \tilde x)`; in between
    :math:`x^i \leftarrow x^i - \eta g(x^i)`. With momentum
    :math:`v^i \leftarrow \delta v^i - \eta g(x^i + \delta v^i)`, :math:`x^i \leftarrow x^i + v^i`. The
    trained model is the centre.

    Args:
        lr: learning rate :math:`\eta` of the workers; None is 0.02, annealed over the planned samples.
        alpha: moving rate in (0, 1]; None is 0.9 divided by the number of workers, as in the paper.
        period: :math:`\tau`, steps between exchanges.
        momentum: :math:`\delta` in [0, 1).
        weight_decay: L2 penalty of the workers' steps; None is 0.

    Raises:
        ConfigurationError: an argument out of its range.

    References:
        Zhang, Choromanska, LeCun 2015, arXiv:1412.6651, algorithms 1 and 2 (asynchronous).

    Example:
        >>> elastic_averaging(0.1, alpha=0.2, momentum=0.9).settings
        {'rule': 'sgd(lr=0.1)', 'alpha': 0.2, 'period': 10, 'momentum': 0.9}
    """
    check_whole("period", period, 1, "1 exchanges at every step")
    if alpha is not None:
        remedy = "0.9 divided by the number of workers is the paper's"
        number("alpha", alpha, 0.0, 1.0, remedy, closed=True)
        if alpha == 0:
            raise ConfigurationError(
                "`alpha` must be > 0, got 0; use parallel_sgd() for workers without ties"
            )
    delta = number("momentum", momentum, 0.0, 1.0, "0.9 is common")
    shown, centre = plain_sgd(lr, weight_decay), sgd(1.0)  # shown: checks the decay, which is not the rule's
    descent = plain_sgd(lr)

    def exchange(local: Local) -> Elastic:
        rate = 0.9 / local.workers if alpha is None else alpha
        return Elastic(local, descent, rate, period, delta, weight_decay or 0.0)

    return Method(
        "elastic_averaging",
        free(),
        False,
        lambda workers: centre,
        settings=described(
            rule=shown,
            alpha="0.9 / workers" if alpha is None else alpha,
            period=period,
            momentum=delta,
        ),
        exchange=exchange,
        inner=descent,
    )


def local_sgd(
    lr: Rate | None = None,
    steps: int = 10,
    *,
    momentum: float = 0.0,
    weight_decay: float | None = None,
    rule: Rule | None = None,
    compression: Rule | None = None,
) -> Method:
    """Local SGD: everybody takes some steps alone, then all continue from the average of their weights.

    Args:
        lr: learning rate; None is 0.02, annealed over the planned samples.
        steps: between averages, H.
        momentum: of the workers' own SGD; its state stays with the worker.
        weight_decay: L2 penalty; None is 0.
        rule: the workers' descent, in place of SGD with the above.
        compression: what a worker does to its difference before it pushes it.

    Raises:
        ConfigurationError: an argument out of its range, or `rule` beside the settings of SGD.

    References:
        Stich 2019, arXiv:1805.09767, algorithm 1; McMahan et al. 2017, arXiv:1602.05629. Departs from the
        former in that averages are weighted by examples, which matters only for the last, ragged round.

    Example:
        >>> local_sgd(0.1, steps=4).settings
        {'rule': 'sgd(lr=0.1)', 'steps': 4}
    """
    check_whole("steps", steps, 1, "1 averages after every step")
    own = own_rule(rule, lr, momentum or None, weight_decay)
    inner = plain_sgd(lr, weight_decay, momentum) if own is None else own
    return Method(
        "local_sgd",
        barrier(),
        True,
        lambda workers: sgd(1.0),
        settings=described(rule=inner, steps=steps, compression=compression),
        exchange=partial(Differing, rule=inner, steps=steps),
        inner=inner,
        leases="fixed",
        compression=None if compression is None else checked_rule("compression", compression, descends=False),
    )


def parallel_sgd(
    lr: Rate | None = None,
    *,
    momentum: float = 0.0,
    weight_decay: float | None = None,
    rule: Rule | None = None,
) -> Method:
    """Parallel SGD: independent workers, whose weights are averaged at the end.

    Nothing is exchanged while training. An evaluation measures the average as it would be if the run ended
    there; the workers go on undisturbed.

    Args:
        lr: learning rate; None is 0.02, annealed over the planned samples.
        momentum: of each worker's SGD.
        weight_decay: L2 penalty; None is 0.
        rule: the workers' descent, in place of SGD with the above.

    Raises:
        ConfigurationError: an argument out of its range, or `rule` beside the settings of SGD.

    References:
        Zinkevich, Weimer, Smola, Li 2010, "Parallelized stochastic gradient descent", algorithm 3
        (SimuParallelSGD). Departs from it in that workers take batches from one queue, and in that the
        average is weighted by the examples that each has used.

    Example:
        >>> parallel_sgd(0.1).settings
        {'rule': 'sgd(lr=0.1)'}
    """
    own = own_rule(rule, lr, momentum or None, weight_decay)
    inner = plain_sgd(lr, weight_decay, momentum) if own is None else own
    return Method(
        "parallel_sgd",
        free(),
        True,
        lambda workers: sgd(1.0),
        settings=described(rule=inner),
        exchange=partial(Differing, rule=inner, steps=None),
        inner=inner,
    )


def diloco(
    steps: int = 50,
    inner: Rule | None = None,
    outer: Rule | None = None,
    *,
    asynchronous: bool = True,
    dynamic: bool = False,
    buffer: int | None = None,
    compression: Rule | None = None,
) -> Method:
    """DiLoCo: many steps of an inner optimizer, then the distance moved is a gradient for an outer one.

    Synchronous: a round averages everybody's distance, and Nesterov momentum is the outer optimizer
        (Douillard et
    al. 2023). Asynchronous: each distance is applied as it arrives, and momentum is updated from every
    `buffer`-th on (delayed Nesterov, Liu et al. 2024).

    Args:
        steps: inner steps between exchanges, H; of the fastest worker, with `dynamic`.
        inner: the workers' optimizer, whose state stays with them; None is ``adamw(1e-3)``.
        outer: the server's; None is ``sgd(0.7, momentum=0.9, nesterov=True)``, or
            ``delayed_nesterov(0.7, momentum=0.9)`` if asynchronous.
        asynchronous: nobody waits.
        dynamic: slower workers take fewer steps, so that exchanges come at equal times (dynamic local
            updates).
        buffer: pushes per update of the delayed momentum; None is the number of workers.
        compression: what a worker does to a distance before it pushes it, such as ``rules.eight_bit()``.

    Raises:
        ConfigurationError: an argument out of its range.

    References:
        Douillard et al. 2023, arXiv:2311.08105, algorithm 1; Liu et al. 2024, arXiv:2401.09135, algorithms 1
        to 4. Departs from them in that a round's average is weighted by examples, and in that a worker's
        speed is its share of the steps taken so far (of which the floor is taken, but at least one step).

    Example:
        >>> diloco(20, asynchronous=False).settings["outer"]
        'sgd(lr=0.7, momentum=0.9, nesterov=True)'
    """
    check_whole("steps", steps, 1, "50 to 500 are common")
    if buffer is not None:
        check_whole("buffer", buffer, 1, "leave it out for the number of workers")
    if not asynchronous and (dynamic or buffer is not None):
        name = "dynamic" if dynamic else "buffer"
        raise ConfigurationError(f"`{name}` needs asynchronous=True: rounds wait for everybody")
    own = None if outer is None else checked_rule("outer", outer)
    if own is not None and buffer is not None:
        raise ConfigurationError("`buffer` is a setting of the default `outer`; give it to your own")
    trained = adamw(1e-3) if inner is None else checked_rule("inner", inner)

    def choose(workers: int) -> Rule:
        if own is not None:
            return own
        if asynchronous:
            return delayed_nesterov(0.7, momentum=0.9, buffer=buffer or workers)
        return sgd(0.7, momentum=0.9, nesterov=True)

    return Method(
        "diloco",
        free() if asynchronous else barrier(),
        not asynchronous,
        choose,
        settings=described(
            inner=trained, outer=choose(2), steps=steps, dynamic=dynamic, compression=compression
        ),
        exchange=partial(Differing, rule=trained, steps=steps, dynamic=dynamic),
        inner=trained,
        leases="queue" if asynchronous else "fixed",
        compression=None if compression is None else checked_rule("compression", compression, descends=False),
    )


def described(**settings: Any) -> dict[str, Any]:
    """Settings for the report: rules by their description, what is off left out."""
    return {name: getattr(value, "describe", value) for name, value in settings.items() if value}


def gate_after(steps: int) -> Gate:
    """A free gate, for all but the first worker only after its first steps."""
    return warm_start(steps, free()) if steps else free()
