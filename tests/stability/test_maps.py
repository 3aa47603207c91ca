"""Nonlinear maps: chaotic ones are refused with a witness, contracting ones certified, what is sampled is labelled."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.ops import linear_scan
from selssm_jax.stability import certify_map
from selssm_jax.stability.certificate import NAMES
from selssm_jax.stability.simulate import Escape, ExpandingOrbit, observed_rate, simulate_coupled

EVERYWHERE = (-np.inf, np.full(4, np.inf))
BOX, INPUTS = (-1, np.ones(4)), (-1, np.ones(2))
_rng = np.random.default_rng(0)
W = _rng.normal(size=(4, 4))
W = 0.9 * W / np.abs(W).sum(1, keepdims=True)
B = 0.3 * _rng.normal(size=(4, 2))


def leaky(h, x):
    """Rows of |W| sum to 0.9: a step shrinks differences by 0.95 at most."""
    return 0.5 * h + 0.5 * jnp.tanh(W @ h + B @ x)


def looped(h, x):
    """`leaky`, written so that its operations tell nothing."""
    return jax.lax.fori_loop(0, 1, lambda _, h: leaky(h, x), h)


def lorenz(h, x):
    """A step of Euler's, 0.005 long; it has the exponent 0.9 by time."""
    flow = [10 * (h[1] - h[0]), h[0] * (28 - h[2]) - h[1], h[0] * h[1] - 8 / 3 * h[2]]
    return h + 0.005 * jnp.stack(flow)


CHAOS = {
    "logistic": (lambda h, x: 3.9 * h * (1 - h), ([0.0], [1.0]), 0.495),
    "Henon": (lambda h, x: jnp.stack([1 - 1.4 * h[0] ** 2 + h[1], 0.3 * h[0]]), ([-1.5, -0.5], [1.5, 0.5]), 0.419),
    "Lorenz": (lorenz, ([-30, -40, 0], [30, 40, 70]), 0.0045),
}


@pytest.mark.parametrize("name", CHAOS)
def test_chaotic_maps_are_refused_with_a_witness(name):
    f, box, exponent = CHAOS[name]
    certificate = certify_map(f, states=box)
    verdict, orbit = certificate.contraction, certificate.contraction.witness
    assert verdict.status == "refuted" and isinstance(orbit, ExpandingOrbit) and certificate.horizon() == np.inf
    distances = orbit.replay(f, steps=3)
    assert distances[3] / distances[0] == pytest.approx(verdict.rate**3, rel=0.15)
    assert certificate.lyapunov.status == "refuted"
    assert certificate.lyapunov.rate == pytest.approx(exponent, rel=0.15)
    assert not any(getattr(certificate, one).status == "holds" for one in NAMES if one != "printed_condition")
    assert "ExpandingOrbit" in json.loads(certificate.to_json())["uniform"]["witness"]["kind"]


def test_a_leaky_network_is_certified_and_no_pair_of_paths_exceeds_it():
    certificate = certify_map(leaky, states=(-1.1, np.full(4, 1.1)), inputs=INPUTS, noise_bound=0.05)
    verdict = certificate.contraction
    assert verdict.status == "holds" and 0.85 < verdict.rate <= 0.95 and certificate.stationary_law.status == "holds"
    assert np.array_equal(certificate.invariant_radius, np.full(4, 1.1)) and certificate.horizon() < 200
    rng, step = np.random.default_rng(1), jax.jit(lambda h, xw: leaky(h, xw[:2]) + xw[2:])
    for _ in range(5):
        starts = rng.choice([-1.1, 1.1], (2, 4))
        given = np.concatenate([rng.choice([-1, 1], (40, 2)), rng.uniform(-0.05, 0.05, (40, 4))], axis=1)
        distances = simulate_coupled(step, starts, given, weights=verdict.weights)
        assert (distances <= distances[0] * verdict.rate ** np.arange(41) + 1e-6).all()
        assert observed_rate(distances, floor=1e-4) <= verdict.rate + 1e-3


def gated(weights, h, x):
    """A leak and a gated network that reads the state, of rows that are bounded below."""
    leak, W, U, B, V = weights
    return leak * h + (0.95 - leak) * jnp.tanh(W @ h + B @ x) * jax.nn.sigmoid(U @ h + V @ x)


def draw_gated(rng):
    """Weights whose bounds of the Jacobian have rows of 0.6 to 0.99."""
    leak = rng.uniform(0.1, 0.5)
    W, U = rng.normal(size=(2, 3, 3))
    rows = np.abs(W).sum(1, keepdims=True) + np.abs(U).sum(1, keepdims=True) / 4
    share = (rng.uniform(0.6, 0.99, (3, 1)) - leak) / (0.95 - leak) / rows
    return leak, W * share, U * share, *rng.normal(size=(2, 3, 2))


