"""The agent's errors: what ends a run, and what the relay answers.

::

    AgentError                the run cannot go on; becomes ``status.json``'s message
    ├── CloudError            a cloud endpoint refused or did not answer: .status (0: no answer)
    ├── EnvironmentFailed     the environment could not be built: end reason environment_failed
    ├── ServerAway            nothing can be forwarded to the tracking server now
    └── Stopped               cancelled or out of time before there was a trainer
    RelayError                an answer of the relay in MLflow's error format
"""

from __future__ import annotations


class AgentError(Exception):
    """The run cannot go on."""


class CloudError(AgentError):
    """An endpoint of the cloud refused, or did not answer (``status`` 0)."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class EnvironmentFailed(AgentError):
    """The trainer's Python environment could not be built."""


class ServerAway(AgentError):
    """Nothing can be forwarded to the tracking server now; what is in the bucket is safe.

    ``denied``: by a person's setting, so that a few seconds will not change it; ``str`` is told.
    """

    def __init__(self, message: str, *, denied: bool = False) -> None:
        super().__init__(message)
        self.denied = denied


class Stopped(AgentError):
    """The run was cancelled, or its deadline came, before the trainer was started."""


# MLflow's error codes and their HTTP statuses, from mlflow/exceptions.py (3.17.2).
HTTP_STATUS = {
    "INVALID_PARAMETER_VALUE": 400,
    "RESOURCE_ALREADY_EXISTS": 400,
    "UNAUTHENTICATED": 401,
    "PERMISSION_DENIED": 403,
    "RESOURCE_DOES_NOT_EXIST": 404,
    "INTERNAL_ERROR": 500,
    "NOT_IMPLEMENTED": 501,
    "INSUFFICIENT_STORAGE": 507,  # ours: MLflow's client does not retry it
}


class RelayError(Exception):
    """An error answer: ``code`` is one of MLflow's, ``message`` is for the person training."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def status(self) -> int:
        return HTTP_STATUS[self.code]


def invalid(message: str) -> RelayError:
    return RelayError("INVALID_PARAMETER_VALUE", message)


def not_found(message: str) -> RelayError:
    return RelayError("RESOURCE_DOES_NOT_EXIST", message)


# By these words MLflow's client knows that it can send the file whole: mlflow/exceptions.py, 3.17.
_NO_PARTS = "Multipart upload is not supported for the current artifact repository"


def not_implemented(method: str, path: str) -> RelayError:
    """The error for what the relay does not know, with what to do instead."""
    if "mlflow-artifacts/mpu/" in path:
        return RelayError("NOT_IMPLEMENTED", f"{_NO_PARTS}. The relay takes the file whole.")
    if "registered-models" in path or "model-versions" in path:
        instead = (
            "Register the model once the run is back on the client: "
            "mlflow.register_model('runs:/RUN_ID/NAME', …)."
        )
    elif "trace" in path:
        instead = "Traces are not carried from the instance; switch tracing off in the training."
    elif path.startswith(("runs/delete", "runs/restore")):
        instead = "Delete or restore runs on the client, once this run has ended."
    else:
        instead = "Do it on the client, before the run or after it, against the tracking server."
    return RelayError(
        "NOT_IMPLEMENTED",
        f"{method} {path}: the tracking relay on the instance does not offer this. {instead}",
    )
