"""A method by its name: what the user set reaches it, what it does not have is refused with what it has."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import freewheel
from freewheel.errors import ConfigurationError
from freewheel.methods import METHODS, Method
from freewheel.recipes.choice import check_settings, method_maker, settable
from freewheel.recipes.images import images
from freewheel.recipes.settings import Budget, Hardware, Optimization, Settings

ONE_EPOCH = {"epochs": 1, "max_samples": None}


def make(name: str, **chosen: Any) -> Method:
    return method_maker(Optimization(**chosen), 0.1, ONE_EPOCH)(name)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_made_and_has_the_learning_rate(name: str) -> None:
    method = make(name, lr=0.375)
    assert method.name == name
    assert "0.375" in str(method.settings)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_learns_images_with_no_further_option(name: str) -> None:
    budget, hardware = Budget(max_samples=6_400), Hardware(workers=2, engine="serial")
    recipe = images(Settings(model="mlp", budget=budget, hardware=hardware))
    torch.manual_seed(0)
    result = freewheel.fit(recipe.build(), recipe.data, method=recipe.method(name), **recipe.arguments)
    assert result.metrics["accuracy"] > 0.7  # chance is 0.1


def test_settings_reach_the_methods_that_have_them() -> None:
    chosen = {"bound": 7, "push_every": 2, "downpour.push_every": 4, "diloco.dynamic": True}
    assert make("stale_synchronous", settings=chosen).settings["bound"] == 7
    assert make("downpour", settings=chosen).settings["push_every"] == 4
    assert make("diloco", settings=chosen).settings["dynamic"] is True
    assert "bound" not in make("hogwild", settings=chosen).settings


def test_settable_are_numbers_and_yes_and_no() -> None:
    assert settable("stale_synchronous") == ("bound", "weight_decay", "nesterov", "in_flight")
    for name in METHODS:
        assert set(settable(name)) <= set(inspect.signature(METHODS[name]).parameters)


@pytest.mark.parametrize(
    ("settings", "names", "message"),
    [
        ({"bond": 3}, ("stale_synchronous",), "'bond', .*stale_synchronous has bound, weight_decay"),
        ({"bound": 3}, ("hogwild",), "'bound', which is no setting; hogwild has"),
        ({"hogwild.bound": 3}, ("hogwild", "stale_synchronous"), "hogwild has"),
        ({"downpour.lr": 3}, ("downpour",), "use --lr"),
        ({"downpour.push_every": 3}, ("hogwild",), "names no method of this run: hogwild"),
        ({"compression": None}, ("hogwild",), "`compression` needs a method that pushes from a copy"),
    ],
)
def test_what_no_method_has_is_refused_with_what_they_have(
    settings: dict[str, Any], names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_settings(settings, names)


def test_a_setting_that_one_of_several_methods_has_is_taken() -> None:
    check_settings({"bound": 3, "downpour.warm_start": 5}, ("hogwild", "stale_synchronous", "downpour"))


@pytest.mark.parametrize(
    ("name", "chosen", "message"),
    [
        ("diloco", {"momentum": 0.5}, "`momentum` is no setting of diloco, got 0.5; .* use hogwild"),
        ("local_sgd", {"granularity": "layer"}, "`granularity` is no setting of local_sgd, got 'layer'"),
        ("stale_synchronous", {"settings": {"bound": -1}}, "`bound` must be a whole number >= 0, got -1"),
    ],
)
def test_what_the_method_does_not_take_is_refused(name: str, chosen: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(name, **chosen)


def test_momentum_goes_before_the_models_default() -> None:
    tuned = {"local_sgd": {"momentum": 0.9}}
    own = method_maker(Optimization(momentum=0.25), 0.1, ONE_EPOCH, tuned)("local_sgd")
    assert "momentum=0.25" in own.settings["rule"]
    assert "momentum=0.9" in method_maker(Optimization(), 0.1, ONE_EPOCH, tuned)("local_sgd").settings["rule"]


def test_diloco_divides_its_outer_steps_among_the_workers() -> None:
    assert make("diloco").rule_for(6).describe == "delayed_nesterov(lr=0.7, momentum=0.5, buffer=6)"
    assert "buffer=3" in make("diloco", settings={"buffer": 3}).rule_for(6).describe
    rounds = make("diloco", settings={"asynchronous": False})
    assert rounds.rule_for(6).describe == "sgd(lr=0.7, momentum=0.5, nesterov=True)"
