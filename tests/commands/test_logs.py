"""The log from the bucket: byte for byte, in order, to its end."""

import subprocess
import time

from click.testing import CliRunner

from gce_backend.cli import main

from .conftest import MLFLOW_GCE


def test_byte_for_byte_and_the_last_lines(store):
    run_id = store.store_run()
    pieces = [b"step 1\nste", b"p 2\r\n\xff\x00bar\n", b"no newline"]
    for number, piece in enumerate(pieces, 1):
        store.put(store.paths(run_id).log(number), piece)
    store.put(store.paths(run_id).log(5), b"not yet: 4 is missing")

    def printed(*words):
        result = CliRunner().invoke(main, ["logs", run_id, *words], env=store.environ)
        assert result.exit_code == 0, result.stderr
        return result.stdout_bytes

    assert printed() == b"".join(pieces)
    assert printed("--tail", "2") == b"\xff\x00bar\nno newline"
    assert printed("-n", "0") == b""


def test_following_ends_with_the_run(store):
    run_id = store.store_run()
    store.put(store.paths(run_id).log(1), b"step 1\n")
    following = store.start("logs", "-f", run_id, stdout=subprocess.PIPE, text=True)
    try:
        assert following.stdout.readline() == "step 1\n"
        store.put(store.paths(run_id).log(2), b"step 2\n")
        assert following.stdout.readline() == "step 2\n"
        store.ends(run_id)
        end = time.monotonic() + 30
        while following.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        following.kill()
        following.wait()
    assert following.returncode == 0


def test_a_run_that_has_written_nothing_and_a_reader_that_leaves(store):
    run_id = store.store_run()
    assert "has written nothing yet" in store.run("logs", run_id).stderr
    for number in range(1, 30):
        store.put(store.paths(run_id).log(number), b"line\n" * 10_000)

    command = f"{MLFLOW_GCE} logs {run_id} | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=store.directory,
        env=store.environ,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout == "line\n"
    assert "Traceback" not in done.stderr and "Broken" not in done.stderr
