"""Gates: values, range, exact zeros and ones, Lipschitz constants, the L0 of hard concrete gates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.config import Model, SelectiveConfig, mixers
from selssm_jax.layers import SelectiveSSM, gates, joint_gates
from selssm_jax.stability import certify

# of their own logit alone
KINDS = sorted(kind for kind, can in mixers.GATES.items() if not (can.jumps or gates.GATES[kind].joint))
Z = jnp.linspace(-12, 12, 4001)
ACTIVE = {"top_k": 3}


@pytest.mark.parametrize("kind", KINDS)
def test_gate_is_monotone_within_the_unit_interval(kind):
    g = gates.GATES[kind].function(Z)
    assert (g >= 0).all() and (g <= 1).all()
    assert (jnp.diff(g) >= -2e-7).all() and g[0] < 0.01 and g[-1] > 0.99  # monotone up to float32 rounding


@pytest.mark.parametrize(("kind", "constant"), [("sigmoid", 1 / 4), ("tanh", 1 / 2), ("hard_sigmoid", 1 / 6)])
def test_slope_reaches_and_never_exceeds_the_lipschitz_constant(kind, constant):
    slopes = jax.vmap(jax.grad(lambda z: gates.GATES[kind].function(z)))(Z)
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
    logs = np.log(gates.GATES[kind].function(bias))
    assert np.log(0.01) - 1e-3 <= logs.min() and logs.max() <= np.log(0.9) + 1e-3
    # mean of a uniform in [log .01, log .9], 5 standard errors
    assert abs(logs.mean() - (np.log(0.01) + np.log(0.9)) / 2) < 5 * 1.3 / np.sqrt(20_000)


@pytest.mark.parametrize("kind", sorted(gates.GATES))
def test_floor_bounds_every_gate_from_below(kind):
    x = 50 * jax.random.normal(jax.random.key(0), (2, 64, 8))
    gate = gates.Gate(4, kind, 0.25, active=ACTIVE.get(kind, 0))
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


def test_binary_gates_are_open_above_zero_and_learn_as_a_sigmoid():
    z = jnp.array([-2.0, -1e-30, 0.0, 1e-30, 3.0])
    assert gates.binary(z).tolist() == [0, 0, 0, 1, 1]
    slopes = jax.grad(lambda z: gates.binary(z).sum())(z)
    np.testing.assert_allclose(slopes, jax.vmap(jax.grad(gates.sigmoid))(z), rtol=1e-6)


@pytest.mark.parametrize("active", [1, 5, 16])
def test_exactly_k_gates_are_open_the_largest_ones_and_ties_do_not_matter(active):
    z = jax.random.normal(jax.random.key(0), (3, 50, 16))
    g = joint_gates.top_k(z, active)
    assert set(np.unique(g)) <= {0.0, 1.0} and (g.sum(axis=-1) == active).all()
    assert (jnp.where(g > 0, z, jnp.inf).min(axis=-1) >= jnp.where(g > 0, -jnp.inf, z).max(axis=-1)).all()
    assert joint_gates.top_k(jnp.zeros(16), active).tolist() == [1.0] * active + [0.0] * (16 - active)


def test_top_k_gates_learn_as_a_sigmoid_about_the_last_that_is_open():
    z = jnp.array([0.5, -1.0, 2.0, 0.0])
    slopes = jax.grad(lambda z: (joint_gates.top_k(z, 2) * jnp.arange(1.0, 5)).sum())(z)
    np.testing.assert_allclose(slopes, jnp.arange(1.0, 5) * jax.vmap(jax.grad(gates.sigmoid))(z - 0.5), rtol=1e-6)
    moved = jax.jvp(lambda z: joint_gates.top_k(z, 2), (z[None, None],), (jnp.ones((1, 1, 4)),))[1][0, 0]
    np.testing.assert_allclose(moved, slopes / jnp.arange(1.0, 5), rtol=1e-6)


@pytest.mark.parametrize("kind", ["binary", "top_k"])
def test_gates_that_jump_start_to_open_at_log_uniform_shares_of_the_steps(kind):
    bias = gates.log_uniform_bias(kind, 0.01, 0.9)(jax.random.key(0), (20_000,))
    logs = np.log(jax.scipy.stats.norm.cdf(bias))  # P(b + N(0, 1) > 0)
    assert np.log(0.01) - 1e-3 <= logs.min() and logs.max() <= np.log(0.9) + 1e-3
    assert abs(logs.mean() - (np.log(0.01) + np.log(0.9)) / 2) < 5 * 1.3 / np.sqrt(20_000)  # as of the others


def test_of_top_k_gates_within_bounds_it_is_known_which_are_open():
    """All corners of a box of logits, against what its envelope says."""
    for seed in range(20):
        low, width = np.random.default_rng(seed).uniform(0, 1, (2, 6))
        ends = np.stack([low, low + 0.4 * width]).astype(np.float32)
        corners = jnp.asarray(
            np.where(np.unpackbits(np.arange(64, dtype=np.uint8)[:, None], axis=1)[:, 2:] > 0, ends[1], ends[0])
        )
        seen = joint_gates.top_k(corners, 2)
        found = gates.Opening(jnp.asarray(ends), None, None, "top_k", 0.0, 2).envelope(jnp.zeros(6))
        assert (
            (found.low == seen.min(axis=0)).all() and (found.high == seen.max(axis=0)).all() and found.lipschitz is None
        )


def test_softmax_gates_share_a_step_over_the_slots_of_a_state():
    x = 3 * jax.random.normal(jax.random.key(0), (2, 40, 8))
    gate = gates.Gate(6, "softmax", 0.1, slot_width=2, temperature=0.5)
    params = gate.init(jax.random.key(1), x)
    opening = gate.apply(params, x)
    g = opening.at()
    assert g.shape == (2, 40, 6) and (g[..., :3] == g[..., 3:]).all(), "component i has gate i mod 3"
    np.testing.assert_allclose(g[..., :3].sum(axis=-1), 0.9 + 3 * 0.1, rtol=1e-6)
    np.testing.assert_allclose(g[..., :3], 0.1 + 0.9 * jax.nn.softmax(2 * opening.z), rtol=1e-5)
    cold = opening.replace(temperature=0.01).at()[..., :3]
    assert ((cold > 0.99).sum(axis=-1) == 1).mean() > 0.9, "a low temperature leaves a step to one slot"


@pytest.mark.parametrize("temperature", [0.2, 5.0])
def test_softmax_gates_start_log_uniform_about_their_mean(temperature):
    gate = gates.Gate(2000, "softmax", temperature=temperature)
    x = jnp.zeros((1, 1, 1))
    g = np.asarray(gate.apply(gate.init(jax.random.key(0), x), x).at()).ravel()
    logs = np.log(g / g.max())
    assert logs.min() >= np.log(0.01 / 0.9) - 1e-3 and np.isclose(g.sum(), 1, atol=1e-5)
    assert abs(logs.mean() + np.log(0.9 / 0.01) / 2) < 5 * 1.3 / np.sqrt(2000)  # uniform in (-log 90, 0)


def boxes(seed, slots=3, width=2):
    """Logits' ends, weights and states' reach of a softmax over slots, and all corners of the logits at all of them."""
    rng = np.random.default_rng(seed)
    low = rng.uniform(-2, 2, slots)
    ends = np.stack([low, low + rng.uniform(0, 2, slots)]).astype(np.float32)
    W, reach = rng.normal(size=(slots, slots * width)).astype(np.float32), rng.uniform(0, 0.5, slots * width)
    spread = np.abs(W) @ reach
    whole = ends + np.stack([-spread, spread])
    corners = np.array([[whole[bit, slot] for slot, bit in enumerate(bits)] for bits in np.ndindex(*[2] * slots)])
    opening = gates.Opening(jnp.asarray(ends), None, jnp.asarray(W), "softmax", 0.1, 0, width, 0.5)
    return opening, jnp.asarray(reach, jnp.float32), jnp.asarray(corners, jnp.float32)


@pytest.mark.always
def test_the_range_of_softmax_gates_over_a_box_is_exact():
    for seed in range(10):
        opening, reach, corners = boxes(seed)
        envelope, seen = opening.envelope(reach), opening.replace(z=corners).at()
        np.testing.assert_allclose(envelope.low, seen.min(axis=0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(envelope.high, seen.max(axis=0), rtol=1e-5, atol=1e-6)
    anything = opening.replace(z=jnp.array([[-jnp.inf] * 3, [jnp.inf] * 3])).envelope(reach)
    np.testing.assert_allclose(anything.low, 0.1) and np.testing.assert_allclose(anything.high, 1.0)
    alone = gates.Opening(jnp.array([[-jnp.inf], [jnp.inf]]), None, None, "softmax", 0.0).envelope(jnp.ones(1))
    assert alone.low.tolist() == alone.high.tolist() == [1.0], "a slot without rivals has all of a step"


def test_softmax_gates_change_with_the_state_as_much_as_is_said_and_no_more():
    """|dg| of directions |dh_j| <= d_j, by their Jacobian at all logits of the box that were tried."""
    slopes_at = jax.jit(jax.vmap(jax.jacobian(lambda h, z, opening: opening.replace(z=z).at(h)), (None, 0, None)))
    tightest = []
    for seed in range(10):
        opening, reach, corners = boxes(seed)
        rng = np.random.default_rng(seed)
        within = rng.uniform(corners.min(axis=0), corners.max(axis=0), (192, 3)).astype(np.float32)
        slopes = np.asarray(slopes_at(jnp.zeros(6), jnp.concatenate([corners, within]), opening))
        envelope, d = opening.envelope(reach), rng.uniform(size=6)
        L, (share, reads) = np.asarray(envelope.lipschitz), (np.asarray(value) for value in envelope.rivalry)
        bound, seen = L @ d + share * (reads @ d).max(), (np.abs(slopes) @ d).max(axis=0)
        assert (seen <= bound * (1 + 1e-5)).all()
        np.testing.assert_allclose(envelope.steepness(), L.sum(1) + share * reads.sum(1).max(), rtol=1e-6)
        tightest.append(float((seen / bound).max()))
    assert min(tightest) > 0.5 and max(tightest) > 0.8  # weights of both signs cancel


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
    np.testing.assert_allclose(
        opening.at(before), 0.1 + 0.9 * gates.rescaled_tanh(opening.z + read), rtol=1e-5, atol=1e-6
    )
    one = dataclasses.replace(opening, z=opening.z[1, 3])
    np.testing.assert_allclose(one.at(before[1, 3]), opening.at(before)[1, 3], rtol=1e-6)  # the gates of one step


def test_an_unknown_kind_names_the_choices():
    with pytest.raises(ValueError, match="kind='relu' is not a choice: known: binary, constant"):
        gates.Gate(4, "relu").init(jax.random.key(0), jnp.zeros((1, 1, 2)))
    with pytest.raises(ValueError, match="reads_state='all' is not a choice: known: dense, elementwise, none"):
        gates.Gate(4, reads_state="all").init(jax.random.key(0), jnp.zeros((1, 1, 2)))


@pytest.mark.parametrize(
    ("kind", "active", "words"),
    [("top_k", 0, "use a number from 1 to 4"), ("top_k", 5, "from 1 to 4"), ("binary", 2, "use active=0")],
)
def test_impossible_numbers_of_open_gates_are_refused(kind, active, words):
    with pytest.raises(ValueError, match=words):
        gates.Gate(4, kind, active=active).init(jax.random.key(0), jnp.zeros((1, 1, 2)))


def softsign(z):
    return (1 + z / (1 + jnp.abs(z))) / 2


def softsign_slope(z, xp):
    return 0.5 / (1 + z) ** 2


SOFTSIGN = gates.GateKind(softsign, lambda g: (2 * g - 1) / (1 - jnp.abs(2 * g - 1)), softsign_slope)


@pytest.fixture
def registered(monkeypatch):
    for table in (gates.GATES, mixers.GATES):  # undone after the test
        monkeypatch.setitem(table, "softsign", None)
        del table["softsign"]
    gates.register_gate("softsign", SOFTSIGN)


@pytest.mark.usefixtures("registered")
def test_an_own_kind_of_gate_is_used_as_the_others_are():
    layer = SelectiveSSM(4, 6, gate="softsign", gate_floor=0.1, gate_state="elementwise", certified=True)
    x = jax.random.normal(jax.random.key(0), (2, 5, 4))
    params = layer.init(jax.random.key(1), x)
    (y, _), sown = layer.apply(params, x, mutable="intermediates")
    gate = sown["intermediates"]["gate"][0]
    assert y.shape == (2, 5, 4) and gate.min() > 0.1 and gate.max() < 1
    assert Model(selective=SelectiveConfig(gate="softsign")).selective.gate == "softsign"
    assert gates.largest_slope("softsign") == 0.5 and np.isclose(gates.largest_slope("softsign", 1.0, 2.0), 0.125)
    assert certify(layer, params, input_bound=1.0).state_dependent.status == "holds"


@pytest.mark.parametrize(
    ("name", "changes", "says"),
    [
        ("sigmoid", {}, "there already"),
        ("joint", {"joint": gates.GATES["softmax"].joint}, "depends on the other gates"),
        ("high", {"function": lambda z: 2 * softsign(z)}, "no map to"),
        ("falling", {"function": lambda z: softsign(-z)}, "never falls"),
        ("other", {"inverse": lambda g: g}, "inverse"),
        ("steep", {"slope": lambda z, xp: 0.4 / (1 + z) ** 2}, "no bound"),
        ("rising", {"slope": lambda z, xp: 0.5 + z}, "must not rise"),
    ],
)
def test_what_is_no_gate_is_refused(name, changes, says):
    with pytest.raises(ValueError, match=says):
        gates.register_gate(name, dataclasses.replace(SOFTSIGN, **changes))
    assert set(gates.GATES) == set(mixers.GATES)
