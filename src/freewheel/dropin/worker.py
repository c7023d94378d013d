"""``join()``, and the worker that it gives a training script."""

from __future__ import annotations

import atexit
import fcntl
import inspect
import os
import warnings
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, final

from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from freewheel.dropin.membership import REMEDY, Membership
from freewheel.dropin.messages import Register, Retire
from freewheel.dropin.optimizer import SharedOptimizer, base_rate
from freewheel.dropin.shard import Loop, Shard
from freewheel.dropin.station import Station, alone, joined, wait_for_all
from freewheel.engines.processes.messages import Line
from freewheel.errors import ConfigurationError
from freewheel.methods import METHODS, Method, by_name
from freewheel.params import Parameters

_joined: list[Worker] = []


def join() -> Worker:
    """Makes this process one of the workers that ``freewheel run`` has started.

    Started without the launcher, the script is the only worker, and trains alone in its own process.

    Returns:
        The worker: its rank, its optimizer, its part of the data.

    Raises:
        ConfigurationError: called twice; the launcher's variables are half set or of another version; this
            process was not started by the launcher itself.

    Example:
        ::

            worker = freewheel.join()
            optimizer = worker.optimizer(model, lr=0.01, momentum=0.9)
            for inputs, targets in worker.shard(loader):
                ...
    """
    from freewheel import __version__

    if _joined:
        raise ConfigurationError("join() was called before in this process; keep the worker that it returned")
    place = Membership.found(os.environ, __version__)
    worker = Worker(place, None if place is None else _connected(place))
    _joined.append(worker)
    return worker


def _connected(place: Membership) -> Line:
    """The line to the launcher; processes that this one starts do not get it."""
    try:
        flags = fcntl.fcntl(place.socket, fcntl.F_GETFD)
        if flags & fcntl.FD_CLOEXEC:
            raise OSError("it was joined before")
        os.set_inheritable(place.socket, False)
        return Line(Connection(place.socket))
    except OSError as error:
        raise ConfigurationError(
            f"this process has no connection to the launcher ({error}): it is a child of a worker; {REMEDY}"
        ) from None


