"""SelectiveSSM against a float64 loop, and the laws of the model: causality, splits, retention, noise."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.layers.bounds import Box
from selssm_jax.layers.gates import GATES
from selssm_jax.layers.selective import SelectiveSSM, contractive_matrix

B, T, D, N = 2, 13, 3, 4
PAIRS = list(itertools.product(["retain", "effective"], ["diagonal", "complex", "dense"]))
READS = [
    *itertools.product(
        ["retain", "effective"],
        ["diagonal", "dense"],
        ["elementwise", "dense"],
        ["sigmoid", "hard_concrete", "binary", "top_k"],
    ),
    ("retain", "diagonal", "elementwise", "softmax"),
    ("effective", "dense", "dense", "softmax"),
]
VARIANTS = list(itertools.product(["retain", "effective"], ["diagonal", "complex", "dense"], GATES))


SETTINGS = {"top_k": {"gate_active": 2}, "softmax": {"gate_slot_width": 2, "gate_temperature": 0.7}}


def build(**fields):
    settings = SETTINGS.get(fields.get("gate"), {})
    if fields.get("transition") == "complex":
        settings = settings | ({"gate_slot_width": 1} if "gate_slot_width" in settings else {})  # of two poles
    layer = SelectiveSSM(D, N, **settings | fields)
    x = jax.random.normal(jax.random.key(1), (B, T, D))
    return layer, layer.init({"params": jax.random.key(0), "noise": jax.random.key(5)}, x), x


def start(layer):
    zero = layer.initial_state(B)
    return jax.random.normal(jax.random.key(2), zero.shape, zero.dtype)


def gate_loop(layer, params, x, before):
    z = params["G"]["bias"] + (x @ params["G"]["kernel"] if "kernel" in params["G"] else 0)
    if "state_kernel" in params["G"]:
        weights = params["G"]["state_kernel"]
        if weights.ndim == 1:
            weights = np.diag(weights).reshape(-1, len(z), N).sum(axis=0)  # row i mod S reads component i
        z = z + weights @ before
    s = 1 / (1 + np.exp(-z))
    w = np.exp(z / layer.gate_temperature)
    return {
        "softmax": np.tile(w / w.sum(), layer.gate_slot_width),
        "sigmoid": s,
        "constant": s,
        "tanh": (1 + np.tanh(z)) / 2,
        "hard_sigmoid": np.clip(z / 6 + 0.5, 0, 1),
        "hard_concrete": np.clip(1.2 * s - 0.1, 0, 1),
        "binary": (z > 0).astype(float),
        "top_k": (z >= np.sort(z)[-(layer.gate_active or 1)]).astype(float),
    }[layer.gate]


def transition_loop(layer, params):
    if layer.transition == "diagonal":
        return np.diag(np.tanh(params["A"]))
    if layer.transition == "complex":
        return np.diag(np.exp(-np.exp(params["A_log_decay"]) + 1j * params["A_phase"]))
    return params["A"] / np.maximum(np.abs(params["A"]).sum(1, keepdims=True), 1)


def layer_loop(layer, variables, x, h, reset):
    """h_t = h + g (A h + B x - h) or g (A h + B x), one step and one sequence at a time, in float64; by the options,
    the drive's own scale and outputs times silu(W_z x).
    """
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    A, columns, rows = transition_loop(layer, params), params["B"].T, params["C"].T
    if layer.transition == "complex":
        half = columns.shape[0] // 2
        columns, rows = columns[:half] + 1j * columns[half:], rows[:, :half] - 1j * rows[:, half:]
    h, y = np.array(h, A.dtype), np.zeros_like(x)
    for b, t in np.ndindex(x.shape[0], x.shape[1]):
        before = np.zeros_like(h[b]) if reset[b, t] else h[b]
        g, target = gate_loop(layer, params, x[b, t], before), A @ before + columns @ x[b, t]
        if layer.drive == "normalised":
            a = 1 - g + g * np.diag(A) if layer.update == "retain" else g * np.diag(A)
            h[b] = a * before + np.sqrt(1 - np.abs(a) ** 2) * (columns @ x[b, t])
        else:
            h[b] = (1 - g) * before + g * target if layer.update == "retain" else g * target
        y[b, t] = (rows @ h[b]).real + params["D"] * x[b, t]
        if layer.output_gate:
            z = x[b, t] @ params["W_z"]
            y[b, t] *= z / (1 + np.exp(-z))
    return y, h


@pytest.mark.parametrize(("update", "transition", "gate"), VARIANTS)
def test_layer_equals_the_loop(update, transition, gate):
    layer, params, x = build(update=update, transition=transition, gate=gate)
    h0 = start(layer)
    reset = np.zeros((B, T), bool)
    reset[0, 5] = reset[1, 0] = True
    y, last = jax.jit(layer.apply)(params, x, h0, reset=jnp.asarray(reset))
    expected, end = layer_loop(layer, params, np.asarray(x, np.float64), h0, reset)
    # float32 rounding over 13 steps of values of order 1
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, end, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("update", "transition", "options"),
    [
        ("retain", "complex", {"drive": "normalised", "output_gate": True}),
        ("effective", "diagonal", {"drive": "normalised"}),
        ("retain", "dense", {"output_gate": True}),
    ],
)
def test_options_of_drive_and_outputs_equal_the_loop(update, transition, options):
    layer, params, x = build(update=update, transition=transition, **options)
    h0, reset = start(layer), np.zeros((B, T), bool)
    reset[0, 5] = True
    y, last = jax.jit(layer.apply)(params, x, h0, reset=jnp.asarray(reset))
    expected, end = layer_loop(layer, params, np.asarray(x, np.float64), h0, reset)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, end, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("update", "transition", "gate"),
    [("retain", "diagonal", "tanh"), ("retain", "complex", "sigmoid"), ("effective", "complex", "softmax")],
)
def test_a_normalised_drive_keeps_the_variance_of_the_state(update, transition, gate):
    """Of white inputs, |A|^2 V + |B|^2 = V with V that of B x: also where 1 - |A|^2 is far below float32's own step."""
    layer, params, x = build(update=update, transition=transition, gate=gate, drive="normalised")
    params["params"]["G"]["bias"] = jnp.linspace(-18.0, 2.0, len(params["params"]["G"]["bias"]))
    A, maps = (np.asarray(part) for part in layer.apply(params, x, method="dynamics"))
    gate = np.asarray(layer.apply(params, x, mutable=["intermediates"])[1]["intermediates"]["gate"][0], np.float64)
    a = np.asarray(layer.apply(params, x, method=lambda bound, x: bound.A))
    a = a.astype(np.complex128)[None, None]
    exact = 1 - np.abs(1 - gate * (1 - a) if update == "retain" else gate * a) ** 2
    whole = np.asarray(params["params"]["B"], np.float64).T
    whole = whole[: whole.shape[0] // 2] + 1j * whole[whole.shape[0] // 2 :] if transition == "complex" else whole
    np.testing.assert_allclose(
        (np.abs(maps) ** 2).sum(-1), exact * (np.abs(whole) ** 2).sum(-1)[None, None], rtol=1e-4, atol=1e-12
    )
    np.testing.assert_allclose(np.abs(A) ** 2, 1 - exact, rtol=1e-5, atol=1e-12)


def test_a_normalised_drive_of_a_closed_gate_keeps_the_state_and_has_slopes():
    layer, params, x = build(gate="hard_sigmoid", drive="normalised")
    h0 = start(layer)
    slopes = jax.grad(lambda params: jnp.square(layer.apply(params, x, h0)[0]).sum())(with_bias(params, -3.0))
    assert (layer.apply(with_bias(params, -4.0), x, h0)[1] == h0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_noise_is_let_in_as_the_normalised_drive_is():
    layer = SelectiveSSM(1, 2, process_noise=0.7, drive="normalised")
    x = jnp.ones((20_000, 2, 1))
    params = layer.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x[:1])
    _, sown = layer.apply(params, x, rngs={"noise": jax.random.key(2)}, mutable=["intermediates", "laws"])
    h, law = sown["intermediates"]["state"][0], sown["laws"]["law"][0]
    drawn = (h[:, 1] - law.A[:, 1] * h[:, 0] - law.drive[:, 1]) / law.noise[:, 1]
    # of 2e4 draws a variance has a relative standard error of 1 %
    np.testing.assert_allclose([np.var(drawn), np.mean(drawn)], [1, 0], atol=0.05)
    np.testing.assert_allclose(law.noise, 0.7 * jnp.sqrt(1 - law.A**2), rtol=1e-4)


def build_reading(gain=1.0, **fields):
    """A layer whose gates read the state, with weights that are not 0."""
    layer, params, x = build(**fields)
    kernel = params["params"]["G"]["state_kernel"]
    params["params"]["G"]["state_kernel"] = gain * jax.random.normal(jax.random.key(3), kernel.shape)
    return layer, params, x


@pytest.mark.parametrize("solver", ["sequential", "newton"])
@pytest.mark.parametrize(("update", "transition", "gate_state", "gate"), READS)
def test_gates_that_read_the_state_equal_the_loop(update, transition, gate_state, gate, solver):
    layer, params, x = build_reading(
        update=update, transition=transition, gate_state=gate_state, gate=gate, solver=solver
    )
    h0, reset = start(layer), np.zeros((B, T), bool)
    reset[0, 5] = reset[1, 0] = True
    (y, last), sown = jax.jit(partial(layer.apply, mutable=["intermediates", "diagnostics"]))(
        params, x, h0, reset=jnp.asarray(reset)
    )
    expected, end = layer_loop(layer, params, np.asarray(x, np.float64), h0, reset)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(last, end, rtol=1e-5, atol=1e-5)
    assert not sown["diagnostics"]["fell_back"][0].any()


@pytest.mark.parametrize(
    ("gate_state", "gate"), [("elementwise", "sigmoid"), ("dense", "sigmoid"), ("elementwise", "softmax")]
)
def test_both_solvers_have_the_same_gradients_whole_and_split(gate_state, gate):
    def gradient(solver, cut):
        layer, params, x = build_reading(gate_state=gate_state, gate=gate, solver=solver)

        def total(params, x, h):
            first, h = layer.apply(params, x[:, :cut], h)
            second, h = layer.apply(params, x[:, cut:], h) if cut < T else (first[:, :0], h)
            return jnp.sum(jnp.sin(3 * jnp.concatenate([first, second], axis=1))) + jnp.sum(h**2)

        return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(params, x, start(layer))

    expected = gradient("sequential", T)
    for solver, cut in (("newton", T), ("newton", 5), ("sequential", 5)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), gradient(solver, cut), expected
        )


