"""Event-coded traces: all states of a sequence, stored as the changes between steps (theory, section 9).

Where a gate is exactly 0 a component keeps its value to the last bit, and a trace need not store it again. It stores,
for every step, which components changed and their new values; decoding is exact. A soft gate changes everything and
saves nothing.
"""

import dataclasses
import pathlib

import jax
import numpy as np
from jaxtyping import Array, Bool, Inexact, Integer, UInt8

from selssm_jax.paths import check_regular

States = Inexact[Array | np.ndarray, "T N"]
FORMAT = 1  # of saved files


@dataclasses.dataclass(frozen=True)
class Trace:
    """States h_1 ... h_T of N components as events, built by `encode`.

    Attributes:
      start: h_0, (N,). steps: T.
      values: new values of all events, ordered by step and then by component.
      events: which these are: the packed bits of a mask (T, N), ceil(T N / 8) bytes, or the components in order, one
        index an event.
      counts: events of each step, (T,), where `events` are indices; empty where they are bits.
    """

    start: Inexact[np.ndarray, "N"]
    steps: int
    values: Inexact[np.ndarray, "K"]
    events: Integer[np.ndarray, "E"]
    counts: Integer[np.ndarray, "C"]

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is stored."""
        return self.start.nbytes + self.values.nbytes + self.events.nbytes + self.counts.nbytes

    @property
    def full_nbytes(self) -> int:
        """Bytes of the states themselves."""
        return self.steps * self.start.nbytes

    def find_changes(self) -> Bool[np.ndarray, "T N"]:
        """Returns which components changed at which step."""
        shape = self.steps, len(self.start)
        if not len(self.counts):
            return np.unpackbits(self.events.astype(np.uint8), count=shape[0] * shape[1]).astype(bool).reshape(shape)
        mask = np.zeros(shape, bool)
        mask[np.repeat(np.arange(self.steps), self.counts), self.events] = True
        return mask

    def decode(self) -> Inexact[np.ndarray, "T N"]:
        """Returns the states, equal to those encoded in every bit."""
        mask = self.find_changes()
        # 1 + the place of a component's event among all, 0 for none
        latest = np.cumsum(mask.ravel()).reshape(mask.shape) * mask
        latest = np.maximum.accumulate(latest, axis=0)
        known = np.concatenate([self.start, self.values])
        return known[np.where(latest > 0, latest + len(self.start) - 1, np.arange(len(self.start)))]

    def save(self, path: str | pathlib.Path) -> None:
        """Writes an .npz of plain arrays, which needs no pickle to be read."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        np.savez(path, format=FORMAT, **fields)


def load(path: str | pathlib.Path) -> Trace:
    """Reads what `Trace.save` wrote. Raises ValueError for another file, OSError for none."""
    check_regular(path)
    names = {field.name for field in dataclasses.fields(Trace)}
    with np.load(path, allow_pickle=False) as archive:
        if set(archive) != names | {"format"} or archive["format"] != FORMAT:
            raise ValueError(
                f"{path} holds {sorted(archive)}, expected a trace of format {FORMAT} as Trace.save writes it"
            )
        values = {name: archive[name] for name in names}
    return Trace(**values | {"steps": int(values["steps"])})


def encode(states: States, start: Inexact[Array | np.ndarray, "N"] | None = None) -> Trace:
    """Returns the trace of states h_1 ... h_T, (T, N), that began at h_0 = start, zero if None.

    Changes are of bits: -0.0 is not 0.0, and a NaN is kept as it is. Of the two ways of saying which components
    changed, a bit for each or an index for each event, the smaller is taken: at most 1/32 of float32 states on top of
    the values themselves, so that hard gates of effective dimension d cost d / N + 1/32 of the full trace, and h_0.

    Raises:
      ValueError: for states that are not (T, N) numbers, or a start that does not fit them.
    """
    states = np.ascontiguousarray(jax.device_get(states))
    if states.ndim != 2 or not states.size or states.dtype.kind not in "fc":
        raise ValueError(
            f"states have shape {states.shape} and dtype {states.dtype}, expected real or complex numbers (T, N), at "
            "least one"
        )
    start = np.zeros_like(states[0]) if start is None else np.asarray(start)
    if start.shape != states.shape[1:] or start.dtype != states.dtype:
        raise ValueError(
            f"start has shape {start.shape} and dtype {start.dtype}, expected {states.shape[1:]} and {states.dtype} "
            "from states"
        )
    bits = _bits(np.concatenate([start[None], states]))
    mask = (bits[1:] != bits[:-1]).any(axis=2)
    return Trace(start.copy(), len(states), states[mask], *_smaller(mask))


def _bits(states: Inexact[np.ndarray, "T N"]) -> UInt8[np.ndarray, "T N b"]:
    return states.view(np.uint8).reshape(*states.shape, states.dtype.itemsize)


def _smaller(mask: Bool[np.ndarray, "T N"]) -> tuple[Integer[np.ndarray, "E"], Integer[np.ndarray, "C"]]:
    """(events, counts) in the form of fewer bytes."""
    bits = np.packbits(mask)
    _, components = np.nonzero(mask)
    index = components.astype(np.min_scalar_type(mask.shape[1] - 1))
    counts = mask.sum(axis=1).astype(np.min_scalar_type(mask.shape[1]))
    return (index, counts) if index.nbytes + counts.nbytes < bits.nbytes else (bits, counts[:0])
