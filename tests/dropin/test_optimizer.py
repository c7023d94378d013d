"""One worker without the launcher: its optimizer equals its torch.optim twin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

from freewheel import (
    ConfigurationError,
    Method,
    downpour,
    hogwild,
    local_sgd,
    parallel_sgd,
    rules,
    synchronous,
)
from freewheel.dropin.membership import Membership
from freewheel.dropin.worker import Worker


def network() -> nn.Module:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 6))
    model[4].weight = model[0].weight  # tied
    model[2].bias.requires_grad_(False)
    return model


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, 3, 0.5),
    "warm-up": lambda optimizer: lr_scheduler.LambdaLR(optimizer, lambda epoch: min(1.0, (epoch + 1) / 5)),
    "plateau": lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, patience=1),
    "one cycle": lambda optimizer: lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=12),
}


def trained(
    model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 12, schedule: str = "step"
) -> list[torch.Tensor]:
    scheduler = SCHEDULERS[schedule](optimizer)
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(torch.randn(8, 4, generator=generator)) - 1).square().sum()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step(*[loss.item()] * (schedule == "plateau"))
    return [parameter.detach().clone() for parameter in model.parameters()]


TWINS: list[tuple[Method, Callable[[Any], torch.optim.Optimizer]]] = [
    (hogwild(lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
    (synchronous(lr=0.1, momentum=0.5), lambda p: torch.optim.SGD(p, 0.1, momentum=0.5)),
    (hogwild(rule=rules.adam(0.01)), lambda p: torch.optim.Adam(p, 0.01)),
    (hogwild(rule=rules.adamw(0.01)), lambda p: torch.optim.AdamW(p, 0.01)),
    (hogwild(rule=rules.rmsprop(0.01, momentum=0.9)), lambda p: torch.optim.RMSprop(p, 0.01, momentum=0.9)),
    (local_sgd(steps=1, lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, 0.1, momentum=0.9)),
]


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize(("method", "twin"), TWINS)
def test_it_equals_its_twin_with_a_scheduler_and_clipping(
    method: Method, twin: Callable[[Any], torch.optim.Optimizer], schedule: str
) -> None:
    model, other = network(), network()
    optimizer = Worker(None, None).optimizer(model, method)
    assert isinstance(optimizer, torch.optim.Optimizer)
    expected = trained(other, twin(other.parameters()), schedule=schedule)
    for own, theirs in zip(trained(model, optimizer, schedule=schedule), expected, strict=True):
        assert torch.allclose(own, theirs, atol=1e-6)


def accumulated(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Steps of two batches each, their losses scaled; then one by a closure."""
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    generator = torch.Generator().manual_seed(5)
    for _ in range(3):
        optimizer.zero_grad()
        for _ in range(2):
            loss = model(torch.randn(8, 4, generator=generator)).square().mean()
            torch.autograd.backward(scaler.scale(loss))
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()

    def closure() -> float:
        optimizer.zero_grad()
        loss = model(torch.ones(2, 4)).square().mean()
        torch.autograd.backward(loss)
        return float(loss.item())

    assert optimizer.step(closure) > 0
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize(("method", "twin"), TWINS)
def test_it_equals_its_twin_with_accumulation_scaling_and_a_closure(
    method: Method, twin: Callable[[Any], torch.optim.Optimizer]
) -> None:
    model, other = network(), network()
    optimizer = Worker(None, None).optimizer(model, method)
    expected = accumulated(other, twin(other.parameters()))
    for own, theirs in zip(accumulated(model, optimizer), expected, strict=True):
        assert torch.allclose(own, theirs, atol=1e-6)


def test_its_state_goes_into_another() -> None:
    model = network()
    first = Worker(None, None).optimizer(model, "hogwild", lr=0.1, momentum=0.9)
    trained(model, first)
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(first.state_dict())
    other = network()
    other.load_state_dict(weights)
    second = Worker(None, None).optimizer(other, "hogwild", lr=0.1, momentum=0.9)
    second.load_state_dict(state)
    assert second.param_groups[0]["lr"] == first.param_groups[0]["lr"]
    for own, theirs in zip(trained(other, second), trained(model, first), strict=True):
        assert torch.equal(own, theirs)