def test_where_newton_does_not_converge_the_layer_falls_back_says_so_and_is_right():
    layer, params, _ = build_reading(gain=3.0, gate_state="dense", solver="newton")
    params["params"]["G"]["bias"] = jnp.zeros(N)  # half open: what the state adds to the logits moves the gates
    x = jax.random.normal(jax.random.key(4), (B, 600, D))
    (y, last), sown = layer.apply(params, x, mutable=["diagnostics"])
    assert sown["diagnostics"]["fell_back"][0].any()
    expected, end = layer.clone(solver="sequential").apply(params, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(last, end, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(
    ("transition", "gate_state", "gate"),
    [
        ("diagonal", "none", "sigmoid"),
        ("complex", "none", "sigmoid"),
        ("dense", "none", "sigmoid"),
        ("diagonal", "elementwise", "sigmoid"),
        ("dense", "dense", "sigmoid"),
        ("diagonal", "dense", "softmax"),
    ],
)
def test_a_packed_row_equals_its_documents_apart_in_gates_values_and_gradients(transition, gate_state, gate):
    fields = {"transition": transition, "gate_state": gate_state, "gate": gate}
    layer, params, x = build(**fields) if gate_state == "none" else build_reading(**fields)
    reset = jnp.zeros((B, T), bool).at[:, 5].set(True)

    def packed(params, x):
        (y, _), sown = layer.apply(params, x, reset=reset, mutable=["intermediates"])
        return y, sown["intermediates"]["gate"][0]

    def apart(params, x):
        runs = [layer.apply(params, part, mutable=["intermediates"]) for part in (x[:, :5], x[:, 5:])]
        return tuple(
            jnp.concatenate(values, axis=1)
            for values in zip(*((y, sown["intermediates"]["gate"][0]) for (y, _), sown in runs), strict=True)
        )

    def loss(run):
        return lambda params, x: sum(jnp.sum(jnp.sin(value)) for value in run(params, x))

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), packed(params, x), apart(params, x)
    )
    found, expected = (jax.grad(loss(run), argnums=(0, 1))(params, x) for run in (packed, apart))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    across = jax.grad(lambda x: sum(jnp.sum(value[:, 5:]) for value in packed(params, x)))(x)
    assert not across[:, :5].any() and across[:, 5:].any(), "exactly zero from one document into another"


