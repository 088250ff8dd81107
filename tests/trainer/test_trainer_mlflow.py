"""The same train.py through `mlflow run`, on this machine, and on the real MNIST."""

import shlex

import mlflow
import pytest
import torch
from sandbox import Sandbox
from trainer_copy import CHECKOUT

pytestmark = [
    pytest.mark.flow,
    pytest.mark.timeout(600),
    pytest.mark.rotating(one_in=5),  # a process that trains takes half a minute and more
    pytest.mark.xdist_group("mnist"),  # one training for all of them
]


def run_project(sandbox: Sandbox, *parameters: str, code: int = 0) -> str:
    words = [word for parameter in parameters for word in ("-P", parameter)]
    done = sandbox.start("mlflow", "run", ".", "--env-manager", "local", *words, code=code)
    assert "Warning" not in done.stderr and "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_a_project_run_trains_under_the_id_mlflow_gave_it(sandbox: Sandbox) -> None:
    run_project(sandbox, "epochs=2.0", "overrides=data=digits model=mlp optimizer.lr=0.1")
    (run,) = sandbox.runs()
    assert (run.info.status, run.data.params["optimizer.lr"]) == ("FINISHED", "0.1")
    assert run.data.params["trainer.epochs"] == "2"


def test_overrides_may_hold_spaces_and_braces(sandbox: Sandbox) -> None:
    words = ["data=digits", "model=mlp", "data.root='a b {c} $d'"]
    run_project(sandbox, "epochs=1", f"overrides={shlex.join(words)}")
    assert sandbox.runs()[0].data.params["data.root"] == "a b {c} $d"


def test_epochs_that_are_no_number_are_one_readable_line(sandbox: Sandbox) -> None:
    output = run_project(sandbox, "epochs=ten", code=1)
    assert "train.py: trainer.epochs: Value 'ten'" in output


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """The default training, five epochs of MNIST, as a project without a parameter."""
    sandbox = Sandbox.make(tmp_path_factory.mktemp("mnist"))
    if (CHECKOUT / "data/MNIST").is_dir():  # a checkout that trained once has the files
        (sandbox.root / "data").symlink_to(CHECKOUT / "data")
    run_project(sandbox)
    return sandbox


def test_the_default_training_is_99_percent_right(trained: Sandbox) -> None:
    (run,) = trained.runs()
    history = trained.client.get_metric_history(run.info.run_id, "test_accuracy")
    accuracy = [point.value for point in history]
    assert len(accuracy) == 5
    assert max(accuracy[:2]) >= 99.0 and accuracy[-1] >= 99.2, accuracy


def test_the_logged_model_scores_as_the_last_epoch_did(
    trained: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(trained.root)
    monkeypatch.syspath_prepend(CHECKOUT)
    import mnist

    mlflow.set_tracking_uri(f"sqlite:///{trained.root}/mlflow.db")
    (run,) = trained.runs()
    model = mlflow.pytorch.load_model(f"runs:/{run.info.run_id}/model")
    _, _, x, y = mnist.load("mnist", "data")
    with torch.inference_mode():
        correct = int((model(x.float() / 255).argmax(1) == y).sum())
    assert 100 * correct / len(y) == run.data.metrics["test_accuracy"]
