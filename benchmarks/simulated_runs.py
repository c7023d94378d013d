"""Contestants that train on the simulator, and what the simulator costs."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

import freewheel
from benchmarks import workloads
from freewheel import rules, simulation
from freewheel.job import Job, Setup, Stop
from freewheel.methods import METHODS, Method
from freewheel.rules import RuleContext, Span
from freewheel.schedules import annealed
from freewheel.sources import Indexed, Lease, tensors
from freewheel.tasks import StepReport, WorkerContext
from freewheel.update import Update

Settings = Mapping[str, Any]
Values = dict[str, Any]

PLAIN_LOOPS = {
    "gradients": (False, False),
    "gradients and updates": (True, False),
    "gradients and updates, in flight": (True, True),
}
"""Loops without a simulator: whether they apply the gradients, and hold as many as there are workers."""

COMPRESSIONS = {
    "none": None,
    "top_k 1 %": rules.top_k(0.01),
    "top_k 1 %, no feedback": rules.top_k(0.01, error_feedback=False),
    "eight_bit": rules.eight_bit(),
    "half": rules.half(),
}


def method(settings: Settings) -> Method:
    """The method that the settings name, its learning rate annealed over the planned samples."""
    options = dict(settings.get("options", {}))
    lr = annealed(settings["lr"])
    if "robust" in settings:
        options["rule"] = rules.chain(
            *_robust(settings["robust"]), rules.sgd(lr, settings.get("momentum", 0.0))
        )
    else:
        options["lr"] = lr
        if "momentum" in settings:
            options["momentum"] = settings["momentum"]
    if settings.get("compression", "none") != "none":
        options["compression"] = COMPRESSIONS[settings["compression"]]
    maker: Any = METHODS[settings["method"]]
    made: Method = maker(**options)
    return made


def _robust(name: str) -> list[rules.Rule]:
    return {
        "average(8)": [rules.average(8)],
        "median(8)": [rules.median(8)],
        "trimmed_mean(8, 2)": [rules.trimmed_mean(8, 2)],
        "krum(8, 2, select=4)": [rules.krum(8, 2, select=4)],
        "reject_outliers": [rules.reject_outliers()],
        "none": [],
    }[name]


def simulate(settings: Settings) -> Values:
    """One simulated training: accuracy, virtual time to the target, traffic, and real seconds."""
    torch.set_num_threads(1)
    times: simulation.StepTimes = simulation.lognormal(settings["step_s"], settings["sigma"])
    if settings.get("slow"):
        times = simulation.slow(times, {0: settings["slow"]})
    faults = [simulation.corrupt(settings["corrupt"], 100.0)] if settings.get("corrupt") else []
    engine = freewheel.Simulated(times, simulation.Network(**settings.get("network", {})), faults=faults)
    target = settings.get("target")
    module = workloads.build(settings["model"], settings["seed"])
    test = workloads.tensors(settings["data"], "test", settings.get("test_limit"))
    events: list[freewheel.events.Event] = []
    began = time.perf_counter()
    try:
        freewheel.fit(
            module,
            workloads.tensors(settings["data"], "train", settings.get("limit")),
            loss=nn.CrossEntropyLoss(),
            evaluate=test,
            method=method(settings),
            engine=engine,
            workers=settings["workers"],
            batch_size=settings["batch_size"],
            epochs=settings["epochs"],
            evaluate_every=settings.get("evaluate_every"),
            target=None if target is None else ("accuracy", target),
            seed=settings["seed"],
            monitors=[events.append],
        )
        diverged = False
    except freewheel.TrainingError:
        diverged = True
    finished = next(event for event in events if isinstance(event, freewheel.events.RunFinished))
    sent = sum(
        sum(event.worker_bytes_sent) for event in events if isinstance(event, freewheel.events.Traffic)
    )
    updates = sum(finished.staleness.values())
    stale = sum(value * count for value, count in finished.staleness.items())
    return {
        "accuracy": _accuracy(module, test),
        "diverged": diverged,
        "target_seconds": finished.target_seconds,
        "seconds": finished.seconds,
        "samples": finished.samples,
        "samples_per_second": finished.samples / finished.seconds,
        "mean_staleness": stale / max(updates, 1),
        "ledger": finished.ledger,
        "sent_bytes": sent,
        "real_seconds": time.perf_counter() - began,
    }


def _accuracy(module: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    """Of the model as it is; one that has diverged to NaN names the first class for everything."""
    module.eval()
    with torch.no_grad():
        return float((module(test[0]).nan_to_num().argmax(1) == test[1]).float().mean())


class Trivial:
    """A task that computes nothing: it pushes the same four numbers."""

    def init(self, context: WorkerContext) -> Tensor:
        """The gradient."""
        return torch.ones(4)

    def step(self, context: WorkerContext, lease: Lease, state: Tensor) -> StepReport:
        """Pushes it."""
        context.samples = lease.samples
        context.push_gradients([state.clone()])
        return StepReport(0.0, lease.samples)

    def measure(self, module: nn.Module, batch: Any, carry: Any) -> tuple[dict[str, float], int, Any]:
        """Nothing."""
        return {}, 1, None


class Four(nn.Module):
    """Four weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4))


