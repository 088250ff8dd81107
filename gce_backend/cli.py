"""The command ``mlflow-gce``: the group. Each command is a module in ``gce_backend/commands/``.

A command's module is imported when the command is called, so that ``mlflow-gce --help`` and
completion stay quick; what they show of it stands in the table here.
"""

from __future__ import annotations

import importlib

import click

#: command -> (module, what `mlflow-gce --help` says of it). In the module, the command's function
#: bears the command's name; the help is the first sentence of its docstring (a test compares).
COMMANDS: dict[str, tuple[str, str]] = {
    "ps": (
        "gce_backend.commands.ps",
        "List the instances and their runs: phase, age, deadline, and cost so far.",
    ),
    "show": (
        "gce_backend.commands.show",
        "Show RUN: how it stands or ended, its history, cost and links, and the next commands.",
    ),
    "attach": (
        "gce_backend.commands.attach",
        "Follow RUN again, from the beginning of its log to its end.",
    ),
    "logs": (
        "gce_backend.commands.logs",
        "Print what RUN's training has written, as far as it is in the bucket.",
    ),
    "pull": (
        "gce_backend.commands.pull",
        "Download RUN's artifacts and logged models into DIR, each checked by its CRC32C.",
    ),
    "ssh": (
        "gce_backend.commands.ssh",
        "Open a shell on RUN's instance, or run a command there.",
    ),
    "rescue": (
        "gce_backend.commands.rescue",
        "Copy RUN's files straight off its instance into DIR, each checked by its SHA-256.",
    ),
    "stop": (
        "gce_backend.commands.stop",
        "End RUN: save its results, mark it KILLED, delete its instance.",
    ),
    "sync": (
        "gce_backend.commands.sync",
        "Bring what each RUN has logged so far from the bucket into the MLflow store.",
    ),
    "plan": (
        "gce_backend.commands.plan",
        "Say what a run of the project in DIRECTORY would ask for, and cost at most.",
    ),
    "cost": (
        "gce_backend.commands.cost",
        "Sum up what the store's runs have cost since a day: an estimate by list price.",
    ),
    "reap": (
        "gce_backend.commands.reap",
        "Delete instances whose results are verified, or whose deadline has passed; no others.",
    ),
    "doctor": (
        "gce_backend.commands.doctor",
        "Check everything that a run needs, and say the command that mends what is amiss.",
    ),
    "init": (
        "gce_backend.commands.init",
        "Write conf/ for the MLproject in DIRECTORY, and offer to create what it needs in the "
        "cloud.",
    ),
    "emulator": (
        "gce_backend.emulator.command",
        "Emulate Compute Engine and Cloud Storage on this machine.",
    ),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = getattr(importlib.import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table: nothing is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mlflow-gce")
def main() -> None:
    """Train MLflow projects on ephemeral Compute Engine instances.

    Runs are started with MLflow itself: mlflow run . --backend gce -P epochs=10
    """
