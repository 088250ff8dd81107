"""Instances really run: scripts, processes, directories, and their end."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
import requests

from gce_backend.emulator import Emulator, Fault, isolation
from gce_backend.emulator.leftovers import MARK

from .conftest import LONG, Api, body, eventually

pytestmark = pytest.mark.flow  # real processes and servers

RW = "https://www.googleapis.com/auth/devstorage.read_write"
COMPUTE = "https://www.googleapis.com/auth/compute"


def processes_with(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_the_startup_script_runs_in_the_instances_directory(emulator: Emulator, api: Api) -> None:
    api.create(startup='echo "$HOME|$TMPDIR|$STATE_DIRECTORY|${PATH%%:*}|$(pwd)"')
    output = eventually(lambda: "exit status 0" in api.serial() and api.serial(), "the script")
    directory = str(emulator.instance_directory("vm"))
    line = next(line for line in output.splitlines() if "|" in line)

    assert all(part.startswith(directory) for part in line.split("|"))


def test_the_usual_image_has_the_emulators_python_and_the_empty_one_nothing(
    emulator: Emulator, api: Api
) -> None:
    script = "python3 -c 'import aiohttp; print(\"has aiohttp\")'; python -m pip --version"
    empty = [
        {
            **body("x")["disks"][0],
            "initializeParams": {
                "sourceImage": "projects/emulator-images/global/images/family/python-empty"
            },
        }
    ]
    api.create("full", startup=script)
    api.create("bare", startup=script, disks=empty)
    full = eventually(lambda: "exit status" in api.serial("full") and api.serial("full"), "full")
    bare = eventually(lambda: "exit status" in api.serial("bare") and api.serial("bare"), "bare")

    assert "has aiohttp" in full
    assert "No module named 'aiohttp'" in bare
    assert "No module named pip" in bare


def test_delete_ends_processes_that_forked_twice_and_removes_the_directory(
    emulator: Emulator, api: Api
) -> None:
    api.create(startup=f"(setsid setsid nohup sleep {LONG}1 &) ; trap '' TERM; sleep {LONG}2")
    eventually(lambda: len(processes_with(f"{LONG}1")) == 1, "the daemon runs")
    directory = emulator.instance_directory("vm")

    api.finish(api.delete().json())

    assert processes_with(LONG) == []
    assert not directory.exists()


def test_no_process_of_an_instance_escapes_by_clearing_its_environment(
    emulator: Emulator, api: Api
) -> None:
    if not isolation.is_permitted():
        pytest.skip("needs namespaces of its own, which need root")
    api.create(startup=f"(setsid env -i /usr/bin/setsid /bin/sleep {LONG} &) ; sleep 1")
    eventually(lambda: processes_with(LONG), "the daemon runs")

    api.finish(api.delete().json())

    assert eventually(lambda: not processes_with(LONG), "it is gone")


def test_a_shutdown_script_runs_at_a_stop(emulator: Emulator, api: Api) -> None:
    items = [{"key": "shutdown-script", "value": "echo going down"}]
    api.create(metadata={"items": items})
    api.finish(api.post("vm", "stop").json())

    assert "going down" in api.serial()


def test_a_disk_outlives_a_stop_and_the_startup_script_runs_again(
    emulator: Emulator, api: Api
) -> None:
    api.create(startup='echo x >> "$HOME/boots"; wc -l < "$HOME/boots"')
    eventually(lambda: "exit status" in api.serial(), "first boot")
    api.finish(api.post("vm", "stop").json())
    api.finish(api.post("vm", "start").json())

    eventually(lambda: api.serial().count("exit status") == 2, "second boot")
    assert (emulator.instance_directory("vm") / "home/root/boots").read_text() == "x\nx\n"


def test_poweroff_from_inside_stops_the_instance(api: Api) -> None:
    api.create(startup="poweroff; sleep 60")

    eventually(lambda: api.get().json()["status"] == "TERMINATED", "it is off")


def test_reboot_from_inside_keeps_it_running(emulator: Emulator, api: Api) -> None:
    api.create(startup='echo x >> "$HOME/b"; [ $(wc -l < "$HOME/b") = 1 ] && reboot; sleep 60')

    file = emulator.instance_directory("vm") / "home/root/b"
    eventually(lambda: file.exists() and file.read_text() == "x\nx\n", "second boot")
    assert api.get().json()["status"] == "RUNNING"


def test_useradd_is_refused(api: Api) -> None:
    api.create(startup="useradd alice || echo refused")

    eventually(lambda: "refused" in api.serial(), "the answer")


def test_lost_power_gives_no_notice(emulator: Emulator, api: Api) -> None:
    api.create(startup="trap 'echo noticed' TERM; echo up; while :; do sleep 0.1; done")
    eventually(lambda: "up" in api.serial().splitlines(), "it is up")

    emulator.power_off("vm")

    assert api.get().json()["status"] == "TERMINATED"
    assert "noticed" not in api.serial()


@pytest.mark.parametrize(("action", "status"), [("DELETE", 404), ("STOP", 200)])
def test_a_passed_run_time_takes_its_action(
    emulator: Emulator, api: Api, action: str, status: int
) -> None:
    scheduling = {
        "maxRunDuration": {"seconds": "3600"},
        "instanceTerminationAction": action,
        "automaticRestart": False,
    }
    instance = api.create(scheduling=scheduling)
    assert "terminationTimestamp" in instance["resourceStatus"]["scheduling"]

    emulator.advance(3601)

    eventually(lambda: api.get().json().get("status") in (None, "TERMINATED"), "its end")
    assert api.get().status_code == status


def test_a_stopped_instance_is_outside_its_run_time(emulator: Emulator, api: Api) -> None:
    scheduling = {"maxRunDuration": {"seconds": "60"}, "instanceTerminationAction": "DELETE"}
    api.create(scheduling=scheduling)
    api.finish(api.post("vm", "stop").json())

    emulator.advance(3600)

    assert api.get().json()["status"] == "TERMINATED"
    assert "terminationTimestamp" not in api.get().json()["resourceStatus"]["scheduling"]


def test_a_preempted_instance_is_told_and_leaves_an_operation(emulator: Emulator, api: Api) -> None:
    ask = "curl -s -H 'Metadata-Flavor: Google'"
    script = f"""
