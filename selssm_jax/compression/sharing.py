"""Tables of levels that components share: which read the same one, what the tables take, and what sharing costs
(theory, section 10).

A table is read by all sequences that are carried at once, so its bytes count once; beside few sequences they outweigh
what packing saves, unless many components read one.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from selssm_jax.compression.quantization import Quantizer

COUNTS = (1, 4, 16, 64, 256)  # groups of components that are tried, beside every channel by itself
PROBABILITIES = (np.arange(9) + 0.5) / 9  # of the quantiles by which laws are compared
ROWS = 512  # samples that laws, and errors, are compared on
ROUNDS = 15  # most iterations of Lloyd over groups
FLOAT = 4  # bytes


def groupings(
    samples: Float[np.ndarray, "S M"], channels: Int[np.ndarray, "M"], weights: Float[np.ndarray, "M"]
) -> Iterator[Int[np.ndarray, "M"]]:
    """Yields the group of every component, from one group for all to one for every channel.

    Channels whose laws lie near each other share a group: k-means on quantile functions, whose squared distance is that
    of Wasserstein, weighted by what an error costs. Components of one channel (the slots of a window) stay together, so
    that what moves between slots is not rounded anew.
    """
    names, place = np.unique(channels, return_inverse=True)
    for count in COUNTS:
        if count < len(names):
            yield _alike(*_laws(samples, place, weights), count)[place]
    if len(names) <= max(COUNTS) * 16:  # more tables than that are never worth their bytes
        yield place


def number_tables(groups: Int[np.ndarray, "M"], bits: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the number of the table that every component reads: one for each group and number of bits, in the order
    of both.
    """
    return tuple(np.unique(np.stack([groups, bits], axis=1), axis=0, return_inverse=True)[1].ravel().tolist())


def table_bytes(tables: tuple[int, ...], bits: tuple[int, ...]) -> int:
    """Returns the bytes of all tables, 2^bits levels of float32 each, and of the numbers that say which of K a
    component reads, log2 K bits each.
    """
    first = np.unique(tables, return_index=True)[1]
    return FLOAT * int((2 ** np.asarray(bits)[first]).sum()) + -(-len(tables) * (len(first) - 1).bit_length() // 8)


def squared_errors(quantizer: Quantizer, samples: Float[np.ndarray, "S M"]) -> Float[np.ndarray, "M"]:
    """Returns the mean squared error of every component, rounded to the nearest level, on some of the samples."""
    some, levels = _some(samples), np.asarray(quantizer.levels, np.float64)
    errors = np.empty(some.shape[1])
    for index, count in enumerate(quantizer.bits):
        own = levels[index, : 2**count]
        errors[index] = ((own[np.searchsorted((own[1:] + own[:-1]) / 2, some[:, index])] - some[:, index]) ** 2).mean()
    return errors


def _some(samples: np.ndarray) -> np.ndarray:
    return samples[:: -(-len(samples) // ROWS)].astype(np.float64)


def _laws(samples: np.ndarray, place: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(the mean quantile function of every channel, the sum of its weights)."""
    quantiles, channels = np.quantile(_some(samples), PROBABILITIES, axis=0).T, place.max() + 1
    laws = np.zeros((channels, len(PROBABILITIES)))
    np.add.at(laws, place, quantiles)
    weight = np.bincount(place, weights, channels)
    return laws / np.bincount(place)[:, None], weight + 1e-12 * (weight.max() or 1)


def _alike(laws: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """The group of every law: weighted k-means, begun at the laws that are in turn the farthest from all that were
    taken.
    """
    centres = laws[[int(weight.argmax())]]
    nearest = ((laws - centres[0]) ** 2).sum(axis=1)
    while len(centres) < count:
        centres = np.concatenate([centres, laws[[int((weight * nearest).argmax())]]])
        nearest = np.minimum(nearest, ((laws - centres[-1]) ** 2).sum(axis=1))
    group = np.zeros(len(laws), int)
    for _ in range(ROUNDS):
        group = ((centres**2).sum(axis=1)[None] - 2 * laws @ centres.T).argmin(axis=1)
        held = np.bincount(group, weight, count)
        moved = (
            np.stack([np.bincount(group, weight * column, count) for column in laws.T], axis=1)
            / np.where(held > 0, held, 1)[:, None]
        )
        moved = np.where(held[:, None] > 0, moved, centres)
        if np.array_equal(moved, centres):
            break
        centres = moved
    return group
