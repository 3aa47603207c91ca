"""Where public data comes from: address, sha256, and the names under which a local folder may hold it."""

import contextlib
import dataclasses
import fcntl
import gzip
import hashlib
import http.client
import os
import pathlib
import shutil
import urllib.request
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator

from selssm_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Origin:
    """One file: its address (empty: it has no stable one), accepted local names, and the sha256 of its content.

    The sha256 is of the content, unpacked where a local copy is gzipped but the origin is not; empty where none is
    lasting.
    """

    url: str
    names: tuple[str, ...]
    sha256: str
    packed: bool = False  # the origin itself is gzipped, and stays so
    # raises InputError for a content that is damaged, where no sha256 tells
    check: Callable[[bytes], object] | None = None


SHAKESPEARE = Origin(
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    ("tinyshakespeare.txt", "input.txt"),
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)
_WIKITEXT = "https://raw.githubusercontent.com/pytorch/examples/main/word_language_model/data/wikitext-2/"
WIKITEXT2 = {
    split: Origin(
        _WIKITEXT + f"{name}.txt",
        (f"wikitext2_{name}.txt.gz", f"wikitext2_{name}.txt", f"wikitext-2/{name}.txt"),
        sha256,
    )
    for split, name, sha256 in (
        ("train", "train", "9e9fa1ad55b1c2c95b08e37dd8e653f638fac2c6de904b79e813611eefbc985f"),
        ("validation", "valid", "f0737ed31fc1329026e95cb8b98e19c2a182c39c240ab909dc31abf2f8af58e8"),
        ("test", "test", "d790b833ef8cf03a90db7bf1271b7520b83c45ce07ba3c1a9699df81e239eca0"),
    )
}
_ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/main/ETT-small/"
ETTH1 = Origin(
    _ETT + "ETTh1.csv", ("etth1.csv", "ETTh1.csv"), "f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066"
)
ETTM1 = Origin(
    _ETT + "ETTm1.csv", ("ettm1.csv", "ETTm1.csv"), "6ce1759b1a18e3328421d5d75fadcb316c449fcd7cec32820c8dafda71986c9e"
)
WEATHER = Origin(
    "", ("weather.csv.gz", "weather.csv"), "34ee981d07313e51da2a50bb600072c8ae4a69cb4b0651f4cb93a069d7a2ba63"
)
# A branch's archive has no lasting hash: the builder checks that every recording is there.
SPOKEN_DIGITS = Origin(
    "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/heads/master.zip",
    ("free-spoken-digit-dataset-master.zip",),
    "",
)
PACKED_DIGITS = Origin("", ("fsdd.npz",), "a3ed95e96328c5572629343e9251392290937e24fa9f5fc2236bee2df9cd31d0")
_MNIST = "https://storage.googleapis.com/cvdf-datasets/mnist/"
MNIST = {
    name: Origin(_MNIST + f"{name}.gz", (f"{name}.gz", f"mnist/{name}.gz"), sha256, packed=True)
    for name, sha256 in {
        "train-images-idx3-ubyte": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "train-labels-idx1-ubyte": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "t10k-images-idx3-ubyte": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "t10k-labels-idx1-ubyte": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    }.items()
}


DOWNLOADS = "downloads"  # the folder of the cache that holds them
UNFINISHED = ".*." + 32 * "[0-9a-f]"  # names of files that are being written there


def cache_root(cache_dir: str) -> pathlib.Path:
    """Returns the folder of prepared data: data.cache_dir, else $SELSSM_DATA_DIR, else ~/.cache/selssm_jax."""
    return pathlib.Path(cache_dir or os.environ.get("SELSSM_DATA_DIR") or "~/.cache/selssm_jax").expanduser().absolute()


def find(origin: Origin, local_dir: str) -> pathlib.Path | None:
    """Returns the file of a local folder under one of its accepted names, None where there is none."""
    paths = [pathlib.Path(local_dir).expanduser() / name for name in origin.names]
    return next((path for path in paths if path.is_file()), None)


