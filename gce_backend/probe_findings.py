"""What only an instance can find out: inferred, until a probe has answered it."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass

from gce_backend.config import Settings
from gce_backend.finding import Finding, State
from gce_backend.preparation import ROLE
from gce_backend.probe import Answers
from gce_backend.urls import is_loopback, without_credentials

#: What must be well before an instance can be started for the rest.
FIRST = (
    "credentials",
    "project",
    "permissions",
    "service account",
    "bucket",
    "image",
    "network",
)


@dataclass(frozen=True)
class Matter:
    """One thing to find out.

    Args:
        question: as `probe.Probe` takes it; "" where nobody needs to be asked.
        name: of the finding.
        unknown: what is said of it while it is inferred.
        amiss: how bad a no is.
        remedy: what mends it.
    """

    question: str
    name: str
    unknown: str
    amiss: State
    remedy: Callable[[], str]

    def inferred(self) -> Finding:
        if not self.question:
            return Finding(self.name, State.OK, self.unknown)
        return Finding(self.name, State.INFERRED, self.unknown, self.remedy())

    def skipped(self, because: str) -> Finding:
        if not self.question:
            return self.inferred()
        return Finding(self.name, State.SKIPPED, f"not probed: {because} comes first")

    def answered(self, answers: Answers) -> Finding:
        said = answers.said.get(self.question)
        if not self.question or said is None:
            found = self.inferred()
            why = f"{answers.silence}; {found.detail}" if answers.silence else found.detail
            return Finding(found.name, found.state, why if self.question else found.detail)
        if said["ok"]:
            return Finding(self.name, State.OK, said["detail"])
        return Finding(self.name, self.amiss, said["detail"], self.remedy())


def matters(settings: Settings, tracking_uri: str | None, email: Callable[[], str]) -> list[Matter]:
    """Everything to find out for these settings.

    Args:
        email: of the instances' service account; asked only for a remedy.
    """
    found = [
        _ssh(settings),
        _bucket(settings, email),
        _deletion(settings, email),
        _index(settings),
    ]
    if tracking_uri and is_probed(tracking_uri):
        found.append(_tracking(tracking_uri))
    return found


def is_probed(tracking_uri: str) -> bool:
    """Whether it is a server, and on no loopback address: that of the instance is another."""
    scheme = urllib.parse.urlsplit(tracking_uri).scheme
    return scheme in ("http", "https") and not is_loopback(tracking_uri)


def _bucket(settings: Settings, email: Callable[[], str]) -> Matter:
    def remedy() -> str:
        return (
            f"gcloud storage buckets add-iam-policy-binding gs://{settings.bucket} "
            f"--member=serviceAccount:{email()} --role=roles/storage.objectUser"
        )

    return Matter(
        "bucket",
        "instance: bucket",
        "whether its service account may write there; the agent tests it and says so",
        State.FAILED,
        remedy,
    )


def _deletion(settings: Settings, email: Callable[[], str]) -> Matter:
    def remedy() -> str:
        return (
            f"gcloud iam roles create {ROLE} --project={settings.project} "
            "--permissions=compute.instances.delete,compute.instances.get\n"
            f"gcloud projects add-iam-policy-binding {settings.project} "
            f"--member=serviceAccount:{email()} --role=projects/{settings.project}/roles/{ROLE}"
        )

    return Matter(
        "deletion",
        "instance: deletion",
        "whether its service account may delete it; the agent tests it and says so",
        State.FAILED,
        remedy,
    )


def _index(settings: Settings) -> Matter:
    region = settings.zones[0].rpartition("-")[0]
    network = settings.gce.network.rpartition("/")[2]

    def remedy() -> str:
        return (
            f"gcloud compute routers create mlflow-gce --network={network} --region={region} "
            f"--project={settings.project}\n"
            f"gcloud compute routers nats create mlflow-gce --router=mlflow-gce --region={region} "
            "--auto-allocate-nat-external-ips --nat-all-subnet-ip-ranges "
            f"--project={settings.project}"
        )

    return Matter(
        "index",
        "instance: package index",
        "whether there is a way to it from there, where an environment has to be built",
        State.FAILED,
        remedy,
    )


def _tracking(uri: str) -> Matter:
    return Matter(
        "tracking",
        "instance: tracking server",
        f"whether there is a way to {without_credentials(uri)} from there; a client that follows "
        "brings what is logged otherwise",
        State.WARNING,
        lambda: "-P gce.tracking.forward=never",
    )


def _ssh(settings: Settings) -> Matter:
    via = settings.gce.ssh_via
    source = "35.235.240.0/20" if via == "iap" else "YOUR.ADDRESS/32"

    def remedy() -> str:
        return (
            f"gcloud compute firewall-rules create mlflow-gce-ssh --allow=tcp:22 "
            f"--network={settings.gce.network.rpartition('/')[2]} "
            f"--source-ranges={source} --project={settings.project}"
        )

    if via == "none":
        unknown = "not used (gce.ssh.via=none): runs do not need it"
        return Matter("", "SSH", unknown, State.OK, lambda: "")
    unknown = f"via {via}: whether a firewall rule lets tcp:22 in; no run needs it"
    return Matter("ssh", "SSH", unknown, State.WARNING, remedy)
