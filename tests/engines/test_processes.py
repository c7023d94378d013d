"""Workers in processes: what they are given, how they die, and that nothing is left of them."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from laws import ALL, blobs, leases_of, network, state
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import freewheel
from freewheel.engines.processes import crew, nursery
from freewheel.engines.processes.lease_queue import LeaseQueue
from freewheel.events import Event, Steps
from freewheel.rules import chain, finite, quarantine, sgd

PATIENCE_S = 60.0  # against hanging only


def in_worker() -> bool:
    """False in the check of the first step, which the main process makes."""
    return multiprocessing.parent_process() is not None


def loss_of(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(module(batch[0]), batch[1])


def fit(data: Any = None, **arguments: Any) -> freewheel.Result:
    settings = {"engine": "processes", "workers": 2, "batch_size": 16, "epochs": 2, **arguments}
    if "step" not in settings:
        settings.setdefault("loss", nn.CrossEntropyLoss())
    return freewheel.fit(settings.pop("model", network()), blobs() if data is None else data, **settings)


def workers_alive() -> list[psutil.Process]:
    """Children of the fork server: worker processes."""
    found = []
    for child in psutil.Process().children(recursive=True):
        try:
            parent = child.parent()
            if parent is not None and parent.pid != os.getpid():
                found.append(child)
        except psutil.Error:
            continue
    return found


# --- death ---


def dies(how: Callable[[], object]) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    """A step that does this in the fourth step of worker 1."""
    steps = iter(range(10**6))

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if in_worker() and multiprocessing.current_process().name == "freewheel-1" and next(steps) == 3:
            how()
        return loss_of(module, batch)

    return step


def raises() -> None:
    raise ZeroDivisionError("of my own")


DEATHS: dict[str, tuple[Callable[[], object], str]] = {
    "killed": (
        lambda: os.kill(os.getpid(), signal.SIGKILL),
        r"was ended by SIGKILL; the system may have run",
    ),
    "segmentation fault": (lambda: os.kill(os.getpid(), signal.SIGSEGV), r"was ended by SIGSEGV"),
    "exit": (lambda: os._exit(3), r"ended with exit code 3"),
    "exception": (raises, r"ZeroDivisionError: of my own"),
    "exit that can be caught": (lambda: sys.exit(4), r"SystemExit: 4"),
}


@pytest.mark.parametrize("method", ["hogwild", "synchronous", "stale_synchronous", "hogwild-average"])
@pytest.mark.parametrize("death", DEATHS)
def test_the_death_of_a_worker_ends_the_run_and_says_how_it_died(death: str, method: str) -> None:
    how, message = DEATHS[death]
    module, events = network(), list[str]()
    with pytest.raises(freewheel.WorkerError, match=rf"worker 1 failed in its step 3: .*{message}") as caught:
        fit(
            model=module,
            step=dies(how),
            method=ALL[method],
            epochs=10**6,
            on_error="stop",
            monitors=[lambda event: events.append(type(event).__name__)],
        )
    assert (caught.value.worker, caught.value.sequence) == (1, 3)
    assert [event for event in events if event != "Steps"][-2:] == ["WorkerFailed", "RunFinished"]
    assert not workers_alive()
    assert all(p.untyped_storage().nbytes() == 4 * p.numel() for p in module.parameters())
    assert threading.active_count() == 1


def test_a_worker_that_hangs_while_another_fails_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "PATIENCE_S", 0.2)

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if in_worker():
            if multiprocessing.current_process().name == "freewheel-0":
                time.sleep(PATIENCE_S)
            raise ValueError("boom")
        return loss_of(module, batch)

    with pytest.raises(freewheel.WorkerError, match=r"worker 1 .*boom"):
        fit(step=step, on_error="stop")
    assert not workers_alive()


class UnsendableError(Exception):
    """An error that needs more to be made than it tells a pickle."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


def test_an_error_that_cannot_be_made_again_is_told_of() -> None:
    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if in_worker():
            raise UnsendableError(1, 2)
        return loss_of(module, batch)

    with pytest.raises(freewheel.WorkerError, match="UnsendableError: 1 and 2") as caught:
        fit(step=step)
    assert "raise UnsendableError(1, 2)" in str(caught.value.__cause__.__cause__)  # type: ignore[union-attr]


def test_a_run_that_diverges_says_so() -> None:
    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return loss_of(module, batch) * (float("nan") if in_worker() else 1.0)

    with pytest.raises(freewheel.TrainingError, match="training diverged") as caught:
        fit(step=step, epochs=20)
    assert type(caught.value) is freewheel.TrainingError


