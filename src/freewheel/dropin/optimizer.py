"""A method as a ``torch.optim.Optimizer``, for scripts with a training loop of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from freewheel.dropin.station import Station
from freewheel.dropin.views import Views
from freewheel.engines.worker import pace
from freewheel.errors import ConfigurationError
from freewheel.exchanges import Local
from freewheel.link import Link
from freewheel.methods import Method
from freewheel.rules.base import Rule, State, restore
from freewheel.server import Receipt
from freewheel.tasks import WorkerContext
from freewheel.update import Update

RULES = "rules"


@final
class SharedOptimizer(torch.optim.Optimizer):
    """Steps over weights that several workers share; made by :meth:`Worker.optimizer`.

    ``step()`` hands the gradients to the method, and waits where the method waits. The model gets the weights
    for the next step when it computes. Gradients are used up: they are None afterwards, as after
    ``zero_grad()``.

    ``param_groups[0]["lr"]`` begins with the rate of the method. What a scheduler makes of it reaches the
    rule as a factor: the first worker's holds for all. Where the rule has no single rate (``partition``), it
    begins with 1, and is the factor itself. A rule with momentum has ``"momentum"`` there, or Adam's
    ``"betas"``, of which the first is heeded.

    Args:
        module: the user's; its weights become views of the shared ones, or of the worker's own.
        station: the worker's.
    """

    def __init__(self, module: nn.Module, station: Station) -> None:
        self._station = station
        self._closed = False
        self._begun = False  # the step under way has the weights that it is to have
        self._samples = 0  # given to the worker since the last step
        parameters, method = station.server.parameters, station.equipment.method
        by_name = dict(module.named_parameters())
        self._weights = [by_name[entry.name] for entry in parameters.layout.trainable]
        self._base = base_rate(method, station.server.workers)
        self._momentum = descent(method, station.server.workers).momentum
        defaults = dict([self._momentum] if self._momentum is not None else [])
        super().__init__([{"params": self._weights}], {"lr": self._base, **defaults})
        self._closed = True  # to further groups
        own = parameters.flat.clone() if method.exchange is not None else None
        statistics = parameters.statistics.clone()
        self._views = Views(module, station.server, own, statistics, self._begin, station.pulse.beat)
        self._context = WorkerContext(
            station.rank,
            station.equipment.setup.seed,
            module,
            self._weights,
            statistics,
            parameters.statistics,
            self._send,
        )
        self._link = self._linked(own)
        station.delivery.open()
        station.delivery.may_begin(asks=False)

    def _linked(self, own: Tensor | None) -> Link | None:
        station = self._station
        if own is None:
            return None
        tally, rank = station.tally, station.rank
        local: Local = station.equipment.local(rank, own, lambda: pace(rank, tally.steps()))
        local = replace(local, controls=station.controls)
        return station.equipment.link(self._context, local, station.server.pull, self._send, self._send_now)

    def _send(self, update: Update) -> Receipt | None:
        return self._station.delivery.send(update)

    def _send_now(self, update: Update) -> Receipt | None:
        return self._station.delivery.send_now(update)

    # --- steps ---

    @property
    def method(self) -> Method:
        """What it does."""
        return self._station.equipment.method

    def enter(self) -> None:
        """The script begins a loop over a shard."""
        self._station.pulse.enter()

    def leave(self) -> None:
        """It has left it."""
        self._station.pulse.leave()

    def count(self, samples: int) -> None:
        """The gradients that come have these further examples behind them."""
        self._samples += samples
        self._station.pulse.enter()  # again: a loop within this one may have been left

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Hands the gradients over.

        Args:
            closure: computes the loss and its gradients, and returns the loss.

        Returns:
            What the closure has returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._views.train()
        self._views.check()
        gradients = [weight.grad for weight in self._weights]
        for weight in self._weights:
            weight.grad = None
        context, station = self._context, self._station
        context.samples, self._samples = max(1, self._samples), 0
        self._set_controls()
        context.push_gradients(gradients)
        receipt, _ = station.delivery.conclude(context)
        station.tally.add(station.rank, context.samples, None if receipt is None else receipt.staleness)
        station.pulse.beat()
        context.sequence += 1
        self._begun = False
        return loss

    def _set_controls(self) -> None:
        """What schedulers have made of the group reaches the rule."""
        if self._station.rank:
            return
        group, controls = self.param_groups[0], self._station.controls
        if self._base:
            controls[0] = group["lr"] / self._base
        if self._momentum is not None:
            value = group[self._momentum[0]]
            controls[1] = value if self._momentum[0] == "momentum" else value[0]

    def _begin(self) -> None:
        """The weights for a step: a pull, or the live ones with their version.

        When the module computes, not when the step before is over: between the two lie evaluations, and the
        rounds that others have in the rest of an epoch.
        """
        if self._begun:
            return
        self._begun = True
        if self._link is not None:
            self._link.begin()
            return
        server = self._station.server
        self._context.version, self._context.versions = server.version, server.versions()

    @torch.no_grad()
    def flush(self) -> None:
        """Pushes what the method keeps on the worker."""
        self._opt_called = (
            True  # an epoch without a batch for this worker is no mistake: schedulers warn of one
        )
        if self._link is not None and self._link.flush(final=True):
            self._begun = False

    # --- state ---

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Takes the one group that it is made with.

        Raises:
            ConfigurationError: a further one.
        """
        if self._closed:
            raise ConfigurationError(
                "the optimizer of a worker has one group of parameters; give parts of the model rules of"
                ' their own: rule=partition({"*.bias": sgd(0.1), "*": sgd(0.01)})'
            )
        super().add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The groups, and under ``"rules"`` a copy of the shared state, such as momentum."""
        states = [_cloned(state) for state in self._station.server.states()]
        return {**super().state_dict(), RULES: states}

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from there. The first worker's holds for all, in its first life.

        Raises:
            ConfigurationError: it is of another optimizer.
        """
        if RULES not in state_dict:
            raise ConfigurationError(
                "`state_dict` has no 'rules': it is of another optimizer; give that of worker.optimizer()"
            )
        super().load_state_dict({name: value for name, value in state_dict.items() if name != RULES})
        if self._station.rank == 0 and self._station.life == 0:
            for state, then in zip(self._station.server.states(), state_dict[RULES], strict=True):
                restore(state, then)


def descent(method: Method, workers: int) -> Rule:
    """The rule whose learning rate is the method's: the workers' own, or the server's."""
    return method.inner or method.rule_for(workers)


def base_rate(method: Method, workers: int) -> float:
    """The learning rate that a method begins with; 1 where it has no single one.

    Raises:
        ConfigurationError: a schedule that needs to know how many samples the run will have.
    """
    rule = descent(method, workers)
    if rule.rate is None:
        return 1.0
    try:
        return float(rule.rate(0, None))
    except ConfigurationError as error:
        raise ConfigurationError(
            f"`lr`={rule.rate!r}: a script does not say how many samples it will train on; give the schedule"
            " its total, or use a number and torch.optim.lr_scheduler"
        ) from error


def _cloned(state: State) -> State:
    return {
        name: _cloned(value) if isinstance(value, dict) else [None if v is None else v.clone() for v in value]
        for name, value in state.items()
    }
