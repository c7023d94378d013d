"""The state of a run under way: taken while every worker stands between two steps, and put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from freewheel.checkpoints.saver import Cut
from freewheel.checkpoints.tree import Tree, copied, placed
from freewheel.errors import CheckpointError

if TYPE_CHECKING:
    from freewheel.engines.session import Session


def taken(session: Session, place: Tree) -> Cut:
    """A copy of everything that decides how the run goes on.

    Args:
        session: whose workers stand still, each between two steps.
        place: where in its plan the engine is; what only the engine knows.
    """
    job, record = session.job, session.record
    state = {
        "identity": job.checkpoints.identity if job.checkpoints is not None else {},
        "place": place,
        "server": session.server.state(),
        "workers": session.worker_states(),
        "buffers": dict(_others(session, job.module)),
        "hopeless": session.hopeless,
        "source": session.source_state(),
        "record": record.state(),
        "generators": _generators(session),
    }
    return Cut(record.done().steps, record.clock.seconds(), copied(state))


def restored(session: Session, tree: Tree) -> Tree:
    """Puts a run back to where it was; call it when its workers are there, and none has begun.

    Args:
        session: of the same job.
        tree: the state of a checkpoint.

    Returns:
        The place in the engine's plan.

    Raises:
        CheckpointError: the state does not fit.
    """
    device = session.parameters.flat.device
    tree = tree if device.type == "cpu" else placed(tree, device)
    try:
        _restore(session, tree)
        return tree["place"]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(
            f"the checkpoint does not fit the run ({type(error).__name__}: {error}); resume with the"
            " arguments of the run that wrote it"
        ) from error


def _restore(session: Session, tree: Tree) -> None:
    session.server.restore(tree["server"])
    session.restore_workers(tree["workers"], tree["place"].get("start", 0))
    _put_back(dict(_others(session, session.job.module)), tree["buffers"])
    session.hopeless[:] = tree["hopeless"]
    if tree["source"] is not None:  # else it is the same object, which has gone on
        session.job.source.restore(tree["source"])
    torch.set_rng_state(tree["generators"]["cpu"])  # last: a source may draw while it begins an epoch again
    if "cuda" in tree["generators"]:
        torch.cuda.set_rng_state(tree["generators"]["cuda"], session.parameters.flat.device)


def state_of(session: Session, worker: int) -> Tree:
    """What a worker of this process holds for itself."""
    return {
        "context": session.contexts[worker].state(),
        "link": session.links[worker].state() if session.links else None,
        "buffers": dict(_own(session, worker)),
    }


def give_back(session: Session, worker: int, state: Tree) -> None:
    """A worker of this process holds what it held then."""
    session.contexts[worker].restore(state["context"])
    if session.links:
        session.links[worker].restore(state["link"])
    _put_back(dict(_own(session, worker)), state["buffers"])


def _others(session: Session, module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The buffers of a module that are no running statistics: counters, masks, tables."""
    statistics = {entry.name for entry in session.parameters.statistics_layout.entries}
    return ((name, buffer) for name, buffer in module.named_buffers() if name not in statistics)


def _own(session: Session, worker: int) -> Iterator[tuple[str, Tensor]]:
    """Those that a worker's replica does not share with the user's module."""
    shared = {id(buffer) for buffer in session.job.module.buffers()}
    others = _others(session, session.contexts[worker].module)
    return ((name, buffer) for name, buffer in others if id(buffer) not in shared)


def _put_back(buffers: dict[str, Tensor], saved: dict[str, Tensor]) -> None:
    if buffers.keys() != saved.keys():
        raise CheckpointError(
            f"the model's buffers are {', '.join(buffers) or 'none'}, and were {', '.join(saved) or 'none'};"
            " resume with the model of the run that wrote the checkpoint"
        )
    for name, buffer in buffers.items():
        if buffer.shape == saved[name].shape:
            buffer.copy_(saved[name])
        else:  # one that grows as the module trains
            buffer.data = saved[name].to(buffer.device)


def _generators(session: Session) -> dict[str, Tensor]:
    """PyTorch's own, which modules draw from."""
    states = {"cpu": torch.get_rng_state()}
    if session.parameters.flat.is_cuda:
        states["cuda"] = torch.cuda.get_rng_state(session.parameters.flat.device)
    return states
