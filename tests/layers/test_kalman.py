"""KalmanSSM against a float64 loop, the nats of its gates against their identities, and its certificate attacked."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.layers.bounds import Ball, Box
from selssm_jax.layers.kalman import KalmanSSM
from selssm_jax.layers.selective import RADIUS
from selssm_jax.stability import certify, certify_bounds

B, T, D, N = 2, 13, 3, 4
DECAYS = pytest.mark.parametrize("decay", ["constant", "input"])


def build(decay="constant", scale=0.5, seed=0, **fields):
    """A layer, parameters away from where they begin, and an input."""
    layer = KalmanSSM(D, N, decay=decay, **fields)
    x = jax.random.normal(jax.random.key(1), (B, T, D))
    leaves, tree = jax.tree.flatten(layer.init(jax.random.key(0), x)["params"])
    rng = np.random.default_rng(seed)
    return layer, tree.unflatten([leaf + scale * rng.standard_normal(leaf.shape).astype("f") for leaf in leaves]), x


def filter_steps(params, x, m, P, reset):
    """(y, means, variances, gates, log precisions) of one step and one sequence at a time, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
    x, shown = np.asarray(x, np.float64), []
    for b, t in np.ndindex(*x.shape[:2]):
        if reset[b, t]:
            m[b], P[b] = 0, 1
        a = RADIUS * np.tanh(p["A"] + (x[b, t] @ p["decay_kernel"] if "decay_kernel" in p else 0))
        zeta = x[b, t] @ p["G"]["kernel"] + p["G"]["bias"]
        predicted = a**2 * P[b] + 1 - a**2
        gate = 1 / (1 + np.exp(-(zeta + np.log(predicted))))  # a sigmoid of the logits and of log P-
        m[b], P[b] = (1 - gate) * a * m[b] + gate * (x[b, t] @ p["B"]), (1 - gate) * predicted
        shown.append((m[b] @ p["C"] + p["D"] * x[b, t], m[b].copy(), P[b].copy(), gate))
    return [np.array(values).reshape(*x.shape[:2], -1) for values in zip(*shown, strict=True)]


