"""Recipes: settings become a model, data and arguments that `fit` takes."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import freewheel
from freewheel.data import text_of
from freewheel.errors import ConfigurationError
from freewheel.recipes import CharLSTM
from freewheel.recipes.choice import method_maker, schedule
from freewheel.recipes.images import images
from freewheel.recipes.settings import (
    Budget,
    Defaults,
    Hardware,
    Optimization,
    Recipe,
    Settings,
    common_arguments,
)
from freewheel.recipes.text import BPTT, Perplexity, generate, text
from freewheel.schedules import Schedule

RECIPES = {"images": images, "text": text}
DEFAULTS = Defaults(batch_size=16, lr=0.25, epochs=3)
ONE_EPOCH = {"epochs": 1, "max_samples": None}


def test_without_a_budget_the_epochs_are_the_models() -> None:
    assert common_arguments(Settings(), DEFAULTS)["epochs"] == 3


@pytest.mark.parametrize("budget", [Budget(max_samples=10), Budget(max_seconds=1.0), Budget(epochs=1)])
def test_a_budget_is_taken_as_it_is(budget: Budget) -> None:
    arguments = common_arguments(Settings(budget=budget), DEFAULTS)
    assert (arguments["epochs"], arguments["max_samples"], arguments["max_seconds"]) == (
        budget.epochs,
        budget.max_samples,
        budget.max_seconds,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_every_setting_reaches_fit(name: str) -> None:
    settings = Settings(
        optimization=Optimization(batch_size=7),
        budget=Budget(max_samples=100, evaluate_every=50, target=("loss", 0.5)),
        hardware=Hardware(engine="serial", workers=3, intra_op_threads=2, precision="bf16"),
    )
    arguments = RECIPES[name](settings).arguments
    wanted = {
        "batch_size": 7,
        "epochs": None,
        "max_samples": 100,
        "evaluate_every": 50,
        "target": ("loss", 0.5),
        "engine": "serial",
        "workers": 3,
        "intra_op_threads": 2,
        "precision": "bf16",
    }
    assert {key: arguments[key] for key in wanted} == wanted
    assert set(arguments) <= set(inspect.signature(freewheel.fit).parameters)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("images", Settings(model="lstm"), "`model` for images must be one of cnn, mlp, got 'lstm'"),
        ("images", Settings(data="tiny-shakespeare"), "`data` for images must be one of fashion-mnist-small"),
        ("text", Settings(model="cnn"), "`model` for text must be one of lstm"),
        ("text", Settings(data="cifar10"), "`data` for text must be one of tiny-shakespeare"),
        (
            "images",
            Settings(budget=Budget(target=("perplexity", 3))),
            "`target` for images must be one of accuracy",
        ),
        ("text", Settings(budget=Budget(target=("accuracy", 0.5))), "`target` for text must be one of loss"),
        (
            "images",
            Settings(optimization=Optimization(schedule="cosin")),
            "annealed, constant, cosine, linear",
        ),
        (
            "images",
            Settings(optimization=Optimization(schedule="cosine"), budget=Budget(max_seconds=1.0)),
            "needs a known end",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_valid_ones(
    name: str, settings: Settings, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RECIPES[name](settings)


def test_the_methods_have_the_settings() -> None:
    make = method_maker(Optimization(lr=0.5, momentum=0.25, granularity="layer"), 0.1, ONE_EPOCH)
    for name in ("hogwild", "synchronous"):
        method = make(name)
        assert method.name == name
        assert method.granularity == "layer"
        ahead = ", nesterov=True" if name == "hogwild" else ""
        assert method.rule_for(2).describe == f"sgd(lr=annealed(lr=0.5), momentum=0.25{ahead})"


def test_without_a_learning_rate_the_methods_have_the_models() -> None:
    assert "lr=0.125" in method_maker(Optimization(), 0.125, ONE_EPOCH)("hogwild").rule_for(1).describe


def test_an_unknown_method_or_granularity_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="hogwild, synchronous"):
        method_maker(Optimization(), 0.1, ONE_EPOCH)("hogwil")
    with pytest.raises(ConfigurationError, match="granularity"):
        method_maker(Optimization(granularity="cell"), 0.1, ONE_EPOCH)("hogwild")


@pytest.mark.parametrize("name", ["annealed", "cosine", "linear"])
def test_a_schedule_goes_from_the_rate_to_zero_at_the_end(name: str) -> None:
    rate = schedule(name, 0.5, has_end=True)
    assert isinstance(rate, Schedule)
    assert rate(0, planned=1000) == pytest.approx(0.5)
    assert rate(500, planned=1000) == pytest.approx(0.25)
    assert rate(1000, planned=1000) == pytest.approx(0.0, abs=1e-9)


def test_the_default_schedule_needs_no_known_end() -> None:
    rate = schedule(Optimization().schedule, 0.5, has_end=False)
    assert isinstance(rate, Schedule)
    assert rate(10**9) == 0.5


def train(recipe: Recipe, **more: Any) -> freewheel.Result:
    method = recipe.method("hogwild")
    return freewheel.fit(recipe.build(), recipe.data, method=method, **{**recipe.arguments, **more})


@pytest.mark.parametrize("model", ["mlp", "cnn"])
def test_images_train(model: str) -> None:
    recipe = images(Settings(model=model, budget=Budget(max_samples=640), hardware=Hardware(workers=2)))
    result = train(recipe)
    assert result.samples == 640
    assert result.metrics["accuracy"] > 0.2  # chance is 0.1


def test_text_trains_and_speaks() -> None:
    book = text_of("to be or not to be, that is the question. " * 60)
    budget = Budget(max_samples=8 * BPTT * 30)
    settings = Settings(optimization=Optimization(batch_size=4), budget=budget, hardware=Hardware(workers=1))
    recipe = text(settings)
    torch.manual_seed(0)
    model = CharLSTM(len(book.vocabulary), embedding=16, hidden=32)
    evaluate = Perplexity(book.validation, 2, BPTT)
    before = evaluate(model)["loss"]
    result = freewheel.fit(
        model, book.train, method=recipe.method("hogwild"), **{**recipe.arguments, "evaluate": evaluate}
    )
    assert result.metrics["loss"] < 0.7 * before
    spoken = generate(book, model, "to ", length=20)
    assert len(spoken) == 23
    assert spoken.startswith("to ")
    assert spoken == generate(book, model, "to ", length=20)


class Uniform(nn.Module):
    """Knows nothing, but counts in its hidden state how much it has read."""

    def forward(self, tokens: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        seen = torch.zeros(()) if hidden is None else hidden
        return torch.zeros(*tokens.shape, 8), seen + tokens.shape[1]


def test_the_perplexity_of_a_uniform_model_is_the_size_of_its_vocabulary() -> None:
    metrics = Perplexity(torch.arange(50) % 8, streams=3, steps=5)(Uniform())
    assert metrics["loss"] == pytest.approx(math.log(8), rel=1e-6)
    assert metrics["perplexity"] == pytest.approx(8, rel=1e-6)
    assert metrics["bits_per_character"] == pytest.approx(3, rel=1e-6)


class Echo(nn.Module):
    """Is sure that the next token is this one plus one, and needs its hidden state to be handed on."""

    def forward(self, tokens: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        logits = torch.full((*tokens.shape, 8), -30.0)
        logits.scatter_(2, ((tokens + 1) % 8)[..., None], 30.0)
        if hidden is not None and not torch.equal((hidden + 1) % 8, tokens[:, 0]):
            logits.zero_()
        return logits, tokens[:, -1]


def test_a_text_model_is_measured_and_speaks_in_one_thread() -> None:
    seen = set()

    class Counts(Echo):
        def forward(self, tokens: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
            seen.add(torch.get_num_threads())
            return super().forward(tokens, hidden)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        Perplexity(torch.arange(50) % 8, streams=3, steps=5)(Counts())
        generate(text_of("abcdefgh"), Counts(), "abc", length=2)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == {1}


def test_the_perplexity_reads_every_stream_in_order() -> None:
    assert Perplexity(torch.arange(50) % 8, streams=3, steps=5)(Echo())["loss"] == pytest.approx(
        0.0, abs=1e-6
    )


def test_a_text_that_is_too_short_to_measure_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="more than 32"):
        Perplexity(torch.arange(8), streams=32, steps=4)


def test_generating_ends_at_a_broken_model_and_refuses_a_bad_temperature() -> None:
    book = text_of("abcdefgh")

    class Broken(nn.Module):
        def forward(self, tokens: Tensor, hidden: Any = None) -> tuple[Tensor, Any]:
            return torch.full((*tokens.shape, 8), torch.nan), hidden

    assert generate(book, Broken(), "abc") == "abc"
    with pytest.raises(ConfigurationError, match="temperature"):
        generate(book, Echo(), "abc", temperature=0.0)
    assert generate(book, Echo(), "abc", length=4) == "abcdefg"
