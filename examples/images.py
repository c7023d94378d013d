"""A convolutional network learns Fashion-MNIST by Hogwild!, with a live display and a report."""

from torch import nn

import freewheel
from freewheel.data import fashion_mnist_small
from freewheel.recipes import cnn


def main(max_samples: int = 30_000) -> freewheel.Result:
    """Trains on one worker per core, and writes ``images.html`` here."""
    result = freewheel.fit(
        cnn(),
        fashion_mnist_small("train"),  # the part that is inside the package; fashion_mnist() is the whole set
        loss=nn.CrossEntropyLoss(),
        evaluate=fashion_mnist_small("test"),
        evaluate_every=10_000,
        method=freewheel.hogwild(lr=freewheel.schedules.cosine(0.02)),
        max_samples=max_samples,
        monitors=[freewheel.monitors.progress()],
    )
    print(result.metrics, f"{result.samples_per_second:,.0f} images/s, staleness {result.mean_staleness:.2f}")
    print("Report:", result.report("images.html"))
    return result


if __name__ == "__main__":
    main()
