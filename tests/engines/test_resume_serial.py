"""A serial run that goes on from a checkpoint equals one that was never cut, whatever the method."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import assert_equal, checkpoints, cut_after
from laws import ALL, blobs, each_with_shards, leases_of, network, train
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import freewheel
from freewheel.methods import Method
from freewheel.rules import (
    Rule,
    adam,
    chain,
    delayed_nesterov,
    eight_bit,
    partition,
    quarantine,
    reject_outliers,
    sgd,
)
from freewheel.schedules import annealed

CUTS = (7, 22)


@pytest.mark.parametrize(("name", "shards"), each_with_shards(ALL))
def test_every_method_goes_on_bit_for_bit(
    name: str, shards: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"workers": 3, "shards": shards, "evaluate_every": 80, "seed": 5}
    whole = train(network(), ALL[name], "serial", **settings)
    cut_after(monkeypatch, *CUTS)
    assert_equal(train(network(), ALL[name], "serial", **settings, run_dir=tmp_path / "run"), whole)
    found = checkpoints(tmp_path / "run")
    assert list(found) == [22, 30, 7]  # by name
    for steps in CUTS:
        leases: Counter[int] = Counter()
        resumed = train(
            network(), ALL[name], "serial", **settings, resume=found[steps], monitors=[leases_of(leases)]
        )
        assert_equal(resumed, whole)
        assert leases.total() == whole.steps - steps


def of_rule(rule: Rule) -> Method:
    return freewheel.stale_synchronous(2, rule=rule)


FURTHER: dict[str, Method] = {
    "adam": of_rule(adam(0.01)),
    "quarantine": of_rule(
        chain(quarantine(reject_outliers(1.5, warmup=2), after=2, for_updates=2), sgd(0.05))
    ),
    "partition": of_rule(partition({"0.*": adam(0.01), "*": sgd(0.05, momentum=0.9)})),
    "delayed_nesterov": of_rule(delayed_nesterov(0.05, buffer=3)),
    "drawing-server": of_rule(chain(eight_bit(64), sgd(0.05))),
    "annealed-server": of_rule(sgd(annealed(0.1))),
    "annealed-worker": freewheel.local_sgd(annealed(0.1), 4),
    "annealed-elastic": freewheel.elastic_averaging(annealed(0.1), period=3),
}


@pytest.mark.parametrize("name", FURTHER)
def test_every_kind_of_state_goes_on(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = FURTHER[name]
    whole = train(network(), method, "serial", workers=3)
    cut_after(monkeypatch, 11)
    train(network(), method, "serial", workers=3, run_dir=tmp_path)
    assert_equal(train(network(), method, "serial", workers=3, resume=checkpoints(tmp_path)[11]), whole)


def test_weights_that_are_channels_last_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, targets = torch.randn(48, 3, 6, 6), torch.arange(48) % 4

    def fit(**settings: Any) -> freewheel.Result:
        torch.manual_seed(1)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4)
        )
        method = freewheel.synchronous(0.05, momentum=0.9)
        loss = nn.CrossEntropyLoss()
        data = (inputs, targets)
        arguments = {"workers": 3, "batch_size": 4, "channels_last": True, **settings}
        return freewheel.fit(model, data, loss=loss, method=method, engine="serial", **arguments)

    whole = fit()
    cut_after(monkeypatch, 4)  # within a round: gradients of the others wait in it
    fit(run_dir=tmp_path)
    assert_equal(fit(resume=checkpoints(tmp_path)[4]), whole)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, batch_first=True)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        found, hidden = self.lstm(self.embedding(tokens), hidden)
        return self.head(found), hidden


def recurrent(engine: str, method: freewheel.Method, **settings: Any) -> freewheel.Result:
    torch.manual_seed(1)
    tokens = torch.randint(0, 11, (601,), generator=torch.Generator().manual_seed(1))
    arguments = {"bptt": 5, "batch_size": 4, "workers": 2, "epochs": 2, "evaluate": tokens, **settings}
    loss = nn.CrossEntropyLoss()
    return freewheel.fit(Words(), tokens, loss=loss, method=method, engine=engine, **arguments)


@pytest.mark.parametrize("step", [3, 20, 33])
@pytest.mark.parametrize("method", ["synchronous", "hogwild", "downpour"])
def test_hidden_states_go_on(method: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = recurrent("serial", ALL[method])
    assert whole.steps > 33
    cut_after(monkeypatch, step)
    recurrent("serial", ALL[method], run_dir=tmp_path)
    assert_equal(recurrent("serial", ALL[method], resume=checkpoints(tmp_path)[step]), whole)


class Unsized:
    """An iterable of batches of unknown number."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = blobs()
        yield from zip(torch.split(inputs, 16), torch.split(targets, 16), strict=True)


