"""Reads an exported model with JAX and NumPy alone. As a file of its own it is the `load.py` beside an export.

model = Exported("FOLDER")
outputs, state = model.call(inputs, model.initial_state(len(inputs)))    inputs (B, T, ...), as model.json has them
outputs, state = model.step(row, state)                                  one step more, (B, ...)
"""

import json
import pathlib
import struct

import jax
import numpy as np
from jax import export


class Exported:
    """A model's whole call, its step, and its empty memory."""

    def __init__(self, folder: str) -> None:
        place = pathlib.Path(folder)
        self.about = json.loads((place / "model.json").read_text())
        self._weights = read_safetensors(place / "weights.safetensors")
        self._empty = dict(np.load(place / "state.npz"))
        programs = (bytearray((place / name).read_bytes()) for name in ("call.bin", "step.bin"))
        self._call, self._step = (jax.jit(export.deserialize(program).call) for program in programs)

    def initial_state(self, batch: int) -> dict[str, np.ndarray]:
        """Returns the empty memory of `batch` sequences."""
        return {name: np.concatenate([value] * batch) for name, value in self._empty.items()}

    def call(self, inputs: np.ndarray, state: dict[str, np.ndarray]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (outputs, state) after all steps of the inputs."""
        return self._call(self._weights, inputs, state)

    def step(self, inputs: np.ndarray, state: dict[str, np.ndarray]) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns (outputs, state) after one step more."""
        return self._step(self._weights, inputs, state)


def read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a file: a length, a header in JSON, and bytes."""
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + size]), memoryview(content)[8 + size :]
    types = {"F64": "f8", "F32": "f4", "F16": "f2", "I64": "i8", "I32": "i4", "I8": "i1", "U8": "u1", "BOOL": "?"}
    return {
        name: np.frombuffer(body[slice(*entry["data_offsets"])], types[entry["dtype"]]).reshape(entry["shape"])
        for name, entry in header.items()
        if name != "__metadata__"
    }
