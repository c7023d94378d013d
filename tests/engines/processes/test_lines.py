"""What processes say to each other: lines, the queue of batch numbers, and Ctrl-C between two messages."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import socket
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import FrameType
from typing import Any

import pytest
import torch

from freewheel.engines.interrupts import Interrupts
from freewheel.engines.processes.lease_queue import END, LeaseQueue, next_number
from freewheel.engines.processes.messages import BatchSent, Line


@pytest.fixture
def ends() -> Iterator[tuple[Line, Line]]:
    here, there = (Line(end) for end in multiprocessing.Pipe())
    yield here, there
    here.close()
    there.close()


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, 4),
        torch.randn(3, 4).t(),
        torch.tensor(2.5),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
        torch.empty(0, 5),
        torch.eye(3).to_sparse(),
        torch.ones(2, requires_grad=True),
        torch.tensor([1 + 2j]).conj(),
    ],
    ids=lambda tensor: f"{tensor.dtype}-{tuple(tensor.shape)}-{tensor.layout}",
)
def test_tensors_arrive_and_are_the_receivers_own(ends: tuple[Line, Line], tensor: torch.Tensor) -> None:
    ends[0].send(BatchSent(3, {"x": [tensor]}, 1, 0, False, None))
    received = ends[1].arrived()
    result = received.batch["x"][0]
    assert received.number == 3
    assert torch.equal(result.to_dense(), tensor.to_dense())
    assert (result.dtype, result.requires_grad) == (tensor.dtype, tensor.requires_grad)
    if result.layout is torch.strided and not result.requires_grad:
        result.zero_()
        assert torch.equal(tensor.to_dense(), received.batch["x"][0].to_dense()) == (not tensor.numel())


def test_half_a_message_is_not_waited_for() -> None:
    here, there = socket.socketpair()
    with here:
        line = Line(multiprocessing.connection.Connection(there.detach()))
        assert line.arrived() is None
        data = pickle.dumps({"x": list(range(1000))})
        message = struct.pack("=Q", len(data)) + data
        for part in (message[:5], message[5:100], message[100:-1]):
            here.sendall(part)
            assert line.arrived() is None
        here.sendall(message[-1:] + message)
        assert line.arrived() == line.arrived() == {"x": list(range(1000))}
        assert line.arrived() is None
        line.close()


def test_who_does_not_read_is_not_waited_for_long() -> None:
    here, there = multiprocessing.Pipe()
    line = Line(here, patience_s=0.05)
    with there, pytest.raises(BrokenPipeError, match=r"has read nothing for 0\.05 s"):
        line.send(torch.zeros(10_000_000))
    line.close()


def test_a_closed_line_says_so(ends: tuple[Line, Line]) -> None:
    here, there = (Line(end) for end in multiprocessing.Pipe())
    here.close()
    with pytest.raises(EOFError):
        there.receive()
    there.close()


# --- the queue ---


@pytest.fixture
def queue() -> Iterator[LeaseQueue]:
    made = LeaseQueue(workers=3)
    yield made
    made.close()


def read(queue: LeaseQueue, count: int) -> list[int]:
    return [next_number(queue.reader) for _ in range(count)]


def test_numbers_come_in_order_and_one_end_for_every_worker(queue: LeaseQueue) -> None:
    queue.open(range(5, 8))
    assert read(queue, 6) == [5, 6, 7, END, END, END]
    queue.open([8])
    assert read(queue, 2) == [8, END]


def test_a_queue_longer_than_the_pipe_is_fed(queue: LeaseQueue) -> None:
    queue.open(range(20_000))
    found: list[int] = []
    while END not in found:
        found.extend(read(queue, 1000 if len(found) < 20_000 else 3))
        queue.feed()
    assert found == [*range(20_000), END, END, END]


def test_what_was_not_taken_is_not_taken_later(queue: LeaseQueue) -> None:
    queue.open(range(20_000))
    read(queue, 2)
    queue.clear()
    queue.feed()
    queue.open([50])
    assert read(queue, 2) == [50, END]


def test_stopping_wakes_those_who_wait(queue: LeaseQueue) -> None:
    found: list[int] = []
    waiting = [threading.Thread(target=lambda: found.extend(read(queue, 1))) for _ in range(3)]
    for thread in waiting:
        thread.start()
    queue.stop()
    for thread in waiting:
        thread.join(30)
    assert found == [END] * 3


def test_stopping_a_full_queue_waits_for_nobody(queue: LeaseQueue) -> None:
    queue.open(range(20_000))
    queue.stop()
    queue.feed()
    queue.clear()
    queue.open([7])
    assert read(queue, 1) == [7]


def test_no_two_processes_get_the_same_number(queue: LeaseQueue) -> None:
    """Nor does any read half of one, whatever the system does between two reads."""
    found: list[list[int]] = [[], [], []]

    def take(mine: list[int]) -> None:
        while (number := next_number(queue.reader)) != END:
            mine.append(number)

    threads = [threading.Thread(target=take, args=(mine,)) for mine in found]
    queue.open(range(30_000))
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        queue.feed()
    assert sorted(number for mine in found for number in mine) == list(range(30_000))


# --- Ctrl-C ---


@pytest.fixture
def handled() -> Iterator[list[int]]:
    """Signals that the program's own handler has seen."""
    seen: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, handle)
    yield seen
    signal.signal(signal.SIGINT, before)


def interrupt(seen: Sequence[int] = ()) -> list[int]:
    """Does what Ctrl-C does; returns what has been handled by then, before the next instruction."""
    os.kill(os.getpid(), signal.SIGINT)
    return list(seen)


def test_a_signal_waits_while_it_is_held(handled: list[int]) -> None:
    reached: list[Any] = []
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt), interrupts.held():
            reached.append(interrupt(handled))
        with pytest.raises(KeyboardInterrupt):
            interrupt()
    assert reached == [[]]
    assert handled == [signal.SIGINT] * 2


def test_an_error_goes_before_a_signal_that_waits(handled: list[int]) -> None:
    with Interrupts() as interrupts:
        with suppress(ValueError), interrupts.held():
            interrupt()
            raise ValueError
        assert not interrupts.waiting
    assert handled == []


def test_a_second_signal_insists(handled: list[int]) -> None:
    with Interrupts() as interrupts, suppress(KeyboardInterrupt), interrupts.held(insist=True):
        interrupt()
        assert interrupts.waiting
        interrupt()
        handled.append(-1)  # is not reached
    assert handled == [signal.SIGINT]


def test_a_signal_is_let_through_in_between(handled: list[int]) -> None:
    with Interrupts() as interrupts, interrupts.held():
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            interrupts.let_through()
        assert not interrupts.waiting
    assert handled == [signal.SIGINT]


def test_handlers_are_the_programs_again_afterwards(handled: list[int]) -> None:
    before = signal.getsignal(signal.SIGINT)
    with Interrupts():
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_have_no_handlers() -> None:
    def enter() -> None:
        with Interrupts() as interrupts, interrupts.held():
            pass

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGINT) is before
