"""What several processes write, line by line, each with its rank before it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import BinaryIO, final

COLOURS = (36, 33, 32, 35, 34, 31)  # cyan, yellow, green, magenta, blue, red
TRANSIENT_S = 1.0  # a progress bar that is drawn anew on its line is shown this often


@final
class Prefixed:
    r"""Passes lines on as they are complete, with a prefix.

    A text that ends in a carriage return is about to be overwritten: of those, one a second is passed on, as
    a line.

    Args:
        target: where lines go.
        rank: of the worker.
        colour: colour the prefix.
        now: the time in seconds.

    Example:
        >>> import io
        >>> target = io.BytesIO()
        >>> lines = Prefixed(target, rank=1, now=lambda: 0.0)
        >>> lines.feed(b"one\ntw"), lines.feed(b"o\r\n10%\r20%\r"), lines.feed(b"\nend"), lines.end()
        (None, None, None, None)
        >>> target.getvalue()
        b'[1] one\n[1] two\n[1] 10%\n[1] 20%\n[1] end\n'
    """

    def __init__(
        self,
        target: BinaryIO,
        rank: int,
        colour: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._target = target
        prefix = f"[{rank}] "
        if colour:
            prefix = f"\x1b[{COLOURS[rank % len(COLOURS)]}m{prefix}\x1b[0m"
        self._prefix = prefix.encode()
        self._now = now
        self._rest = b""  # of a line that is not complete
        self._kept = b""  # transient, not shown yet
        self._drawn = False  # the line has been drawn once, and will be again, or ended
        self._shown: float | None = None

    def feed(self, data: bytes) -> None:
        """Takes what was written."""
        text = self._rest + data.replace(b"\r\n", b"\n")
        ready = b""
        while True:
            ends = [place for place in (text.find(b"\n"), text.find(b"\r")) if place >= 0]
            if not ends:
                break
            line, end, text = text[: min(ends)], text[min(ends) : min(ends) + 1], text[min(ends) + 1 :]
            if end == b"\n":
                ready += self._finished(line)
            elif line:
                ready += self._transient(line)
        self._rest = text
        self._write(ready)

    def end(self) -> None:
        """Passes on what is left when the process has ended."""
        rest, self._rest = self._rest, b""
        if rest.strip(b"\r") or self._kept:
            self._write(self._whole(rest.strip(b"\r") or self._kept))

    def _finished(self, line: bytes) -> bytes:
        """A line that has come to its end, which may be all that was missing of a transient one."""
        drawn, self._drawn = self._drawn, False
        if drawn and not line:
            return self._whole(self._kept) if self._kept else b""
        return self._whole(line)

    def _whole(self, line: bytes) -> bytes:
        self._kept = b""
        return self._prefix + line + b"\n"

    def _transient(self, line: bytes) -> bytes:
        now, self._drawn = self._now(), True
        if self._shown is not None and now - self._shown < TRANSIENT_S:
            self._kept = line
            return b""
        self._shown, self._kept = now, b""
        return self._prefix + line + b"\n"

    def _write(self, data: bytes) -> None:
        if data:
            self._target.write(data)
            self._target.flush()
