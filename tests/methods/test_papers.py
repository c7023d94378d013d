"""Every method gives the weights that its paper's pseudo-code gives, from the same order of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import combinations
from typing import Any, NamedTuple

import optimizers
import problems
import pytest
import torch
import transcriptions as papers
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transcriptions import Gradient
from turns import deal, turns

import freewheel
from freewheel.methods import Method
from freewheel.rules import adamw, chain, sgd
from freewheel.rules.staleness import damp, delayed_nesterov

BATCHES = 36
LR = 0.1


class Problem(NamedTuple):
    """What is trained, and on what."""

    module: Callable[[], nn.Module]
    step: Callable[[nn.Module, Any], Tensor]
    batches: Callable[[int], Sequence[Any]]

    def trained(self, method: Method, workers: int, count: int = BATCHES, **settings: Any) -> Tensor:
        """The weights that the library ends with."""
        module = self.module()
        loader: DataLoader[Any] = DataLoader(self.batches(count), batch_size=None)  # type: ignore[arg-type]
        run: dict[str, Any] = {"engine": "serial", "workers": workers, **settings}
        freewheel.fit(module, loader, step=self.step, method=method, **run)
        return problems.flat(module)

    def transcribed(self, reference: Reference, workers: int, count: int = BATCHES) -> Tensor:
        """The weights that the pseudo-code ends with."""
        module = self.module()
        gradient = problems.gradient_of(module, self.step)
        return reference(problems.flat(module), gradient, self.batches(count), workers)


Reference = Callable[[Tensor, Gradient, Sequence[Any], int], Tensor]


def single(count: int) -> list[Tensor]:
    return [minimum.float() for minimum in problems.minima(count)]


PROBLEMS = {
    "network": Problem(problems.network, problems.network_step, problems.examples),
    "quadratic": Problem(problems.Point, problems.quadratic_step, single),
}


class Case(NamedTuple):
    """One row of the table: a method, and the pseudo-code that it has to equal."""

    method: Method
    reference: Reference
    workers: tuple[int, ...] = (1, 3)
    ragged: bool = True  # the workers may end with different numbers of steps
    tolerance: float = 1e-6  # of the largest weight


def hogwild(w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int) -> Tensor:
    return papers.asynchronous_sgd(w, gradient, turns(batches, workers), optimizers.sgd(LR))


def heavy_ball(w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int) -> Tensor:
    return papers.asynchronous_sgd(w, gradient, turns(batches, workers), optimizers.sgd(LR, 0.8))


def waiting(bound: int, w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int) -> Tensor:
    order = turns(batches, workers, bound)
    return papers.asynchronous_sgd(w, gradient, order, optimizers.sgd(LR, 0.8, nesterov=True))


def compensated(
    pseudo_code: Callable[..., Tensor], w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int
) -> Tensor:
    return pseudo_code(w, gradient, turns(batches, workers), LR, 0.5)


def damped(power: float, w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int) -> Tensor:
    return papers.staleness_aware(w, gradient, turns(batches, workers), LR, power)


def downpour(
    fetch: int, push: int, warm: int, w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int
) -> Tensor:
    order = turns(batches, workers, warm_start=warm)
    return papers.downpour(w, gradient, order, optimizers.adagrad(LR), LR, fetch, push)


def downpour_sgd(w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int) -> Tensor:
    return papers.downpour(w, gradient, turns(batches, workers), optimizers.sgd(0.05), LR, 3, 2)


def elastic(
    period: int, momentum: float, w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int
) -> Tensor:
    return papers.elastic_averaging(w, gradient, turns(batches, workers), LR, 0.2, period, momentum)


def late(w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int) -> Tensor:
    rounds = [batches[first : first + workers] for first in range(0, len(batches), workers)]
    return papers.backup_workers(w, gradient, rounds, workers - 1, optimizers.sgd(LR, 0.8))


def parallel(w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int) -> Tensor:
    return papers.parallel_sgd(w, gradient, deal(batches, workers), LR)


def local(steps: int, w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int) -> Tensor:
    return papers.local_sgd(w, gradient, deal(batches, workers), LR, steps)


def diloco(w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int) -> Tensor:
    outer = optimizers.sgd(0.7, 0.9, nesterov=True)
    return papers.diloco(w, gradient, deal(batches, workers), 5, partial(optimizers.adamw, 0.02), outer)


def free_diloco(
    period: int | None, c: float, w: Tensor, gradient: Gradient, batches: Sequence[Any], workers: int
) -> Tensor:
    outer = optimizers.delayed_nesterov(0.7, 0.9, workers if period is None else period, c)
    steps = papers.dynamic_local_updates([1.0] * workers, 5)
    order = turns(batches, workers)
    return papers.asynchronous_diloco(
        w, gradient, order, steps.__getitem__, partial(optimizers.adamw, 0.02), outer
    )


INNER = adamw(0.02, weight_decay=0.01)
ADAM = 2e-5  # its division by small roots, and then Nesterov's momentum, enlarge what float32 rounds
CASES = {
    "hogwild": Case(freewheel.hogwild(LR, momentum=0.0), hogwild),
    "hogwild-momentum": Case(freewheel.hogwild(LR, momentum=0.8, nesterov=False), heavy_ball),
    "stale-synchronous": Case(
        freewheel.stale_synchronous(2, LR, momentum=0.8, nesterov=True), partial(waiting, 2)
    ),
    "stale-synchronous-0": Case(
        freewheel.stale_synchronous(0, LR, momentum=0.8, nesterov=True), partial(waiting, 0)
    ),
    "delay-compensated": Case(
        freewheel.delay_compensated(LR, 0.5), partial(compensated, papers.delay_compensated)
    ),
    "delay-compensated-adaptive": Case(
        freewheel.delay_compensated(LR, 0.5, adaptive=True),
        partial(compensated, papers.delay_compensated_adaptively),
    ),
    "staleness-aware": Case(freewheel.hogwild(rule=chain(damp(), sgd(LR))), partial(damped, 1.0)),
    "staleness-aware-root": Case(freewheel.hogwild(rule=chain(damp(0.5), sgd(LR))), partial(damped, 0.5)),
    "downpour": Case(freewheel.downpour(LR, 4, 3), partial(downpour, 3, 4, 0)),
    "downpour-every-step": Case(freewheel.downpour(LR, 1, 1), partial(downpour, 1, 1, 0)),
    "downpour-warm-start": Case(freewheel.downpour(LR, 2, 2, warm_start=7), partial(downpour, 2, 2, 7)),
    "downpour-sgd": Case(freewheel.downpour(LR, 2, 3, server=sgd(0.05)), downpour_sgd),
    "elastic-averaging": Case(freewheel.elastic_averaging(LR, 0.2, 1), partial(elastic, 1, 0.0)),
    "elastic-averaging-4": Case(freewheel.elastic_averaging(LR, 0.2, 4), partial(elastic, 4, 0.0)),
    "elastic-averaging-momentum": Case(
        freewheel.elastic_averaging(LR, 0.2, 4, momentum=0.8), partial(elastic, 4, 0.8)
    ),
    "backup-workers": Case(
        freewheel.synchronous(LR, momentum=0.8, backup_workers=1), late, workers=(2, 3), ragged=False
    ),
    "parallel": Case(freewheel.parallel_sgd(LR), parallel, ragged=False),
    "local-1": Case(freewheel.local_sgd(LR, 1), partial(local, 1), ragged=False),
    "local-5": Case(freewheel.local_sgd(LR, 5), partial(local, 5), ragged=False),
    "diloco": Case(freewheel.diloco(5, INNER, asynchronous=False), diloco, ragged=False, tolerance=ADAM),
    "diloco-asynchronous": Case(freewheel.diloco(5, INNER), partial(free_diloco, None, 0.0), tolerance=ADAM),
    "diloco-dynamic": Case(
        freewheel.diloco(5, INNER, dynamic=True), partial(free_diloco, None, 0.0), tolerance=ADAM
    ),
    "diloco-delayed": Case(
        freewheel.diloco(5, INNER, delayed_nesterov(0.7, buffer=4, activation=0.1)),
        partial(free_diloco, 4, 0.1),
        tolerance=ADAM,
    ),
}
ROWS = [(name, workers) for name, case in CASES.items() for workers in case.workers]


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=list(PROBLEMS))
@pytest.mark.parametrize(("name", "workers"), ROWS)
def test_method_equals_the_pseudo_code_of_its_paper(name: str, workers: int, problem: Problem) -> None:
    case = CASES[name]
    for count in (BATCHES, BATCHES + 5) if case.ragged else (BATCHES,):
        ours = problem.trained(case.method, workers, count)
        theirs = problem.transcribed(case.reference, workers, count)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=case.tolerance * float(theirs.abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_shards_of_the_server_change_nothing(name: str) -> None:
    """The bounds of three shards lie inside a bias and inside a matrix of the network."""
    problem, case = PROBLEMS["network"], CASES[name]
    ours = problem.trained(case.method, 3, shards=3)
    theirs = problem.transcribed(case.reference, 3)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=case.tolerance * float(theirs.abs().max()))


def test_parallel_sgd_is_measured_without_being_disturbed() -> None:
    problem, case, measured = PROBLEMS["network"], CASES["parallel"], list[Tensor]()

    def evaluate(module: nn.Module) -> dict[str, float]:
        measured.append(problems.flat(module))
        return {"loss": 0.0}

    ours = problem.trained(case.method, 3, evaluate=evaluate, evaluate_every=120)
    assert len(measured) == 1 + 3  # the first is the check before the run
    for count, weights in zip((12, 24, 36), measured[1:], strict=True):
        theirs = problem.transcribed(case.reference, 3, count)
        torch.testing.assert_close(weights, theirs, rtol=0, atol=case.tolerance)
    assert torch.equal(ours, measured[-1])


def test_the_table_tells_the_methods_apart() -> None:
    """Were two pseudo-codes equal on the network, a method that follows the wrong one would pass."""
    problem = PROBLEMS["network"]
    ends = {name: problem.transcribed(case.reference, 3) for name, case in CASES.items()}
    same = {pair for pair in combinations(ends, 2) if torch.allclose(ends[pair[0]], ends[pair[1]], rtol=1e-3)}
    assert same == {("diloco-asynchronous", "diloco-dynamic")}  # the workers are equally fast
