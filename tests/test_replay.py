"""A recorded run is replayed bit for bit; what cannot be replayed is not recorded."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import freewheel
from freewheel import rules
from freewheel.engines.recorded import session_of
from freewheel.engines.session import Session
from freewheel.errors import ConfigurationError, DataError, TrainingError
from freewheel.events import Evaluated, Event, Steps, read
from freewheel.methods import Method
from freewheel.recording import Kind, Operation, Recording
from freewheel.update import Update
from recordings import METHODS, SAMPLES, blobs, meeting, network, record, state

STALE = METHODS["stale_synchronous"]
MEETING = {"downpour-warm": {"step": meeting(None)}}  # whose first worker begins alone


@pytest.fixture(autouse=True)
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spare the drawing of plots that nobody looks at."""
    monkeypatch.setattr("freewheel.rundir.finish", lambda folder, result: None)


class Stream(IterableDataset[tuple[Tensor, Tensor]]):
    """Examples in an order of its own."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return zip(*blobs(), strict=True)


def again(folder: Path, method: Method, **settings: Any) -> freewheel.Replay:
    """The replay, of a network with other initial weights."""
    model, data = settings.pop("model", None) or network(seed=9), settings.pop("data", blobs())
    arguments: dict[str, Any] = {"step": meeting(None), **settings}
    return freewheel.replay(folder, model, data, method=method, **arguments)


def same(one: nn.Module, other: nn.Module) -> bool:
    first, second = state(one), state(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# --- the same bits ---


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("name", METHODS)
def test_a_race_is_replayed_bit_for_bit(name: str, shards: int, tmp_path: Path) -> None:
    result = record(tmp_path, METHODS[name], shards=shards, **MEETING.get(name, {}))
    replayed = again(tmp_path, METHODS[name])
    assert replayed.matches
    assert same(replayed.module, result.module)
    assert replayed.current is None
    assert replayed.updates == Recording.load(tmp_path).updates > 0


def test_workers_that_meet_are_stale_so_the_order_matters(tmp_path: Path) -> None:
    result = record(tmp_path, STALE)
    assert max(result.staleness) >= 2
    assert not same(result.module, record(tmp_path / "serial", STALE, workers=1).module)


@pytest.mark.parametrize("name", ["stale_synchronous", "easgd", "local_sgd", "diloco-dynamic"])
def test_the_serial_engine_is_replayed_too(name: str, tmp_path: Path) -> None:
    result = record(tmp_path, METHODS[name], engine="serial", step=meeting(None))
    replayed = again(tmp_path, METHODS[name])
    assert replayed.matches
    assert same(replayed.module, result.module)


def test_locks_of_shards_do_not_hinder(tmp_path: Path) -> None:
    record(tmp_path, STALE, shards=3, engine=freewheel.Threads(locks="shard"))
    assert again(tmp_path, STALE).matches


def test_one_worker_may_draw(tmp_path: Path) -> None:
    record(tmp_path, STALE, workers=1, model=network(dropout=0.3))
    assert again(tmp_path, STALE, model=network(dropout=0.3)).matches


def test_a_loader_and_two_threads_in_an_operation(tmp_path: Path) -> None:
    def loader() -> DataLoader[tuple[Tensor, ...]]:
        return DataLoader(TensorDataset(*blobs()), batch_size=20, shuffle=True)

    method = METHODS["guarded"]  # it takes norms, whose sums depend on the number of threads
    record(tmp_path, method, data=loader(), intra_op_threads=2)
    assert again(tmp_path, method, data=loader()).matches


def test_convolutions_are_replayed_in_their_memory_format(tmp_path: Path) -> None:
    def convolution() -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Unflatten(1, (1, 2, 5)), nn.Conv2d(1, 4, 2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3)
        )

    record(tmp_path, STALE, model=convolution(), channels_last=True)
    assert again(tmp_path, STALE, model=convolution()).matches


def test_steps_that_are_given_up_are_replayed(tmp_path: Path) -> None:
    def step(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        loss = nn.functional.cross_entropy(module(batch[0]), batch[1])
        return loss * torch.nan if bool((batch[0][:, 0] > 2.2).any()) else loss

    result = record(tmp_path, STALE, step=step, seed=1)
    assert result.ledger["dropped"]["non-finite loss"] > 0
    assert again(tmp_path, STALE, step=step).matches


def test_what_is_pushed_at_a_stand_is_computed_with_a_workers_threads(tmp_path: Path) -> None:
    """The main thread has two: a norm that it takes would have another sum."""
    seen: list[tuple[bool, int]] = []

    def watch(update: Update, state: rules.State, context: rules.RuleContext) -> Update:
        seen.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return update

    watched = rules.Rule("piece", lambda span: {}, watch, "watched()")
    torch.set_num_threads(2)
    record(tmp_path, freewheel.downpour(0.05, push_every=7, compression=watched), intra_op_threads=1)
    assert {main for main, _ in seen} == {True, False}
    assert {threads for _, threads in seen} == {1}


# --- runs that end early ---


def test_an_interrupted_run_is_replayed(tmp_path: Path) -> None:
    def interrupt(event: Event) -> None:
        if isinstance(event, Evaluated) and event.samples < 2 * SAMPLES:
            raise KeyboardInterrupt

    method = METHODS["downpour"]
    result = record(tmp_path, method, monitors=[interrupt])
    assert result.reason == "interrupted"
    replayed = again(tmp_path, method)
    assert (replayed.matches, replayed.reason) == (True, "interrupted")
    assert same(replayed.module, result.module)


def test_a_target_ends_the_replay_where_it_ended_the_run(tmp_path: Path) -> None:
    result = record(tmp_path, METHODS["local_sgd"], target=("accuracy", 0.01), epochs=9)
    assert result.reason == "target"
    assert again(tmp_path, METHODS["local_sgd"]).matches


def test_an_error_leaves_a_recording_and_comes_again(tmp_path: Path) -> None:
    def failing(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if module.training and bool((batch[0] == blobs()[0][17]).all(1).any()):
            raise KeyError("seventeen")
        return nn.functional.cross_entropy(module(batch[0]), batch[1])

    with pytest.raises(freewheel.WorkerError, match="seventeen"):
        record(tmp_path, STALE, step=failing, seed=2)
    recording = Recording.load(tmp_path)
    assert recording.header["finished"]["reason"] == "error"
    with pytest.raises(freewheel.WorkerError, match="seventeen"):
        again(tmp_path, STALE, step=failing)
    current = again(tmp_path, STALE, step=failing, until=1).current
    assert current is not None


# --- stopping at an update ---


@pytest.mark.parametrize("name", ["stale_synchronous", "in-flight", "downpour", "backup", "diloco", "easgd"])
def test_until_stops_after_that_update(name: str, tmp_path: Path) -> None:
    method = METHODS[name]
    record(tmp_path, method, shards=2)
    updates = Recording.load(tmp_path).updates
    for until in (1, updates // 2, updates):
        replayed = again(tmp_path, method, until=until)
        assert replayed.current is not None
        assert replayed.updates == replayed.current.number == until
        assert replayed.operations == replayed.current.operation + 1
        pushes = [o for o in list(Recording.load(tmp_path))[: replayed.operations] if o.version == until]
        assert len(pushes) == 1


def test_until_stops_at_a_round_that_is_completed_by_those_who_have_nothing(tmp_path: Path) -> None:
    """Two batches between evaluations leave the third worker without any: the round waits for it no more."""
    method = METHODS["parallel_sgd"]
    record(tmp_path, method, engine="serial", step=meeting(None), evaluate_every=16, epochs=1)
    operations = list(Recording.load(tmp_path))
    completed = [
        after.version
        for before, after in itertools.pairwise(operations)
        if after.kind == Kind.RETIRE and after.version > before.version
    ]
    assert len(completed) > 5
    assert again(tmp_path, method).matches
    assert freewheel.audit(tmp_path).ok
    for until in completed[::5]:
        replayed = again(tmp_path, method, until=until)
        assert replayed.updates == until
        assert operations[replayed.operations - 1].kind == Kind.RETIRE


def test_current_says_what_the_events_say(tmp_path: Path) -> None:
    record(tmp_path, STALE)
    reported: dict[tuple[int, int], tuple[Any, ...]] = {}
    for event in read(tmp_path / "events.jsonl"):
        if isinstance(event, Steps):
            columns = (event.worker, event.sequence, event.lease, event.loss, event.staleness, event.samples)
            reported |= {(row[0], row[1]): row[2:] for row in zip(*columns, strict=True)}
    for until in (1, 20, 60):
        current = again(tmp_path, STALE, until=until).current
        assert current is not None
        found = (current.lease, current.loss, current.staleness, current.samples)
        assert found == reported[current.worker, current.step]


def test_norms_are_of_the_gradient_the_change_and_the_weights(tmp_path: Path) -> None:
    method = freewheel.stale_synchronous(2, 0.5, momentum=0.0)
    record(tmp_path, method)
    before, at = again(tmp_path, method, until=20), again(tmp_path, method, until=21)
    weights, old = (torch.cat([w.detach().flatten() for w in r.module.parameters()]) for r in (at, before))
    assert at.current is not None
    assert at.current.weights_norm == pytest.approx(float(weights.norm()), rel=1e-5)
    assert at.current.change == pytest.approx(float((weights - old).norm()), rel=1e-4)
    assert at.current.norm == pytest.approx(at.current.change / 0.5, rel=1e-4)


def test_a_replay_that_stops_early_compares_nothing(tmp_path: Path) -> None:
    record(tmp_path, STALE)
    assert again(tmp_path, STALE, until=3).matches is None


@pytest.mark.parametrize("until", [0, -1, 1.5, True, 10**6])
def test_an_update_that_is_not_there_is_refused(until: Any, tmp_path: Path) -> None:
    record(tmp_path, STALE)
    with pytest.raises(ConfigurationError, match="`until`"):
        again(tmp_path, STALE, until=until)


def test_monitors_hear_every_step(tmp_path: Path) -> None:
    record(tmp_path, STALE)
    steps: list[int] = []
    again(tmp_path, STALE, monitors=[lambda e: steps.extend(e.lease) if isinstance(e, Steps) else None])
    assert sorted(steps) == list(range(2 * SAMPLES // 8))


# --- another run than the recorded one ---


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"method": freewheel.stale_synchronous(2, 0.06, momentum=0.9)}, ["`method` rule", "0.05", "0.06"]),
        ({"method": METHODS["downpour"]}, ["`method` name", "downpour"]),
        ({"workers": 2}, ["`workers` was 3, got 2"]),
        ({"shards": 2}, ["`shards` was 1, got 2"]),
        ({"batch_size": 4}, ["`batch_size` was 8, got 4"]),
        ({"seed": 1}, ["`seed` was 0, got 1"]),
        ({"data": tuple(t[:-1] for t in blobs())}, ["`data` samples was 240, got 239"]),
        ({"data": DataLoader(TensorDataset(*blobs()), batch_size=8)}, ["shuffled by seed 0"]),
        ({"model": nn.Linear(10, 3)}, ["`model` 0.weight was [16, 10], got None"]),
        ({"step": None, "loss": nn.CrossEntropyLoss()}, ["`loss`", "CrossEntropyLoss"]),
    ],
)
def test_what_differs_is_named(settings: dict[str, Any], names: list[str], tmp_path: Path) -> None:
    record(tmp_path, STALE)
    method = settings.pop("method", STALE)
    with pytest.raises(ConfigurationError) as caught:
        again(tmp_path, method, **settings)
    for name in names:
        assert name in str(caught.value)


def test_the_same_arguments_as_fit_are_taken(tmp_path: Path) -> None:
    record(tmp_path, STALE, shards=2, seed=5)
    assert again(tmp_path, STALE, workers=3, shards=2, batch_size=8, seed=5).matches


def test_other_data_do_not_match(tmp_path: Path) -> None:
    record(tmp_path, STALE)
    inputs, targets = blobs()
    inputs[3] += 1e-3
    assert again(tmp_path, STALE, data=(inputs, targets)).matches is False


def test_another_order_does_not_match(tmp_path: Path) -> None:
    """Two pushes change places, such that nothing but the order of their sums and squares is another."""
    method = freewheel.downpour(0.05, push_every=1, pull_every=100)
    record(tmp_path, method, engine="serial", step=meeting(None))
    recording = Recording.load(tmp_path)
    kinds = recording.columns["kind"]
    place = int(np.flatnonzero(kinds == Kind.PUSH)[0])
    assert kinds[place : place + 3].tolist() == [Kind.PUSH, Kind.STEP, Kind.PUSH]
    for name in Operation._fields:
        first, step, second = recording.columns[name][place : place + 3].tolist()
        stays = name in ("staleness", "version")  # they belong to the place
        column = [first, second, step] if stays else [second, first, step]
        recording.columns[name][place : place + 3] = column
    recording.save(tmp_path)
    assert again(tmp_path, method).matches is False


def test_a_replay_that_leaves_its_recording_says_where(tmp_path: Path) -> None:
    record(tmp_path, STALE)
    recording = Recording.load(tmp_path)
    place = int(np.flatnonzero(recording.columns["kind"] == Kind.PUSH)[4])
    recording.columns["staleness"][place] += 1
    recording.save(tmp_path)
    with pytest.raises(TrainingError, match=f"left its recording at operation {place}, a push of worker"):
        again(tmp_path, STALE)


# --- files ---


def test_a_run_on_processes_is_not_recorded(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"`record`=True .* got 'processes'; use engine='threads'"):
        record(tmp_path, STALE, engine="processes")


def test_a_folder_without_recording_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="record=True"):
        again(tmp_path, STALE)


@pytest.mark.parametrize("file", ["recording.json", "recording.npz", "initial.safetensors"])
def test_a_damaged_file_is_named(file: str, tmp_path: Path) -> None:
    record(tmp_path, STALE)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"damaged|cannot be read"):
        again(tmp_path, STALE)


def test_a_recording_of_another_format_is_refused(tmp_path: Path) -> None:
    record(tmp_path, STALE)
    header = json.loads((tmp_path / "recording.json").read_text())
    (tmp_path / "recording.json").write_text(json.dumps({**header, "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        again(tmp_path, STALE)


def test_columns_out_of_range_are_damage(tmp_path: Path) -> None:
    record(tmp_path, STALE)
    recording = Recording.load(tmp_path)
    recording.columns["worker"][3] = 7
    recording.save(tmp_path)
    with pytest.raises(DataError, match="'worker'"):
        Recording.load(tmp_path)


def test_a_recording_is_small(tmp_path: Path) -> None:
    record(tmp_path, STALE)
    operations = len(Recording.load(tmp_path))
    assert (tmp_path / "recording.npz").stat().st_size < 3000 + 20 * operations


# --- what is not recorded ---


def test_without_record_nothing_is_noted(tmp_path: Path) -> None:
    record(tmp_path, STALE, record=False)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "events.jsonl", "checkpoints"}


def test_a_job_without_trace_has_a_plain_session() -> None:
    job = freewheel.Job(
        network(),
        freewheel.tasks.Supervised(loss=nn.CrossEntropyLoss()),
        STALE,
        freewheel.sources.Indexed(lambda i: i, SAMPLES, 8),
        freewheel.Stop(epochs=1),
    )
    assert type(session_of(job, (), "threads")) is Session


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run_dir": None}, "needs `run_dir`"),
        ({"engine": "simulated"}, "threads and serial"),
        ({"method": freewheel.hogwild(0.1)}, "use stale_synchronous"),
        ({"method": freewheel.synchronous(0.1)}, "same seed gives the same"),
        ({"method": freewheel.hogwild(0.1, granularity="layer")}, "granularity='model'"),
        ({"data": Stream()}, "by their index"),
        ({"model": network(dropout=0.1)}, r"3 \(Dropout\) draw"),
        ({"model": nn.Sequential(nn.Linear(10, 3), nn.RReLU())}, r"1 \(RReLU\) draw"),
    ],
)
def test_what_cannot_be_replayed_is_refused(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    method = settings.pop("method", STALE)
    folder = tmp_path / "run"
    with pytest.raises(ConfigurationError, match=message):
        record(folder, method, **settings)
    assert not folder.exists()


def test_a_drawing_module_that_does_not_train_is_no_hindrance(tmp_path: Path) -> None:
    model = network(dropout=0.5)
    model[3].eval()  # type: ignore[index]  # a Sequential
    record(tmp_path, STALE, model=model)
    twin = network(dropout=0.5)
    twin[3].eval()  # type: ignore[index]  # a Sequential
    assert again(tmp_path, STALE, model=twin).matches


def test_a_run_records_on_other_threads(tmp_path: Path) -> None:
    record(tmp_path, STALE)
    assert threading.active_count() == 1
    assert {o.worker for o in Recording.load(tmp_path) if o.kind == Kind.PUSH} == {0, 1, 2}
