"""Train an image classifier, track it with MLflow.

    python train.py                                      # MNIST, 5 epochs, on this machine
    python train.py -m optimizer.lr=0.1,0.01             # a sweep: one run each
    mlflow run . --env-manager local -P epochs=1         # the same through MLflow
    mlflow run . --backend gce -P epochs=10              # on an instance made for this run

The settings are in conf/. A run named by MLFLOW_RUN_ID that has a checkpoint continues from it.
Beside this file: settings.py checks the settings, mnist.py fetches the images, report.py draws.
"""

import math
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

# Threads that wait sleep, rather than spin: on a machine that does anything besides, an epoch with
# spinning ones was measured to take twice as long and more. To be set before torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
import mlflow
import torch
from hydra.core.hydra_config import HydraConfig
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.data.meta_dataset import MetaDataset
from mlflow.exceptions import MlflowException
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import mnist
import report
from settings import Config, Trainer, typed

# --------------------------------------------------------------------------------- model


def conv(channels_in: int, channels: int, size: int, stride: int = 1) -> list[nn.Module]:
    layer = nn.Conv2d(channels_in, channels, size, stride, bias=False)
    return [layer, nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]


def cnn(width: int) -> nn.Module:
    """Strides instead of pooling: on a CPU the time goes where the image is large."""
    return nn.Sequential(
        *conv(1, width, size=5, stride=2),  # 12 x 12
        *conv(width, 2 * width, size=4, stride=2),  # 5 x 5
        *conv(2 * width, 4 * width, size=3),  # 3 x 3
        nn.Flatten(),
        nn.Linear(36 * width, 10),
    )


def mlp(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(784, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 10)
    )


def resnet18(width: int) -> nn.Module:
    import torchvision  # takes a second, and the other models do without

    model: nn.Module = torchvision.models.resnet18(num_classes=10, width_per_group=width)
    model.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
    model.maxpool = nn.Identity()  # 28 x 28 is small already
    return model


class Classifier(nn.Module):
    """Grey values from 0 to 1, N x 1 x 28 x 28, to logits, N x 10: whoever loads the logged model
    need not know how its training data was normalised.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, images: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("mean", images.mean())
        self.register_buffer("std", images.std())

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.std)  # type: ignore[no-any-return]


MODELS = {"cnn": cnn, "mlp": mlp, "resnet18": resnet18}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": partial(torch.optim.SGD, momentum=0.9, nesterov=True),
    "adamw": torch.optim.AdamW,
}
PRECISIONS = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}

# ------------------------------------------------------------------------------ training

Tensors = tuple[Tensor, ...] | list[Tensor]


class Training:
    """All that a training changes, so that an interrupted one goes on as if nothing had been."""

    def __init__(self, cfg: Config, images: Tensor, device: torch.device) -> None:
        steps = cfg.trainer.epochs * (len(images) // batch_size(cfg, images))
        net = MODELS[cfg.model.name](cfg.model.width)
        self.model = Classifier(net, images).to(device).to(memory_format=torch.channels_last)
        self.averaged = AveragedModel(
            self.model, multi_avg_fn=warm_average(cfg.trainer.ema), use_buffers=True
        )
        self.optimizer = OPTIMIZERS[cfg.optimizer.name](
            self.model.parameters(),
            lr=cfg.optimizer.lr,
            weight_decay=cfg.optimizer.weight_decay,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, cfg.optimizer.lr, total_steps=steps + 1
        )
        self.scaler = torch.amp.GradScaler(device.type, enabled=cfg.trainer.precision == "fp16")
        self.history: list[dict[str, float]] = []

    def save(self, path: Path) -> None:
        parts = {name: part.state_dict() for name, part in vars(self).items() if name != "history"}
        rng = {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state_all()}
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        torch.save({**parts, "history": self.history, "rng": rng}, unfinished)
        unfinished.replace(path)  # a checkpoint is whole, or the one before it is still there

    def load(self, path: Path) -> None:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in vars(self).items():
            if name != "history":
                part.load_state_dict(saved[name])
        self.history = saved["history"]
        torch.set_rng_state(saved["rng"]["cpu"])
        torch.cuda.set_rng_state_all(saved["rng"]["cuda"])


def batch_size(cfg: Config, images: Tensor) -> int:
    return min(cfg.trainer.batch_size, len(images))


def warm_average(decay: float) -> Callable[[Tensors, Tensors, Tensor | int], None]:
    """Exponential moving average of the weights; of the first steps, their plain mean."""

    def average(averaged: Tensors, latest: Tensors, count: Tensor | int) -> None:
        step = get_ema_multi_avg_fn(min(decay, 1 - 1 / (int(count) + 1)))  # type: ignore[no-untyped-call]
        step(averaged, latest, count)

    return average


def shifted(x: Tensor, pixels: int) -> Tensor:
    """Every image moved by up to `pixels`, on its own, both ways: one gather for the batch."""
    padded = F.pad(x[:, 0], [pixels] * 4)
    down, right = torch.randint(0, 2 * pixels + 1, (2, len(x), 1)).to(x.device)
    rows = (down + torch.arange(x.shape[2], device=x.device))[:, :, None]
    columns = (right + torch.arange(x.shape[3], device=x.device))[:, None, :]
    return padded[torch.arange(len(x), device=x.device)[:, None, None], rows, columns][:, None]


def train_one_epoch(
    training: Training, forward: Callable[[Tensor], Tensor], cfg: Config, x: Tensor, y: Tensor
) -> float:
    """One pass over the images (0..1, on the device); the mean of the smoothed training loss."""
    kind = PRECISIONS[cfg.trainer.precision]
    size = batch_size(cfg, x)
    batches = torch.randperm(len(x)).to(x.device)[: len(x) // size * size].view(-1, size)
    total = torch.zeros((), device=x.device)
    training.model.train()
    for batch in batches:
        images = shifted(x[batch], cfg.data.shift)
        with torch.autocast(x.device.type, dtype=kind, enabled=kind is not None):
            logits = forward(images)
        loss = F.cross_entropy(
            logits.float(), y[batch], label_smoothing=cfg.trainer.label_smoothing
        )
        training.optimizer.zero_grad()
        torch.autograd.backward(training.scaler.scale(loss))
        training.scaler.step(training.optimizer)
        training.scaler.update()
        training.schedule.step()
        training.averaged.update_parameters(training.model)
        total += loss.detach()
    return total.item() / len(batches)


@torch.inference_mode()
def evaluate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float, Tensor]:
    """Cross-entropy, percent correct, and the logits; float32 whatever the training's precision."""
    model.eval()
    logits = torch.cat([model(part) for part in torch.split(x, 1000)])
    correct = (logits.argmax(1) == y).sum().item()
    return F.cross_entropy(logits, y).item(), 100 * correct / len(y), logits


