"""Whether the trainer's accuracy is luck: five seeds, the default configuration, ten epochs each.

    python bench/seeds.py [--seeds 0 1 2 3 4] [--root data] [--threads 1]

Goals, for each seed: 99.0 % of the test images within 2 epochs, 99.4 % within 10. Both come from
one training of 10 epochs and one of 2, since the learning rate's schedule ends with the last epoch.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as train.py does
sys.path.insert(0, str(Path(__file__).parents[1]))

from omegaconf import OmegaConf
from record import record
from torch import Tensor

import mnist
import train

CONF = Path(__file__).parents[1] / "conf"
GROUPS = {"data": "mnist", "model": "cnn", "optimizer": "sgd", "trainer": "default"}
GOALS = {2: 99.0, 10: 99.4}  # epochs: percent


def accuracies(seed: int, epochs: int, threads: int | None, data: list[Tensor]) -> list[float]:
    """Percent of the test images after each epoch, as `python train.py trainer.seed=…` has it."""
    tree = {group: OmegaConf.load(CONF / group / f"{name}.yaml") for group, name in GROUPS.items()}
    cfg = train.typed(OmegaConf.create({**tree, "registry": {"name": None}}))
    cfg.trainer.seed, cfg.trainer.epochs, cfg.trainer.threads = seed, epochs, threads
    device = train.prepare(cfg.trainer)
    x, y, test_x, test_y = (part.to(device) for part in data)
    training = train.Training(cfg, x, device)
    reached = []
    for _ in range(epochs):
        train.train_one_epoch(training, training.model, cfg, x, y)
        reached.append(train.evaluate(training.averaged, test_x, test_y)[1])
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--root", default="data")
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    x, y, test_x, test_y = mnist.load("mnist", options.root)
    data = [x.float() / 255, y, test_x.float() / 255, test_y]
    rows, missed = [], []
    for seed in options.seeds:
        best = {epochs: max(accuracies(seed, epochs, options.threads, data)) for epochs in GOALS}
        missed += [f"{seed} in {n}" for n, goal in GOALS.items() if best[n] < goal]
        rows.append(f"| {seed} | " + " | ".join(f"{best[n]:.2f}" for n in GOALS) + " |")
        print(rows[-1], flush=True)
    table = "\n".join(
        [
            "| seed | best of 2 epochs (%) | best of 10 epochs (%) |",
            "|---|---|---|",
            *rows,
            f"| goal | {GOALS[2]:.1f} | {GOALS[10]:.1f} |",
        ]
    )
    said = f"missed: {', '.join(missed)}" if missed else "every goal reached on every seed"
    record("Accuracy on five seeds", f"{table}\n\n{said}", "torch")


if __name__ == "__main__":
    main()
