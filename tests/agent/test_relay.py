"""The relay's HTTP, as any client in any language may speak it."""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from gce_backend.agent import spool as spool_module
from gce_backend.agent.errors import CloudError
from gce_backend.agent.locations import Locations
from gce_backend.agent.metadata import MetadataServer
from gce_backend.agent.relay import Relay
from gce_backend.agent.spec import parse_spec
from gce_backend.agent.spool import Spool
from gce_backend.agent.state import State
from gce_backend.agent.storage import Storage
from gce_backend.agent.tracking import Tracking

from .cloud import Bucket
from .instance import EXPERIMENT_ID, RUN_ID, TestInstance

pytestmark = pytest.mark.flow  # real processes and servers

API = "/api/2.0/mlflow/"
ARTIFACTS = "/api/2.0/mlflow-artifacts/artifacts"


class Client:
    """One keep-alive connection to a relay; ``call`` gives status and JSON."""

    def __init__(self, relay: Relay, token: str, bucket: Bucket, instance: TestInstance) -> None:
        self.relay, self.token, self.bucket, self.instance = relay, token, bucket, instance
        self.root = f"{ARTIFACTS}/{bucket.name}/{instance.artifacts}"
        self._connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=20)

    def raw(
        self, method: str, path: str, body: Any = None, token: str | None = None, **kwargs: Any
    ) -> tuple[int, bytes]:
        headers = {} if token == "" else {"Authorization": f"Bearer {token or self.token}"}
        self._connection.request(method, path, body, headers, **kwargs)
        reply = self._connection.getresponse()
        return reply.status, reply.read()

    def call(self, method: str, path: str, **body: Any) -> tuple[int, Any]:
        data = json.dumps(body).encode() if method != "GET" else None
        status, answer = self.raw(method, API + path, data)
        return status, json.loads(answer)

    def write(self, path: str, **body: Any) -> tuple[int, Any]:
        return self.call("POST", path, run_id=RUN_ID, **body)

    def run(self) -> Any:
        return self.call("GET", f"runs/get?run_id={RUN_ID}")[1]["run"]

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def client(instance: TestInstance, tmp_path: Path, bucket: Bucket) -> Iterator[Client]:
    spec = parse_spec(json.dumps(instance.submit("true")).encode())
    state = State(tmp_path / "state")
    state.belong_to(spec.run_id, 1)
    storage = Storage(MetadataServer(instance.plane.address), bucket.url)
    spool = Spool(state.spool)
    tracking = Tracking(spec, state, storage, spool)
    relay = tracking.serve()
    one = Client(relay, state.memory.token, bucket, instance)
    yield one
    one.close()
    relay.stop()
    tracking.close()
    spool.close()


def journal(tmp_path: Path) -> list[dict[str, Any]]:
    lines = (tmp_path / "state" / "journal.jsonl").read_bytes().splitlines()
    return [json.loads(line) for line in lines]


def test_only_the_runs_own_processes_may_ask(client: Client) -> None:
    path = f"{API}runs/get?run_id={RUN_ID}"
    assert client.raw("GET", path, token="")[0] == 401
    assert client.raw("GET", path, token="guessed")[0] == 403
    assert client.raw("PUT", f"{client.root}/a", b"x", token="guessed")[0] == 403
    assert client.raw("GET", "/health", token="") == (200, b"OK")
    assert client.raw("GET", "/version", token="")[1].startswith(b"3.")
    assert client.bucket.names(client.instance.artifacts) == []


def test_it_listens_on_loopback_only(client: Client) -> None:
    assert client.relay.url.startswith("http://127.0.0.1:")
    others = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None)}
    for address in others - {"127.0.0.1", "::1", "127.0.1.1"}:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((str(address), client.relay.port), 1).close()