def content(origin: Origin, local_dir: str, cache_dir: str) -> bytes:
    """Returns a file's content, from the local folder if one is given, else from its address through the cache.

    Raises:
      InputError: where the file is missing, cannot be read or fetched, or is not the published one.
    """
    if local_dir:
        path = find(origin, local_dir)
        if path is None:
            raise InputError(missing(local_dir, origin))
        return _check(_read(path, origin), origin, str(path))
    if not origin.url:
        raise InputError(
            f"{origin.names[0]} has no stable public address: set data.local_dir to a folder that holds it"
        )
    return _download(origin, cache_root(cache_dir) / DOWNLOADS)


def missing(local_dir: str, *origins: Origin) -> str:
    """Returns the message that a local folder holds none of some files."""
    names = " or ".join(name for origin in origins for name in origin.names)
    exists = "" if pathlib.Path(local_dir).expanduser().is_dir() else " (there is no such folder)"
    url = next((origin.url for origin in origins if origin.url), "")
    return f"data.local_dir={local_dir!r} holds no {names}{exists}: put it there" + (
        f", or leave data.local_dir empty to download {url}" if url else ""
    )


def _read(path: pathlib.Path, origin: Origin) -> bytes:
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" and not origin.packed else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read ({error}): fetch it again, or mend its permissions") from error


def _check(content: bytes, origin: Origin, where: str) -> bytes:
    digest = hashlib.sha256(content).hexdigest()
    if origin.sha256 and digest != origin.sha256:
        raise InputError(
            f"{where} is not the published file: sha256 of its content is {digest[:12]}..., expected "
            f"{origin.sha256[:12]}...; fetch it again"
            + (f" from {origin.url}" if origin.url else "")
            + ', or use data.source "csv", "text" or "npz" for data of your own'
        )
    if origin.check:
        try:
            origin.check(content)
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return content


def _download(origin: Origin, folder: pathlib.Path) -> bytes:
    """A file's content from the folder of downloads; what is not there, or not whole, is fetched, and put there once it
    is found whole.
    """
    path = folder / f"{hashlib.sha256(origin.url.encode()).hexdigest()[:12]}-{origin.url.rsplit('/', 1)[-1]}"
    damage = ""
    if path.is_file():
        try:
            return _check(_read(path, dataclasses.replace(origin, packed=True)), origin, str(path))
        except InputError as error:
            damage = f"{error}; and "
    try:
        with urllib.request.urlopen(origin.url, timeout=60) as answer:
            content = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise InputError(
            f"{damage}{origin.url} could not be fetched ({getattr(error, 'reason', None) or error}): check the "
            f"network, or set data.local_dir to a folder that holds {origin.names[0]}"
        ) from error
    write(path, _check(content, origin, origin.url))
    return content


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file of the cache whole or not at all; of a process that is killed an `UNFINISHED` one is left. Raises
    InputError where the folder is full.
    """
    fresh = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh.touch()
        with hold(fresh):
            fresh.write_bytes(content)
            fresh.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            fresh.unlink(missing_ok=True)
        raise InputError(unwritable(path.parent, error)) from error


def clear(leavings: Iterable[pathlib.Path]) -> None:
    """Removes files and folders that no process holds: whoever made them was killed."""
    for path in leavings:
        with hold(path) as is_free, contextlib.suppress(OSError):
            if is_free:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def hold(path: pathlib.Path) -> Iterator[bool]:
    """Holds a file or folder for this process, and says whether no other does; the hold ends with the process, however
    it ends.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:  # gone by now
        yield False
        return
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        is_free = False
    else:
        is_free = True
    try:
        yield is_free
    finally:
        os.close(handle)


def unwritable(folder: pathlib.Path, error: Exception) -> str:
    """Returns the message that a folder cannot hold prepared data."""
    return (
        f"{folder} cannot hold prepared data ({error}): set data.cache_dir to a folder with space that can be written"
    )