@pytest.mark.parametrize(("update", "transition"), PAIRS)
def test_whole_equals_any_split_in_values_and_gradients(update, transition):
    layer, params, x = build(update=update, transition=transition)

    def run(cuts):
        def total(params, x, h):
            pieces = []
            for left, right in itertools.pairwise((0, *cuts, T)):
                y, h = layer.apply(params, x[:, left:right], h)
                pieces.append(y)
            y = jnp.concatenate(pieces, axis=1)
            return (y * jnp.cos(jnp.arange(T))[None, :, None]).sum() + (jnp.abs(h) ** 2).sum(), y

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True))(params, x, start(layer))

    (_, whole), gradients = run(())
    for cuts in ((6,), tuple(range(1, T))):
        (_, y), split = run(cuts)
        np.testing.assert_allclose(y, whole, rtol=1e-5, atol=1e-5)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), split, gradients)


@pytest.mark.parametrize("transition", ["diagonal", "complex", "dense"])
def test_causality_by_gradient(transition):
    layer, params, x = build(transition=transition)
    jacobian = jax.jacobian(lambda x: layer.apply(params, x)[0][0, 6].sum())(x)
    assert (jacobian[0, 7:] == 0).all()
    assert (jacobian[1] == 0).all()
    assert (jnp.abs(jacobian[0, :7]).sum(axis=-1) > 0).all()


