"""The names of everything a run leaves in Cloud Storage: known here, and nowhere else.

Part of the agent, which is shipped to the instance by itself, so standard library only;
the client imports these names from here.
"""

from __future__ import annotations

from dataclasses import dataclass

# Metadata attributes of the instance.
SPEC_ATTRIBUTE = "mlflow-gce-spec"  # value: gs:// URI of the run's spec.json
NAME_ATTRIBUTE = "mlflow-gce-name"  # value: the MLflow run's name, for whoever lists instances
CANCEL_ATTRIBUTE = "mlflow-gce-cancel"  # appears when the run is to be cancelled

# Labels of the instance; a label's value is at most 63 of [a-z0-9_-].
RUN_LABEL = "mlflow-gce-run"
ATTEMPT_LABEL = "mlflow-gce-attempt"
OWNER_LABEL = "mlflow-gce-owner"
DEADLINE_LABEL = "mlflow-gce-deadline"  # unix seconds


@dataclass(frozen=True)
class RunPaths:
    """Object names of one run, relative to its bucket (no ``gs://bucket/`` in front)."""

    prefix: str  # e.g. "mlflow-gce"; no slash at either end
    run_id: str

    @property
    def root(self) -> str:
        return f"{self.prefix}/runs/{self.run_id}"

    @property
    def spec(self) -> str:
        return f"{self.root}/spec.json"

    @property
    def job(self) -> str:
        """A sweep's job: the program that runs it, and what it runs."""
        return f"{self.root}/job.pyz"

    @property
    def cancel(self) -> str:
        return f"{self.root}/cancel"

    @property
    def heartbeat(self) -> str:
        return f"{self.root}/heartbeat"

    @property
    def manifest(self) -> str:
        return f"{self.root}/manifest.json"

    @property
    def status(self) -> str:
        return f"{self.root}/status.json"

    @property
    def blueprint(self) -> str:
        """The client's: what a further attempt is made from."""
        return f"{self.root}/blueprint.json"

    @property
    def history(self) -> str:
        """The client's: the phases of every attempt."""
        return f"{self.root}/history.json"

    def attempt(self, number: int) -> str:
        """The client's: who asks for the instance of attempt ``number``, and where."""
        return f"{self.root}/attempts/{number}"

    @property
    def sync_lock(self) -> str:
        """Held by whoever applies the journal to the tracking store."""
        return f"{self.root}/sync.lock"

    @property
    def host_keys(self) -> str:
        """The client's: the SSH host keys of the instance, as first read."""
        return f"{self.root}/ssh_host_keys.json"

    @property
    def log_dir(self) -> str:
        return f"{self.root}/log/"

    @property
    def journal_dir(self) -> str:
        return f"{self.root}/journal/"

    def log(self, number: int) -> str:
        """Name of the ``number``-th piece of the log, from 1."""
        return f"{self.log_dir}{number:06d}"

    def journal(self, number: int) -> str:
        """Name of the ``number``-th segment of the journal, from 1."""
        return f"{self.journal_dir}{number:06d}"

    def bundle(self, sha256: str) -> str:
        return f"{self.prefix}/bundles/{sha256}.tar.gz"

    def tool(self, filename: str) -> str:
        """Agent archives and uv wheels, shared by all runs."""
        return f"{self.prefix}/tools/{filename}"
