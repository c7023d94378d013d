"""The station: arithmetic that can be done on paper, and queueing theory."""

from __future__ import annotations

import math
import random

import pytest

from freewheel.errors import ConfigurationError
from freewheel.simulation import ServerCost, Station


def test_jobs_are_served_one_after_the_other() -> None:
    station = Station()
    finishes = [station.serve(now, seconds, 10) for now, seconds in [(0, 2), (1, 3), (1, 1), (9, 1), (9, 0)]]
    assert finishes == [2, 5, 6, 10, 10]
    assert (station.busy_s, station.waited_s, station.jobs, station.bytes) == (7, 1 + 4 + 1, 5, 50)
    assert station.free_at == 10
    assert station.mean_wait() == 6 / 5


@pytest.mark.parametrize(("gap", "service"), [(1.0, 0.75), (0.5, 0.5)])
def test_regular_arrivals_below_the_limit_never_wait(gap: float, service: float) -> None:
    station = Station()
    for job in range(100):
        assert station.serve(job * gap, service) == job * gap + service
    assert station.waited_s == 0


def test_a_batch_waits_as_long_as_the_sum_of_those_before() -> None:
    station, jobs = Station(), 50
    assert [station.serve(3.0, 0.5) for _ in range(jobs)] == [3.0 + 0.5 * (k + 1) for k in range(jobs)]
    assert station.waited_s == pytest.approx(0.5 * jobs * (jobs - 1) / 2)


def test_an_overloaded_station_falls_behind_by_the_excess() -> None:
    station = Station()
    for job in range(1000):
        station.serve(float(job), 1.25)
    assert station.free_at == 1250
    assert station.waited_s == pytest.approx(0.25 * 1000 * 999 / 2)
    assert station.utilisation(1000.0) == 1.0


@pytest.mark.parametrize("load", [0.3, 0.7])
def test_poisson_arrivals_and_equal_service_wait_as_pollaczek_and_khinchine_say(load: float) -> None:
    station, draw, now, jobs = Station(), random.Random(1), 0.0, 200_000
    for _ in range(jobs):
        now += draw.expovariate(load)
        station.serve(now, 1.0)
    assert station.mean_wait() == pytest.approx(load / (2 * (1 - load)), rel=0.05)
    assert station.utilisation(now) == pytest.approx(load, rel=0.02)


def test_nothing_was_done_in_no_time() -> None:
    assert (Station().utilisation(0.0), Station().utilisation(5.0), Station().mean_wait()) == (0.0, 0.0, 0.0)


def test_costs_add_up() -> None:
    cost = ServerCost(seconds_per_push=0.5, seconds_per_pull=0.25, seconds_per_byte=0.125)
    assert (cost.push_seconds(8), cost.pull_seconds(8)) == (1.5, 1.25)
    assert (cost.free, ServerCost().free, ServerCost(seconds_per_pull=1e-9).free) == (False, True, False)
    assert ServerCost().describe == "no cost"
    assert cost.describe == "0.5 s a push, 0.25 s a pull, 0.125 s a byte"


@pytest.mark.parametrize("name", ["seconds_per_push", "seconds_per_pull", "seconds_per_byte"])
@pytest.mark.parametrize("value", [-1e-9, math.inf, math.nan, "1ms", None])
def test_a_cost_that_is_none_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"`{name}` must be a number >= 0 and finite, got .*1e-4 is"):
        ServerCost(**{name: value})
