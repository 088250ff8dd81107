"""A trainer that uses the real MLflow client the way training code does; run on the instance."""

import json
import os

import mlflow
import numpy as np

MAIN = os.environ["MLFLOW_RUN_ID"]
facts = {}

mlflow.set_experiment("digits")
with mlflow.start_run() as run:
    assert run.info.run_id == MAIN
    mlflow.log_params({"epochs": 1, "note": "a b", "lr": 0.1})
    mlflow.log_param("batch_size", 32)
    try:
        mlflow.log_params({"lr": 0.2, "momentum": 0.9})
        raise SystemExit("a changed parameter was taken")
    except mlflow.MlflowException as error:
        facts["conflict"] = str(error)
    for step in (1, 2, 3):
        mlflow.log_metric("loss", 1.0 / step, step=step)
        mlflow.log_metrics({"accuracy": step / 10, "odd": float("nan")}, step=step)
    mlflow.log_metric("late", 5.0, step=9, synchronous=False).wait()
    mlflow.set_tag("phase", "one")
    mlflow.set_tags({"phase": "two", "gone": "1"})
    mlflow.delete_tag("gone")
    data = mlflow.data.from_numpy(np.arange(6.0).reshape(3, 2), name="tiny", source="somewhere")
    mlflow.log_input(data, context="training")
    with open("notes.txt", "w") as file:
        file.write("notes\n")
    open("empty.bin", "w").close()
    mlflow.log_artifact("notes.txt")
    mlflow.log_artifact("empty.bin", "deep/er")
    mlflow.log_text("one", "text/a.txt")
    mlflow.log_text("two", "text/a.txt")
    mlflow.log_dict({"a": 1}, "config.json")
    mlflow.log_image(np.zeros((4, 4, 3), dtype=np.uint8), key="sample", step=1)
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots()
    axes.plot([1, 2])
    mlflow.log_figure(figure, "curve.png")

    with mlflow.start_run(run_name="child", nested=True) as child:
        mlflow.log_param("depth", 2)
        mlflow.log_metric("loss", 0.5)
        mlflow.log_text("child", "child.txt")
    client = mlflow.MlflowClient()
    facts["child_parent"] = client.get_run(child.info.run_id).data.tags["mlflow.parentRunId"]
    facts["children"] = len(
        mlflow.search_runs(
            filter_string=f"tags.mlflow.parentRunId = '{MAIN}'", output_format="list"
        )
    )

    import torch
    from mlflow.models import infer_signature

    model = torch.nn.Linear(2, 1)
    example = np.ones((1, 2), dtype=np.float32)
    signature = infer_signature(example, model(torch.from_numpy(example)).detach().numpy())
    logged = mlflow.pytorch.log_model(
        model, name="model", signature=signature, input_example=example, pip_requirements=["torch"]
    )
    again = mlflow.pytorch.load_model(logged.model_uri)
    facts["model_id"] = logged.model_id
    facts["same_output"] = bool(
        torch.allclose(again(torch.from_numpy(example)), model(torch.from_numpy(example)))
    )
    facts["model_status"] = str(mlflow.get_logged_model(logged.model_id).status)

    read = client.get_run(MAIN)
    facts["params"] = read.data.params
    facts["metrics"] = {k: v for k, v in read.data.metrics.items() if v == v}
    facts["tags"] = {k: v for k, v in read.data.tags.items() if not k.startswith("mlflow.")}
    facts["history"] = [[p.step, p.value] for p in client.get_metric_history(MAIN, "loss")]
    facts["datasets"] = [item.dataset.name for item in read.inputs.dataset_inputs]
    facts["outputs"] = [item.model_id for item in read.outputs.model_outputs]
    facts["artifacts"] = sorted(item.path for item in client.list_artifacts(MAIN))
    facts["deeper"] = [item.path for item in client.list_artifacts(MAIN, "deep/er")]
    facts["text"] = mlflow.artifacts.load_text(f"runs:/{MAIN}/text/a.txt")
    facts["artifact_uri"] = mlflow.get_artifact_uri()
    try:
        mlflow.register_model(logged.model_uri, "registered")
        raise SystemExit("a model was registered")
    except mlflow.MlflowException as error:
        facts["register"] = str(error)

mlflow.sklearn.autolog(log_datasets=False)
from sklearn.linear_model import LogisticRegression  # noqa: E402

with mlflow.start_run(run_name="autologged", parent_run_id=MAIN, nested=True) as auto:
    LogisticRegression().fit(np.arange(8.0).reshape(4, 2), [0, 0, 1, 1])
facts["autolog"] = sorted(client.get_run(auto.info.run_id).data.metrics)
try:
    mlflow.set_experiment("another")
    raise SystemExit("another experiment was set")
except mlflow.MlflowException as error:
    facts["other_experiment"] = str(error)
with open("facts.json", "w") as file:
    json.dump(facts, file)
