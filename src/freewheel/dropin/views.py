"""What the weights of the user's model are views of: those that it trains on, or the shared ones.

A script evaluates and saves the very model that it trains. Where a worker trains on weights of its own
(Downpour, elastic averaging), and for BatchNorm's running statistics, these are not the trained model: a
model in evaluation mode, and one whose state is taken, gets a copy of the shared ones, until it trains again.
"""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from freewheel.dropin.station import twin
from freewheel.server import Server


@final
class Views:
    """Switches a module between two sets of weights.

    Args:
        module: the user's.
        server: of the shared weights.
        own: ``(layout.size,)``, the worker's own; None where it trains on the shared ones.
        statistics: ``(statistics_layout.size,)``, the worker's running statistics.
    """

    def __init__(self, module: nn.Module, server: Server, own: Tensor | None, statistics: Tensor) -> None:
        self.module = module
        self._server = server
        parameters = server.parameters
        self._training = twin(parameters, parameters.flat if own is None else own, statistics)
        self._differs = own is not None or statistics.numel() > 0
        self._own = own is not None
        self._showing = False
        self._shown = self._training
        self._training.bind(module)
        module.register_forward_pre_hook(Hook(self))
        module.register_state_dict_pre_hook(Hook(self, always=True))  # type: ignore[no-untyped-call]  # torch's is untyped

    @torch.no_grad()
    def show(self) -> None:
        """Binds the module to the shared weights, as they are now."""
        if not self._differs:
            return
        parameters = self._server.parameters
        if self._shown is self._training:
            flat = parameters.flat.clone() if self._own else parameters.flat
            self._shown = twin(parameters, flat, parameters.statistics.clone())
        if self._own:
            self._server.pull(self._shown.flat)
        self._shown.statistics.copy_(parameters.statistics)
        if not self._showing:
            self._shown.bind(self.module)
        self._showing = True

    @torch.no_grad()
    def train(self) -> None:
        """Binds it to the weights that it trains on."""
        if self._showing:
            self._training.bind(self.module)
            self._showing = False


@final
class Hook:
    """Called before a forward pass, and before the state of the module is taken.

    Copies of the module, deep or pickled, have hooks that do nothing.

    Args:
        views: of the module; None does nothing.
        always: show the shared weights in training mode, too.
    """

    def __init__(self, views: Views | None = None, always: bool = False) -> None:
        self._views = views
        self._always = always

    def __call__(self, module: nn.Module, *arguments: Any) -> None:
        """Switches."""
        views = self._views
        if views is None or module is not views.module:
            return
        if module.training and not self._always:
            views.train()
        else:
            views.show()

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()
