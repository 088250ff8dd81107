"""``mlflow-gce ssh``: a shell or a command on a run's instance."""

from __future__ import annotations

import shlex
import sys

import click

from gce_backend.commands.answering import guarded, looking_around
from gce_backend.commands.options import RUN, TRACKING_URI
from gce_backend.commands.reaching import VIA, reach


@click.command()
@RUN
@TRACKING_URI
@VIA
@click.option("-t", "--tty", "wants_tty", is_flag=True, help="Run the command in a terminal.")
@click.argument("command", nargs=-1, metavar="[-- COMMAND...]")
@looking_around
def ssh(
    run: str,
    tracking_uri: str | None,
    via: str | None,
    wants_tty: bool,
    command: tuple[str, ...],
) -> None:
    """Open a shell on RUN's instance, or run a command there.

    The exit code is the command's, or 255 where it left none. One word is a line for the shell
    there ('tail -f x | grep y'); several are a command and its arguments. Only an instance that
    proves its host key is spoken to; see docs/ssh.md.
    """
    from gce_backend.run_finder import find_submission
    from gce_backend.ssh_shell import run_command, run_in_terminal

    line = (command[0] if len(command) == 1 else shlex.join(command)) if command else None
    in_terminal = sys.stdin.isatty() and (wants_tty or line is None)

    def work() -> int:
        with reach(find_submission(run, tracking_uri), via) as connection:
            return (run_in_terminal if in_terminal else run_command)(connection, line)

    sys.exit(guarded(work))
