"""``compare``: several methods with the same budget, each run in a fresh process."""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from freewheel import engines, fresh_process, methods
from freewheel.comparison import Comparison
from freewheel.errors import ConfigurationError, DataError, FreewheelError
from freewheel.fresh_process import Entry
from freewheel.methods import Method
from freewheel.train import fit

if TYPE_CHECKING:
    from freewheel.report import Run

MAY_DIFFER = (
    "method",
    "engine",
    "workers",
    "intra_op_threads",
    "batch_size",
    "precision",
    "channels_last",
)
BUDGET = ("epochs", "max_samples", "max_seconds", "target", "evaluate_every")
INDEX = "comparison.json"
PAYLOAD = "payload.pickle"

Contestants = Mapping[str, Method | str | Mapping[str, Any]] | Sequence[Method | str]


def compare(
    model: nn.Module | Callable[[], nn.Module],
    data: Any,
    *,
    contestants: Contestants,
    seeds: Iterable[int] = (0, 1, 2),
    baseline: str | None = None,
    progress: bool = True,
    run_dir: str | Path | None = None,
    **fit_arguments: Any,
) -> Comparison:
    """Trains the same model by several methods with the same budget, and says which won.

    Every run has a fresh process to itself, because thread settings and the state of allocators leak from one
    run into the next. Runs are interleaved: every contestant runs with the first seed, then with the second,
    in rotating order, so that a machine that slows down slows all alike.

    Args:
        model: a function without arguments, or a class, that makes the module: called in the child after
            ``torch.manual_seed(seed)``, so contestants of the same seed begin with the same weights. A module
            makes all runs begin with its weights; it is not changed.
        data: as in :func:`freewheel.fit`.
        contestants: label -> a method, or a dictionary of the arguments of ``fit`` in which it differs
            (``method``, ``engine``, ``workers``, ``intra_op_threads``, ``batch_size``, ``precision``,
            ``channels_last``); or a list of methods.
        seeds: one run of every contestant for each.
        baseline: the label of the synchronous contestant to judge by; the fastest one if left out, to the
            target where all its runs reached it, else in samples per second.
        progress: show how it stands.
        run_dir: a folder to keep every run's configuration, events and weights, and the report.
        **fit_arguments: of :func:`freewheel.fit`, the same for all.

    Returns:
        The runs, their summary, and the verdict. After Ctrl-C it has the runs that had come to their end.

    Raises:
        ConfigurationError: an argument cannot be used, or a contestant would get another budget.
        DataError: the data does not fit.
        TrainingError: a run failed; the message has the traceback. A run that diverges is not a failure: it
            counts as one that did not come to its end.

            Whatever the error, its attribute ``comparison`` has the runs that had come to their end before
            it, or is None if there were none; with ``run_dir`` they are kept there, too.
        KeyboardInterrupt: Ctrl-C before any run had come to its end.

    Example:
        ::

            comparison = freewheel.compare(
                freewheel.recipes.cnn,
                train,
                loss=nn.CrossEntropyLoss(),
                evaluate=test,
                epochs=3,
                contestants={
                    "hogwild": freewheel.hogwild(),
                    "two threads": {"method": "synchronous", "workers": 1, "intra_op_threads": 2},
                },
            )
            print(comparison)
    """
    table = _contestants(contestants)
    chosen = _seeds(seeds)
    _check_arguments(model, fit_arguments, table, baseline)
    payload = {"model": model, "data": data, "arguments": fit_arguments, "contestants": table}
    with tempfile.TemporaryDirectory(prefix="freewheel-") as private:  # made with mode 0700
        folder = Path(private) / "runs" if run_dir is None else Path(run_dir)
        fresh_process.pack(Path(private) / PAYLOAD, payload)
        entries = interleaved(list(table), chosen)
        keep = run_dir is not None
        comparison = _run_all(entries, Path(private) / PAYLOAD, folder, keep, progress, baseline)
    if keep:
        comparison.report(folder / "report.html")
    return comparison


