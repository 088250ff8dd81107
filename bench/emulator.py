"""The emulator: seconds to start and to stop, and a listing of 200 instances against one of none.

    python bench/emulator.py

Both listings are made in turn in one run: how much longer the full one takes is the figure.
"""

import time
from statistics import median

import requests
from record import Figures, Say

from gce_backend.compute import Compute
from gce_backend.emulator import Emulator

MANY = 200
ZONE, EMPTY_ZONE = "europe-west1-b", "europe-west1-c"


def body(name: str) -> dict[str, object]:
    image = "projects/ubuntu-os-cloud/global/images/family/ubuntu-2404-lts-amd64"
    return {
        "name": name,
        "machineType": f"zones/{ZONE}/machineTypes/n1-standard-2",
        "disks": [{"boot": True, "autoDelete": True, "initializeParams": {"sourceImage": image}}],
        "networkInterfaces": [{"network": "global/networks/default"}],
        "metadata": {"items": [{"key": "startup-script", "value": "sleep 9999"}]},
    }


def milliseconds(session: requests.Session, url: str) -> float:
    started = time.perf_counter()
    session.get(url, timeout=30).raise_for_status()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    with Figures("The emulator") as figures:
        measure(figures.say)


def measure(say: Say) -> None:
    started = time.perf_counter()
    with Emulator(boot_seconds=0.02) as emulator:
        say(f"start: {time.perf_counter() - started:.2f} s (goal: 1)")
        compute = Compute(emulator.project, endpoint=emulator.compute_url)
        for number in range(MANY):
            compute.insert(ZONE, body(f"vm-{number}"))
        zones = f"{emulator.compute_url}projects/{emulator.project}/zones"
        full, empty = [], []
        with requests.Session() as session:
            for _ in range(20):
                full.append(milliseconds(session, f"{zones}/{ZONE}/instances"))
                empty.append(milliseconds(session, f"{zones}/{EMPTY_ZONE}/instances"))
        say(
            f"list: {median(full):.1f} ms with {MANY} instances, {median(empty):.1f} ms with none; "
            f"ratio {median(full) / median(empty):.1f} (goal: 50 ms)"
        )
        stopping = time.perf_counter()
    say(f"stop with {MANY} instances: {time.perf_counter() - stopping:.2f} s")


if __name__ == "__main__":
    main()
