"""A server that does one thing after the other: shards and shared links are such."""

from __future__ import annotations

from dataclasses import dataclass

from freewheel.simulation import checks


class Station:
    """A queue with one server, first come first served, as a clock that says until when it is busy.

    A job that comes at t and takes s ends at ``max(t, free_at) + s`` (Lindley's recursion). No event and no
    list of the waiting is needed, because nobody overtakes and nobody leaves.

    Attributes:
        free_at: when everything that has come will be done, in seconds.
        busy_s: seconds of service so far.
        waited_s: seconds that jobs stood in the queue, summed over them.
        jobs: how many came.
        bytes: what they carried.

    Example:
        >>> station = Station()
        >>> station.serve(0.0, 2.0), station.serve(1.0, 2.0), station.serve(9.0, 2.0)
        (2.0, 4.0, 11.0)
        >>> station.busy_s, station.waited_s, station.utilisation(12.0)
        (6.0, 1.0, 0.5)

    References:
        Lindley 1952, "The theory of queues with a single server", equation 1.
    """

    __slots__ = ("busy_s", "bytes", "free_at", "jobs", "waited_s")

    def __init__(self) -> None:
        self.free_at = self.busy_s = self.waited_s = 0.0
        self.jobs = self.bytes = 0

    def serve(self, now: float, seconds: float, size: int = 0) -> float:
        """Queues a job, and says when it will be done.

        Jobs are served in the order of the calls, so call it in the order of their times.

        Args:
            now: when the job comes.
            seconds: how long it takes.
            size: the bytes it carries, for the record.
        """
        start = self.free_at
        if start > now:
            self.waited_s += start - now
        else:
            start = now
        self.busy_s += seconds
        self.jobs += 1
        self.bytes += size
        self.free_at = finish = start + seconds
        return finish

    def utilisation(self, seconds: float) -> float:
        """The share of so many seconds that it was busy, at most 1."""
        return min(self.busy_s / seconds, 1.0) if seconds > 0 else 0.0

    def mean_wait(self) -> float:
        """Seconds that a job stood in the queue on average."""
        return self.waited_s / self.jobs if self.jobs else 0.0


@dataclass(frozen=True)
class ServerCost:
    """What a push and a pull cost the server, or each of its shards.

    Args:
        seconds_per_push: for every push, whatever its size.
        seconds_per_pull: for every pull.
        seconds_per_byte: on top, for every byte of either.

    Raises:
        ConfigurationError: a negative cost, or one that is not finite.

    Example:
        >>> cost = ServerCost(seconds_per_push=1e-3, seconds_per_byte=1e-9)
        >>> round(cost.push_seconds(1_000_000), 6), round(cost.pull_seconds(1_000_000), 6)
        (0.002, 0.001)
    """

    seconds_per_push: float = 0.0
    seconds_per_pull: float = 0.0
    seconds_per_byte: float = 0.0

    def __post_init__(self) -> None:
        for name in ("seconds_per_push", "seconds_per_pull", "seconds_per_byte"):
            cost = checks.at_least_zero(name, getattr(self, name), "1e-4 is a tenth of a millisecond")
            object.__setattr__(self, name, cost)

    def push_seconds(self, size: int) -> float:
        """Seconds of the server for a push of so many bytes."""
        return self.seconds_per_push + self.seconds_per_byte * size

    def pull_seconds(self, size: int) -> float:
        """Seconds of the server for a pull of so many bytes."""
        return self.seconds_per_pull + self.seconds_per_byte * size

    @property
    def free(self) -> bool:
        """Whether nothing costs anything, so that an engine need not ask."""
        return not (self.seconds_per_push or self.seconds_per_pull or self.seconds_per_byte)

    @property
    def describe(self) -> str:
        """The costs, for the report."""
        if self.free:
            return "no cost"
        return (
            f"{self.seconds_per_push:g} s a push, {self.seconds_per_pull:g} s a pull,"
            f" {self.seconds_per_byte:g} s a byte"
        )
