"""The peer: DistributedDataParallel with gloo, one process a core, one intra-op thread each.

In its favour: the images lie in shared memory, so that no process copies them; gloo talks over the loopback
device; "tuned" turns on what DDP's documentation recommends for speed (gradients as views of the buckets, a
static graph) and PyTorch's fused optimizer.
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from benchmarks import workloads
from benchmarks.contestants import OPTIMIZERS, Settings, Values
from benchmarks.workloads import LR, MOMENTUM, Pair

SAMPLE_S = 0.02


def speed(settings: Settings) -> Values:
    """Examples per second of all processes together, between two barriers; all take equally many steps."""
    results = _launch(_race, settings, workloads.tensors(settings["data"], "train"))
    seconds = max(result["seconds"] for result in results)
    samples = sum(result["samples"] for result in results)
    return {"samples_per_second": samples / seconds, "samples": samples, "seconds": seconds}


def memory(settings: Settings) -> Values:
    """Proportional set size of the processes while they train; the launching process is not counted."""
    results = _launch(_weigh, settings, workloads.tensors(settings["data"], "train", settings["images"]))
    return {
        "pss_bytes": sum(result["pss_bytes"] for result in results),
        "uss_bytes": sum(result["uss_bytes"] for result in results),
    }


def _launch(body: Any, settings: Settings, data: Pair) -> list[Values]:
    """Runs ``body(rank, ...)`` in new processes and returns what each of them put into the queue."""
    for tensor in data:
        tensor.share_memory_()  # type: ignore[no-untyped-call]
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ["OMP_NUM_THREADS"] = "1"
    queue = get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        spawn(  # type: ignore[no-untyped-call]
            _member, (body, dict(settings), data, meeting, queue), nprocs=settings["processes"]
        )
    return [queue.get() for _ in range(settings["processes"])]


def _member(rank: int, body: Any, settings: Settings, data: Pair, meeting: str, queue: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=settings["processes"])
    try:
        queue.put(body(_Member(rank, settings, data)))
        dist.barrier()
    finally:
        dist.destroy_process_group()


class _Member:
    """One process's model, optimizer and endless stream of its share of the batches."""

    def __init__(self, rank: int, settings: Settings, data: Pair) -> None:
        tuned = settings.get("tuned", False)
        model = workloads.build(settings["model"], settings["seed"])
        self.channels_last = settings.get("channels_last", False)
        if self.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
        self.model = DistributedDataParallel(model, gradient_as_bucket_view=tuned, static_graph=tuned)
        extra = OPTIMIZERS["fused" if tuned else "default"]
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LR, momentum=MOMENTUM, **extra)
        self.loss_function = nn.CrossEntropyLoss()
        self.settings = settings
        self.batches = _batches(data, rank, settings["processes"], settings["batch_size"])

    def steps(self, count: int) -> float:
        """Takes this many steps between two barriers; returns the seconds."""
        dist.barrier()
        began = time.perf_counter()
        for _ in range(count):
            x, y = next(self.batches)
            if self.channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            self.optimizer.zero_grad()
            loss = self.loss_function(self.model(x), y)
            loss.backward()
            self.optimizer.step()
            loss.item()
        dist.barrier()
        return time.perf_counter() - began


def _batches(data: Pair, rank: int, processes: int, batch_size: int) -> Iterator[Pair]:
    """Full batches of this process's share; what ``DistributedSampler`` does, without a loader's cost."""
    inputs, targets = data
    shared = torch.Generator().manual_seed(0)
    while True:
        mine = torch.randperm(len(targets), generator=shared)[rank::processes]
        for start in range(0, len(mine) - batch_size + 1, batch_size):
            indices = mine[start : start + batch_size]
            yield inputs.index_select(0, indices), targets.index_select(0, indices)


def _race(member: _Member) -> Values:
    settings = member.settings
    member.steps(5)
    trial = member.steps(20)
    member.steps(_agreed(settings["warmup_seconds"] * 20 / trial))
    trial = member.steps(20)
    count = _agreed(settings["seconds"] * 20 / trial)
    seconds = member.steps(count)
    return {"samples": count * settings["batch_size"], "seconds": seconds}


def _agreed(steps: float) -> int:
    """The number that process 0 says: all must take the same number of steps."""
    number: Tensor = torch.tensor([max(1, round(steps))])
    dist.broadcast(number, src=0)
    return int(number)


def _weigh(member: _Member) -> Values:
    member.steps(member.settings["warmup_steps"])
    with PeakMemory() as peak:
        member.steps(member.settings["steps"])
    return {"pss_bytes": peak.pss_bytes, "uss_bytes": peak.uss_bytes}


class PeakMemory:
    """Highest memory of this process while a block runs, looked at every few hundredths of a second.

    Attributes:
        pss_bytes: proportional set size: pages shared by n processes count 1/n in each.
        uss_bytes: unique set size: pages of this process alone.
    """

    def __init__(self) -> None:
        self.pss_bytes = 0
        self.uss_bytes = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._process = psutil.Process()

    def __enter__(self) -> PeakMemory:
        self._look()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self._look()

    def _look(self) -> None:
        info = self._process.memory_full_info()
        self.pss_bytes = max(self.pss_bytes, getattr(info, "pss", info.uss))
        self.uss_bytes = max(self.uss_bytes, info.uss)
