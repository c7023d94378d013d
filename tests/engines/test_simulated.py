"""The simulated engine: its clock, its accounts, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from laws import ALL, network, train

import freewheel
from freewheel.events import RunStarted, Steps, Traffic
from freewheel.simulation import (
    Network,
    ServerCost,
    constant,
    die,
    hang,
    per_worker,
    slow,
)

WEIGHTS = sum(parameter.numel() for parameter in network().parameters())
SIZE = 4 * WEIGHTS


def traffic(result: freewheel.Result) -> Traffic:
    (found,) = [event for event in result.events if isinstance(event, Traffic)]
    return found


def simulated(method: str, engine: freewheel.Simulated, **settings: Any) -> freewheel.Result:
    return train(network(), ALL[method], engine, **settings)


# --- the clock ---


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_equal_workers_share_the_steps_and_the_time(workers: int) -> None:
    result = simulated("hogwild", freewheel.Simulated(0.5), workers=workers, max_samples=16 * 20, epochs=None)
    assert result.seconds == pytest.approx(0.5 * 20 / workers)
    assert [worker.steps for worker in result.workers] == [20 // workers] * workers
    assert result.samples_per_second == pytest.approx(32 * workers)


def test_a_slow_worker_takes_fewer_steps_and_a_synchronous_run_takes_its_time() -> None:
    engine = freewheel.Simulated(slow(constant(0.1), {1: 4.0}))
    free, bound = (simulated(name, engine, workers=2) for name in ("hogwild", "synchronous"))
    assert [worker.steps for worker in free.workers] == [24, 6]
    assert [worker.steps for worker in bound.workers] == [15, 15]
    assert [free.seconds, bound.seconds] == pytest.approx([2.4, 6.0])


def test_a_backup_worker_spares_the_slow_one() -> None:
    engine = freewheel.Simulated(slow(constant(0.1), {1: 4.0}))
    results = {
        backup: train(network(), freewheel.synchronous(0.05, backup_workers=backup), engine, workers=4)
        for backup in (0, 1)
    }
    assert results[1].seconds < 0.5 * results[0].seconds
    assert results[1].ledger["dropped"]["late"] == results[1].workers[1].steps


def test_every_step_has_its_time_in_the_record() -> None:
    steps: list[Steps] = []
    simulated(
        "hogwild",
        freewheel.Simulated(per_worker({1: constant(0.3)}, default=constant(0.2))),
        workers=2,
        monitors=[lambda event: steps.append(event) if isinstance(event, Steps) else None],
    )
    times: dict[int, list[float]] = {0: [], 1: []}
    for event in steps:
        for worker, seconds in zip(event.worker, event.seconds, strict=True):
            times[worker].append(seconds)
    assert times[0] == pytest.approx([0.2 * number for number in range(1, 19)])
    assert times[1] == pytest.approx([0.3 * number for number in range(1, 13)])


def test_a_step_with_a_network_takes_both_ways_and_the_computing() -> None:
    """Pull, compute, push: only the request, the answer and the computing are waited for."""
    engine = freewheel.Simulated(0.5, Network(0.1, 1e4), ServerCost(0.05, 0.03))
    result = simulated("stale_synchronous", engine, workers=1)
    cycle = 0.1 + 0.03 + SIZE / 1e4 + 0.1 + 0.5 + SIZE / 1e4 + 0.05
    assert result.seconds == pytest.approx(30 * cycle + 0.1)  # the last push arrives


def test_a_push_in_flight_hides_the_network() -> None:
    engine = freewheel.Simulated(0.5, Network(0.2))
    waits, hides = (
        train(network(), freewheel.stale_synchronous(3, 0.05, in_flight=number), engine) for number in (0, 1)
    )
    assert waits.seconds == pytest.approx(30 * 0.9 + 0.2)
    assert hides.seconds == pytest.approx(30 * 0.5 + 0.4 + 0.2)


def test_what_hangs_takes_longer_and_pushes_all_the_same() -> None:
    engine = freewheel.Simulated(0.1, faults=[hang(0, 3, 7.0)])
    result = simulated("hogwild", engine, workers=1)
    assert result.seconds == pytest.approx(30 * 0.1 + 7.0)
    assert result.ledger["applied"] == 30


def test_evaluation_takes_no_time_and_comes_at_the_time_of_a_step() -> None:
    result = simulated("hogwild", freewheel.Simulated(0.1), workers=2, evaluate_every=32)
    assert [entry.seconds for entry in result.history] == pytest.approx(
        [0.1 * number for number in range(1, 16)]
    )


def test_a_target_ends_the_run_at_the_time_of_its_evaluation() -> None:
    result = simulated(
        "hogwild", freewheel.Simulated(0.1), workers=3, epochs=50, target=("accuracy", 0.8), evaluate_every=48
    )
    assert result.reason == "target"
    assert result.target_seconds == result.history[-2].seconds < result.seconds
    assert result.history[-2].metrics["accuracy"] >= 0.8 > result.history[-3].metrics["accuracy"]


# --- the accounts ---


@pytest.mark.parametrize("shards", [1, 3])
def test_traffic_is_every_pull_and_every_push(shards: int) -> None:
    result = simulated("stale_synchronous", freewheel.Simulated(0.1), workers=2, shards=shards)
    found = traffic(result)
    assert found.worker_bytes_sent == found.worker_bytes_received == [15 * SIZE] * 2
    assert sum(found.shard_bytes) == 60 * SIZE
    assert len(found.shard_bytes) == shards


def test_compression_is_in_the_traffic() -> None:
    sent = {
        name: sum(traffic(simulated(name, freewheel.Simulated(0.1), workers=2)).worker_bytes_sent)
        for name in ("synchronous", "synchronous-top_k", "stale_synchronous-eight_bit")
    }
    numels = [parameter.numel() for parameter in network().parameters()]
    assert sent["synchronous"] == 30 * SIZE
    assert sent["synchronous-top_k"] == 30 * 8 * sum(max(1, round(0.25 * numel)) for numel in numels)
    assert sent["stale_synchronous-eight_bit"] == 30 * sum(numel + 4 * -(-numel // 64) for numel in numels)


def test_methods_that_push_seldom_send_little() -> None:
    found = traffic(simulated("downpour", freewheel.Simulated(0.1, Network(1e-3)), workers=2))
    assert found.worker_bytes_sent == [8 * SIZE] * 2  # 15 steps, every second pushes, the first included
    assert found.worker_bytes_received == [5 * SIZE] * 2


def test_utilisation_is_the_time_that_each_is_busy() -> None:
    engine = freewheel.Simulated(slow(constant(0.1), {1: 3.0}), Network(0.05), ServerCost(0.01))
    result = simulated("synchronous-top_k", engine, workers=2)
    found = traffic(result)
    assert found.worker_busy_s == pytest.approx([1.5, 4.5])
    assert found.shard_busy_s == pytest.approx([0.3])
    assert result.seconds > 4.5


def test_memory_and_processor_time_are_of_no_process() -> None:
    result = simulated("hogwild", freewheel.Simulated(0.1), workers=2)
    assert (result.peak_rss_bytes, result.start_rss_bytes, result.cpu_seconds) == (0, 0, 0.0)
    assert result.wall_seconds == result.seconds


def test_the_settings_are_in_the_record() -> None:
    engine = freewheel.Simulated(0.1, Network(0.005), ServerCost(1e-3), [die(1, 2, 0.1)])
    result = simulated("downpour", engine, workers=2)
    assert {name: result.config[name] for name in ("times", "network", "server", "faults")} == {
        "times": "constant(0.1)",
        "network": "5 ms, unlimited a worker, unlimited at the servers",
        "server": "0.001 s a push, 0 s a pull, 0 s a byte",
        "faults": "die(1, 2, back_after_s=0.1)",
    }
    (started,) = [event for event in result.events if isinstance(event, RunStarted)]
    assert started.engine == "simulated"
    assert started.config["network"] == result.config["network"]