def test_a_model_in_evaluation_shows_the_shared_weights() -> None:
    model = nn.Linear(3, 1)
    optimizer = Worker(None, None).optimizer(model, downpour(lr=0.1, push_every=50, pull_every=50))
    before = model.weight.detach().clone()
    for _ in range(3):
        torch.autograd.backward(model(torch.ones(2, 3)).sum())
        optimizer.step()
    own = model.weight.detach().clone()
    model.eval()
    model(torch.ones(2, 3))
    shared = model.weight.detach().clone()
    model.train()
    model(torch.ones(2, 3))
    assert torch.equal(model.weight, own)
    assert not torch.equal(shared, own)
    assert not torch.equal(shared, before)  # the first step is pushed
    optimizer.flush()
    assert not torch.equal(model.state_dict()["weight"], shared)


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        (("downpuor",), {}, "must be one of hogwild"),
        ((hogwild(lr=0.1),), {"lr": 0.1}, "is made already"),
        (("downpour",), {"momentum": 0.9}, "downpour has no setting 'momentum'; it has lr"),
        ((parallel_sgd(lr=0.1),), {}, "local_sgd"),
        (("parallel_sgd",), {"lr": 0.1}, "local_sgd"),
        ((hogwild(lr=0.1, granularity="layer"),), {}, "leave it out"),
    ],
)
def test_what_cannot_be_is_refused(arguments: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Worker(None, None).optimizer(nn.Linear(2, 2), *arguments, **settings)


def test_a_loader_that_is_divided_already_is_refused() -> None:
    dataset = TensorDataset(torch.zeros(8, 2))
    part: Any = DistributedSampler(dataset, num_replicas=2, rank=0)
    for loader in (
        DataLoader(dataset, sampler=part),
        DataLoader(dataset, batch_sampler=BatchSampler(part, 2, drop_last=False)),
    ):
        with pytest.raises(ConfigurationError, match="one of 2 parts"):
            Worker(None, None).shard(loader)


def started_with(method: str, **settings: Any) -> Worker:
    return Worker(Membership(0, 2, 0, 5, "0.1.0", method, settings), None)


@pytest.mark.parametrize(
    ("own", "launcher", "message"),
    [
        (hogwild(lr=0.1), ("downpour", {}), "given --method downpour, the script has hogwild"),
        ("hogwild", ("downpour", {}), "given --method downpour, the script has hogwild"),
        (downpour(lr=0.1), ("downpour", {"push_every": 7}), "given --set push_every=7, but the script makes"),
    ],
)
def test_a_choice_of_the_launcher_is_not_ignored(
    own: Any, launcher: tuple[str, dict[str, Any]], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        started_with(launcher[0], **launcher[1]).optimizer(nn.Linear(2, 2), own)


@pytest.mark.parametrize("own", [None, "downpour"])
def test_settings_of_the_launcher_go_before_those_of_the_script(own: str | None) -> None:
    optimizer = started_with("downpour", push_every=7).optimizer(nn.Linear(2, 2), own, lr=0.1, push_every=3)
    assert optimizer.method.settings["push_every"] == 7


@pytest.mark.parametrize("method", [downpour(lr=0.1), hogwild(lr=0.1)])
def test_a_model_is_evaluated_in_inference_mode(method: Method) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    optimizer = Worker(None, None).optimizer(model, method)
    for _ in range(3):
        model.train()
        torch.autograd.backward(model(torch.randn(4, 3)).square().sum())
        optimizer.step()
        model.eval()
        with torch.inference_mode():
            inside = model(torch.ones(1, 3))
        assert torch.equal(model(torch.ones(1, 3)), inside)
    assert model.state_dict()["1.running_mean"].abs().sum() > 0


def test_a_model_that_was_converted_is_refused() -> None:
    model = nn.Conv2d(2, 2, 3)
    optimizer = Worker(None, None).optimizer(model, hogwild(lr=0.1))
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's has no such overload
    torch.autograd.backward(model(torch.ones(1, 2, 3, 3)).sum())
    with pytest.raises(ConfigurationError, match="'weight' is no longer the shared one"):
        optimizer.step()


def test_weights_that_are_loaded_late_can_be_looked_at_but_not_trained() -> None:
    model = nn.Linear(3, 1)
    best = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    Worker(None, None).optimizer(model, downpour(lr=0.1))
    before = model.weight.detach().clone()
    model.load_state_dict(best)
    model.eval()
    assert model(torch.ones(1, 3)).item() == 0
    assert model.state_dict()["weight"].abs().sum() == 0
    model.train()
    with pytest.raises(ConfigurationError, match="load them before"):
        model(torch.ones(1, 3))
    copied = copy.deepcopy(model)
    assert copied(torch.ones(1, 3)).item() == 0
    assert before.abs().sum() > 0


def test_variables_of_the_launcher_are_checked() -> None:
    whole = Membership(1, 2, 0, 5, "0.1.0", None, {}).variables()
    assert Membership.found(whole, "0.1.0") == Membership(1, 2, 0, 5, "0.1.0", None, {})
    with pytest.raises(ConfigurationError, match=r"imports freewheel 0\.2\.0"):
        Membership.found(whole, "0.2.0")
    del whole["FREEWHEEL_WORKER_SOCKET"]
    with pytest.raises(ConfigurationError, match="half set: FREEWHEEL_WORKER_SOCKET"):
        Membership.found(whole, "0.1.0")