def test_an_error_of_a_rule_names_the_worker_that_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody need be killed: it is told to stand still."""
    monkeypatch.setattr(crew, "PATIENCE_S", 1000.0)

    def fails(update: Any, state: Any, context: Any) -> Any:
        raise ArithmeticError("no rule of mine")

    rule = freewheel.rules.sgd(0.1)._replace(apply=fails, exclusive=True)
    with pytest.raises(freewheel.WorkerError, match=r"worker [01] .*no rule of mine"):
        fit(method=freewheel.hogwild(rule=rule))
    assert not workers_alive()


# --- nothing is left ---


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="counts descriptors in /proc")
def test_twenty_runs_leave_no_descriptor_no_process_and_nothing_in_shared_memory() -> None:
    fit(epochs=1)  # starts the fork server
    gc.collect()  # what other tests have left open
    before, names = open_descriptors(), set(os.listdir("/dev/shm"))
    for number in range(20):
        fit(epochs=1, method=ALL["synchronous" if number % 4 == 0 else "hogwild"], workers=1 + number % 2)
    assert open_descriptors() == before
    assert not workers_alive()
    assert set(os.listdir("/dev/shm")) <= names


def script(text: str, path: Path) -> subprocess.Popen[str]:
    """A program of its own, in a session of its own: its processes can be told by their group."""
    path.write_text(text, encoding="utf-8")
    return subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def everybody(group: int) -> list[psutil.Process]:
    """The processes of a session."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (OSError, psutil.Error):
            continue
    return found


LONG = """
import signal
import torch, freewheel
x = torch.randn(256, 8)
signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever this was started with
said = []
def tell(event):
    if type(event).__name__ == "Tick" and sum(event.samples) and not said:
        said.append(event)
        print("training", flush=True)
result = freewheel.fit(torch.nn.Linear(8, 2), (x, (x.sum(1) > 0).long()), loss=torch.nn.CrossEntropyLoss(),
                       engine="processes", workers=2, epochs=None, max_seconds=600, monitors=[tell])
print(result.reason, result.ledger["applied"] == result.steps, flush=True)
"""


BUSY = """
import multiprocessing, time
def step(module, batch):
    if multiprocessing.parent_process() is not None:
        step.done = getattr(step, "done", 0) + 1
        time.sleep(0.06 if step.done < 4 else 600)
    return torch.nn.functional.cross_entropy(module(batch[0]), batch[1])
"""


