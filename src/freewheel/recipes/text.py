"""Character-level language modelling: an LSTM on Tiny Shakespeare."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from freewheel import data
from freewheel.data import Text
from freewheel.errors import ConfigurationError
from freewheel.recipes.choice import method_maker
from freewheel.recipes.models import CharLSTM
from freewheel.recipes.settings import (
    Defaults,
    Recipe,
    Settings,
    check_target,
    choose,
    common_arguments,
)

BPTT = 64  # characters of truncated back-propagation through time
DATA: dict[str, Callable[[], Text]] = {"tiny-shakespeare": data.tiny_shakespeare}
# As for images; perplexities of two workers after 250,000 characters, where synchronous has 9.0.
TUNED: dict[str, dict[str, Any]] = {
    "local_sgd": {"momentum": 0.9},  # 9.0
    "parallel_sgd": {"momentum": 0.9},
    "elastic_averaging": {"momentum": 0.9},  # 9.1
    "delay_compensated": {"lr": 2.0},  # 10.4
    "downpour": {"lr": 0.01},  # Adagrad's: SGD's 1.0 would throw the weights away; 13.9
    "diloco": {"lr": 5e-3, "steps": 20},  # Adam's; 9.9
}
DEFAULTS = {"lstm": Defaults(batch_size=16, lr=1.0, epochs=2, methods=TUNED)}
METRICS = ("loss", "perplexity", "bits_per_character")
EVALUATION_STREAMS = 32


def text(settings: Settings) -> Recipe:
    """Prepares a character model; samples are characters.

    Args:
        settings: ``data`` is one of ``DATA``, ``model`` "lstm".

    Raises:
        ConfigurationError: a setting cannot be used.
        DataError: the data cannot be had.

    Example:
        >>> from freewheel.recipes.settings import Settings
        >>> from freewheel.recipes.text import text
        >>> recipe = text(Settings())
        >>> recipe.title, recipe.arguments["bptt"]
        ('lstm on tiny-shakespeare', 64)
    """
    name = choose("data", settings.data, tuple(DATA), "text")
    model = choose("model", settings.model, tuple(DEFAULTS), "text")
    check_target(settings.budget.target, METRICS, "text")
    defaults = DEFAULTS[model]
    arguments = common_arguments(settings, defaults)
    book = DATA[name]()
    method = method_maker(settings.optimization, defaults.lr, arguments, defaults.methods)
    arguments |= {
        "loss": nn.CrossEntropyLoss(),
        "bptt": BPTT,
        "evaluate": Perplexity(book.validation, EVALUATION_STREAMS, BPTT),
    }
    build = partial(CharLSTM, len(book.vocabulary))
    return Recipe(build, book.train, arguments, method, f"{model} on {name}", show=partial(generate, book))


@contextmanager
def _one_thread() -> Iterator[None]:
    """One intra-op thread: the LSTM's operations are too small to be shared.

    Threads that wait for each other after every one of them gain little on an idle machine, and take ten to
    twenty times the time on a busy one, because the waiting spins.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Perplexity:
    """Measures a character model: loss (nats per character), perplexity, bits per character.

    The text is cut into parallel streams, so that it is read in large steps; each starts from a zero state.

    Attributes:
        tokens: (n,) int64.
        streams: how many are read side by side.
        steps: characters read at a time.
    """

    tokens: Tensor
    streams: int
    steps: int

    def __post_init__(self) -> None:
        if len(self.tokens) <= self.streams:
            raise ConfigurationError(
                f"`tokens` must be more than {self.streams}, one for each stream, got {len(self.tokens)}"
            )

    @_one_thread()
    def __call__(self, module: nn.Module) -> dict[str, float]:
        """The metrics of the module."""
        length = (len(self.tokens) - 1) // self.streams
        used = self.streams * length
        inputs, targets = (
            part.view(self.streams, length) for part in (self.tokens[:used], self.tokens[1 : used + 1])
        )
        total, hidden = 0.0, None
        for start in range(0, length, self.steps):
            piece = slice(start, start + self.steps)
            logits, hidden = module(inputs[:, piece], hidden)
            flat, wanted = logits.flatten(0, 1), targets[:, piece].flatten()
            total += nn.functional.cross_entropy(flat, wanted, reduction="sum").item()
        loss = total / used
        perplexity = math.exp(loss) if loss < 700 else math.inf  # exp overflows at 709
        return {"loss": loss, "perplexity": perplexity, "bits_per_character": loss / math.log(2)}


@_one_thread()
def generate(
    book: Text,
    module: nn.Module,
    prompt: str = "ROMEO:",
    length: int = 300,
    temperature: float = 0.8,
    seed: int = 0,
) -> str:
    """A text that goes on from a prompt, drawn character by character.

    Args:
        book: its vocabulary is the model's.
        module: called as ``module(tokens, hidden) -> (logits, hidden)``.
        prompt: the beginning.
        length: characters to draw.
        temperature: divides the logits; below 1 the likely becomes likelier.
        seed: of the draw.

    Raises:
        ConfigurationError: ``temperature`` is not positive.
        DataError: the prompt has unknown characters.
    """
    if not temperature > 0:
        raise ConfigurationError(f"`temperature` must be > 0, got {temperature}")
    draw = torch.Generator().manual_seed(seed)
    tokens, hidden, drawn = book.encode(prompt)[None], None, []
    training = module.training
    module.eval()
    with torch.no_grad():
        for _ in range(length):
            logits, hidden = module(tokens, hidden)
            chances = torch.softmax(logits[0, -1] / temperature, dim=0)
            if not torch.isfinite(chances).all():
                break
            tokens = torch.multinomial(chances, 1, generator=draw)[None]
            drawn.append(tokens[0, 0])
    module.train(training)
    return prompt + (book.decode(torch.stack(drawn)) if drawn else "")
