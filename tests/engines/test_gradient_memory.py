"""Whatever memory autograd hands gradients over in, a worker's own steps see plain ones."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

import freewheel
from freewheel.methods import Method
from freewheel.rules import chain, clip, sgd, top_k
from freewheel.sources import Batch
from freewheel.tasks.supervised import Step

METHODS: dict[str, Method] = {
    "downpour": freewheel.downpour(0.1, server=sgd(0.1)),
    "downpour-weight_decay": freewheel.downpour(0.1, local=sgd(0.1, momentum=0.5, weight_decay=0.1)),
    "downpour-sums": freewheel.downpour(0.1, 2, 1, server=sgd(0.1)),
    "elastic_averaging": freewheel.elastic_averaging(0.1, 0.5, 2, weight_decay=0.1),
    "elastic_averaging-momentum": freewheel.elastic_averaging(0.1, 0.5, 2, momentum=0.5, weight_decay=0.1),
    "local_sgd": freewheel.local_sgd(0.1, 3, momentum=0.5, weight_decay=0.1),
    "parallel_sgd": freewheel.parallel_sgd(0.1),
    "diloco": freewheel.diloco(3),
    "compression": freewheel.stale_synchronous(1, 0.1, compression=chain(clip(0.5), top_k(0.5))),
}


class Odd(nn.Module):
    """Three matrices that are added up, the last one lying on its side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = (nn.Parameter(torch.full((3, 4), value)) for value in (0.1, 0.2))
        self.lying = nn.Parameter(torch.arange(12.0).view(4, 3) / 10)

    def forward(self) -> Tensor:
        return self.left + self.right + self.lying.t()


def expanded(module: nn.Module, batch: Batch) -> Tensor:
    """Every gradient is one number, expanded."""
    found: Tensor = module()
    loss: Tensor = (found * batch[0].mean()).sum()
    return loss


def shared(module: nn.Module, batch: Batch) -> Tensor:
    """One tensor is the gradient of two weights, and the third gets it transposed."""
    found: Tensor = module()
    loss: Tensor = ((found - torch.arange(12.0).view(3, 4) * batch[0].mean()) ** 2).sum()
    return loss


def copied(weight: Tensor, gradient: Tensor) -> Tensor:
    return torch.empty_like(weight).copy_(gradient)


def plain(step: Step) -> Step:
    """The same, with gradients that share nothing and lie as their weights do."""

    def follow(module: nn.Module, batch: Batch) -> Tensor:
        for weight in module.parameters():
            if not hasattr(weight, "plain"):
                weight.plain = True  # type: ignore[attr-defined]
                weight.register_hook(partial(copied, weight))  # type: ignore[no-untyped-call]  # torch's is untyped
        return step(module, batch)

    return follow


def trained(method: Method, engine: str, step: Step) -> Tensor:
    data = (torch.arange(48.0).view(48, 1) / 50, torch.zeros(48))
    model = Odd()
    freewheel.fit(model, data, step=step, method=method, engine=engine, workers=1, batch_size=4, epochs=1)
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize("engine", ["serial", "simulated"])
@pytest.mark.parametrize("step", [expanded, shared], ids=lambda step: step.__name__)
@pytest.mark.parametrize("name", METHODS)
def test_gradients_in_odd_memory_train_as_plain_ones(name: str, step: Step, engine: str) -> None:
    method = METHODS[name]
    torch.testing.assert_close(
        trained(method, engine, step), trained(method, engine, plain(step)), rtol=1e-5, atol=1e-6
    )
