"""Runs the benchmarks and writes a summary: ``python -m benchmarks [--quick] [NAME ...]``.

All of them take about two hours on two cores that do nothing else; ``--quick`` takes a few minutes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from benchmarks import harness, reporting

# Short ones first: what is broken shows early.
NAMES = (
    "import_time",
    "memory",
    "overhead",
    "scaling",
    "processes",
    "calibration",
    "accuracy",
    "time_to_accuracy",
    "simulator",
    "robustness",
    "compression",
    "stragglers",
    "soak",
)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which of them; default all: {', '.join(NAMES)}"
    )
    parser.add_argument(
        "--quick", action="store_true", help="run the path in minutes; the numbers mean nothing"
    )
    parser.add_argument(
        "--repeats", type=int, default=None, help="rounds, in place of each benchmark's own number"
    )
    parser.add_argument("--output", type=Path, default=None, help="folder for the results")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(NAMES)}")
    folder = harness.folder_of(options)
    failed = [name for name in options.names or NAMES if not _run(name, options)]
    reports = [reporting.read(path) for name in NAMES if (path := folder / f"{name}.json").is_file()]
    page = reporting.summary(reports)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(page, encoding="utf-8")
    print(page)
    return 1 if failed else 0


def _run(name: str, options: argparse.Namespace) -> bool:
    """One benchmark; a failure is told and does not keep the others from running."""
    arguments = ["--quick"] if options.quick else []
    if options.repeats is not None:
        arguments += ["--repeats", str(options.repeats)]
    if options.output is not None:
        arguments += ["--output", str(options.output)]
    harness.say(f"== {name}")
    try:
        importlib.import_module(f"benchmarks.{name}").main(arguments)
    except harness.BenchmarkError as error:
        harness.say(f"{name} failed: {error}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
