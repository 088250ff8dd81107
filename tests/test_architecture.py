"""Which part may import which: the rules of ARCHITECTURE.md, read from the sources."""

import ast
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parent.parent
PACKAGE = CHECKOUT / "gce_backend"

#: From the top down: a module may import from its own layer's right side and from layers below.
LAYERS = [
    {"cli"},
    {"commands"},
    {"sweep.attach", "sweep.launch"},
    {"sweep.sweep", "sweep.checks"},
    {"sweep.jobs", "sweep.payload"},
    {"sweep.schedule", "sweep.store"},
    {"sweep.work"},
    {"sweep.capacity", "sweep.errors", "sweep.results"},
    {"backend", "catch_up"},
    {"runner", "glance", "overview", "run_finder", "doctor"},
    {"reaper", "attempts", "checkups", "ending", "summary", "probe_findings"},
    {"probe"},
    {"follow", "handover", "submit"},
    {"livelog", "ssh_access"},
    {"cancelling", "instance_watch"},
    {"livesync", "shipment", "request", "facts", "backlog"},
    {"claims"},
    {"submission", "sync", "blueprint", "results", "run_in_bucket"},
    {"refusals"},
    {
        "tracking",
        "compute",
        "instance",
        "replay",
        "relocation",
        "fleet",
        "price_catalog",
        "proof",
        "download",
        "quota",
        "preparation",
        "forwarding",
        "place",
        "lease",
        "history",
        "budget",
    },
    {"rescue", "ssh_shell"},
    {"ssh", "ssh_route"},
    {"storage", "bundle", "project", "environment", "config", "provisional", "rest"},
    {
        "compose",
        "compute_errors",
        "storage_errors",
        "project_files",
        "run_store",
        "batch",
        "working_tree",
    },
    {"ssh_state", "ssh_frames", "iap"},
    {"interrupts", "console", "credentials"},
    {
        "errors",
        "finding",
        "last_look",
        "lifecycle",
        "polling",
        "presence",
        "prices",
        "probe_script",
        "urls",
    },
]
#: Of the agent, what the client knows: names, and what both must do alike. Pure, all of them.
SHARED = {"entries", "paths", "records", "refusals", "entities", "usage"}
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}


def imports_of(file):
    """(module, names) for every import statement, those inside functions too.

    Not those for type checkers alone: they run nowhere.
    """
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, ()) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), tuple(a.name for a in node.names)


def ours(file):
    """The modules of this package that a file imports, without the package's name."""
    for module, names in imports_of(file):
        if module == "gce_backend":
            yield from names
        elif module.startswith("gce_backend."):
            yield module.removeprefix("gce_backend.")


CLIENT = sorted(path for path in PACKAGE.glob("*.py") if path.stem != "__init__")
COMMANDS = sorted(PACKAGE.glob("commands/*.py"))
SWEEP = sorted(path for path in PACKAGE.glob("sweep/*.py") if path.stem != "__init__")


def layered(file):
    """A client module's name in LAYERS."""
    if file in COMMANDS:
        return "commands"
    return f"sweep.{file.stem}" if file in SWEEP else file.stem


@pytest.mark.parametrize("file", [*CLIENT, *COMMANDS, *SWEEP], ids=layered)
def test_imports_go_downwards_only(file):
    here = layered(file)
    for module in ours(file):
        top = module.partition(".")[0]
        if top == "agent":
            assert module.removeprefix("agent.") in SHARED, f"{module} is the agent's own"
        elif top == "commands":
            assert here == "commands", "only the table in cli.py knows the commands"
        else:
            assert top != "emulator", "only the table in cli.py knows the emulator"
            there = module if top == "sweep" else top
            assert LAYER[here] < LAYER[there], f"{here} imports {there}"


@pytest.mark.parametrize(
    "file", sorted((PACKAGE / "agent").rglob("*.py")), ids=lambda path: path.stem
)
def test_the_agent_imports_the_standard_library_alone(file):
    for module, _ in imports_of(file):
        assert module.startswith(".") or module.partition(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("sweep/job/*.py")), ids=lambda path: path.stem)
def test_a_sweeps_job_imports_the_standard_library_and_hydra_alone(file):
    known = sys.stdlib_module_names | {"hydra", "omegaconf"}
    for module, _ in imports_of(file):
        assert module.startswith(".") or module.partition(".")[0] in known


@pytest.mark.parametrize("name", sorted(SHARED))
def test_what_client_and_agent_share_leans_on_nothing_of_either(name):
    for module, _ in imports_of(PACKAGE / "agent" / f"{name}.py"):
        assert not module.startswith(".") or module.removeprefix(".") in SHARED


@pytest.mark.parametrize(
    "file", sorted((PACKAGE / "emulator").rglob("*.py")), ids=lambda path: path.stem
)
def test_the_emulator_imports_nothing_else_of_ours(file):
    assert [m for m in ours(file) if m.partition(".")[0] != "emulator"] == []


@pytest.mark.parametrize("name", ["train.py", "settings.py", "mnist.py", "report.py"])
def test_the_trainer_knows_nothing_of_this_package(name):
    assert list(ours(CHECKOUT / name)) == []


@pytest.mark.parametrize("file", [PACKAGE / "cli.py", *COMMANDS], ids=lambda path: path.stem)
def test_commands_import_nothing_heavy_at_the_top(file):
    """`mlflow-gce --help` must be quick: no cloud library, no MLflow, no Hydra at import."""
    heavy = {"google", "mlflow", "hydra", "torch", "paramiko", "aiohttp", "asyncssh", "rich"}
    tree = ast.parse(file.read_text(encoding="utf-8"))
    top = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name) or ""
        for node in tree.body
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }

    assert {name.partition(".")[0] for name in top} & heavy == set()
