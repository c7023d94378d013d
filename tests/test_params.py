"""The flat vector and its views: what a module is must survive being bound to it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from freewheel.errors import ConfigurationError
from freewheel.params import ALIGNMENT, Parameters


class Tied(nn.Module):
    """Input and output embedding are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.head(self.embedding(tokens))
        return result


class SharedTwice(nn.Module):
    """One submodule under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x))
        return result


class WithBuffers(nn.Module):
    """Every kind of buffer: a mask, a table, a counter, a double, a cache that is not saved, a statistic."""

    mask: Tensor
    table: Tensor
    count: Tensor
    precise: Tensor
    cache: Tensor
    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("mask", torch.full((4, 4), -torch.inf).triu(1))
        self.register_buffer("table", torch.arange(4))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("precise", torch.ones(2, dtype=torch.float64))
        self.register_buffer("cache", torch.ones(3), persistent=False)
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.mean.lerp_(x.detach().mean(0), 0.5)
        attention = (self.linear(x) @ self.linear(x).T)[:4, :4] + self.mask
        result: Tensor = attention.softmax(1) @ x[:4] + self.mean
        return result


class Odd(nn.Module):
    """Parameters that are not contiguous, of no and of zero dimensions' size."""

    def __init__(self) -> None:
        super().__init__()
        self.turned = nn.Parameter(torch.randn(3, 4).t())
        self.cube = nn.Parameter(torch.randn(2, 3, 4).permute(2, 0, 1))
        self.scale = nn.Parameter(torch.tensor(2.0))
        self.none = nn.Parameter(torch.zeros(0, 3))

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (x @ self.turned).sum() * self.scale + self.cube.square().sum() + self.none.sum()
        return result


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    module[0].requires_grad_(False)
    return module


def parametrised() -> nn.Module:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    nn.utils.parametrizations.weight_norm(module[0])
    nn.utils.parametrizations.spectral_norm(module[1])
    return module


def rows() -> Tensor:
    return torch.randn(6, 4)


MODULES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "plain": (lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), rows),
    "tied": (Tied, lambda: torch.randint(7, (6,))),
    "shared twice": (SharedTwice, rows),
    "buffers": (WithBuffers, rows),
    "odd": (Odd, rows),
    "frozen": (frozen, rows),
    "parametrised": (parametrised, rows),
    "norm": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), rows),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2)),
        lambda: torch.randn(2, 3, 4, 4),
    ),
    "channels last": (
        lambda: nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),  # type: ignore[call-overload]
        lambda: torch.randn(2, 3, 4, 4),
    ),
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.0, batch_first=True),
        lambda: torch.randn(2, 3, 4),
    ),
    "recurrent": (lambda: nn.LSTM(4, 5, num_layers=2, bidirectional=True), lambda: torch.randn(3, 2, 4)),
    "complex input": (lambda: nn.GRUCell(4, 4), rows),
}


def output(module: nn.Module, batch: Tensor) -> Tensor:
    result = module(batch)
    return result if isinstance(result, Tensor) else result[0]


def gradients(module: nn.Module, batch: Tensor) -> list[Tensor | None]:
    weights = [p for p in module.parameters() if p.requires_grad]
    return list(torch.autograd.grad(output(module, batch).square().sum(), weights, allow_unused=True))


