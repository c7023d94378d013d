"""Workers in processes that fail are replaced, and the run goes on as if little had happened."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from laws import ALL, BACKUP, SAMPLES, Heard, blobs, network
from torch import Tensor, nn
from torch.utils.data import DataLoader

import freewheel
from freewheel.engines import supervisor
from freewheel.engines.processes import nursery, stragglers
from freewheel.errors import ConfigurationError, WorkerError
from freewheel.events import Event, Steps, Tick, WorkerFailed, WorkerRestarted, WorkerSlowed
from freewheel.methods import Method
from freewheel.testing import inject, kill, slow

BATCH, EPOCHS = 8, 2
PATIENCE_S = 60.0  # against hanging only


def raises() -> None:
    raise ZeroDivisionError("of my own")


DEATHS: dict[str, Callable[[], object]] = {
    "killed": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "segmentation fault": lambda: os.kill(os.getpid(), signal.SIGSEGV),
    "exit": lambda: os._exit(3),
    "exception": raises,
    "exit that can be caught": lambda: sys.exit(4),
}


def name() -> str:
    """The name of the worker's process; of the main process, which makes checks, another."""
    return multiprocessing.current_process().name


def first_time(path: Path) -> bool:
    """Whether nobody has been here before, in whatever process."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


Step = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


def failing(folder: Path, how: Callable[[], object], at: int = 3, worker: int = 1, times: int = 1) -> Step:
    """A step that fails so many times in one worker, each time in the step with this number of a life."""
    steps = iter(range(10**6))

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        it_is_time = name() == f"freewheel-{worker}" and next(steps) == at
        if it_is_time and any(first_time(folder / f"{worker}-{number}") for number in range(times)):
            how()
        return loss_of(module, batch)

    return step


class Run(Heard):
    """A run and what was heard of it."""

    def __init__(self, step: Step | None, method: Method | str = "hogwild", **arguments: Any) -> None:
        super().__init__()
        settings = {"workers": 2, "batch_size": BATCH, "epochs": EPOCHS, **arguments}
        data = settings.pop("data", blobs())
        others = [settings.pop("monitor")] if "monitor" in settings else []
        if step is None:
            settings["loss"] = nn.CrossEntropyLoss()
        else:
            settings["step"] = step
        self.result = freewheel.fit(
            settings.pop("model", network()),
            data,
            method=ALL.get(method, method) if isinstance(method, str) else method,
            engine="processes",
            monitors=[self.events.append, *others],
            **settings,
        )

    def check_complete(self, restarts: int = 1) -> None:
        """Every batch was used, the book adds up, and the failures were told of."""
        planned = EPOCHS * SAMPLES // BATCH
        assert set(self.leases) == set(range(planned))
        assert self.result.samples >= EPOCHS * SAMPLES
        ledger = self.result.ledger
        dropped = sum(ledger["dropped"].values())
        assert ledger["pushed"] == ledger["applied"] + ledger["absorbed"] + ledger["pending"] + dropped
        assert len(self.of(WorkerFailed)) == len(self.of(WorkerRestarted)) == restarts
        assert all(event.replaced for event in self.of(WorkerFailed))
        assert self.result.reason == "epochs"
        steps = [
            (w, s) for event in self.of(Steps) for w, s in zip(event.worker, event.sequence, strict=True)
        ]
        assert len(steps) == len(set(steps))


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous", "hogwild-average"])
@pytest.mark.parametrize("death", DEATHS)
def test_a_worker_that_dies_is_replaced(death: str, method: str, tmp_path: Path) -> None:
    run = Run(failing(tmp_path, DEATHS[death]), method)
    run.check_complete()
    [failed] = run.of(WorkerFailed)
    assert (failed.worker, failed.sequence) == (1, 3)
    [restarted] = run.of(WorkerRestarted)
    assert (restarted.worker, restarted.incarnation) == (1, 1)
    workers = {worker for event in run.of(Steps) for worker in event.worker}
    assert workers == {0, 1}


@pytest.mark.parametrize("method", [name for name in ALL if name not in BACKUP])
def test_every_method_bears_a_death(method: str, tmp_path: Path) -> None:
    Run(failing(tmp_path, DEATHS["killed"]), method).check_complete()


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous", "downpour", "local_sgd"])
@pytest.mark.parametrize("at", [0, 12])
def test_a_death_in_the_first_step_and_later(at: int, method: str, tmp_path: Path) -> None:
    Run(failing(tmp_path, DEATHS["killed"], at=at), method).check_complete()


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous", "synchronous-backup"])
def test_both_workers_may_die(method: str, tmp_path: Path) -> None:
    first, second = (failing(tmp_path, DEATHS["killed"], worker=worker) for worker in (0, 1))

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        first(module, batch)
        return second(module, batch)

    Run(step, method).check_complete(restarts=2)


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous"])
def test_a_single_worker_may_die_repeatedly(method: str, tmp_path: Path) -> None:
    run = Run(failing(tmp_path, DEATHS["killed"], worker=0, times=4), method, workers=1)
    run.check_complete(restarts=4)
    assert [event.incarnation for event in run.of(WorkerRestarted)] == [1, 2, 3, 4]


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous"])
def test_batches_of_a_stream_are_sent_again(method: str, tmp_path: Path) -> None:
    pairs: Any = list(zip(*blobs(), strict=True))
    loader: DataLoader[Any] = DataLoader(pairs, BATCH, num_workers=0, sampler=range(SAMPLES))
    Run(failing(tmp_path, DEATHS["killed"]), method, data=loader).check_complete()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(5, 4), nn.GRU(4, 8, batch_first=True), nn.Linear(8, 5)

    def forward(self, tokens: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
        states, hidden = self.cell(self.embed(tokens), hidden)
        return self.head(states), hidden


@pytest.mark.parametrize("method", ["hogwild", "synchronous"])
def test_a_recurrent_model_goes_on_with_the_state_of_its_stream(method: str, tmp_path: Path) -> None:
    steps = iter(range(10**6))

    def loss(prediction: Tensor, target: Tensor) -> Tensor:
        if name() == "freewheel-1" and next(steps) == 3 and first_time(tmp_path / "dead"):
            os.kill(os.getpid(), signal.SIGKILL)
        return nn.functional.cross_entropy(prediction, target)

    tokens = torch.randint(5, (2001,), generator=torch.Generator().manual_seed(0))
    events: list[Event] = []
    result = freewheel.fit(
        Recurrent(),
        tokens,
        loss=loss,
        bptt=10,
        batch_size=5,
        method=ALL[method],
        engine="processes",
        workers=2,
        epochs=2,
        monitors=[events.append],
    )
    numbers = [number for event in events if isinstance(event, Steps) for number in event.lease]
    assert sorted(numbers) == list(range(len(numbers)))
    assert result.reason == "epochs"
    assert sum(isinstance(event, WorkerRestarted) for event in events) == 1


# --- hanging ---


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous"])
def test_a_worker_that_hangs_is_killed_and_replaced(method: str, tmp_path: Path) -> None:
    run = Run(failing(tmp_path, lambda: time.sleep(PATIENCE_S)), method, step_timeout=1.5)
    run.check_complete()
    [failed] = run.of(WorkerFailed)
    assert "TimeoutError: it had not finished its step for 1." in failed.error
    assert run.result.wall_seconds < PATIENCE_S


def test_a_worker_that_is_stopped_by_a_signal_is_replaced(tmp_path: Path) -> None:
    stops = failing(tmp_path, lambda: os.kill(os.getpid(), signal.SIGSTOP))
    Run(stops, step_timeout=1.5).check_complete()


def test_waiting_for_others_is_no_hanging(tmp_path: Path) -> None:
    slow = failing(tmp_path, lambda: time.sleep(1.2), at=2)
    run = Run(slow, "synchronous", step_timeout=4.0)
    run.check_complete(restarts=0)


@pytest.mark.parametrize("method", ["synchronous", "stale_synchronous"])
def test_time_in_which_the_main_process_was_away_does_not_count(method: str) -> None:
    """Workers have waited for its answer meanwhile."""

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        time.sleep(0.02)
        return loss_of(module, batch)

    class Slow:
        slept = False

        def __call__(self, event: Event) -> None:
            if isinstance(event, Steps) and not self.slept:
                self.slept = True
                time.sleep(2.5)

    slow = Slow()
    run = Run(step, method, step_timeout=1.2, monitor=slow)
    assert slow.slept
    run.check_complete(restarts=0)


def test_the_watch_counts_only_time_in_which_it_looked(monkeypatch: pytest.MonkeyPatch) -> None:
    from freewheel.engines.processes.board import Board
    from freewheel.engines.processes.shared import Arena

    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    arena = Arena()
    try:
        watch = supervisor.Watch(Board.within(arena, 1, 1), 1, 1.0)
        for now in (100.0, 100.1, 170.0, 170.1, 170.2):  # noqa: B007  (read by the clock above)
            watch.begin()
            assert watch.look(0) is None
        for now in (170.4, 170.6, 170.8, 171.0):  # noqa: B007
            watch.begin()
        assert watch.look(0) == pytest.approx(1.2, abs=0.2)
    finally:
        arena.close()


def test_a_worker_that_hangs_while_it_settles_is_replaced(tmp_path: Path) -> None:
    from freewheel.engines.processes import worker as module

    before = module._Worker._flush

    def flush(self: Any, final: bool) -> None:
        if self.number == 1 and first_time(tmp_path / "hung"):
            time.sleep(PATIENCE_S)
        before(self, final)

    def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if name().startswith("freewheel-"):
            module._Worker._flush = flush  # type: ignore[method-assign]
        return loss_of(model, batch)

    run = Run(step, "local_sgd", step_timeout=1.5)
    assert run.result.wall_seconds < PATIENCE_S
    [failed] = run.of(WorkerFailed)
    assert failed.worker == 1
    assert "TimeoutError" in failed.error


def test_how_long_a_step_may_take_follows_the_longest_so_far() -> None:
    from freewheel.engines.processes.board import Board
    from freewheel.engines.processes.shared import Arena

    arena = Arena()
    try:
        watch = supervisor.Watch(Board.within(arena, 1, 1), 1, None)
        assert watch.limit_s == 300.0
        watch._longest = 0.1
        assert watch.limit_s == 60.0
        watch._longest = 10.0
        assert watch.limit_s == 200.0
    finally:
        arena.close()


class WakesLate(nn.Linear):
    """A model that never wakes up in a worker process."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's is untyped
        if name().startswith("freewheel-"):
            time.sleep(10_000)