@pytest.fixture(params=["", BUSY], ids=["steps", "one long step"])
def long_run(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A run of two workers that goes on for ten minutes, with many steps or with one."""
    text = LONG.replace("loss=torch.nn.CrossEntropyLoss()", "step=step") if request.param else LONG
    with script(request.param + text, tmp_path / "long.py") as running:
        assert running.stdout is not None
        first = running.stdout.readline()
        assert first == "training\n", first + running.stdout.read()
        yield running
        for process in everybody(running.pid):
            process.kill()


def test_no_process_outlives_a_main_process_that_is_killed(long_run: subprocess.Popen[str]) -> None:
    assert len(everybody(long_run.pid)) >= 4  # the fork server and two workers, beside the main process
    long_run.kill()
    long_run.wait()
    _, alive = psutil.wait_procs(everybody(long_run.pid), timeout=PATIENCE_S)
    assert not alive


def test_no_worker_waits_for_what_a_main_process_has_forked(tmp_path: Path) -> None:
    """A loader's process, say, holds every descriptor of the main process open."""
    forks = "        if os.fork() == 0:\n            time.sleep(600)\n"
    text = LONG.replace("        print(", f"{forks}        print(")
    with script(f"import os, time\n{text}", tmp_path / "forks.py") as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "training\n"
        workers = [p for p in everybody(running.pid) if p.ppid() not in (running.pid, os.getpid())]
        assert len(workers) == 2
        running.kill()
        running.wait()
        _, alive = psutil.wait_procs(workers, timeout=PATIENCE_S)
        for process in everybody(running.pid):
            process.kill()
        assert not alive


@pytest.mark.parametrize("long_run", [""], indirect=True, ids=["steps"])
def test_ctrl_c_in_a_terminal_reaches_everybody_and_ends_the_run_well(
    long_run: subprocess.Popen[str],
) -> None:
    os.killpg(long_run.pid, signal.SIGINT)
    output, _ = long_run.communicate(timeout=PATIENCE_S)
    assert output.splitlines() == ["interrupted True"]
    assert long_run.returncode == 0
    _, alive = psutil.wait_procs(everybody(long_run.pid), timeout=PATIENCE_S)
    assert not alive


def test_ctrl_c_does_not_end_a_fork_server_that_is_still_importing(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    server: Any = nursery._server.__wrapped__(0)
    monkeypatch.setattr(nursery, "_server", lambda pid: server)
    nursery.prepare()
    try:
        number = server._forkserver_pid
        os.kill(number, signal.SIGINT)
        assert fit(epochs=1).reason == "epochs"
        assert server._forkserver_pid == number
        assert "Traceback" not in capfd.readouterr().err
    finally:
        server._stop()


# --- scripts and notebooks ---


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    text = """
import torch, freewheel
print("begins")
class Mine(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 2)
    def forward(self, value):
        return self.layer(value)
scale = 0.5
x = torch.randn(64, 8)
result = freewheel.fit(Mine(), (x, (x.sum(1) > 0).long()), engine="processes", workers=2,
                       step=lambda module, batch: scale * module(batch[0]).square().mean())
print(result.samples)
"""
    with script(text, tmp_path / "unguarded.py") as running:
        output, _ = running.communicate(timeout=PATIENCE_S)
    assert output.splitlines() == ["begins", "64"]


def test_what_a_notebook_has_no_file_for_works() -> None:
    """Code from standard input has none either."""
    text = LONG.replace("max_seconds=600", "max_samples=512")
    done = subprocess.run(
        [sys.executable, "-"], input=text, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert (done.stdout.splitlines()[-1:], done.stderr) == (["max_samples True"], "")


# --- data ---


class Numbers(IterableDataset[tuple[Tensor, Tensor]]):
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(zip(*blobs(), strict=True))


def columns() -> Any:
    inputs, targets = blobs()
    return [(row, int(target)) for row, target in zip(inputs.numpy(), targets, strict=True)]


def batches() -> Any:
    return [blobs()[0][i : i + 16].clone() for i in range(0, 240, 16)]


DATA: dict[str, Callable[[], Any]] = {
    "tensors": blobs,
    "a list": columns,
    "a loader": lambda: DataLoader(columns(), batch_size=16, shuffle=True),
    "a stream": lambda: DataLoader(Numbers(), batch_size=16),
    "a list of batches": lambda: DataLoader(batches(), batch_size=None),
}


@pytest.mark.parametrize("kind", DATA)
@pytest.mark.parametrize("method", ["hogwild", "synchronous"])
def test_every_kind_of_data_is_used_once(kind: str, method: str) -> None:
    leases: Counter[int] = Counter()

    def step(module: nn.Module, batch: Any) -> Tensor:
        return module(batch[0] if isinstance(batch, list | tuple) else batch).square().mean()  # type: ignore[no-any-return]

    result = fit(DATA[kind](), step=step, method=ALL[method], monitors=[leases_of(leases)])
    assert leases == Counter(range(30))
    assert result.samples == 480


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.embedding, self.cell = nn.Embedding(7, 8), nn.LSTM(8, 8, batch_first=True)
        self.head = nn.Linear(8, 7)

    def forward(self, tokens: Tensor, hidden: Any) -> tuple[Tensor, Any]:
        value, hidden = self.cell(self.embedding(tokens), hidden)
        return self.head(value), hidden


def tokens() -> Tensor:
    return torch.arange(400) ** 2 % 7


@pytest.mark.parametrize(("method", "workers"), [("hogwild", 1), ("synchronous", 1), ("synchronous", 2)])
def test_the_hidden_state_follows_the_stream(method: str, workers: int) -> None:
    arguments = {"method": ALL[method], "workers": workers, "batch_size": 2, "bptt": 8, "epochs": 3}
    serial, ours = Recurrent(), Recurrent()
    fit(tokens(), model=serial, **arguments | {"engine": "serial"})
    fit(tokens(), model=ours, **arguments)
    assert torch.equal(state(ours), state(serial))


def test_asynchronous_streams_are_read_once_an_epoch() -> None:
    leases: Counter[int] = Counter()
    result = fit(
        tokens(), model=Recurrent(), batch_size=2, bptt=8, epochs=3, monitors=[leases_of(leases)], workers=3
    )
    assert set(leases.values()) == {1}
    assert result.samples == 3 * 2 * 6 * (399 // 12)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_state_of_a_rule_may_grow(workers: int) -> None:
    method = freewheel.synchronous(rule=chain(quarantine(finite(), after=2), sgd(0.05, momentum=0.9)))
    model = nn.Linear(10, 3)
    serial, processes = (
        fit(method=method, workers=workers, engine=engine, model=copy.deepcopy(model))
        for engine in ("serial", "processes")
    )
    assert processes.ledger == serial.ledger
    assert torch.equal(state(processes.module), state(serial.module))


def test_a_queue_longer_than_its_pipe_is_used_up() -> None:
    """At most 8192 numbers fit."""
    size = 9_000
    leases: Counter[int] = Counter()
    data = (torch.zeros(size, 1), torch.zeros(size, dtype=torch.int64))
    fit(data, model=nn.Linear(1, 2), batch_size=1, epochs=1, monitors=[leases_of(leases)])
    assert leases == Counter(range(size))


# --- what a worker is ---


def checking(check: Callable[[], bool]) -> Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]:
    """A step that fails in a worker for which this does not hold."""

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if in_worker() and not check():
            raise AssertionError
        return loss_of(module, batch)

    return step


def test_each_worker_computes_with_its_intra_op_threads() -> None:
    torch.set_num_threads(2)
    fit(step=checking(lambda: torch.get_num_threads() == 1))
    fit(step=checking(lambda: torch.get_num_threads() == 3), intra_op_threads=3)
    assert torch.get_num_threads() == 2


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system pins no processes")
def test_pinned_workers_have_cores_of_their_own() -> None:
    cores = sorted(os.sched_getaffinity(0))

    def own() -> bool:
        number = int(multiprocessing.current_process().name[-1])
        return os.sched_getaffinity(0) == {cores[number % len(cores)]}

    fit(step=checking(own), engine=freewheel.Processes(pin=True), workers=3)
    assert os.sched_getaffinity(0) == set(cores)


def test_workers_draw_different_numbers_and_the_same_in_every_run() -> None:
    """From all three generators of a process; the loss tells what was drawn."""

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        drawn = torch.rand(1).double() + random.random() + np.random.random()
        return (loss_of(module, batch) * 0).double().add(drawn).sum()

    def drawn() -> dict[int, list[float]]:
        losses: dict[int, list[float]] = {0: [], 1: []}

        def listen(event: Event) -> None:
            if isinstance(event, Steps):
                for worker, loss in zip(event.worker, event.loss, strict=True):
                    losses[worker].append(loss)

        fit(step=step, method="synchronous", monitors=[listen])
        return losses

    first = drawn()
    assert first == drawn()
    assert not set(first[0]) & set(first[1])


def test_workers_see_the_environment_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    fit(epochs=1)
    monkeypatch.setenv("FREEWHEEL_TEST", "now")
    fit(step=checking(lambda: os.environ["FREEWHEEL_TEST"] == "now"))


def test_memory_and_processor_time_are_those_of_all_processes() -> None:
    ticks: list[Event] = []

    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if in_worker():
            end = time.process_time() + 0.02
            while time.process_time() < end:
                pass
        return loss_of(module, batch)

    result = fit(step=step, monitors=[ticks.append])
    assert result.cpu_seconds > 30 * 0.02
    assert result.peak_rss_bytes > result.start_rss_bytes


# --- refusals ---


def test_what_cannot_be_sent_is_refused_before_anything_begins() -> None:
    class Locked(list[Any]):
        lock = None

        def __init__(self) -> None:
            super().__init__(columns())
            self.mine = threading.Lock()

    seen: list[Event] = []
    module = network()
    with pytest.raises(freewheel.ConfigurationError, match="`data` cannot be sent to the worker processes"):
        fit(Locked(), model=module, monitors=[seen.append])
    assert seen == []
    assert not workers_alive()
    assert all(p.untyped_storage().nbytes() == 4 * p.numel() for p in module.parameters())


def test_arguments_are_checked() -> None:
    with pytest.raises(freewheel.ConfigurationError, match="`pin` must be True or False, got 2"):
        freewheel.Processes(pin=2)  # type: ignore[arg-type]


def test_a_model_on_another_device_is_refused() -> None:
    job = SimpleNamespace(module=nn.Linear(2, 2, device="meta"))
    with pytest.raises(freewheel.ConfigurationError, match="`model` is on meta; use engine='threads'"):
        freewheel.Processes().check(job)  # type: ignore[arg-type]  # all that is looked at


def test_recordings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(freewheel.ConfigurationError, match="got 'processes'"):
        fit(method="downpour", record=True, run_dir=tmp_path / "run")


def test_a_system_that_cannot_fork_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multiprocessing, "get_all_start_methods", lambda: ["spawn"])
    with pytest.raises(freewheel.ConfigurationError, match="use engine='threads'"):
        fit()


def test_ctrl_c_while_a_segment_is_opened_leaves_no_worker_without_its_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would be waited for forever."""
    before = LeaseQueue.open
    opened: list[int] = []

    def interrupted(queue: LeaseQueue, numbers: Sequence[int]) -> None:
        opened.append(numbers[0])
        if len(opened) == 2:
            signal.raise_signal(signal.SIGINT)
        before(queue, numbers)

    monkeypatch.setattr(LeaseQueue, "open", interrupted)
    restored = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        result = fit(epochs=5)
    finally:
        signal.signal(signal.SIGINT, restored)
    assert result.reason == "interrupted"
    assert 240 <= result.samples <= 480
    assert result.ledger["applied"] == result.steps
