"""``freewheel run`` with real processes."""

from __future__ import annotations

import difflib
import json
import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import nn

SCRIPT = Path(__file__).parent / "script.py"
EXAMPLES = Path(__file__).parent.parent.parent / "examples"
PATIENCE_S = 100
MARK = "FREEWHEEL_TEST_OF_RUN"  # a variable by which all processes of a run are found


def command(*arguments: str, workers: int = 2) -> list[str]:
    return [sys.executable, "-m", "freewheel", "run", "--workers", str(workers), *arguments]


def run(*arguments: str, workers: int = 2, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs to the end; afterwards none of its processes is left."""
    mark = uuid.uuid4().hex
    done = subprocess.run(
        command(*arguments, workers=workers),
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
        cwd=folder,
        env={**os.environ, MARK: mark},
    )
    await_the_end_of(mark)
    return done


def await_the_end_of(mark: str) -> None:
    """Waits until no process has this in its environment."""
    ends = time.monotonic() + PATIENCE_S
    while left := marked(mark):
        assert time.monotonic() < ends, left
        time.sleep(0.05)


def marked(mark: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def told(output: str) -> list[tuple[int, dict[str, Any]]]:
    """(rank, what it said) of every line."""
    return [(int(line[1]), json.loads(line[4:])) for line in output.splitlines() if line[3:5] == " {"]


def computed(output: str) -> dict[int, Counter[int]]:
    """Epoch -> how often each sample was computed on."""
    found: dict[int, Counter[int]] = {}
    for _, said in told(output):
        if "indices" in said:
            found.setdefault(said["epoch"], Counter()).update(said["indices"])
    return found


def test_two_synchronous_workers_equal_one_optimizer_on_joined_batches() -> None:
    done = run(str(SCRIPT), '{"method": "synchronous", "lr": 0.1, "momentum": 0.9}')
    assert done.returncode == 0, done.stderr
    assert all(set(counts.values()) == {1} and len(counts) == 61 for counts in computed(done.stdout).values())
    assert {rank for rank, _ in told(done.stdout)} == {0, 1}
    [weights] = [said["weights"] for _, said in told(done.stdout) if "weights" in said]
    torch.manual_seed(0)
    inputs = torch.randn(61, 10)
    targets = (inputs[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [0.1]
    for _ in range(4):
        for first in range(0, 61, 8):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(inputs[first : first + 8]), targets[first : first + 8])
            torch.autograd.backward(loss)
            optimizer.step()
        scheduler.step()
    expected = torch.cat([value.flatten() for value in model.state_dict().values()])
    assert torch.allclose(torch.tensor(weights), expected, atol=1e-5)


def test_in_rounds_all_begin_an_epoch_with_the_same_weights() -> None:
    done = run(str(SCRIPT), '{"method": "local_sgd", "steps": 3, "lr": 0.1}', workers=3)
    assert done.returncode == 0, done.stderr
    begun = [(said["begins"], said["at"]) for _, said in told(done.stdout) if "begins" in said]
    assert Counter(epoch for epoch, _ in begun) == dict.fromkeys(range(4), 3)
    assert len(set(begun)) == 4


def test_a_module_gets_all_that_comes_after_its_name(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "shown.py").write_text("import sys; print(__name__, sys.argv[1:])")
    arguments = ["--debug", "--workers", "9", "-m", "--", "x"]
    done = run("--module", "package.shown", *arguments, workers=1, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"[0] __main__ {arguments}\n"


def test_what_the_method_of_the_launcher_does_not_have_is_left_out() -> None:
    done = run("--method", "downpour", str(SCRIPT), '{"lr": 0.05, "momentum": 0.9}')
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count("--method downpour has no momentum: what the script says of that is left out") == 1
    )


def check_killed_once(done: subprocess.CompletedProcess[str]) -> None:
    """Worker 1 was killed, and came back; every sample was computed on, and something was learnt."""
    assert done.returncode == 0, done.stderr
    assert "worker 1 was killed by SIGKILL; started again" in done.stderr
    assert "1 restart\n" in done.stderr
    assert "freewheel: epoch 0 is done already: it passes without a batch" in done.stderr
    epochs = computed(done.stdout)
    assert all(len(counts) == 61 for counts in epochs.values())
    assert len(epochs) == 4
    [accuracy] = [said["accuracy"] for _, said in told(done.stdout) if "accuracy" in said]
    assert accuracy > 0.8


def test_a_worker_that_hangs_is_replaced_and_one_that_evaluates_is_not(tmp_path: Path) -> None:
    done = run("--step-timeout", "5s", str(SCRIPT), '{"lr": 0.05}', f"stall={tmp_path / 'again'}", "setup")
    assert done.returncode == 0, done.stderr
    assert re.search(
        r"worker 1 hung \(no sign of life for \d+ s\) and was killed; started again", done.stderr
    )
    assert done.stderr.count("started again") == 1
    epochs = computed(done.stdout)
    assert [len(epochs[epoch]) for epoch in range(4)] == [61] * 4


@pytest.mark.parametrize("method", ["hogwild", "downpour"])
def test_a_killed_worker_comes_back_and_every_sample_is_computed(method: str) -> None:
    check_killed_once(run("--method", method, str(SCRIPT), '{"lr": 0.05}', "kill", "together", "shuffle"))


@pytest.mark.parametrize("method", ["stale_synchronous", "synchronous"])
def test_nobody_waits_for_a_killed_worker_for_ever(method: str) -> None:
    check_killed_once(run("--method", method, str(SCRIPT), '{"lr": 0.1}', "kill", "shuffle"))


@pytest.mark.parametrize("method", ["hogwild", "synchronous"])
def test_a_loader_with_a_process_of_its_own_gives_every_sample_once(method: str) -> None:
    done = run("--method", method, str(SCRIPT), '{"lr": 0.05}', "loader", "shuffle")
    assert done.returncode == 0, done.stderr
    epochs = computed(done.stdout)
    assert len(epochs) == 4
    assert all(set(counts.values()) == {1} and len(counts) == 61 for counts in epochs.values())


def test_what_the_loader_of_a_killed_worker_had_fetched_is_computed_by_others() -> None:
    check_killed_once(
        run("--method", "hogwild", str(SCRIPT), '{"lr": 0.05}', "kill", "together", "loader", "shuffle")
    )


def test_a_worker_that_is_killed_before_its_first_step_ends_the_run() -> None:
    done = run("--method", "synchronous", str(SCRIPT), '{"lr": 0.05}', "kill at once")
    assert done.returncode == 128 + signal.SIGKILL
    assert "worker 1 was killed by SIGKILL; its own message stands above" in done.stderr
    assert "started again" not in done.stderr


def test_a_script_that_fails_at_once_ends_the_run_with_its_code() -> None:
    done = run(str(SCRIPT), "{}", "fail")
    assert done.returncode == 7
    assert "has ended with exit code 7" in done.stderr
    assert "started again" not in done.stderr


def test_models_that_differ_are_refused_by_name() -> None:
    done = run(str(SCRIPT), '{"lr": 0.1}', "differ")
    assert done.returncode == 1
    assert "[1] " in done.stderr
    assert "has parameter '0.weight' of shape (17, 10), theirs is (16, 10)" in done.stderr


def test_a_worker_that_saves_at_ctrl_c_is_left_alone_when_another_has_ended() -> None:
    with launched(str(SCRIPT), '{"lr": 0.1}', "save") as process:
        os.kill(process.pid, signal.SIGINT)
        code, said = ended(process)
    assert code == 128 + signal.SIGINT
    assert "[0] saved" in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_nobody_outlives_the_launcher(number: signal.Signals) -> None:
    with launched(str(SCRIPT), '{"lr": 0.1}', "hang") as process:
        os.kill(process.pid, number)
        code, _ = ended(process)
    assert code == (-number if number == signal.SIGKILL else 128 + number)


@pytest.mark.parametrize(
    ("method", "number"),
    [
        ("hogwild", signal.SIGINT),
        ("synchronous", signal.SIGINT),
        ("stale_synchronous", signal.SIGINT),
        ("synchronous", signal.SIGHUP),
    ],
)
def test_what_a_terminal_sends_to_all_of_its_processes_ends_the_run(
    method: str, number: signal.Signals
) -> None:
    """Ctrl-C, or the end of the connection: to the launcher's process group, while everybody trains."""
    with launched("--method", method, str(SCRIPT), '{"lr": 0.1}', "forever") as process:
        os.killpg(process.pid, number)
        code, said = ended(process)
    assert code == 128 + number
    assert f"was killed by {number.name}; its own message stands above" in said
    assert "started again" not in said


def test_a_second_ctrl_c_ends_those_that_did_not_heed_the_first() -> None:
    with launched(str(SCRIPT), '{"lr": 0.1}', "hang", "deaf") as process:
        assert process.stderr is not None
        os.killpg(process.pid, signal.SIGINT)
        while "heard" not in (line := process.stderr.readline()):
            assert line, "the launcher has ended"
        os.killpg(process.pid, signal.SIGINT)
        code, said = ended(process)
    assert code == 128 + signal.SIGKILL
    assert "was killed by SIGKILL" in said


@contextmanager
def launched(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A launcher in a process group of its own, as a shell starts it, whose workers have both told their pid.

    Afterwards none of its processes is left.
    """
    mark = uuid.uuid4().hex
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, MARK: mark},
        start_new_session=True,
    )
    assert process.stderr is not None
    try:
        with process.stderr:
            for _ in range(2):
                while "] pid " not in (line := process.stderr.readline()):
                    assert line, "the launcher has ended"
            yield process
    except BaseException:
        process.kill()
        process.wait()
        raise
    await_the_end_of(mark)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code, and what it has said since."""
    assert process.stderr is not None
    said = process.stderr.read()
    return process.wait(PATIENCE_S), said


def test_the_example_differs_in_five_lines_and_runs(tmp_path: Path) -> None:
    plain, shared = (
        (EXAMPLES / name).read_text().splitlines() for name in ("mnist.py", "mnist_freewheel.py")
    )
    changes = list(difflib.unified_diff(plain, shared, lineterm="", n=0))[2:]
    assert sum(line.startswith("+") for line in changes) <= 5
    assert sum(line.startswith("-") for line in changes) <= 5
    readme = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    assert all(line in readme.splitlines() for line in changes if not line.startswith("@@"))
    file = tmp_path / "weights.pt"
    arguments = ["--epochs", "1", "--dry-run", "--save-model", str(file)]
    done = run(str(EXAMPLES / "mnist_freewheel.py"), *arguments)
    assert done.returncode == 0, done.stderr
    assert "[0] test: loss" in done.stdout
    assert "[1] test:" not in done.stdout
    assert file.is_file()
    for name in ("mnist.py", "mnist_freewheel.py"):
        alone = subprocess.run(
            [sys.executable, str(EXAMPLES / name), *arguments],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert alone.returncode == 0, alone.stderr
        assert "test: loss" in alone.stdout