@DECAYS
@pytest.mark.parametrize("method", ["sequential", "associative"])
def test_layer_equals_the_loop_and_its_gate_is_a_sigmoid_that_reads_the_uncertainty(decay, method):
    layer, params, x = build(decay, method=method)
    rng, reset = np.random.default_rng(0), np.zeros((B, T), bool)
    reset[0, 5] = reset[1, 0] = True
    m, nats = rng.standard_normal((B, N)).astype("f"), rng.uniform(0, 2, (B, N)).astype("f")
    state = {"m": jnp.asarray(m), "nats": jnp.asarray(nats)}
    (y, last), sown = jax.jit(functools.partial(layer.apply, mutable=["intermediates"]))(
        {"params": params}, x, state, reset=jnp.asarray(reset)
    )
    out, means, P, gates = filter_steps(params, x, m.astype(float), np.exp(-2.0 * nats), reset)
    shown = {name: np.asarray(values[0]) for name, values in sown["intermediates"].items() if name != "G"}
    held = -np.log(P) / 2
    for found, expected in (
        (y, out),
        (last["m"], means[:, -1]),
        (last["nats"], held[:, -1]),
        (shown["gate"], gates),
        (shown["state"], np.concatenate([means, held], axis=-1)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@DECAYS
def test_nats_gained_less_nats_forgotten_are_what_the_state_holds(decay):
    layer, params, x = build(decay)
    _, sown = layer.apply({"params": params}, x, mutable=["intermediates"])
    gained, forgotten, state = (np.asarray(sown["intermediates"][name][0]) for name in ("gained", "forgotten", "state"))
    assert (gained > 0).all() and (forgotten >= 0).all() and (forgotten[:, 0] == 0).all()
    np.testing.assert_allclose(np.cumsum(gained - forgotten, axis=1), state[..., N:], atol=1e-5)


@pytest.mark.always
def test_on_data_of_its_own_model_it_is_the_filter_and_its_nats_are_the_information():
    """Against the joint law of states and readings, whose conditional moments are those of a Gaussian."""
    a, steps = 0.9, 12
    layer = KalmanSSM(2, 1)
    x = np.random.default_rng(0).standard_normal((1, steps, 2)).astype("f")  # (the reading, what is said of its noise)
    zeta = 1.5 * x[0, :, 1] - 0.3
    params = {
        "A": jnp.arctanh(jnp.array([a])),
        "B": jnp.array([[1.0], [0.0]]),
        "C": jnp.ones((1, 2)),
        "D": jnp.zeros(2),
        "G": {"kernel": jnp.array([[0.0], [1.5]]), "bias": jnp.array([-0.3])},
    }
    _, last = layer.apply({"params": params}, jnp.asarray(x))
    lags = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
    states = a**lags
    readings = states + np.diag(np.exp(-zeta))
    weights = np.linalg.solve(readings, states[-1])
    np.testing.assert_allclose(last["m"][0, 0], weights @ x[0, :, 0], rtol=1e-5)
    np.testing.assert_allclose(last["nats"][0, 0], -np.log(1 - states[-1] @ weights) / 2, rtol=1e-5)


SAMPLES = 40_000


@DECAYS
@pytest.mark.parametrize("begin", ["unknown", "held", "reset"])
def test_samples_have_the_law_of_what_is_believed(decay, begin):
    """Mean m_t and variance P_t of the filter at every step, of the samples and by what is sown of their law; from a
    state held, as a sample of N(m_0, P_0), on.
    """
    layer, params, x = build(decay)
    x, rng = x[:1], np.random.default_rng(0)
    m, nats = rng.standard_normal((1, N)), rng.uniform(0.2, 2, (1, N)) * (begin != "unknown")
    m *= begin != "unknown"
    reset = np.zeros((1, T), bool)
    reset[0, 5] = begin == "reset"
    _, means, P, _ = filter_steps(params, x, m.copy(), np.exp(-2 * nats), reset)
    state = {
        "m": jnp.asarray(m + np.exp(-nats) * rng.standard_normal((SAMPLES, N)), jnp.float32),
        "nats": jnp.asarray(np.repeat(nats, SAMPLES, axis=0), jnp.float32),
    }
    (_, last), sown = jax.jit(functools.partial(layer.clone(sampled=True).apply, mutable=["intermediates", "laws"]))(
        {"params": params},
        jnp.repeat(x, SAMPLES, axis=0),
        state,
        reset=jnp.asarray(np.repeat(reset, SAMPLES, axis=0)),
        rngs={"noise": jax.random.key(3)},
    )
    samples = np.asarray(sown["intermediates"]["state"][0])[..., :N]
    assert (np.asarray(last["m"]) == samples[:, -1]).all()
    # five standard errors
    np.testing.assert_allclose(samples.mean(axis=0), means[0], atol=5 / np.sqrt(SAMPLES))
    np.testing.assert_allclose(samples.var(axis=0), P[0], rtol=5 * np.sqrt(2 / SAMPLES))
    law = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), sown["laws"]["law"][0])
    mean, variance = m[0], np.exp(-2 * nats[0])
    for t in range(T):
        mean, variance = law.A[t] * mean + law.drive[t], law.A[t] ** 2 * variance + law.noise[t] ** 2
        np.testing.assert_allclose(mean, means[0, t], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(variance, P[0, t], rtol=1e-4)


def test_samples_need_their_generator_split_as_the_whole_and_are_not_certified():
    layer, params, x = build(sampled=True)
    with pytest.raises(Exception, match="noise"):
        layer.apply({"params": params}, x)
    _, half = layer.apply({"params": params}, x[:, :6], rngs={"noise": jax.random.key(0)})
    y, _ = layer.apply({"params": params}, x[:, 6:], half, rngs={"noise": jax.random.key(1)})
    again, _ = layer.apply({"params": params}, x[:, 6:], half, rngs={"noise": jax.random.key(1)})
    assert (y == again).all()
    assert certify(layer, params, input_bound=1.0).contraction.status == "not established"


def test_readings_of_any_precision_open_or_shut_the_gate_and_stay_numbers():
    layer, params, x = build(scale=0.0)

    @jax.jit
    def slopes(params, x, size):
        return jax.grad(lambda params: jnp.square(layer.apply({"params": params}, x)[0] / size).mean())(params)

    for size in (1e-30, 1e3, 1e15):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes(params, size * x, size)))


