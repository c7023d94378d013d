from __future__ import annotations

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from freewheel.errors import ConfigurationError
from freewheel.recipes.models import CharLSTM, cnn, cnn_rgb, mlp

MODELS: list[tuple[Callable[[], nn.Module], tuple[int, ...], int]] = [
    (mlp, (1, 28, 28), 784 * 256 + 256 + 256 * 10 + 10),
    (lambda: mlp((6, 5, 4, 3)), (2, 3), 6 * 5 + 5 + 5 * 4 + 4 + 4 * 3 + 3),
    (cnn, (1, 28, 28), 421_642),
    (cnn_rgb, (3, 32, 32), 422_698),
]


@pytest.mark.parametrize(("build", "shape", "weights"), MODELS)
def test_sizes_and_gradients(build: Callable[[], nn.Module], shape: tuple[int, ...], weights: int) -> None:
    model = build()
    assert sum(parameter.numel() for parameter in model.parameters()) == weights
    output = model(torch.randn(4, *shape))
    assert output.shape == (4, 3 if shape == (2, 3) else 10)
    loss = nn.functional.cross_entropy(output, torch.arange(4) % 3)
    assert all(gradient.any() for gradient in torch.autograd.grad(loss, list(model.parameters())))


@pytest.mark.parametrize(("build", "shape", "weights"), MODELS)
def test_copies_compute_the_same(
    build: Callable[[], nn.Module], shape: tuple[int, ...], weights: int
) -> None:
    model, x = build(), torch.randn(2, *shape)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(x), model(x))


def test_the_convolutional_networks_are_made_of_the_documented_layers() -> None:
    block, head = ["Conv2d", "ReLU", "MaxPool2d"], ["Flatten", "Linear", "ReLU", "Linear"]
    assert [type(layer).__name__ for layer in cnn()] == [*block * 2, *head]
    assert [type(layer).__name__ for layer in cnn_rgb()] == [*block * 3, *head]


def test_the_outputs_of_an_mlp_are_not_rectified() -> None:
    assert float(mlp()(torch.randn(32, 784)).detach().min()) < 0


@pytest.mark.parametrize("sizes", [(), (3,), (3, 0, 2)])
def test_impossible_sizes_are_refused(sizes: tuple[int, ...]) -> None:
    with pytest.raises(ConfigurationError, match="`sizes` must be two or more numbers"):
        mlp(sizes)


def lstm_and_tokens() -> tuple[CharLSTM, Tensor]:
    return CharLSTM(11, embedding=5, hidden=7, layers=2), torch.randint(0, 11, (3, 8))


def test_an_lstm_gives_logits_for_every_place() -> None:
    model, tokens = lstm_and_tokens()
    logits, (state, cell) = model(tokens)
    assert logits.shape == (3, 8, 11)
    assert state.shape == cell.shape == (2, 3, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_lstm_sees_the_past_only() -> None:
    model, tokens = lstm_and_tokens()
    changed = tokens.clone()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = model(tokens)[0], model(changed)[0]
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.equal(before[:, 5:], after[:, 5:])


def test_a_text_in_two_parts_with_the_state_carried_equals_the_whole() -> None:
    model, tokens = lstm_and_tokens()
    whole, _ = model(tokens)
    first, hidden = model(tokens[:, :3])
    second, _ = model(tokens[:, 3:], hidden)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


def test_copies_of_an_lstm_compute_the_same() -> None:
    model, tokens = lstm_and_tokens()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(tokens)[0], model(tokens)[0])


@pytest.mark.parametrize("name", ["vocabulary", "embedding", "hidden", "layers"])
def test_sizes_of_an_lstm_below_one_are_refused(name: str) -> None:
    sizes = {"vocabulary": 5} | {name: 0}
    with pytest.raises(ConfigurationError, match=f"`{name}` must be >= 1, got 0"):
        CharLSTM(**sizes)
