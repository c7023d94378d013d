"""``fit``: the front door."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from freewheel import elastic, engines, methods
from freewheel.checkpoints.folder import newest
from freewheel.checkpoints.start import sigterm_as_ctrl_c, with_checkpoints
from freewheel.engines import Auto, Engine, Processes, Threads
from freewheel.errors import ConfigurationError, DataError
from freewheel.evaluation import check_function, check_metrics, over_source
from freewheel.events import Monitor, RunStarted
from freewheel.injection import injected
from freewheel.inputs import source_of
from freewheel.job import Evaluation, Job, Result, Setup, Stop, Supervision
from freewheel.machine import cores
from freewheel.methods import Method
from freewheel.metrics import Target
from freewheel.params import check_module
from freewheel.probe import check_step
from freewheel.recording import Trace
from freewheel.recording.checks import check_recordable
from freewheel.shards import check_shards, split
from freewheel.sources import Sequences, Source
from freewheel.tasks import Supervised
from freewheel.tasks.supervised import Loss, Metric, Step

EVALUATION_BATCH = 500


def fit(
    model: nn.Module,
    data: Any,
    *,
    loss: Loss | None = None,
    step: Step | None = None,
    evaluate: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    method: Method | str | None = None,
    engine: Engine | str = "threads",
    workers: int | Literal["auto"] = "auto",
    intra_op_threads: int | None = None,
    shards: int = 1,
    batch_size: int = 16,
    bptt: int | None = None,
    epochs: int | None = None,
    max_samples: int | None = None,
    max_seconds: float | None = None,
    target: Target | None = None,
    evaluate_every: int | None = None,
    seed: int = 0,
    precision: Literal["float32", "bf16"] = "float32",
    channels_last: bool | Literal["auto"] = "auto",
    monitors: Sequence[Monitor] = (),
    run_dir: str | Path | None = None,
    record: bool = False,
    checkpoint_every: float | Literal["auto"] | None = "auto",
    keep_checkpoints: int = 3,
    resume: str | Path | None = None,
    on_error: Literal["restart", "stop"] | None = None,
    max_restarts: int = 10,
    step_timeout: float | None = None,
) -> Result:
    """Trains a model, asynchronously on all cores unless told otherwise.

    Args:
        model: any module with float32 parameters. Its weights are trained in place.
        data: ``(inputs, targets)`` tensors, a ``Dataset``, a ``DataLoader``, an iterable of batches, or, with
            ``bptt``, a 1-D int64 tensor of tokens. The workers' threads read a map-style data set at the same
            time; one that cannot bear that (one file handle for all) goes into a ``DataLoader`` with
            ``num_workers=1`` or more. Worker processes read copies of it, which share its tensors. A list
            holds examples; ``DataLoader(batches, batch_size=None)`` takes one of batches.
        loss: ``loss(prediction, target)``, a scalar tensor; for batches ``(inputs, targets)``.
        step: ``step(module, batch) -> loss``, in place of ``loss``, for anything else (dictionaries, several
            losses).
        evaluate: data to measure on, or a function ``(module) -> {name: value}``. Training stands still
            meanwhile. A function is called once before the run, on a copy, to see what it gives.
        metrics: further ``{name: metric(prediction, target)}``, averaged over the evaluation's examples.
            Loss, and accuracy where targets are integer classes, need not be named.
        method: :func:`freewheel.hogwild` (the default), :func:`freewheel.synchronous`,
            :func:`freewheel.downpour` or another of ``freewheel.methods``, or a name.
        engine: "threads"; "processes", where the Python of a step, and not PyTorch, takes the time, or where
            a step may crash; "auto" chooses between the two by running some steps, for half a second, on a
            copy of the model, and says why; "serial"; or an engine, such as
            ``freewheel.Processes(pin=True)``.
        workers: how many; "auto" is one per core for asynchronous methods, and one with all cores for
            synchronous, or as many as a run had that goes on. On processes, :func:`set_workers` changes the
            number while it runs.
        intra_op_threads: PyTorch threads inside each worker's operations. The default is 1, or all cores for
            the single worker that "auto" gives a synchronous method.
        shards: spans of the weights with versions and rule states of their own, as on several servers.
        batch_size: examples in one worker's minibatch. Staleness costs less with small ones.
        bptt: steps of truncated back-propagation through time; the module is called as ``module(inputs,
            hidden)`` with inputs of shape (batch, steps), and returns (prediction, hidden).
        epochs: passes over the data; 1 if no other end is given.
        max_samples: examples after which to end.
        max_seconds: seconds of training after which to end; evaluation does not count.
        target: ``("accuracy", 0.9)``: end when it holds at two evaluations in a row. A third item, "min" or
            "max", says which way is better where the metric's name does not tell.
        evaluate_every: examples between evaluations; the default is an epoch.
        seed: of the order of the data and of PyTorch's generator during the run, which is restored
            afterwards. With one worker, runs with the same seed are equal bit for bit, dropout included.
            Several threads race, and share PyTorch's generator; processes race, each with generators of its
            own.
        precision: "bf16" computes the forward and backward pass in bfloat16 where the processor has it.
        channels_last: memory format of images and convolutions; "auto" takes it for 2-D convolutions.
        monitors: callables that get every event, such as ``print`` or :func:`freewheel.monitors.progress`.
        run_dir: a folder to write configuration, events, weights (safetensors) and the report to.
        record: write the order of pulls and pushes and every single step, too, so that
            :func:`freewheel.replay` can run it again bit for bit, and :func:`freewheel.audit` check it.
            Needs `run_dir`, workers with a copy of the weights, and data with an index. Pulls and pushes then
            exclude each other, which costs some speed.
        checkpoint_every: seconds of training between two checkpoints in ``run_dir/checkpoints``: weights,
            optimizer, workers, position in the data, generators. Workers stand still while it is copied in
            memory, for a step at most; it is written beside the training. One more is written when the run
            ends, by Ctrl-C or SIGTERM too, but not by an error. None writes none. "auto" is 60, or None on
            the simulated engine, which refuses a number: its runs can be repeated by their seed.
        keep_checkpoints: how many to keep; older ones are removed.
        resume: the directory of a run, or of one checkpoint, to go on from; needs the arguments of that run,
            of which only the end (`epochs`, `max_samples`, `max_seconds`, `target`) and, on processes, the
            number of `workers` may be another. Seconds,
            samples and events go on, too. With the same `run_dir` the run is continued there.
        on_error: "restart" replaces a worker that raises an exception and, on processes, one that dies or
            hangs; what it had in hand is computed again, so every batch is used at least once. "stop" ends
            the run with its error. The default is "restart" on processes and threads, and "stop" elsewhere
            and for runs that are recorded, where nobody can be replaced. Divergence ends every run, and so
            does what is no accident: three failures in a row of a worker that finished no step, or of workers
            with the same batch in hand.
        max_restarts: replacements in the whole run; the next failure ends it.
        step_timeout: seconds after which the step of a worker is taken to hang. A process is killed and
            replaced; the default there is a minute, or twenty times the longest step so far, if that is
            longer; ``math.inf`` never. A thread can be neither, so the run ends; the default there is never.

    Returns:
        What came of it; ``result.report("report.html")`` shows it.

    Raises:
        ConfigurationError: an argument cannot be used.
        CheckpointError: `resume` has no complete checkpoint, or it is of another job.
        DataError: the data is empty, not finite, or does not fit.
        WorkerError: a worker raised an error, which is its cause, or its process died, and it was not
            replaced.
        TrainingError: training diverged.

    Example:
        >>> import torch, freewheel
        >>> x = torch.randn(256, 8); y = (x.sum(1) > 0).long()
        >>> result = freewheel.fit(torch.nn.Linear(8, 2), (x, y), loss=torch.nn.CrossEntropyLoss(),
        ...                        evaluate=(x, y), workers=2, batch_size=16, epochs=20)
        >>> result.metrics["accuracy"] > 0.9
        True
    """
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"`model` must be a torch.nn.Module, got {type(model).__name__}")
    chosen, runner = methods.by_name(method), engines.by_name(engine)
    setup = _setup(model, chosen, workers, intra_op_threads, seed, channels_last)
    if resume is not None and workers == "auto":
        setup = _staffed_as(Path(resume), setup, intra_op_threads)
    task = _task(model, loss, step, chosen, metrics, precision, setup, bptt)
    if epochs is max_samples is max_seconds is None:
        epochs = 1
    stop = Stop(epochs, max_samples, max_seconds, target)
    check_module(model)
    setup = _sharded(setup, shards, model, chosen)
    if resume is not None and isinstance(data, Iterator):
        raise ConfigurationError(
            "`resume` reads the data again up to where the run was, but `data` is an iterator, which can be"
            " read only once; give an object that can be iterated again, such as a Dataset or a DataLoader"
        )
    source = _source(data, batch_size, seed, bptt, setup, chosen, stop)
    if record:
        runner = Threads() if isinstance(runner, Auto) else runner
        check_recordable(model, chosen, runner.name, source, setup.workers, run_dir)
    setup, task = _checked_format(model, task, source, setup, channels_last)
    evaluation = _evaluation(evaluate, model, task, evaluate_every, bptt, stop)
    config = _describe(model, task, setup, precision)
    job = Job(model, task, chosen, source, stop, setup, evaluation, config, Trace() if record else None)
    if isinstance(runner, Auto):
        runner, job = _decided(job, resume)
    job = replace(job, supervision=_supervision(on_error, max_restarts, step_timeout, runner, record))
    job = with_checkpoints(job, runner.name, run_dir, checkpoint_every, keep_checkpoints, resume)
    job = injected(job, runner.name)  # last: a checkpoint is of the job that was asked for
    if run_dir is not None and runner.name in elastic.ENGINES:
        job = replace(job, requests=elastic.Requests(Path(run_dir)))
    runner.check(job)
    with sigterm_as_ctrl_c(job), _held(run_dir):
        result = _run(runner, job, _listening(run_dir, monitors, job), run_dir)
        if run_dir is not None:
            _keep(Path(run_dir), result)
    return result


def _decided(job: Job, resume: str | Path | None) -> tuple[Engine, Job]:
    """The engine that suits the job, or that of the run that goes on; the job tells why."""
    if resume is not None:
        name = newest(Path(resume)).tree["identity"]["engine"]
        engine, reason = engines.by_name(name), "the run that goes on began on it"
    else:
        engine, reason = engines.auto.chosen(job)
    return engine, replace(job, config={**job.config, "engine_reason": reason})


def _run(runner: Engine, job: Job, monitors: Sequence[Monitor], run_dir: str | Path | None) -> Result:
    """Runs the job; the recording, if there is to be one, is kept however the run ends."""
    if job.trace is None or run_dir is None:
        return runner.run(job, monitors)
    from freewheel.recording.folder import kept

    with kept(Path(run_dir), job):
        return runner.run(job, monitors)


def _sharded(setup: Setup, shards: int, model: nn.Module, method: Method) -> Setup:
    """The setup with this number of shards, if the model and the method's rule can be cut so."""
    check_shards(shards, sum(p.numel() for p in model.parameters() if p.requires_grad))
    rule = method.rule_for(setup.workers)
    if shards > 1:
        split(rule)
        if method.granularity == "layer":
            raise ConfigurationError(
                f"`shards`={shards} cuts whole updates, but granularity='layer' pushes them in pieces; use"
                " shards=1 or granularity='model'"
            )
    return replace(setup, shards=shards)


