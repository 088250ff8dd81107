"""Where the images come from, and that nothing unverified is learned from."""

import gzip
import hashlib
import io
import pickle
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))
import mnist

PATHS = list(mnist.IDX_FILES["mnist"])


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> mnist.Files:
    """Three training and two test images, which the table of MD5s now holds for MNIST."""
    images = torch.arange(5 * 784).remainder(251).byte().view(5, 28, 28).numpy()
    labels = torch.arange(5).byte().numpy()
    arrays = (images[:3], labels[:3], images[3:], labels[3:])
    files = {path: mnist.to_idx(array) for path, array in zip(PATHS, arrays, strict=True)}
    digests = {path: hashlib.md5(content).hexdigest() for path, content in files.items()}
    monkeypatch.setitem(mnist.IDX_FILES, "mnist", digests)
    return files


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """No mirror and no package answers; the list says which were asked."""
    asked: list[str] = []

    def refuse(where: str) -> None:
        def fetch(_: str) -> mnist.Files:
            asked.append(where)
            raise ConnectionError(f"no {where}")

        monkeypatch.setattr(mnist, where, fetch)

    refuse("from_mirrors")
    refuse("from_package")
    return asked


def test_files_in_the_root_are_read_as_they_are(
    tiny: mnist.Files, sources: list[str], tmp_path: Path
) -> None:
    mnist.keep(tiny, tmp_path, None)
    x, y, test_x, test_y = mnist.load("mnist", str(tmp_path))
    assert (x.shape, test_x.shape) == ((3, 1, 28, 28), (2, 1, 28, 28))
    assert (y.tolist(), test_y.tolist()) == ([0, 1, 2], [3, 4])
    assert sources == []


def test_a_place_that_takes_no_files_costs_no_run(
    tiny: mnist.Files,
    sources: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mnist, "from_package", lambda name: tiny)
    (tmp_path / "file").touch()

    x, *_ = mnist.load("mnist", str(tmp_path / "file" / "data"))

    assert len(x) == 3
    assert "keeps no copy: " in capsys.readouterr().out


def test_a_damaged_file_is_fetched_again(
    tiny: mnist.Files, sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist.keep(tiny, tmp_path, None)
    (tmp_path / PATHS[0]).write_bytes(tiny[PATHS[0]][:-1] + b"\xff")
    packed = {path: gzip.compress(content) for path, content in tiny.items()}
    monkeypatch.setattr(mnist, "from_mirrors", lambda name: packed)
    mnist.load("mnist", str(tmp_path))
    assert (tmp_path / PATHS[0]).read_bytes() == tiny[PATHS[0]]


def test_what_a_source_damages_is_not_used(
    tiny: mnist.Files,
    sources: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(mnist, "from_mirrors", lambda name: {path: b"no" for path in PATHS})
    with pytest.raises(RuntimeError, match="no source has the files"):
        mnist.load("mnist", str(tmp_path))
    assert sources == ["from_package"]
    assert "is damaged: MD5" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_package_is_asked_last_and_each_miss_is_one_line(
    tiny: mnist.Files, sources: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError):
        mnist.load("mnist", str(tmp_path))
    assert sources == ["from_mirrors", "from_package"]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_digits_are_28_by_28_and_need_no_network(sources: list[str]) -> None:
    x, y, test_x, test_y = mnist.load("digits", "nowhere")
    assert (len(x), len(test_x)) == (1437, 360)
    assert x.shape[1:] == (1, 28, 28)
    assert (int(x.max()), sorted(set(y.tolist()))) == (255, list(range(10)))
    assert len(y) == len(x) and len(test_y) == len(test_x)


def test_a_pickle_that_would_run_something_is_refused() -> None:
    with pytest.raises(pickle.UnpicklingError, match=r"holds a posix\.system|nt\.system"):
        mnist.ArraysOnly(io.BytesIO(b"cposix\nsystem\n(S'true'\ntR.")).load()
