"""``replay``: a recorded run once more, bit for bit, and as far as one wants to see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from freewheel import methods
from freewheel.engines.recorded import ReplayedSession
from freewheel.engines.replayed import Replayer
from freewheel.errors import ConfigurationError, DataError
from freewheel.events import Monitor
from freewheel.inputs import source_of
from freewheel.job import Job, Setup, Stop
from freewheel.methods import Method
from freewheel.params import check_module
from freewheel.recording.applied import AppliedUpdate
from freewheel.recording.identity import check_same, identity
from freewheel.recording.log import INITIAL, Recording, digest
from freewheel.tasks import Supervised
from freewheel.tasks.supervised import Loss, Step


@dataclass(frozen=True)
class Replay:
    """What came of a replay.

    Attributes:
        module: the user's own object, with the weights as they are then.
        operations: how many of the recording's operations were done.
        updates: how many updates were applied.
        matches: the weights at the end equal those of the run, bit for bit; None if it stopped before.
        current: the update that it stopped at; None at the end.
        reason: why the recorded run ended.
    """

    module: nn.Module = field(repr=False)
    operations: int
    updates: int
    matches: bool | None
    current: AppliedUpdate | None
    reason: str


def replay(
    run_dir: str | Path,
    model: nn.Module,
    data: Any,
    *,
    loss: Loss | None = None,
    step: Step | None = None,
    method: Method | str,
    workers: int | None = None,
    shards: int | None = None,
    batch_size: int | None = None,
    seed: int | None = None,
    until: int | None = None,
    monitors: Sequence[Monitor] = (),
) -> Replay:
    """Runs a recorded run again, serially, in the order in which its workers pulled and pushed.

    The run was recorded by ``fit(..., record=True, run_dir=...)``. The weights it began with are in the
    folder, so those of `model` do not matter; everything else must be as it was, and is compared where it can
    be: what a loss or a data set computes cannot. Monitors hear of every step; nothing is evaluated.

    Args:
        run_dir: the folder of the run.
        model: a module of the recorded architecture; trained in place.
        data: as given to ``fit``.
        loss: as given to ``fit``.
        step: as given to ``fit``.
        method: as given to ``fit``.
        workers: compared with the recording; None takes the recorded number.
        shards: compared with the recording; None takes the recorded number.
        batch_size: compared with the recording; None takes the recorded number.
        seed: compared with the recording; None takes the recorded one.
        until: stop right after this update, counted from 1; None goes to the end.
        monitors: callables that get every event.

    Returns:
        Whether the weights match, or the update that it stopped at.

    Raises:
        DataError: there is no recording, or it is damaged.
        ConfigurationError: an argument is not what was recorded; there is no such update.
        TrainingError: the replay does something else than the recording says; or the run had ended in this
            error.

    Example:
        >>> import tempfile, torch, freewheel
        >>> x = torch.randn(256, 8); y = (x.sum(1) > 0).long()
        >>> what = {"loss": torch.nn.CrossEntropyLoss(), "method": freewheel.downpour(0.1)}
        >>> folder = tempfile.TemporaryDirectory()
        >>> result = freewheel.fit(torch.nn.Linear(8, 2), (x, y), workers=2, run_dir=folder.name, record=True,
        ...                        **what)
        >>> freewheel.replay(folder.name, torch.nn.Linear(8, 2), (x, y), **what).matches
        True
        >>> freewheel.replay(folder.name, torch.nn.Linear(8, 2), (x, y), until=2, **what).current.number
        2
        >>> folder.cleanup()
    """
    folder = Path(run_dir)
    recording = Recording.load(folder)
    _check_until(until, recording)
    given = {"workers": workers, "shards": shards, "batch_size": batch_size, "seed": seed}
    recorded = recording.header["identity"]
    check_same({name: recorded[name] for name, value in given.items() if value is not None}, given)
    check_module(model)
    job = _job(recording, model, data, loss, step, methods.by_name(method))
    check_same(recorded, identity(job))
    _load(folder, model)
    return _run(recording, job, until, monitors)


def _job(
    recording: Recording, model: nn.Module, data: Any, loss: Loss | None, step: Step | None, method: Method
) -> Job:
    settings = dict(recording.header["setup"])
    stop, autocast = Stop(**settings.pop("stop")), settings.pop("autocast")
    setup = Setup(**settings)
    source = source_of(data, recording.header["identity"]["batch_size"], setup.seed)
    task = Supervised(loss=loss, step_function=step, autocast=autocast, channels_last=setup.channels_last)
    return Job(model, task, method, source, stop, setup)


def _load(folder: Path, model: nn.Module) -> None:
    from safetensors.torch import load_model

    try:
        load_model(model, folder / INITIAL)
    except Exception as error:  # RuntimeError, OSError, and what safetensors raises
        raise DataError(f"the initial weights {folder / INITIAL} cannot be read: {error}") from error


def _run(recording: Recording, job: Job, until: int | None, monitors: Sequence[Monitor]) -> Replay:
    session = ReplayedSession(job, monitors, "replay")
    replayer = Replayer(session, recording, until)
    replayer.run()
    reason = (recording.header["finished"] or {}).get("reason", "error")
    session.reason = reason if replayer.current is None else "until"
    session.result()
    at_end = replayer.done == len(recording)
    matches = digest(job.module) == recording.header["final"] if at_end else None
    return Replay(job.module, replayer.done, session.server.version, matches, replayer.current, reason)


def _check_until(until: int | None, recording: Recording) -> None:
    if until is None:
        return
    if not isinstance(until, int) or isinstance(until, bool) or until < 1:
        raise ConfigurationError(f"`until` must be a whole number >= 1, got {until!r}; 1 is the first update")
    if until > recording.updates:
        raise ConfigurationError(
            f"`until` is {until}, but the run applied {recording.updates} updates; use at most that"
        )
