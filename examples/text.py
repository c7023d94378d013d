"""An LSTM learns Shakespeare character by character, by truncated back-propagation in time, and writes."""

from torch import nn

import freewheel
from freewheel.data import tiny_shakespeare
from freewheel.recipes import CharLSTM
from freewheel.recipes.text import Perplexity, generate


def main(max_samples: int = 1_000_000) -> freewheel.Result:
    """Trains on one worker per core for so many characters, then prints a text."""
    book = tiny_shakespeare()
    result = freewheel.fit(
        CharLSTM(len(book.vocabulary)),
        book.train,  # (n,) int64; each worker reads its own part of it, and carries the hidden state on
        loss=nn.CrossEntropyLoss(),
        bptt=64,
        batch_size=16,  # sequences side by side
        evaluate=Perplexity(book.validation, streams=32, steps=64),
        method=freewheel.hogwild(lr=freewheel.schedules.cosine(1.0)),
        max_samples=max_samples,
        monitors=[freewheel.monitors.progress()],
    )
    print(result.metrics)
    print(generate(book, result.module, prompt="ROMEO:", length=300))
    return result


if __name__ == "__main__":
    main()