def test_one_bad_parameter_does_not_take_the_batch_with_it(client: Client, tmp_path: Path) -> None:
    status, answer = client.write(
        "runs/log-batch",
        metrics=[{"key": "loss", "value": 1.0, "timestamp": 1, "step": 1}],
        params=[
            {"key": "epochs", "value": "2"},
            {"key": "note", "value": "a b"},
            {"key": "new", "value": "x"},
        ],
        tags=[{"key": "bad!", "value": "x"}, {"key": "good", "value": "y"}],
    )

    assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert "Param with key='epochs' was already logged with value='1e0'" in answer["message"]
    (record,) = journal(tmp_path)
    assert record["body"]["params"] == [{"key": "new", "value": "x"}]
    assert record["body"]["tags"] == [{"key": "good", "value": "y"}]
    assert len(record["body"]["metrics"]) == 1


def test_long_values_are_cut_as_the_store_cuts_them(client: Client, tmp_path: Path) -> None:
    long = {"params": 6000 * "p" + "…", "tags": 8000 * "t" + "…"}
    assert client.write("runs/log-parameter", key="one", value=long["params"])[0] == 200
    assert client.write("runs/set-tag", key="one", value=long["tags"])[0] == 200
    batch = {kind: [{"key": "two", "value": value}] for kind, value in long.items()}
    for _ in range(2):  # again: it says what is there
        assert client.write("runs/log-batch", **batch)[0] == 200

    data = client.run()["data"]
    params = {item["key"]: item["value"] for item in data["params"]}
    tags = {item["key"]: item["value"] for item in data["tags"]}
    assert params["one"] == params["two"] == 6000 * "p"
    assert tags["one"] == tags["two"] == 8000 * "t"
    assert "…" not in (tmp_path / "state" / "journal.jsonl").read_bytes().decode("unicode-escape")


