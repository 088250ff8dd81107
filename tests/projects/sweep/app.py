"""A program whose jobs end in every way a job can end."""

import os
import signal
import sys
import threading
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

LOCK = threading.Lock()  # cannot be pickled: the function has to go by its name


class OddError(Exception):
    """Cannot be made again from its arguments."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg: DictConfig) -> object:
    with LOCK:
        print(f"how: {cfg.how}", flush=True)
    output = Path(HydraConfig.get().runtime.output_dir)
    (output / "note.txt").write_text(f"{cfg.how} {cfg.x}")
    if (wish := Path(cfg.wish or "none")).exists():
        return float(wish.read_text())
    if cfg.how == "odd":
        raise OddError("this", "that")
    if cfg.how == "exit":
        sys.exit(3)
    if cfg.how == "abort":
        os._exit(9)
    if cfg.how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.how == "object":
        return {"loss": cfg.x, "file": output}
    return 2.0 * cfg.x


if __name__ == "__main__":
    main()
