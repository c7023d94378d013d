"""What the machine is said to have: control groups and allocators are made up here."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from freewheel.machine import cores, keep_large_blocks

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1


@pytest.fixture(autouse=True)
def many_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("200000 100000\n", 2),
        ("150000 100000\n", 2),
        ("10000 100000\n", 1),
        ("9900000 100000\n", 64),
        ("max 100000\n", 64),
        ("", 64),
        ("100000 0\n", 64),
    ],
)
def test_a_quota_of_version_2_counts_rounded_up(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "cpu.max").write_text(limit)
    assert cores(tmp_path) == expected


@pytest.mark.parametrize(("quota", "expected"), [("250000", 3), ("-1", 64), ("1000", 1)])
def test_a_quota_of_version_1_counts_rounded_up(tmp_path: Path, quota: str, expected: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert cores(tmp_path) == expected


def test_without_control_groups_the_affinity_counts(tmp_path: Path) -> None:
    assert cores(tmp_path) == 64
    assert cores(tmp_path / "nowhere") == 64


@pytest.mark.parametrize(
    ("largest", "trims", "expected", "done"),
    [
        (2**30, True, {MMAP_THRESHOLD: 2**30, TRIM_THRESHOLD: 2**31 - 1}, True),
        (2**25, True, {MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**31 - 1}, True),
        (0, True, {TRIM_THRESHOLD: 2**31 - 1}, False),
        (2**30, False, {MMAP_THRESHOLD: 2**30}, False),
    ],
)
def test_large_blocks_are_kept_as_far_as_the_allocator_allows(
    largest: int, trims: bool, expected: dict[int, int], done: bool
) -> None:
    settings: dict[int, int] = {}

    def mallopt(parameter: int, value: int) -> int:
        accepted = trims if parameter == TRIM_THRESHOLD else value <= largest
        if accepted:
            settings[parameter] = value
        return int(accepted)

    assert keep_large_blocks(mallopt) is done
    assert settings == expected
