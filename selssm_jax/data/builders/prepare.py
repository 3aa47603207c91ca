"""Preparing a builder's records once, whole or not at all, and reading them back in order."""

import contextlib
import hashlib
import io
import logging
import pathlib
import shutil
import uuid
import warnings
from collections.abc import Iterator
from typing import Any

from selssm_jax.data.builders import origins
from selssm_jax.data.builders.public import Public
from selssm_jax.errors import InputError


def read(
    builder: type[Public], local_dir: str, cache_dir: str
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """Returns the records of every split in order, prepared first where they are not yet, and the sha256 of their
    files.

    Raises:
      InputError: where a file is missing, damaged or cannot be fetched, or the cache cannot be written or read.
    """
    hashes = builder.hashes(local_dir, cache_dir)
    root = (
        origins.cache_root(cache_dir) / "prepared" / hashlib.sha256("".join(hashes.values()).encode()).hexdigest()[:16]
    )
    folder = root / builder.name / str(builder.VERSION)
    if not folder.is_dir():
        _prepare(builder, local_dir, cache_dir, folder)
    try:
        with _quiet():
            data = builder(data_dir=str(root)).as_data_source()
            return {
                split: sorted(records.__getitems__(range(len(records))), key=lambda record: record["place"])
                for split, records in data.items()
            }, hashes
    except Exception as error:  # whatever a damaged record makes the readers raise
        raise InputError(
            f"the prepared data in {folder} cannot be read ({error}): delete that folder, and it is prepared anew"
        ) from error


def _prepare(builder: type[Public], local_dir: str, cache_dir: str, folder: pathlib.Path) -> None:
    """Prepares in a folder aside and moves it into place: a killed or a second preparation leaves no half data set."""
    root = origins.cache_root(cache_dir)
    aside = root / f".{builder.name}.{uuid.uuid4().hex}"
    origins.clear([*root.glob(f".{builder.name}.*"), *(root / origins.DOWNLOADS).glob(origins.UNFINISHED)])
    try:
        aside.mkdir(parents=True)
        with origins.hold(aside), _quiet():
            builder(local_dir=local_dir, cache_dir=cache_dir, data_dir=str(aside)).download_and_prepare()
        folder.parent.mkdir(parents=True, exist_ok=True)
        (aside / builder.name / str(builder.VERSION)).rename(folder)
    except (OSError, RuntimeError) as error:  # the writers raise the second on a full disk
        if not folder.is_dir():  # else another process was faster
            raise InputError(origins.unwritable(folder.parent, error)) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TFDS from telling how it works."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
