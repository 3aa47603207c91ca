"""Every origin is fixed by a hash or counted; the cache stands where it is asked to, and holds whole files only."""

import pathlib
import subprocess
import sys

import pytest

from selssm_jax.data.builders import origins
from selssm_jax.errors import InputError

ALL = [origins.SHAKESPEARE, *origins.WIKITEXT2.values(), origins.ETTH1, origins.ETTM1, origins.WEATHER]
ALL += [origins.SPOKEN_DIGITS, origins.PACKED_DIGITS, *origins.MNIST.values()]


@pytest.mark.parametrize("origin", ALL, ids=lambda origin: origin.names[0])
def test_every_origin_is_fixed(origin):
    assert origin.names
    assert origin.url == "" or origin.url.startswith("https://")
    if origin is not origins.SPOKEN_DIGITS:  # the archive of a branch: its recordings are counted
        assert len(origin.sha256) == 64 and int(origin.sha256, 16)


def test_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
    def full(path, found):
        with open(path, "wb") as file:
            file.write(found[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(
        InputError, match=r"downloads cannot hold prepared data \(.*No space left on device\): set data\.cache_dir"
    ):
        origins.write(tmp_path / "downloads" / "a.txt", b"to be, or not to be")
    assert list((tmp_path / "downloads").iterdir()) == []


def test_a_process_that_is_killed_while_it_writes_leaves_what_the_next_clears(tmp_path):
    """It holds the file as long as it lives."""
    writing = (
        "import os, pathlib, signal; pathlib.Path.replace = lambda *_: (print('here', flush=True), signal.pause())"
    )
    writing += (
        f"; from selssm_jax.data.builders import origins; origins.write(pathlib.Path({str(tmp_path / 'a.txt')!r}), "
        "b'to be')"
    )
    process = subprocess.Popen([sys.executable, "-c", writing], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "here\n"
    origins.clear(tmp_path.glob(origins.UNFINISHED))
    assert len(list(tmp_path.iterdir())) == 1
    process.kill()
    process.communicate()
    origins.clear(tmp_path.glob(origins.UNFINISHED))
    assert list(tmp_path.iterdir()) == []


def test_cache_is_the_configs_else_the_environments_else_at_home(monkeypatch):
    monkeypatch.setenv("SELSSM_DATA_DIR", "/data/cache")
    assert origins.cache_root("/other") == pathlib.Path("/other")
    assert origins.cache_root("") == pathlib.Path("/data/cache")
    monkeypatch.delenv("SELSSM_DATA_DIR")
    monkeypatch.setenv("HOME", "/someone")
    assert origins.cache_root("") == pathlib.Path("/someone/.cache/selssm_jax")
    assert origins.cache_root("here") == pathlib.Path.cwd() / "here"
