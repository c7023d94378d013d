"""Named methods: what each is made of, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest

from freewheel.errors import ConfigurationError
from freewheel.methods import (
    DEFAULT_LR,
    DEFAULT_MOMENTUM,
    METHODS,
    Method,
    asynchronous_momentum,
    by_name,
    hogwild,
    synchronous,
)
from freewheel.rules import chain, clip, clip_value, finite, sgd
from freewheel.schedules import annealed


def test_synchronous_waits_and_averages_and_hogwild_does_neither() -> None:
    assert (synchronous().gate.describe, synchronous().rounds) == ("barrier()", True)
    assert (hogwild().gate.describe, hogwild().rounds) == ("free()", False)


def test_one_worker_gets_the_same_rule_from_every_method() -> None:
    rules = {METHODS[name]().rule_for(1).describe for name in ("hogwild", "synchronous", "stale_synchronous")}
    assert rules == {sgd(annealed(DEFAULT_LR), momentum=DEFAULT_MOMENTUM).describe}


def test_momentum_of_hogwild_leaves_room_for_that_of_asynchrony() -> None:
    assert asynchronous_momentum(0.9, 1) == 0.9
    chosen = [asynchronous_momentum(0.9, workers) for workers in range(1, 30)]
    assert chosen == sorted(chosen, reverse=True)
    assert all(0 <= momentum <= 0.9 for momentum in chosen)
    # Beyond two workers the effective step 1 / (1 - momentum) falls with their number.
    for workers in range(2, 20):
        assert (1 - asynchronous_momentum(0.9, workers)) / workers == pytest.approx(0.05)


def test_several_hogwild_workers_look_ahead_and_one_does_not() -> None:
    assert hogwild(0.1).rule_for(1).describe == sgd(0.1, momentum=0.9).describe
    assert hogwild(0.1).rule_for(2).describe == sgd(0.1, momentum=0.9, nesterov=True).describe
    assert hogwild(0.1, nesterov=False).rule_for(2).describe == sgd(0.1, momentum=0.9).describe
    assert hogwild(0.1, momentum=0.0).rule_for(2).describe == sgd(0.1).describe


def test_a_momentum_of_ones_own_is_taken_for_any_number_of_workers() -> None:
    method = hogwild(0.1, momentum=0.3, nesterov=False)
    assert {method.rule_for(workers).describe for workers in (1, 2, 8)} == {sgd(0.1, momentum=0.3).describe}


@pytest.mark.parametrize("make", [hogwild, synchronous])
def test_a_rule_of_ones_own_takes_the_place_of_sgd(make: Any) -> None:
    rule = chain(clip(1.0), sgd(0.5))
    assert make(rule=rule).rule_for(4) is rule


@pytest.mark.parametrize("make", [hogwild, synchronous])
@pytest.mark.parametrize(
    "settings", [{"lr": 0.1}, {"momentum": 0.0}, {"weight_decay": 0.1}, {"nesterov": True}]
)
def test_a_rule_beside_settings_of_sgd_is_refused(make: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="takes the place of"):
        make(rule=sgd(0.1), **settings)


@pytest.mark.parametrize("make", [hogwild, synchronous])
@pytest.mark.parametrize("guard", [clip(1.0), finite()], ids=lambda rule: rule.describe)
def test_layers_refuse_rules_that_need_the_whole(make: Any, guard: Any) -> None:
    method = make(rule=chain(guard, sgd(0.1)), granularity="layer")
    with pytest.raises(
        ConfigurationError, match=r"`rule` .* needs the whole gradient.*granularity='layer'.*clip_value"
    ):
        method.rule_for(2)
    assert make(rule=chain(clip_value(1.0), sgd(0.1)), granularity="layer").rule_for(2).scope == "piece"


def test_methods_by_name() -> None:
    assert by_name(None).name == "hogwild"
    for name in METHODS:
        assert by_name(name).name == name
    method = synchronous(0.3)
    assert by_name(method) is method


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("hogwyld", "`method` must be one of hogwild, synchronous, .*diloco or a Method, got 'hogwyld'"),
        (hogwild, r"call it first: method=freewheel.hogwild\(\)"),
        (7, "got 7"),
    ],
)
def test_unknown_methods_are_refused_with_the_known_ones(method: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        by_name(method)


@pytest.mark.parametrize("make", [hogwild, synchronous])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, "`momentum`.*1.0"),
        ({"momentum": -0.1}, "`momentum`.*-0.1"),
        ({"lr": -1.0}, "`lr`.*-1.0"),
        ({"lr": float("nan")}, "`lr`.*nan"),
        ({"lr": "fast"}, "`lr`.*'fast'"),
        ({"weight_decay": -1.0}, "`weight_decay`.*-1.0"),
        ({"granularity": "neuron"}, "`granularity` must be 'model' or 'layer', got 'neuron'"),
        ({"rule": "sgd"}, "`rule` must be a Rule.*'sgd'"),
        ({"rule": sgd}, "`rule` must be a Rule"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(make: Any, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**settings)


def test_a_method_is_data() -> None:
    assert isinstance(hogwild(), Method)
    assert hogwild(0.1).settings == {"rule": hogwild(0.1).rule_for(2).describe}
