#!/bin/bash
# The startup script of every instance: runs as root at each boot, fetches the agent from the
# bucket, and starts it again whenever it dies before its work is done. Standard tools of stock
# Debian and Ubuntu images only: bash and python3. What it prints is the first serial port.
set -u
trap '' PIPE  # what reads our output goes early in a shutdown; the agent still has work then
state="${STATE_DIRECTORY:-/var/lib}/mlflow-gce"
mkdir -p "$state"

fetch_agent() {
    python3 -I - "$state/agent.pyz" <<'PYTHON'
import hashlib, json, os, sys, urllib.parse, urllib.request

BUCKET, OBJECT, SHA256 = "@BUCKET@", "@OBJECT@", "@SHA256@"
target = sys.argv[1]
if os.path.exists(target):
    with open(target, "rb") as file:
        if hashlib.sha256(file.read()).hexdigest() == SHA256:
            sys.exit(0)  # fetched at an earlier boot

metadata = os.environ.get("GCE_METADATA_HOST", "metadata.google.internal")
storage = os.environ.get("STORAGE_EMULATOR_HOST", "https://storage.googleapis.com")


def get(url, headers):
    # No proxy for the metadata server; urllib would ask the environment for one.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    return opener.open(urllib.request.Request(url, headers=headers), timeout=60).read()


token = json.loads(
    get(
        f"http://{metadata}/computeMetadata/v1/instance/service-accounts/default/token",
        {"Metadata-Flavor": "Google"},
    )
)["access_token"]
name = urllib.parse.quote(OBJECT, safe="")
body = get(f"{storage}/storage/v1/b/{BUCKET}/o/{name}?alt=media", {"Authorization": f"Bearer {token}"})
if hashlib.sha256(body).hexdigest() != SHA256:
    sys.exit(f"gs://{BUCKET}/{OBJECT} does not have the checksum it was submitted with")
with open(target + ".part", "wb") as file:
    file.write(body)
os.replace(target + ".part", target)
PYTHON
}

delay=1
until fetch_agent; do
    echo "mlflow-gce: no agent yet; trying again in $delay s"
    sleep "$delay"
    delay=$((delay < 30 ? delay * 2 : 30))
done

# The instance's own deadline ends this loop at the latest.
until python3 -I "$state/agent.pyz"; do
    echo "mlflow-gce: the agent ended with code $?; starting it again"
    sleep 2
done
