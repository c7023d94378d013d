"""Starts worker processes: a fork server that has imported PyTorch and freewheel once.

The server is one of freewheel's own, so that nothing depends on how else a program uses ``multiprocessing``.
Other than there, the user's main module is not run again in a worker: scripts need no
``if __name__ == "__main__"``, and notebooks have no file to run. What a worker needs of it travels by value.

    Why not fork the main process: it has threads (PyTorch's, the user's), and their locks would stay held in
    the child. Why not spawn: importing PyTorch takes seconds.
"""

from __future__ import annotations

import functools
import io
import os
import signal
from collections.abc import Callable
from multiprocessing import context, forkserver, popen_forkserver, reduction, resource_tracker, spawn, util
from multiprocessing.process import BaseProcess
from typing import Any, final

PRELOADED = ["freewheel.engines.processes.preloaded"]
SIGNALS = (signal.SIGINT, signal.SIGTERM)
MAIN_MODULE = ("init_main_from_name", "init_main_from_path")


def prepare() -> None:
    """Starts the fork server if it does not run; returns at once, while it imports what workers need.

    A terminal's Ctrl-C reaches it, too: it would end with a traceback. So signals wait there until it has
    imported what has them ignored.
    """
    resource_tracker.ensure_running()  # the server would start it, and that lets signals through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        _server(os.getpid()).ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_prepared() -> bool:
    """Whether the fork server has been started: a run need not wait for its imports then."""
    running: int | None = _server(os.getpid())._forkserver_pid  # type: ignore[attr-defined]  # not in typeshed
    return running is not None


def started(number: int, target: Callable[..., None], *arguments: Any) -> BaseProcess:
    """A new process that runs a function of an importable module.

    Args:
        number: of the worker, for the name of its process.
        target: what it runs.
        arguments: pickled; a :class:`Descriptor` arrives as a number.
    """
    process = _Process(target=target, args=arguments, name=f"freewheel-{number}", daemon=True)
    process.start()
    return process


@final
class Descriptor:
    """A file descriptor, as an argument of a process that is started; its own copy arrives there."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __reduce__(self) -> tuple[Any, ...]:
        return _detached, (reduction.DupFd(self._descriptor),)


def _detached(copy: Any) -> int:
    descriptor: int = copy.detach()
    return descriptor


@functools.cache
def _server(pid: int) -> forkserver.ForkServer:
    """The fork server of this process; a process that was forked from it has one of its own."""
    server = forkserver.ForkServer()
    server.set_forkserver_preload(PRELOADED)
    return server


class _Popen(popen_forkserver.Popen):
    def _launch(self, process_obj: BaseProcess) -> None:
        """As the standard library's, with another server and without the main module."""
        preparation = spawn.get_preparation_data(process_obj.name)
        for name in MAIN_MODULE:
            preparation.pop(name, None)
        file = io.BytesIO()
        context.set_spawning_popen(self)
        try:
            reduction.dump(preparation, file)
            reduction.dump(process_obj, file)
        finally:
            context.set_spawning_popen(None)
        self.sentinel, writer = _server(os.getpid()).connect_to_new_process(self._fds)  # type: ignore[attr-defined]  # ditto
        # The child sees the end of this pipe when the main process is gone.
        with open(writer, "wb", closefd=True) as stream:
            try:
                alive = os.dup(writer)
            except OSError:
                os.close(self.sentinel)
                raise
            self.finalizer = util.Finalize(self, _close, (alive, self.sentinel))
            stream.write(file.getbuffer())
        self.pid = forkserver.read_signed(self.sentinel)

    def terminate(self) -> None:
        """Ends the process, which ignores the signal that politely asks for it."""
        self.kill()


def _close(*descriptors: int) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Process(context.ForkServerProcess):
    @staticmethod
    def _Popen(process_obj: BaseProcess) -> popen_forkserver.Popen:  # noqa: N802  (the library's name)
        return _Popen(process_obj)
