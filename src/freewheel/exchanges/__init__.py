"""Exchanges: the worker's half of a method. When to pull, what to do with a gradient, what to push.

An exchange is a state machine without threads, clock or network. An engine asks it whether the step that
begins needs a pull, does the pull, hands it the step's gradient and pushes what comes back. So the same
exchange runs at once on threads and message by message on the simulator.

    base.py        Exchange, and Local: the weights that it is made for
    gradients.py   Fresh and Accruing: every gradient, or sums of them
    differing.py   Differing: the distance moved since the last pull
    elastic.py     Elastic: differences to a centre
"""

from freewheel.exchanges.base import Descent, Exchange, ExchangeMaker, Local
from freewheel.exchanges.differing import Differing
from freewheel.exchanges.elastic import Elastic
from freewheel.exchanges.gradients import Accruing, Fresh

__all__ = ["Accruing", "Descent", "Differing", "Elastic", "Exchange", "ExchangeMaker", "Fresh", "Local"]
