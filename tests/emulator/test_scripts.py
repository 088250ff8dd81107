"""Startup and shutdown scripts as the guest agent finds and runs them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import requests

from gce_backend.emulator import Emulator

from .conftest import Api, eventually
from .test_os_login import set_project_metadata

pytestmark = pytest.mark.flow

READ = "https://www.googleapis.com/auth/devstorage.read_only"
COMPUTE = "https://www.googleapis.com/auth/compute"


def store(emulator: Emulator, name: str, text: str) -> str:
    """The ``gs://`` URL of a new object."""
    url = f"{emulator.storage_url}/upload/storage/v1/b/bucket/o"
    params = {"uploadType": "media", "name": name}
    requests.post(url, params=params, data=text.encode(), timeout=30).raise_for_status()
    return f"gs://bucket/{name}"


def items(**values: str) -> dict[str, list[dict[str, str]]]:
    found = [{"key": key.replace("_", "-"), "value": value} for key, value in values.items()]
    return {"items": found}


@pytest.fixture
def web_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves one script, whatever is asked for; yields its URL."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"echo from the web")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/script.sh"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_startup_script_comes_from_a_bucket_with_the_instances_own_token(
    emulator: Emulator, api: Api
) -> None:
    url = store(emulator, "scripts/start up.sh", "echo from the bucket")
    accounts = [{"email": "default", "scopes": [READ]}]
    api.create(metadata=items(startup_script_url=url), serviceAccounts=accounts)
    eventually(lambda: "startup-script-url exit status 0" in api.serial(), "the script")

    reads = [call for call in emulator.calls if call.path.endswith("/scripts/start up.sh")]
    assert "from the bucket" in api.serial().splitlines()
    assert reads[-1].caller == "vm"


def test_a_token_without_the_scope_gets_no_script(emulator: Emulator, api: Api) -> None:
    url = store(emulator, "secret.sh", "echo secret")
    accounts = [{"email": "default", "scopes": [COMPUTE]}]
    api.create(metadata=items(startup_script_url=url), serviceAccounts=accounts)
    eventually(lambda: "failed with error" in api.serial(), "the refusal")

    assert "403" in api.serial()
    assert "secret" not in api.serial().splitlines()


def test_both_scripts_run_the_one_in_the_metadata_first(
    emulator: Emulator, api: Api, web_server: str
) -> None:
    api.create(metadata=items(startup_script="echo from metadata", startup_script_url=web_server))
    eventually(lambda: "startup-script-url exit status 0" in api.serial(), "the second script")

    lines = api.serial().splitlines()
    assert lines.index("from metadata") < lines.index("from the web")


def test_the_first_line_says_what_runs_a_script(api: Api) -> None:
    script = "#!/usr/bin/env python3\nimport sys\nprint('python', sys.version_info.major)\n"
    api.create(startup=script)

    eventually(lambda: "python 3" in api.serial().splitlines(), "its output")


def test_a_shutdown_script_comes_from_a_bucket_too(emulator: Emulator, api: Api) -> None:
    url = store(emulator, "down.sh", "echo going down")
    api.create(metadata=items(shutdown_script_url=url))
    api.finish(api.post("vm", "stop").json())

    assert "going down" in api.serial().splitlines()


def test_the_projects_script_runs_where_the_instance_has_none(api: Api) -> None:
    set_project_metadata(api, items(startup_script="echo the projects")["items"])
    try:
        api.create("without")
        api.create("with", startup="echo its own")
        for name in ("without", "with"):
            eventually(lambda name=name: "exit status" in api.serial(name), "a script")  # type: ignore[misc]
    finally:
        set_project_metadata(api, [])

    assert "the projects" in api.serial("without").splitlines()
    assert "the projects" not in api.serial("with").splitlines()
