"""Measuring a model: means over a data set, weighted by examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import freewheel
from freewheel.errors import ConfigurationError, DataError
from freewheel.evaluation import check_function, check_metrics, over_source
from freewheel.events import Evaluated, Evaluating, Event
from freewheel.inputs import source_of
from freewheel.sources import Streamed
from freewheel.tasks import Supervised

ROWS = 23


def rows() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(6)
    return torch.randn(ROWS, 4, generator=generator), torch.randint(3, (ROWS,), generator=generator)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(list(zip(*rows(), strict=True)))


class Batches:
    def __iter__(self) -> Iterator[Any]:
        inputs, targets = rows()
        return iter([(inputs[start : start + 5], targets[start : start + 5]) for start in range(0, ROWS, 5)])


DATA: dict[str, Any] = {
    "tensors": rows(),
    "data set": TensorDataset(*rows()),
    "loader": DataLoader(TensorDataset(*rows()), 6),
    "loader with a process": DataLoader(TensorDataset(*rows()), 6, num_workers=1),
    "iterable data set": Stream(),
    "iterable": Batches(),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("batch_size", [1, 5, 500])
def test_means_are_weighted_over_a_short_last_batch_every_time(kind: str, batch_size: int) -> None:
    metrics = {"mean": lambda prediction, target: prediction.mean()}
    measure = over_source(
        Supervised(nn.CrossEntropyLoss(), metrics=metrics), source_of(DATA[kind], batch_size, 0)
    )
    module = nn.Linear(4, 3).eval()
    inputs, targets = rows()
    with torch.no_grad():
        prediction = module(inputs)
        expected = {
            "loss": float(cross_entropy(prediction, targets)),
            "accuracy": float((prediction.argmax(1) == targets).float().mean()),
            "mean": float(prediction.mean()),
        }
        for _ in range(3):
            assert measure(module) == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_metric_that_is_not_finite_is_nan() -> None:
    metrics = {"infinite": lambda prediction, target: float("inf")}
    measure = over_source(Supervised(nn.CrossEntropyLoss(), metrics=metrics), source_of(rows(), 5, 0))
    with torch.no_grad():
        values = measure(nn.Linear(4, 3))
    assert values["infinite"] != values["infinite"]
    assert values["loss"] > 0


def test_checking_changes_neither_module_nor_source_nor_generator() -> None:
    module = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    source, state = source_of(Batches(), 5, 0), torch.get_rng_state()
    assert check_metrics(module, Supervised(nn.CrossEntropyLoss()), source) == {"loss", "accuracy"}
    assert check_function(module, lambda twin: {"a": float(twin(rows()[0]).sum())}) == {"a"}
    assert module.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    source.open(0, None)
    lease = source.take()
    assert lease is not None
    assert torch.equal(lease.batch[0], rows()[0][:5])


def test_checks_say_what_is_wrong() -> None:
    with pytest.raises(
        ConfigurationError, match=r"`evaluate` failed on its first batch: RuntimeError.*must accept"
    ):
        check_metrics(nn.Linear(9, 3), Supervised(nn.CrossEntropyLoss()), source_of(rows(), 5, 0))
    with pytest.raises(ConfigurationError, match="`evaluate` failed: ZeroDivisionError"):
        check_function(nn.Linear(4, 3), lambda module: {"a": 1 / 0})
    with pytest.raises(ConfigurationError, match=r"`evaluate` must return \{name: number\}.*got 0.5"):
        check_function(nn.Linear(4, 3), lambda module: 0.5)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_monitors_hear_of_an_evaluation_before_it_begins(engine: str) -> None:
    heard: list[str] = []

    def measure(module: nn.Module) -> dict[str, float]:
        heard.append("measure")
        return {"loss": 0.0}

    def monitor(event: Event) -> None:
        if isinstance(event, Evaluating | Evaluated):
            heard.append(type(event).__name__)

    freewheel.fit(
        nn.Linear(4, 3), rows(), loss=cross_entropy, evaluate=measure, epochs=2, engine=engine, workers=2,
        monitors=[monitor],
    )  # fmt: skip
    assert heard == ["measure", *2 * ["Evaluating", "measure", "Evaluated"]]  # the first is the check


def test_a_source_that_gives_nothing_is_no_mean() -> None:
    source = Streamed(lambda: iter([]), len, length=0, batch_size=1)
    with pytest.raises(DataError, match="gave no examples"):
        over_source(Supervised(nn.CrossEntropyLoss()), source)(nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("data", "every", "expected"), [(Batches(), 10, [10, 20, 23, 33, 43, 46]), (rows(), 10, None)]
)
def test_evaluations_come_every_so_many_examples(data: Any, every: int, expected: list[int] | None) -> None:
    result = freewheel.fit(
        nn.Linear(4, 3),
        data,
        loss=nn.CrossEntropyLoss(),
        evaluate=Batches(),
        evaluate_every=every,
        engine="serial",
        workers=2,
        batch_size=5,
        epochs=2,
    )
    assert [entry.samples for entry in result.history] == (expected or [10, 20, 28, 38, 46])
    assert result.samples == 2 * ROWS
    assert result.metrics == result.history[-1].metrics


@pytest.mark.parametrize("max_samples", [1, 5, 6, 10, 23, 24, 28, 46, 100])
@pytest.mark.parametrize("kind", ["tensors", "loader", "iterable"])
def test_max_samples_is_rounded_up_to_whole_minibatches(kind: str, max_samples: int) -> None:
    result = freewheel.fit(
        nn.Linear(4, 3),
        DATA[kind],
        loss=nn.CrossEntropyLoss(),
        workers=1,
        batch_size=5,
        max_samples=max_samples,
    )
    size = 6 if kind == "loader" else 5
    total = 0
    while total < max_samples:
        total += min(size, ROWS - total % ROWS)
    assert result.samples == total
    assert result.reason == "max_samples"