trap '' TERM
url=http://$GCE_METADATA_HOST/computeMetadata/v1/instance/preempted
etag=$({ask} -o /dev/null -D - $url | tr -d '\\r' | sed -n 's/^ETag: //Ip')
echo watching
told=$({ask} "$url?wait_for_change=true&last_etag=$etag")
echo "$told"  # in one piece: the shutdown writes to the same port
"""
    spot = {"provisioningModel": "SPOT", "instanceTerminationAction": "STOP"}
    api.create(startup=script, scheduling=spot)
    eventually(lambda: "watching" in api.serial().splitlines(), "it watches")

    emulator.preempt("vm")

    assert "TRUE" in api.serial().splitlines()
    assert api.get().json()["status"] == "TERMINATED"
    query = {"filter": 'operationType eq ".*compute.instances.preempted.*"'}
    found = requests.get(f"{api.zone}/operations", params=query, timeout=30).json()["items"]
    assert found[0]["targetId"] == api.get().json()["id"]


def test_a_token_opens_what_its_scopes_say(api: Api) -> None:
    ask = "curl -s -H 'Metadata-Flavor: Google' http://$GCE_METADATA_HOST/computeMetadata/v1"
    script = f"""
token=$({ask}/instance/service-accounts/default/token | python3 -c \
'import json,sys; print(json.load(sys.stdin)["access_token"])')
me=$CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE/projects/$({ask}/project/project-id)
zone=$({ask}/instance/zone); zone=${{zone##*/}}
curl -s -o /dev/null -w 'compute=%{{http_code}}\\n' -H "Authorization: Bearer $token" \
  -X DELETE ${{me/compute\\/v1\\/\\//compute\\/v1\\/}}/zones/$zone/instances/$HOSTNAME
curl -s -o /dev/null -w 'storage=%{{http_code}}\\n' -H "Authorization: Bearer $token" \
  $STORAGE_EMULATOR_HOST/storage/v1/b
"""
    api.create(startup=script, serviceAccounts=[{"email": "default", "scopes": [RW]}])
    output = eventually(lambda: "storage=" in api.serial() and api.serial(), "the answers")

    assert "compute=403" in output
    assert "storage=200" in output


def test_an_instance_deletes_itself_with_the_scope(emulator: Emulator, api: Api) -> None:
    script = """
token=$(curl -s -H 'Metadata-Flavor: Google' \
http://$GCE_METADATA_HOST/computeMetadata/v1/instance/service-accounts/default/token |
python3 -c 'import json,sys; print(json.load(sys.stdin)["access_token"])')
curl -s -X DELETE -H "Authorization: Bearer $token" \
"${CLOUDSDK_API_ENDPOINT_OVERRIDES_COMPUTE}projects/emulator-project/zones/europe-west1-b/instances/vm"
"""
    api.create(startup=script, serviceAccounts=[{"email": "default", "scopes": [COMPUTE]}])

    eventually(lambda: api.get().status_code == 404, "it is gone")
    deletes = [call for call in emulator.calls if call.name == "instances.delete"]
    assert deletes[-1].caller == "vm"


def test_a_cut_network_lets_nothing_through(emulator: Emulator, api: Api) -> None:
    ask = "curl -s -m 1 $STORAGE_EMULATOR_HOST/storage/v1/b >/dev/null && echo ok || echo cut"
    api.create(startup=f"for i in $(seq 200); do {ask}; sleep 0.1; done")
    eventually(lambda: "ok" in api.serial().splitlines(), "it reaches storage")

    emulator.inject(Fault("network_cut", resource="vm", times=None))

    eventually(lambda: "cut" in api.serial().splitlines(), "it does not any more")


def test_a_cut_network_lets_no_batch_through(emulator: Emulator, api: Api) -> None:
    instance = api.create()
    port = emulator.compute_url.rsplit(":", 1)[1].partition("/")[0]
    url = f"http://{instance['networkInterfaces'][0]['networkIP']}:{port}/batch/compute/v1"
    before = requests.post(url, data="no batch", timeout=30)

    emulator.inject(Fault("network_cut", resource="vm", times=None))

    assert before.status_code == 400
    with pytest.raises(requests.ConnectionError):
        requests.post(url, data="no batch", timeout=30)


def test_the_mark_is_in_the_environment_of_every_process(api: Api) -> None:
    api.create(startup=f"echo mark=${MARK}")

    eventually(lambda: "mark=" in api.serial() and "/" in api.serial(), "the mark")


def test_a_delete_before_the_boot_wins(emulator: Emulator, api: Api) -> None:
    emulator.inject(Fault("operation_slow", "instances.insert", seconds=600))
    insert = api.insert().json()
    api.finish(api.delete().json())

    emulator.advance(601)

    assert api.finish(insert)["error"]["errors"][0]["code"] == "RESOURCE_NOT_FOUND"
    assert api.get().status_code == 404


def test_a_termination_time_ends_it_then(emulator: Emulator, api: Api) -> None:
    moment = datetime.fromtimestamp(emulator.now() + 900, UTC).isoformat()
    scheduling = {"terminationTime": moment, "instanceTerminationAction": "STOP"}
    api.create(scheduling=scheduling)
    shown = api.get().json()["resourceStatus"]["scheduling"]["terminationTimestamp"]

    emulator.advance(901)

    assert datetime.fromisoformat(shown).timestamp() == pytest.approx(
        datetime.fromisoformat(moment).timestamp(), abs=1
    )
    eventually(lambda: api.get().json()["status"] == "TERMINATED", "its end")
