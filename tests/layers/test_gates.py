"""Gates: values, range, exact zeros and ones, Lipschitz constants, the L0 of hard concrete gates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.layers import gates

KINDS = sorted(gates.SMOOTH)
Z = jnp.linspace(-12, 12, 4001)


@pytest.mark.parametrize("kind", KINDS)
def test_gate_is_monotone_within_the_unit_interval(kind):
    g = gates.SMOOTH[kind](Z)
    assert (g >= 0).all() and (g <= 1).all()
    assert (jnp.diff(g) >= -2e-7).all() and g[0] < 0.01 and g[-1] > 0.99  # monotone up to float32 rounding


@pytest.mark.parametrize(("kind", "constant"), [("sigmoid", 1 / 4), ("tanh", 1 / 2), ("hard_sigmoid", 1 / 6)])
def test_slope_reaches_and_never_exceeds_the_lipschitz_constant(kind, constant):
    slopes = jax.vmap(jax.grad(lambda z: gates.SMOOTH[kind](z)))(Z)
    # theory, section 2; 1e-6 for float32
    assert slopes.max() <= constant + 1e-6
    assert slopes.max() >= constant * 0.999


def test_rescaled_tanh_is_a_sigmoid_of_twice_the_argument():
    np.testing.assert_allclose(gates.rescaled_tanh(Z), gates.sigmoid(2 * Z), atol=2e-7)


def test_hard_gates_are_exactly_closed_and_open():
    assert gates.hard_sigmoid(jnp.array([-3.0, 3.0])).tolist() == [0.0, 1.0]
    assert gates.hard_concrete(jnp.array([-3.0, 3.0])).tolist() == [0.0, 1.0]


@pytest.mark.parametrize("z", [-2.0, 0.0, 1.5])
def test_expected_open_is_the_share_of_open_draws(z):
    logits = jnp.full(200_000, z)
    draws = gates.hard_concrete(logits, gates.logistic(jax.random.key(0), logits))
    # 5 standard errors of a share over 2e5 draws
    assert abs((draws > 0).mean() - gates.expected_open(jnp.float32(z))) < 5 * 0.5 / np.sqrt(200_000)


@pytest.mark.parametrize("kind", KINDS)
def test_bias_makes_gates_log_uniform(kind):
    bias = gates.log_uniform_bias(kind, 0.01, 0.9)(jax.random.key(0), (20_000,))
    logs = np.log(gates.SMOOTH[kind](bias))
    assert np.log(0.01) - 1e-3 <= logs.min() and logs.max() <= np.log(0.9) + 1e-3
    # mean of a uniform in [log .01, log .9], 5 standard errors
    assert abs(logs.mean() - (np.log(0.01) + np.log(0.9)) / 2) < 5 * 1.3 / np.sqrt(20_000)


@pytest.mark.parametrize("kind", KINDS)
def test_floor_bounds_every_gate_from_below(kind):
    x = 50 * jax.random.normal(jax.random.key(0), (2, 64, 8))
    gate = gates.Gate(4, kind, 0.25)
    g = gate.apply(gate.init(jax.random.key(1), x), x).at()
    assert g.min() >= 0.25 and g.max() <= 1.0


def test_constant_gate_does_not_see_the_input():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    gate = gates.Gate(4, "constant")
    params = gate.init(jax.random.key(1), x)
    assert list(params["params"]) == ["bias"]
    assert (gate.apply(params, x).at() == gate.apply(params, 100 * x).at()).all()


def test_hard_concrete_draws_only_where_a_generator_is_given():
    x = jax.random.normal(jax.random.key(0), (2, 5, 8))
    gate = gates.Gate(4, "hard_concrete")
    params = gate.init(jax.random.key(1), x)
    drawn = [gate.apply(params, x, rngs={"gates": jax.random.key(seed)}) for seed in (2, 3)]
    assert (drawn[0].at() != drawn[1].at()).any()
    fixed = gate.apply(params, x)
    assert fixed.noise is None and (fixed.at() == gates.hard_concrete(fixed.z)).all()


@pytest.mark.parametrize(("reads_state", "shape"), [("elementwise", (4,)), ("dense", (4, 4))])
def test_gates_that_read_the_state_start_as_gates_of_the_input_and_add_its_part(reads_state, shape):
    x, before = jax.random.normal(jax.random.key(0), (2, 5, 8)), jax.random.normal(jax.random.key(2), (2, 5, 4))
    gate = gates.Gate(4, "tanh", 0.1, reads_state)
    params = gate.init(jax.random.key(1), x)
    assert (gate.apply(params, x).at(before) == gate.apply(params, x).at()).all()
    weights = jax.random.normal(jax.random.key(3), shape)
    params["params"]["state_kernel"] = weights
    opening = gate.apply(params, x)
    read = np.einsum("ij,btj->bti", np.diag(weights) if len(shape) == 1 else weights, before)
    np.testing.assert_allclose(opening.at(before), 0.1 + 0.9 * gates.rescaled_tanh(opening.z + read), rtol=1e-5, atol=1e-6)
    one = dataclasses.replace(opening, z=opening.z[1, 3])
    np.testing.assert_allclose(one.at(before[1, 3]), opening.at(before)[1, 3], rtol=1e-6)  # the gates of one step


def test_an_unknown_kind_names_the_choices():
    with pytest.raises(ValueError, match="'relu' is unknown: use one of sigmoid, tanh"):
        gates.Gate(4, "relu").init(jax.random.key(0), jnp.zeros((1, 1, 2)))
    with pytest.raises(ValueError, match="reads_state='all' is unknown: use one of none, elementwise, dense"):
        gates.Gate(4, reads_state="all").init(jax.random.key(0), jnp.zeros((1, 1, 2)))
