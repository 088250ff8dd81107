"""The instance to ask Compute Engine for: settings in, the body of ``instances.insert`` out. Pure.

Every instance carries what keeps it from outliving its run without anybody's help: a run time
after which Compute Engine deletes it, no automatic restart, and disks that go with it.
"""

from __future__ import annotations

import getpass
import re
from dataclasses import dataclass
from importlib import resources
from typing import Any

from gce_backend.agent.paths import (
    ATTEMPT_LABEL,
    DEADLINE_LABEL,
    NAME_ATTRIBUTE,
    OWNER_LABEL,
    RUN_LABEL,
    SPEC_ATTRIBUTE,
)
from gce_backend.config import Settings

_MAX_METADATA_BYTES = 262_144  # of one value


@dataclass(frozen=True)
class Agent:
    """The agent's archive in the bucket, as the startup script fetches and checks it."""

    bucket: str
    object: str
    sha256: str


def instance_name(run_id: str, attempt: int) -> str:
    """One name for one attempt, so that an insert sent twice cannot make two instances."""
    return f"mlflow-{run_id}-{attempt}"


def lifetime_seconds(settings: Settings) -> int:
    """After how many seconds of running Compute Engine deletes the instance by itself."""
    return round(settings.gce.max_hours * 3600 + settings.gce.rescue_minutes * 60)


def insert_body(
    settings: Settings,
    zone: str,
    *,
    run_id: str,
    attempt: int,
    spec_uri: str,
    agent: Agent,
    deadline: float,
    owner: str | None = None,
    run_name: str = "",
    ssh_key: str | None = None,
) -> dict[str, Any]:
    """The body of ``instances.insert``, in the API's JSON (int64 as strings).

    Args:
        spec_uri: ``gs://`` URI of the run's spec.json.
        deadline: unix seconds after which the instance must be gone.
        owner: whose instance it is, for the label; the local user's name by default.
        run_name: the MLflow run's, for lists of instances.
        ssh_key: a line of the metadata's ``ssh-keys``; None: nobody gets in by a key.
    """
    machine, gce = settings.machine, settings.gce
    body: dict[str, Any] = {
        "name": instance_name(run_id, attempt),
        "description": f"mlflow-gce: MLflow run {run_id}, attempt {attempt}",
        "machineType": f"zones/{zone}/machineTypes/{machine.machine_type}",
        "labels": {
            RUN_LABEL: run_id,
            ATTEMPT_LABEL: str(attempt),
            OWNER_LABEL: label_value(owner) if owner else owner_label(),
            DEADLINE_LABEL: str(round(deadline)),
        },
        "disks": [
            {
                "boot": True,
                "autoDelete": True,
                "initializeParams": {
                    "sourceImage": machine.image,
                    "diskSizeGb": str(machine.disk_gb),
                    "diskType": f"zones/{zone}/diskTypes/{machine.disk_type}",
                },
            }
        ],
        "networkInterfaces": [_network_interface(settings)],
        "serviceAccounts": [{"email": gce.service_account, "scopes": list(gce.scopes)}],
        "scheduling": _scheduling(settings),
        "metadata": {"items": _metadata(spec_uri, agent, run_name, ssh_key)},
        # A reservation is somebody's plan; do not use it up.
        "reservationAffinity": {"consumeReservationType": "NO_RESERVATION"},
    }
    if machine.accelerator_type:
        body["guestAccelerators"] = [
            {
                "acceleratorType": f"zones/{zone}/acceleratorTypes/{machine.accelerator_type}",
                "acceleratorCount": machine.gpus,
            }
        ]
    return body


def startup_script(agent: Agent) -> str:
    """The bash script that fetches the agent and keeps it alive."""
    text = resources.files("gce_backend").joinpath("startup.sh").read_text(encoding="utf-8")
    for mark, value in (
        ("@BUCKET@", agent.bucket),
        ("@OBJECT@", agent.object),
        ("@SHA256@", agent.sha256),
    ):
        text = text.replace(mark, value)
    assert len(text.encode()) < _MAX_METADATA_BYTES
    return text


def label_value(text: str) -> str:
    """``text`` as a label's value: at most 63 lowercase letters, digits, ``-`` and ``_``."""
    return re.sub(r"[^a-z0-9_-]", "-", text.lower())[:63]


def _scheduling(settings: Settings) -> dict[str, Any]:
    machine = settings.machine
    # GPUs and spot instances cannot be moved to another host while they run.
    stays = machine.spot or machine.gpus > 0
    return {
        "provisioningModel": "SPOT" if machine.spot else "STANDARD",
        "onHostMaintenance": "TERMINATE" if stays else "MIGRATE",
        "automaticRestart": False,
        "instanceTerminationAction": "DELETE",
        "maxRunDuration": {"seconds": str(lifetime_seconds(settings))},
    }


def _network_interface(settings: Settings) -> dict[str, Any]:
    gce = settings.gce
    interface: dict[str, Any] = {"network": gce.network}
    if gce.subnetwork:
        interface["subnetwork"] = gce.subnetwork
    if gce.external_ip:
        interface["accessConfigs"] = [{"name": "External NAT", "type": "ONE_TO_ONE_NAT"}]
    return interface


def _metadata(
    spec_uri: str, agent: Agent, run_name: str, ssh_key: str | None
) -> list[dict[str, str]]:
    """Nothing secret: whoever may read the instance, or run code on it, reads these."""
    items = [
        {"key": SPEC_ATTRIBUTE, "value": spec_uri},
        {"key": NAME_ATTRIBUTE, "value": run_name},
        {"key": "startup-script", "value": startup_script(agent)},
        {"key": "enable-guest-attributes", "value": "TRUE"},  # the SSH host keys come through them
        {"key": "block-project-ssh-keys", "value": "TRUE"},
        {"key": "serial-port-logging-enable", "value": "TRUE"},
    ]
    if ssh_key:
        # With OS Login, which a project may have switched on, keys in the metadata do not count.
        items += [
            {"key": "enable-oslogin", "value": "FALSE"},
            {"key": "ssh-keys", "value": ssh_key},
        ]
    return items


def owner_label() -> str:
    """The local user's name as a label's value: whose instances are "mine"."""
    try:
        return label_value(getpass.getuser())
    except (KeyError, OSError):
        return "unknown"  # a container whose user id has no name
