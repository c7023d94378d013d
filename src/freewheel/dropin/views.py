"""What the weights of the user's model are views of: those that it trains on, or the shared ones.

A script evaluates and saves the very model that it trains. Where a worker trains on weights of its own
(Downpour, elastic averaging), and for BatchNorm's running statistics, these are not the trained model: a
model in evaluation mode, and one whose state is taken, gets a copy of the shared ones, until it trains again.
One that weights are loaded into, such as the best so far, gets a copy, too: the shared ones are everybody's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor, nn

from freewheel.dropin.station import twin
from freewheel.errors import ConfigurationError
from freewheel.server import Server


@final
class Views:
    """Switches a module between two sets of weights.

    Args:
        module: the user's.
        server: of the shared weights.
        own: ``(layout.size,)``, the worker's own; None where it trains on the shared ones.
        statistics: ``(statistics_layout.size,)``, the worker's running statistics.
        begin: called before the module trains.
        beat: called whenever the module is used.
    """

    def __init__(
        self,
        module: nn.Module,
        server: Server,
        own: Tensor | None,
        statistics: Tensor,
        begin: Callable[[], None],
        beat: Callable[[], None],
    ) -> None:
        self.module = module
        self._server = server
        self._begin, self._beat = begin, beat
        parameters = server.parameters
        self._training = twin(parameters, parameters.flat if own is None else own, statistics)
        self._differs = own is not None or statistics.numel() > 0
        self._own = own is not None
        self._showing = False
        self._loaded = False  # it shows what the script has loaded
        self._shown = self._training
        self._training.bind(module)
        weights = dict(module.named_parameters())
        self._places = [
            (entry.name, weights[entry.name], weights[entry.name].data_ptr())
            for entry in parameters.layout.trainable
        ]
        forward, show, load = (self._hook(then) for then in (Views.forward, Views.show, Views.load))
        module.register_forward_pre_hook(forward)
        module.register_state_dict_pre_hook(show)  # type: ignore[no-untyped-call]  # torch's is untyped
        module.register_load_state_dict_pre_hook(load)  # type: ignore[no-untyped-call]  # likewise

    def _hook(self, then: Callable[[Views], None]) -> Hook:
        """Not compiled with the model: what it does depends on what others have done."""
        return Hook(self, torch.compiler.disable(then))  # type: ignore[no-untyped-call]  # torch's is untyped

    def forward(self) -> None:
        """The module is about to compute."""
        self._beat()
        if self.module.training:
            self.train()
        else:
            self.show()

    def show(self) -> None:
        """Binds the module to the shared weights, as they are now."""
        if not self._differs or self._loaded:
            return
        with torch.inference_mode(False), torch.no_grad():  # or only inference could write to the copy again
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

    def load(self) -> None:
        """Binds it to a copy, for the script to load other weights into, unless it is alone with its own."""
        if self._loaded or not (self._own or self._server.workers > 1):
            return
        with torch.inference_mode(False), torch.no_grad():
            parameters = self._server.parameters
            twin(parameters, parameters.flat.clone(), parameters.statistics.clone()).bind(self.module)
        self._showing = self._loaded = True

    @torch.no_grad()
    def train(self) -> None:
        """Binds it to the weights that it trains on.

        Raises:
            ConfigurationError: weights were loaded into it.
        """
        if self._loaded:
            raise ConfigurationError(
                "model.load_state_dict() was called after worker.optimizer(model): the weights are shared by"
                " then, and training does not go on from others; load them before"
            )
        if self._showing:
            self._training.bind(self.module)
            self._showing = False
        self._begin()

    def check(self) -> None:
        """Looks whether it still has the weights that it was given.

        Raises:
            ConfigurationError: it has others.
        """
        for name, weight, place in self._places:
            if weight.data_ptr() != place:
                raise ConfigurationError(
                    f"`model` has been moved or converted since worker.optimizer(model): its {name!r} is no"
                    " longer the shared one; call model.to(...) before"
                )


@final
class Hook:
    """Has the views of a module do something before the module does.

    Copies of the module, deep or pickled, have hooks that do nothing.

    Args:
        views: of the module; None does nothing.
        then: what they do.
    """

    def __init__(self, views: Views | None = None, then: Callable[[Views], None] = Views.show) -> None:
        self._views = views
        self._then = then

    def __call__(self, module: nn.Module, *arguments: Any) -> None:
        """Switches."""
        if self._views is not None and module is self._views.module:
            self._then(self._views)

    def __deepcopy__(self, memo: dict[int, Any]) -> Hook:
        return Hook()

    def __reduce__(self) -> tuple[type[Hook], tuple[()]]:
        return Hook, ()
