"""Methods refuse nonsense: each message names the argument, the value that came, and the remedy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import freewheel
from freewheel.errors import ConfigurationError
from freewheel.exchanges import Fresh
from freewheel.gates import free
from freewheel.methods import (
    Method,
    delay_compensated,
    diloco,
    downpour,
    elastic_averaging,
    hogwild,
    local_sgd,
    parallel_sgd,
    stale_synchronous,
    synchronous,
)
from freewheel.rules import average, chain, clip, delay_compensate, half, sgd, top_k

Case = tuple[Callable[..., Method], dict[str, Any], str]

OUT_OF_RANGE: list[Case] = [
    (
        stale_synchronous,
        {"bound": -1},
        r"`bound` must be a whole number >= 0, got -1; use free\(\) for no limit",
    ),
    (stale_synchronous, {"in_flight": -1}, "`in_flight` must be a whole number >= 0, got -1; 0 waits"),
    (stale_synchronous, {"in_flight": 1.5}, "`in_flight` .*got 1.5"),
    (downpour, {"push_every": 0}, "`push_every` must be a whole number >= 1, got 0; 1 pushes every gradient"),
    (downpour, {"push_every": 2.0}, "`push_every` .*got 2.0"),
    (downpour, {"push_every": True}, "`push_every` .*got True"),
    (downpour, {"pull_every": 0}, "`pull_every` must be a whole number >= 1, got 0; 1 fetches before every"),
    (downpour, {"warm_start": -1}, "`warm_start` must be a whole number >= 0, got -1; 0 lets all begin"),
    (downpour, {"in_flight": -2}, "`in_flight` .*got -2"),
    (elastic_averaging, {"period": 0}, "`period` must be a whole number >= 1, got 0; 1 exchanges at every"),
    (elastic_averaging, {"alpha": 0}, r"`alpha` must be > 0, got 0; use parallel_sgd\(\)"),
    (elastic_averaging, {"alpha": -0.1}, "`alpha`.*-0.1"),
    (elastic_averaging, {"alpha": 1.1}, "`alpha`.*1.1.*0.9 divided by the number of workers"),
    (elastic_averaging, {"momentum": 1}, "`momentum`.*1.*0.9 is common"),
    (elastic_averaging, {"momentum": -0.5}, "`momentum`.*-0.5"),
    (local_sgd, {"steps": 0}, "`steps` must be a whole number >= 1, got 0; 1 averages after every step"),
    (diloco, {"steps": 0}, "`steps` must be a whole number >= 1, got 0; 50 to 500 are common"),
    (diloco, {"buffer": 0}, "`buffer` must be a whole number >= 1, got 0; leave it out for the number of"),
    (delay_compensated, {"strength": -1.0}, "`strength`.*-1.0"),
    (synchronous, {"backup_workers": -1}, "`backup_workers` must be a whole number >= 0, got -1; 0 waits"),
    (synchronous, {"backup_workers": 0.5}, "`backup_workers` .*got 0.5"),
]

CONTRADICTIONS: list[Case] = [
    (
        synchronous,
        {"granularity": "layer", "backup_workers": 1},
        "`granularity`='layer'.*use granularity='model'",
    ),
    (
        synchronous,
        {"granularity": "layer", "compression": half()},
        "`granularity`='layer'.*granularity='model'",
    ),
    (diloco, {"asynchronous": False, "dynamic": True}, "`dynamic` needs asynchronous=True: rounds wait"),
    (diloco, {"asynchronous": False, "buffer": 2}, "`buffer` needs asynchronous=True"),
    (diloco, {"outer": sgd(0.1), "buffer": 2}, "`buffer` is a setting of the default `outer`"),
]

TRAINS: list[tuple[Callable[..., Method], str]] = [
    (downpour, "server"),
    (downpour, "local"),
    (diloco, "inner"),
    (diloco, "outer"),
]
COMPRESSES = [synchronous, stale_synchronous, delay_compensated, downpour, local_sgd, diloco]
RULED = [hogwild, synchronous, stale_synchronous, delay_compensated, local_sgd, parallel_sgd]


@pytest.mark.parametrize(("make", "settings", "message"), OUT_OF_RANGE + CONTRADICTIONS)
def test_settings_that_cannot_be_are_refused_at_once(
    make: Callable[..., Method], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make(**settings)


@pytest.mark.parametrize("make", RULED)
@pytest.mark.parametrize("setting", [{"lr": -0.1}, {"momentum": 1.0}, {"weight_decay": -1.0}])
def test_settings_of_sgd_out_of_range_are_refused(
    make: Callable[..., Method], setting: dict[str, Any]
) -> None:
    (name,) = setting
    with pytest.raises(ConfigurationError, match=f"`{name}`"):
        make(**setting)


@pytest.mark.parametrize("make", RULED)
@pytest.mark.parametrize("setting", [{"lr": 0.1}, {"momentum": 0.5}, {"weight_decay": 0.1}])
def test_a_rule_beside_settings_of_sgd_is_refused(
    make: Callable[..., Method], setting: dict[str, Any]
) -> None:
    with pytest.raises(ConfigurationError, match=r"`rule` takes the place of.*rule=sgd\(lr, momentum\)"):
        make(rule=sgd(0.1), **setting)


@pytest.mark.parametrize(("make", "name"), TRAINS)
def test_a_rule_that_must_train_and_does_not_is_refused(make: Callable[..., Method], name: str) -> None:
    with pytest.raises(
        ConfigurationError, match=f"`{name}` must write the weights; end it with a descent, got clip"
    ):
        make(**{name: clip(1.0)})
    with pytest.raises(ConfigurationError, match=f"`{name}` must be a Rule.*'adam'"):
        make(**{name: "adam"})


@pytest.mark.parametrize("make", COMPRESSES)
def test_a_compression_that_trains_is_refused(make: Callable[..., Method]) -> None:
    with pytest.raises(ConfigurationError, match="`compression` must not write the weights, got sgd"):
        make(compression=sgd(0.1))
    with pytest.raises(ConfigurationError, match=r"`compression` must be a Rule.*0\.01"):
        make(compression=0.01)
    compression = make(compression=top_k(0.1)).compression
    assert compression is not None
    assert compression.describe == "top_k(share=0.1)"


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_rounds_that_wait_for_nobody_are_refused(workers: int) -> None:
    method = synchronous(0.1, backup_workers=3)
    with pytest.raises(
        ConfigurationError,
        match=f"`backup_workers` is 3 of {workers} workers; .*: use at most {workers - 1}",
    ):
        method.rule_for(workers)
    assert method.rule_for(4).descends


COMPENSATES = chain(delay_compensate(0.5), sgd(0.1))


@pytest.mark.parametrize(
    "method",
    [
        hogwild(rule=COMPENSATES),
        synchronous(rule=COMPENSATES),
        stale_synchronous(rule=COMPENSATES, in_flight=1),
        downpour(server=COMPENSATES),
        diloco(outer=COMPENSATES),
    ],
    ids=lambda method: method.name,
)
def test_a_rule_that_compares_with_what_was_pulled_needs_a_method_that_keeps_it(method: Method) -> None:
    with pytest.raises(
        ConfigurationError,
        match=rf"`rule` delay_compensate.* which {method.name} does not keep; use delay_compensated\(\), or"
        r" stale_synchronous\(\) with in_flight=0",
    ):
        method.rule_for(2)


def test_methods_that_keep_what_was_pulled_take_it() -> None:
    assert stale_synchronous(rule=COMPENSATES).rule_for(2).needs_pulled
    assert delay_compensated(0.1).rule_for(2).needs_pulled


@pytest.mark.parametrize("setting", [{"in_flight": 1}, {"compression": half()}])
def test_live_reads_have_nothing_in_flight_and_nothing_to_compress(setting: dict[str, Any]) -> None:
    (name,) = setting
    with pytest.raises(
        ConfigurationError, match=rf"`{name}` needs workers with a copy.*mine reads them live; use"
    ):
        Method("mine", free(), False, lambda workers: sgd(0.1), **setting)
    Method("mine", free(), False, lambda workers: sgd(0.1), exchange=Fresh, **setting)


def fit(method: Method, **settings: Any) -> freewheel.Result:
    data: tuple[Tensor, Tensor] = (torch.randn(8, 3), torch.zeros(8, dtype=torch.int64))
    return freewheel.fit(
        nn.Linear(3, 2), data, loss=nn.CrossEntropyLoss(), method=method, batch_size=4, **settings
    )


@pytest.mark.parametrize("engine", ["serial", "threads", "simulated"])
def test_shards_that_cannot_be_are_refused_before_the_run(engine: str) -> None:
    def refused(message: str, method: Method, shards: Any) -> None:
        with pytest.raises(ConfigurationError, match=message):
            fit(method, engine=engine, workers=2, shards=shards)

    refused("`shards` is 9, more than the 8 trainable weights; use at most 8", downpour(), 9)
    refused("`shards` must be a whole number >= 1, got 0; 1 is one server", downpour(), 0)
    refused("`shards`=2 cuts whole updates, but granularity='layer'.*use", hogwild(granularity="layer"), 2)
    assert fit(downpour(), engine=engine, workers=2, shards=8).samples == 8


def test_backup_workers_are_checked_against_the_workers_of_the_run() -> None:
    with pytest.raises(ConfigurationError, match=r"`backup_workers` is 2 of 2 workers.*use at most 1"):
        fit(synchronous(0.1, backup_workers=2), workers=2)


def test_two_compressions_are_refused() -> None:
    method = stale_synchronous(0, 0.1, compression=chain(top_k(0.5), half()))
    with pytest.raises((ConfigurationError, freewheel.WorkerError), match=r"compressed already.*one rule of"):
        fit(method, workers=1, engine="serial")


def test_what_gathers_updates_on_the_server_is_no_compression_but_may_run_there() -> None:
    result = fit(stale_synchronous(0, rule=chain(average(2), sgd(0.1))), workers=2, engine="serial")
    assert (result.ledger["applied"], result.ledger["absorbed"]) == (1, 1)
