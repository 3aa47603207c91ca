"""Search among measured models and subsets of components: frontiers, the smallest that is good enough, the best that
fits (theory, section 10).

A `Point` is a model that was measured. A `SetFunction` says what a subset of n components holds; nested removal finds
good subsets, trying all of them finds the best.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from selssm_jax.information import gaussian
from selssm_jax.information.channel import channel_information

SetFunction = Callable[[tuple[int, ...]], float]
MOST = 16  # components of which all subsets are tried: 2^16 calls


@dataclasses.dataclass(frozen=True)
class Point:
    """A model: bytes of memory that one sequence carries, its loss, the smaller the better, and nats of I(h_t; x_{1:t})
    where measured.

    Raises ValueError for less than a byte, and a loss or information that is not a number.
    """

    name: str
    nbytes: int
    loss: float
    information: float | None = None

    def __post_init__(self) -> None:
        if self.nbytes < 1:
            raise ValueError(
                f"{self.name}: nbytes={self.nbytes}, expected at least 1: a memory without bytes has no place on a "
                "scale of their logarithm"
            )
        if not math.isfinite(self.loss):
            raise ValueError(f"{self.name}: loss={self.loss}, expected a finite number: leave models that diverged out")
        if self.information is not None and not self.information >= 0:
            raise ValueError(
                f"{self.name}: information={self.information}, expected nats from 0, or None where it was not measured"
            )


def frontier(points: Iterable[Point]) -> tuple[Point, ...]:
    """Returns the points that no other one beats, by rising bytes and falling loss: of equal bytes or equal loss only
    the better stays.
    """
    points_so_far: list[Point] = []
    for point in sorted(points, key=lambda point: (point.nbytes, point.loss)):
        if not points_so_far or point.loss < points_so_far[-1].loss:
            points_so_far.append(point)
    return tuple(points_so_far)


def knee(points: Iterable[Point]) -> Point:
    """Returns where the frontier bends most: farthest below the chord of its two ends in the plane of (log bytes,
    loss), both scaled to [0, 1].

    The smallest of equals; a frontier without any point below its chord gives its smallest memory.
    Raises ValueError where there are no points.
    """
    best_points = frontier(points)
    if not best_points:
        raise ValueError("there are no points: measure at least one model")
    sizes, losses = (
        _to_unit([math.log(point.nbytes) for point in best_points]),
        _to_unit([point.loss for point in best_points]),
    )
    # sqrt(2) times the distance to the chord from (0, 1) to (1, 0)
    below = [1 - x - y for x, y in zip(sizes, losses, strict=True)]
    return best_points[below.index(max(below))]


def smallest(points: Iterable[Point], *, within: float, reference: Point) -> Point:
    """Returns the point of fewest bytes whose loss is at most (1 + within) times the reference's; of equal bytes the
    one of least loss.

    `within` is relative: 0.01 is one per cent. Raises ValueError where there is none, or where the reference's loss is
    negative.
    """
    if reference.loss < 0 or not within >= 0:
        raise ValueError(
            f"within={within} of a loss of {reference.loss}: expected numbers from 0, for a share of a negative loss "
            "says nothing"
        )
    most = reference.loss * (1 + within)
    return _first(
        [point for point in frontier(points) if point.loss <= most],
        f"has a loss of at most {most:g}: allow more with `within`",
    )


def best(points: Iterable[Point], *, at_most: int) -> Point:
    """Returns the point of least loss within `at_most` bytes; of equal loss the smallest. Raises ValueError where none
    is that small.
    """
    return _first(
        [point for point in reversed(frontier(points)) if point.nbytes <= at_most],
        f"takes at most {at_most} bytes: allow more with `at_most`",
    )


@dataclasses.dataclass(frozen=True)
class Subset:
    """Components and what they hold together, in nats."""

    components: tuple[int, ...]
    information: float


def find_nested_subsets(information: SetFunction, n: int) -> tuple[Subset, ...]:
    """Returns a subset of every size from 0 to n, each without one component of the next: the one whose removal leaves
    most.

    n (n + 1) / 2 calls. Greedy: a component that is gone does not come back, so single sizes can be worse than the best
    (`exhaustive`).
    """
    _check_count(n, None)
    kept = tuple(range(n))
    subsets = [Subset(kept, information(kept))]
    while kept:
        fewer = [kept[:place] + kept[place + 1 :] for place in range(len(kept))]
        subsets.append(max((Subset(part, information(part)) for part in fewer), key=lambda subset: subset.information))
        kept = subsets[-1].components
    return tuple(reversed(subsets))


def exhaustive(information: SetFunction, n: int) -> tuple[Subset, ...]:
    """Returns the best subset of every size from 0 to n, by trying all 2^n: the reference of `find_nested_subsets`, for
    n up to 16.
    """
    _check_count(n, MOST)
    sizes = (itertools.combinations(range(n), size) for size in range(n + 1))
    return tuple(
        max((Subset(part, information(part)) for part in parts), key=lambda subset: subset.information)
        for parts in sizes
    )


def smallest_subset(subsets: Sequence[Subset], tau: float) -> Subset:
    """Returns the smallest of the subsets with information >= tau. Raises ValueError where none has that much."""
    enough = [subset for subset in subsets if subset.information >= tau]
    if not enough:
        raise ValueError(
            f"tau={tau} nats, but the subsets hold at most {max(subset.information for subset in subsets)}: ask for "
            "less"
        )
    return min(enough, key=lambda subset: len(subset.components))


def largest_information(subsets: Sequence[Subset], n_max: int) -> Subset:
    """Returns the subset of most information among those of at most n_max components, the smaller of equals. Raises
    ValueError for n_max < 0.
    """
    if n_max < 0:
        raise ValueError(f"n_max={n_max}, expected at least 0")
    return max(
        (subset for subset in subsets if len(subset.components) <= n_max),
        key=lambda subset: (subset.information, -len(subset.components)),
    )


def linear_gaussian(
    A_t: gaussian.Transitions,
    B_t: Float[Array, "T n m"],
    input_cov: Float[Array, "m m"],
    noise_cov: gaussian.Noise,
    initial_cov: Array | None = None,
) -> SetFunction:
    """Returns S -> I(h_{t,S}; x_{1:t}) after the last step, in nats: what those components say of all inputs, exact for
    exogenous gates.

    For a diagonal transition that is what the system without the others holds, `gaussian.state_information` of the
    part; for a dense one it is what a reader of these components knows while the others run on. Noise that is common to
    components makes it neither sub- nor supermodular. Arguments and errors: see `gaussian.state_information`; one
    program serves all subsets. Source: theory, section 4.1.
    """
    signal, noise = (part[-1] for part in gaussian.covariances(A_t, B_t, input_cov, noise_cov, initial_cov))

    def information(components: tuple[int, ...]) -> float:
        mask = np.zeros(len(signal), signal.dtype)
        mask[list(components)] = 1
        return float(_masked_information(signal, noise, jnp.asarray(mask)))

    return information


@jax.jit
def _masked_information(signal: Array, noise: Array, mask: Array) -> Array:
    """Of the components with mask 1; the others are unit noise alone, which says nothing."""
    both = mask[:, None] * mask[None]
    return channel_information(both * signal, both * noise + jnp.diag(1 - mask))


def _to_unit(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) if high > low else 0.0 for value in values]


def _first(points: Sequence[Point], asked: str) -> Point:
    if not points:
        raise ValueError(f"no point {asked}")
    return points[0]


def _check_count(n: int, most: int | None) -> None:
    if n < 1 or (most is not None and n > most):
        raise ValueError(
            f"n={n} components, expected at least "
            f"1{'' if most is None else f' and at most {most}, for 2^n subsets are tried: use nested'}"
        )
