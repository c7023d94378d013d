"""Runs contestants interleaved, each run in a fresh process with its thread counts set explicitly.

Why fresh processes: thread pools, allocator state and imports of one contestant cannot help or hurt the next.
Why interleaved: a machine that becomes slower or faster meanwhile does so for everybody. Rounds are in random
order, so nobody always follows the same neighbour. This process imports no PyTorch and sleeps while a
contestant runs.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import random
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("torch", "numpy", "freewheel")
THREAD_VARIABLES = ("OMP_", "MKL_", "KMP_", "GOMP_", "OPENBLAS_", "NUMEXPR_", "VECLIB_", "BLIS_", "TBB_")
TIMEOUT_S = 3600.0  # only against hanging

Values = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Contestant:
    """One side of a comparison.

    Attributes:
        label: in tables; unique in a benchmark.
        name: which function of :mod:`benchmarks.contestants`.
        threads: ``OMP_NUM_THREADS`` of its process.
        settings: its arguments, JSON values; every run adds ``seed``, the number of the round.
    """

    label: str
    name: str
    threads: int
    settings: Mapping[str, Any] = field(default_factory=dict)


class BenchmarkError(RuntimeError):
    """A contestant's process failed; the message has the end of what it wrote."""


class Store:
    """Finished runs of a benchmark that was interrupted, one JSON object a line, so that it can go on.

    Runs of other code are not taken over: the key holds a hash of the sources.

    Args:
        path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._code = fingerprint()
        self._known: dict[str, Values] = {}
        if path is not None and path.is_file():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    record = json.loads(line)
                except ValueError:
                    continue  # the torn last line of an interrupted run
                self._known[record["key"]] = record["values"]

    def get(self, contestant: Contestant, repeat: int) -> Values | None:
        """What this run gave before the interruption."""
        return self._known.get(self._key(contestant, repeat))

    def put(self, contestant: Contestant, repeat: int, values: Values) -> None:
        """Writes a finished run to the file."""
        key = self._key(contestant, repeat)
        self._known[key] = values
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"key": key, "label": contestant.label, "values": values}) + "\n")

    def clear(self) -> None:
        """The benchmark is complete: the next one starts anew."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def _key(self, contestant: Contestant, repeat: int) -> str:
        what = (self._code, contestant.name, contestant.threads, dict(contestant.settings), repeat)
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:32]


def measure(
    contestants: Sequence[Contestant],
    repeats: int,
    store: Store | None = None,
    run: Callable[[Contestant, int], Values] | None = None,
) -> dict[str, list[Values]]:
    """Every contestant once per round, in a random order that differs from round to round.

    Args:
        contestants: with distinct labels.
        repeats: rounds.
        store: keeps finished runs, and gives back those of an interrupted benchmark.
        run: runs a contestant with a seed; the default is a fresh process.

    Returns:
        For every label one result per round, in the order of the rounds: those with the same index are
        paired.
    """
    results: dict[str, list[Values]] = {contestant.label: [] for contestant in contestants}
    if len(results) != len(contestants):
        raise ValueError("the labels of the contestants must differ")
    for repeat in range(repeats):
        for contestant in shuffled(contestants, repeat):
            values = store.get(contestant, repeat) if store else None
            if values is None:
                say(f"round {repeat + 1}/{repeats}: {contestant.label}")
                values = (run or fresh_process)(contestant, repeat)
                if store:
                    store.put(contestant, repeat, values)
            results[contestant.label].append(values)
    return results


def shuffled(items: Sequence[T], round_number: int) -> list[T]:
    """The items in the order of this round."""
    order = list(items)
    random.Random(round_number).shuffle(order)
    return order


def fresh_process(contestant: Contestant, repeat: int) -> Values:
    """Runs a contestant in a new Python process and returns what it measured.

    Its seed is the number of the round, plus ``first_seed`` of its settings where there is one.

    Raises:
        BenchmarkError: it failed, hung, or wrote no result.
    """
    settings = {**contestant.settings, "seed": repeat + contestant.settings.get("first_seed", 0)}
    command = ["-m", "benchmarks.contestants", contestant.name, "--json", json.dumps(settings)]
    return python(command, contestant.threads, contestant.label)


def python(command: Sequence[str], threads: int, label: str) -> Values:
    """Runs Python with these arguments; the last line of its output must be a JSON object.

    Raises:
        BenchmarkError: it failed, hung, or wrote no result.
    """
    try:
        done = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=child_environment(os.environ, threads),
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(f"{label} did not end within {TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        raise BenchmarkError(f"{label} failed ({done.returncode}):\n{done.stderr[-4000:]}")
    try:
        values: Values = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError) as error:
        raise BenchmarkError(f"{label} wrote no result:\n{done.stdout[-1000:]}") from error
    return values


def data_at_hand() -> Values:
    """Which images the contestants will have; asked once, in a process of its own."""
    return fresh_process(Contestant("data", "data", 1), 0)


def child_environment(environment: Mapping[str, str], threads: int) -> dict[str, str]:
    """The environment of a contestant: no thread setting but ``OMP_NUM_THREADS``."""
    kept = {name: value for name, value in environment.items() if not name.startswith(THREAD_VARIABLES)}
    kept["OMP_NUM_THREADS"] = str(threads)
    return kept


def environment() -> Values:
    """What machine, versions and commit this is; and how busy the machine was before the start."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_model(),
        "cores": cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "versions": {package: metadata.version(package) for package in PACKAGES},
        "commit": _commit(),
        "sources": fingerprint(),
        "busy_before_percent": psutil.cpu_percent(interval=0.5),
    }


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint() -> str:
    """Hash of the sources that decide what is measured."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def arguments(description: str | None, repeats: int, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The options that all benchmarks share: quick, repeats, output."""
    return parser(description, repeats).parse_args(argv)


def parser(description: str | None, repeats: int) -> argparse.ArgumentParser:
    """As :func:`arguments`, for a benchmark that adds its own."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--quick", action="store_true", help="run the path in seconds; the numbers mean nothing"
    )
    made.add_argument("--repeats", type=int, default=None, help=f"rounds (default {repeats}, quick 1)")
    made.add_argument(
        "--output", type=Path, default=None, help="folder for the results (default benchmarks/results)"
    )
    made.set_defaults(full_repeats=repeats)
    return made


def repeats_of(options: argparse.Namespace) -> int:
    """How many rounds the options ask for."""
    asked = options.repeats if options.repeats is not None else (1 if options.quick else options.full_repeats)
    if asked < 1:
        raise SystemExit(f"--repeats must be >= 1, got {asked}")
    return int(asked)


def folder_of(options: argparse.Namespace) -> Path:
    """Where results go; quick ones never replace real ones."""
    if options.output is not None:
        return Path(options.output)
    return RESULTS / "quick" if options.quick else RESULTS


def say(text: str) -> None:
    """A line of progress, apart from the tables on standard output."""
    print(text, file=sys.stderr, flush=True)


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or "unknown"


def _commit() -> str:
    head = _git("rev-parse", "--short=12", "HEAD")
    if not head:
        return "none"
    changed = _git("status", "--porcelain", "--", "src", "benchmarks/*.py")
    return f"{head} with uncommitted changes" if changed else head


def _git(*command: str) -> str:
    try:
        done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
