"""Values of the command line: what is written becomes what is meant, or is refused with an example."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from freewheel.commands.values import (
    parse_compression,
    parse_corrupt,
    parse_die,
    parse_setting,
    parse_slow,
)
from freewheel.errors import ConfigurationError


def test_settings_are_whole_numbers_numbers_and_yes_and_no() -> None:
    assert parse_setting(" bound = 3") == ("bound", 3)
    assert isinstance(parse_setting("bound=3")[1], int)
    assert parse_setting("alpha=3.0") == ("alpha", 3.0)
    assert isinstance(parse_setting("alpha=3.0")[1], float)
    assert parse_setting("dynamic=True") == ("dynamic", True)
    assert parse_setting("dynamic=no") == ("dynamic", False)


def test_compressions_are_rules() -> None:
    assert parse_compression("half").describe == "half()"
    assert parse_compression("eight_bit:512").describe == "eight_bit(block=512)"
    assert parse_compression("top_k:0.5").describe == "top_k(share=0.5)"


def test_slow_machines_and_deaths() -> None:
    assert parse_slow("4x:1") == {1: 4.0}
    assert parse_die("2:9").back_after_s is None
    assert (parse_die("2:9:5ms").worker, parse_die("2:9:5ms").back_after_s) == (2, 0.005)
    assert (parse_corrupt("0.25").share, parse_corrupt("0.25").scale) == (0.25, 100.0)


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_setting, "bound", "must be NAME=VALUE"),
        (parse_setting, "=3", "must be NAME=VALUE"),
        (parse_setting, "bound=three", "with a number, or yes or no, got 'bound=three'"),
        (parse_compression, "gzip", "top_k:SHARE, half, eight_bit or eight_bit:BLOCK, got 'gzip'"),
        (parse_compression, "top_k", "must be like top_k:0.01, got ''"),
        (parse_compression, "half:2", "got 'half:2'"),
        (parse_slow, "4:1", "TIMESx:WORKER"),
        (parse_slow, "x:1", "must be like 4x:1"),
        (parse_die, "3", "must be like 3:100 or 3:100:5s, got ''"),
        (parse_die, "3:4:5", "without a unit"),
        (parse_corrupt, "much", "must be like 0.1"),
        (parse_corrupt, "2", "share from 0 to 1"),
    ],
)
def test_what_is_not_understood_is_refused_with_an_example(
    parse: Callable[[str], object], text: str, message: str
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        parse(text)