@functools.partial(jax.jit, static_argnums=0)
def jacobians(layer, params, m, P, x):
    """d(m, P)_t / d(m, P)_{t-1} of one step, (S, 2N, 2N)."""

    def step(flat, x):
        state = {"m": flat[None, :N], "nats": -jnp.log(flat[None, N:]) / 2}
        _, after = layer.apply({"params": params}, x[None, None], state)
        return jnp.concatenate([after["m"], jnp.exp(-2 * after["nats"])], axis=-1)[0]

    return jax.vmap(jax.jacrev(step))(jnp.concatenate([m, P], axis=-1), x)


def attack(layer, params, region, x, rng, *, ascents):
    """Largest |derivatives| found over what is stated of them, at inputs of the set and states of the box, and at worse
    ones that steps of gradient ascent lead to.
    """
    bounds = layer.apply({"params": params}, region, method="bounds")
    reach, J = np.asarray(bounds.box[:N]), np.asarray(bounds.jacobian)
    m = (reach * rng.uniform(-1, 1, (len(x), N))).astype("f")
    P = np.exp(rng.uniform(-8, 0, (len(x), N))).astype("f")
    found = [np.abs(jacobians(layer, params, m, P, x)).max(axis=0)]
    norm = jax.jit(jax.grad(lambda m, P: jnp.square(jacobians(layer, params, m, P, x)[:, :N, N:]).sum(), (0, 1)))
    for _ in range(ascents):
        dm, dP = norm(m, P)
        m = np.clip(m + 0.3 * reach * np.sign(dm), -reach, reach).astype("f")
        P = np.clip(P * np.exp(0.5 * np.sign(dP)), 1e-4, 1).astype("f")
        found.append(np.abs(jacobians(layer, params, m, P, x)).max(axis=0))
    found = np.max(found, axis=0)
    assert (found[J == 0] == 0).all()
    return (found / np.where(J > 0, J, 1)).max(), certify_bounds(bounds)


@pytest.mark.parametrize(
    ("decay", "count", "ascents"),
    [
        ("constant", 3, 0),
        ("input", 3, 0),
        pytest.param("constant", 125, 3, marks=pytest.mark.exhaustive),
        pytest.param("input", 125, 3, marks=pytest.mark.exhaustive),
    ],
)
def test_no_input_and_no_state_leads_beyond_the_certificate_which_always_holds(decay, count, ascents):
    rng = np.random.default_rng(3)
    for seed in range(count):
        layer, params, _ = build(decay, scale=rng.choice([0.0, 0.5, 2.0]), seed=seed)
        radius = rng.choice([0.3, 1.5, 5.0])
        inner = rng.standard_normal((64, D))
        on_ball = (radius * inner / np.linalg.norm(inner, axis=1, keepdims=True)).astype("f")
        for region, x in (
            (Box(radius), np.clip(radius * inner, -radius, radius).astype("f")),
            (Ball(jnp.ones(D), radius), on_ball),
        ):
            share, certificate = attack(layer, params, region, x, rng, ascents=ascents)
            assert share <= 1 + 1e-3, (seed, share)
            assert certificate.contraction.status == "holds" and certificate.contraction.rate < 1


def test_two_states_come_as_near_as_is_certified():
    layer, params, _ = build("input", scale=1.0)
    certificate = certify(layer, params, input_bound=1.5)
    x = jnp.asarray(np.random.default_rng(0).uniform(-1.5, 1.5, (1, 60, D)).astype("f"))
    step = jax.jit(lambda x, state: layer.apply({"params": params}, x, state)[1])
    one = step(x[:, :1], layer.initial_state(1))
    states = [one, layer.initial_state(1)]
    gaps = []
    for t in range(60):
        flat = [np.concatenate([state["m"], np.exp(-2 * state["nats"])], axis=-1)[0] for state in states]
        gaps.append(np.abs(flat[0] - flat[1]).max())
        states = [step(x[:, t : t + 1], state) for state in states]
    verdict = certificate.contraction
    assert verdict.status == "holds"
    allowed = verdict.constant * verdict.rate ** np.arange(60) * gaps[0]
    assert (np.array(gaps) <= allowed * 1.01 + 1e-5).all()


def test_inputs_without_bound_leave_the_mean_without_a_box():
    layer, params, _ = build()
    certificate = certify(layer, params)
    assert certificate.contraction.status == "not established"
