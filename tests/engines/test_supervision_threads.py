"""Workers on threads that raise are replaced, and the run goes on; one that hangs ends it."""

from __future__ import annotations

import gc
import itertools
import math
import os
import signal
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cuts import CutInStep, checkpoints
from laws import ALL, BACKUP, KINDS, ROUNDS, SAMPLES, Heard, adds_up, blobs, network, state
from torch import Tensor, nn
from torch.utils.data import DataLoader

import freewheel
from freewheel import testing
from freewheel.engines import supervisor
from freewheel.errors import ConfigurationError, DataError, TrainingError, WorkerError
from freewheel.events import Event, Steps, Tick, WorkerFailed, WorkerRestarted
from freewheel.methods import Method
from freewheel.rules import Rule, RuleContext, State, average, chain, sgd, stateless
from freewheel.server import Server
from freewheel.sources import Indexed, tensors
from freewheel.testing import fail, inject
from freewheel.update import Update

BATCH, EPOCHS = 4, 2
PLANNED = EPOCHS * SAMPLES // BATCH
PATIENCE_S = 60.0  # against hanging only
SINGLE = [name for name in KINDS if name not in BACKUP]  # with backup workers, a round waits for one of two

Step = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


def worker_here() -> int | None:
    """Which worker's thread this is; None for the main thread, which makes checks."""
    name = threading.current_thread().name
    return int(name.rpartition("-")[2]) if name.startswith("freewheel-") else None


def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