def with_bias(params, value):
    params = jax.tree.map(lambda p: p, params)
    params["params"]["G"] = {
        "bias": jnp.full_like(params["params"]["G"]["bias"], value),
        "kernel": jnp.zeros_like(params["params"]["G"]["kernel"]),
    }
    return params


@pytest.mark.parametrize("transition", ["diagonal", "complex", "dense"])
@pytest.mark.parametrize("gate", ["hard_sigmoid", "binary"])
def test_retain_with_closed_gates_returns_the_state_exactly(transition, gate):
    layer, params, x = build(transition=transition, gate=gate)
    h0 = start(layer)
    _, last = layer.apply(with_bias(params, -4.0), x, h0)
    assert (last == h0).all()


@pytest.mark.parametrize("transition", ["diagonal", "complex", "dense"])
def test_open_gates_are_the_plain_state_space_model_for_both_updates(transition):
    retain, params, x = build(transition=transition, gate="hard_sigmoid")
    params = with_bias(params, 4.0)
    effective = retain.clone(update="effective")
    y, _ = retain.apply(params, x)
    plain = effective.apply(params, x, method="dynamics").A
    # 1 - (1 - a) rounds
    np.testing.assert_allclose(retain.apply(params, x, method="dynamics").A, plain, rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(
        y,
        layer_loop(effective, params, np.asarray(x, np.float64), retain.initial_state(B), np.zeros((B, T), bool))[0],
        rtol=1e-5,
        atol=1e-5,
    )


@pytest.mark.parametrize(("update", "transition"), PAIRS)
def test_dynamics_are_the_recurrence(update, transition):
    layer, params, x = build(update=update, transition=transition)
    (_, last), sown = layer.apply(params, x, mutable=["intermediates"])
    A, maps = layer.apply(params, x, method="dynamics")
    h = np.zeros(last.shape, last.dtype)
    for t in range(T):
        carried = np.einsum("bij,bj->bi", A[:, t], h) if transition == "dense" else A[:, t] * h
        h = carried + np.einsum("bnd,bd->bn", maps[:, t], x[:, t])
        np.testing.assert_allclose(sown["intermediates"]["state"][0][:, t], h, rtol=1e-4, atol=1e-5)


def test_poles_stay_inside_the_unit_circle_whatever_the_parameters():
    for transition in ("diagonal", "complex"):
        layer, params, x = build(transition=transition)
        for scale in (-1e4, 1e4):
            wild = jax.tree.map(lambda p, scale=scale: jnp.full_like(p, scale), params)
            assert (jnp.abs(layer.apply(wild, x, method=lambda m, x: m.A)) < 1).all()
    raw = 100 * jax.random.normal(jax.random.key(0), (6, 6))
    assert (jnp.abs(contractive_matrix(raw)).sum(axis=1) < 1).all()


def test_process_noise_enters_through_the_gate_with_its_covariance():
    layer = SelectiveSSM(1, 2, process_noise=0.7)
    x = jnp.zeros((100_000, 1, 1))
    params = layer.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x[:1])
    (_, h), sown = layer.apply(params, x, rngs={"noise": jax.random.key(2)}, mutable=["intermediates"])
    gate = sown["intermediates"]["gate"][0][0, 0]
    # covariance G Q G; a variance over 1e5 draws has relative standard error sqrt(2/1e5) = 0.45 %: 5 of them
    np.testing.assert_allclose(np.var(h, axis=0), (0.7 * gate) ** 2, rtol=0.0225)
    assert abs(np.corrcoef(h.T)[0, 1]) < 5 / np.sqrt(1e5)


