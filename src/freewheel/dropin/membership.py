"""What the launcher tells a process of its script: variables of the environment, and a socket."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from freewheel.errors import ConfigurationError

PREFIX = "FREEWHEEL_WORKER_"
NAMES = ("RANK", "WORKERS", "LIFE", "SOCKET", "VERSION", "METHOD", "SETTINGS")
REMEDY = "start the script with `freewheel run`, or unset them to run it alone"


@final
@dataclass(frozen=True)
class Membership:
    """A process's place among the workers.

    Attributes:
        rank: which worker, from 0.
        workers: how many there are.
        life: how often this worker was started before.
        socket: file descriptor of the connection to the launcher.
        version: of freewheel, as the launcher has it.
        method: that the launcher was given; None for the script's own.
        settings: of that method.
    """

    rank: int
    workers: int
    life: int
    socket: int
    version: str
    method: str | None
    settings: dict[str, Any]

    def variables(self) -> dict[str, str]:
        """For the environment of the process."""
        values = (self.rank, self.workers, self.life, self.socket, self.version, self.method or "")
        texts = [*map(str, values), json.dumps(self.settings)]
        return {PREFIX + name: text for name, text in zip(NAMES, texts, strict=True)}

    @classmethod
    def found(cls, variables: Mapping[str, str], version: str) -> Membership | None:
        """What the environment says; None where the script was started without the launcher.

        Args:
            variables: of the environment.
            version: of this freewheel.

        Raises:
            ConfigurationError: some are missing or no numbers, or the launcher is of another version.

        Example:
            >>> Membership.found({}, "0.1.0") is None
            True
        """
        texts = [variables.get(PREFIX + name) for name in NAMES]
        if all(text is None for text in texts):
            return None
        missing = [PREFIX + name for name, text in zip(NAMES, texts, strict=True) if text is None]
        if missing:
            raise ConfigurationError(
                f"the variables of the launcher are half set: {', '.join(missing)} not; {REMEDY}"
            )
        given = [text or "" for text in texts]
        if given[4] != version:
            raise ConfigurationError(
                f"the launcher is freewheel {given[4]}, the script imports freewheel {version}; start it with"
                " `python -m freewheel run` of the same environment"
            )
        try:
            rank, workers, life, socket = map(int, given[:4])
            settings = json.loads(given[6])
        except ValueError as error:
            raise ConfigurationError(f"the variables {PREFIX}* are damaged ({error}); {REMEDY}") from None
        return cls(rank, workers, life, socket, given[4], given[5] or None, settings)
