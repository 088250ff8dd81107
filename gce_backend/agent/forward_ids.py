"""Ids that the relay gave to runs and models, and the server's own for them.

Each is created on the server once, with tags that tell which provisional id it stands for; the
server is the only memory of the mapping, and creating is idempotent, for the agent and a client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from .entities import Json
from .forward_server import Server, tags_of
from .records import ID_TAG, OF_TAG, translated

_PAGE = 100


class ServerIds:
    """The child runs and models of one run's journal: provisional id to the server's JSON."""

    def __init__(self, server: Server, experiment_id: str) -> None:
        self._server, self._experiment_id = server, experiment_id
        self.runs: dict[str, Json] = {}  # as runs/get gives them
        self.models: dict[str, Json] = {}  # their "info"

    def load(self) -> None:
        """Ask the server; of two made by two appliers, the first id wins. Raises ServerAway."""
        runs: dict[str, Json] = {}
        for run in sorted(self._search("runs"), key=lambda run: str(run["info"]["run_id"])):
            if runs.setdefault(tags_of(run)[ID_TAG], run) is not run:
                self._delete("POST", "runs/delete", {"run_id": run["info"]["run_id"]})
        models: dict[str, Json] = {}
        found = [model["info"] for model in self._search("logged-models")]
        for model in sorted(found, key=lambda info: str(info["model_id"])):
            if models.setdefault(model_tags(model)[ID_TAG], model) is not model:
                self._delete("DELETE", f"logged-models/{model['model_id']}", {})
        self.runs, self.models = runs, models

    def real(self, any_id: str) -> str:
        """The server's id for ``any_id``, which stays as it is when it is not provisional."""
        if any_id in self.runs:
            return str(self.runs[any_id]["info"]["run_id"])
        if any_id in self.models:
            return str(self.models[any_id]["model_id"])
        return any_id

    def replaced(self, run_id: str) -> str:
        """After a refusal: the id that took the place of ``run_id``, if another applier made the
        same run at the same time; ``run_id`` itself else."""
        provisional = [key for key, run in self.runs.items() if run["info"]["run_id"] == run_id]
        if provisional:
            self.load()
            return self.real(provisional[0])
        return run_id

    def translate(self, value: Any) -> Any:
        """JSON or text with every provisional id in its strings replaced."""
        if not self.runs and not self.models:
            return value
        return translated(value, self.real)

    def _delete(self, method: str, path: str, body: Json) -> None:
        self._server.read(lambda: self._server.send(method, path, body))

    def _search(self, kind: str) -> Iterator[Json]:
        query: Json = {
            "experiment_ids": [self._experiment_id],
            "filter": f"tags.`{OF_TAG}` = '{self._server.run_id}'",
            "max_results": _PAGE,
        }
        if kind == "runs":
            query["run_view_type"] = "ACTIVE_ONLY"
        while True:
            page = self._server.read(self._page(f"{kind}/search", dict(query)))
            yield from page.get("models" if kind == "logged-models" else "runs") or ()
            if not page.get("next_page_token"):
                return
            query["page_token"] = page["next_page_token"]

    def _page(self, path: str, query: Json) -> Callable[[], Json]:
        return lambda: self._server.send("POST", path, query)


def model_tags(info: Json) -> dict[str, str]:
    return {tag["key"]: tag.get("value", "") for tag in info.get("tags") or ()}
