"""How much memory gradients and workers take."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import freewheel
import freewheel.events
from benchmarks import workloads
from benchmarks.contestants import Settings, Values
from benchmarks.ddp import PeakMemory
from benchmarks.workloads import LR, MOMENTUM, Pair


class LiveGradients(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of living gradients, by watching every operation of this thread.

    A gradient is a tensor with as many elements as some weight that an operation inside a backward pass has
    allocated. It lives until its storage is freed, whoever holds it: ``.grad``, autograd's buffers, an update
    on its way. Whatever a layer-wise update allocates in the backward pass for itself counts too.

    Args:
        weights: of the model.

    Attributes:
        peak_bytes: highest sum so far.
        largest_bytes: largest single gradient so far.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._sizes = {weight.numel() * weight.element_size() for weight in weights}
        self._living: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak_bytes = 0
        self.largest_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operation and looks at what it allocated."""
        before = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        result = func(*args, **(kwargs or {}))
        in_backward = torch._C._current_graph_task_id() != -1
        if in_backward:
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and _address(leaf) not in before:
                    self._add(leaf)
            self._count()
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.nbytes() in self._sizes:
            reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            self._living[reference.cdata] = (reference, storage.nbytes())
            self.largest_bytes = max(self.largest_bytes, storage.nbytes())

    def _count(self) -> None:
        for key, (reference, _) in list(self._living.items()):
            if reference.expired():  # type: ignore[no-untyped-call]
                del self._living[key]
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._living.values()))


def gradient_bytes(settings: Settings) -> Values:
    """Peak of living gradient bytes, and of all that a few training steps have allocated at once.

    On one worker of the serial engine, which computes in the calling thread, where both instruments can see
    it. ``variant`` is "plain" (``loss.backward()`` and ``torch.optim.SGD``), "model" or "layer"
    (granularities of fit). The peak is taken twice: over the whole call, which with ``fit`` has the check of
    the first batch in it, and over the training alone.
    """
    torch.set_num_threads(1)
    model = workloads.build(settings["model"], 0)
    data = workloads.tensors(settings["data"], "train", settings["batch_size"] * 4)
    body = _plain if settings["variant"] == "plain" else _fit
    weights = list(model.parameters())
    living = LiveGradients(weights)
    before = 0

    def training_begins() -> None:
        nonlocal before
        before, living.peak_bytes = living.peak_bytes, 0

    with living:
        body(model, data, settings, training_begins)
    return {
        "call_peak_bytes": max(before, living.peak_bytes),
        "training_peak_bytes": living.peak_bytes,
        "largest_gradient_bytes": living.largest_bytes,
        "weight_bytes": sum(weight.numel() * weight.element_size() for weight in weights),
        "profiler_peak_bytes": _profiled(lambda: body(model, data, settings, lambda: None)),
    }


def _plain(model: nn.Module, data: Pair, settings: Settings, training_begins: Callable[[], None]) -> None:
    inputs, targets = data
    size = settings["batch_size"]
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    training_begins()
    for start in range(0, len(targets), size):
        optimizer.zero_grad()
        output = model(inputs[start : start + size])
        loss: Tensor = nn.functional.cross_entropy(output, targets[start : start + size])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    optimizer.zero_grad()


def _fit(model: nn.Module, data: Pair, settings: Settings, training_begins: Callable[[], None]) -> None:
    def listen(event: freewheel.events.Event) -> None:
        if isinstance(event, freewheel.events.RunStarted):
            training_begins()

    freewheel.fit(
        model,
        data,
        loss=nn.CrossEntropyLoss(),
        method=workloads.method({"lr": LR, "momentum": MOMENTUM, "granularity": settings["variant"]}),
        engine="serial",
        workers=1,
        batch_size=settings["batch_size"],
        epochs=1,
        monitors=[listen],
    )


def _profiled(body: Callable[[], None]) -> int:
    """Peak of the bytes that were allocated in the block and not yet freed, as PyTorch's profiler has it."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        body()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


def fit_memory(settings: Settings) -> Values:
    """Proportional set size of this process while ``fit`` trains on many worker threads."""
    data = workloads.tensors(settings["data"], "train", settings["images"])
    model = workloads.build(settings["model"], settings["seed"])
    workers, batch = settings["workers"], settings["batch_size"]
    with PeakMemory() as peak:
        result = freewheel.fit(
            model,
            data,
            loss=nn.CrossEntropyLoss(),
            method=workloads.method({"lr": LR, "momentum": MOMENTUM, **settings}),
            workers=workers,
            batch_size=batch,
            intra_op_threads=1,
            max_samples=(settings["warmup_steps"] + settings["steps"]) * workers * batch,
        )
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return {
        "pss_bytes": peak.pss_bytes,
        "uss_bytes": peak.uss_bytes,
        "weight_bytes": weights,
        "reason": result.reason,
    }


def _address(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