def test_observation_noise_has_its_variance_and_leaves_the_state_alone():
    layer = SelectiveSSM(1, 2, observation_noise=0.3)
    x = jnp.ones((100_000, 1, 1))
    params = layer.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x[:1])
    y, h = layer.apply(params, x, rngs={"noise": jax.random.key(2)})
    np.testing.assert_allclose(np.var(y), 0.09, rtol=0.0225)
    assert np.ptp(h, axis=0).max() == 0


@pytest.mark.parametrize("transition", ["diagonal", "complex"])
@pytest.mark.parametrize(
    "noise", [{"drive_noise": 0.5}, {"process_noise": 0.4, "drive_noise": 0.5}, {"process_noise": 0.4}], ids=str
)
def test_what_is_written_has_the_noise_that_is_stated_for_it(transition, noise):
    """Variances of either direction of the state after a step, against (sigma^2 + delta^2 |B x|^2) g^2 and the law."""
    layer = SelectiveSSM(2, 2, transition=transition, **noise)
    x = jnp.broadcast_to(jnp.array([1.0, -2.0]), (100_000, 1, 2))
    params = layer.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x[:1])
    (_, h), sown = layer.apply(params, x, rngs={"noise": jax.random.key(2)}, mutable=["intermediates", "laws"])
    gate, B = np.asarray(sown["intermediates"]["gate"][0][0, 0]), np.asarray(params["params"]["B"])
    drive = np.array([1.0, -2.0]) @ B
    drive = drive[:1] + 1j * drive[1:] if transition == "complex" else drive
    size = {"process_noise": 0.0, "drive_noise": 0.0} | noise
    expected = gate**2 * (size["process_noise"] ** 2 + size["drive_noise"] ** 2 * np.abs(drive) ** 2)
    np.testing.assert_allclose(h.mean(axis=0), gate * drive, atol=5 * np.sqrt(2 * expected.max() / 1e5))
    for part in [h.real, h.imag] if transition == "complex" else [h]:
        np.testing.assert_allclose(np.var(part, axis=0), expected, rtol=0.0225)  # 5 standard errors
    if "process_noise" in noise:
        np.testing.assert_allclose(sown["laws"]["law"][0].noise[0, 0] ** 2, expected, rtol=1e-5)
    else:
        assert "laws" not in sown  # where nothing is written there is no noise, and so no density


def test_what_is_lost_leaves_the_mean_and_the_law_is_given_what_was_lost():
    layer = SelectiveSSM(1, 2, drive_dropout=0.25, process_noise=1e-3)
    x = jnp.ones((100_000, 1, 1))
    params = layer.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x[:1])
    (_, h), sown = layer.apply(params, x, rngs={"noise": jax.random.key(2)}, mutable=["intermediates", "laws"])
    whole = sown["intermediates"]["gate"][0][0, 0] * params["params"]["B"][0]
    law = sown["laws"]["law"][0]
    share = np.asarray(law.drive[:, 0]) / np.asarray(whole)
    np.testing.assert_allclose(np.where(share > 0, 4 / 3, 0), share, rtol=1e-5)
    np.testing.assert_allclose(share.mean(axis=0), 1, atol=5 * np.sqrt(0.25 / 0.75 / 1e5))
    assert abs(np.corrcoef(share.T)[0, 1]) < 5 / np.sqrt(1e5)  # each component is lost by itself
    # noise of 1e-3 * gate about what is left: six standard deviations
    assert np.abs(h - law.drive[:, 0]).max() < 6e-3


