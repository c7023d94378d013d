"""What one worker computes in one step, against loops written by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

import freewheel
from freewheel.errors import ConfigurationError, DataError, TrainingError, WorkerError
from freewheel.params import Parameters
from freewheel.rules import Rule, adam, sgd
from freewheel.server import Server
from freewheel.sources import Carry, Indexed, Lease, Sequences
from freewheel.tasks import Supervised, WorkerContext
from freewheel.update import Granularity

GRANULARITIES: tuple[Granularity, ...] = ("model", "layer")


class Characters(nn.Module):
    """A small recurrent network; ``kind`` is nn.LSTM or nn.GRU."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU] = nn.LSTM) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 6)
        self.core = kind(6, 8, batch_first=True)
        self.head = nn.Linear(8, 11)

    def forward(self, tokens: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
        states, hidden = self.core(self.embedding(tokens), hidden)
        return self.head(states), hidden


class Branches(nn.Module):
    """Uses one branch for positive batches and the other for the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(3, 1), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (self.one if x[0, 0] > 0 else self.other)(x)
        return result


def seeded(make: Any, *arguments: Any) -> Any:
    torch.manual_seed(4)
    return make(*arguments)


def data(rows: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(rows, 3, generator=generator)
    return inputs, inputs.sum(1, keepdim=True)


def worker_of(module: nn.Module, task: Supervised, rule: Rule | None = None) -> tuple[WorkerContext, Server]:
    parameters = Parameters(module)
    server = Server(parameters, rule or sgd(0.1, momentum=0.9), 1)
    twin, weights, statistics = parameters.replica(module)
    context = WorkerContext(0, 0, twin, weights, statistics, parameters.statistics, server.push)
    task.init(context)
    return context, server


def step(
    task: Supervised, context: WorkerContext, batch: Any, samples: int = 4, carry: Carry | None = None
) -> float:
    report = task.step(context, Lease(context.sequence, batch, samples, carry=carry), None)
    context.sequence += 1
    context.version += 1
    return report.loss


def same(ours: nn.Module, theirs: nn.Module, exact: bool = True) -> None:
    for (name, mine), (_, other) in zip(ours.state_dict().items(), theirs.state_dict().items(), strict=True):
        if exact:
            assert torch.equal(mine, other), name
        else:
            torch.testing.assert_close(mine, other, msg=name)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_truncated_backpropagation_equals_a_loop_by_hand_bit_for_bit(
    kind: Any, granularity: Granularity, engine: str
) -> None:
    tokens = torch.randint(11, (400,), generator=torch.Generator().manual_seed(0))
    ours, plain = seeded(Characters, kind), seeded(Characters, kind)
    method = freewheel.hogwild(0.1, momentum=0.9, granularity=granularity)
    freewheel.fit(
        ours,
        tokens,
        loss=nn.CrossEntropyLoss(),
        method=method,
        engine=engine,
        workers=1,
        batch_size=4,
        bptt=7,
        epochs=2,
    )
    rows, targets = tokens[:396].view(4, 99), tokens[1:397].view(4, 99)
    momentum: dict[str, Tensor] = {}
    for _ in range(2):
        hidden = None
        for start in range(0, 99, 7):
            prediction, hidden = plain(rows[:, start : start + 7], hidden)
            hidden = tuple(h.detach() for h in hidden) if isinstance(hidden, tuple) else hidden.detach()
            loss = cross_entropy(prediction.flatten(0, 1), targets[:, start : start + 7].flatten())
            plain.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            _descend(plain, momentum)
    same(ours, plain)


@torch.no_grad()
def _descend(module: nn.Module, momentum: dict[str, Tensor]) -> None:
    """Heavy ball in the fused kernel's own order of operations."""
    names, weights = zip(*module.named_parameters(), strict=True)
    buffers = [
        momentum.setdefault(name, torch.zeros_like(weight))
        for name, weight in zip(names, weights, strict=True)
    ]
    torch._fused_sgd_(
        list(weights),
        [weight.grad for weight in weights],
        buffers,
        weight_decay=0.0,
        momentum=0.9,
        lr=0.1,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def test_hidden_state_matters_and_is_detached() -> None:
    task = Supervised(nn.CrossEntropyLoss(), recurrent=True)
    context, _ = worker_of(seeded(Characters), task)
    carry = Carry()
    batch = (torch.arange(8).view(2, 4), torch.arange(1, 9).view(2, 4))
    step(task, context, batch, carry=carry)
    assert carry.value is not None
    assert not any(state.requires_grad for state in carry.value)
    lease = Lease(0, batch, 8, carry=carry)
    assert task.loss_of(context.module, lease) != task.loss_of(
        context.module, Lease(0, batch, 8, carry=Carry())
    )


def test_a_state_that_is_not_finite_is_not_carried_on() -> None:
    task = Supervised(nn.CrossEntropyLoss(), recurrent=True)
    context, server = worker_of(seeded(Characters), task)
    carry = Carry((torch.full((1, 2, 8), torch.nan), torch.zeros(1, 2, 8)))
    batch = (torch.arange(8).view(2, 4), torch.arange(1, 9).view(2, 4))
    assert math.isnan(step(task, context, batch, carry=carry))
    assert carry.value is None
    assert math.isfinite(step(task, context, batch, carry=carry))
    assert server.ledger()["applied"] == 1


def test_evaluation_carries_the_state_over_the_whole_text() -> None:
    tokens = torch.randint(11, (101,))
    module = seeded(Characters).eval()
    source = Sequences(tokens, 7, 2, 1)
    measure = freewheel.evaluation.over_source(Supervised(nn.CrossEntropyLoss(), recurrent=True), source)
    with torch.no_grad():
        prediction, _ = module(tokens[:100].view(2, 50))
        expected = cross_entropy(prediction.flatten(0, 1), tokens[1:])
        for _ in range(2):
            assert measure(module)["loss"] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("rule", [sgd(0.1, momentum=0.9), adam(0.01)], ids=lambda rule: rule.describe)
def test_layer_granularity_equals_model_granularity_and_keeps_no_gradient(rule: Rule) -> None:
    task = {g: Supervised(mse_loss, granularity=g) for g in GRANULARITIES}
    make = lambda: nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.BatchNorm1d(8), nn.Linear(8, 1))  # noqa: E731
    (whole, one), (pieces, other) = (worker_of(seeded(make), task[g], rule) for g in GRANULARITIES)
    inputs, targets = data()
    for start in range(0, 48, 12):
        batch = (inputs[start : start + 12], targets[start : start + 12])
        assert step(task["model"], whole, batch) == pytest.approx(
            step(task["layer"], pieces, batch), rel=1e-5
        )
        assert all(weight.grad is None for weight in (*whole.weights, *pieces.weights))
    torch.testing.assert_close(one.parameters.flat, other.parameters.flat)
    torch.testing.assert_close(one.parameters.statistics, other.parameters.statistics)
    assert one.ledger() == other.ledger()


def test_layer_granularity_holds_one_gradient_at_a_time() -> None:
    task = Supervised(mse_loss, granularity="layer")
    module = nn.Sequential(*[nn.Linear(3, 3) for _ in range(6)], nn.Linear(3, 1))
    held: list[int] = []
    parameters = Parameters(module)
    server = Server(parameters, sgd(0.1), 1)
    twin, weights, statistics = parameters.replica(module)

    def deliver(update: Any) -> Any:
        held.append(sum(weight.grad is not None for weight in weights) + len(update.gradients))
        return server.push(update)

    context = WorkerContext(0, 0, twin, weights, statistics, parameters.statistics, deliver)
    task.init(context)
    step(task, context, data(4))
    assert held == [1] * 14 + [0]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("twin", ["sgd", "adam"])
def test_unused_parameters_are_skipped_as_torch_optim_skips_them(granularity: Granularity, twin: str) -> None:
    task = Supervised(mse_loss, granularity=granularity)
    rule = sgd(0.1, momentum=0.9, weight_decay=0.1) if twin == "sgd" else adam(0.05)
    context, server = worker_of(seeded(Branches), task, rule)
    plain = seeded(Branches)
    optimizer: torch.optim.Optimizer = (
        torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        if twin == "sgd"
        else torch.optim.Adam(plain.parameters(), 0.05)
    )
    inputs, targets = data()
    used = set()
    for start in range(0, 48, 4):
        batch = (inputs[start : start + 4], targets[start : start + 4])
        used.add(bool(batch[0][0, 0] > 0))
        step(task, context, batch)
        optimizer.zero_grad()
        mse_loss(plain(batch[0]), batch[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert used == {True, False}
    for view, parameter in zip(server.parameters.trainable_views(), plain.parameters(), strict=True):
        torch.testing.assert_close(view, parameter.detach())


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_loss_that_is_not_finite_changes_nothing_and_is_counted(granularity: Granularity) -> None:
    task = Supervised(mse_loss, granularity=granularity)
    context, server = worker_of(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)), task)
    inputs, targets = data(8)
    step(task, context, (inputs, targets), 8)
    weights, statistics = server.parameters.flat.clone(), server.parameters.statistics.clone()
    bad = inputs.clone()
    bad[3, 1] = torch.inf
    assert not math.isfinite(step(task, context, (bad, targets), 8))
    assert torch.equal(server.parameters.flat, weights)
    assert torch.equal(server.parameters.statistics, statistics)
    assert torch.equal(context.statistics, statistics)
    assert all(weight.grad is None for weight in context.weights)
    book = server.ledger()
    assert (book["pushed"], book["applied"], book["dropped"]) == (2, 1, {"non-finite loss": 1})
    assert server.samples == 8


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_twenty_bad_losses_in_a_row_end_the_run(granularity: Granularity, engine: str) -> None:
    calls: list[int] = []

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return mse_loss(prediction, target) * (1.0 if len(calls) < 10 else torch.nan)

    method = freewheel.hogwild(0.01, granularity=granularity)
    with pytest.raises(
        TrainingError, match=r"diverged: the loss was nan in 20 steps of worker 0 in a row; lower `lr`"
    ):
        freewheel.fit(
            nn.Linear(3, 1),
            data(),
            loss=loss,
            method=method,
            engine=engine,
            workers=1,
            batch_size=4,
            epochs=50,
        )
    assert len(calls) == 9 + 20


def test_nineteen_bad_losses_do_not() -> None:
    calls: list[int] = []

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        calls.append(1)
        return mse_loss(prediction, target) * (torch.nan if len(calls) > 1 and len(calls) % 20 else 1.0)

    result = freewheel.fit(
        nn.Linear(3, 1), data(), loss=loss, engine="serial", workers=1, batch_size=4, epochs=20
    )
    assert result.steps == 240
    assert result.ledger["dropped"] == {"non-finite loss": 240 - result.ledger["applied"]}
    assert result.ledger["applied"] == 12


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_step_of_ones_own_with_dictionaries_equals_the_loss(granularity: Granularity) -> None:
    inputs, targets = data()
    source = Indexed(lambda rows: {"x": inputs[rows], "y": targets[rows]}, 48, 8, seed=3)

    def own(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return mse_loss(module(batch["x"]), batch["y"])

    one, other = seeded(nn.Linear, 3, 1), seeded(nn.Linear, 3, 1)
    method = freewheel.hogwild(0.1, granularity=granularity)
    result = freewheel.fit(
        one, source, step=own, evaluate=source_in_order(inputs, targets), method=method, workers=1
    )
    freewheel.fit(other, (inputs, targets), loss=mse_loss, method=method, workers=1, batch_size=8, seed=3)
    same(one, other)
    assert result.samples == 48
    with torch.no_grad():
        assert result.metrics["loss"] == pytest.approx(float(mse_loss(one(inputs), targets)))


def source_in_order(inputs: Tensor, targets: Tensor) -> Indexed:
    return Indexed(lambda rows: {"x": inputs[rows], "y": targets[rows]}, len(inputs), 7, shuffle=False)


def test_two_biases_that_share_their_gradient_are_updated_once_each() -> None:
    ours, plain = seeded(nn.LSTM, 3, 4), seeded(nn.LSTM, 3, 4)
    inputs = torch.randn(5, 2, 3)

    def own(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        result: Tensor = module(batch[0].transpose(0, 1))[0].square().mean()
        return result

    method = freewheel.synchronous(rule=freewheel.rules.chain(freewheel.rules.clip(1e-3), sgd(1.0)))
    batches = (torch.cat([inputs, inputs], 1).transpose(0, 1).contiguous(), torch.zeros(4))
    freewheel.fit(ours, batches, step=own, method=method, engine="serial", workers=2, batch_size=2, epochs=1)
    plain(torch.cat([inputs, inputs], 1))[0].square().mean().backward()
    torch.nn.utils.clip_grad_norm_(plain.parameters(), 1e-3)
    for name, parameter in plain.named_parameters():
        assert parameter.grad is not None
        expected = parameter.detach() - parameter.grad
        torch.testing.assert_close(ours.get_parameter(name).detach(), expected, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_buffers_that_begin_infinite_are_those_of_the_first_worker(engine: str) -> None:
    class Largest(nn.Module):
        largest: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 1)
            self.register_buffer("largest", torch.tensor(-torch.inf))

        def forward(self, x: Tensor) -> Tensor:
            torch.maximum(self.largest, x.detach().max(), out=self.largest)
            result: Tensor = self.linear(x)
            return result

    module = Largest()
    freewheel.fit(module, data(), loss=mse_loss, engine=engine, workers=1, batch_size=8)
    assert module.largest == data()[0].max()


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_an_error_in_the_data_names_the_worker_and_its_step(engine: str) -> None:
    inputs, targets = data()

    def fetch(rows: Tensor) -> tuple[Tensor, Tensor]:
        if 40 in rows:
            raise OSError("the disk is gone")
        return inputs[rows], targets[rows]

    source = Indexed(fetch, 48, 8, shuffle=False)
    with pytest.raises(
        WorkerError, match="worker 0 failed in its step 5: OSError: the disk is gone"
    ) as caught:
        freewheel.fit(nn.Linear(3, 1), source, loss=mse_loss, engine=engine, workers=1)
    assert isinstance(caught.value.__cause__, OSError)


@pytest.mark.parametrize("engine", ["serial", "threads"])
def test_an_iterator_that_runs_dry_ends_with_an_error_and_not_never(engine: str) -> None:
    with pytest.raises(DataError, match="a generator can be read only once"):
        freewheel.fit(
            nn.Linear(3, 1), iter([data()]), loss=mse_loss, engine=engine, workers=2, max_samples=1000
        )


# --- measuring and placing


def test_user_metrics_and_accuracy_are_sums_over_a_batch() -> None:
    metrics = {"top": lambda prediction, target: prediction.max()}
    task = Supervised(nn.CrossEntropyLoss(), metrics=metrics)
    prediction = torch.tensor([[2.0, 0.0], [0.0, 1.0], [5.0, 0.0]])
    sums, samples, carried = task.measure(nn.Identity(), (prediction, torch.tensor([0, 0, 0])), None)
    assert samples == 3
    assert carried is None
    assert sums["accuracy"] == pytest.approx(2)
    assert sums["top"] == pytest.approx(15)
    assert sums["loss"] == pytest.approx(3 * float(cross_entropy(prediction, torch.tensor([0, 0, 0]))))


def test_accuracy_of_pixels_is_their_mean() -> None:
    task = Supervised(nn.CrossEntropyLoss())
    prediction = torch.randn(2, 5, 3, 4)
    target = prediction.argmax(1)
    target[0, 0, 0] = (target[0, 0, 0] + 1) % 5
    sums, samples, _ = task.measure(nn.Identity(), (prediction, target), None)
    assert sums["accuracy"] / samples == pytest.approx(23 / 24)


def test_no_accuracy_where_targets_are_no_classes() -> None:
    sums, _, _ = Supervised(mse_loss).measure(nn.Identity(), (torch.randn(4, 2), torch.randn(4, 2)), None)
    assert set(sums) == {"loss"}


def test_channels_last_is_given_to_images_wherever_they_are_in_a_batch() -> None:
    task = Supervised(mse_loss, channels_last=True)
    image, row = torch.randn(2, 3, 4, 4), torch.randn(2, 3)
    placed = task.place({"a": [image, row], "b": (image.long(), "text")})
    assert placed["a"][0].is_contiguous(memory_format=torch.channels_last)
    assert placed["a"][1] is row
    assert placed["b"][0].is_contiguous()
    assert placed["b"][1] == "text"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of `loss`.*got neither"),
        ({"loss": mse_loss, "step_function": lambda module, batch: batch}, "got both"),
        ({"loss": "mse"}, "`loss` must be a function, got 'mse'"),
        ({"step_function": 3}, "`step` must be a function, got 3"),
        ({"loss": mse_loss, "metrics": {"f1": 1}}, r"`metrics`\['f1'\] must be a function, got 1"),
        ({"step_function": lambda module, batch: batch, "metrics": {"a": len}}, "`metrics` need `loss`"),
        (
            {"step_function": lambda module, batch: batch, "recurrent": True},
            "`bptt` needs `loss`, not `step`",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        Supervised(**settings)


# --- bfloat16


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_bf16_computes_in_bfloat16_and_keeps_float32_weights(
    granularity: Granularity, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    seen: set[torch.dtype] = set()

    class Watched(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            result = super().forward(x)
            seen.add(result.dtype)
            return result

    ours, plain = seeded(Watched, 3, 1), seeded(nn.Linear, 3, 1)
    method = freewheel.hogwild(0.05, granularity=granularity)
    result = freewheel.fit(
        ours,
        data(),
        loss=mse_loss,
        evaluate=data(),
        method=method,
        precision="bf16",
        workers=1,
        epochs=3,
        batch_size=8,
    )
    freewheel.fit(plain, data(), loss=mse_loss, method=method, workers=1, epochs=3, batch_size=8)
    assert seen == {torch.bfloat16}
    assert ours.weight.dtype == torch.float32
    torch.testing.assert_close(ours.weight, plain.weight, rtol=0.05, atol=0.02)
    assert not torch.equal(ours.weight, plain.weight)
    assert result.config["precision"] == "bf16"


def test_bf16_is_refused_where_the_processor_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    with pytest.raises(
        ConfigurationError, match="`precision`='bf16': this cpu has no bfloat16 arithmetic; use"
    ):
        freewheel.fit(nn.Linear(3, 1), data(), loss=mse_loss, precision="bf16")
