"""One worker has nobody to be late for: whatever the engine and the shards, it is a serial run."""

from __future__ import annotations

import pytest
import torch
from laws import ENGINES, METHODS, SAMPLES, blobs, each_with_shards, network, state, train
from torch import nn

import freewheel
from freewheel.simulation import Network, ServerCost, lognormal

PLAIN = ("hogwild", "hogwild-layer", "synchronous", "synchronous-layer", "stale_synchronous")
"""With one worker these are plain SGD with momentum 0.9."""


def hand_written(module: nn.Module, seed: int) -> None:
    """What one worker must equal: the plain loop, over the same order of the data."""
    inputs, targets = blobs()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
    source = freewheel.sources.Indexed(lambda indices: indices, SAMPLES, 16, seed)
    torch.manual_seed(seed)
    for number in range(2 * 15):
        batch = source.fetch(number).batch
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs[batch]), targets[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", PLAIN)
def test_one_worker_equals_a_hand_written_loop(engine: str, method: str) -> None:
    ours, plain = network(), network()
    with torch.random.fork_rng():
        hand_written(plain, seed=5)
    train(ours, METHODS[method], engine, seed=5)
    torch.testing.assert_close(state(ours), state(plain), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("method", PLAIN)
def test_one_worker_is_plain_serial_sgd_bit_for_bit(engine: str, method: str) -> None:
    reference, module = network(), network()
    train(reference, METHODS["hogwild"], "serial")
    train(module, METHODS[method], engine)
    assert torch.equal(state(module), state(reference))


@pytest.mark.parametrize(("method", "shards"), each_with_shards(METHODS))
def test_one_worker_equals_its_serial_run_bit_for_bit(method: str, shards: int) -> None:
    reference = network()
    serial = train(reference, METHODS[method], "serial", shards=shards)
    assert not torch.equal(state(reference), state(network()))
    for engine in ENGINES[1:]:
        module = network()
        result = train(module, METHODS[method], engine, shards=shards)
        assert torch.equal(state(module), state(reference)), engine
        assert result.ledger == serial.ledger


@pytest.mark.parametrize(("method", "shards"), [("stale_synchronous", 3), ("downpour", 1), ("diloco", 1)])
def test_one_worker_that_waits_for_its_messages_learns_the_same(method: str, shards: int) -> None:
    """Its requests come after its pushes on the same connection, however long both take."""
    reference, module = network(), network()
    train(reference, METHODS[method], "serial", shards=shards)
    slow = freewheel.Simulated(
        lognormal(0.01, 0.5), Network(0.1, 1e4, jitter=0.5), ServerCost(0.02, 0.01, 1e-5)
    )
    result = train(module, METHODS[method], slow, shards=shards)
    assert torch.equal(state(module), state(reference))
    assert result.seconds > 1