@pytest.mark.parametrize("reads", ["elementwise", "dense"])
def test_an_input_of_zeros_leaves_slopes_of_a_certified_layer(reads):
    layer, params, x = build(certified=True, gate_floor=0.1, gate_state=reads, gate="sigmoid")
    x = x.at[:, 3].set(0)
    slopes = jax.grad(lambda p, x: jnp.square(layer.apply(p, x)[0]).sum(), (0, 1))(params, x)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))
    far = 1e3 * x[:1, :1]  # on the sphere, as it was
    bounded = layer.apply(params, far, method=lambda layer, x: layer._bound_input(x))
    np.testing.assert_allclose(np.linalg.norm(bounded), 2 * np.sqrt(D), rtol=1e-5)


def test_slopes_of_noise_are_numbers_where_nothing_is_written():
    layer = SelectiveSSM(D, N, drive_noise=0.5, transition="complex")
    x = jnp.zeros((B, T, D))
    params = layer.init({"params": jax.random.key(0), "noise": jax.random.key(1)}, x)
    slopes = jax.grad(lambda p: jnp.square(layer.apply(p, x, rngs={"noise": jax.random.key(2)})[0]).sum())(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(slopes))


def test_losses_raise_the_largest_drive_and_noise_that_grows_leaves_none():
    layer, params, _ = build(drive_dropout=0.5)
    free = layer.clone(drive_dropout=0.0)
    drives = [
        np.asarray(one.apply(params, Box(1.0), method="bounds").drive_bound)
        for one in (layer, free, free.clone(drive_noise=0.1))
    ]
    np.testing.assert_allclose(drives[0], 2 * drives[1])
    assert np.isinf(drives[2]).all()


@pytest.mark.parametrize("name", ["process_noise", "drive_noise", "drive_dropout"])
def test_noise_needs_its_generator_and_is_reproducible(name):
    layer, params, x = build(**{name: 0.1})
    with pytest.raises(Exception, match="noise"):
        layer.apply(params, x)
    draws = [layer.apply(params, x, rngs={"noise": jax.random.key(seed)})[0] for seed in (1, 1, 2)]
    assert (draws[0] == draws[1]).all() and (draws[0] != draws[2]).any()


def test_bfloat16_keeps_gate_state_and_carry_in_float32():
    layer, params, x = build(dtype=jnp.bfloat16)
    (y, last), sown = layer.apply(params, x, mutable=["intermediates"])
    assert y.dtype == jnp.bfloat16 and last.dtype == jnp.float32
    assert {sown["intermediates"][name][0].dtype for name in ("gate", "state")} == {jnp.dtype("float32")}
    # bfloat16 has 8 bits of mantissa
    np.testing.assert_allclose(
        y.astype(jnp.float32), layer.clone(dtype=jnp.float32).apply(params, x)[0], rtol=0.05, atol=0.05
    )


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"update": "keep"}, "update='keep' is not a choice: known: effective, retain"),
        ({"transition": "full"}, "transition='full' is not a choice: known: complex, dense, diagonal"),
        ({"d_state": 3, "transition": "complex"}, "d_state=3 is odd"),
        ({"solver": "deer"}, "solver='deer' is not a choice: known: auto, newton, sequential"),
        (
            {"gate_state": "elementwise", "method": "associative"},
            "method='associative' needs .* a linear recurrence.* use method='auto', and solver='newton'",
        ),
        (
            {"gate_state": "dense", "transition": "complex"},
            "gate_state='dense' reads real states, found transition='complex': use 'diagonal' or 'dense'",
        ),
        (
            {"drive": "normalised", "transition": "dense"},
            r"drive='normalised' scales .* found transition='dense': use 'diagonal' or 'complex'",
        ),
        (
            {"drive": "normalised", "gate_state": "elementwise"},
            r"no certificate knows .* found gate_state='elementwise': use gate_state='none', or drive='gated'",
        ),
        ({"gate_state": "all"}, "gate_state='all' is not a choice: known: dense, elementwise, none"),
        ({"d_state": 0}, "d_state=0 is out of range: use at least 1"),
        ({"gate_floor": 2.0}, "gate_floor=2.0 is out of range: use a value from 0.0 to 0.999"),
        (
            {"transition": "dense", "method": "chunked"},
            "method='chunked' is not written for matrices: use 'auto', 'sequential' or 'associative'",
        ),
    ],
)
def test_impossible_layers_are_refused(fields, words):
    layer = SelectiveSSM(**{"d_model": D, "d_state": N, **fields})
    with pytest.raises(ValueError, match=words):
        layer.init(jax.random.key(0), jnp.zeros((1, 2, D)))
