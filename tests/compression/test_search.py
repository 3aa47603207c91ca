"""Frontiers and knees are what they are defined as; greedy subsets are held against all subsets."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from selssm_jax.compression.search import (
    Point,
    Subset,
    best,
    exhaustive,
    find_nested_subsets,
    frontier,
    knee,
    largest_information,
    linear_gaussian,
    smallest,
    smallest_subset,
)
from selssm_jax.information import gaussian

POINTS = st.lists(
    st.builds(Point, st.text("abc", max_size=3), st.integers(1, 50), st.integers(0, 20).map(float)),
    min_size=1,
    max_size=20,
)


def system(seed, n=6, m=2, steps=20):
    """A diagonal system whose components differ in pole, drive and noise, noise common to components among it."""
    rng = np.random.default_rng(seed)
    A = np.tile(rng.uniform(-0.95, 0.95, n), (steps, 1))
    B = np.tile(rng.normal(size=(n, m)), (steps, 1, 1))
    root = rng.normal(size=(n, n)) / np.sqrt(n)
    noise = root @ root.T + np.diag(10 ** rng.uniform(-2, 0.5, n))
    return [jnp.asarray(value, jnp.float32) for value in (A, B, np.eye(m), noise)]


@given(POINTS)
def test_no_point_beats_one_of_the_frontier_and_one_of_the_frontier_beats_every_other(points):
    found = frontier(points)
    assert all(a.nbytes < b.nbytes and a.loss > b.loss for a, b in itertools.pairwise(found))
    assert all(any(one.nbytes <= point.nbytes and one.loss <= point.loss for one in found) for point in points)
    assert frontier(found) == found and set(found) <= set(points)


@given(POINTS, st.floats(0.1, 9), st.floats(-5, 5), st.integers(2, 5))
def test_the_knee_is_of_the_frontier_and_knows_no_units(points, scale, shift, factor):
    found = knee(points)
    assert found in frontier(points)
    others = [Point(point.name, point.nbytes**factor, scale * point.loss + shift) for point in points]
    where, again = frontier(points).index(found), frontier(others)
    distance = [_below(again, index) for index in range(len(again))]
    assert distance[where] == pytest.approx(max(distance), abs=1e-9)


def _below(points, index):
    x = np.log([point.nbytes for point in points])
    y = np.array([point.loss for point in points])
    (x, y) = ((z - z.min()) / (np.ptp(z) or 1) for z in (x, y))
    return 1 - x[index] - y[index]


def test_the_knee_of_a_bent_line_is_its_bend():
    bend = [Point(str(k), 2**k, loss) for k, loss in enumerate([10, 8, 1, 0.9, 0.5])]
    assert knee(bend).name == "2"
    # no point below the chord: its smallest memory
    assert knee([Point("a", 1, 2.0), Point("b", 2, 1.9), Point("c", 4, 0.0)]).name == "a"
    assert knee(bend[3:4]) == bend[3]


@given(POINTS, st.floats(0, 1), st.integers(1, 50))
def test_choices_are_those_of_trying_every_point(points, within, at_most):
    reference = points[0]
    enough = [point for point in points if point.loss <= reference.loss * (1 + within)]
    found = smallest(points, within=within, reference=reference)
    assert (found.nbytes, found.loss) == min((point.nbytes, point.loss) for point in enough)
    small = [point for point in points if point.nbytes <= at_most]
    if small:
        found = best(points, at_most=at_most)
        assert (found.loss, found.nbytes) == min((point.loss, point.nbytes) for point in small)
    else:
        with pytest.raises(ValueError, match=f"at most {at_most} bytes"):
            best(points, at_most=at_most)


def test_what_a_subset_holds_is_what_the_system_without_the_others_does():
    A, B, Sx, Q = system(0)
    information = linear_gaussian(A, B, Sx, Q)
    assert information(()) == 0
    for part in ((3,), (0, 2, 4, 5)):
        at = np.array(part)
        alone = gaussian.state_information(A[:, at], B[:, at], Sx, Q[np.ix_(at, at)])[-1]
        assert information(part) == pytest.approx(float(alone), rel=1e-4)


def test_greedy_subsets_against_all_subsets(capsys):
    """Of 30 random systems of 6 components, the sizes at which greedy removal finds the best subset, and by how much it
    misses it.
    """
    equal, short, smaller = 0, [], 0
    for seed in range(30):
        information = linear_gaussian(*system(seed))
        greedy, truth = find_nested_subsets(information, 6), exhaustive(information, 6)
        for found, most in zip(greedy, truth, strict=True):
            assert len(found.components) == len(most.components) and found.information <= most.information + 1e-5
        inner = list(zip(greedy[1:-1], truth[1:-1], strict=True))
        equal += sum(found.components == most.components for found, most in inner)
        short += [1 - found.information / most.information for found, most in inner]
        tau = 0.9 * truth[-1].information
        needed, least = smallest_subset(greedy, tau), smallest_subset(truth, tau)
        assert needed.information >= tau and len(needed.components) >= len(least.components)
        smaller += len(needed.components) == len(least.components)
    with capsys.disabled():
        print(
            f"\ngreedy = best at {equal} of {len(short)} sizes, short by {100 * np.mean(short):.2g} % on average, "
            f"{100 * max(short):.2g} % at most;"
        )
        print(f"as few components for 90 % of the information in {smaller} of 30 systems")
    assert equal >= 0.9 * len(short) and max(short) < 0.1 and smaller >= 27


def test_greedy_is_not_optimal_and_says_so():
    """Component 0 is best alone; 1 and 2 are best together: backward removal drops 0 first and cannot go back to it."""
    worth = {(): 0.0, (0,): 1.0, (1,): 0.5, (2,): 0.6, (0, 1): 1.1, (0, 2): 1.2, (1, 2): 2.0, (0, 1, 2): 2.1}
    greedy, truth = find_nested_subsets(worth.__getitem__, 3), exhaustive(worth.__getitem__, 3)
    assert [subset.components for subset in greedy] == [(), (2,), (1, 2), (0, 1, 2)]
    assert [subset.components for subset in truth] == [(), (0,), (1, 2), (0, 1, 2)]
    assert smallest_subset(truth, 0.9).components == (0,) and smallest_subset(greedy, 0.9).components == (1, 2)


def test_the_best_within_a_number_of_components():
    subsets = [Subset((), 0.0), Subset((1,), 2.0), Subset((0, 1), 1.5)]
    assert largest_information(subsets, 0).components == ()
    assert largest_information(subsets, 2).components == (1,)  # more components need not hold more
    assert smallest_subset(subsets, 1.2).components == (1,)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: Point("x", 0, 1.0), "x: nbytes=0, expected at least 1"),
        (lambda: Point("x", 1, float("nan")), "loss=nan, expected a finite number"),
        (lambda: Point("x", 1, 1.0, -1.0), "information=-1.0, expected nats from 0"),
        (lambda: knee([]), "there are no points"),
        (
            lambda: smallest([Point("x", 1, 2.0)], within=0.1, reference=Point("y", 9, 1.0)),
            "no point has a loss of at most 1.1",
        ),
        (
            lambda: smallest([Point("x", 1, 2.0)], within=0.1, reference=Point("y", 9, -1.0)),
            "within=0.1 of a loss of -1.0",
        ),
        (lambda: best([Point("x", 5, 2.0)], at_most=4), "no point takes at most 4 bytes"),
        (lambda: smallest_subset([Subset((), 0.0)], 1.0), r"tau=1.0 nats, but the subsets hold at most 0.0"),
        (lambda: largest_information([Subset((), 0.0)], -1), "n_max=-1"),
        (lambda: exhaustive(len, 17), "n=17 components, expected at least 1 and at most 16.*use nested"),
        (lambda: find_nested_subsets(len, 0), "n=0 components, expected at least 1"),
    ],
)
def test_mistakes_are_named(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()