def finished(history: list[dict[str, float]], cfg: Trainer) -> bool:
    if not history:
        return False
    losses = [row["test_loss"] for row in history]
    stale = len(losses) - 1 - losses.index(min(losses))
    if not math.isfinite(history[-1]["train_loss"]):
        print("diverged: the loss is no number any more; try a smaller optimizer.lr", flush=True)
        return True
    return (
        len(history) >= cfg.epochs
        or (cfg.target_accuracy is not None and history[-1]["test_accuracy"] >= cfg.target_accuracy)
        or (cfg.patience is not None and stale >= cfg.patience)
    )


# ------------------------------------------------------------------------------- results


def find_checkpoint(run_id: str, directory: str) -> Path | None:
    """The checkpoint an earlier attempt of this run left among its artifacts."""
    name = "checkpoints/last.pt"
    left = mlflow.artifacts.list_artifacts(run_id=run_id, artifact_path="checkpoints")
    if name not in [file.path for file in left]:
        return None
    return Path(
        mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path=name, dst_path=directory)
    )


def log_epoch(row: dict[str, float]) -> None:
    """The epoch's metrics, in one call. By the row's own time: logged again, it is no new point."""
    metrics = {key: value for key, value in row.items() if key not in ("epoch", "timestamp")}
    mlflow.log_metrics(metrics, step=int(row["epoch"]), timestamp=int(row["timestamp"]))


def log_model(model: nn.Module, images: Tensor, cfg: Config, step: int) -> None:
    """The model as MLflow's, registered as well when `registry.name` is set."""
    with torch.inference_mode():
        logits = model(images)
    logged = mlflow.pytorch.log_model(
        model,
        name="model",
        signature=mlflow.models.infer_signature(images.numpy(), logits.numpy()),
        input_example=images.numpy(),
        serialization_format="pt2",  # loads without this file, and without running pickled code
        pip_requirements=[f"torch=={torch.__version__.split('+')[0]}"],
        step=step,
    )
    if cfg.registry.name:
        try:
            mlflow.register_model(logged.model_uri, cfg.registry.name)
        except MlflowException as error:  # it can be registered later; the training is done
            print(f"not registered as {cfg.registry.name!r}: {error}", flush=True)


