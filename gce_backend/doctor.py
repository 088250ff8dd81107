"""Everything that a first run needs, checked side by side, each failure with the command for it.

Whoever runs this sees what *they* may do. What only the instance will find out - whether its
service account may write the bucket and delete the instance, whether the package index can be
reached from there - is called inferred, until a probe has been there.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from gce_backend.checkups import Checkups
from gce_backend.config import Settings
from gce_backend.errors import ComputeError, GceBackendError
from gce_backend.finding import Finding, State
from gce_backend.probe import Probe
from gce_backend.probe_findings import matters

_Check = Callable[[], Finding]


@enum.unique
class _Needs(enum.Enum):
    """What must hold before a check says anything."""

    NOTHING = "nothing"
    CREDENTIALS = "credentials"
    PROJECT = "project"


@dataclass(frozen=True)
class _Planned:
    name: str
    check: _Check
    needs: _Needs


class Doctor:
    """Args:
    tracking_uri: the MLflow store, as MLflow resolved it; None: not checked.
    """

    def __init__(self, settings: Settings, tracking_uri: str | None) -> None:
        checkups = Checkups(settings)
        self._settings, self._tracking_uri = settings, tracking_uri
        self.matters = matters(settings, tracking_uri, lambda: _email(checkups))
        planned = [
            _Planned("credentials", checkups.credentials, _Needs.NOTHING),
            _Planned("project", checkups.project, _Needs.CREDENTIALS),
            _Planned("permissions", checkups.permissions, _Needs.PROJECT),
            _Planned("service account", checkups.service_account, _Needs.PROJECT),
            _Planned("scopes", checkups.scopes, _Needs.NOTHING),
            _Planned("bucket", checkups.bucket, _Needs.CREDENTIALS),
            _Planned("bucket's location", checkups.bucket_location, _Needs.CREDENTIALS),
            _Planned("image", checkups.image, _Needs.PROJECT),
            _Planned("machine", checkups.machine, _Needs.PROJECT),
            _Planned("quota", checkups.quota, _Needs.PROJECT),
            _Planned("network", checkups.network, _Needs.PROJECT),
        ]
        if tracking_uri is not None:
            planned.append(
                _Planned("tracking store", lambda: checkups.tracking(tracking_uri), _Needs.NOTHING)
            )
        self._planned = planned

    def examine(self) -> Iterator[Finding]:
        """What can be found out from here, in a fixed order, each as soon as it is known.

        What cannot is in ``matters``.
        """
        with ThreadPoolExecutor(len(self._planned)) as pool:
            first, second, *rest = self._planned
            credentials = pool.submit(_made, first)
            project = pool.submit(lambda: _after(second, credentials.result()))

            def look(each: _Planned) -> Finding:
                if each.needs is _Needs.NOTHING:
                    return _made(each)
                needed = credentials if each.needs is _Needs.CREDENTIALS else project
                return _after(each, needed.result())

            others = [pool.submit(look, each) for each in rest]
            for future in (credentials, project, *others):
                yield future.result()

    def probe(self, say: Callable[[str], None]) -> Probe:
        """The instance that finds ``matters`` out; nothing is started by this."""
        questions = [each.question for each in self.matters if each.question]
        uri = self._tracking_uri or ""
        return Probe(self._settings, questions, tracking_uri=uri, say=say)


def _email(checkups: Checkups) -> str:
    try:
        return checkups.email
    except ComputeError:
        return "EMAIL"  # the default one's is read from the project


def _after(planned: _Planned, needed: Finding) -> Finding:
    if needed.state in (State.FAILED, State.SKIPPED):
        return Finding(planned.name, State.SKIPPED, f"not checked: {needed.name} comes first")
    return _made(planned)


def _made(planned: _Planned) -> Finding:
    try:
        return planned.check()
    except GceBackendError as error:
        detail, _, remedy = str(error).partition("\n")
        return Finding(planned.name, State.FAILED, detail, remedy.strip())
