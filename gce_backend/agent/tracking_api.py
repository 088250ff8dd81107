"""MLflow's tracking REST API as far as a training needs it, answered without any server.

Writes are checked, put into the journal, applied to what is known, and acknowledged; reads are
answered from what is known. Whatever else is asked gets an error that says what to do instead.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable
from typing import Any

from . import validation
from .entities import Json, Model, Run
from .errors import RelayError, invalid, not_implemented
from .journal import Journal
from .locations import Locations
from .repeats import Repeats
from .search import matching, ordered
from .tracking_state import TrackingState


class TrackingApi:
    """``answer(method, path, body)`` with paths relative to ``/api/2.0/mlflow/``."""

    def __init__(self, state: TrackingState, journal: Journal, locations: Locations) -> None:
        self.state, self._journal, self._locations = state, journal, locations
        self.repeats = Repeats(state.main.run_id)
        self.writes = 0  # of the trainer: a sign of its life
        self._lock = threading.Lock()
        self._routes: dict[tuple[str, str], Callable[[Json], Json]] = {
            ("GET", "experiments/get"): self._get_experiment,
            ("GET", "experiments/get-by-name"): self._get_experiment_by_name,
            ("POST", "experiments/create"): self._create_experiment,
            ("POST", "experiments/search"): self._search_experiments,
            ("GET", "experiments/search"): self._search_experiments,
            ("POST", "experiments/set-experiment-tag"): self._set_experiment_tag,
            ("GET", "runs/get"): self._get_run,
            ("POST", "runs/create"): self._create_run,
            ("POST", "runs/update"): self._update_run,
            ("POST", "runs/search"): self._search_runs,
            ("POST", "runs/log-batch"): self._log_batch,
            ("POST", "runs/log-metric"): self._log_metric,
            ("POST", "runs/log-parameter"): self._log_parameter,
            ("POST", "runs/set-tag"): self._set_tag,
            ("POST", "runs/delete-tag"): self._delete_tag,
            ("POST", "runs/log-inputs"): self._journaled("runs/log-inputs"),
            ("POST", "runs/outputs"): self._journaled("runs/outputs"),
            ("POST", "runs/log-model"): self._log_model,
            ("GET", "metrics/get-history"): self._get_history,
            ("GET", "metrics/get-history-bulk-interval"): self._get_history_bulk,
            ("POST", "logged-models"): self._create_model,
            ("POST", "logged-models/search"): self._search_models,
        }

    def answer(self, method: str, path: str, body: Json) -> Json:
        """The reply's JSON. Raises RelayError."""
        with self._lock:
            self.writes += method != "GET"
            if handler := self._routes.get((method, path)):
                return handler(body)
            if path.startswith("logged-models/"):
                return self._one_model(method, path, body)
        raise not_implemented(method, path)

    def record(self, path: str, body: Json) -> None:
        """A write of the agent's own, in the trainer's order. OSError on a full disk."""
        with self._lock:
            self._write(path, body)

    def lookup(self, ask: Callable[[TrackingState], Any]) -> Any:
        """``ask(state)``, with no write in between."""
        with self._lock:
            return ask(self.state)

    # -- experiments --------------------------------------------------------------------------

    def _experiment(self) -> Json:
        location = self._locations.for_trainer(self.state.location)
        return {**self.state.experiment, "artifact_location": location}

    def _get_experiment(self, body: Json) -> Json:
        if str(body.get("experiment_id")) != str(self.state.experiment["experiment_id"]):
            raise self._other_experiment(f"the id {body.get('experiment_id')}")
        return {"experiment": self._experiment()}

    def _get_experiment_by_name(self, body: Json) -> Json:
        if body.get("experiment_name") != self.state.experiment["name"]:
            raise self._other_experiment(f"the name '{body.get('experiment_name')}'")
        return {"experiment": self._experiment()}

    def _create_experiment(self, body: Json) -> Json:
        if body.get("name") != self.state.experiment["name"]:
            raise self._other_experiment(f"the name '{body.get('name')}'")
        raise RelayError(
            "RESOURCE_ALREADY_EXISTS", f"Experiment(name={body.get('name')}) already exists."
        )

    def _search_experiments(self, body: Json) -> Json:
        if body.get("filter"):
            raise not_implemented("POST", "experiments/search with a filter")
        return {"experiments": [self._experiment()]}

    def _set_experiment_tag(self, body: Json) -> Json:
        self._get_experiment(body)
        validation.check_experiment_tag(body)
        return self._write("experiments/set-experiment-tag", body)

    def _other_experiment(self, what: str) -> RelayError:
        return RelayError(
            "NOT_IMPLEMENTED",
            f"the experiment with {what} cannot be reached from the instance: this run belongs to "
            f"'{self.state.experiment['name']}' (id {self.state.experiment['experiment_id']}), "
            "chosen when it was submitted. Leave out set_experiment in the training code, or "
            "submit with: mlflow run --experiment-name NAME",
        )

    # -- runs ---------------------------------------------------------------------------------

    def _run(self, body: Json) -> Run:
        return self.state.run(body.get("run_id") or body.get("run_uuid"))

    def _run_json(self, run: Run) -> Json:
        return {**run.to_json(), "info": self._run_info(run)}

    def _run_info(self, run: Run) -> Json:
        uri = self._locations.for_trainer(str(run.info["artifact_uri"]))
        return {**run.info, "artifact_uri": uri}

    def _get_run(self, body: Json) -> Json:
        return {"run": self._run_json(self._run(body))}

    def _create_run(self, body: Json) -> Json:
        experiment = str(body.get("experiment_id"))
        if experiment != str(self.state.experiment["experiment_id"]):
            raise self._other_experiment(f"the id {experiment}")
        validation.check_texts(body)
        run_id = uuid.uuid4().hex
        self._write("runs/create", body, provisional_id=run_id)
        return {"run": self._run_json(self.state.run(run_id))}

    def _update_run(self, body: Json) -> Json:
        """The main run's status and times are answered as if, and never written: its true ending
        is the trainer's exit code, which the client records."""
        run = self._run(body)
        if run is self.state.main:
            self.state.apply({"path": "runs/update", "body": body, "method": "POST"})
            if body.get("run_name"):
                self._write("runs/update", {"run_id": run.run_id, "run_name": body["run_name"]})
        else:
            self._write("runs/update", body)
        return {"run_info": self._run_info(run)}

    def _search_runs(self, body: Json) -> Json:
        wanted = [str(one) for one in body.get("experiment_ids") or ()]
        if wanted and str(self.state.experiment["experiment_id"]) not in wanted:
            raise self._other_experiment(f"the id {wanted[0]}")
        runs = [self._run_json(run) for run in self.state.runs.values()]
        found = ordered(matching(runs, str(body.get("filter") or "")), body.get("order_by") or [])
        return _page({"runs": found}, "runs", body)

    # -- writes -------------------------------------------------------------------------------

    def _write(self, path: str, body: Json, *, method: str = "POST", **extra: str) -> Json:
        """Journal, then apply: what is acknowledged is on disk."""
        self._journal.append(path, method, body, **extra)
        record = {"path": path, "method": method, "body": body, "at": self._journal.last_at}
        self.state.apply({**record, **extra})
        return {}

    def _journaled(self, path: str) -> Callable[[Json], Json]:
        def handler(body: Json) -> Json:
            self._run(body)
            return self._write(path, body)

        return handler

    def _log_batch(self, body: Json) -> Json:
        """One bad entry does not take the batch with it: the good ones are kept, and the answer
        is the error for the bad one."""
        run = self._run(body)
        metrics, params, tags = (list(body.get(k) or ()) for k in ("metrics", "params", "tags"))
        validation.check_batch_limits(metrics, params, tags)
        errors: list[RelayError] = []
        good: Json = {
            "metrics": _passing(metrics, validation.check_metric, errors),
            "params": _passing(params, lambda param: self._check_param(run, param), errors),
            "tags": _passing(tags, validation.check_tag, errors),
        }
        good["metrics"] = self.repeats.without(run, good["metrics"])
        good["params"] = [param for param in good["params"] if param["key"] not in run.params]
        good = {key: value for key, value in good.items() if value}
        if good:
            rest = {
                key: value
                for key, value in body.items()
                if key not in ("metrics", "params", "tags")
            }
            self._write("runs/log-batch", {**rest, **good})
        if errors:
            raise errors[0]
        return {}

    def _log_metric(self, body: Json) -> Json:
        run = self._run(body)
        body = validation.check_metric(body)
        if not self.repeats.without(run, [body]):
            return {}
        return self._write("runs/log-metric", body)

    def _log_parameter(self, body: Json) -> Json:
        run = self._run(body)
        body = self._check_param(run, body)
        if body["key"] in run.params:
            return {}
        return self._write("runs/log-parameter", body)

    def _check_param(self, run: Run, param: Json) -> Json:
        param = validation.check_param(param)
        key, value = param["key"], param["value"]
        stored = run.params.get(key)
        if stored is not None and not validation.same_param(stored, value):
            raise invalid(validation.changed_param(key, stored, value, run.run_id))
        return param

    def _set_tag(self, body: Json) -> Json:
        self._run(body)
        return self._write("runs/set-tag", validation.check_tag(body))

    def _delete_tag(self, body: Json) -> Json:
        run = self._run(body)
        if body.get("key") not in run.tags:
            raise RelayError(
                "RESOURCE_DOES_NOT_EXIST",
                f"No tag with name: {body.get('key')} in run with id {run.run_id}",
            )
        return self._write("runs/delete-tag", body)

    def _log_model(self, body: Json) -> Json:
        """The endpoint of MLflow 2: the model's description becomes part of a tag."""
        self._run(body)
        try:
            json.loads(body["model_json"])
        except (KeyError, TypeError, ValueError) as error:
            raise invalid(f"Malformed model info. Could not parse as JSON: {error}") from error
        return self._write("runs/log-model", body)

    # -- metrics ------------------------------------------------------------------------------

    def _get_history(self, body: Json) -> Json:
        key = str(body.get("metric_key"))
        history = self._run(body).metrics.get(key)
        if history is None:
            return {"metrics": []}
        return _page({"metrics": list(history.points(key))}, "metrics", body)

    def _get_history_bulk(self, body: Json) -> Json:
        key, ids = str(body.get("metric_key")), body.get("run_ids") or []
        first, last = body.get("start_step"), body.get("end_step")
        metrics = []
        for run_id in ids if isinstance(ids, list) else [ids]:
            history = self.state.run(run_id).metrics.get(key)
            for point in history.points(key) if history else ():
                if (first is None or point["step"] >= int(first)) and (
                    last is None or point["step"] <= int(last)
                ):
                    metrics.append({**point, "run_id": run_id})
        return {"metrics": metrics}

    # -- logged models ------------------------------------------------------------------------

    def _model_json(self, model: Model) -> Json:
        answer = model.to_json()
        answer["info"]["artifact_uri"] = self._locations.for_trainer(model.info["artifact_uri"])
        return answer

    def _create_model(self, body: Json) -> Json:
        validation.check_texts(body)
        model_id = f"m-{uuid.uuid4().hex}"
        self._write("logged-models", body, provisional_id=model_id)
        return {"model": self._model_json(self.state.model(model_id))}

    def _search_models(self, body: Json) -> Json:
        models = [self._model_json(model) for model in self.state.models.values()]
        return {"models": matching(models, str(body.get("filter") or ""))}

    def _one_model(self, method: str, path: str, body: Json) -> Json:
        parts = path.split("/")
        model = self.state.model(parts[1])
        what = parts[2] if len(parts) > 2 else ""
        if (method, what) == ("GET", ""):
            return {"model": self._model_json(model)}
        known = {("PATCH", ""), ("POST", "params"), ("PATCH", "tags"), ("DELETE", "tags")}
        if (method, what) not in known:
            raise not_implemented(method, path)
        validation.check_texts(body)
        self._write(path, body, method=method)
        return {"model": self._model_json(model)} if not what or what == "tags" else {}


def _page(answer: Json, field: str, body: Json) -> Json:
    """At most ``max_results`` of ``answer[field]``, from ``page_token`` on."""
    items, size = answer[field], int(body.get("max_results") or 0)
    if size:
        start = int(body.get("page_token") or 0)
        answer[field] = items[start : start + size]
        if start + size < len(items):
            answer["next_page_token"] = str(start + size)
    return answer


def _passing(
    items: list[Json], check: Callable[[Json], Json], errors: list[RelayError]
) -> list[Json]:
    """What ``check`` makes of the items; the errors of others are added to ``errors``."""
    good = []
    for item in items:
        try:
            good.append(check(item))
        except RelayError as error:
            errors.append(error)
    return good