@pytest.mark.parametrize("spelling", [b'"\\ud800"', b'"\xed\xa0\x80"', b'"\\uD83D and no more"'])
def test_half_a_character_is_refused(client: Client, tmp_path: Path, spelling: bytes) -> None:
    body = b'{"run_id": "%s", "key": "k", "value": %s}' % (RUN_ID.encode(), spelling)

    status, answer = client.raw("POST", API + "runs/set-tag", body)

    assert (status, json.loads(answer)["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert b"surrogate" in answer
    whole = f'{{"run_id": "{RUN_ID}", "key": "k", "value": "\\ud83d\\ude00 \xed\ud55c"}}'
    assert client.raw("POST", API + "runs/set-tag", whole.encode())[0] == 200
    (record,) = journal(tmp_path)
    assert record["body"]["value"] == "\U0001f600 \xed\ud55c"


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": 2**63},
        {"step": "-9223372036854775809"},
        {"timestamp": 2**63},
        {"timestamp": -1},
        {"step": float("inf")},
    ],
)
def test_steps_and_times_beyond_the_stores_integers_are_refused(
    client: Client, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    point = {"key": "loss", "value": 1.0, "timestamp": 1, "step": 1}
    status, answer = client.write("runs/log-metric", **{**point, **wrong})

    assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert client.write("runs/log-batch", metrics=[{**point, **wrong}, point])[0] == 400
    (record,) = journal(tmp_path)
    assert record["body"]["metrics"] == [point]


@pytest.mark.parametrize("value", [3, 0.1, True, ["a"], {"a": "b"}])
def test_a_value_that_is_no_text_is_refused_as_by_mlflow(
    client: Client, tmp_path: Path, value: Any
) -> None:
    for path in ("runs/set-tag", "runs/log-parameter"):
        status, answer = client.write(path, key="k", value=value)
        assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        assert "'k'" in answer["message"] and repr(value) in answer["message"]
    bad = [{"key": "k", "value": value}]
    for path, kind in (("runs/create", "tags"), ("logged-models", "params")):
        assert client.call("POST", path, experiment_id=EXPERIMENT_ID, **{kind: bad})[0] == 400
    tag = {"experiment_id": EXPERIMENT_ID, "key": "k", "value": value}
    assert client.call("POST", "experiments/set-experiment-tag", **tag)[0] == 400

    assert journal(tmp_path) == []


def test_what_is_written_is_as_mlflows_protocol_has_it(client: Client, tmp_path: Path) -> None:
    """Otherwise whoever applies the journal could not read the record, and all of it were lost."""
    point = {"key": "loss", "value": float("nan"), "timestamp": 1.5, "step": "3"}
    params = [{"key": "bad", "value": 1}, {"key": "empty", "value": None}]
    assert client.write("runs/log-metric", **point)[0] == 200

    assert client.write("runs/log-batch", metrics=[{**point, "step": 4}], params=params)[0] == 400

    one, batch = (record["body"] for record in journal(tmp_path))
    written = {"key": "loss", "value": "NaN", "timestamp": 1}
    assert one == {"run_id": RUN_ID, **written, "step": 3}
    assert batch["metrics"] == [{**written, "step": 4}]
    assert batch["params"] == [{"key": "empty", "value": ""}]


def test_a_parameter_logged_again_leaves_no_record(client: Client, tmp_path: Path) -> None:
    assert client.write("runs/log-parameter", key="epochs", value="1")[0] == 200
    assert client.write("runs/log-batch", params=[{"key": "note", "value": "a b"}])[0] == 200

    assert journal(tmp_path) == []


def test_the_main_runs_status_is_answered_and_not_written(client: Client, tmp_path: Path) -> None:
    status, answer = client.write("runs/update", status="FINISHED", end_time=5, run_name="named")

    assert (status, answer["run_info"]["status"]) == (200, "FINISHED")
    assert client.run()["info"]["run_name"] == "named"
    (record,) = journal(tmp_path)
    assert record["body"] == {"run_id": RUN_ID, "run_name": "named"}


def test_a_childs_whole_life_is_written(client: Client, tmp_path: Path) -> None:
    tags = [{"key": "mlflow.parentRunId", "value": RUN_ID}]
    _, made = client.call(
        "POST", "runs/create", experiment_id=EXPERIMENT_ID, run_name="child", tags=tags
    )
    child = made["run"]["info"]["run_id"]
    client.call("POST", "runs/update", run_id=child, status="FINISHED", end_time=5)

    assert journal(tmp_path)[0]["provisional_id"] == child
    assert journal(tmp_path)[1]["body"]["status"] == "FINISHED"
    _, found = client.call("POST", "runs/search", filter=f"tags.mlflow.parentRunId = '{RUN_ID}'")
    assert [run["info"]["run_id"] for run in found["runs"]] == [child]


def test_locations_in_what_is_written_are_the_stores(client: Client, tmp_path: Path) -> None:
    shown = client.run()["info"]["artifact_uri"]
    client.write("runs/set-tag", key="where", value=f"{shown}/model.pt")

    assert shown.startswith("mlflow-artifacts:/")
    assert journal(tmp_path)[0]["body"]["value"].startswith(f"{client.instance.location}/{RUN_ID}")


def test_histories_come_in_pages_when_asked(client: Client) -> None:
    for step in range(5):
        client.write("runs/log-metric", key="loss", value=step, timestamp=step, step=step)
    path = f"metrics/get-history?run_id={RUN_ID}&metric_key=loss"

    _, whole = client.call("GET", path)
    _, page = client.call("GET", f"{path}&max_results=3")
    _, rest = client.call("GET", f"{path}&max_results=3&page_token={page['next_page_token']}")
    _, bulk = client.call(
        "GET",
        f"metrics/get-history-bulk-interval?run_ids={RUN_ID}&metric_key=loss"
        "&start_step=1&end_step=2&max_results=10",
    )

    assert [point["step"] for point in whole["metrics"]] == [0, 1, 2, 3, 4]
    assert [point["step"] for point in page["metrics"] + rest["metrics"]] == [0, 1, 2, 3, 4]
    assert "next_page_token" not in rest
    assert [(p["step"], p["run_id"]) for p in bulk["metrics"]] == [(1, RUN_ID), (2, RUN_ID)]


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "runs/get?run_id=other", 404, "Run with id=other not found"),
        ("GET", "logged-models/m-0", 404, "the models that this run logged"),
        ("POST", "registered-models/create", 501, "mlflow.register_model("),
        ("POST", "runs/delete", 501, "once this run has ended"),
        ("POST", "traces", 501, "switch tracing off"),
        ("GET", "experiments/get-by-name?experiment_name=other", 501, "--experiment-name"),
        ("POST", "model-versions/create", 501, "mlflow.register_model("),
        ("GET", "nothing/like/it", 501, "against the tracking server"),
    ],
)
def test_errors_say_what_to_do_instead(
    client: Client, method: str, path: str, status: int, words: str
) -> None:
    found, answer = client.call(method, path)

    assert found == status
    assert words in answer["message"]