@jax.jit
def attack(weights, v, z):
    """The largest weighted norm of the Jacobian that gradient ascent finds in the box |z_i| <= 1."""

    def expansion(z):
        J = jax.jacfwd(lambda h: gated(weights, h, z[3:]))(z[:3])
        return (jnp.abs(J) @ v / v).max()

    def step(z, reach):
        return jnp.clip(z + reach * jnp.sign(jax.vmap(jax.grad(expansion))(z)), -1, 1), jax.vmap(expansion)(z).max()

    return jax.lax.scan(step, z, 0.3 * 0.9 ** jnp.arange(40))[1].max()


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.exhaustive)])
def test_no_certificate_of_a_random_map_is_exceeded(count):
    rng, room = np.random.default_rng(2), []
    for _ in range(count):
        weights = draw_gated(rng)
        verdict = certify_map(
            lambda h, x, weights=weights: gated(weights, h, x), states=(-1, np.ones(3)), inputs=(-1, np.ones(2))
        ).contraction
        assert verdict.status == "holds"
        z = rng.uniform(-1, 1, (32, 5))
        room.append(verdict.rate - float(attack(weights, verdict.weights, z)))
    assert min(room) > -1e-6 and np.median(room) < 0.3


def test_gaussian_noise_is_certified_over_all_states_or_not_at_all():
    certificate = certify_map(leaky, states=EVERYWHERE, inputs=(-np.inf, np.full(2, np.inf)), noise_bound=np.inf)
    assert certificate.contraction.status == "holds" and certificate.contraction.rate <= 0.95
    certificate = certify_map(leaky, states=BOX, inputs=INPUTS, noise_bound=np.inf)
    assert certificate.contraction.status == "not established" and "leaves the box" in certificate.contraction.reason


def test_linear_maps_have_the_spectral_radius_of_their_sizes():
    verdict = certify_map(lambda h, x: jnp.asarray(W) @ h, states=BOX).contraction
    assert verdict.rate == pytest.approx(np.abs(np.linalg.eigvals(np.abs(W))).max(), rel=2e-2)


def test_a_bistable_map_is_refused_though_its_orbits_settle():
    certificate = certify_map(lambda h, x: jnp.tanh(3 * h + x), states=([-1], [1]), inputs=([-0.1], [0.1]))
    orbit = certificate.contraction.witness
    assert certificate.contraction.status == "refuted" and certificate.lyapunov.status != "refuted"
    assert abs(orbit.start[0]) < 0.1 and orbit.growth == pytest.approx(3, rel=0.02)


def test_what_is_sampled_is_labelled_and_never_certified():
    certificate = certify_map(looped, states=BOX, inputs=INPUTS)
    assert all(getattr(certificate, name).status != "holds" for name in NAMES if name != "printed_condition")
    reason = certificate.contraction.reason
    assert reason.startswith("Sampled, not proved") and "no rule" in reason and "give jacobian" in reason
    proved = certify_map(leaky, states=BOX, inputs=INPUTS).contraction
    assert proved.status == "holds"
    assert certificate.constants["largest expansion sampled"] == pytest.approx(proved.rate, rel=0.02)


def test_layers_are_maps_too_and_are_sampled():
    def layer(h, x):
        gate = jax.nn.sigmoid(h + x[:4])[None, None]
        return linear_scan(0.5 * gate, gate * x[None, None, 4:], h[None])[1][0]

    certificate = certify_map(layer, states=BOX, inputs=(-0.2, np.full(8, 0.2)))
    assert certificate.contraction.reason.startswith("Sampled, not proved")
    assert 0.3 < certificate.constants["largest expansion sampled"] < 0.7


def test_bounds_of_ones_own_derivation_prove_what_operations_do_not():
    J, K = 0.5 * np.eye(4) + 0.5 * np.abs(W), 0.5 * np.abs(B)
    certificate = certify_map(looped, states=(-10, np.full(4, 10.0)), inputs=INPUTS, jacobian=J, input_jacobian=K)
    assert certificate.contraction.status == "holds" and certificate.contraction.rate <= 0.951
    alone = certify_map(looped, states=(-10, np.full(4, 10.0)), inputs=INPUTS, jacobian=J).contraction
    assert alone.status == "not established" and "was not proved" in alone.reason
    with pytest.raises(ValueError, match=r"jacobian\[\d, \d\] = .* is no bound: the derivative is .* at \(h, x\)"):
        certify_map(looped, states=BOX, inputs=INPUTS, jacobian=0.9 * J)


@jax.custom_jvp
def sorted_half(h):
    """A half, of an operation without a rule, that says it were 20."""
    return 0.5 * jnp.sort(h)


@jax.custom_jvp
def rounded(h):
    """Steps that say they were 20."""
    return 0.1 * jnp.round(h)


sorted_half.defjvp(lambda h, t: (sorted_half(*h), 20 * t[0]))
rounded.defjvp(lambda h, t: (rounded(*h), 2 * t[0]))
ONE = (-1, np.ones(1))


def in_its_type(h):
    """A half, and 20 in float64."""
    return jnp.sort(h) * (20 if h.dtype == jnp.float64 else 0.5)


