"""Certificates of layers: true for the layer itself, kept through training by construction, and stated through one
interface.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import runs
from selssm_jax.compression.sparse_decode import make_decoder
from selssm_jax.config import Model, SelectiveConfig, Task, mixers
from selssm_jax.layers import SelectiveSSM
from selssm_jax.layers.bounds import Ball, Bounds, Box
from selssm_jax.layers.gates import GATES
from selssm_jax.model import SequenceModel
from selssm_jax.ops import expected_iterations, newton_scan
from selssm_jax.stability import certify, certify_model

WIDTH, STATE = 8, 12
FORMS = [
    {"transition": "diagonal"},
    {"transition": "complex"},
    {"transition": "dense"},
    {"transition": "diagonal", "update": "effective"},
    {"transition": "diagonal", "gate_state": "elementwise", "certified": True},
    {"transition": "dense", "gate_state": "dense", "certified": True},
    {"transition": "diagonal", "gate_state": "dense", "certified": True, "update": "effective"},
]


def made(seed=0, scale=1.0, **form):
    """A layer and parameters as large as training may make them."""
    active = {"gate_active": 5} if form.get("gate") == "top_k" else {}
    layer = SelectiveSSM(WIDTH, STATE, **({"gate_floor": 0.05} | active | form))
    params = layer.init({"params": jax.random.key(seed), "gates": jax.random.key(1)}, jnp.zeros((1, 3, WIDTH)))[
        "params"
    ]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed + 1), len(leaves))
    return layer, tree.unflatten(
        [leaf + scale * jax.random.normal(key, leaf.shape) for leaf, key in zip(leaves, keys, strict=True)]
    )


@pytest.mark.parametrize(
    ("form", "kind"),
    [(form, kind) for form in FORMS for kind in GATES if not mixers.GATES[kind].jumps or "gate_state" not in form],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_coupled_states_of_a_layer_stay_under_its_certificate(form, kind):
    layer, params = made(gate=kind, **form)
    verdict = certify(layer, params, input_bound=2.0).contraction
    assert verdict.status == "holds", verdict
    x = jax.random.uniform(jax.random.key(3), (1, 300, WIDTH), minval=-2, maxval=2)
    zero = layer.initial_state(1)
    reach = certify(layer, params, input_bound=2.0).invariant_radius
    starts = [zero + sign * jnp.asarray(reach, zero.dtype)[None] for sign in (-1, 1)]
    states = [
        layer.apply({"params": params}, x, start, mutable=["intermediates"])[1]["intermediates"]["state"][0][0]
        for start in starts
    ]
    distances = np.abs(np.asarray(states[0] - states[1])).max(axis=1)
    first = float(np.abs(np.asarray(starts[0] - starts[1])).max())
    allowed = verdict.constant * verdict.rate ** (1 + np.arange(300)) * first
    assert (distances <= allowed * (1 + 1e-5) + 1e-5 * first).all()  # float32 states


@pytest.mark.parametrize(
    "form",
    [
        {"transition": "diagonal", "gate": "softmax"},
        {"transition": "complex", "certified": True},
        {"transition": "complex", "update": "effective"},
    ],
    ids=lambda form: "-".join(map(str, form.values())),
)
def test_states_of_a_normalised_drive_stay_in_the_box_that_is_stated(form):
    """The largest input that there is, of the sign that moves a component most, for as long as it takes."""
    layer, params = made(drive="normalised", **form)
    found = certify(layer, params, input_bound=1.5)
    assert found.contraction.status == "holds" and np.isfinite(found.invariant_radius).all()
    for component in range(3):
        x = jnp.broadcast_to(1.5 * jnp.sign(params["B"][:, component]), (1, 600, WIDTH))
        last = layer.apply({"params": params}, x)[1][0]
        assert (jnp.abs(last) <= found.invariant_radius * (1 + 1e-5)).all()
    assert form.get("update") or float((jnp.abs(last) / found.invariant_radius).max()) > 0.05


CLIMB = 60  # steps of the ascent


ATTACKED = [
    {"gate_state": "elementwise", "gate_slot_width": 2},
    {"gate_state": "dense", "update": "effective", "gate_slot_width": 3},
    {"gate_state": "dense", "transition": "dense", "gate_temperature": 0.3},
]


@pytest.mark.always
@pytest.mark.always
@pytest.mark.parametrize(
    ("form", "layers"),
    [
        (ATTACKED[0], 5),
        *(pytest.param(form, 170, marks=pytest.mark.exhaustive) for form in ATTACKED),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else str(value),
)
def test_ascent_on_the_expansion_exceeds_no_certificate_of_softmax_gates(form, layers):
    """Over input, state and direction, of layers whose caps are nearly reached."""
    form = {"gate": "softmax", "certified": True, "solver": "sequential"} | form
    (layer, drawn), rng = made(**form), np.random.default_rng(0)
    every = [
        jax.tree.map(lambda leaf: jnp.asarray(2 * rng.standard_normal(leaf.shape), jnp.float32), drawn)
        for _ in range(layers)
    ]
    found = [certify(layer, params, input_bound=2.0) for params in every]
    assert {one.contraction.status for one in found} == {"holds"}
    box, v = (
        jnp.asarray(np.stack(values), jnp.float32)
        for values in ([one.invariant_radius for one in found], [one.contraction.weights for one in found])
    )

    def stretch(where, params, box, v):
        x, h, d = (jnp.tanh(part) * size for part, size in zip(where, (2.0, box, v), strict=True))

        def step(h):
            return layer.apply({"params": params}, x[None, None], h[None])[1][0]

        return jnp.max(jnp.abs(jax.jvp(step, (h,), (d,))[1]) / v) / jnp.max(jnp.abs(d) / v)

    def climb(where, *given):
        def step(where, _):
            value, slope = jax.value_and_grad(stretch)(where, *given)
            return jax.tree.map(lambda a, b: a + 0.2 * jnp.sign(b), where, slope), value

        return jax.lax.scan(step, where, length=CLIMB)[1].max()

    keys = jax.random.split(jax.random.key(5), 3)
    starts = [jax.random.normal(key, (layers, n)) for key, n in zip(keys, (WIDTH, STATE, STATE), strict=True)]
    params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)
    seen = np.asarray(jax.jit(jax.vmap(climb))(starts, params, box, v))
    rates = np.array([one.contraction.rate for one in found])
    assert (seen <= rates + 1e-5).all() and (seen > 0.3).any()  # float32 steps


@pytest.mark.parametrize("kind", GATES)
@pytest.mark.parametrize("reads", ["none", "elementwise", "dense"])
def test_bounds_hold_for_every_input_of_the_set(kind, reads):
    layer, params = made(gate=kind, gate_state=reads, gate_floor=0.1)
    bounds = layer.apply({"params": params}, Box(1.5), method="bounds")
    x = jax.random.uniform(jax.random.key(0), (4, 200, WIDTH), minval=-1.5, maxval=1.5)
    x = x.at[:, 0].set(jnp.broadcast_to(1.5 * jnp.sign(params["B"][:, 0])[None], (4, WIDTH)))
    gates = np.asarray(layer.apply({"params": params}, x, mutable=["intermediates"])[1]["intermediates"]["gate"][0])
    assert (gates >= np.asarray(bounds.gate_min) - 1e-6).all() and (gates <= np.asarray(bounds.gate_max) + 1e-6).all()
    drive = np.abs(x @ params["B"]).max(axis=(0, 1))
    assert (drive <= np.asarray(bounds.drive_bound) * (1 + 1e-5)).all() and drive[0] >= 0.99 * bounds.drive_bound[0]
    assert (bounds.gate_lipschitz is None) == (reads == "none")


def test_a_ball_is_the_image_of_a_norm():
    scale, kernel = jnp.array([1.0, -2.0, 0.5]), jax.random.normal(jax.random.key(0), (3, 4))
    ball = Ball(scale, float(jnp.sqrt(3.0)))
    x = nn.RMSNorm().apply({"params": {"scale": scale}}, jax.random.normal(jax.random.key(1), (20_000, 3)))
    reached = jnp.abs(x @ kernel).max(axis=0)
    assert (reached <= ball.reach(kernel) * (1 + 1e-5)).all() and (reached >= 0.95 * ball.reach(kernel)).all()
    assert (jnp.abs(x).max(axis=0) <= ball.largest(3) * (1 + 1e-5)).all()
    assert Box(jnp.inf).reach(jnp.array([[0.0, 1.0]])).tolist() == [0.0, jnp.inf]


@pytest.mark.parametrize("form", [form for form in FORMS if form.get("certified")], ids=lambda form: form["gate_state"])
def test_certified_layers_stay_so_while_they_train(form):
    """They are trained to diverge: to remember as much and to read the state as strongly as they can."""
    layer, params = made(scale=0.1, **form)
    optimizer = optax.adam(0.1)
    x = 5 * jax.random.normal(jax.random.key(0), (4, 32, WIDTH))

    @jax.jit
    def step(params, state):
        def loss(params):
            return -jnp.abs(layer.apply({"params": params}, x)[0]).mean() - sum(
                jnp.abs(leaf).mean() for leaf in jax.tree.leaves(params["G"])
            )

        updates, state = optimizer.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(300):
        params, state = step(params, state)
    verdict = certify(layer, params).contraction
    assert verdict.status == "holds" and verdict.rate < 1, verdict
    free = layer.clone(certified=False)
    assert certify(free, params, input_bound=2.0).contraction.status != "holds"
    solved, expected = (
        free.clone(solver=solver).apply({"params": params}, x)[0] for solver in ("newton", "sequential")
    )
    # the fallback is right where nothing contracts
    np.testing.assert_allclose(solved, expected, rtol=1e-3, atol=1e-3 * float(jnp.abs(expected).max()))


@pytest.mark.parametrize(
    "form",
    [form for form in FORMS if form.get("certified") and form.get("update") is None],
    ids=lambda form: form["gate_state"],
)
@pytest.mark.parametrize("scale", [0.1, 1.0])
@pytest.mark.parametrize("steps", [64, 512])
def test_iterations_of_certified_layers_are_those_expected(form, scale, steps, monkeypatch):
    layer, params = made(scale=scale, **form)
    if form["transition"] == "dense":  # rows that are as long as they may be leave no room that float32 can see
        params["A"] = 0.7 * params["A"] / jnp.abs(params["A"]).sum(axis=1, keepdims=True)
    found = []

    def recorded(step, h0, xs, *, jacobian, solver, factor):
        h, solve = jax.vmap(lambda h0, xs: newton_scan(step, h0, xs, jacobian=jacobian))(h0, xs)
        found.append((float(factor), int(solve.iterations.max())))
        return h, jnp.zeros((), bool)

    monkeypatch.setattr("selssm_jax.layers.selective.nonlinear_scan", recorded)
    layer.apply({"params": params}, jax.random.normal(jax.random.key(0), (1, steps, WIDTH)))
    ((factor, iterations),) = found
    assert iterations / 2 <= expected_iterations(factor, steps) <= 2 * iterations


def test_iterations_are_not_expected_without_contraction():
    assert expected_iterations(1.0, 100) == expected_iterations(float("nan"), 100) == float("inf")
    assert expected_iterations(0.9, 1) == 1.0
    assert expected_iterations(0.9, 100, frozen=0.89) <= expected_iterations(0.9, 100)


def test_free_layers_that_are_refused_fall_back_to_right_states():
    layer, params = made(scale=3.0, gate_state="dense", gate_floor=0.0, solver="newton")
    assert certify(layer, params, input_bound=3.0).contraction.status != "holds"
    x = jax.random.normal(jax.random.key(0), (2, 200, WIDTH))
    y, _ = layer.apply({"params": params}, x)
    expected, _ = layer.clone(solver="sequential").apply({"params": params}, x)
    # float32; a solve ends at a relative residual of 1e-6
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


def test_certified_needs_a_floor_and_bounded_noise():
    with pytest.raises(ValueError, match=r"gate_floor=0\.0: use for example"):
        SelectiveSSM(WIDTH, STATE, certified=True).init(jax.random.key(0), jnp.zeros((1, 2, WIDTH)))
    with pytest.raises(ValueError, match="Gaussian without bound"):
        SelectiveSSM(WIDTH, STATE, certified=True, gate_floor=0.1, gate_state="dense", process_noise=0.1).init(
            jax.random.key(0), jnp.zeros((1, 2, WIDTH))
        )


@pytest.mark.parametrize("kind", [kind for kind, can in mixers.GATES.items() if can.jumps])
@pytest.mark.parametrize("reads", ["elementwise", "dense"])
def test_of_gates_that_jump_with_the_state_no_contraction_is_certified(kind, reads):
    layer, params = made(gate=kind, gate_state=reads, gate_floor=0.3, process_noise=0.1)
    found = certify(layer, params, input_bound=1.0)
    assert found.contraction.status == found.uniform.status == "not established"
    assert found.contraction.reason == "The gates are not Lipschitz in the state." and found.horizon() == float("inf")
    assert found.stationary_law.status == "holds", "B6 asks for no Lipschitz constant (theory, section 5)"
    still = params | {"G": params["G"] | {"state_kernel": 0 * params["G"]["state_kernel"]}}
    assert certify(layer, still, input_bound=1.0).contraction.status == "holds"  # as weights that are 0 read nothing
    with pytest.raises(
        ValueError, match=r"needs gates of bounded slope, found gate='\w+', which jumps: use gate_state='none'"
    ):
        layer.clone(certified=True, process_noise=0.0).apply({"params": params}, jnp.zeros((1, 2, WIDTH)))


def test_two_states_under_a_gate_that_jumps_may_never_meet():
    """A latch: what the certificate must not promise."""
    layer = SelectiveSSM(1, 1, gate="binary", gate_floor=0.1, gate_state="dense")
    params = {"A": jnp.zeros(1), "B": jnp.ones((1, 1)), "C": jnp.ones((1, 1)), "D": jnp.zeros(1)}
    params["G"] = {"bias": jnp.full(1, -1.5), "kernel": jnp.ones((1, 1)), "state_kernel": jnp.ones((1, 1))}
    x = jnp.where(jnp.arange(400) % 2, 1.0, -1.0)[None, :, None]
    ends = [float(layer.apply({"params": params}, x, jnp.full((1, 1), h0))[1][0, 0]) for h0 in (0.0, 1.0)]
    assert abs(ends[0] - ends[1]) > 0.5


class Recurrent(nn.Module):
    """h' = tanh(W h + x), which states the Jacobian's bound |W|."""

    size: float

    def bounds(self, inputs):
        del inputs
        return Bounds(jacobian=jnp.array([[0.0, 10.0], [0.01, 0.0]]) * self.size)


def test_any_mixer_is_certified_by_what_it_states():
    found = certify(Recurrent(1.0), {})
    assert found.state_dependent.status == "holds" and found.state_dependent.rate == pytest.approx(
        np.sqrt(0.1), rel=0.05
    )
    assert found.slow_gates.status == "not established" and found.horizon() < 30
    assert certify(Recurrent(4.0), {}).state_dependent.status == "not established"


def test_a_layer_without_bounds_is_not_established():
    found = certify(nn.Dense(3), {})
    assert {getattr(found, name).status for name in ("uniform", "lyapunov", "stationary_law")} == {"not established"}
    assert "give it a method `bounds" in str(found)


@pytest.mark.parametrize(
    ("stated", "complaint"),
    [({}, "state 0 of"), ({"A": jnp.ones(2)}, "without gate_min"), ({"A": jnp.ones(2), "unknown": "x"}, "state 2 of")],
)
def test_bounds_prove_themselves(stated, complaint):
    with pytest.raises(ValueError, match=complaint):
        Bounds(**stated)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"conv": 3},
        {"norm": "none"},
        {"selective__gate_state": "elementwise", "selective__certified": True, "selective__gate_floor": 0.05},
        {"remat": True},
    ],
)
def test_models_are_certified_block_by_block(changes):
    config = runs.model(pattern=("selective",) * 2, d_model=16, d_state=24, task=Task("language", vocab=5), **changes)
    model = SequenceModel(config)
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    found = certify_model(model, params)
    assert list(found) == ["block_0", "block_1"]
    bounded = changes.get("norm") != "none"
    for certificate in found.values():
        assert certificate.contraction.status == ("holds" if bounded else "not established"), str(certificate)
        assert np.isfinite(certificate.horizon()) == bounded


def test_only_constant_gates_are_refuted():
    """Of other layers it is not known whether an input leads them where the witness goes."""
    x = jnp.zeros((1, 2, WIDTH))
    layer = SelectiveSSM(WIDTH, STATE, gate="constant")
    params = layer.init(jax.random.key(0), x)["params"]
    closed = params | {"G": {"bias": jnp.full(STATE, -1e3)}}  # sigmoid(-1000) is 0 in float32
    assert certify(layer, params).uniform.status == "holds" and certify(layer, closed).uniform.status == "refuted"
    layer = SelectiveSSM(WIDTH, STATE)
    found = certify(layer, layer.init(jax.random.key(0), x)["params"])
    assert (
        found.uniform.status == "not established"
        and found.uniform.witness.growth == 1
        and "do not exclude it" in found.uniform.reason
    )


def test_parameters_are_taken_as_init_returns_them_and_by_themselves():
    layer = SelectiveSSM(3, 2, gate_floor=0.1)
    variables = layer.init(jax.random.key(0), jnp.zeros((1, 2, 3)))
    assert str(certify(layer, variables)) == str(certify(layer, variables["params"]))
    assert make_decoder(layer.clone(gate="hard_sigmoid", gate_floor=0.0), variables).capacity == 1
    model = SequenceModel(
        Model(
            ("selective",),
            d_model=4,
            d_state=2,
            selective=SelectiveConfig(gate_floor=0.1),
            task=Task("language", vocab=3),
        )
    )
    whole = model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))
    assert str(certify_model(model, whole)) == str(certify_model(model, whole["params"]))
