"""Every mixer inside `jax.shard_map` as it is by default, under jit with a batch that is spread over devices, and
exported for a batch of any size.
"""

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import runs
from selssm_jax.config.mixers import MIXERS
from selssm_jax.layers.mixers import mixer

B, T = 4, 5
WINDOWS = {"attention__window": 16, "local_attention__window": 3}
TAPS = dict.fromkeys(("mamba__d_conv", "mamba2__d_conv", "rg_lru__d_conv"), 3)
SIZES = {"d_model": 8, "d_state": 4, "mlp_ratio": 0.0} | runs.HEADS | WINDOWS | TAPS
ALL = pytest.mark.parametrize("kind", sorted(MIXERS))
VALUES = pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "min_gru" else pytest.mark.exhaustive) for kind in sorted(MIXERS)]
)
DATA, WHOLE = PartitionSpec("data"), PartitionSpec()


def subject(kind, **changes):
    """(loss and gradient by parameters of a batch, parameters, the batch)."""
    layer = mixer(kind, runs.model(pattern=(kind,), **SIZES | changes).blocks[0])
    x = jax.random.normal(jax.random.key(0), (B, T, SIZES["d_model"]))
    return layer, jax.jit(layer.init)(jax.random.key(1), x), x


def mesh():
    return Mesh(np.array(jax.devices()[:2]), ("data",))


def slopes(layer, params, x, reset=None):
    return jax.grad(lambda params: jnp.square(layer.apply(params, x, reset=reset)[0]).sum())(params)


def in_shards(layer):
    """Gradients of replicated parameters, which `shard_map` sums over devices itself."""

    def run(params, x, reset):
        return slopes(layer, params, x), slopes(layer, params, x, reset)

    return jax.jit(jax.shard_map(run, mesh=mesh(), in_specs=(WHOLE, DATA, DATA), out_specs=WHOLE))


@ALL
def test_types_agree_inside_shard_map(kind):
    layer, params, x = subject(kind)
    reset = jnp.zeros((B, T), bool)
    assert jax.tree.structure(jax.eval_shape(in_shards(layer), params, x, reset)[0]) == jax.tree.structure(params)


READING = [
    {"selective__gate_state": kind, "selective__solver": solver}
    for kind in ("elementwise", "dense")
    for solver in ("newton", "auto", "sequential")
]


@pytest.mark.parametrize("changes", [*READING, {"selective__transition": "dense"}], ids=str)
def test_types_agree_inside_shard_map_whatever_the_recurrence_is(changes):
    layer, params, x = subject("selective", **changes)
    jax.eval_shape(in_shards(layer), params, x, jnp.zeros((B, T), bool))


@pytest.mark.parametrize("gate_state", ["elementwise", pytest.param("dense", marks=pytest.mark.exhaustive)])
def test_newtons_states_in_shards_are_those_of_the_whole(gate_state):
    """Each device solves for its own rows, in iterations of its own number."""
    layer, params, x = subject("selective", selective__gate_state=gate_state, selective__solver="newton")
    reset = jnp.zeros((B, T), bool).at[:, 2].set(True)
    x = x.at[: B // 2].multiply(0.01)

    def run(params, x, reset):
        return layer.apply(params, x, reset=reset)[0]

    found = jax.jit(jax.shard_map(run, mesh=mesh(), in_specs=(WHOLE, DATA, DATA), out_specs=DATA))(params, x, reset)
    np.testing.assert_allclose(found, jax.jit(run)(params, x, reset), rtol=1e-5, atol=1e-6)


@VALUES
def test_gradients_in_shards_and_of_a_spread_batch_are_those_of_the_whole(kind):
    layer, params, x = subject(kind)
    reset = jnp.zeros((B, T), bool).at[:, 2].set(True)
    run = jax.jit(lambda params, x, reset: (slopes(layer, params, x), slopes(layer, params, x, reset)))
    expected = run(params, x, reset)
    spread = jax.device_put((x, reset), NamedSharding(mesh(), DATA))
    for found in (
        in_shards(layer)(params, x, reset),
        run(jax.device_put(params, NamedSharding(mesh(), WHOLE)), *spread),
    ):
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4), found, expected)


@pytest.mark.parametrize(
    "steps", [T, *(pytest.param(steps, marks=pytest.mark.exhaustive) for steps in (70, 130))], ids=str
)
def test_pieces_of_s4d_in_shards_are_those_of_the_whole(steps):
    """A piece, a piece and a rest, a loop and a rest: XLA aborts the process on the gradient of a loop of one turn."""
    layer, params, _ = subject("s4d")
    x = jax.random.normal(jax.random.key(0), (B, steps, SIZES["d_model"]))
    expected = jax.jit(lambda params, x: slopes(layer, params, x))(params, x)
    found = jax.jit(lambda params, x: slopes(layer, params, x))(
        jax.device_put(params, NamedSharding(mesh(), WHOLE)), jax.device_put(x, NamedSharding(mesh(), DATA))
    )
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3), found, expected)


@ALL
def test_one_export_reads_a_batch_of_any_size(kind):
    layer, params, x = subject(kind)
    shape = jax.ShapeDtypeStruct((*jax.export.symbolic_shape("b"), *x.shape[1:]), x.dtype)
    export = jax.export.export(jax.jit(lambda x: layer.apply(params, x)[0]))(shape)
    assert export.out_avals[0].shape[1:] == x.shape[1:] and str(export.out_avals[0].shape[0]) == "b"
