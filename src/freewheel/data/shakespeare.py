"""Tiny Shakespeare: 1.1 million characters of his plays, public domain, embedded."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from freewheel.data.small import verified
from freewheel.errors import DataError

FILE = "tiny-shakespeare.txt.gz"
ADDRESS = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"


@dataclass(frozen=True, eq=False)
class Text:
    """A text as a sequence of character ids.

    Attributes:
        text: the characters.
        vocabulary: the distinct characters, sorted; an id is an index into it.
        ids: (n,) int64.
        split: how many ids, from the start, are for training.
    """

    text: str = field(repr=False)
    vocabulary: tuple[str, ...] = field(repr=False)
    ids: Tensor = field(repr=False)
    split: int

    def __len__(self) -> int:
        return self.ids.shape[0]

    @property
    def train(self) -> Tensor:
        """The first part of ``ids``, for training; a view."""
        return self.ids[: self.split]

    @property
    def validation(self) -> Tensor:
        """The rest of ``ids``, for evaluation; a view."""
        return self.ids[self.split :]

    def encode(self, text: str) -> Tensor:
        """Return the ids of a text, (len(text),) int64.

        Raises:
            DataError: a character is not in the vocabulary.
        """
        table = {character: index for index, character in enumerate(self.vocabulary)}
        if unknown := sorted(set(text) - set(table)):
            raise DataError(f"`text` has characters that are not in the vocabulary: {unknown}; remove them")
        return torch.tensor([table[character] for character in text], dtype=torch.int64)

    def decode(self, ids: Tensor) -> str:
        """Return the text of some ids, (n,) int64."""
        return "".join(self.vocabulary[index] for index in ids.tolist())


def text_of(text: str, train_share: float = 0.9) -> Text:
    """Number the characters of a text.

    Args:
        text: not empty.
        train_share: share of the characters, from the start, that is for training.

    Raises:
        DataError: ``text`` is empty.

    Example:
        >>> from freewheel.data.shakespeare import text_of
        >>> text_of("abracadabr").ids.tolist()
        [0, 1, 4, 0, 2, 0, 3, 0, 1, 4]
    """
    if not text:
        raise DataError("`text` is empty; give at least one character")
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    known, ids = np.unique(points, return_inverse=True)
    vocabulary = tuple(chr(point) for point in known)
    return Text(text, vocabulary, torch.from_numpy(ids.astype(np.int64)), int(train_share * len(ids)))


def tiny_shakespeare() -> Text:
    """Load Tiny Shakespeare: 1,115,394 characters, 65 of them distinct; nine tenths are for training.

    Raises:
        DataError: the installed file is damaged.

    Example:
        >>> from freewheel.data import tiny_shakespeare
        >>> data = tiny_shakespeare()
        >>> len(data), len(data.vocabulary), data.decode(data.train[:13])
        (1115394, 65, 'First Citizen')

    Reference: Karpathy 2015, "The Unreasonable Effectiveness of Recurrent Neural Networks"; the 90/10 split
    is that of nanoGPT.
    """
    return text_of(gzip.decompress(verified(FILE).read_bytes()).decode("utf-8"))
