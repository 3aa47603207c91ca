"""L_G from both sides: proved from above, reached from below (theory, section 2)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.config import mixers
from selssm_jax.layers import gates
from selssm_jax.layers.gates import GATES, Opening, largest_slope
from selssm_jax.stability.lipschitz import gate_lipschitz, maximised_ratio, operator_norm, spectral_norm_bound

KINDS = sorted(kind for kind, can in mixers.GATES.items() if not can.jumps)
PAIRS = 100_000


def ratios(gate, size, norm, seed=0, scale=3.0):
    """|G(h) - G(k)| / |h - k| of random pairs, near and far."""
    first, second = jax.random.split(jax.random.key(seed))
    h = scale * jax.random.normal(first, (PAIRS, size))
    apart = jax.random.normal(second, (PAIRS, size)) * 10 ** jnp.linspace(-2, 1, PAIRS)[:, None]
    order = jnp.inf if norm == "max" else 2
    distance = jnp.linalg.norm(apart, ord=order, axis=1)
    return jnp.where(distance > 0.01, jnp.linalg.norm(gate(h + apart) - gate(h), ord=order, axis=1) / distance, 0)


@pytest.mark.parametrize("norm", ["max", "euclidean"])
@pytest.mark.parametrize("size", [1, 5])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dense", [False, True])
def test_random_pairs_lie_under_the_bound(kind, size, norm, dense):
    W = np.random.default_rng(size).standard_normal((size, size) if dense else size)
    found = gate_lipschitz(kind, W, floor=0.2, norm=norm)
    opening = Opening(jnp.zeros((1, size)), None, jnp.asarray(W, jnp.float32), kind, 0.2)
    seen = float(ratios(opening.at, size, norm).max())
    assert seen <= found.upper + 3e-5  # differences of float32 gates, 1e-7 or so each, over steps of 1e-2
    assert found.lower <= found.upper <= (1.5 if size == 1 else 3) * found.lower


@pytest.mark.parametrize("ends", [(-9.0, -1.0), (-1.0, 2.0), (0.5, 4.0), (-np.inf, -2.6), (3.5, 9.0)])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if not GATES[kind].joint])
def test_slopes_of_a_range_are_the_largest_there(kind, ends):
    z = jnp.linspace(max(ends[0], -12), min(ends[1], 12), 4001)
    seen = float(jax.vmap(jax.grad(GATES[kind].function))(z)[1:-1].max())
    bound = float(largest_slope(kind, *ends))
    assert seen <= bound + 1e-6 and seen >= 0.99 * bound - 1e-6
    assert float(largest_slope(kind, jnp.float32(ends[0]), jnp.float32(ends[1]))) == pytest.approx(bound, rel=1e-5)


def test_gates_that_jump_have_no_constant_where_they_may_and_zero_where_they_cannot():
    W = np.array([0.0, 2.0, -1.0])
    assert gate_lipschitz("binary", W).lower == gate_lipschitz("binary", W).upper == np.inf
    assert gate_lipschitz("binary", np.diag(W), norm="euclidean").upper == np.inf
    assert (
        gate_lipschitz("binary", W, logits=(0.1, 5.0)).upper
        == 0
        == gate_lipschitz("binary", W, logits=(-3.0, 0.0)).upper
    )
    assert gate_lipschitz("top_k", W).upper == np.inf and gate_lipschitz("top_k", 0 * W).upper == 0
    jump = Opening(jnp.zeros((1, 3)), None, jnp.asarray(W, jnp.float32), "binary", 0.0)
    assert float(ratios(jump.at, 3, "max").max()) > 30  # 1 / the nearest pairs' distance
    ends = jnp.array([[-1.0, 0.5, 2.0], [-0.5, 1.5, 2.5]])
    binary = Opening(ends, None, jnp.full((3, 3), 0.1).at[:, 2].set(0), "binary", 0.0).envelope(
        jnp.array([6.0, 1.0, 1.0])
    )
    assert binary.low.tolist() == [0, 0, 1] and binary.high.tolist() == [1, 1, 1]
    assert binary.lipschitz.tolist() == [[np.inf, np.inf, 0], [np.inf, np.inf, 0], [0, 0, 0]]
    # the first cannot reach the last
    largest = Opening(ends, None, jnp.array([1.0, 0.0, 0.1]), "top_k", 0.0, 1).envelope(jnp.ones(3))
    assert largest.low.tolist() == [0, 0, 1] and not largest.lipschitz.any()
    either = Opening(ends, None, jnp.array([1.0, 0.5, 0.5]), "top_k", 0.0, 1).envelope(jnp.ones(3))
    assert either.lipschitz.tolist() == [[0, 0, 0], [np.inf] * 3, [np.inf] * 3]


@pytest.mark.parametrize("norm", ["max", "euclidean"])
def test_a_softmax_changes_by_half_of_what_its_logits_do_over_its_temperature(norm):
    found = gate_lipschitz("softmax", np.ones(4), norm=norm, temperature=0.5)
    assert found.upper == pytest.approx(1.0) and found.lower > 0.99
    apart = gate_lipschitz("softmax", np.ones(2), logits=(np.array([-3.0, 2.0]), np.array([-2.0, 3.0])), norm=norm)
    assert apart.lower <= apart.upper == pytest.approx(2 / (2 + np.exp(4.0) + np.exp(-4.0)), rel=1e-5)


def test_a_drawn_gate_is_no_steeper_than_said():
    z, noise = jnp.linspace(-9, 9, 999)[:, None], gates.logistic(jax.random.key(0), jnp.zeros((1, 2000)))
    slopes = jax.vmap(jax.vmap(jax.grad(lambda z, noise: gates.hard_concrete(z, noise)), (None, 0)), (0, None))(
        z[:, 0], noise[0]
    )
    assert (
        gates.GATES["hard_concrete"].drawn_slope * 0.99
        < float(slopes.max())
        <= gates.GATES["hard_concrete"].drawn_slope + 1e-6
    )


@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (40, 40), (3, 9)])
def test_spectral_norms_are_proved(shape):
    for seed in range(20):
        W = np.random.default_rng(seed).standard_normal(shape) * 10.0 ** (seed - 10)
        true = np.linalg.norm(W, ord=2)
        assert true <= spectral_norm_bound(W) <= true * 1.0001
    assert spectral_norm_bound(np.zeros(shape)) == 0
    power = np.random.default_rng(0).standard_normal(shape[1])
    for _ in range(3):  # power iteration stops short of the norm, from below
        power = W.T @ (W @ power / np.linalg.norm(power))
    assert np.linalg.norm(W @ power) / np.linalg.norm(power) <= spectral_norm_bound(W)


def test_weighted_norms_are_those_of_scaled_matrices():
    W, v = np.random.default_rng(0).standard_normal((4, 4)), np.array([1.0, 2.0, 0.5, 3.0])
    assert operator_norm(W, weights=v) == pytest.approx(np.linalg.norm(W * v / v[:, None], ord=np.inf))


def test_any_function_of_the_state_can_be_climbed():
    starts = np.random.default_rng(0).standard_normal((8, 2))
    assert maximised_ratio(lambda h: jnp.sin(3 * h), starts) == pytest.approx(3, rel=1e-3)
    assert maximised_ratio(
        lambda h: h @ jnp.array([[1.0, 1.0], [0.0, 1.0]]), starts, norm="euclidean"
    ) == pytest.approx((1 + np.sqrt(5)) / 2, rel=1e-4)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: gate_lipschitz("relu", np.ones(2)), "gate kind 'relu' is unknown"),
        (lambda: gate_lipschitz("sigmoid", np.ones(2), norm="one"), "norm='one' is unknown"),
        (lambda: gate_lipschitz("sigmoid", np.ones(2), logits=(1.0, 0.0)), "is empty"),
        (lambda: operator_norm(np.ones((2, 2)), norm="euclidean", weights=np.ones(2)), "weights belong to norm='max'"),
    ],
)
def test_bad_input_is_said(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()


def test_states_at_which_a_slope_is_no_number_hide_no_other():
    """One climb that leaves the domain made the lower bound NaN, or, past 4,096 starts, none at all."""
    found = maximised_ratio(jnp.sqrt, np.array([[1.0, 2.0], [0.01, 1.0]]))
    assert found == pytest.approx(5, rel=1e-3)  # 1 / (2 sqrt(.01)), from where Adam steps below 0