BATCHES: Any = list(Unsized())
STREAMS: dict[str, Any] = {
    "unsized": Unsized(),
    "sized": DataLoader(BATCHES, batch_size=None),
    "shuffled": DataLoader(BATCHES, batch_size=None, shuffle=True),
    "sampler": DataLoader(
        TensorDataset(*blobs()), 16, sampler=torch.utils.data.SubsetRandomSampler(range(160))
    ),
}


class Shuffled:
    """A sampler with a generator of its own, as users write one."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(3)

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(160, generator=self.generator).tolist()

    def __len__(self) -> int:
        return 160


def with_generator() -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(3)
    return DataLoader(BATCHES, batch_size=None, shuffle=True, generator=generator)


def with_sampler() -> DataLoader[Any]:
    return DataLoader(TensorDataset(*blobs()), 16, sampler=Shuffled())


@pytest.mark.parametrize("step", [7, 10, 22])
@pytest.mark.parametrize("make", [with_generator, with_sampler])
def test_loaders_with_generators_of_their_own_go_on(
    make: Callable[[], DataLoader[Any]], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(**settings: Any) -> freewheel.Result:
        method, loss = freewheel.stale_synchronous(1, 0.05), nn.CrossEntropyLoss()
        return freewheel.fit(
            network(), make(), loss=loss, method=method, engine="serial", workers=2, epochs=3, **settings
        )

    whole = fit()
    cut_after(monkeypatch, step)
    fit(run_dir=tmp_path)
    assert_equal(fit(resume=checkpoints(tmp_path)[step]), whole)


@pytest.mark.parametrize("step", [7, 22])
@pytest.mark.parametrize("method", ["synchronous", "downpour"])
@pytest.mark.parametrize("kind", STREAMS)
def test_data_that_come_one_after_the_other_go_on(
    kind: str, method: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(**settings: Any) -> freewheel.Result:
        torch.manual_seed(8)
        arguments = {"workers": 3, "epochs": 3, "evaluate_every": 128, "evaluate": blobs(), **settings}
        model, loss = network(), nn.CrossEntropyLoss()
        return freewheel.fit(
            model, STREAMS[kind], loss=loss, method=ALL[method], engine="serial", **arguments
        )

    whole = fit()
    cut_after(monkeypatch, step)
    fit(run_dir=tmp_path)
    torch.manual_seed(9)  # whatever PyTorch's generator was
    assert_equal(fit(resume=checkpoints(tmp_path)[step]), whole)


# --- the checkpoint at the end ---


@pytest.mark.parametrize("name", ["hogwild", "synchronous", "downpour", "parallel_sgd", "diloco"])
def test_a_run_that_was_done_goes_on_for_more_epochs_as_if_it_had_never_ended(
    name: str, tmp_path: Path
) -> None:
    whole = train(network(), ALL[name], "serial", workers=3, epochs=3)
    train(network(), ALL[name], "serial", workers=3, epochs=1, run_dir=tmp_path)
    resumed = train(network(), ALL[name], "serial", workers=3, epochs=3, resume=tmp_path, run_dir=tmp_path)
    assert_equal(resumed, whole)
    assert list(checkpoints(tmp_path)) == [15, 45]


@pytest.mark.parametrize("engine", ["serial", "threads"])
@pytest.mark.parametrize("name", ["hogwild", "synchronous", "stale_synchronous", "downpour"])
def test_a_limit_that_is_further_off_within_an_epoch_leaves_no_batch_out(
    name: str, engine: str, tmp_path: Path
) -> None:
    train(network(), ALL[name], engine, workers=3, epochs=None, max_samples=80, run_dir=tmp_path)
    leases: Counter[int] = Counter()
    listen = {"monitors": [leases_of(leases)], "resume": tmp_path}
    resumed = train(network(), ALL[name], engine, workers=3, epochs=None, max_samples=160, **listen)
    assert leases == dict.fromkeys(range(5, 10), 1)
    assert (resumed.samples, resumed.steps) == (160, 10)


def test_a_run_that_is_done_gives_the_same_result_again(tmp_path: Path) -> None:
    whole = train(network(), ALL["downpour"], "serial", workers=3, run_dir=tmp_path)
    assert_equal(train(network(), ALL["downpour"], "serial", workers=3, resume=tmp_path), whole)


@pytest.mark.parametrize("name", ["hogwild", "synchronous", "diloco"])
@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_a_run_whose_time_was_up_goes_on(engine: str, name: str, tmp_path: Path) -> None:
    workers = 1 if engine == "threads" and name != "synchronous" else 3
    settings: dict[str, Any] = {"workers": workers}
    model = network(dropout=0.2 if workers == 1 else 0.0)
    ended = train(model, ALL[name], engine, **settings, max_seconds=1e-9, run_dir=tmp_path)
    assert ended.reason == "max_seconds"
    resumed = train(
        network(dropout=0.2 if workers == 1 else 0.0), ALL[name], engine, **settings, resume=tmp_path
    )
    whole = train(network(dropout=0.2 if workers == 1 else 0.0), ALL[name], engine, **settings)
    assert_equal(resumed, whole)


@pytest.mark.parametrize("name", ["hogwild", "synchronous", "stale_synchronous-in_flight", "diloco"])
def test_a_run_that_was_interrupted_in_a_step_goes_on_from_its_end(name: str, tmp_path: Path) -> None:
    steps = 0

    def interrupted(prediction: Tensor, target: Tensor) -> Tensor:
        nonlocal steps
        steps += prediction.requires_grad
        if steps == 18:
            steps += 1
            os.kill(os.getpid(), signal.SIGINT)
        return nn.functional.cross_entropy(prediction, target)

    def fit(**settings: Any) -> freewheel.Result:
        arguments = {"workers": 3, "batch_size": 16, "epochs": 2, "evaluate": blobs(), **settings}
        return freewheel.fit(
            network(), blobs(), loss=interrupted, method=ALL[name], engine="serial", **arguments
        )

    cut = fit(run_dir=tmp_path)
    assert cut.reason == "interrupted"
    (found,) = checkpoints(tmp_path)
    assert found == cut.steps < 30
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    steps = 100
    resumed = fit(resume=tmp_path, run_dir=tmp_path)
    assert_equal(resumed, fit())


def test_a_second_interrupt_does_not_wait(tmp_path: Path) -> None:
    def hurried(prediction: Tensor, target: Tensor) -> Tensor:
        if prediction.requires_grad and (tmp_path / "events.jsonl").is_file():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("the second one was held back")
        return nn.functional.cross_entropy(prediction, target)

    result = freewheel.fit(network(), blobs(), loss=hurried, engine="serial", workers=2, run_dir=tmp_path)
    assert result.reason == "interrupted"
    assert result.steps == 0


def test_a_target_that_was_reached_can_be_left_behind(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"workers": 2, "evaluate_every": 48}
    ended = train(network(), ALL["hogwild"], "serial", **settings, target=("accuracy", 0.1), run_dir=tmp_path)
    assert (ended.reason, len(ended.history)) == ("target", 2)
    resumed = train(network(), ALL["hogwild"], "serial", **settings, resume=tmp_path)
    assert_equal(resumed, train(network(), ALL["hogwild"], "serial", **settings))
