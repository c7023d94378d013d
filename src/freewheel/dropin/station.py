"""A worker's side of the shared weights: with a launcher, or alone in its process."""

from __future__ import annotations

import copy
import socket
from dataclasses import dataclass
from multiprocessing import reduction
from typing import Any

import torch

from freewheel.dropin.hub import controlled
from freewheel.dropin.messages import Barrier, Passed, Refused, Register, Welcome
from freewheel.dropin.pulse import Pulse
from freewheel.dropin.tally import Tally
from freewheel.engines.processes.board import Board
from freewheel.engines.processes.delivery import Delivery, Direct, Served
from freewheel.engines.processes.mailbox import Mailbox
from freewheel.engines.processes.messages import Line
from freewheel.engines.processes.parcel import unpacked
from freewheel.engines.processes.shared import WORDS, Arena
from freewheel.engines.worker import Equipment, Life
from freewheel.errors import ConfigurationError, TrainingError
from freewheel.job import Setup
from freewheel.methods import Method
from freewheel.params import Parameters
from freewheel.server import Server


@dataclass
class Station:
    """What a worker's optimizer works with.

    Attributes:
        rank: which worker.
        life: how often it was started before.
        equipment: what a worker's side is made of.
        server: over the shared weights and the shared state of the rule.
        delivery: where updates go.
        tally: what each worker has done.
        controls: ``(2,)`` float64, of the rule that descends; the first worker writes them.
        pulse: its signs of life.
    """

    rank: int
    life: int
    equipment: Equipment
    server: Server
    delivery: Delivery
    tally: Tally
    controls: torch.Tensor
    pulse: Pulse


def alone(parameters: Parameters, method: Method, seed: int) -> Station:
    """A station of one worker, whose server is in this process."""
    server = Server(parameters, method.rule_for(1), 1, method.rounds, None, seed=seed)
    controls = controlled(server, method, None)
    tally = Tally(torch.zeros((1, WORDS), dtype=torch.int64))
    equipment = Equipment(parameters, method, Setup(1, seed=seed), None)
    pulse = Pulse(Board(torch.zeros((2, WORDS), dtype=torch.int64)), 0)
    return Station(0, 0, equipment, server, Direct(server, Life()), tally, controls, pulse)


def joined(line: Line, rank: int, life: int, register: Register) -> Station:
    """The station of a worker among others.

    Raises:
        ConfigurationError: the launcher refuses the model or the method.
        TrainingError: the launcher is gone.
    """
    answer = asked(line, register)
    if isinstance(answer, Refused):
        raise ConfigurationError(answer.reason)
    assert isinstance(answer, Welcome)
    with socket.fromfd(line.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        descriptors = reduction.recvfds(connection, answer.segments)
    arena = Arena.attached(descriptors)
    kit = unpacked(answer.parcel, arena)
    arena.close_descriptors()
    mailboxes: list[Mailbox] = kit["mailboxes"]
    server: Server = kit["server"]
    known = Life(life)
    delivery = Served(line, mailboxes[rank], kit["gated"], known) if mailboxes else Direct(server, known)
    pulse = Pulse(kit["board"], rank)
    return Station(rank, life, kit["equipment"], server, delivery, kit["tally"], kit["controls"], pulse)


def asked(line: Line, message: Any) -> Any:
    """The launcher's answer.

    Raises:
        TrainingError: it is gone.
    """
    try:
        line.send(message)
        return line.receive()
    except (EOFError, OSError) as error:
        raise TrainingError("the launcher of this worker has ended; start the run again") from error


def wait_for_all(line: Line, number: int) -> None:
    """Waits until every worker does, or has ended; not at a barrier that was passed before this life."""
    answer = asked(line, Barrier(number))
    assert isinstance(answer, Passed)


def twin(parameters: Parameters, flat: torch.Tensor, statistics: torch.Tensor) -> Parameters:
    """The same layout over other vectors."""
    other = copy.copy(parameters)
    other.flat, other.statistics = flat, statistics
    return other