def trivial(settings: Settings) -> Values:
    """Seconds for so many complete steps (pull, compute, push, apply) of a trivial task."""
    torch.set_num_threads(1)
    steps, workers = settings["steps"], settings["workers"]
    network = simulation.Network(**settings["network"])
    cost = simulation.ServerCost(seconds_per_push=1e-6) if not network.instant else simulation.ServerCost()
    engine = freewheel.Simulated(simulation.lognormal(0.01, 0.3), network, cost)
    chosen = freewheel.stale_synchronous(50, 0.01, momentum=0.0)
    source = Indexed(lambda indices: None, steps, 1, shuffle=False)
    job = Job(Four(), Trivial(), chosen, source, Stop(epochs=1), Setup(workers=workers))
    began, cpu = time.perf_counter(), time.process_time()
    result = engine.run(job)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "steps": result.steps,
        "mean_staleness": result.mean_staleness,
    }


def overhead(settings: Settings) -> Values:
    """What the simulator adds to computing the gradients: a plain loop and a simulated run, in turn."""
    torch.set_num_threads(1)
    data = workloads.tensors(settings["data"], "train", settings["samples"])
    loops: dict[str, list[float]] = {label: [] for label in (*PLAIN_LOOPS, "simulated")}
    for number in range(-1, settings["rounds"]):
        for label, seconds in loops.items():
            began = time.perf_counter()
            if label == "simulated":
                _simulated(data, settings)
            else:
                _plain(data, settings, *PLAIN_LOOPS[label])
            if number >= 0:
                seconds.append(time.perf_counter() - began)
    return {"seconds": loops}


def _plain(data: tuple[Tensor, Tensor], settings: Settings, update: bool, in_flight: bool) -> None:
    """A loop without a simulator; with gradients in flight, each is held as long as by a worker."""
    model = workloads.build("mlp", 0)
    weights = list(model.parameters())
    loss = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(weights, lr=0.01, fused=True)
    source = Indexed(tensors(*data), len(data[1]), settings["batch_size"])
    held: deque[tuple[Tensor, ...]] = deque()
    most = settings["workers"] if in_flight else 1
    for number in range(-(-len(data[1]) // settings["batch_size"])):
        inputs, targets = source.fetch(number).batch
        held.append(torch.autograd.grad(loss(model(inputs), targets), weights))
        if len(held) == most:
            _release(held, weights, optimizer if update else None)
    while held:
        _release(held, weights, optimizer if update else None)


def _release(
    held: deque[tuple[Tensor, ...]], weights: list[nn.Parameter], optimizer: torch.optim.Optimizer | None
) -> None:
    gradients = held.popleft()
    if optimizer is not None:
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        optimizer.step()


def _simulated(data: tuple[Tensor, Tensor], settings: Settings) -> None:
    freewheel.fit(
        workloads.build("mlp", 0),
        data,
        loss=nn.CrossEntropyLoss(),
        method=freewheel.stale_synchronous(10**6, 0.01, momentum=0.0),
        engine=freewheel.Simulated(simulation.lognormal(0.01, 0.3)),
        workers=settings["workers"],
        batch_size=settings["batch_size"],
        epochs=1,
    )


def apply(settings: Settings) -> Values:
    """Seconds of an SGD update of ten million weights by the server, and of a bare in-place add."""
    torch.set_num_threads(settings["intra_op_threads"])
    model = nn.ParameterList([nn.Parameter(torch.zeros(size)) for size in settings["sizes"]])
    from freewheel.params import Parameters
    from freewheel.server import Server

    server = Server(Parameters(model), rules.sgd(1e-9), workers=1)
    gradients = [torch.ones(size) for size in settings["sizes"]]
    flat, total = torch.zeros(sum(settings["sizes"])), torch.ones(sum(settings["sizes"]))
    seconds: dict[str, list[float]] = {"server": [], "add_": []}
    for number in range(settings["rounds"]):
        began = time.perf_counter()
        server.push(Update(list(gradients), sequence=number))
        middle = time.perf_counter()
        flat.add_(total, alpha=-1e-9)
        seconds["server"].append(middle - began)
        seconds["add_"].append(time.perf_counter() - middle)
    return {"seconds": {name: values[2:] for name, values in seconds.items()}, "allocated": _allocated()}


def _allocated() -> int:
    """Bytes that the rule allocates in one update of a million weights, as PyTorch's profiler sees."""
    weights, gradient = [torch.zeros(10**6)], torch.ones(10**6)
    rule = rules.sgd(1e-9)
    span = Span(("weight",), weights)
    state, context = rule.init(span), RuleContext(("weight",), weights)
    rule.apply(Update([gradient]), state, context)
    with torch.profiler.profile(profile_memory=True) as profile:
        rule.apply(Update([gradient]), state, context)
    return sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
