"""The main job, as the README has it: MNIST with the default configuration, start to end."""

import json
import re
import sys
from pathlib import Path

import mlflow
import nbformat
import pytest
import torch
from conftest import CHECKOUT, MLFLOW, environment
from nbclient import NotebookClient


@pytest.mark.timeout(600)
def test_the_main_job(cloud):
    """Two epochs reach 99 %, the results are in the store and the bucket, the instance is gone."""
    code, output = cloud.run(
        *(*MLFLOW, "run", str(CHECKOUT), "--backend", "gce", "-P", "epochs=2"), seconds=280
    )

    assert code == 0, output
    assert "Traceback" not in output
    assert "Warning" not in output
    run = cloud.only_run()
    run_id = run.info.run_id
    assert run.info.status == "FINISHED"

    # Metrics, one a step from 1 on, and the parameters of machine and training.
    accuracy = cloud.client.get_metric_history(run_id, "test_accuracy")
    assert [m.step for m in accuracy] == [1, 2]
    assert accuracy[-1].value >= 99.0
    assert run.data.params["machine"] == "n1-standard-2"
    assert run.data.params["trainer.epochs"] == "2"
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.name

    # The lab's files, in the bucket, in the lab's format.
    root = run.info.artifact_uri.split("/", 3)[3]
    metrics = json.loads(cloud.read(f"{root}/metrics.json"))
    assert metrics["epoch"] == [1, 2]
    assert metrics["test_accuracy"] == pytest.approx([m.value for m in accuracy])
    names = {name.removeprefix(f"{root}/") for name in cloud.objects(root)}
    assert {"metrics.json", "model.pt", "config.yaml", "training_curves.png"} <= names

    assert_recorded_in_order(cloud, run_id)
    assert_model_scores(cloud, run, accuracy[-1].value)
    assert_the_labs_cells_run_on_what_is_pulled(cloud, run_id, accuracy[-1].value)
    assert_the_notebook_finds_the_same(cloud, accuracy[-1].value)
    for words in ("verified", "GET says 404", "instances left: 0", "epoch 2/2", "$"):
        assert words in output


def assert_recorded_in_order(cloud, run_id):
    """The emulator's own record: a deadline in the insert; proof before the delete; 404 after."""
    calls = cloud.emulator.calls
    (insert,) = cloud.inserts()
    assert insert.body["scheduling"]["instanceTerminationAction"] == "DELETE"
    assert int(insert.body["scheduling"]["maxRunDuration"]["seconds"]) > 0
    name = insert.body["name"]

    def position(match):
        return next(number for number, call in enumerate(calls) if match(call))

    def wrote(file):
        wanted = f"mlflow-gce/runs/{run_id}/{file}"
        return lambda call: call.service == "storage" and (call.answer or {}).get("name") == wanted

    manifest, status = position(wrote("manifest.json")), position(wrote("status.json"))
    delete = position(lambda call: call.method == "DELETE" and name in call.path)
    confirmed = position(
        lambda call: call.method == "GET" and call.path.endswith(name) and call.status == 404
    )
    assert manifest < status < delete < confirmed


def assert_model_scores(cloud, run, accuracy):
    """The logged model, loaded from the gs:// store, scores what the last epoch scored."""
    (output,) = run.outputs.model_outputs
    location = cloud.client.get_logged_model(output.model_id).artifact_location
    assert location.startswith(f"gs://{cloud.bucket}/")
    with environment(cloud.environ), pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(CHECKOUT)
        import mnist

        model = mlflow.pytorch.load_model(location)
        _, _, images, labels = mnist.load("mnist", str(cloud.directory / "data"))
    with torch.inference_mode():
        found = torch.cat([model(part.float() / 255).argmax(1) for part in images.split(1000)])
    scored = 100 * (found == labels).double().mean().item()
    assert scored == pytest.approx(accuracy, abs=1e-6)


def assert_the_labs_cells_run_on_what_is_pulled(cloud, run_id, accuracy):
    code, output = cloud.mlflow_gce("pull", run_id)
    assert code == 0, output
    cells = Path(__file__).with_name("lab_cells.py")
    code, output = cloud.run(sys.executable, str(cells), MPLBACKEND="agg")
    assert code == 0, output
    assert f"Final accuracy: {accuracy:.2f}%" in output
    assert re.search(r"Total parameters: \d\d,\d\d\d", output)


def assert_the_notebook_finds_the_same(cloud, accuracy):
    notebook = nbformat.read(CHECKOUT / "analyze.ipynb", as_version=4)
    path = f"{Path(sys.executable).parent}:{cloud.environ['PATH']}"
    with environment({**cloud.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT)}):
        NotebookClient(notebook, timeout=120).execute(cwd=str(cloud.directory))
    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
    )
    assert f"Accuracy of the loaded model: {accuracy:.2f} %" in printed
