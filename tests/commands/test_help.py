"""The group: what it lists, and what it may not import to list it."""

import importlib
import subprocess
import sys

import click
import pytest

from gce_backend.cli import COMMANDS, main


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_says_what_the_command_says(name):
    module, text = COMMANDS[name]
    command = getattr(importlib.import_module(module), name)

    assert isinstance(command, click.Command)
    assert command.name == name
    assert command.get_short_help_str(limit=1000).rstrip(".") == text.rstrip(".")


def test_help_imports_no_command_and_nothing_heavy():
    program = (
        "import sys; from gce_backend.cli import main; main(['--help'], standalone_mode=False);"
        "print(sorted(m for m in sys.modules if m.partition('.')[0] in"
        " ('google', 'mlflow', 'hydra', 'rich', 'paramiko') or m.startswith('gce_backend.')))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)

    assert done.stdout.splitlines()[-1] == "['gce_backend.cli']", done.stderr


def test_an_unknown_command_is_named():
    with pytest.raises(click.UsageError, match="No such command 'repa'"):
        main(["repa"], standalone_mode=False)