class Failing:
    """A step in which one worker does something so many times, always in the same step of a life.

    The others do not run away meanwhile: they wait until it has happened.
    """

    def __init__(self, how: Callable[[], object], at: int = 3, worker: int = 1, times: int = 1) -> None:
        self.how, self.at, self.worker = how, at, worker
        self.left = times
        self.done = threading.Event()
        self.calls: Counter[threading.Thread] = Counter()

    def __call__(self, module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        thread, worker = threading.current_thread(), worker_here()
        number, self.calls[thread] = self.calls[thread], self.calls[thread] + 1
        if worker == self.worker and number == self.at and self.left:
            self.left -= 1
            if not self.left:
                self.done.set()
            self.how()
        elif worker is not None and worker != self.worker and number >= self.at + 6:
            assert self.done.wait(PATIENCE_S)
        return loss_of(module, batch)


def raises() -> None:
    raise ZeroDivisionError("of my own")


class Run(Heard):
    """A run on threads and what was heard of it."""

    def __init__(self, step: Step, method: Method | str = "hogwild", **arguments: Any) -> None:
        super().__init__()
        settings = {"workers": 2, "batch_size": BATCH, "epochs": EPOCHS, **arguments}
        others = settings.pop("monitors", [])
        self.module = settings.pop("model", None) or network()
        self.result = freewheel.fit(
            self.module,
            settings.pop("data", blobs()),
            step=step,
            method=ALL[method] if isinstance(method, str) else method,
            engine="threads",
            monitors=[self.events.append, *others],
            **settings,
        )

    def check_complete(self, restarts: int = 1) -> None:
        """Every batch was used once, the book adds up, the failures were told of, and no thread is left."""
        assert self.leases == Counter(range(PLANNED))
        assert self.result.samples == EPOCHS * SAMPLES
        assert adds_up(self.result.ledger)
        assert self.result.ledger["duplicates"] == 0
        assert len(self.of(WorkerFailed)) == len(self.of(WorkerRestarted)) == self.result.restarts == restarts
        assert all(event.replaced for event in self.of(WorkerFailed))
        assert self.result.reason == "epochs"
        steps = Counter(
            (w, s) for event in self.of(Steps) for w, s in zip(event.worker, event.sequence, strict=True)
        )
        assert set(steps.values()) == {1}
        assert threading.active_count() == 1


# --- exceptions ---


@pytest.mark.parametrize("method", [name for name in ALL if name not in BACKUP])
@pytest.mark.parametrize("at", [0, 3, 12])
def test_every_method_bears_an_exception(method: str, at: int) -> None:
    run = Run(Failing(raises, at), method)
    run.check_complete()
    [failed], [restarted] = run.of(WorkerFailed), run.of(WorkerRestarted)
    assert (failed.worker, failed.sequence) == (1, at)
    assert failed.error == "ZeroDivisionError: of my own"
    assert (restarted.worker, restarted.incarnation) == (1, 1)
    if ALL[method].exchange is None:
        assert run.result.ledger["pushed"] == PLANNED


@pytest.mark.parametrize("method", [*SINGLE, "stale_synchronous", "local_sgd"])
def test_both_workers_may_fail(method: str) -> None:
    first, second = Failing(raises, worker=0), Failing(raises, worker=1)

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        first(module, batch)
        return second(module, batch)

    Run(step, method).check_complete(restarts=2)


@pytest.mark.parametrize("method", SINGLE)
def test_a_single_worker_may_fail_repeatedly(method: str) -> None:
    run = Run(Failing(raises, worker=0, times=4), method, workers=1)
    run.check_complete(restarts=4)
    assert [event.incarnation for event in run.of(WorkerRestarted)] == [1, 2, 3, 4]
    assert [event.sequence for event in run.of(WorkerFailed)] == [3, 6, 9, 12]


def test_rounds_with_backup_workers_bear_an_exception() -> None:
    run = Run(Failing(raises), "synchronous-backup", workers=3)
    run.check_complete()


@pytest.mark.parametrize("method", ["stale_synchronous", "downpour", "synchronous-top_k"])
def test_shards_bear_an_exception(method: str) -> None:
    Run(Failing(raises), method, shards=3).check_complete()


def undisturbed(method: Method, workers: int) -> Tensor:
    return state(Run(loss_of, method, workers=workers, model=network(norm=False, dropout=0.0)).module)


@pytest.mark.parametrize("name", [name for name in ROUNDS if ALL[name].exchange is None])
@pytest.mark.parametrize("during", ["step", "push"])
def test_a_failure_before_the_push_changes_nothing_in_rounds(name: str, during: Any) -> None:
    """The same step computes the same gradient again, from the same weights: bit for bit the same run."""
    if during == "push" and ALL[name].granularity == "layer":
        during = "step"  # the first piece of several
    with inject(fail(1, 5, during), fail(0, 9, during)) as injected:
        run = Run(loss_of, ALL[name], model=network(norm=False, dropout=0.0))
    assert injected.all_fired
    run.check_complete(restarts=2)
    assert torch.equal(state(run.module), undisturbed(ALL[name], 2))


def test_a_failure_behind_the_push_changes_nothing_in_rounds() -> None:
    """The step is part of the round: it is booked, and not computed again."""
    with inject(fail(1, 5, "acknowledge"), fail(0, 9, "acknowledge")) as injected:
        run = Run(loss_of, "synchronous", model=network(norm=False, dropout=0.0))
    assert injected.all_fired
    run.check_complete(restarts=2)
    assert run.result.ledger["applied"] == PLANNED
    assert torch.equal(state(run.module), undisturbed(ALL["synchronous"], 2))


def test_one_worker_that_fails_gives_the_weights_of_one_that_does_not() -> None:
    method = freewheel.hogwild(0.05, momentum=0.9)
    run = Run(Failing(raises, worker=0, times=2), method, workers=1, model=network(norm=False, dropout=0.0))
    run.check_complete(restarts=2)
    assert torch.equal(state(run.module), undisturbed(method, 1))


def test_replicas_of_earlier_lives_are_freed() -> None:
    replicas: list[weakref.ref[nn.Module]] = []
    failing = Failing(raises, worker=0, times=3)

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        replicas.append(weakref.ref(module))
        return failing(module, batch)

    run = Run(step, freewheel.hogwild(granularity="layer"), workers=1)
    gc.collect()
    run.check_complete(restarts=3)
    assert all(replica() is None for replica in replicas)


# --- the batch in hand ---


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous"])
def test_batches_of_a_stream_are_used_again(method: str) -> None:
    pairs: Any = list(zip(*blobs(), strict=True))
    loader: DataLoader[Any] = DataLoader(pairs, BATCH, num_workers=0, sampler=range(SAMPLES))
    Run(Failing(raises), method, data=loader).check_complete()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embed, self.cell, self.head = nn.Embedding(5, 4), nn.GRU(4, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, tokens: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        states, hidden = self.cell(self.embed(tokens), hidden)
        return self.head(states), hidden


def recurrent(method: str, *faults: Any) -> tuple[freewheel.Result, list[int]]:
    tokens = torch.randint(5, (2001,), generator=torch.Generator().manual_seed(0))
    events: list[Event] = []
    model = Recurrent()
    with inject(*faults) as injected:
        result = freewheel.fit(
            model,
            tokens,
            loss=nn.functional.cross_entropy,
            bptt=10,
            batch_size=5,
            method=ALL[method],
            engine="threads",
            workers=2,
            epochs=2,
            monitors=[events.append],
        )
    assert injected.all_fired
    return result, [number for event in events if isinstance(event, Steps) for number in event.lease]


@pytest.mark.parametrize("method", ["hogwild", "synchronous"])
def test_a_recurrent_model_goes_on_with_the_state_of_its_stream(method: str) -> None:
    result, numbers = recurrent(method, fail(1, 3), fail(0, 7, "push"))
    whole, all_numbers = recurrent(method)
    assert sorted(numbers) == sorted(all_numbers) == list(range(len(numbers)))
    assert (result.restarts, result.reason) == (2, "epochs")
    if method == "synchronous":
        assert torch.equal(state(result.module), state(whole.module))


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous"])
def test_a_batch_that_cannot_be_read_once_is_read_again(method: str) -> None:
    fetch, reads, once = tensors(*blobs()), itertools.count(), threading.Event()

    def gone_once(indices: Tensor) -> Any:
        if worker_here() == 1 and next(reads) == 3 and not once.is_set():
            once.set()
            raise OSError("the disk is gone")
        return fetch(indices)

    waits = Failing(lambda: None, times=0)
    waits.done = once
    run = Run(waits, method, data=Indexed(gone_once, SAMPLES, BATCH))
    run.check_complete()
    assert run.of(WorkerFailed)[0].error == "OSError: the disk is gone"


@pytest.mark.parametrize("method", ["stale_synchronous", "local_sgd"])
def test_a_pull_that_fails_loses_no_batch(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pull, once = Server.pull, threading.Event()

    def fails_once(server: Server, target: Tensor) -> tuple[int, ...]:
        if worker_here() == 1 and not once.is_set():
            once.set()
            raise OSError("no answer")
        return pull(server, target)

    monkeypatch.setattr(Server, "pull", fails_once)
    Run(loss_of, method).check_complete()


def test_a_batch_that_can_never_be_read_ends_the_run() -> None:
    fetch = tensors(*blobs())

    def gone(indices: Tensor) -> Any:
        if worker_here() is not None and 17 in indices:
            raise OSError("the disk is gone")
        return fetch(indices)

    with pytest.raises(WorkerError, match="OSError: the disk is gone") as caught:
        Run(loss_of, data=Indexed(gone, SAMPLES, BATCH))
    assert isinstance(caught.value.__cause__, OSError)
    assert threading.active_count() == 1


def test_a_worker_that_can_read_no_more_ends_the_run() -> None:
    """It has finished steps, but none since it was replaced."""
    fetch, reads = tensors(*blobs()), itertools.count()

    def gone(indices: Tensor) -> Any:
        if worker_here() == 1 and next(reads) >= 3:
            raise OSError("the disk is gone")
        return fetch(indices)

    with pytest.raises(WorkerError, match="worker 1 failed in its step 3: OSError") as caught:
        Run(loss_of, data=Indexed(gone, SAMPLES, BATCH), epochs=10**4)
    assert (
        f"worker 1 has failed {supervisor.TRIES} times without finishing a step" in caught.value.__notes__[0]
    )


@pytest.mark.parametrize("method", ["hogwild", "synchronous"])
def test_a_stream_that_breaks_ends_the_run_with_its_error(method: str) -> None:
    class Broken(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            inputs, targets = blobs()
            for number in range(SAMPLES):
                if number == 17 * BATCH:
                    raise OSError("the line is dead")
                yield inputs[number], targets[number]

    with pytest.raises(WorkerError, match="OSError: the line is dead") as caught:
        Run(loss_of, method, data=DataLoader(Broken(), BATCH))
    assert "cannot be read on behind an error" in caught.value.__notes__[0]
    assert threading.active_count() == 1


# --- rules that raise ---


def raising_rule(*times: int) -> Rule:
    """Raises an error at these calls, from 0."""
    calls = itertools.count()

    def apply(update: Update, state: State, context: RuleContext) -> Update:
        if next(calls) in times:
            raise ArithmeticError("of a rule")
        return update

    return Rule("piece", stateless, apply, "raising()")


@pytest.mark.parametrize(
    ("make", "dropped", "shards"),
    [
        (freewheel.hogwild, 1, 1),
        (freewheel.synchronous, 2, 1),
        (freewheel.stale_synchronous, 1, 1),
        (freewheel.stale_synchronous, 1, 3),
    ],
)
def test_an_update_that_a_rule_raises_about_is_booked_as_dropped(
    make: Callable[..., Method], dropped: int, shards: int
) -> None:
    bound = {"bound": 2} if make is freewheel.stale_synchronous else {}
    run = Run(loss_of, make(rule=chain(raising_rule(7), sgd(0.05)), **bound), shards=shards)
    assert run.result.restarts == 1
    assert run.result.ledger["dropped"] == {"error": dropped}
    assert run.result.ledger["pending"] == 0
    assert adds_up(run.result.ledger)
    assert set(run.leases) == set(range(PLANNED))
    assert threading.active_count() == 1


def test_a_rule_that_raises_about_one_layer_leaves_nothing_pending() -> None:
    method = freewheel.hogwild(rule=chain(raising_rule(7), sgd(0.05)), granularity="layer")
    run = Run(loss_of, method)
    run.check_complete()
    assert run.result.ledger["pending"] == 0


def test_a_rule_that_raises_behind_an_aggregate_leaves_nothing_pending() -> None:
    method = freewheel.hogwild(rule=chain(average(2), raising_rule(3), sgd(0.05)))
    run = Run(loss_of, method)
    assert run.result.restarts == 1
    assert adds_up(run.result.ledger)
    assert run.result.ledger["dropped"] == {"error": 1}
    assert run.result.ledger["pending"] <= 1  # the last one, if their number is odd


def test_a_rule_that_always_raises_ends_the_run() -> None:
    method = freewheel.synchronous(rule=chain(raising_rule(*range(1000)), sgd(0.05)))
    with pytest.raises(WorkerError, match="ArithmeticError: of a rule"):
        Run(loss_of, method)
    assert threading.active_count() == 1


# --- the end of patience ---


def always(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    if worker_here() == 1:
        raise ZeroDivisionError("always")
    time.sleep(0.001)  # the other goes on meanwhile
    return loss_of(module, batch)


@pytest.mark.parametrize("method", ["hogwild", "synchronous"])
def test_an_error_that_every_attempt_repeats_ends_the_run(method: str) -> None:
    with pytest.raises(WorkerError, match=r"worker 1 failed in its step 0: .*always") as caught:
        Run(always, method, epochs=10**4)
    [note] = caught.value.__notes__
    assert f"worker 1 has failed {supervisor.TRIES} times without finishing a step" in note
    assert threading.active_count() == 1


def test_a_batch_that_no_worker_bears_ends_the_run() -> None:
    inputs, targets = blobs()
    inputs[17] = 1234.0

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if worker_here() is not None and (batch[0] == 1234.0).any():
            raise ValueError("1234")
        return loss_of(module, batch)

    with pytest.raises(WorkerError, match="1234") as caught:
        Run(step, data=(inputs, targets), workers=1)
    [note] = caught.value.__notes__
    assert f"{supervisor.TRIES} times" in note


def test_the_budget_of_restarts_ends_the_run() -> None:
    with pytest.raises(WorkerError, match="of my own") as caught:
        Run(Failing(raises, worker=0, times=99), max_restarts=2, epochs=100, workers=1)
    [note] = caught.value.__notes__
    assert "all 2 restarts of `max_restarts` are used up" in note


def test_on_error_stop_replaces_nobody() -> None:
    with pytest.raises(WorkerError, match="of my own") as caught:
        Run(Failing(raises), on_error="stop")
    assert not hasattr(caught.value, "__notes__")
    assert threading.active_count() == 1


@pytest.mark.parametrize(
    "error", [SystemExit(3), KeyboardInterrupt(), ConfigurationError("`x` is 3"), DataError("torn")]
)
def test_what_is_no_accident_of_a_step_ends_the_run_at_once(error: BaseException) -> None:
    def how() -> None:
        raise error

    with pytest.raises((WorkerError, ConfigurationError, DataError)) as caught:
        Run(Failing(how))
    assert caught.value is error or caught.value.__cause__ is error
    assert threading.active_count() == 1


def test_divergence_ends_the_run() -> None:
    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss_of(module, batch) * (torch.nan if worker_here() is not None else 1.0)

    with pytest.raises(TrainingError, match="diverged"):
        Run(step, epochs=100)


def test_bad_losses_of_an_earlier_life_do_not_count() -> None:
    """Twenty in a row of one worker end a run."""
    calls = itertools.count()

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        number = next(calls) if worker_here() is not None else PLANNED
        if number == 15:
            raises()
        return loss_of(module, batch) * (torch.nan if number < 30 else 1.0)

    run = Run(step, workers=1)
    run.check_complete()
    assert run.result.ledger["dropped"] == {"non-finite loss": 29}


def test_a_task_that_cannot_begin_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from freewheel.tasks import Supervised

    def init(task: Supervised, context: Any) -> None:
        raise OSError("no beginning")

    monkeypatch.setattr(Supervised, "init", init)
    with pytest.raises(WorkerError, match="no beginning") as caught:
        Run(loss_of)
    assert not hasattr(caught.value, "__notes__")


@pytest.mark.parametrize("method", ["hogwild", "downpour"])
def test_a_run_whose_time_is_up_needs_no_replacement(method: str) -> None:
    """A worker fails in the step that the end of the run waits for."""
    is_up = threading.Event()

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if worker_here() == 1 and time.perf_counter() > began + 0.3:
            assert is_up.wait(PATIENCE_S)
            raise ZeroDivisionError("too late")
        return loss_of(module, batch)

    def look(event: Event) -> None:
        if isinstance(event, Tick) and event.seconds > 0.6:
            is_up.set()

    began = time.perf_counter()
    run = Run(step, method, epochs=None, max_seconds=0.5, monitors=[look])
    assert run.result.reason == "max_seconds"
    [failed] = run.of(WorkerFailed)
    assert (failed.worker, failed.replaced, run.result.restarts) == (1, False, 0)
    assert adds_up(run.result.ledger)
    assert threading.active_count() == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"engine": "serial"}, "`on_error`='restart' replaces workers, which `engine` 'serial' cannot"),
        ({"engine": "simulated"}, "`on_error`='restart' replaces workers, which `engine` 'simulated' cannot"),
        ({"record": True, "method": ALL["downpour"]}, "`record`=True .* cannot note that a worker was repl"),
    ],
)
def test_where_nobody_can_be_replaced_it_is_refused(
    arguments: dict[str, Any], message: str, tmp_path: Path
) -> None:
    model = network(dropout=0.0)
    settings = {"run_dir": tmp_path / "run", "workers": 2, "on_error": "restart", **arguments}
    with pytest.raises(ConfigurationError, match=message):
        freewheel.fit(model, blobs(), loss=nn.CrossEntropyLoss(), **settings)
    assert not (tmp_path / "run").exists()


def test_a_recorded_run_ends_with_the_first_error(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="of my own") as caught:
        Run(Failing(raises), "downpour", record=True, run_dir=tmp_path, model=network(dropout=0.0))
    assert not hasattr(caught.value, "__notes__")


# --- hanging ---


class Hanging(Failing):
    """A step in which one worker hangs, until it is let go."""

    def __init__(self, at: int = 3) -> None:
        self.freed = threading.Event()
        super().__init__(self.hang, at)

    def hang(self) -> None:
        self.freed.wait(PATIENCE_S)

    def let_go(self) -> None:
        """The thread goes on, and must end."""
        self.freed.set()
        for thread in threading.enumerate():
            if thread.name == f"freewheel-{self.worker}":
                thread.join(PATIENCE_S)
                assert not thread.is_alive()


@pytest.mark.parametrize(
    "method", ["hogwild", "synchronous", "stale_synchronous", "hogwild-layer", "downpour"]
)
def test_a_thread_that_hangs_ends_the_run_and_its_push_is_refused(method: str) -> None:
    hanging, module, events = Hanging(), network(norm=False), list[Event]()
    weights: list[Tensor] = []

    def listen(event: Event) -> None:
        events.append(event)
        if isinstance(event, WorkerFailed):  # its push would still reach the weights
            weights.append(state(module))
            hanging.let_go()
            weights.append(state(module))

    with pytest.raises(
        WorkerError, match=r"worker 1 failed in its step 3: TimeoutError: it has not"
    ) as caught:
        Run(hanging, method, model=module, step_timeout=1.0, monitors=[listen])
    assert "use engine='processes'" in str(caught.value)
    [note] = caught.value.__notes__
    assert "in hang\n    self.freed.wait(PATIENCE_S)" in note
    assert [event.replaced for event in events if isinstance(event, WorkerFailed)] == [False]
    assert torch.equal(*weights)
    assert threading.active_count() == 1


@pytest.mark.parametrize("method", ["hogwild", "synchronous"])
def test_a_thread_that_goes_on_after_the_run_leaves_the_model_alone(method: str) -> None:
    hanging, module = Hanging(), network()
    with pytest.raises(WorkerError, match="it has not finished its step for"):
        Run(hanging, method, model=module, step_timeout=1.0)
    weights = state(module)
    hanging.let_go()
    assert torch.equal(state(module), weights)


@pytest.mark.parametrize("method", ["hogwild", "stale_synchronous"])
def test_a_thread_that_hangs_at_the_end_does_not_spoil_it(method: str) -> None:
    hanging = Hanging()
    run = Run(hanging, method, epochs=None, max_seconds=0.3, step_timeout=1.0)
    [failed] = run.of(WorkerFailed)
    assert (run.result.reason, failed.worker, failed.replaced) == ("max_seconds", 1, False)
    assert adds_up(run.result.ledger)
    hanging.let_go()


def test_what_becomes_of_a_thread_that_was_left_behind_does_not_matter() -> None:
    """It goes on, and its push is refused, while the run still waits for the step of another."""
    freed, left = threading.Event(), threading.Event()

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if worker_here() == 1:
            freed.wait(PATIENCE_S)
        elif worker_here() == 0 and time.perf_counter() > began + 1.2:
            assert left.wait(PATIENCE_S)
        return loss_of(module, batch)

    def look(event: Event) -> None:
        if isinstance(event, WorkerFailed):
            [hung] = [thread for thread in threading.enumerate() if thread.name == "freewheel-1"]
            freed.set()
            hung.join(PATIENCE_S)
            left.set()

    began = time.perf_counter()
    run = Run(step, epochs=None, max_seconds=1.5, step_timeout=2.0, monitors=[look])
    assert run.result.reason == "max_seconds"
    assert len(run.of(WorkerFailed)) == 1
    assert adds_up(run.result.ledger)
    assert threading.active_count() == 1


def test_ctrl_c_returns_what_was_trained_though_a_thread_hangs() -> None:
    hanging = Hanging()

    def how() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        hanging.hang()

    hanging.how = how
    run = Run(hanging, "hogwild", epochs=10**4, step_timeout=1.0)
    assert (run.result.reason, run.result.samples > 0) == ("interrupted", True)
    assert run.of(WorkerFailed)[0].worker == 1
    hanging.let_go()


def test_two_threads_that_hang_are_both_left_behind() -> None:
    freed = threading.Event()

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if worker_here() is not None:
            freed.wait(PATIENCE_S)
        return loss_of(module, batch)

    with pytest.raises(WorkerError, match="TimeoutError"):
        Run(step, step_timeout=1.0)
    left = [thread for thread in threading.enumerate() if thread.name.startswith("freewheel-")]
    assert len(left) == 2
    freed.set()
    for thread in left:
        thread.join(PATIENCE_S)
    assert threading.active_count() == 1


@pytest.mark.parametrize("method", ["synchronous", "stale_synchronous"])
def test_waiting_for_others_is_no_hanging(method: str) -> None:
    """One worker takes twice nearly as long as a step may, and the other waits for both."""
    calls = itertools.count()

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        number = next(calls) if worker_here() == 1 else -1
        if number in (4, 5):
            time.sleep(1.3)
        if number == 4:
            raises()
        return loss_of(module, batch)

    Run(step, method, step_timeout=2.0).check_complete()


def test_waiting_for_a_stream_is_no_hanging() -> None:
    class Slow(torch.utils.data.IterableDataset[tuple[Tensor, Tensor]]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            for number, pair in enumerate(zip(*blobs(), strict=True)):
                if number == 5 * BATCH:
                    time.sleep(1.3)
                yield pair

    Run(loss_of, data=DataLoader(Slow(), BATCH), step_timeout=1.0).check_complete(restarts=0)


def test_nothing_hangs_unless_it_is_said_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LEAST_TIMEOUT_S", 0.1)
    slow = Failing(lambda: time.sleep(0.5), at=2)
    Run(slow).check_complete(restarts=0)
    Run(Failing(lambda: time.sleep(0.5), at=2), step_timeout=math.inf).check_complete(restarts=0)


# --- checkpoints ---

CUT = [
    "hogwild",
    "hogwild-layer",
    "synchronous",
    "stale_synchronous",
    "stale_synchronous-in_flight",
    "downpour",
]


def cut_run(loss: Callable[[Tensor, Tensor], Tensor], method: str, *failing: Failing, **settings: Any) -> Run:
    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        for one in failing:
            one(module, batch)
        return loss(module(batch[0]), batch[1])

    return Run(step, method, model=network(norm=False, dropout=0.0), **settings)


@pytest.mark.parametrize("method", [*CUT, "local_sgd", "elastic_averaging"])
def test_a_run_goes_on_from_a_checkpoint_with_a_worker_that_was_replaced(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut, failing = CutInStep(), [Failing(raises, 4), Failing(raises, 6, worker=0)]
    with monkeypatch.context() as patch:
        cut.patch(patch, 41)
        cut_run(cut.loss, method, *failing, run_dir=tmp_path).check_complete(restarts=2)
    [first, *_] = sorted(checkpoints(tmp_path))
    resumed = cut_run(CutInStep().loss, method, resume=checkpoints(tmp_path)[first])
    assert resumed.leases.total() == PLANNED - first
    assert set(resumed.leases.values()) == {1}
    assert resumed.result.steps == PLANNED
    assert resumed.result.restarts == 2  # the events go on
    assert resumed.result.ledger["duplicates"] == 0
    assert adds_up(resumed.result.ledger)
    if method == "synchronous":
        assert torch.equal(state(resumed.module), state(cut_run(CutInStep().loss, method).module))


@pytest.mark.parametrize("method", CUT)
def test_a_worker_that_fails_while_a_checkpoint_is_taken_is_replaced_first(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = CutInStep()
    once = threading.Event()

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        found = cut.loss(prediction, target)
        if cut.asked.is_set() and not once.is_set() and worker_here() is not None:
            once.set()
            raise ArithmeticError("out of numbers")
        return found

    with monkeypatch.context() as patch:
        cut.patch(patch, 21)
        cut_run(loss, method, run_dir=tmp_path).check_complete()
    [first, *_] = sorted(checkpoints(tmp_path))
    resumed = cut_run(CutInStep().loss, method, resume=checkpoints(tmp_path)[first])
    assert resumed.leases.total() == PLANNED - first
    assert set(resumed.leases.values()) == {1}
    assert resumed.result.ledger["duplicates"] == 0
    assert adds_up(resumed.result.ledger)


def test_an_error_that_ends_the_run_while_a_checkpoint_is_taken_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = CutInStep()
    cut.patch(monkeypatch, 21)

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        found = cut.loss(prediction, target)
        if cut.asked.is_set():
            raise ArithmeticError("out of numbers")
        return found

    with pytest.raises(WorkerError, match="out of numbers"):
        cut_run(loss, "synchronous", run_dir=tmp_path, on_error="stop")
    assert threading.active_count() == 1


# --- the interpreter's lock ---


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous", "downpour"])
def test_a_storm_of_exceptions_does_not_stop_progress(method: str) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)  # every order of things comes about
    try:
        with inject(testing.storm(every_s=0.1, kinds=("fail",), seed=1)) as injected:
            run = Run(loss_of, method, workers=4, epochs=None, max_seconds=2.0, max_restarts=1000)
    finally:
        sys.setswitchinterval(before)
    assert len(injected.fired) >= 3
    assert run.result.restarts >= 3
    assert run.result.reason == "max_seconds"
    assert adds_up(run.result.ledger)
    assert run.result.ledger["duplicates"] == 0
    assert threading.active_count() == 1
