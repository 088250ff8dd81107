"""The trainer of this checkout as a project of its own."""

import shutil
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
_CODE = ("train.py", "settings.py", "mnist.py", "report.py")
_PROJECT = ("MLproject", "python_env.yaml", *_CODE, "conf")


def copy_trainer(directory: Path) -> None:
    """Everything that training needs, and nothing else of the checkout."""
    for name in _PROJECT:
        source = CHECKOUT / name
        copy = shutil.copytree if source.is_dir() else shutil.copy
        copy(source, directory / name)
