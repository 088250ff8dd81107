"""A trainer that uses the real MLflow client the way training code does; run on the instance."""

import json
import os

# A client that would rather upload in parts.
os.environ["MLFLOW_ENABLE_PROXY_MULTIPART_UPLOAD"] = "true"
os.environ["MLFLOW_MULTIPART_UPLOAD_MINIMUM_FILE_SIZE"] = str(5 * 1024**2)

import mlflow
import numpy as np

MAIN = os.environ["MLFLOW_RUN_ID"]
facts = {}


def refusal(call, *arguments, **named):
    """The message of the error that the call must raise."""
    try:
        call(*arguments, **named)
    except mlflow.MlflowException as error:
        return str(error)
    raise SystemExit(f"{call.__name__} was not refused")


mlflow.set_experiment("digits")
with mlflow.start_run() as run:
    assert run.info.run_id == MAIN
    mlflow.log_params({"epochs": 1, "note": "a b", "lr": 0.1})
    mlflow.log_param("batch_size", 32)
    facts["conflict"] = refusal(mlflow.log_params, {"lr": 0.2, "momentum": 0.9})
    for step in (1, 2, 3):
        mlflow.log_metric("loss", 1.0 / step, step=step)
        mlflow.log_metrics({"accuracy": step / 10, "odd": float("nan")}, step=step)
    mlflow.log_metric("late", 5.0, step=9, synchronous=False).wait()
    mlflow.config.enable_async_logging(True)
    for step in range(50):
        mlflow.log_metric("asynchronous", step, step=step)
    mlflow.flush_async_logging()
    mlflow.config.enable_async_logging(False)
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
    mlflow.log_table({"input": ["a", "b"], "output": [1, 2]}, "table.json")
    with open("large.bin", "wb") as file:
        file.truncate(6 * 1024**2)
    mlflow.log_artifact("large.bin")
    os.makedirs("folder/below", exist_ok=True)
    open("folder/below/b.txt", "w").close()
    mlflow.log_artifacts("folder", "folder")
    mlflow.log_text("x", "gone.txt")
    repository = mlflow.store.artifact.artifact_repository_registry.get_artifact_repository(
        run.info.artifact_uri
    )
    repository.delete_artifacts("gone.txt")
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

    from sklearn.linear_model import LogisticRegression

    linear = LogisticRegression().fit(np.arange(8.0).reshape(4, 2), [0, 0, 1, 1])
    kept = mlflow.sklearn.log_model(
        linear, name="linear", input_example=np.ones((1, 2)), pip_requirements=["scikit-learn"]
    )
    mlflow.set_logged_model_tags(kept.model_id, {"kind": "linear"})
    mlflow.log_metric("fit", 0.9, step=1, model_id=kept.model_id)
    facts["predicts"] = mlflow.sklearn.load_model(kept.model_uri).predict([[6, 7]]).tolist()
    found = mlflow.search_logged_models(
        ["7"], filter_string="tags.kind = 'linear'", output_format="list"
    )
    facts["found_models"] = [[one.name, {m.key: m.value for m in one.metrics}] for one in found]
    with mlflow.start_span("a trace goes nowhere and costs nothing"):
        pass

    read = client.get_run(MAIN)
    facts["params"] = read.data.params
    facts["metrics"] = {k: v for k, v in read.data.metrics.items() if v == v}
    facts["tags"] = {k: v for k, v in read.data.tags.items() if not k.startswith("mlflow.")}
    asynchronous = client.get_metric_history(MAIN, "asynchronous")
    facts["asynchronous"] = sorted([p.step, p.value] for p in asynchronous)
    facts["history"] = [[p.step, p.value] for p in client.get_metric_history(MAIN, "loss")]
    facts["datasets"] = [item.dataset.name for item in read.inputs.dataset_inputs]
    facts["outputs"] = [item.model_id for item in read.outputs.model_outputs]
    facts["artifacts"] = sorted(item.path for item in client.list_artifacts(MAIN))
    facts["deeper"] = [item.path for item in client.list_artifacts(MAIN, "deep/er")]
    facts["text"] = mlflow.artifacts.load_text(f"runs:/{MAIN}/text/a.txt")
    facts["artifact_uri"] = mlflow.get_artifact_uri()
    facts["table"] = mlflow.load_table("table.json", run_ids=[MAIN])["output"].tolist()
    facts["refusals"] = {
        "register_model": refusal(mlflow.register_model, logged.model_uri, "registered"),
        "get_run": refusal(client.get_run, "f" * 32),
        "delete_run": refusal(client.delete_run, MAIN),
        "get_logged_model": refusal(mlflow.get_logged_model, "m-" + "f" * 32),
        "rename_experiment": refusal(client.rename_experiment, "7", "another"),
        "search_runs": refusal(client.search_runs, ["7"], "params.lr > 1"),
        "search_other": refusal(client.search_runs, ["8"]),
        "load_model": refusal(mlflow.sklearn.load_model, "models:/registered/1"),
    }

mlflow.sklearn.autolog(log_datasets=False)
with mlflow.start_run(run_name="autologged", parent_run_id=MAIN, nested=True) as auto:
    LogisticRegression().fit(np.arange(8.0).reshape(4, 2), [0, 0, 1, 1])
facts["autolog"] = sorted(client.get_run(auto.info.run_id).data.metrics)
facts["refusals"]["set_experiment"] = refusal(mlflow.set_experiment, "another")
with open("facts.json", "w") as file:
    json.dump(facts, file)