# ---------------------------------------------------------------------------------- main


def physical_cores() -> int:
    """The cores this process may use. Two threads on one core's hyperthreads slow each other."""
    if not hasattr(os, "sched_getaffinity"):  # there is one on Linux only
        return os.cpu_count() or 1
    siblings = set()
    for cpu in os.sched_getaffinity(0):
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(topology.read_text() if topology.exists() else str(cpu))
    return len(siblings)


def prepare(cfg: Trainer) -> torch.device:
    """Seed, threads, device. SystemExit without the device asked for."""
    torch.manual_seed(cfg.seed)
    torch.set_num_threads(cfg.threads or physical_cores())
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = True
    available = "cuda" if torch.cuda.is_available() else "cpu"
    if cfg.device == "cuda" != available:
        sys.exit("train.py: trainer.device: cuda, and PyTorch finds no GPU on this machine")
    return torch.device(available if cfg.device == "auto" else cfg.device)


@hydra.main(version_base="1.3", config_path="conf", config_name="config")  # type: ignore[untyped-decorator]
def main(composed: DictConfig) -> float:
    """Train as configured; the last test accuracy in percent, for Hydra's sweepers."""
    cfg = typed(composed)
    device = prepare(cfg.trainer)
    directory = Path(HydraConfig.get().runtime.output_dir)
    with mlflow.start_run() as run, tempfile.TemporaryDirectory() as temporary:
        for group in ("data", "model", "optimizer", "trainer"):
            values = asdict(getattr(cfg, group))
            mlflow.log_params({f"{group}.{key}": value for key, value in values.items()})
        x, y, test_x, test_y = (
            part.to(device) for part in mnist.load(cfg.data.name, cfg.data.root)
        )
        x, test_x = x.float() / 255, test_x.float() / 255
        page = HTTPDatasetSource(mnist.HOME_PAGES[cfg.data.name])
        dataset = MetaDataset(page, name=cfg.data.name, digest=mnist.digest(cfg.data.name))
        mlflow.log_input(dataset, context="training")

        training = Training(cfg, x, device)
        if checkpoint := find_checkpoint(run.info.run_id, temporary):
            training.load(checkpoint)
            print(f"continues after epoch {len(training.history)}", flush=True)
        for row in training.history:
            log_epoch(row)
        forward = torch.compile(training.model) if cfg.trainer.compile else training.model

        while not finished(training.history, cfg.trainer):
            start = time.perf_counter()
            train_loss = train_one_epoch(training, forward, cfg, x, y)
            trained = time.perf_counter()
            test_loss, accuracy, _ = evaluate(training.averaged, test_x, test_y)
            row = {
                "epoch": len(training.history) + 1,
                "train_loss": train_loss,
                "test_loss": test_loss,
                "test_accuracy": accuracy,
                "learning_rate": float(training.schedule.get_last_lr()[0]),
                "images_per_second": len(x) / (trained - start),
                "epoch_seconds": time.perf_counter() - start,
                "timestamp": time.time_ns() // 1_000_000,
            }
            training.history.append(row)
            training.save(directory / "checkpoints/last.pt")
            mlflow.log_artifact(str(directory / "checkpoints/last.pt"), "checkpoints")
            log_epoch(row)
            print(
                f"epoch {row['epoch']}/{cfg.trainer.epochs}  train loss {train_loss:.3f}  "
                f"test loss {test_loss:.4f}  accuracy {accuracy:.2f} %  "
                f"{row['epoch_seconds']:.1f} s",
                flush=True,
            )

        model = training.averaged.module.cpu().to(memory_format=torch.contiguous_format)
        test_x, test_y = test_x.cpu(), test_y.cpu()
        _, _, logits = evaluate(model, test_x, test_y)
        torch.save(model.state_dict(), directory / "model.pt")
        OmegaConf.save(asdict(cfg), directory / "config.yaml")
        written = report.write(directory, training.history, test_x, test_y, logits)
        for path in (directory / "model.pt", directory / "config.yaml", *written):
            mlflow.log_artifact(str(path))
        mlflow.log_metrics(report.scores(test_y, logits), step=len(training.history))
        log_model(model, test_x[:2], cfg, step=len(training.history))
    return training.history[-1]["test_accuracy"]


if __name__ == "__main__":
    # MLflow hands over one word per parameter; --overrides TEXT is as many as TEXT has.
    if "--overrides" in sys.argv:
        at = sys.argv.index("--overrides")
        sys.argv[at : at + 2] = shlex.split(sys.argv[at + 1])
    main()