@pytest.fixture(params=MODULES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(1)
    make, batch = MODULES[request.param]
    return make(), batch()


@pytest.mark.parametrize("channels_last", [False, True])
def test_binding_changes_no_value_no_output_and_no_gradient(
    case: tuple[nn.Module, Tensor], channels_last: bool
) -> None:
    module, batch = case
    plain = copy.deepcopy(module)
    Parameters(module, channels_last).bind(module)
    for (name, ours), (_, theirs) in zip(
        module.state_dict().items(), plain.state_dict().items(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    torch.testing.assert_close(output(module, batch), output(plain, batch))
    for ours, theirs in zip(gradients(module, batch), gradients(plain, batch), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_bind_and_release_keep_identity_and_ties(case: tuple[nn.Module, Tensor]) -> None:
    module, _ = case
    before = [(name, id(p)) for name, p in module.named_parameters(remove_duplicate=False)]
    buffers = [(name, id(b)) for name, b in module.named_buffers(remove_duplicate=False)]
    values = {name: value.clone() for name, value in module.state_dict().items()}
    parameters = Parameters(module)
    parameters.bind(module)
    Parameters.release(module)
    parameters.flat.fill_(torch.nan)  # the module has memory of its own again
    parameters.statistics.fill_(torch.nan)
    assert [(name, id(p)) for name, p in module.named_parameters(remove_duplicate=False)] == before
    assert [(name, id(b)) for name, b in module.named_buffers(remove_duplicate=False)] == buffers
    for name, value in module.state_dict().items():
        assert torch.equal(value, values[name]), name


def test_changing_the_flat_vector_changes_module_and_replicas(case: tuple[nn.Module, Tensor]) -> None:
    module, _ = case
    parameters = Parameters(module)
    twins = [parameters.replica(module)[0] for _ in range(2)]
    parameters.bind(module)
    for tensor in parameters.views().values():
        tensor.fill_(3.0)
    for owner in (module, *twins):
        for name, weight in owner.named_parameters():
            assert bool((weight == 3.0).all()), name


def test_a_replica_computes_the_same_with_gradients_of_its_own(case: tuple[nn.Module, Tensor]) -> None:
    module, batch = case
    parameters = Parameters(module)
    twin, weights, _ = parameters.replica(module)
    reference = copy.deepcopy(module)
    assert [p.data_ptr() for p in weights] == [view.data_ptr() for view in parameters.trainable_views()]
    output(twin, batch).square().sum().backward()  # type: ignore[no-untyped-call]
    ours = [p.grad for p in twin.parameters() if p.requires_grad]
    for mine, theirs in zip(ours, gradients(reference, batch), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert all(p.grad is None for p in module.parameters())


def test_ties_and_shared_modules_are_one_entry_and_survive_in_a_replica() -> None:
    tied = Tied()
    parameters = Parameters(tied)
    twin, weights, _ = parameters.replica(tied)
    assert [entry.name for entry in parameters.layout.entries] == ["embedding.weight"]
    assert isinstance(twin, Tied)
    assert twin.head.weight is twin.embedding.weight is weights[0]
    assert twin.head.weight is not tied.head.weight
    shared = SharedTwice()
    parameters = Parameters(shared)
    twin, _, statistics = parameters.replica(shared)
    assert isinstance(twin, SharedTwice)
    assert twin.first is twin.second
    assert len(parameters.layout.entries) == 4
    assert statistics.numel() == parameters.statistics_layout.size
    assert [entry.name for entry in parameters.statistics_layout.entries] == [
        "first.1.running_mean",
        "first.1.running_var",
    ]


def test_recurrent_weights_of_a_replica_are_the_ones_that_it_computes_with() -> None:
    lstm = nn.LSTM(3, 4)
    parameters = Parameters(lstm)
    twin, _, _ = parameters.replica(lstm)
    assert isinstance(twin, nn.LSTM)
    assert all(
        flat is twin._parameters[name]
        for flat, name in zip(twin._flat_weights, twin._parameters, strict=True)
    )
    parameters.flat.zero_()
    assert not twin(torch.ones(2, 1, 3))[0].any()


def test_every_entry_begins_on_a_cache_line_and_none_overlap(case: tuple[nn.Module, Tensor]) -> None:
    parameters = Parameters(case[0])
    end = 0
    assert parameters.flat.data_ptr() % 64 == 0
    for entry in parameters.layout.entries:
        assert entry.offset % ALIGNMENT == 0
        assert entry.offset >= end
        end = entry.offset + entry.numel
    assert end <= parameters.layout.size


def test_padding_between_entries_is_never_part_of_a_view() -> None:
    parameters = Parameters(nn.Linear(3, 2))
    for view in parameters.views().values():
        view.fill_(1.0)
    assert parameters.flat.sum() == 8


def test_strides_are_kept_and_channels_last_is_given_to_images_only() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    for channels_last in (False, True):
        weight = Parameters(module, channels_last).views()["0.weight"]
        assert weight.is_contiguous(memory_format=torch.channels_last) is channels_last
        assert Parameters(module, channels_last).views()["2.weight"].is_contiguous()
    odd = Odd()
    views = Parameters(odd).views()
    assert views["turned"].stride() == odd.turned.stride()
    assert views["cube"].stride() == odd.cube.stride()


def test_frozen_parameters_lie_behind_and_are_shared() -> None:
    module = frozen()
    parameters = Parameters(module)
    assert [entry.trainable for entry in parameters.layout.entries] == [True] * 4 + [False] * 2
    assert [entry.name for entry in parameters.layout.trainable] == [
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
    ]
    twin, weights, _ = parameters.replica(module)
    assert len(weights) == 4
    assert not twin.get_parameter("0.weight").requires_grad
    assert twin.get_parameter("0.weight").data_ptr() == parameters.views()["0.weight"].data_ptr()


def test_running_statistics_are_private_to_each_replica() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    parameters = Parameters(module)
    (one, _, mine), (other, _, theirs) = parameters.replica(module), parameters.replica(module)
    one(rows())
    assert not torch.equal(mine, theirs)
    assert torch.equal(theirs, parameters.statistics)
    assert torch.equal(one.get_buffer("1.running_mean"), parameters.statistics_layout.views(mine)[0])
    assert torch.equal(other.get_buffer("1.running_mean"), torch.zeros(3))
    assert one.get_buffer("1.num_batches_tracked") == 1
    assert module.get_buffer("1.num_batches_tracked") == 0


def test_only_finite_saved_float32_buffers_are_statistics() -> None:
    module = WithBuffers()
    parameters = Parameters(module)
    twin, _, _ = parameters.replica(module)
    assert [entry.name for entry in parameters.statistics_layout.entries] == ["mean"]
    assert isinstance(twin, WithBuffers)
    assert torch.equal(twin.mask, module.mask)
    assert twin.cache is module.cache
    assert twin.precise is module.precise
    assert twin.count is not module.count


def test_a_module_that_cannot_be_copied_says_why() -> None:
    module = nn.Linear(2, 2)
    module.lock = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ConfigurationError, match=r"`model` \(Linear\) cannot be copied.*lock.*keep locks"):
        Parameters(module).replica(module)


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Parameter(torch.zeros(4))
        self.again = nn.Parameter(self.whole.data)


def sparse_weight() -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(torch.eye(3).to_sparse())
    return module


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "no parameters": (nn.ReLU, "no parameters; there is nothing to train"),
    "all frozen": (lambda: nn.Linear(2, 2).requires_grad_(False), "only frozen parameters"),
    "lazy": (lambda: nn.LazyLinear(3), "run one batch through the model"),
    "lazy buffers": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.LazyBatchNorm1d(affine=False)),
        "run one batch through the model",
    ),
    "meta": (lambda: nn.Linear(2, 2, device="meta"), "meta device; create the model with data"),
    "double": (lambda: nn.Linear(2, 2).double(), r"call\s+model.float\(\)"),
    "half": (lambda: nn.Linear(2, 2).bfloat16(), "precision='bf16'"),
    "sparse gradients": (lambda: nn.Embedding(4, 2, sparse=True), "use sparse=False"),
    "sparse weight": (sparse_weight, "dense"),
    "memory of two": (Halves, r"'whole' and 'again' share memory.*b.weight = a.weight"),
    "two devices": (
        lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2, device="meta")),
        "meta device",
    ),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_a_remedy(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(ConfigurationError, match=message):
        Parameters(make())
