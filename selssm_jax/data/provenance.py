"""Whose paths a run's folder holds: those of this user on this machine are followed, a stranger's are not.

A run remembers where its data lies. Whoever passes a run on could name any file there, and a report would show it. So
what a run says of places is sealed with a secret of the user (HMAC-SHA256) when the user's own command writes it, and
is read again under an intact seal alone.
"""

import contextlib
import dataclasses
import functools
import hashlib
import hmac
import json
import os
import pathlib
import secrets
import tempfile
from typing import Any

from selssm_jax.config import Data
from selssm_jax.data.builders.origins import cache_root

PLACES = ("file", "local_dir", "cache_dir")  # keys of `Data` that are paths


def seal(config: Data) -> str:
    """Returns the seal of the places that a configuration names."""
    said = json.dumps([config.source, *(getattr(config, key) for key in PLACES)])
    return hmac.new(_secret(cache_root("")), said.encode(), hashlib.sha256).hexdigest()


def intact(config: Data, seal_of_folder: Any) -> bool:
    """Whether `found` is this user's seal of the places that a configuration names."""
    return isinstance(seal_of_folder, str) and hmac.compare_digest(seal_of_folder, seal(config))


def without_places(config: Data) -> Data:
    """Returns a configuration that names no folder; a file that is data itself stays, for the caller to replace or
    refuse.
    """
    return dataclasses.replace(config, local_dir="", cache_dir="")


@functools.cache
def _secret(folder: pathlib.Path) -> bytes:
    """The user's secret, made where there is none; where it cannot be kept, it is one of this process."""
    path, fresh = folder / "secret", secrets.token_bytes(32)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        place, name = tempfile.mkstemp(dir=folder)  # readable by its owner alone
        with open(place, "wb") as file:
            file.write(fresh)
        with contextlib.suppress(FileExistsError):
            os.link(name, path)
        os.unlink(name)
    with contextlib.suppress(OSError):
        return path.read_bytes() or fresh
    return fresh
