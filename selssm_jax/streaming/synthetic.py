"""Streams whose changes are known: the same for the same seed.

python -m selssm_jax.streaming.synthetic drift    writes the two tables of configs/stream_drift.py into drift/
"""

import argparse
import csv
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from selssm_jax.errors import InputError, report_errors

BURN_IN = 200  # rows before the first, so that it is of the stationary law
SEA = (8.0, 9.0, 7.0, 9.5)  # thresholds of the four concepts (Street and Kim 2001)


class DriftStream(NamedTuple):
    """A recorded stream.

    Attributes:
      inputs: rows. targets: a class for each, or of a series the row after it. changes: the rows at which a change
        begins.
    """

    inputs: Float[np.ndarray, "T C"]
    targets: Shaped[np.ndarray, "T ..."]
    changes: tuple[int, ...]


def switch_autoregression(
    seed: int,
    steps: int,
    every: int,
    regimes: Sequence[tuple[float, float]] = ((1.5, -0.75), (-0.5, 0.3)),
    *,
    width: int = 0,
    noise: float = 1.0,
) -> DriftStream:
    """Returns x_t = a_t x_{t-1} + b_t x_{t-2} + noise e_t, e_t ~ N(0, 1), whose (a, b) change to the next of the
    regimes every `every` rows, and after the last to the first again: a world that returns.

    The least mean squared error of a forecast of the next row is noise^2 throughout. width: rows in which coefficients
    go from one regime to the next in a line; 0: a sudden change. Raises ValueError for a regime that is not stationary.
    """
    for a, b in regimes:
        if not (abs(b) < 1 and abs(a) < 1 - b):
            raise ValueError(f"the regime ({a}, {b}) is not stationary: use |b| < 1 and |a| < 1 - b")
    times = np.maximum(np.arange(-BURN_IN, steps + 1), 0)
    number, since = np.divmod(times, every)
    table = np.asarray(regimes, np.float64)
    share = np.clip((since + 1) / width, 0, 1) if width else np.ones(len(times))
    share = np.where(number == 0, 1, share)[:, None]
    now, before = table[number % len(table)], table[(number - 1) % len(table)]
    coefficients = share * now + (1 - share) * before
    values = noise * np.random.default_rng(seed).normal(size=len(times))
    for step in range(2, len(times)):
        values[step] += coefficients[step] @ values[step - 2 : step][::-1]
    rows = values[BURN_IN:, None].astype(np.float32)
    return DriftStream(rows[:-1], rows[1:], tuple(range(every, steps, every)))


def draw_sea(seed: int, steps: int, every: int, noise: float = 0.1) -> DriftStream:
    """Returns three numbers uniform in [0, 10] and the class x_1 + x_2 <= threshold, whose threshold changes every
    `every` rows to the next of `SEA`; a share `noise` of the classes is the other one (Street and Kim 2001).
    """
    rng = np.random.default_rng(seed)
    inputs = rng.uniform(0, 10, (steps, 3))
    threshold = np.asarray(SEA)[np.arange(steps) // every % len(SEA)]
    classes = (inputs[:, 0] + inputs[:, 1] <= threshold) ^ (rng.random(steps) < noise)
    return DriftStream(inputs.astype(np.float32), classes.astype(np.int32), tuple(range(every, steps, every)))


def rotate_hyperplane(
    seed: int, steps: int, channels: int = 10, speed: float = 1e-3, every: int = 0, noise: float = 0.05
) -> DriftStream:
    """Returns `channels` numbers uniform in [0, 1] and the class sum_c w_c x_c >= sum_c w_c / 2, whose weights w, drawn
    uniform in [0, 1], move by `speed` a row, each up or down, and turn at 0 and 1 (Hulten, Spencer and Domingos 2001).

    every: rows after which all weights are drawn anew, a sudden change; 0: never. noise: share of classes that are the
    other one.
    """
    rng = np.random.default_rng(seed)
    inputs = rng.uniform(size=(steps, channels))
    weights = np.empty((steps, channels))
    length = every or steps
    for first in range(0, steps, length):
        rows = np.arange(min(length, steps - first))[:, None]
        moved = rng.uniform(size=channels) + speed * rng.choice([-1.0, 1.0], channels) * rows
        weights[first : first + length] = 1 - np.abs(np.mod(moved, 2) - 1)
    classes = ((inputs - 0.5) * weights).sum(axis=1) >= 0
    classes ^= rng.random(steps) < noise
    changes = tuple(range(every, steps, every)) if every else ()
    return DriftStream(inputs.astype(np.float32), classes.astype(np.int32), changes)


def write_drift(folder: str | pathlib.Path, *, rows: int = 5000, worlds: int = 4, seed: int = 0) -> None:
    """Writes before.csv, `rows` rows of an autoregression, and stream.csv, as many more of it, then as many of another,
    and so on back and forth, in `worlds` worlds.

    Raises:
      InputError: where a file is there already, or cannot be written.
    """
    place = pathlib.Path(folder)
    parts = {"before.csv": (seed + 1, rows), "stream.csv": (seed, rows * worlds)}
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, (draw, steps) in parts.items():
            values = switch_autoregression(draw, steps, rows).inputs[:, 0].astype(float).tolist()
            with (place / name).open("x", newline="") as file:
                csv.writer(file).writerows([["value"], *([f"{value:.6f}"] for value in values)])
    except OSError as error:
        raise InputError(f"{place} cannot be written ({error}): name a new folder") from error


def main(argv: Sequence[str] | None = None) -> None:
    """The command: writes the two tables."""
    parser = argparse.ArgumentParser(
        prog="python -m selssm_jax.streaming.synthetic", description="Writes a stream whose changes are known."
    )
    parser.add_argument("folder", help="a new folder")
    parser.add_argument("--rows", type=int, default=5000, help="rows of a world (default %(default)s)")
    parser.add_argument("--worlds", type=int, default=4, help="how many there are (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn (default %(default)s)")
    chosen = parser.parse_args(argv)
    with report_errors():
        write_drift(chosen.folder, rows=chosen.rows, worlds=chosen.worlds, seed=chosen.seed)
        print(f"wrote {chosen.folder}/before.csv and {chosen.folder}/stream.csv")


if __name__ == "__main__":
    main()