def test_a_worker_that_hangs_while_it_starts_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "LEAST_START_S", 0.5)
    with pytest.raises(WorkerError, match=r"was not ready for its first step after 0\.\d+ s"):
        Run(None, model=WakesLate(10, 3), step_timeout=0.2)


def test_the_server_that_processes_are_forked_from_may_end(tmp_path: Path) -> None:
    """Its end looks like that of all workers at once, who live on: they must not, beside their successors."""
    killed: list[int] = []

    def kill(event: Event) -> None:
        if isinstance(event, Steps) and not killed:
            killed.append(nursery._server(os.getpid())._forkserver_pid)  # type: ignore[attr-defined]  # the standard library's
            workers.extend(psutil.Process(killed[0]).children())
            os.kill(killed[0], signal.SIGKILL)

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        time.sleep(0.005)
        return loss_of(module, batch)

    workers: list[psutil.Process] = []
    run = Run(step, monitor=kill, epochs=EPOCHS * 4)
    assert len(workers) == 2
    assert run.result.restarts == 2
    assert set(run.leases) == set(range(EPOCHS * 4 * SAMPLES // BATCH))
    assert not psutil.wait_procs(workers, timeout=PATIENCE_S)[1]


@pytest.mark.parametrize("method", ["stale_synchronous", "hogwild-average", "synchronous-backup"])
def test_a_step_that_was_pushed_is_not_computed_again(method: str) -> None:
    with inject(kill(worker=1, step=5, during="acknowledge")) as injected:
        run = Run(None, method)
    assert injected.all_fired
    run.check_complete()
    assert set(run.leases.values()) == {1}
    assert run.result.ledger["pushed"] == run.result.steps


def test_processor_time_never_runs_backwards(tmp_path: Path) -> None:
    run = Run(failing(tmp_path, DEATHS["killed"], at=20, times=3), epochs=EPOCHS * 4)
    spent = [event.cpu_seconds for event in run.of(Tick)]
    assert len(spent) > 1
    assert spent == sorted(spent)


# --- workers that slow down ---


@pytest.mark.parametrize("method", ["hogwild", "stale_synchronous"])
def test_a_worker_that_slows_down_is_told_of(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stragglers, "WINDOW_S", 0.1)

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        time.sleep(0.002)
        return loss_of(module, batch)

    with inject(slow(worker=1, step=5, seconds=0.03)) as injected:
        run = Run(step, method, epochs=None, max_seconds=2.0)
    assert injected.all_fired
    told = run.of(WorkerSlowed)[0]
    assert (told.worker, told.slow) == (1, True)
    assert told.times > 3
    assert not run.of(WorkerFailed)


def test_slow_workers_are_compared_with_the_others_and_may_keep_up_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from freewheel.engines.processes.board import Board
    from freewheel.engines.processes.shared import Arena

    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    arena = Arena()
    try:
        board = Board.within(arena, 3, 1)
        found = stragglers.Stragglers(board, 3)
        told = []
        for second in range(20):
            now += 1.0
            for worker in range(3):
                board.steps[worker] += 10
                board.busy_ns[worker] += 10 * (4_000 if worker == 2 and 5 <= second < 12 else 1_000)
            told += found.look(float(second))
        assert told == [WorkerSlowed(2, 4.0, True, 7.0), WorkerSlowed(2, 1.0, False, 14.0)]
        now += 1.0
        assert found.look(20.0) == []  # nobody has finished a step
    finally:
        arena.close()


# --- the end of patience ---


def test_an_error_that_every_attempt_repeats_ends_the_run() -> None:
    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if name() == "freewheel-1":
            raise ZeroDivisionError("always")
        time.sleep(0.01)
        return loss_of(module, batch)

    with pytest.raises(WorkerError, match=r"worker 1 failed in its step 0: .*always") as caught:
        Run(step, epochs=10**4)
    [note] = caught.value.__notes__
    assert "worker 1 has failed 5 times without finishing a step" in note


def test_a_batch_that_no_worker_bears_ends_the_run() -> None:
    inputs, targets = blobs()
    inputs[17] = 1234.0

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if name().startswith("freewheel-") and (batch[0] == 1234.0).any():
            os.kill(os.getpid(), signal.SIGKILL)
        return loss_of(module, batch)

    with pytest.raises(WorkerError, match="SIGKILL") as caught:
        Run(step, data=(inputs, targets), workers=1)
    [note] = caught.value.__notes__
    assert "5 times" in note


def test_the_budget_of_restarts_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="SIGKILL") as caught:
        Run(failing(tmp_path, DEATHS["killed"], times=99), max_restarts=2, epochs=100)
    [note] = caught.value.__notes__
    assert "all 2 restarts of `max_restarts` are used up" in note


def test_on_error_stop_replaces_nobody(tmp_path: Path) -> None:
    with pytest.raises(WorkerError, match="SIGKILL"):
        Run(failing(tmp_path, DEATHS["killed"]), on_error="stop")


def test_a_run_whose_time_is_up_needs_no_replacement(tmp_path: Path) -> None:
    run = Run(failing(tmp_path, DEATHS["killed"], at=50), max_seconds=1.0, epochs=None)
    assert run.result.reason == "max_seconds"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"on_error": "ignore"}, "`on_error` must be 'restart' or 'stop', got 'ignore'"),
        (
            {"on_error": "restart", "engine": "serial"},
            "`on_error`='restart' replaces workers, which `engine`",
        ),
        ({"max_restarts": -1}, "`max_restarts` must be a whole number >= 0, got -1"),
        ({"step_timeout": 0}, "`step_timeout` must be a number of seconds > 0, got 0"),
    ],
)
def test_nonsense_is_refused(arguments: dict[str, Any], message: str) -> None:
    settings = {"engine": "processes", "workers": 2, **arguments}
    with pytest.raises(ConfigurationError, match=message):
        freewheel.fit(network(), blobs(), loss=nn.CrossEntropyLoss(), **settings)


# --- the result ---


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous"])
def test_the_optimum_is_reached_in_spite_of_deaths(method: str, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(SAMPLES, 4, generator=generator)
    wanted = torch.tensor([[1.0, -2.0, 0.5, 3.0]])
    step = failing(tmp_path, DEATHS["killed"], at=20, times=3)

    def squares(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if name().startswith("freewheel-"):
            step(nn.Linear(4, 3), (batch[0], torch.zeros(len(batch[0]), dtype=torch.long)))
        return nn.functional.mse_loss(module(batch[0]), batch[1])

    maker = {"hogwild": freewheel.hogwild, "synchronous": freewheel.synchronous}.get(
        method, freewheel.stale_synchronous
    )
    run = Run(
        squares,
        maker(lr=0.05, momentum=0.0),
        model=nn.Linear(4, 1),
        data=(inputs, inputs @ wanted.T),
        epochs=20,
    )
    weight = run.result.module.weight
    assert isinstance(weight, Tensor)
    assert torch.allclose(weight.detach(), wanted, atol=1e-3)
    assert len(run.of(WorkerRestarted)) == 3
