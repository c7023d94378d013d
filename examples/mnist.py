"""A training script as many are: arguments, a small CNN, train() and test(), a schedule. Plain PyTorch."""

from __future__ import annotations

import argparse
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import StepLR
from torch.utils.data import DataLoader

from freewheel.data import fashion_mnist, fashion_mnist_small


class Net(nn.Module):
    """Two convolutions and two dense layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3)
        self.conv2 = nn.Conv2d(16, 32, 3)
        self.dropout = nn.Dropout(0.25)
        self.fc1 = nn.Linear(32 * 12 * 12, 64)
        self.fc2 = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Pictures to log-probabilities."""
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.relu(self.fc1(torch.flatten(self.dropout(x), 1)))
        return F.log_softmax(self.fc2(x), dim=1)


def train(args: Any, model: Net, loader: Any, optimizer: optim.Optimizer, epoch: int) -> None:
    """One epoch."""
    model.train()
    for batch, (data, target) in enumerate(loader):
        optimizer.zero_grad()
        loss = F.nll_loss(model(data), target)
        torch.autograd.backward(loss)
        optimizer.step()
        if batch % args.log_interval == 0:
            print(f"epoch {epoch}, batch {batch} of {len(loader)}: loss {loss.item():.4f}")
        if args.dry_run:
            break


def test(args: Any, model: Net, loader: Any) -> float:
    """Accuracy on pictures that were not trained on; the model is saved, if that is wanted."""
    model.eval()
    loss, correct, count = 0.0, 0, 0
    with torch.no_grad():
        for data, target in loader:
            output = model(data)
            loss += F.nll_loss(output, target, reduction="sum").item()
            correct += int((output.argmax(1) == target).sum())
            count += len(target)
    print(f"test: loss {loss / count:.4f}, accuracy {correct / count:.4f}")
    if args.save_model:
        torch.save(model.state_dict(), args.save_model)
    return correct / count


def main() -> None:
    """Trains by the arguments of the command line."""
    parser = argparse.ArgumentParser(description="Fashion-MNIST")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--gamma", type=float, default=0.7, help="factor of the learning rate, each epoch")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log-interval", type=int, default=10)
    parser.add_argument("--dry-run", action="store_true", help="one batch an epoch")
    parser.add_argument("--full", action="store_true", help="the whole set, which is downloaded")
    parser.add_argument("--save-model", metavar="FILE")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    load = fashion_mnist if args.full else fashion_mnist_small
    train_loader: Any = DataLoader(load("train"), batch_size=args.batch_size, shuffle=True)
    test_loader = DataLoader(load("test"), batch_size=1000)

    model = Net()
    optimizer = optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    scheduler = StepLR(optimizer, step_size=1, gamma=args.gamma)
    for epoch in range(1, args.epochs + 1):
        train(args, model, train_loader, optimizer, epoch)
        test(args, model, test_loader)
        scheduler.step()


if __name__ == "__main__":
    main()
