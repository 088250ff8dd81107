"""Small trainers for the tests; standard library only, so that they start at once."""

# Logs a metric every 50 ms until the file "enough" appears; survives an agent that is away.
STEADY = """
import json, os, pathlib, sys, time, urllib.request
URI, TOKEN = os.environ["MLFLOW_TRACKING_URI"], os.environ["MLFLOW_TRACKING_TOKEN"]
def post(path, body):
    data = json.dumps({"run_id": os.environ["MLFLOW_RUN_ID"], **body}).encode()
    request = urllib.request.Request(URI + "/api/2.0/mlflow/" + path, data=data, method="POST")
    request.add_header("Authorization", "Bearer " + TOKEN)
    for _ in range(400):
        try:
            return urllib.request.urlopen(request, timeout=5).read()
        except OSError:
            time.sleep(0.05)
    sys.exit("the relay stayed away")
step = 0
while not pathlib.Path("enough").exists():
    step += 1
    post("runs/log-metric", {"key": "loss", "value": 1 / step, "timestamp": step, "step": step})
    print("step", step, flush=True)
    time.sleep(0.05)
print("acknowledged", step)
"""

# Puts files given as arguments (NAME=BYTES) as artifacts of the run.
UPLOADING = """
import os, sys, urllib.request
ROOT = os.environ["MLFLOW_TRACKING_URI"] + "/api/2.0/mlflow-artifacts/artifacts/"
for argument in sys.argv[1:]:
    name, _, size = argument.partition("=")
    path = os.environ["ARTIFACTS"] + "/" + name
    request = urllib.request.Request(ROOT + path, data=b"x" * int(size), method="PUT")
    request.add_header("Authorization", "Bearer " + os.environ["MLFLOW_TRACKING_TOKEN"])
    urllib.request.urlopen(request, timeout=30).read()
"""

# Ends itself well when it gets SIGTERM.
OBEDIENT = """
import signal, sys, time
def leave(number, frame):
    open("saved.txt", "w").write("saved")
    print("saved", flush=True)
    sys.exit(0)
signal.signal(signal.SIGTERM, leave)
print("ready", flush=True)
time.sleep(60)
"""

# Does not hear SIGTERM, and neither does its child.
DEAF = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
print("ready", child.pid, flush=True)
time.sleep(60)
"""
