"""One run of a comparison in a fresh process: the parent's side; the child's is contestant.py.

Thread settings, allocator state and imported modules leak from one run into the next, so no two runs of a
comparison share a process. The parent writes what to run into a private folder and reads back JSON: it never
unpickles anything.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from freewheel.errors import ConfigurationError, DataError, TrainingError
from freewheel.events import Event, from_json

EVENTS, ERROR, OUTPUT = "events.jsonl", "error.json", "output.txt"  # in a run's folder
POLL_S = 0.2
PATIENCE_S = 5.0  # for a child that was asked to end, before it is killed


@dataclass(frozen=True)
class Entry:
    """One run: a contestant and a seed."""

    label: str
    seed: int

    def __str__(self) -> str:
        return f"{self.label!r} with seed {self.seed}"


def pack(file: Path, payload: Mapping[str, Any]) -> None:
    """Writes what all runs share, by value what a child cannot import (lambdas, notebooks, ``__main__``).

    Raises:
        ConfigurationError: something cannot be sent to another process; the message names it.
    """
    import cloudpickle  # type: ignore[import-untyped]

    try:
        blob = cloudpickle.dumps(dict(payload))
    except Exception as error:
        named = {**payload, **payload.get("arguments", {})}
        culprit = next(
            (name for name, value in named.items() if name != "arguments" and not _can_be_sent(value)), "?"
        )
        raise ConfigurationError(
            f"`{culprit}` cannot be sent to another process ({type(error).__name__}: {error});"
            " leave out open files, locks and generators, or make them in a factory: model=lambda: MyModel()"
        ) from error
    file.write_bytes(blob)


def run(entry: Entry, payload: Path, out: Path, keep: bool, listen: Callable[[Event], None]) -> None:
    """Runs one entry in a fresh process and waits for it; its events are then in ``out``.

    Args:
        entry: what to run.
        payload: what :func:`pack` wrote.
        out: an empty or missing folder for configuration, events and weights.
        keep: write the weights, too.
        listen: hears how the run stands while it goes on.

    Raises:
        ConfigurationError: the child refused an argument.
        DataError: the child refused the data.
        TrainingError: the child failed otherwise; the message has its traceback. Not for a run that diverged:
            that is a result.
    """
    _make(out)
    job = payload.with_name("job.json")
    job.write_text(
        json.dumps(
            {
                "payload": str(payload),
                "label": entry.label,
                "seed": entry.seed,
                "keep": keep,
                "paths": [path or os.getcwd() for path in sys.path],
            }
        ),
        encoding="utf-8",
    )
    with (out / OUTPUT).open("wb") as output, _child(job, out, output) as child:
        follow = _Follower(out / EVENTS, listen)
        while True:
            try:
                code = child.wait(POLL_S)
                break
            except subprocess.TimeoutExpired:
                follow()
        follow()
    if code != 0:
        _explain(entry, out, code)
    if not (out / OUTPUT).stat().st_size:
        (out / OUTPUT).unlink()


def _can_be_sent(value: Any) -> bool:
    import cloudpickle

    try:
        cloudpickle.dumps(value)
    except Exception:
        return False
    return True


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"`run_dir` {out} cannot be made: {error.strerror}; choose another folder"
        ) from error


@contextmanager
def _child(job: Path, out: Path, output: BinaryIO) -> Iterator[subprocess.Popen[bytes]]:
    """The process; whatever happens here, it has ended afterwards."""
    package = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([package, *([inherited] if inherited else [])]),
    }
    # -P: the working folder does not come first on the path, so a torch.py of the user's does no harm.
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "freewheel.contestant", str(job), str(out)],
        stdin=subprocess.PIPE,  # nothing is ever written: the child sees its end when this process is gone
        stdout=output,
        stderr=subprocess.STDOUT,
        env=environment,
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()
        if child.stdin is not None:
            child.stdin.close()


class _Follower:
    """Hands on the events that the child has written since the last call."""

    def __init__(self, path: Path, listen: Callable[[Event], None]) -> None:
        self._path, self._listen = path, listen
        self._read = 0

    def __call__(self) -> None:
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._read)
            for line in stream:
                if not line.endswith(b"\n"):
                    break  # not wholly written yet
                self._read += len(line)
                self._listen(from_json(line.decode("utf-8")))


def _explain(entry: Entry, out: Path, code: int) -> None:
    """Raises the child's error as one of this process; returns for a run that diverged."""
    file = out / ERROR
    if not file.exists():
        tail = (out / OUTPUT).read_text(encoding="utf-8", errors="replace").strip()[-2000:]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        why = (
            "; the system may have run out of memory: lower batch_size or workers"
            if code == -signal.SIGKILL
            else ""
        )
        raise TrainingError(
            f"contestant {entry} ended with {how}{why}" + (f"; its output was:\n{tail}" if tail else "")
        )
    error = json.loads(file.read_text(encoding="utf-8"))
    kind, message = error["kind"], error["message"]
    if kind == "TrainingError":
        return
    for known in (ConfigurationError, DataError):
        if kind == known.__name__:
            raise known(f"contestant {entry}: {message}")
    raise TrainingError(
        f"contestant {entry} failed: {message}\n{error['traceback'].rstrip()}\n"
        "Mend that; freewheel.fit(..., engine='serial', workers=1) alone is something a debugger can follow"
    )
