"""A run that was handed to an instance: what any later command needs to find it again."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from gce_backend import tracking
from gce_backend.agent.paths import RunPaths
from gce_backend.errors import TrackingError
from gce_backend.lifecycle import EndReason
from gce_backend.presence import is_dead
from gce_backend.prices import price_date
from gce_backend.storage import parse_uri

ATTEMPT_TAG = "gce.attempt"
_CONSOLE = "https://console.cloud.google.com"


@dataclass(frozen=True)
class Submission:
    """One attempt of one run.

    Args:
        instance: its name; with project and zone it names the resource.
        bucket: where the run's own files are, under ``paths``.
        deadline: unix seconds after which Compute Engine has deleted the instance.
        created_at: unix seconds just before the insert; what the instance's life is counted from.
        usd_per_hour: list price, None where the table does not know it.
        attempt: which one, from 1.
        client: who asked for the instance, as ``presence.this_client`` says it.
        ssh_via: how SSH reaches the instance: external, internal, iap, or none.
    """

    run_id: str
    project: str
    zone: str
    instance: str
    bucket: str
    paths: RunPaths
    tracking_uri: str
    deadline: float
    created_at: float
    usd_per_hour: float | None = None
    attempt: int = 1
    client: str = ""
    ssh_via: str = "none"

    def __post_init__(self) -> None:
        """Numbers as exact as in tags: whoever finds the run again must count the same costs."""
        exact = {"deadline": self.deadline, "created_at": round(self.created_at, 3)}
        if math.isfinite(self.deadline):
            exact["deadline"] = round(self.deadline)
        if self.usd_per_hour is not None:
            exact["usd_per_hour"] = round(self.usd_per_hour, 4)
        for name, value in exact.items():
            object.__setattr__(self, name, value)

    @property
    def uri(self) -> str:
        """Where the run's own files are."""
        return f"gs://{self.bucket}/{self.paths.root}"

    @property
    def resource(self) -> str:
        return f"projects/{self.project}/zones/{self.zone}/instances/{self.instance}"

    @property
    def where(self) -> str:
        """The instance, in the words of gcloud's options."""
        return f"{self.instance} --zone {self.zone} --project {self.project}"

    def deadline_text(self) -> str:
        """When Compute Engine deletes the instance at the latest, in local time."""
        if math.isinf(self.deadline):
            return "its deadline"
        return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.deadline))

    def tags(self) -> dict[str, str]:
        """As tags of the MLflow run; ``from_run`` reads them back."""
        price = (
            {"gce.usd_per_hour": f"{self.usd_per_hour:.4f}", "gce.price_date": price_date()}
            if self.usd_per_hour
            else {}
        )
        zone = f"zones/{self.zone}/instances/{self.instance}?project={self.project}"
        return {
            "gce.console": f"{_CONSOLE}/compute/instancesDetail/{zone}",
            "gce.files": f"{_CONSOLE}/storage/browser/{self.bucket}/{self.paths.root}",
            tracking.RUN_URI_TAG: self.uri,
            tracking.PROJECT_TAG: self.project,
            tracking.ZONE_TAG: self.zone,
            tracking.INSTANCE_TAG: self.instance,
            tracking.DEADLINE_TAG: str(round(self.deadline)),
            ATTEMPT_TAG: str(self.attempt),
            tracking.CLIENT_TAG: self.client,
            "gce.created_at": str(self.created_at),
            "gce.ssh.via": self.ssh_via,
            **price,
        }

    @classmethod
    def from_run(cls, run: Any, tracking_uri: str) -> Submission:
        """The submission of an MLflow run.

        Raises:
            TrackingError: the run was not submitted by this backend.
        """
        tags = run.data.tags
        run_id = run.info.run_id
        missing = [
            tag
            for tag in (tracking.RUN_URI_TAG, tracking.ZONE_TAG, tracking.INSTANCE_TAG)
            if tag not in tags
        ]
        if missing:
            raise TrackingError(
                f"run {run_id} has no tag {missing[0]!r}: no instance was ever requested for it, "
                "or it was not started with --backend gce"
            )
        bucket, root = parse_uri(tags[tracking.RUN_URI_TAG])
        return cls(
            run_id=run_id,
            project=tags[tracking.PROJECT_TAG],
            zone=tags[tracking.ZONE_TAG],
            instance=tags[tracking.INSTANCE_TAG],
            bucket=bucket,
            paths=RunPaths(root.removesuffix(f"/runs/{run_id}"), run_id),
            tracking_uri=tracking_uri,
            # A missing tag says nothing of the deadline, least of all that it has passed.
            deadline=float(tags.get(tracking.DEADLINE_TAG, "inf")),
            attempt=int(tags.get(ATTEMPT_TAG, 1)),
            client=tags.get(tracking.CLIENT_TAG, ""),
            created_at=float(tags.get("gce.created_at", 0)),
            usd_per_hour=float(tags["gce.usd_per_hour"]) if "gce.usd_per_hour" in tags else None,
            ssh_via=tags.get("gce.ssh.via", "none"),
        )


def close_abandoned(store: tracking.Tracking, run: Any) -> bool:
    """Terminate a run whose client died before it asked for an instance; any other is left alone.

    Returns:
        Whether it was such a run.

    Raises:
        TrackingError: the store does not answer.
    """
    tags = run.data.tags
    is_over = run.info.status in ("FINISHED", "FAILED", "KILLED")
    if tracking.INSTANCE_TAG in tags or is_over or not is_dead(tags.get(tracking.CLIENT_TAG, "")):
        return False
    store.terminate(run.info.run_id, EndReason.SUBMIT_FAILED)
    return True