def interleaved(labels: Sequence[str], seeds: Sequence[int]) -> list[Entry]:
    """The order of the runs: seed by seed, each time beginning with another contestant.

    >>> [f"{entry.label}{entry.seed}" for entry in interleaved(["a", "b"], [7, 8])]
    ['a7', 'b7', 'b8', 'a8']
    """
    order = []
    for turn, seed in enumerate(seeds):
        first = turn % len(labels)
        order += [Entry(label, seed) for label in (*labels[first:], *labels[:first])]
    return order


def recorded(folder: Path) -> Comparison | None:
    """A comparison that was kept with ``run_dir``; None if the folder holds none.

    Raises:
        DataError: the record is damaged.
    """
    from freewheel.report import Run

    index = folder / INDEX
    if not index.is_file():
        return None
    try:
        read = json.loads(index.read_text(encoding="utf-8"))
        baseline = read.get("baseline")
        places = [(folder / entry["folder"], str(entry["label"])) for entry in read["runs"]]
        if not places or not isinstance(baseline, str | None):
            raise ValueError("it lists no runs, or its baseline is no label")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{index} is damaged: {error}; give the folders of the single runs") from error
    return Comparison(tuple(Run.from_directory(place, label) for place, label in places), baseline)


def _run_all(
    entries: Sequence[Entry], payload: Path, folder: Path, keep: bool, progress: bool, baseline: str | None
) -> Comparison:
    from freewheel.report import Run
    from freewheel.scoreboard import scoreboard, silence

    runs: list[Run] = []
    names: list[dict[str, Any]] = []
    outs = _folders(entries, folder)
    try:
        with (scoreboard if progress else silence)(len(entries)) as begin:
            for entry, out in zip(entries, outs, strict=True):
                fresh_process.run(entry, payload, out, keep, begin(entry))
                runs.append(Run.from_directory(out, entry.label))
                names.append({"folder": out.name, "label": entry.label, "seed": entry.seed})
                if keep:
                    index = json.dumps({"runs": names, "baseline": baseline}, indent=2)
                    (folder / INDEX).write_text(index + "\n", encoding="utf-8")
    except KeyboardInterrupt:
        if not runs:
            raise
        return Comparison(tuple(runs), baseline, True)
    except FreewheelError as error:
        if runs:
            error.comparison = Comparison(tuple(runs), baseline, True)
            error.args = (f"{error}\n{_finished(names, folder if keep else None)}",)
        raise
    return Comparison(tuple(runs), baseline)


def _finished(names: Sequence[Mapping[str, Any]], kept: Path | None) -> str:
    """What a run that failed has not spoilt."""
    which = ", ".join(f"{name['label']} with seed {name['seed']}" for name in names)
    where = "in the error's attribute `comparison`"
    if kept is not None:
        where = f"kept in {kept}, where `freewheel report` finds them, and {where}"
    return f"These runs had finished before it: {which}; they are {where}."


def _folders(entries: Sequence[Entry], folder: Path) -> list[Path]:
    """One folder for each run.

    Raises:
        ConfigurationError: one of them holds a run already.
    """
    labels = list(dict.fromkeys(entry.label for entry in entries))
    slugs = {label: re.sub(r"[^\w.-]+", "-", label).strip("-.") or "contestant" for label in labels}
    if len(set(slugs.values())) < len(labels):
        slugs = {label: f"{number}-{slug}" for number, (label, slug) in enumerate(slugs.items())}
    outs = [folder / f"{slugs[entry.label]}-seed{entry.seed}" for entry in entries]
    for out in outs:
        if (out / fresh_process.EVENTS).exists():
            raise ConfigurationError(
                f"`run_dir`: {out} holds a run already; choose another folder, or remove it"
            )
    return outs


# --- checks, before anything runs ---------------------------------------------------------------------------


