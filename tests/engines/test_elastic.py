"""Workers that come and go while a run goes on."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from laws import ALL, KINDS, adds_up, blobs, leases_of, network, state
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from typer.testing import CliRunner

import freewheel
from freewheel import elastic
from freewheel.checkpoints.resizing import resized, rest
from freewheel.cli import app
from freewheel.engines import record, threads
from freewheel.engines.changes import Change
from freewheel.engines.plan import Segment
from freewheel.engines.processes import crew
from freewheel.engines.processes.crew import Crew
from freewheel.engines.processes.session import ProcessSession
from freewheel.engines.record import Record
from freewheel.engines.session import Session
from freewheel.errors import CheckpointError, ConfigurationError
from freewheel.events import Event, Steps, Tick, WorkerFailed, WorkersChanged, WorkersKept
from freewheel.methods import Method

STEP_S = 0.004  # long enough for the main process to look up in between
BATCHES = 15  # an epoch of the blobs, in batches of 16
SOME = (
    *KINDS,
    "hogwild-layer",
    "hogwild-average",
    "synchronous-layer",
    "delay_compensated-adaptive",
    "downpour-warm_start",
    "downpour-half",
    "diloco-synchronous",
    "diloco-dynamic",
)


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(elastic, "LOOK_S", 0.0)
    monkeypatch.setattr(crew, "POLL_S", 0.005)  # main threads look up before the run is over
    monkeypatch.setattr(threads, "POLL_S", 0.005)
    monkeypatch.setattr(record, "TICK_S", 0.01)  # monitors hear of steps at once
    yield
    mine = psutil.Process()  # workers are children of the fork server
    workers = [child for child in mine.children(recursive=True) if child.ppid() != mine.pid]
    assert not psutil.wait_procs(workers, timeout=10)[1]


def slow(prediction: Tensor, target: Tensor) -> Tensor:
    evaluates = threading.current_thread() is threading.main_thread()
    if multiprocessing.parent_process() is not None or not evaluates:
        time.sleep(STEP_S)
    return nn.functional.cross_entropy(prediction, target)


class Wants:
    """A monitor that asks for a number of workers each time that so many steps are done."""

    def __init__(self, folder: Path, wanted: Sequence[tuple[int, int]]) -> None:
        self.folder, self.wanted = folder, list(wanted)
        self.steps = 0

    def __call__(self, event: Event) -> None:
        if isinstance(event, Steps):
            self.steps += len(event.lease)
            if self.wanted and self.steps >= self.wanted[0][0]:
                (self.folder / elastic.REQUEST).write_text(f'{{"workers": {self.wanted.pop(0)[1]}}}')


def fit(
    method: Method | str, folder: Path, *wanted: tuple[int, int], **settings: Any
) -> tuple[freewheel.Result, Counter[int]]:
    """A run whose number of workers changes, and how often it used each batch."""
    leases: Counter[int] = Counter()
    arguments: dict[str, Any] = {
        "loss": slow,
        "workers": 2,
        "batch_size": 16,
        "epochs": 6,
        "evaluate": blobs(),
        "engine": "processes",
        "seed": 5,
        **settings,
    }
    model, data = arguments.pop("model", None), arguments.pop("data", None)
    found = freewheel.fit(
        network() if model is None else model,
        blobs() if data is None else data,
        method=ALL[method] if isinstance(method, str) else method,
        run_dir=folder,
        monitors=[leases_of(leases), Wants(folder, wanted), *arguments.pop("monitors", [])],
        **arguments,
    )
    return found, leases


def changes(result: freewheel.Result) -> list[tuple[int, int]]:
    return [(e.before, e.after) for e in result.events if isinstance(e, WorkersChanged)]


@pytest.mark.parametrize("engine", elastic.ENGINES)
@pytest.mark.parametrize("name", SOME)
def test_every_batch_is_used_once_whoever_comes_and_goes(name: str, engine: str, tmp_path: Path) -> None:
    least = 2 if "backup" in name else 1
    found, leases = fit(name, tmp_path, (20, 4), (50, least), engine=engine)
    assert changes(found) == [(2, 4), (4, least)]
    assert leases == Counter(range(6 * BATCHES))
    assert found.samples == 6 * 240
    assert found.steps == sum(worker.steps for worker in found.workers) == 6 * BATCHES
    assert len(found.workers) == 4
    assert sum(worker.steps > 0 for worker in found.workers) >= 3
    assert found.config["workers"] == least
    assert found.ledger["pending"] == 0
    assert adds_up(found.ledger)
    assert torch.isfinite(state(found.module)).all()
    assert len(found.history) == 6


@pytest.mark.parametrize("engine", elastic.ENGINES)
def test_synchronous_training_takes_the_mean_of_as_many_as_there_are(engine: str, tmp_path: Path) -> None:
    """Against PyTorch: batch by batch with one worker, then the mean gradient of two batches, of three.

    A round that is under way when the number changes is one of those who are in it.
    """
    inputs, targets = blobs()
    numbers = [1]
    rounds: dict[tuple[int, int], list[int]] = {}  # (how often the number has changed, step) -> batches

    def note(event: Event) -> None:
        if isinstance(event, Steps):
            for sequence, lease in zip(event.sequence, event.lease, strict=True):
                rounds.setdefault((len(numbers), sequence), []).append(lease)
        if isinstance(event, WorkersChanged):
            numbers.append(event.after)

    model = network(norm=False, dropout=0.0)
    data = DataLoader(TensorDataset(inputs, targets), batch_size=16)
    found, _ = fit(
        freewheel.synchronous(0.05, momentum=0.9),
        tmp_path,
        (10, 2),
        (30, 3),
        workers=1,
        model=model,
        data=data,
        epochs=4,
        evaluate_every=4 * 240,
        monitors=[note],
        engine=engine,
    )
    assert numbers == [1, 2, 3]
    assert [max(len(r) for (n, _), r in rounds.items() if n == number) for number in (1, 2, 3)] == numbers
    reference = network(norm=False, dropout=0.0)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.05, momentum=0.9)
    for _, group in sorted(rounds.items()):
        optimizer.zero_grad()
        for number in group:
            first = 16 * (number % BATCHES)
            output = reference(inputs[first : first + 16])
            loss = nn.functional.cross_entropy(output, targets[first : first + 16])
            (loss / len(group)).backward()  # type: ignore[no-untyped-call]  # torch's is untyped
        optimizer.step()
    torch.testing.assert_close(state(found.module), state(reference), rtol=1e-5, atol=1e-6)


def test_who_stays_keeps_its_state_and_who_comes_has_a_life_of_its_own(tmp_path: Path) -> None:
    """Local weights of elastic averaging: those of the workers that stay are not the server's."""
    found, _ = fit("elastic_averaging", tmp_path, (20, 3))
    [change] = [e for e in found.events if isinstance(e, WorkersChanged)]
    assert 0 < change.took_s < 30
    assert 0 < change.seconds <= found.seconds
    assert all(worker.steps for worker in found.workers)


