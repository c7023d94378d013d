"""Faults on purpose: does training survive what really happens to workers?

Workers that are killed, crash, raise, hang or slow down, and pushes that are not finite, huge, of the wrong
shape, or come twice, in a given step of a given worker, or at random.

Example:
    >>> import torch, freewheel
    >>> from freewheel.testing import fail, inject, kill
    >>> x = torch.randn(256, 8); y = (x.sum(1) > 0).long()
    >>> with inject(kill(worker=1, step=2), fail(worker=0, step=4)) as injected:
    ...     result = freewheel.fit(torch.nn.Linear(8, 2), (x, y), loss=torch.nn.CrossEntropyLoss(),
    ...                            engine="processes", workers=2, batch_size=4, epochs=9)
    >>> injected.all_fired, result.restarts
    (True, 2)
"""

from freewheel.testing.faults import (
    Fault,
    InjectedFaultError,
    duplicate,
    fail,
    garbage,
    hang,
    kill,
    leave,
    nan,
    segfault,
    slow,
    stale,
    wrong_shape,
)
from freewheel.testing.inject import Injected, Storm, inject, storm

__all__ = [
    "Fault",
    "Injected",
    "InjectedFaultError",
    "Storm",
    "duplicate",
    "fail",
    "garbage",
    "hang",
    "inject",
    "kill",
    "leave",
    "nan",
    "segfault",
    "slow",
    "stale",
    "storm",
    "wrong_shape",
]