def _keep(folder: Path, result: Result) -> None:
    """Writes weights and report; a full disk must not cost the user what was trained."""
    from freewheel.rundir import finish

    try:
        finish(folder, result)
    except Exception as error:
        warnings.warn(
            f"the run is complete, but `run_dir` {folder} is not: {type(error).__name__}: {error}; the result"
            " holds the trained module",
            stacklevel=3,
        )


def _checked_format(
    model: nn.Module, task: Supervised, source: Source, setup: Setup, wanted: bool | Literal["auto"]
) -> tuple[Setup, Supervised]:
    """Probes the first step; "auto" goes without channels_last where a model does not bear it (``view``)."""
    try:
        check_step(model, task, source)
    except ConfigurationError as error:
        if not task.channels_last:
            raise
        plain = replace(task, channels_last=False)
        try:
            check_step(model, plain, source)
        except ConfigurationError:
            raise error from None  # the format is not to blame
        if wanted != "auto":
            raise ConfigurationError(
                f"`channels_last`=True does not fit the model: {error}; use flatten() or reshape() in place"
                " of view(), or channels_last=False"
            ) from error
        return replace(setup, channels_last=False), plain
    return setup, task


def _source(
    data: Any, batch_size: int, seed: int, bptt: int | None, setup: Setup, method: Method, stop: Stop
) -> Source:
    # Groups to spare let a worker of an asynchronous method go on while others still hold theirs.
    spare = 1 if method.rounds or setup.workers == 1 else 2
    source = source_of(data, batch_size, seed, bptt=bptt, streams=spare * setup.workers)
    if isinstance(source, Sequences) and source.streams < setup.workers:
        raise ConfigurationError(
            f"`data` has {source.streams} streams, fewer than the {setup.workers} `workers`; make it with"
            " more"
        )
    if isinstance(data, Iterator) and (stop.epochs or 1) > 1:
        raise ConfigurationError(
            f"`data` is an iterator, which can be read only once, and `epochs` is {stop.epochs}; give an"
            " object that can be iterated again, such as a Dataset or a DataLoader"
        )
    return source


