"""The checks of ``doctor.py``: each asks one API one question and says what the answer means."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

from gce_backend.config import Settings
from gce_backend.credentials import default_credentials, explain
from gce_backend.errors import ComputeError, PermissionDenied, StorageError
from gce_backend.finding import Finding, State
from gce_backend.quota import free_quotas, needed_quota
from gce_backend.rest import Rest, compute_rest
from gce_backend.storage import Storage

#: What submitting, following, deleting and reaping a run takes.
PERMISSIONS = (
    "compute.instances.create",
    "compute.instances.delete",
    "compute.instances.get",
    "compute.instances.list",
    "compute.instances.setLabels",
    "compute.instances.setMetadata",
    "compute.instances.setServiceAccount",
    "compute.instances.start",
    "compute.disks.create",
    "compute.subnetworks.use",
)
_EXTERNAL = "compute.subnetworks.useExternalIp"
_SCOPE = "https://www.googleapis.com/auth/"
_MANAGER = ("CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDRESOURCEMANAGER", "cloudresourcemanager")
_IAM = ("CLOUDSDK_API_ENDPOINT_OVERRIDES_IAM", "iam")
_RETRY_SECONDS = 5.0
_DISABLED = ("accessNotConfigured", "SERVICE_DISABLED", "has not been used in project")
_ADVICE_MEMBER = "--member=user:YOU@EXAMPLE.COM"


class Checkups:
    """The checks for one configuration. Each returns a Finding, or raises one of our errors."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._project = settings.project
        self._region = settings.zones[0].rpartition("-")[0]

    def credentials(self) -> Finding:
        name = "credentials"
        if self._settings.endpoints.emulated:
            return Finding(name, State.OK, "the emulator asks for none")
        import google.auth.exceptions
        from google.auth.transport.requests import Request

        try:
            found = default_credentials()
            found.refresh(Request())
        except google.auth.exceptions.GoogleAuthError as error:
            detail, _, remedy = explain(error).partition("\n")
            return Finding(name, State.FAILED, detail, remedy.strip())
        who = getattr(found, "service_account_email", None) or "your own login"
        return Finding(name, State.OK, f"{who} gets a token")

    def project(self) -> Finding:
        name = "project"
        try:
            self._project_resource  # noqa: B018
        except ComputeError as error:
            return self._no_project(error)
        return Finding(name, State.OK, f"{self._project}, Compute Engine API enabled")

    def permissions(self) -> Finding:
        name = "permissions"
        wanted = [*PERMISSIONS, *([_EXTERNAL] if self._settings.gce.external_ip else [])]
        path = f"v1/projects/{self._project}:testIamPermissions"
        try:
            granted = self._granted(_MANAGER, path, wanted)
        except ComputeError as error:
            return self._unasked(name, error, "cloudresourcemanager.googleapis.com")
        if missing := [each for each in wanted if each not in granted]:
            return Finding(
                name,
                State.FAILED,
                f"you lack {', '.join(missing)}",
                f"gcloud projects add-iam-policy-binding {self._project} {_ADVICE_MEMBER} "
                "--role=roles/compute.instanceAdmin.v1",
            )
        return Finding(name, State.OK, f"all {len(wanted)} that runs take, by testIamPermissions")

    def service_account(self) -> Finding:
        name, email = "service account", self.email
        path = f"v1/projects/-/serviceAccounts/{email}"
        try:
            self._api(_IAM).get(f"reading service account {email}", path)
            granted = self._granted(
                _IAM, f"{path}:testIamPermissions", ["iam.serviceAccounts.actAs"]
            )
        except PermissionDenied as error:
            return self._unasked(name, error, "iam.googleapis.com")
        except ComputeError as error:
            create = (
                f"gcloud iam service-accounts create {email.partition('@')[0]} "
                f"--project={self._project}"
            )
            return Finding(name, State.FAILED, str(error), create)
        if not granted:
            grant = (
                f"gcloud iam service-accounts add-iam-policy-binding {email} {_ADVICE_MEMBER} "
                "--role=roles/iam.serviceAccountUser"
            )
            return Finding(name, State.FAILED, f"you may not give it to instances: {email}", grant)
        return Finding(name, State.OK, f"{email}, and you may give it to instances")

    def scopes(self) -> Finding:
        name, scopes = "scopes", {s.removeprefix(_SCOPE) for s in self._settings.gce.scopes}
        if "cloud-platform" in scopes:
            return Finding(name, State.OK, "cloud-platform")
        lacking = []
        if not scopes & {"devstorage.read_write", "devstorage.full_control"}:
            lacking.append(f"{_SCOPE}devstorage.read_write (without it no result can be saved)")
        if "compute" not in scopes:
            lacking.append(f"{_SCOPE}compute (without it no instance can delete itself)")
        if lacking:
            remedy = f"-P gce.scopes=[{_SCOPE}devstorage.read_write,{_SCOPE}compute]"
            return Finding(name, State.FAILED, f"gce.scopes lacks {' and '.join(lacking)}", remedy)
        return Finding(name, State.OK, "write to storage, delete its own instance")

    def bucket(self) -> Finding:
        name = "bucket"
        try:
            self._storage.check(self._settings.gce.prefix, location=self._region)
        except StorageError as error:
            detail, remedy = _split_advice(str(error))
            return Finding(name, State.FAILED, detail, remedy)
        detail = f"gs://{self._settings.bucket}: an object was written, listed, read and deleted"
        return Finding(name, State.OK, detail)

    def bucket_location(self) -> Finding:
        name, bucket = "bucket's location", self._settings.bucket
        try:
            location = self._storage.location()
        except StorageError as error:
            if "does not exist" in str(error):
                return Finding(name, State.SKIPPED, "not checked: bucket comes first")
            return Finding(name, State.INFERRED, f"not known: {str(error).partition('. ')[0]}")
        elsewhere = sorted(
            {r for z in self._settings.zones if not _is_near(location, r := z.rpartition("-")[0])}
        )
        if not elsewhere:
            return Finding(name, State.OK, f"{location}, as the zones")
        detail = f"gs://{bucket} is in {location}; zones in {', '.join(elsewhere)} pay for traffic"
        near = [z for z in self._settings.zones if _is_near(location, z.rpartition("-")[0])]
        if near:
            remedy = f"-P gce.zones=[{','.join(near)}]"
            return Finding(name, State.OK, f"{location}; {len(near)} zones are there too", remedy)
        remedy = (
            f"gcloud storage buckets create gs://{bucket}-{elsewhere[0]} "
            f"--project={self._project} --location={elsewhere[0]} --uniform-bucket-level-access"
        )
        return Finding(name, State.WARNING, detail, remedy)

    def image(self) -> Finding:
        name, image = "image", self._settings.machine.image
        try:
            found = self._compute.get(f"resolving image {image}", image)
        except ComputeError as error:
            owner = image.split("/")[1] if image.startswith("projects/") else self._project
            remedy = f"gcloud compute images list --project={owner} --no-standard-images"
            return Finding(name, State.FAILED, str(error), remedy)
        return Finding(name, State.OK, f"{image.rpartition('/')[2]} is {found.get('name')}")

    def machine(self) -> Finding:
        name, machine = "machine", self._settings.machine.machine_type
        with ThreadPoolExecutor(8) as pool:
            offered = list(pool.map(self._offers, self._settings.zones))
        without = [z for z, there in zip(self._settings.zones, offered, strict=True) if not there]
        if without:
            remedy = f"gcloud compute machine-types list --filter=name={machine}"
            detail = f"{machine} is not offered in {', '.join(without)}"
            return Finding(name, State.FAILED, detail, f"{remedy} --project={self._project}")
        return Finding(name, State.OK, f"{machine} is offered in all {len(offered)} zones")

    def quota(self) -> Finding:
        """In the first zone's region: that is where a run is asked for first."""
        name, zone = "quota", self._settings.zones[0]
        if not self._offers(zone):
            return Finding(name, State.SKIPPED, "not checked: machine comes first")
        kind = self._compute.get("reading the machine type", self._machine_path(zone))
        path = f"projects/{self._project}/regions/{self._region}"
        region = self._compute.get(f"reading the quotas of {self._region}", path)
        room, whole = free_quotas(region), free_quotas(self._project_resource)
        cpus = int(kind.get("guestCpus", 0))
        needed = needed_quota(self._settings.machine, cpus, known=room)
        unknown = [metric for metric in needed if metric not in room and metric not in whole]
        short = [
            f"{metric}: {need:g} needed, {left:g} left"
            for metric, need in needed.items()
            if (left := room.get(metric, whole.get(metric))) is not None and left < need
        ]
        if short:
            remedy = (
                f"gcloud compute regions describe {self._region} --project={self._project}\n"
                f"and ask for more: https://console.cloud.google.com/iam-admin/quotas"
                f"?project={self._project}"
            )
            return Finding(name, State.FAILED, f"{self._region}: {'; '.join(short)}", remedy)
        known = len(needed) - len(unknown)
        return Finding(name, State.OK, f"{self._region}: room for one, by {known} metrics")

    def network(self) -> Finding:
        name, network = "network", self._settings.gce.network
        path = network if network.startswith("projects/") else f"projects/{self._project}/{network}"
        try:
            self._compute.get(f"reading network {network}", path)
        except ComputeError as error:
            remedy = f"gcloud compute networks list --project={self._project}"
            return Finding(name, State.FAILED, str(error), remedy)
        return Finding(name, State.OK, network)

    def tracking(self, uri: str) -> Finding:
        from gce_backend.tracking import Tracking
        from gce_backend.urls import without_credentials

        Tracking(uri).runs(1)
        return Finding("tracking store", State.OK, without_credentials(uri))

    # -- what the checks ask with ----------------------------------------------------------------

    @cached_property
    def _compute(self) -> Rest:
        return compute_rest(self._settings.endpoints.compute, retry_seconds=_RETRY_SECONDS)

    @cached_property
    def _storage(self) -> Storage:
        return Storage(self._settings.bucket, project=self._project, retry_seconds=_RETRY_SECONDS)

    @cached_property
    def _project_resource(self) -> dict[str, Any]:
        what = f"reading project {self._project!r}"
        return self._compute.get(what, f"projects/{self._project}")

    @property
    def email(self) -> str:
        """Of the instances' service account; ``default`` is resolved."""
        email = self._settings.gce.service_account
        if email != "default":
            return email
        return str(self._project_resource.get("defaultServiceAccount", "default"))

    def _api(self, which: tuple[str, str]) -> Rest:
        variable, host = which
        override = os.environ.get(variable)
        base = override or f"https://{host}.googleapis.com/"
        anonymous = self._settings.endpoints.emulated
        return Rest(base, anonymous=anonymous, retry_seconds=_RETRY_SECONDS)

    def _granted(self, which: tuple[str, str], path: str, wanted: list[str]) -> set[str]:
        body = {"permissions": wanted}
        answer = self._api(which).call("asking for permissions", "POST", path, body=body)
        return set(answer.get("permissions", []))

    def _machine_path(self, zone: str) -> str:
        machine = self._settings.machine.machine_type
        return f"projects/{self._project}/zones/{zone}/machineTypes/{machine}"

    def _offers(self, zone: str) -> bool:
        try:
            self._compute.get("reading the machine type", self._machine_path(zone))
        except ComputeError as error:
            if ": 404 " in str(error) or "Unknown zone." in str(error):  # the latter is a 400
                return False
            raise
        return True

    def _no_project(self, error: ComputeError) -> Finding:
        text = str(error)
        if any(mark in text for mark in _DISABLED):
            remedy = f"gcloud services enable compute.googleapis.com --project={self._project}"
            return Finding("project", State.FAILED, "Compute Engine API is not enabled", remedy)
        if isinstance(error, PermissionDenied):
            remedy = (
                f"gcloud projects add-iam-policy-binding {self._project} {_ADVICE_MEMBER} "
                "--role=roles/compute.instanceAdmin.v1"
            )
            return Finding("project", State.FAILED, text, remedy)
        detail, remedy = _split_advice(text)
        return Finding("project", State.FAILED, detail, remedy or "gcloud projects list")

    def _unasked(self, name: str, error: ComputeError, api: str) -> Finding:
        remedy = f"gcloud services enable {api} --project={self._project}"
        return Finding(name, State.INFERRED, f"could not be asked: {error}", remedy)


def _split_advice(text: str) -> tuple[str, str]:
    """An error's sentence, and the command at its end; "" where there is none."""
    found = re.search(r"\b(gcloud|mlflow-gce) [a-z].*", text, re.DOTALL)
    at = found.start() if found else len(text)
    return text[:at].strip(), text[at:].strip()


def _is_near(location: str, region: str) -> bool:
    """Whether traffic between the bucket's location and the region is free: the same region, or a
    multi-region around it."""
    location = location.lower()
    around = {"us": "us-", "eu": "europe-", "asia": "asia-"}.get(location)
    return region == location or bool(around and region.startswith(around))