@pytest.mark.parametrize("f", [sorted_half, rounded, in_its_type])
def test_a_rule_of_differentiation_that_f_does_not_follow_refutes_nothing(f):
    certificate = certify_map(lambda h, x: f(h), states=ONE)
    assert {certificate.contraction.status, certificate.lyapunov.status} == {"not established"}


BEYOND = {
    "hidden derivative": (lambda h, x: jnp.tanh(3 * jax.lax.stop_gradient(h)), 0.0),
    "half of it hidden": (lambda h, x: 0.5 * h + 0.4 * jnp.tanh(3 * jax.lax.stop_gradient(h)), 0.5),
    "steps": (lambda h, x: 0.5 * jnp.floor(3 * h) / 3, 0.0),
    "a rule of its own": (lambda h, x: sorted_half(h), 0.4),
    "a jump": (lambda h, x: jnp.where(h > 0.3, 0.5 * h, 0.5 * h + 0.01), 0.5),
    "the type": (lambda h, x: h * (0.5 if h.dtype == jnp.float64 else 0.9), 0.5),
    "NaN": (lambda h, x: 0.5 * h + jnp.nan, 0.5),
}


@pytest.mark.parametrize("name", BEYOND)
def test_differences_of_f_itself_attack_a_bound(name):
    f, bound = BEYOND[name]
    with pytest.raises(ValueError, match=r"is no bound: (component 0 of f changes by|the derivative is)"):
        certify_map(f, states=ONE, jacobian=np.full((1, 1), bound))


def test_a_bound_on_inputs_is_attacked_by_differences_too():
    given = dict(states=ONE, inputs=ONE, jacobian=np.full((1, 1), 0.5))
    with pytest.raises(ValueError, match="component 0 of f changes by"):
        certify_map(lambda h, x: 0.5 * h + 0.3 * jnp.sign(x), input_jacobian=np.full((1, 1), 0.1), **given)
    exact = certify_map(lambda h, x: 0.5 * h + 0.1 * jnp.abs(x), input_jacobian=np.full((1, 1), 0.1), **given)
    assert exact.contraction.status == "holds"


def test_maps_are_spoken_of_as_maps():
    chaos = certify_map(CHAOS["logistic"][0], states=CHAOS["logistic"][1])
    words = str(chaos)
    assert "of gates" not in words and "gates that read" not in words and "sequence of inputs: refuted" in words
    assert " nats a step)" in words and "standard error" in chaos.lyapunov.reason
    endless = certify_map(lambda h, x: jnp.tanh(h / 2), states=ONE, noise_bound=np.inf)
    assert "use states=(-inf, inf)" in endless.contraction.reason
    left = certify_map(lambda h, x: 0.5 * h + 0.9, states=ONE).contraction.reason
    assert "f leaves the box" in left and "noise" not in left


def test_a_box_that_is_left_certifies_nothing_and_the_escape_is_shown():
    verdict = certify_map(lambda h, x: 0.9 * h + x, states=([-1], [1]), inputs=([-0.2], [0.2])).contraction
    assert verdict.status == "not established" and isinstance(verdict.witness, Escape)
    assert abs(verdict.witness.state) <= 1 < abs(verdict.witness.image)
    whole = certify_map(lambda h, x: 0.9 * h + x, states=([-2], [2]), inputs=([-0.2], [0.2])).contraction
    assert whole.status == "holds" and whole.rate == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (dict(states=(1.0,)), "states has 1 entries, expected a pair"),
        (dict(states=(np.ones(4), -1)), "expected low <= high"),
        (dict(states=(-1, 1)), "states has ends of shape"),
        (dict(noise_bound=-1), "noise_bound has shape"),
        (dict(jacobian=np.ones(4)), r"jacobian has shape \(4,\)"),
        (dict(jacobian=0.75), r"the value 0.75, expected shape \(4, 4\), finite and not negative"),
        (dict(input_jacobian=np.ones((4, 2))), "without jacobian"),
        (dict(states=(-1, np.ones(3))), "f returns"),
    ],
)
def test_what_cannot_be_meant_is_an_error_before_work(given, words):
    f = (lambda h, x: leaky(jnp.ones(4), x)) if "f returns" in words else leaky
    with pytest.raises(ValueError, match=words):
        certify_map(f, **(dict(states=BOX, inputs=INPUTS) | given))


def test_bounds_without_end_prove_nothing():
    verdict = certify_map(lambda h, x: 0.1 * h**3, states=(-np.inf, np.full(1, np.inf))).contraction
    assert verdict.status == "refuted" and abs(verdict.witness.start) == pytest.approx(np.sqrt(10))
    verdict = certify_map(lambda h, x: h * jnp.sin(h) / 1e3 + jnp.exp(h - 20), states=(-np.inf, np.full(1, np.inf)))
    assert verdict.contraction.status == "not established" and "not all finite" in verdict.contraction.reason


def test_an_endless_box_of_which_nothing_is_proved_is_an_error():
    with pytest.raises(ValueError, match="states reach to infinity, and the Jacobian was not enclosed"):
        certify_map(looped, states=EVERYWHERE, inputs=INPUTS)
