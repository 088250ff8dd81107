"""Ids that the relay gave to runs and models it could not ask the store for.

Each is created in the store once, with tags that tell which provisional id it stands for; the
store is therefore the only memory of the mapping, and creating is idempotent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from gce_backend.agent.records import ID_TAG, OF_TAG, translated
from gce_backend.run_store import RunStore

if TYPE_CHECKING:
    from mlflow.entities import LoggedModel, Run

_PAGE = 100


class ProvisionalIds:
    """The child runs and logged models of one run's journal, provisional id to real one."""

    def __init__(self, store: RunStore) -> None:
        self._store = store
        self.runs: dict[str, Run] = {}
        self.models: dict[str, LoggedModel] = {}

    def load(self) -> None:
        """Ask the store which ids stand for which; of two made by two clients, the first id wins.

        Raises:
            TrackingError: the store does not answer.
        """
        store = self._store.store
        experiment_id = self._store.run().info.experiment_id
        runs: dict[str, Run] = {}
        for run in sorted(self._search_runs(experiment_id), key=lambda run: str(run.info.run_id)):
            if runs.setdefault(run.data.tags[ID_TAG], run) is not run:
                self._store.read(partial(store.delete_run, run.info.run_id))
        models: dict[str, LoggedModel] = {}
        for model in sorted(self._search_models(experiment_id), key=lambda m: str(m.model_id)):
            if models.setdefault(model.tags[ID_TAG], model) is not model:
                self._store.read(partial(store.delete_logged_model, model.model_id))
        self.runs, self.models = runs, models

    def real(self, any_id: str) -> str:
        """The store's id for ``any_id``, which stays as it is when it is not provisional."""
        if any_id in self.runs:
            return str(self.runs[any_id].info.run_id)
        if any_id in self.models:
            return str(self.models[any_id].model_id)
        return any_id

    def translate(self, value: Any) -> Any:
        """JSON or text with every provisional id in its strings replaced."""
        if not self.runs and not self.models:
            return value
        return translated(value, self.real)

    def _search_runs(self, experiment_id: str) -> Iterator[Run]:
        from mlflow.entities import ViewType

        return self._pages(
            lambda token: self._store.store.search_runs(
                [experiment_id], self._filter(), ViewType.ACTIVE_ONLY, _PAGE, None, token
            )
        )

    def _search_models(self, experiment_id: str) -> Iterator[LoggedModel]:
        return self._pages(
            lambda token: self._store.store.search_logged_models(
                [experiment_id], self._filter(), max_results=_PAGE, page_token=token
            )
        )

    def _filter(self) -> str:
        return f"tags.`{OF_TAG}` = '{self._store.run_id}'"

    def _pages(self, page: Callable[[str | None], Any]) -> Iterator[Any]:
        token: str | None = None
        while True:
            found = self._store.read(partial(page, token))
            yield from found
            token = found.token
            if not token:
                return