def test_a_checkpoint_after_a_change_goes_on_with_as_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[int] = []

    def wants_cut(session: ProcessSession) -> bool:
        session.record.drain()
        if cut or session.job.setup.workers == 2 or session.record.done().steps < 40:
            return False
        cut.append(session.record.done().steps)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(ProcessSession, "wants_cut", wants_cut)
        found, _ = fit("stale_synchronous-in_flight", tmp_path, (20, 3), keep_checkpoints=5)
    assert changes(found) == [(2, 3)]
    steps = min(int(folder.name) for folder in (tmp_path / "checkpoints").iterdir())
    assert 40 <= steps < 6 * BATCHES
    goes_on, leases = fit(
        "stale_synchronous-in_flight",
        tmp_path / "on",
        workers="auto",
        resume=tmp_path / "checkpoints" / str(steps),
    )
    assert goes_on.config["workers"] == 3
    assert leases.total() == 6 * BATCHES - steps
    assert set(leases.values()) == {1}
    assert goes_on.steps == 6 * BATCHES
    assert adds_up(goes_on.ledger)


@pytest.mark.parametrize("engine", elastic.ENGINES)
@pytest.mark.parametrize(("name", "workers"), list(zip(KINDS, itertools.cycle([2, 5]), strict=False)))
def test_a_run_goes_on_from_its_checkpoint_with_another_number(
    name: str, workers: int, engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut: list[int] = []

    def wants_cut(session: Session) -> bool:
        session.record.drain()
        if cut or session.record.done().steps < 10:
            return False
        cut.append(session.record.done().steps)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(Session, "wants_cut", wants_cut)
        _, before = fit(name, tmp_path / "begun", workers=3, keep_checkpoints=5, engine=engine)
    steps = min(int(folder.name) for folder in (tmp_path / "begun" / "checkpoints").iterdir())
    assert 10 <= steps < 6 * BATCHES
    resume = tmp_path / "begun" / "checkpoints" / str(steps)
    found, leases = fit(name, tmp_path / "on", workers=workers, resume=resume, engine=engine)
    assert leases.total() == 6 * BATCHES - steps
    assert set(leases.values()) == {1}
    assert set(leases) <= set(before)
    assert found.steps == 6 * BATCHES
    assert len(found.workers) == max(3, workers)
    assert adds_up(found.ledger)


def test_a_serial_run_keeps_its_number(tmp_path: Path) -> None:
    fit("hogwild", tmp_path, engine="serial", epochs=1, workers=2)
    with pytest.raises(CheckpointError, match=r"`workers` was 2, got 3\. .* on engine 'serial'"):
        fit("hogwild", tmp_path / "on", engine="serial", epochs=2, workers=3, resume=tmp_path)


# --- what goes wrong meanwhile ---


def test_a_worker_that_dies_while_it_hands_over_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over = Crew._handed_over

    def dies(own: Crew, workers: int) -> Change:
        process = own.roster._members[1].process
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join(10)
        return handed_over(own, workers)

    monkeypatch.setattr(Crew, "_handed_over", dies)
    found, leases = fit("downpour", tmp_path, (20, 3))
    assert changes(found) == [(2, 3)]
    [failure] = [e for e in found.events if isinstance(e, WorkerFailed)]
    assert (failure.worker, failure.replaced) == (1, True)
    assert set(leases) == set(range(6 * BATCHES))
    assert adds_up(found.ledger)


@pytest.mark.parametrize("engine", elastic.ENGINES)
def test_ctrl_c_while_nobody_works_ends_the_run_cleanly(
    engine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    succeed = Record.succeed

    def interrupted(record: Record, *arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        succeed(record, *arguments)

    monkeypatch.setattr(Record, "succeed", interrupted)
    found, leases = fit("hogwild", tmp_path, (20, 3), engine=engine)
    assert found.reason == "interrupted"
    assert list((tmp_path / "checkpoints").iterdir())
    assert 20 <= found.steps < 6 * BATCHES
    assert set(leases.values()) == {1}
    assert found.history


def test_a_rule_without_momentum_for_many_workers_takes_the_place_of_one_that_has_it(tmp_path: Path) -> None:
    method = freewheel.hogwild(0.02)
    assert "momentum" not in method.rule_for(24).describe
    found, leases = fit(method, tmp_path, (20, 24), (60, 2), engine="threads", epochs=12)
    assert changes(found) == [(2, 24), (24, 2)]
    assert leases == Counter(range(12 * BATCHES))


def test_a_number_that_cannot_be_is_told_and_the_run_goes_on(tmp_path: Path) -> None:
    found, leases = fit("synchronous-backup", tmp_path, (20, 1), (40, 0))
    kept = [e for e in found.events if isinstance(e, WorkersKept)]
    assert [(e.workers, e.wanted) for e in kept] == [(2, 1), (2, 0)]
    assert "a round must wait for at least one" in kept[0].reason
    assert changes(found) == []
    assert leases == Counter(range(6 * BATCHES))


def test_what_was_asked_of_an_earlier_run_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / elastic.REQUEST).write_text('{"workers": 3}')
    found, _ = fit("hogwild", tmp_path, epochs=2)
    assert changes(found) == []
    assert not (tmp_path / elastic.REQUEST).exists()


# --- asking ---


class Under:
    """A run that goes on in a thread until it is told to end."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.over, self.begun = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self._train, args=(folder,), kwargs=settings)

    def _train(self, folder: Path, **settings: Any) -> None:
        with pytest.raises(InterruptedError):
            fit("hogwild", folder, epochs=10_000, monitors=[self._look], **settings)

    def _look(self, event: Event) -> None:
        if isinstance(event, Tick):  # the record of the run has begun
            self.begun.set()
        if self.over.is_set():
            raise InterruptedError

    def __enter__(self) -> None:
        self.thread.start()
        assert self.begun.wait(60)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(60)
        assert not self.thread.is_alive()


def test_set_workers_waits_until_they_are_there(tmp_path: Path) -> None:
    with Under(tmp_path):
        assert elastic.workers_of(tmp_path) == 2
        change = freewheel.set_workers(tmp_path, 3)
        assert (change.before, change.after) == (2, 3)
        assert elastic.workers_of(tmp_path) == 3
        again = freewheel.set_workers(tmp_path, 3)
        assert (again.before, again.after) == (3, 3)


def test_the_command_asks_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["workers", str(tmp_path), *arguments])
        return result.exit_code, result.output

    with Under(tmp_path):
        assert run() == (0, "2 workers\n")
        code, said = run("--set", "1")
        assert code == 0
        assert f"{tmp_path} goes on with 1 worker in place of 2; training stood still for" in said
        assert run("--set", "1") == (0, f"{tmp_path} has 1 worker already\n")
    code, said = run("--set", "2")
    assert code != 0
    assert "is not under way" in said


def test_who_is_overtaken_is_told_so_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic.Requests, "pending", lambda requests: None)  # the run is busy
    with Under(tmp_path), ThreadPoolExecutor(1) as pool:
        first = pool.submit(freewheel.set_workers, tmp_path, 3)
        while not (tmp_path / elastic.REQUEST).exists():
            time.sleep(0.01)
        with pytest.raises(ConfigurationError, match=r"has not changed within 0\.3 s"):
            freewheel.set_workers(tmp_path, 4, wait_s=0.3)
        with pytest.raises(ConfigurationError, match="somebody else has asked for another number"):
            first.result(60)


def test_set_workers_refuses_what_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="is not the directory of a run"):
        freewheel.set_workers(tmp_path, 2)
    with pytest.raises(ConfigurationError, match="`workers` must be a whole number >= 1, got 0"):
        freewheel.set_workers(tmp_path, 0)
    fit("hogwild", tmp_path, epochs=1)
    with pytest.raises(ConfigurationError, match=r"is not under way; to go on .* --resume .* --workers N"):
        freewheel.set_workers(tmp_path, 2)
    serial = tmp_path / "serial"
    with (
        Under(serial, engine="serial", workers=1),
        pytest.raises(ConfigurationError, match="on engine 'serial', whose number of workers is fixed"),
    ):
        freewheel.set_workers(serial, 2)


# --- the state ---


def test_the_rest_of_a_segment_that_was_cut_twice() -> None:
    first = rest(Segment(0, 30), [4, 2], [0, 0])  # 0 2 4 6 and 1 3 are used
    assert first == ([5], 7)
    then = Segment(0, 30, rest=first)
    assert [then.number(position) for position in range(4)] == [5, 7, 8, 9]
    assert rest(then, [1, 0, 1], [0, 0, 0]) == ([7], 9)  # positions 0 and 2
    assert rest(Segment(0, 30, rest=([1, 2, 3], 7)), [1, 0], [0, 0]) == ([2, 3], 7)
    assert rest(Segment(8, 30), [5, 5], [5, 5]) == ([], 8)


def _tree(workers: int) -> dict[str, Any]:
    slot = {"sequence": 3, "incarnation": 0, "counts": {"applied": 2}, "pushed": 4, "released": 0}
    return {
        "place": {"first": 0, "limit": 9, "last": False, "epoch": 0, "rest": None,
                  "began": [0] * workers, "steps": [4, 6][:workers], "progress": [4, 6][:workers]},
        "workers": [{"context": {"sequence": 4 + w}, "link": w} for w in range(workers)],
        "server": {
            "book": {"slots": [dict(slot) for _ in range(workers)], "versions": [2] * workers,
                     "samples": [32] * workers},
            "applied": [[2] * workers],
            "round": {"round": {"closed": {1: 0}}, "verdict": "applied", "waited": 7},
        },
        "hopeless": [1] * workers,
        "record": {"tally": {"samples": [16] * workers, "steps": [4] * workers}, "seconds": 1.0},
    }  # fmt: skip


def test_a_smaller_state_keeps_the_books_of_those_that_have_left() -> None:
    tree = _tree(2)
    found = resized(tree, 1, fixed=False)
    assert [one["link"] for one in found["workers"]] == [0]
    assert found["workers"][0]["context"]["sequence"] == 5  # as the one that was furthest
    assert found["place"]["began"] == [5]
    assert found["place"]["steps"] == [6]
    assert [slot["counts"] for slot in found["server"]["book"]["slots"]] == [
        {"applied": 2},
        {"applied": 2, "left": 1},
    ]
    assert found["server"]["round"]["round"]["active"] == [0]
    assert found["server"]["round"]["waited"] == 7
    assert found["record"]["tally"] == {"samples": [16, 16], "steps": [4, 4]}
    assert tree == _tree(2)


def test_a_larger_state_has_places_for_those_that_come() -> None:
    found = resized(_tree(2), 4, fixed=True)
    assert [None if one is None else one["link"] for one in found["workers"]] == [0, 1, None, None]
    assert found["server"]["book"]["versions"] == [2, 2, 0, 0]
    assert found["server"]["applied"] == [[2, 2, 0, 0]]
    assert found["server"]["round"]["round"]["active"] == [0, 1, 2, 3]
    assert found["hopeless"] == [1, 1, 0, 0]
    assert found["place"]["rest"] == ([8], 10)
