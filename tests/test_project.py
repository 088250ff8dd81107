"""MLflow projects: any of them, from anywhere, with every value arriving as given."""

import json
import shlex
import subprocess

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from gce_backend.environment import read_environment
from gce_backend.errors import ConfigError, ProjectError
from gce_backend.project import entry_point, open_source
from gce_backend.urls import without_credentials

NASTY = [
    "a b",
    "it's",
    'say "hi"',
    "$HOME and `id`",
    "two\nlines",
    "back\\slash",
    "end\\",
    "q\\'x",
    "a,b",
    "",
    " lead",
    "k=v",
    "{brace}",
    "ünï",
    "-dash",
    "*",
    "a'b\\",
]
MLPROJECT = """
name: example
entry_points:
  main:
    parameters:
      epochs: {type: float, default: 5}
      overrides: {type: string, default: ""}
    command: "python train.py trainer.epochs={epochs} --overrides {overrides}"
  show:
    parameters: {text: {type: string, default: x}}
    command: "python show.py {text}"
  file:
    parameters: {data: path}
    command: "cat {data}"
  braces:
    command: "echo ${HOME}"
"""


@pytest.fixture
def project(tmp_path):
    directory = tmp_path / "project"
    directory.mkdir()
    (directory / "MLproject").write_text(MLPROJECT)
    (directory / "show.py").write_text("import json, sys; print(json.dumps(sys.argv[1:]))\n")
    (directory / "run me.sh").write_text("echo shell\n")
    (directory / "data").mkdir()
    (directory / "data" / "x.csv").write_text("1,2\n")
    return directory


def git(directory, *arguments):
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    command = ["git", "-C", str(directory), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(project):
    git(project, "init", "-q", "-b", "main")
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "one")
    git(project, "checkout", "-q", "-b", "feature")
    (project / "only-on-feature").write_text("x")
    git(project, "add", "-A")
    git(project, "commit", "-q", "-m", "two")
    git(project, "checkout", "-q", "main")
    return project


def words_on_the_instance(source, name, parameters):
    """What the entry point's program gets as its arguments, through a real bash."""
    command = entry_point(source, name, parameters).command.replace("train.py", "show.py")
    done = subprocess.run(
        ["bash", "-c", command], cwd=source.directory, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("value", NASTY)
def test_values_arrive_exactly_as_given(project, value):
    with open_source(str(project), None) as source:
        words = words_on_the_instance(source, "show", {"text": value, "extra": value})

    assert words == [value, "--extra", value]


@pytest.mark.parametrize("value", NASTY)
def test_undeclared_parameters_become_hydra_words_that_mean_the_value(project, value):
    with open_source(str(project), None) as source:
        words = words_on_the_instance(source, "main", {"some.key": value})

    assert words[:2] == ["trainer.epochs=5", "--overrides"]
    (word,) = shlex.split(words[2])
    override = OverridesParser.create().parse_override(word)
    assert (override.key_or_group, override.value()) == ("some.key", value)


@pytest.mark.parametrize(("value", "meant"), [("0.3", 0.3), ("true", True), ("[1,2]", [1, 2])])
def test_numbers_switches_and_lists_stay_what_they_are(project, value, meant):
    with open_source(str(project), None) as source:
        words = words_on_the_instance(source, "main", {"some.key": value})

    assert OverridesParser.create().parse_override(shlex.split(words[2])[0]).value() == meant


@pytest.mark.parametrize("text", ["name: [", "- a", "entry_points: 3", "just words"])
def test_an_mlproject_that_is_none_is_named(project, text):
    (project / "MLproject").write_text(text)
    told = pytest.raises(ProjectError, match="MLproject")
    with open_source(str(project), None) as source, told:
        entry_point(source, "main", {})


def test_a_parameter_without_a_name_is_refused(project):
    told = pytest.raises(ProjectError, match="'=3' of entry point 'main' has no name")
    with open_source(str(project), None) as source, told:
        entry_point(source, "main", {"": "3"})


def test_a_quotation_in_the_overrides_that_never_ends_is_named(project):
    told = pytest.raises(ProjectError, match=r"No closing quotation in .*--overrides 'note=\"a'")
    with open_source(str(project), None) as source, told:
        entry_point(source, "main", {"overrides": 'note="a'})


def test_overrides_and_undeclared_parameters_add_up(project):
    with open_source(str(project), None) as source:
        given = {"epochs": "3", "overrides": "data=digits 'note=a b'", "optimizer.lr": "0.3"}
        entry = entry_point(source, "main", given)

    assert entry.hydra_words == (
        "trainer.epochs=3",
        "data=digits",
        "note=a b",
        "optimizer.lr=0.3",
    )
    assert entry.parameters == given


def test_parameters_are_recorded_unquoted(project):
    with open_source(str(project), None) as source:
        entry = entry_point(source, "show", {"text": "it's a $test"})

    assert entry.parameters == {"text": "it's a $test"}


WRONG = [
    ("main", {"epochs": "ten"}, r"parameter 'epochs'.*declared float; 'ten' is not a number"),
    ("nope", {}, r"nope.*main"),
    ("nope.py", {}, r"has no script of that name"),
    ("file", {}, r"missing parameters: 'data'"),
    ("file", {"data": "no-such-file"}, r"no file or directory 'no-such-file'"),
    ("file", {"data": "/etc/hostname"}, r"outside the project"),
    ("file", {"data": "gs://b/x.csv"}, r"declare it as uri"),
    ("braces", {}, r"written twice"),
]


@pytest.mark.parametrize(("name", "parameters", "message"), WRONG)
def test_what_cannot_run_is_refused_with_its_reason(project, name, parameters, message):
    with open_source(str(project), None) as source, pytest.raises(ProjectError, match=message):
        entry_point(source, name, parameters)


@pytest.mark.parametrize("given", ["data/x.csv", "{project}/data/x.csv"])
def test_a_path_inside_the_project_is_relative_on_the_instance(project, given):
    with open_source(str(project), None) as source:
        entry = entry_point(source, "file", {"data": given.format(project=project)})

    assert entry.command == "cat data/x.csv"


def test_a_script_is_an_entry_point_and_runs_with_bash_whatever_the_users_shell(
    project, monkeypatch
):
    monkeypatch.setenv("SHELL", "/usr/bin/zsh")

    with open_source(str(project), None) as source:
        assert entry_point(source, "run me.sh", {}).command == "bash 'run me.sh'"


def test_a_version_leaves_the_users_working_tree_alone(repository):
    (repository / "MLproject").write_text(MLPROJECT + "# dirty\n")
    before = git(repository, "status", "--porcelain", "--branch")

    with open_source(str(repository), "feature") as source:
        assert (source.directory / "only-on-feature").exists()
        assert source.commit == git(repository, "rev-parse", "feature")
        assert source.branch == "feature"
        fetched = source.directory

    assert git(repository, "status", "--porcelain", "--branch") == before
    assert not (repository / "only-on-feature").exists()
    assert not fetched.exists()


def test_a_version_of_a_project_in_a_subdirectory(repository, tmp_path):
    inner = repository / "inner"
    inner.mkdir()
    (inner / "MLproject").write_text("name: inner\n")
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "three")

    with open_source(str(inner), "main") as source:
        assert [path.name for path in source.directory.iterdir()] == ["MLproject"]
    with open_source(f"{repository}#inner", "main") as source:
        assert (source.directory / "MLproject").read_text() == "name: inner\n"


