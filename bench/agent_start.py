"""What an instance runs between boot and trainer: CPU seconds of each Python that starts there.

    python bench/agent_start.py

CPU seconds, since a boot has the machine to itself and a measuring machine may not: they are what
these steps take where nothing else runs. The network's part is `bench/instance_seconds.py`'s.
"""

import os
import subprocess
import sys
from pathlib import Path

from record import record

from gce_backend.agent.environment import _CHECK

ROUNDS = 7
CHECKOUT = Path(__file__).parents[1]
STEPS = {
    "the startup script's own fetch of the agent": "import hashlib, json, urllib.request",
    "the agent, imported": "import gce_backend.agent.main",
    "is it the Python that was asked for": "import sys; sys.version_info",
    "does the image have the requirements": _CHECK,
}
REQUIREMENTS = '["mlflow>=3", "torch>=2", "hydra-core>=1.3"]'


def cpu_seconds(script: str) -> float:
    """The least of several, without what an idle Python takes to be started by us."""
    spent = []
    for _ in range(ROUNDS):
        process = subprocess.Popen(
            [sys.executable, "-c", script, REQUIREMENTS], stdout=subprocess.DEVNULL, cwd=CHECKOUT
        )
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 0, script
        spent.append(used.ru_utime + used.ru_stime)
    return min(spent)


def main() -> None:
    spent = {name: cpu_seconds(script) for name, script in STEPS.items()}
    rows = [f"| {name} | {seconds:.2f} |" for name, seconds in spent.items()]
    total = f"| together | {sum(spent.values()):.2f} |"
    record(
        "From boot to the trainer, without the network",
        "\n".join(["| step | CPU seconds |", "|---|---|", *rows, total]),
    )


if __name__ == "__main__":
    main()
