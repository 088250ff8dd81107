"""Metric points that the trainer logs although they are there already.

Two kinds. A trainer that continues from a checkpoint does the work since that checkpoint again
and logs it with new times: for the store these would be further points, and the run's curves
would run twice over the same steps. The first point stays, since a store cannot take one back.
And MLflow's own system metrics, switched on in the trainer, would stand beside the agent's.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left

from .entities import Json, MetricHistory, Run, to_float


class SingleSteps:
    """The steps of a metric, as far as it goes now, that have exactly one point: five bytes for
    each, since the history has the points."""

    def __init__(self, history: MetricHistory) -> None:
        self._history = history
        order = array("I", range(len(history)))
        steps = array("q", map(history.step, order))
        if any(steps[at - 1] > steps[at] for at in range(1, len(steps))):
            order = array("I", sorted(order, key=history.step))
            steps = array("q", map(history.step, order))

        def is_single(at: int) -> bool:
            around = (*steps[max(0, at - 1) : at], *steps[at + 1 : at + 2])
            return steps[at] not in around

        self._order = array("I", (order[at] for at in range(len(order)) if is_single(at)))
        self._forgotten = bytearray(len(self._order))

    def __contains__(self, step: int) -> bool:
        return self._find(step) is not None

    def point(self, step: int) -> tuple[int, float] | None:
        """Time and value at the step; None where there is none, or several, or it is forgotten."""
        at = self._find(step)
        return None if at is None else self._history.point(self._order[at])

    def forget(self, step: int) -> None:
        if (at := self._find(step)) is not None:
            self._forgotten[at] = 1

    def _find(self, step: int) -> int | None:
        at = bisect_left(self._order, step, key=self._history.step)
        if at == len(self._order) or self._forgotten[at]:
            return None
        return at if self._history.step(self._order[at]) == step else None


class Repeats:
    """Of the run ``run_id``. Not thread-safe: the tracking API holds its lock around every call."""

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        # What trainers before this one logged: by metric and step, the time and the value.
        self._earlier: dict[str, SingleSteps] = {}
        # Of these there is one point, at step 0: the first step, or one of a metric without steps.
        self._maybe_without_steps: set[str] = set()
        self.own: frozenset[str] = frozenset()  # metrics that the agent logs itself

    def remember(self, run: Run) -> None:
        """What ``run`` has now was logged by a trainer before the present one.

        Only steps with one point: a metric that is logged without steps has all its points at
        step 0, and which of them come again cannot be told.
        """
        for key, history in run.metrics.items():
            self._earlier[key] = SingleSteps(history)
            self._maybe_without_steps.discard(key)
            if len(history) == 1 and 0 in self._earlier[key]:
                self._maybe_without_steps.add(key)

    def without(self, run: Run, points: list[Json]) -> list[Json]:
        """The points that are new. Of a model's metrics (``model_id``) all are: they tie a point
        that is there to the model."""
        return [point for point in points if not self._is_repeat(run, point)]

    def _is_repeat(self, run: Run, point: Json) -> bool:
        if run.run_id != self._run_id or point.get("model_id"):
            return False
        key, step = str(point["key"]), int(point.get("step") or 0)
        if key in self.own:
            return True
        earlier = self._earlier.get(key)
        if earlier is None or (known := earlier.point(step)) is None:
            return False
        given = (int(point.get("timestamp") or 0), to_float(point["value"]))
        if given == known:
            return True
        earlier.forget(step)  # once: what comes for this step after that is something else
        return key not in self._maybe_without_steps or given[1] == known[1]