def test_an_experiment_of_the_same_name_exists_already(client: Client) -> None:
    status, answer = client.call("POST", "experiments/create", name="digits")

    assert (status, answer["error_code"]) == (400, "RESOURCE_ALREADY_EXISTS")


@pytest.mark.parametrize("body", [b"{", b"[1]", b'"a"', b"\xff"])
def test_bodies_that_are_no_json_objects_are_refused(client: Client, body: bytes) -> None:
    status, answer = client.raw("POST", f"{API}runs/set-tag", body)

    assert (status, json.loads(answer)["error_code"]) == (400, "INVALID_PARAMETER_VALUE")


def test_a_client_in_another_language_sends_numbers_as_text(client: Client) -> None:
    """Java's and R's do so with int64; and some still say run_uuid, or use the older path."""
    point = {"key": "loss", "value": 0.5, "timestamp": "1764000000000", "step": "3"}
    body = json.dumps({"run_uuid": RUN_ID, **point}).encode()
    assert client.raw("POST", "/ajax-api/2.0/mlflow/runs/log-metric", body)[0] == 200
    assert (
        client.write("runs/log-batch", metrics=[{**point, "step": "4", "value": "NaN"}])[0] == 200
    )
    assert client.write("runs/log-parameter", key="lr", value="0.1") == (200, {})

    status, answer = client.call("GET", f"metrics/get-history?run_uuid={RUN_ID}&metric_key=loss")

    assert status == 200
    assert [(one["step"], one["value"]) for one in answer["metrics"]] == [(3, 0.5), (4, "NaN")]
    assert all(one["timestamp"] == 1764000000000 for one in answer["metrics"])


def test_an_artifact_goes_in_and_comes_back(client: Client) -> None:
    assert client.raw("PUT", f"{client.root}/a/b%20c.txt", b"data")[0] == 200
    assert client.raw("GET", f"{client.root}/a/b%20c.txt") == (200, b"data")

    path = f"{client.bucket.name}/{client.instance.artifacts}/a"
    _, listed = client.raw("GET", f"{ARTIFACTS}?path={path}")
    assert json.loads(listed) == {"files": [{"path": "b c.txt", "is_dir": False, "file_size": 4}]}
    _, by_run = client.call("GET", f"artifacts/list?run_id={RUN_ID}&path=a")
    assert [item["path"] for item in by_run["files"]] == ["a/b c.txt"]


def test_a_body_in_chunks_is_taken_whole(client: Client) -> None:
    parts = iter([b"one ", b"two ", b"three"])
    assert client.raw("PUT", f"{client.root}/chunked", parts, encode_chunked=True)[0] == 200
    assert client.raw("PUT", f"{client.root}/empty", iter(()), encode_chunked=True)[0] == 200

    assert client.raw("GET", f"{client.root}/chunked") == (200, b"one two three")
    assert client.raw("GET", f"{client.root}/empty") == (200, b"")


