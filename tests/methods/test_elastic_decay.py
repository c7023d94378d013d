"""Elastic averaging with an L2 penalty: the penalty is of the weights, with momentum too."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import freewheel
from freewheel.sources import Batch

DECAY = 0.3


def trained(momentum: float, decay: float, penalty: float) -> float:
    def step(module: nn.Module, batch: Batch) -> Tensor:
        loss: Tensor = (module(batch[0]) - batch[1]).square().mean()
        return loss + penalty / 2 * sum(weight.square().sum() for weight in module.parameters())

    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 5.0)
    data = torch.linspace(-1.0, 1.0, 80).view(80, 1), torch.ones(80, 1)
    method = freewheel.elastic_averaging(0.1, alpha=1.0, period=2, momentum=momentum, weight_decay=decay)
    freewheel.fit(model, data, step=step, method=method, engine="serial", workers=2, batch_size=4, epochs=1)
    return model.weight.item()


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_weight_decay_is_a_penalty_in_the_loss(momentum: float) -> None:
    decayed = trained(momentum, DECAY, 0.0)
    assert decayed == pytest.approx(trained(momentum, 0.0, DECAY), rel=1e-5)
    assert abs(decayed - trained(momentum, 0.0, 0.0)) > 0.01
