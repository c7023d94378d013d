"""Models that ship as examples. Users bring their own modules."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from freewheel.errors import ConfigurationError


def mlp(sizes: Sequence[int] = (784, 256, 10)) -> nn.Sequential:
    """Build a fully connected network with ReLU between its layers; inputs are flattened.

    Args:
        sizes: number of inputs, of units in each hidden layer, of outputs.

    Raises:
        ConfigurationError: fewer than two sizes, or one below 1.

    Example:
        >>> import torch
        >>> from freewheel.recipes import mlp
        >>> mlp()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    if len(sizes) < 2 or min(sizes) < 1:
        raise ConfigurationError(f"`sizes` must be two or more numbers >= 1, got {tuple(sizes)}")
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])  # no ReLU after the outputs


def cnn() -> nn.Sequential:
    """Build a convolutional network for grey images of 28 by 28: 421,642 weights, 10 outputs.

    Example:
        >>> import torch
        >>> from freewheel.recipes import cnn
        >>> cnn()(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        *_block(1, 32),
        *_block(32, 64),
        nn.Flatten(),
        nn.Linear(64 * 7 * 7, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def cnn_rgb() -> nn.Sequential:
    """Build a convolutional network for colour images of 32 by 32: 422,698 weights, 10 outputs.

    Three convolutions, one more than ``cnn``: with two, as many weights would go into one wide linear layer.

    Example:
        >>> import torch
        >>> from freewheel.recipes import cnn_rgb
        >>> cnn_rgb()(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """
    return nn.Sequential(
        *_block(3, 32),
        *_block(32, 64),
        *_block(64, 128),
        nn.Flatten(),
        nn.Linear(128 * 4 * 4, 160),
        nn.ReLU(),
        nn.Linear(160, 10),
    )


class CharLSTM(nn.Module):
    """A recurrent network that predicts the next character.

    Args:
        vocabulary: number of distinct characters.
        embedding: size of a character's vector.
        hidden: size of the hidden state.
        layers: number of stacked LSTM layers.

    Raises:
        ConfigurationError: a size is below 1.

    Example:
        >>> import torch
        >>> from freewheel.recipes import CharLSTM
        >>> logits, hidden = CharLSTM(65)(torch.zeros(4, 7, dtype=torch.long))
        >>> logits.shape, hidden[0].shape
        (torch.Size([4, 7, 65]), torch.Size([1, 4, 128]))

    Reference: Hochreiter, Schmidhuber 1997, "Long Short-Term Memory".
    """

    def __init__(self, vocabulary: int, embedding: int = 64, hidden: int = 128, layers: int = 1) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "embedding": embedding, "hidden": hidden, "layers": layers}
        for name, size in sizes.items():
            if size < 1:
                raise ConfigurationError(f"`{name}` must be >= 1, got {size}")
        self.embedding = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden, layers, batch_first=True)
        self.output = nn.Linear(hidden, vocabulary)

    def forward(
        self, tokens: Tensor, hidden: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the logits of the next characters and the new hidden state.

        Args:
            tokens: (b, t) int64.
            hidden: what an earlier call returned, for a text that goes on; None starts from zero.

        Returns:
            (b, t, vocabulary) float32, and two tensors (layers, b, hidden).
        """
        states, hidden = self.lstm(self.embedding(tokens), hidden)
        return self.output(states), hidden


def _block(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
