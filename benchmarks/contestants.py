"""What runs in a fresh process: ``python -m benchmarks.contestants NAME --json '{"model": "mlp"}'``.

Every contestant is a function from settings to measured values, both JSON. The last line of standard output
is the result. Rates are examples per second of training after a warm-up, on images that lie in memory as
float32.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import nn

import freewheel
from benchmarks import workloads
from benchmarks.harness import shuffled
from benchmarks.workloads import LR, MOMENTUM, Pair

Settings = Mapping[str, Any]
Values = dict[str, Any]

# How a user may ask torch.optim.SGD to go over the parameters; "default" is what nearly everybody has.
OPTIMIZERS: dict[str, dict[str, bool]] = {
    "default": {},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
}


class Run(NamedTuple):
    """How far a loop came."""

    samples: int
    seconds: float
    mean_loss: float


def plain_loop(
    model: nn.Module,
    data: Pair,
    settings: Settings,
    max_samples: float = math.inf,
    max_seconds: float = math.inf,
) -> Run:
    """The loop that a user writes by hand.

    The same as ``freewheel.fit`` with one worker: a new permutation every epoch, batches by ``index_select``,
    the loss's value read at every step (``fit`` reads it for its progress and to drop updates that are not
    finite), SGD with momentum. Not the same: no events, no ledger, no check for NaN.
    """
    inputs, targets = data
    batch_size, channels_last = settings["batch_size"], settings.get("channels_last", False)
    model.train()
    if channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in the stubs
    loss_function = nn.CrossEntropyLoss()
    extra = OPTIMIZERS[settings.get("optimizer", "default")]
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM, **extra)
    samples, total, steps = 0, 0.0, 0
    began = time.perf_counter()
    while True:
        order = torch.randperm(len(targets))
        for start in range(0, len(targets), batch_size):
            indices = order[start : start + batch_size]
            x, y = inputs.index_select(0, indices), targets.index_select(0, indices)
            if channels_last:
                x = x.contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()
            total += loss.item()
            samples += len(indices)
            steps += 1
            seconds = time.perf_counter() - began
            if samples >= max_samples or seconds >= max_seconds:
                return Run(samples, seconds, total / steps)


def fit_loop(data: Pair, settings: Settings, **further: Any) -> tuple[freewheel.Result, float]:
    """``freewheel.fit`` on a new model; returns its result and the seconds before and after training.

    Learning rate and momentum are those of the plain loop, also where Hogwild! would choose a lower momentum:
    a step is then the same work.

    Args:
        data: to train on.
        settings: of the contestant; "momentum": None leaves that to the method.
        further: arguments of ``fit``, such as where it ends.
    """
    model = workloads.build(settings["model"], settings["seed"])
    began = time.perf_counter()
    result = freewheel.fit(
        model,
        data,
        loss=nn.CrossEntropyLoss(),
        method=workloads.method({"lr": LR, "momentum": MOMENTUM, **settings}),
        engine=settings.get("engine", "threads"),
        workers=settings.get("workers", 1),
        intra_op_threads=settings.get("intra_op_threads", 1),
        batch_size=settings["batch_size"],
        channels_last=settings.get("channels_last", "auto"),
        seed=settings["seed"],
        **further,
    )
    return result, time.perf_counter() - began - result.seconds


def bare(settings: Settings) -> Values:
    """Rate of the plain loop with a number of intra-op threads."""
    torch.set_num_threads(settings["intra_op_threads"])
    data = workloads.tensors(settings["data"], "train")
    for seconds in (settings["warmup_seconds"], settings["seconds"]):
        model = workloads.build(settings["model"], settings["seed"])
        run = plain_loop(model, data, settings, max_seconds=seconds)
    return {"samples_per_second": run.samples / run.seconds, **run._asdict()}


def fit(settings: Settings) -> Values:
    """Rate of ``freewheel.fit``, by its training clock."""
    data = workloads.tensors(settings["data"], "train")
    fit_loop(data, settings, max_seconds=settings["warmup_seconds"])
    result, around = fit_loop(data, settings, max_seconds=settings["seconds"])
    return {
        "samples_per_second": result.samples_per_second,
        "samples": result.samples,
        "seconds": result.seconds,
        "cpu_seconds": result.cpu_seconds,
        "seconds_around_training": around,
        "mean_staleness": result.mean_staleness,
        "dropped": result.ledger["dropped"],
    }


def slices(settings: Settings) -> Values:
    """Plain loops and ``fit`` on one worker, in turn, in one process: rates per slice, for every variant.

    A slice is a new model trained on a fixed number of samples, the same for every variant, about
    ``slice_seconds`` long. The variants of a round follow each other in random order. In one process, because
    thirty pairs in fresh ones would take an hour, and because neighbouring slices see the same machine. The
    number of threads is set again before each slice, and garbage of the slice before is collected outside the
    clock.
    """
    data = workloads.tensors(settings["data"], "train")
    variants: list[dict[str, Any]] = settings["variants"]
    shared = {name: settings[name] for name in ("model", "batch_size", "seed")}
    torch.set_num_threads(1)
    trial = plain_loop(
        workloads.build(settings["model"], 0), data, shared, max_seconds=settings["warmup_seconds"]
    )
    samples = max(1, round(trial.samples / trial.seconds * settings["slice_seconds"]))
    rates: dict[str, list[float]] = {variant["label"]: [] for variant in variants}
    around: dict[str, list[float]] = {variant["label"]: [] for variant in variants}
    for number in range(-1, settings["rounds"]):  # round -1 is the warm-up of every variant
        for variant in shuffled(variants, number):
            rate, extra = _slice(data, {**shared, **variant, "seed": max(0, number)}, samples)
            if number >= 0:
                rates[variant["label"]].append(rate)
                around[variant["label"]].append(extra)
    typical = {label: median(seconds) for label, seconds in around.items()}
    return {"rates": rates, "samples_per_slice": samples, "seconds_around_training": typical}


def _slice(data: Pair, settings: Settings, samples: int) -> tuple[float, float]:
    gc.collect()
    torch.set_num_threads(1)
    if settings["kind"] == "fit":
        result, around = fit_loop(data, settings, max_samples=samples)
        return result.samples_per_second, around
    run = plain_loop(
        workloads.build(settings["model"], settings["seed"]), data, settings, max_samples=samples
    )
    return run.samples / run.seconds, 0.0


def train(settings: Settings) -> Values:
    """A whole training with evaluations on the test images: history, final accuracy, time to the target."""
    inputs = workloads.tensors(settings["data"], "train", settings.get("limit"))
    target = settings.get("target")
    optional = {name: settings[name] for name in ("batch_size", "intra_op_threads") if name in settings}
    began = time.perf_counter()
    result = freewheel.fit(
        workloads.build(settings["model"], settings["seed"]),
        inputs,
        loss=nn.CrossEntropyLoss(),
        evaluate=workloads.tensors(settings["data"], "test", settings.get("test_limit")),
        method=workloads.method(settings),
        workers=settings["workers"],
        epochs=settings.get("epochs"),
        max_samples=settings.get("max_samples"),
        target=None if target is None else ("accuracy", target),
        evaluate_every=settings.get("evaluate_every"),
        seed=settings["seed"],
        **optional,
    )
    return {
        "accuracy": result.metrics["accuracy"],
        "target_seconds": result.target_seconds,
        "reason": result.reason,
        "seconds": result.seconds,
        "call_seconds": time.perf_counter() - began,
        "cpu_seconds": result.cpu_seconds,
        "samples": result.samples,
        "samples_per_second": result.samples_per_second,
        "mean_staleness": result.mean_staleness,
        "rule": result.config["rule"],
        "training_images": len(inputs[1]),
        "history": [(e.seconds, e.samples, e.metrics["accuracy"]) for e in result.history],
    }


def matmul(settings: Settings) -> Values:
    """What this machine really does in matrix products: GFLOP/s per core, float32."""
    threads, size = settings["intra_op_threads"], settings["size"]
    torch.set_num_threads(threads)
    a, b, out = torch.rand(size, size), torch.rand(size, size), torch.empty(size, size)
    count, began = 0, 0.0
    for seconds in (settings["warmup_seconds"], settings["seconds"]):
        count, began = 0, time.perf_counter()
        while time.perf_counter() - began < seconds:
            torch.mm(a, b, out=out)
            count += 1
    rate = 2 * size**3 * count / (time.perf_counter() - began)
    return {"gflops_per_core": rate / threads / 1e9}


def flops(settings: Settings) -> Values:
    """Floating-point operations of forward and backward pass, per sample, as PyTorch's counter has them.

    Matrix products and convolutions only, as is usual; a multiplication and an addition are two operations.
    """
    from torch.utils.flop_counter import FlopCounterMode

    model, batch = workloads.build(settings["model"], 0), 16
    x, y = torch.rand(batch, 1, 28, 28), torch.zeros(batch, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        nn.functional.cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
    return {"flops_per_sample": counter.get_total_flops() / batch}


def inventory(settings: Settings) -> Values:
    """Which images there are: decided once per benchmark, so that all contestants have the same."""
    name = workloads.available()
    return {"data": name, "training_images": len(workloads.images(name, "train"))}


CONTESTANTS: dict[str, str | Callable[[Settings], Values]] = {
    "bare": bare,
    "fit": fit,
    "slices": slices,
    "train": train,
    "matmul": matmul,
    "data": inventory,
    "flops": flops,
    "ddp": "benchmarks.ddp:speed",
    "ddp_memory": "benchmarks.ddp:memory",
    "fit_memory": "benchmarks.memory_probes:fit_memory",
    "gradient_bytes": "benchmarks.memory_probes:gradient_bytes",
    "simulate": "benchmarks.simulated_runs:simulate",
    "trivial": "benchmarks.simulated_runs:trivial",
    "overhead": "benchmarks.simulated_runs:overhead",
    "apply": "benchmarks.simulated_runs:apply",
    "agreement": "benchmarks.calibration_probes:agreement",
    "checkpointed": "benchmarks.process_probes:checkpointed",
    "deaths": "benchmarks.process_probes:deaths",
    "preempted": "benchmarks.process_probes:preempted",
    "until_preempted": "benchmarks.process_probes:until_preempted",
    "first_step": "benchmarks.process_probes:first_step",
    "soak": "benchmarks.soak_runs:soak",
    "samples_to_target": "benchmarks.calibration_probes:samples_to_target",
}


def find(name: str) -> Callable[[Settings], Values]:
    """The contestant of this name; some live in modules of their own, imported only when they run."""
    found = CONTESTANTS[name]
    if not isinstance(found, str):
        return found
    module, _, function = found.partition(":")
    loaded: Callable[[Settings], Values] = getattr(importlib.import_module(module), function)
    return loaded


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(CONTESTANTS))
    parser.add_argument("--json", default="{}", help="settings, a JSON object")
    options = parser.parse_args(argv)
    print(json.dumps(find(options.name)(json.loads(options.json))))


if __name__ == "__main__":
    main()