def _contestants(given: Contestants) -> dict[str, dict[str, Any]]:
    """Label -> the arguments of ``fit`` in which it differs."""
    if isinstance(given, str) or not isinstance(given, Mapping | Sequence):
        raise ConfigurationError(
            f"`contestants` must be a dictionary label -> method, or a list of methods, got {given!r}"
        )
    if not isinstance(given, Mapping):
        labels = [one.name if isinstance(one, Method) else one for one in given]
        if len(set(map(str, labels))) < len(labels):
            raise ConfigurationError(
                f"`contestants` have the same name: {', '.join(map(str, labels))};"
                " give a dictionary label -> method"
            )
        given = dict(zip(map(str, labels), given, strict=True))
    if not given:
        raise ConfigurationError("`contestants` must hold at least one; such as ['hogwild', 'synchronous']")
    return {str(label): _differs(str(label), one) for label, one in given.items()}


def _differs(label: str, given: Method | str | Mapping[str, Any]) -> dict[str, Any]:
    arguments = dict(given) if isinstance(given, Mapping) else {"method": given}
    for name in arguments:
        if name in MAY_DIFFER:
            continue
        why = "the budget and the target are the same for all" if name in BUDGET else "it is the same for all"
        raise ConfigurationError(
            f"contestant {label!r} may not have its own `{name}`: {why}, give it to compare() itself;"
            f" contestants may differ in {', '.join(MAY_DIFFER)}"
        )
    return arguments


def _seeds(given: Iterable[int]) -> list[int]:
    if isinstance(given, int):
        raise ConfigurationError(f"`seeds` must be a list of whole numbers, got {given}; use range({given})")
    seeds = list(given)
    if (
        not seeds
        or len(set(seeds)) < len(seeds)
        or not all(isinstance(seed, int) and seed >= 0 for seed in seeds)
    ):
        raise ConfigurationError(f"`seeds` must be one or more different whole numbers >= 0, got {seeds}")
    return seeds


def _check_arguments(
    model: Any, arguments: Mapping[str, Any], table: Mapping[str, Mapping[str, Any]], baseline: str | None
) -> None:
    """What the children would refuse is refused now, rather than when the last of them starts."""
    if not isinstance(model, nn.Module) and not callable(model):
        raise ConfigurationError(
            f"`model` must be a torch.nn.Module or a function that makes one, got {type(model).__name__}"
        )
    known = [name for name in inspect.signature(fit).parameters if name not in ("model", "data")]
    for name in arguments:
        if name == "seed":
            raise ConfigurationError("`seed` cannot be given to compare(); use seeds=[...]")
        if name == "monitors":
            raise ConfigurationError(
                "`monitors` cannot be given to compare(): the runs are in other processes; look at its `runs`"
            )
        if name == "resume":
            raise ConfigurationError("`resume` cannot be given to compare(): its runs begin anew")
        if name not in known:
            raise ConfigurationError(f"`{name}` is no argument of fit(); they are {', '.join(known)}")
    for label, own in table.items():
        _check_contestant(label, {**arguments, **own})
    if baseline is not None:
        _check_baseline(baseline, {**arguments, **table[baseline]} if baseline in table else None, table)


def _check_contestant(label: str, arguments: Mapping[str, Any]) -> None:
    try:
        methods.by_name(arguments.get("method"))
        engines.by_name(arguments.get("engine", "threads"))
        for name, default in (("workers", "auto"), ("intra_op_threads", None), ("batch_size", None)):
            value = arguments.get(name, default)
            if value != default and (not isinstance(value, int) or value < 1):
                raise ConfigurationError(f"`{name}` must be a whole number >= 1, got {value!r}")
    except ConfigurationError as error:
        raise ConfigurationError(f"contestant {label!r}: {error}") from error


def _check_baseline(baseline: str, arguments: Mapping[str, Any] | None, labels: Iterable[str]) -> None:
    if arguments is None:
        raise ConfigurationError(f"`baseline` must be one of {', '.join(labels)}, got {baseline!r}")
    method = methods.by_name(arguments.get("method"))
    if not method.rounds:
        raise ConfigurationError(
            f"`baseline` must be a synchronous contestant, got {baseline!r}, which is {method.name}"
        )