def test_an_unknown_version_is_refused(repository):
    with (
        pytest.raises(ProjectError, match=r"version 'nope'.*git fetch"),
        open_source(str(repository), "nope"),
    ):
        pass


def test_a_git_uri_with_a_version_is_fetched_and_removed(repository):
    with open_source(f"file://{repository}/.git", "feature") as source:
        assert (source.directory / "only-on-feature").exists()
        assert source.commit == git(repository, "rev-parse", "feature")
        fetched = source.directory

    assert not fetched.exists()


def test_uncommitted_changes_are_noticed(repository):
    with open_source(str(repository), None) as source:
        assert not source.dirty
    (repository / "show.py").write_text("changed\n")
    with open_source(str(repository), None) as source:
        assert source.dirty


def test_a_token_in_a_git_uri_is_shown_nowhere():
    uri = "https://user:s3cret@127.0.0.1:1/group/project.git"

    assert without_credentials(uri) == "https://127.0.0.1:1/group/project.git"
    with pytest.raises(ProjectError) as caught, open_source(uri, None):
        pass
    assert "s3cret" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ProjectError, match="nowhere"), open_source(str(tmp_path / "nowhere"), None):
        pass


def test_requirements_files_are_read_in(project):
    (project / "MLproject").write_text(MLPROJECT + "python_env: python_env.yaml\n")
    (project / "python_env.yaml").write_text(
        'python: "3.11"\ndependencies:\n  - numpy>=1  # a comment\n  - -r requirements.txt\n'
    )
    (project / "requirements.txt").write_text("# pinned\nscipy==1.2\n\n-r data/more.txt\n")
    (project / "data" / "more.txt").write_text("pandas\n")

    found = read_environment(project, None)

    assert found.requirements == ["numpy>=1", "scipy==1.2", "pandas"]
    assert (found.manager, found.python, found.may_need_uv) == ("uv", "3.11", True)


def test_a_project_that_names_no_environment_gets_mlflow(project):
    (requirement,) = read_environment(project, None).requirements

    assert requirement.startswith("mlflow==")


def test_conda_files_give_their_pip_requirements(project):
    (project / "MLproject").write_text(MLPROJECT + "conda_env: conda.yaml\n")
    (project / "conda.yaml").write_text(
        "dependencies: [python=3.11, pip, {pip: [numpy, scikit-learn>=1]}]\n"
    )

    assert read_environment(project, "virtualenv").requirements == ["numpy", "scikit-learn>=1"]


def test_the_images_own_python_builds_nothing(project):
    assert not read_environment(project, "local").may_need_uv


def test_an_unknown_environment_manager_is_refused(project):
    with pytest.raises(ConfigError, match=r"--env-manager conda.*uv \(default\) and local"):
        read_environment(project, "conda")


def test_a_container_project_is_refused(project):
    (project / "MLproject").write_text(MLPROJECT + "docker_env: {image: python}\n")

    with open_source(str(project), None) as source, pytest.raises(ProjectError, match="container"):
        entry_point(source, "main", {})
