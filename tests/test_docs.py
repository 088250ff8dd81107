"""The documents say what is true: presets, commands, files and links."""

import re
from pathlib import Path

import pytest

from gce_backend.cli import COMMANDS
from gce_backend.compose import defaults_dir
from gce_backend.lifecycle import Phase

CHECKOUT = Path(__file__).parent.parent
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
ARCHITECTURE = (CHECKOUT / "ARCHITECTURE.md").read_text(encoding="utf-8")
DOCUMENTS = [CHECKOUT / "README.md", CHECKOUT / "ARCHITECTURE.md", *CHECKOUT.glob("docs/*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document):
    text = document.read_text(encoding="utf-8")
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (document.parent / target).exists(), target


def test_the_readme_names_exactly_the_presets_there_are():
    (paragraph,) = re.findall(r"^Presets: (.*?)\n\n", README, flags=re.MULTILINE | re.DOTALL)

    named = set(re.findall(r"`([^`]+)`", paragraph))

    assert named == {path.stem for path in (defaults_dir() / "machine").glob("*.yaml")}


@pytest.mark.parametrize("text", [README, ARCHITECTURE], ids=["README", "ARCHITECTURE"])
def test_commands_of_ours_that_are_named_exist(text):
    for command in re.findall(r"mlflow-gce ([a-z]+)", text):
        assert command in COMMANDS, command


def test_make_targets_that_the_readme_names_exist():
    targets = set(re.findall(r"^([a-z]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"`?make ([a-z]+)", README)) <= targets


def test_the_architecture_names_every_module_and_no_other():
    named = set(re.findall(r"`([a-z_]+)\.py`", ARCHITECTURE))
    there = {path.stem for path in (CHECKOUT / "gce_backend").glob("*.py")} - {"__init__"}

    assert there <= named
    for path in (CHECKOUT / "gce_backend").glob("sweep/[a-z]*.py"):
        assert f"`sweep/{path.name}`" in ARCHITECTURE
    assert named - there <= {"train", "paths", "test_architecture", "mnist"}


def test_the_lifecycles_diagram_names_every_phase():
    from gce_backend import lifecycle

    for phase in Phase:
        assert phase.name in (lifecycle.__doc__ or "")


def test_settings_that_the_readme_sets_exist():
    gce = (defaults_dir() / "gce" / "default.yaml").read_text()
    machine = (defaults_dir() / "machine" / "n1-standard-2.yaml").read_text()
    for group, text in (("gce", gce), ("machine", machine)):
        for key in re.findall(rf"-P {group}\.([a-z_]+)=", README):
            assert re.search(rf"^{key}:", text, re.MULTILINE), key
