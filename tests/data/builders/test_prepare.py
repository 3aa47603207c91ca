"""A preparation that is killed leaves no half data set; builders are TFDS's own kind, and asked for only where they are
needed.
"""

import hashlib
import os
import signal
import subprocess
import sys
from typing import ClassVar

import pytest

from selssm_jax.data.builders import origins, prepare, public

# Long enough for several records, which TFDS orders by hashed keys.
TEXT = b"".join(b"line %d of a long text\n" % number for number in range(40_000))


class Lines(public.TinyShakespeare):
    """A text of a test's own."""

    ORIGINS: ClassVar = {"text": origins.Origin("", ("lines.txt",), hashlib.sha256(TEXT).hexdigest())}


@pytest.fixture
def local(tmp_path):
    """A folder that holds the text."""
    (tmp_path / "local").mkdir()
    (tmp_path / "local" / "lines.txt").write_bytes(TEXT)
    return str(tmp_path / "local")


def joined(records):
    return b"".join(record["piece"].tobytes() for split in ("train", "validation", "test") for record in records[split])


def test_preparation_that_is_killed_leaves_no_half_data_set(local, tmp_path, repository):
    cache = str(tmp_path / "cache")
    script = (
        f"import os, signal, sys; sys.path[:0] = [{str(repository)!r}, {os.path.dirname(__file__)!r}]; from "
        "test_prepare import Lines, prepare\n"
        "prepare.pathlib.Path.rename = lambda folder, name: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"prepare.read(Lines, {local!r}, {cache!r})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    aside = [name for name in os.listdir(cache) if name.startswith(".lines.")]
    assert len(aside) == 1 and list((tmp_path / "cache" / aside[0]).rglob("*.array_record*"))
    assert joined(prepare.read(Lines, local, cache)[0]) == TEXT


def test_without_a_local_folder_what_is_prepared_suffices(local, tmp_path):
    prepare.read(Lines, local, str(tmp_path))
    os.remove(f"{local}/lines.txt")
    records, hashes = prepare.read(Lines, "", str(tmp_path))
    assert joined(records) == TEXT
    assert hashes == {"text": hashlib.sha256(TEXT).hexdigest()}


def test_builder_serves_tfds_without_tensorflow(local, tmp_path):
    builder = Lines(local_dir=local, data_dir=str(tmp_path / "tfds"))
    builder.download_and_prepare()
    assert {split: info.num_examples for split, info in builder.info.splits.items()} == {
        "train": 14,
        "validation": 1,
        "test": 2,
    }
    assert len(builder.as_data_source(split="train[:50%]")) == 7
    assert "tensorflow" not in sys.modules


def test_names_of_tfds_stay_its_own():
    assert public.tfds.builder_cls("mnist").__module__.startswith("tensorflow_datasets.")


def test_embedded_data_needs_no_builder(repository):
    script = (
        f"import sys; sys.path.insert(0, {str(repository)!r}); from selssm_jax import config, data; "
        "data.load(config.Data());assert not {'tensorflow_datasets', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=120)