def _setup(
    model: nn.Module,
    method: Method,
    workers: int | Literal["auto"],
    intra_op_threads: int | None,
    seed: int,
    channels_last: bool | Literal["auto"],
) -> Setup:
    if workers != "auto" and (not isinstance(workers, int) or workers < 1):
        raise ConfigurationError(
            f"`workers` must be a whole number >= 1, or 'auto' for one per core, got {workers!r}"
        )
    threads = intra_op_threads
    if threads is not None and (not isinstance(threads, int) or threads < 1):
        raise ConfigurationError(
            f"`intra_op_threads` must be a whole number >= 1, got {threads!r}; leave it out"
        )
    if isinstance(workers, str):
        # Workers on one GPU queue for it: two hide each other's Python, more only take memory.
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        count = 1 if method.rounds else 2 if on_gpu else max(1, cores() // (threads or 1))
        threads = threads or (cores() if method.rounds else 1)
    else:
        count = workers
    if not isinstance(seed, int) or not 0 <= seed < 2**32:
        raise ConfigurationError(f"`seed` must be a whole number from 0 to 2**32 - 1, got {seed!r}")
    if channels_last not in (True, False, "auto"):
        raise ConfigurationError(f"`channels_last` must be True, False or 'auto', got {channels_last!r}")
    last = _wants_channels_last(model) if channels_last == "auto" else bool(channels_last)
    return Setup(count, threads or 1, seed, last)


def _staffed_as(resume: Path, setup: Setup, intra_op_threads: int | None) -> Setup:
    """The setup with as many workers as the run had when its checkpoint was written."""
    workers = newest(resume).tree["identity"]["workers"]
    if workers == setup.workers:
        return setup
    return replace(setup, workers=workers, intra_op_threads=intra_op_threads or 1)


def _wants_channels_last(model: nn.Module) -> bool:
    """2-D convolutions run faster on channels_last tensors, on processors and on GPUs alike."""
    return any(isinstance(m, nn.Conv2d | nn.ConvTranspose2d) for m in model.modules())


def _task(
    model: nn.Module,
    loss: Loss | None,
    step: Step | None,
    method: Method,
    metrics: Mapping[str, Metric] | None,
    precision: str,
    setup: Setup,
    bptt: int | None,
) -> Supervised:
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    return Supervised(
        loss=loss,
        step_function=step,
        granularity=method.granularity,
        recurrent=bptt is not None,
        metrics=dict(metrics or {}),
        autocast=_autocast(precision, device),
        device=None if device.type == "cpu" else device,
        channels_last=setup.channels_last,
    )


def _autocast(precision: str, device: torch.device) -> bool:
    if precision == "float32":
        return False
    if precision != "bf16":
        raise ConfigurationError(f"`precision` must be 'float32' or 'bf16', got {precision!r}")
    supported = (
        torch.cuda.is_bf16_supported()
        if device.type == "cuda"
        else hasattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported")
        and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )
    if not supported:
        raise ConfigurationError(
            f"`precision`='bf16': this {device.type} has no bfloat16 arithmetic; use precision='float32'"
        )
    return True


def _evaluation(
    evaluate: Any, model: nn.Module, task: Supervised, every: int | None, bptt: int | None, stop: Stop
) -> Evaluation | None:
    if evaluate is None:
        if every is not None or stop.target is not None:
            name = "target" if every is None else "evaluate_every"
            raise ConfigurationError(f"`{name}` needs `evaluate`: data, or a function, to measure on")
        return None
    if callable(evaluate) and not hasattr(evaluate, "__len__"):
        stop.check_metrics(check_function(model, evaluate))
        return Evaluation(evaluate, every)
    try:
        source = _evaluation_source(evaluate, bptt)
        stop.check_metrics(check_metrics(model, task, source))
    except (ConfigurationError, DataError) as error:
        raise type(error)(str(error).replace("`data`", "`evaluate`")) from error
    return Evaluation(over_source(task, source), every)


def _evaluation_source(evaluate: Any, bptt: int | None) -> Source:
    if isinstance(evaluate, Iterator):
        raise ConfigurationError(
            "`evaluate` is an iterator, which can be read only once; give a Dataset or a DataLoader"
        )
    if bptt is None:
        return source_of(evaluate, EVALUATION_BATCH, 0, shuffle=False)
    size = len(evaluate) if hasattr(evaluate, "__len__") else 0
    return source_of(evaluate, max(1, min(32, (size - 1) // (4 * bptt))), 0, bptt=bptt)


def _describe(model: nn.Module, task: Supervised, setup: Setup, precision: str) -> dict[str, Any]:
    import freewheel

    return {
        "model": type(model).__name__,
        "granularity": task.granularity,
        "intra_op_threads": setup.intra_op_threads,
        "shards": setup.shards,
        "channels_last": setup.channels_last,
        "precision": precision,
        "cores": cores(),
        "freewheel": freewheel.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
    }


def _supervision(
    on_error: Literal["restart", "stop"] | None,
    max_restarts: int,
    step_timeout: float | None,
    runner: Engine,
    recorded: bool,
) -> Supervision:
    if on_error == "restart" and recorded:
        raise ConfigurationError(
            "`record`=True notes pulls and pushes, and cannot note that a worker was replaced, but `on_error`"
            " is 'restart'; use on_error='stop', or record=False"
        )
    able = isinstance(runner, Processes | Threads) and not recorded
    if on_error == "restart" and not able:
        raise ConfigurationError(
            f"`on_error`='restart' replaces workers, which `engine` {runner.name!r} cannot; use"
            " engine='threads' or 'processes', or on_error='stop'"
        )
    return Supervision(on_error or ("restart" if able else "stop"), max_restarts, step_timeout)


def _held(run_dir: str | Path | None) -> AbstractContextManager[None]:
    """Keeps other runs from writing to the folder."""
    if run_dir is None:
        return nullcontext()
    from freewheel.rundir import held

    return held(Path(run_dir))


def _listening(run_dir: str | Path | None, monitors: Sequence[Monitor], job: Job) -> list[Monitor]:
    if not isinstance(monitors, Sequence) or not all(map(callable, monitors)):
        raise ConfigurationError(
            f"`monitors` must be a list of functions that take an event, got {monitors!r}"
        )
    if run_dir is None:
        return list(monitors)
    from freewheel.rundir import begin

    folder, steps = Path(run_dir), job.trace is not None
    origin = job.checkpoints.origin if job.checkpoints is not None else None
    if origin is None:
        return [*monitors, begin(folder, steps)]
    earlier = [event for event in origin.events if not isinstance(event, RunStarted)]
    return [*monitors, begin(folder, steps, earlier, same=folder.resolve() == origin.run.resolve())]