def test_a_full_disk_refuses_a_large_file_with_a_sentence_and_takes_metrics(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The client has sent it all and reads an answer, where a broken connection is tried again."""
    monkeypatch.setattr(spool_module, "FULL_BYTES", 1 << 60)
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(64 * 1024**2)

    with large.open("rb") as file:
        status, answer = client.raw("PUT", f"{client.root}/large", file)

    assert status == 507
    assert json.loads(answer)["error_code"] == "INSUFFICIENT_STORAGE"
    assert "Give the machine a larger disk (machine.disk_gb)" in json.loads(answer)["message"]
    assert client.write("runs/log-metric", key="loss", value=1.0, timestamp=1, step=1)[0] == 200
    assert not list((tmp_path / "state" / "spool").glob(".*.tmp"))


def test_an_upload_that_breaks_off_leaves_nothing(client: Client) -> None:
    with socket.create_connection(("127.0.0.1", client.relay.port)) as raw:
        head = (
            f"PUT {client.root}/half HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n"
            f"Authorization: Bearer {client.token}\r\n\r\n"
        )
        raw.sendall(head.encode() + b"only so much")
        raw.shutdown(socket.SHUT_WR)
        assert raw.recv(100) == b""

    assert client.raw("GET", f"{client.root}/half")[0] == 404


def test_what_the_spool_does_not_have_comes_from_the_bucket(client: Client) -> None:
    name = f"{client.instance.artifacts}/checkpoints/last.pt"
    client.bucket.put(name, b"of an earlier attempt")

    assert client.raw("GET", f"{client.root}/checkpoints/last.pt") == (
        200,
        b"of an earlier attempt",
    )
    _, listed = client.call("GET", f"artifacts/list?run_id={RUN_ID}")
    assert listed["files"] == [{"path": "checkpoints", "is_dir": True}]


class Breaking(io.BytesIO):
    """A download that ends before its time, quietly or not."""

    error: Exception | None = None

    def read(self, amount: int | None = -1) -> bytes:
        data = super().read(amount)
        if not data and self.error is not None:
            raise self.error
        return data


@pytest.mark.parametrize(
    "error", [None, CloudError("the download broke off"), RuntimeError("anything"), OSError("disk")]
)
def test_a_download_that_breaks_off_ends_the_connection(error: Exception | None) -> None:
    """The client would wait for the rest, or take an error's JSON for the end of its file."""
    source = Breaking(b"x" * 3_000_000)
    source.error = error
    artifacts: Any = SimpleNamespace(download=lambda path: (source, 3_000_100))
    relay = Relay(cast(Any, None), artifacts, Locations("gs://b/e"), "token")
    relay.start()
    connection = http.client.HTTPConnection("127.0.0.1", relay.port, timeout=20)
    try:
        connection.request("GET", f"{ARTIFACTS}/b/e/f", headers={"Authorization": "Bearer token"})
        with pytest.raises(http.client.IncompleteRead) as raised:
            connection.getresponse().read()
    finally:
        connection.close()
        relay.stop()

    assert raised.value.partial == b"x" * 3_000_000


def test_a_deleted_artifact_is_gone_at_once(client: Client) -> None:
    client.bucket.put(f"{client.instance.artifacts}/d/old", b"x")
    client.raw("PUT", f"{client.root}/d/new", b"x")
    assert client.raw("DELETE", f"{client.root}/d")[0] == 200

    assert client.raw("GET", f"{client.root}/d/old")[0] == 404
    assert client.raw("GET", f"{client.root}/d/new")[0] == 404
    assert client.call("GET", f"artifacts/list?run_id={RUN_ID}")[1]["files"] == []


@pytest.mark.parametrize(
    "path",
    [
        "{bucket}/mlflow-gce/experiments/digits/other/artifacts/a",
        "{bucket}/mlflow-gce/experiments/digits/models/m-0/artifacts/a",
        "{bucket}/mlflow-gce/experiments/digits/a",
        "{bucket}/mlflow-gce/runs/x/status.json",
        "other-bucket/a",
    ],
)
def test_only_this_runs_artifacts_can_be_written(client: Client, path: str) -> None:
    url = f"{ARTIFACTS}/{path.format(bucket=client.bucket.name)}"

    assert client.raw("PUT", url, b"x")[0] == 403
    assert client.raw("DELETE", url)[0] == 403


@pytest.mark.parametrize("name", ["line%0Afeed", "return%0D", "%C3%BC" * 500], ids=len)
def test_names_that_the_bucket_would_refuse_for_good_are_refused_at_once(
    client: Client, name: str
) -> None:
    status, answer = client.raw("PUT", f"{client.root}/{name}", b"x")

    assert (status, json.loads(answer)["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert "Cloud Storage" in json.loads(answer)["message"]
    assert client.raw("PUT", f"{client.root}/%C3%BC%09", b"x")[0] == 200


def test_multipart_uploads_are_declined(client: Client) -> None:
    _, info = client.raw("GET", "/api/3.0/mlflow/server-info")
    assert json.loads(info)["multipart_uploads_enabled"] is False
    assert client.raw("POST", "/api/2.0/mlflow-artifacts/mpu/create/a", b"{}")[0] == 501
