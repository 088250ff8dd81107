"""What a project needs before its first run: a ``conf/``, a bucket, an account for instances.

Nothing here is done by itself: the calls are values, which a person sees before they are made.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from gce_backend.compose import defaults_dir
from gce_backend.errors import ConfigError
from gce_backend.storage import Storage
from gce_backend.storage_errors import check_bucket_name

_ACCOUNT = "mlflow-gce"
ROLE = "mlflowGceInstance"  # custom: the instance may delete itself, and see itself
_IAP_RANGE = "35.235.240.0/20"  # IAP's TCP forwarding comes from here

_CONFIG = """\
# Composed by mlflow-gce; `mlflow-gce plan` shows what a run would ask for.
# The groups machine and gce, and all their presets, come with mlflow-gce.
defaults:
  - machine: n1-standard-2
  - gce: default
  - _self_
"""


@dataclass(frozen=True)
class Call:
    """One change in the cloud.

    Args:
        purpose: what it is good for.
        words: as a gcloud command.
        make: does it through the API; None: only gcloud does. False: it was done before.
        for_account: the instances' own account is not complete without it.
    """

    purpose: str
    words: tuple[str, ...]
    make: Callable[[], bool] | None = None
    for_account: bool = False

    def __str__(self) -> str:
        return shlex.join(self.words)


def write_conf(directory: Path, project: str, bucket: str) -> list[Path]:
    """Write ``conf/config.yaml`` and ``conf/gce/default.yaml`` where they are not there yet.

    The latter is the packaged one, comments and all, with the project and the bucket filled in.

    Returns:
        The files that were written.

    Raises:
        ConfigError: they cannot be.
    """
    values = {"project": project, "bucket": bucket}
    lines = []
    for line in (defaults_dir() / "gce" / "default.yaml").read_text(encoding="utf-8").splitlines():
        key = line.partition(":")[0]
        lines.append(f"{key}: {values[key]}" if key in values else line)
    wanted = {
        directory / "conf" / "config.yaml": _CONFIG,
        directory / "conf" / "gce" / "default.yaml": "\n".join(lines) + "\n",
    }
    written = []
    for path, text in wanted.items():
        if not path.exists():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            except OSError as error:
                raise ConfigError(
                    f"cannot write {path}: {error.strerror} ({error.filename})"
                ) from error
            written.append(path)
    return written


def bucket_name(given: str) -> str:
    """The name that ``gs://NAME/`` or ``NAME`` gives.

    Raises:
        ConfigError: no bucket can be called so.
    """
    name = given.removeprefix("gs://").removesuffix("/")
    check_bucket_name(name)
    return name


def account_email(project: str) -> str:
    """The service account that `cloud_calls` creates."""
    return f"{_ACCOUNT}@{project}.iam.gserviceaccount.com"


def cloud_calls(project: str, bucket: str, region: str) -> list[Call]:
    """Everything a first run needs, in the order in which it must be made."""
    here = f"--project={project}"
    member = f"--member=serviceAccount:{account_email(project)}"

    def create_bucket() -> bool:
        return Storage(bucket, project=project).create(region)

    def gcloud(purpose: str, *words: str, for_account: bool = False) -> Call:
        return Call(purpose, ("gcloud", *words, here), for_account=for_account)

    return [
        gcloud("switch the API on", "services", "enable", "compute.googleapis.com"),
        Call(
            "the bucket for projects, logs and results",
            (
                *("gcloud", "storage", "buckets", "create", f"gs://{bucket}"),
                *(f"--location={region}", "--uniform-bucket-level-access", here),
            ),
            create_bucket,
        ),
        gcloud(
            "an account of their own for instances",
            *("iam", "service-accounts", "create", _ACCOUNT),
            for_account=True,
        ),
        Call(
            "it may write results, in this bucket alone",
            (
                *("gcloud", "storage", "buckets", "add-iam-policy-binding", f"gs://{bucket}"),
                *(member, "--role=roles/storage.objectUser"),
            ),
            for_account=True,
        ),
        gcloud(
            "a role with which an instance can delete itself",
            *("iam", "roles", "create", ROLE),
            "--permissions=compute.instances.delete,compute.instances.get",
            for_account=True,
        ),
        Call(
            "the account has that role",
            (
                *("gcloud", "projects", "add-iam-policy-binding", project),
                *(member, f"--role=projects/{project}/roles/{ROLE}", "--condition=None"),
            ),
            for_account=True,
        ),
        gcloud(
            "SSH through Identity-Aware Proxy, from nowhere else (runs do not need it)",
            *("compute", "firewall-rules", "create", "mlflow-gce-ssh", "--allow=tcp:22"),
            f"--source-ranges={_IAP_RANGE}",
        ),
    ]
