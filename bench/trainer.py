"""Seconds per epoch and to 99 %: train.py against PyTorch's MNIST example, side by side.

    python bench/trainer.py [--epochs 5] [--root data]

The example is written from its description: a DataLoader over PIL images with ToTensor and
Normalize, batches of 64, two convolutions, dropout, two linear layers, Adadelta at 1.0 and
StepLR 0.7. Both trainings take turns, an epoch each, so that a busy machine slows both; both use
the threads train.py would. The target must be reached within --epochs.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does, for both
sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from omegaconf import OmegaConf
from record import record
from torch import Tensor, nn
from torch.nn import functional as F

import mnist
import train

TARGET = 99.0  # percent of the test images
CONF = Path(__file__).parents[1] / "conf"
Epochs = Iterator[float]  # trains one epoch a step; yields percent correct on the test set


def ours(root: str) -> Epochs:
    groups = {"data": "mnist", "model": "cnn", "optimizer": "sgd", "trainer": "default"}
    tree = {group: OmegaConf.load(CONF / group / f"{name}.yaml") for group, name in groups.items()}
    cfg = train.typed(OmegaConf.create({**tree, "registry": {"name": None}}))
    device = train.prepare(cfg.trainer)
    x, y, test_x, test_y = (part.to(device) for part in mnist.load("mnist", root))
    x, test_x = x.float() / 255, test_x.float() / 255
    training = train.Training(cfg, x, device)
    for _ in range(cfg.trainer.epochs):
        train.train_one_epoch(training, training.model, cfg, x, y)
        yield train.evaluate(training.averaged, test_x, test_y)[1]


class ExampleNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.drop1, self.drop2 = nn.Dropout(0.25), nn.Dropout(0.5)
        self.fc1, self.fc2 = nn.Linear(9216, 128), nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 2)
        x = F.relu(self.fc1(torch.flatten(self.drop1(x), 1)))
        return F.log_softmax(self.fc2(self.drop2(x)), dim=1)


def example(root: str) -> Epochs:
    from torchvision import datasets, transforms

    torch.manual_seed(1)
    steps = [transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))]
    parts = [
        datasets.MNIST(root, train=part, transform=transforms.Compose(steps))
        for part in (True, False)
    ]
    training = torch.utils.data.DataLoader(parts[0], batch_size=64, shuffle=True)
    testing = torch.utils.data.DataLoader(parts[1], batch_size=1000)
    model = ExampleNet()
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.7)
    while True:
        model.train()
        for x, y in training:
            optimizer.zero_grad()
            F.nll_loss(model(x), y).backward()
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            correct = sum(int((model(x).argmax(1) == y).sum()) for x, y in testing)
        yield 100 * correct / len(parts[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--root", default="data")
    options = parser.parse_args()
    mnist.load("mnist", options.root)
    both: dict[str, Callable[[str], Epochs]] = {"train.py": ours, "example": example}
    running = {name: start(options.root) for name, start in both.items()}
    spent: dict[str, list[float]] = {name: [] for name in both}
    reached: dict[str, float] = {}
    for epoch in range(1, options.epochs + 1):
        for name, epochs in running.items():
            if name in reached and epoch > 2:
                continue
            start = time.perf_counter()
            accuracy = next(epochs)
            spent[name].append(time.perf_counter() - start)
            if accuracy >= TARGET:
                reached.setdefault(name, sum(spent[name]))
            print(f"{name:9} epoch {epoch}  {accuracy:.2f} %  {spent[name][-1]:.1f} s", flush=True)
    per_epoch = {name: min(seconds) for name, seconds in spent.items()}
    rows = [compared("per epoch", per_epoch)]
    if reached.keys() == both.keys():
        rows.append(compared(f"to {TARGET:.1f} % (goal: 20 times)", reached))
    table = "\n".join(["| seconds | train.py | example | times |", "|---|---|---|---|", *rows])
    late = both.keys() - reached.keys()
    said = "".join(
        f"\n\n{TARGET} % not reached by {name} in {options.epochs} epochs" for name in late
    )
    record("Trainer against PyTorch's MNIST example", table + said, "torch", "torchvision")
    sys.exit(1 if late else 0)


def compared(what: str, seconds: dict[str, float]) -> str:
    ours, theirs = seconds["train.py"], seconds["example"]
    return f"| {what} | {ours:.1f} | {theirs:.1f} | {theirs / ours:.1f} |"


if __name__ == "__main__":
    main()