@final
class Worker:
    """One process of a training script; made by :func:`freewheel.join`.

    Attributes:
        rank: which worker, from 0.
        workers: how many there are; 1 without the launcher.
        restarts: how often this worker has died and was started again.
    """

    def __init__(self, place: Membership | None, line: Line | None) -> None:
        self._place = place
        self._line = line
        self.rank = 0 if place is None else place.rank
        self.workers = 1 if place is None else place.workers
        self.restarts = 0 if place is None else place.life
        self._optimizer: SharedOptimizer | None = None
        self._shards = 0
        self._barriers = 0

    @property
    def is_main(self) -> bool:
        """Whether this is the worker that evaluates, logs and saves."""
        return self.rank == 0

    def optimizer(
        self, model: nn.Module, method: Method | str | None = None, **settings: Any
    ) -> SharedOptimizer:
        """An optimizer over weights that all workers share.

        The first worker's initial weights are everybody's. The model's parameters stay the same objects.

        Args:
            model: on the processor, float32, built in the same way by every worker. Load its weights before.
            method: such as ``freewheel.downpour(lr=0.01)``, or the name of one. None is what the launcher
                was given as ``--method``, or Hogwild!.
            **settings: of a method that is given by name, or by the launcher: ``lr=0.01, momentum=0.9``, or
                ``rule=freewheel.rules.adamw(1e-3)``. What the launcher was given with ``--set`` goes before.

        Raises:
            ConfigurationError: a model or method that cannot be used, or that differs from the other
                workers' or the launcher's; called twice.
        """
        if self._optimizer is not None:
            raise ConfigurationError("worker.optimizer() was called before; a worker trains one model")
        chosen = self._method(method, settings)
        parameters = Parameters(model)
        if parameters.flat.device.type != "cpu":
            raise ConfigurationError(
                "worker.optimizer() shares weights in the memory of the processor, but `model` is on"
                f" {parameters.flat.device}; leave it there: model.cpu()"
            )
        base_rate(chosen, self.workers)
        self._optimizer = SharedOptimizer(model, self._station(parameters, chosen))
        atexit.register(self._leave)
        return self._optimizer

    def _method(self, method: Method | str | None, settings: dict[str, Any]) -> Method:
        self._check_choice(method)
        if isinstance(method, Method):
            if settings:
                raise ConfigurationError(
                    f"`method` is made already; give {', '.join(settings)} to it: {method.name}(...)"
                )
            return checked(method)
        if self._place is None:
            return made(method, settings)
        if method is None and self._place.method is not None:
            settings = self._suited(self._place.method, settings)
        return made(method or self._place.method, {**settings, **self._place.settings})

    def _suited(self, method: str, settings: dict[str, Any]) -> dict[str, Any]:
        """What a script says of a method that it leaves to the launcher, as far as that has such settings."""
        known = inspect.signature(METHODS[by_name(method).name]).parameters
        left = [name for name in settings if name not in known]
        if left and self.is_main:
            warnings.warn(
                f"--method {method} has no {', '.join(left)}: what the script says of that is left out; it"
                f" has {', '.join(known)}, for --set",
                stacklevel=4,
            )
        return {name: value for name, value in settings.items() if name in known}

    def _check_choice(self, method: Method | str | None) -> None:
        """What the launcher was given is not ignored silently where the script has a method of its own."""
        place = self._place
        if place is None or place.method is None or not isinstance(method, Method | str):
            return
        name = method.name if isinstance(method, Method) else method
        if name != place.method:
            raise ConfigurationError(
                f"`method`: the launcher was given --method {place.method}, the script has {name}; leave"
                " --method out, or let it choose: worker.optimizer(model, lr=...)"
            )
        if isinstance(method, Method) and place.settings:
            given = " ".join(f"--set {setting}={value}" for setting, value in place.settings.items())
            raise ConfigurationError(
                f"`method`: the launcher was given {given}, but the script makes its {name}(...) itself;"
                f" leave --set out, or let it choose: worker.optimizer(model, {name!r}, lr=...)"
            )

    def _station(self, parameters: Parameters, method: Method) -> Station:
        if self._line is None:
            return alone(parameters, method, seed=0)
        import cloudpickle  # type: ignore[import-untyped]  # it has no types

        try:
            pickled = cloudpickle.dumps(method)
        except Exception as error:
            raise ConfigurationError(
                f"`method` cannot be sent to the launcher ({type(error).__name__}: {error}); leave open files"
                " and locks out of its rule"
            ) from error
        label = f"{method.name}({', '.join(f'{k}={v}' for k, v in method.settings.items())})"
        return joined(self._line, self.rank, self.restarts, Register(parameters, pickled, label))

    def shard(self, loader: DataLoader[Any]) -> Shard:
        """This worker's part of a loader; alone, all of it.

        Every sample of an epoch is computed on at least once though workers die, and without deaths exactly
        once. Batch size, sampler, shuffling, ``collate_fn`` and ``num_workers`` stay the loader's.

        Args:
            loader: of a map-style or an iterable data set. Workers must call this in the same order.

        Raises:
            ConfigurationError: not a DataLoader, or one whose sampler gives a part only already.
        """
        if not isinstance(loader, DataLoader):
            raise ConfigurationError(
                f"`loader` must be a torch.utils.data.DataLoader, got {type(loader).__name__}; for others use"
                " itertools.islice(batches, worker.rank, None, worker.workers)"
            )
        number, self._shards = self._shards, self._shards + 1
        for sampler in (loader.sampler, getattr(loader.batch_sampler, "sampler", None)):
            if isinstance(sampler, DistributedSampler) and sampler.num_replicas > 1:
                raise ConfigurationError(
                    f"`loader` has a DistributedSampler, which gives one of {sampler.num_replicas} parts;"
                    " worker.shard() divides itself: use shuffle=True, or no sampler"
                )
        loop = Loop(self._enter, self._count, self._exit)
        line = self._line
        return Shard(loader, number, self.rank, self.workers, line, loop, self.restarts > 0)

    def barrier(self) -> None:
        """Waits until every worker that still runs has called it.

        A worker that was started again passes those that it has passed before.
        """
        number, self._barriers = self._barriers, self._barriers + 1
        if self._line is not None:
            wait_for_all(self._line, number)

    def _enter(self) -> None:
        if self._optimizer is None:
            raise ConfigurationError(
                "worker.shard() is iterated before worker.optimizer() was called; make the optimizer first"
            )
        self._optimizer.enter()

    def _count(self, samples: int) -> None:
        if self._optimizer is not None:
            self._optimizer.count(samples)

    def _exit(self, ended: bool) -> None:
        if self._optimizer is not None:
            self._optimizer.leave()
            if ended:
                self._optimizer.flush()

    def _leave(self) -> None:
        """The script ends: what is kept on the worker is pushed, and nobody waits for it any more."""
        with suppress(Exception):  # the launcher may be gone
            self._exit(ended=True)
            if self._line is not None:
                self._line.send(Retire())


def made(name: str | None, settings: dict[str, Any]) -> Method:
    """The method of this name with these settings; None is Hogwild!.

    Raises:
        ConfigurationError: no such method, or not for scripts; a setting that it does not have. The message
            lists those that there are.

    Example:
        >>> made("stale_synchronous", {"bound": 2}).gate.describe
        'bounded(2)'
    """
    plain = checked(by_name(name))
    if not settings:
        return plain
    factory = METHODS[plain.name]
    known = inspect.signature(factory).parameters
    unknown = sorted(settings.keys() - known.keys())
    if unknown:
        raise ConfigurationError(f"{plain.name} has no setting {unknown[0]!r}; it has {', '.join(known)}")
    return checked(factory(**settings))


def checked(method: Method) -> Method:
    """The method, if a script can train by it.

    Raises:
        ConfigurationError: it cannot.
    """
    if method.name == "parallel_sgd":
        raise ConfigurationError(
            "`method`: parallel_sgd averages when everybody stands still, which a script never does; use"
            " local_sgd(steps=...)"
        )
    if method.granularity == "layer":
        raise ConfigurationError(
            "`granularity`='layer' updates within the backward pass, but a script updates in"
            " optimizer.step(); leave it out"
        )
    return method
