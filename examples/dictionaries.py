"""Batches that are dictionaries, a step with two losses, and a rule for each part of the network."""

import torch
from torch import Tensor, nn

import freewheel
from freewheel.data import fashion_mnist_small
from freewheel.rules import adam, partition, sgd


class Network(nn.Module):
    """Classifies an image, and draws it again from the same 64 features."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU())
        self.classes, self.drawing = nn.Linear(64, 10), nn.Linear(64, 784)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of a minibatch with images (b, 1, 28, 28) and labels (b,)."""
        features = self.trunk(batch["image"])
        right = nn.functional.cross_entropy(self.classes(features), batch["label"])
        drawn = nn.functional.mse_loss(self.drawing(features), batch["image"].flatten(1))
        return {"class_loss": right, "mse": drawn}


def main(max_samples: int = 20_000) -> freewheel.Result:
    """Trains on one worker per core."""
    images, labels = fashion_mnist_small("train").tensors()
    test = dict(zip(("image", "label"), fashion_mnist_small("test").tensors(), strict=True))
    smooth = sgd(0.02, 0.9, nesterov=True, weight_decay=1e-4)
    result = freewheel.fit(
        Network(),
        [{"image": image, "label": label} for image, label in zip(images, labels, strict=True)],  # a Dataset
        step=lambda module, batch: torch.stack([*module(batch).values()]).sum(),
        evaluate=lambda module: {name: loss.item() for name, loss in module(test).items()},
        method=freewheel.hogwild(rule=partition({"drawing.*": adam(1e-3), "*.bias": sgd(0.02), "*": smooth})),
        max_samples=max_samples,
        monitors=[freewheel.monitors.progress()],
    )
    print(result.metrics)
    return result


if __name__ == "__main__":
    main()
