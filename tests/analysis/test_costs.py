"""What a model costs, against counts by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.analysis import costs
from selssm_jax.config import Data, Experiment, Model, Optimizer, Task, Training
from selssm_jax.config.mixers import MIXERS
from selssm_jax.model import SequenceModel

MODEL = Model(
    pattern=("selective", "selective"), d_model=8, d_state=6, conv=3, task=Task("language", vocab=7, length=10)
)
EXPERIMENT = Experiment(
    data=Data(batch_size=4), model=MODEL, optimizer=Optimizer(warmup_steps=1), training=Training(steps=2)
)
ROW = {
    "inputs": np.zeros(10, np.int32),
    "targets": np.zeros(10, np.int32),
    "weights": np.ones(10, np.float32),
    "valid": np.ones(10, bool),
}


@pytest.fixture(scope="module")
def built():
    model = SequenceModel(MODEL)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def test_state_bytes_are_two_states_and_two_convolutions(built):
    assert costs.state_bytes(*built) == 2 * 4 * 6 + 2 * 4 * 2 * 8


@functools.cache
def shapes(kind, **options):
    """A model of two blocks of one kind, and the shapes of its parameters."""
    model = SequenceModel(
        runs.model(pattern=(kind, kind), d_model=8, d_state=4, **runs.HEADS, task=Task("language", vocab=7), **options)
    )
    return model, jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


@pytest.mark.parametrize("kind", sorted(set(MIXERS) - {"attention"}))
def test_states_are_as_large_at_every_position(kind):
    sizes = [
        costs.state_bytes_at(*shapes(kind, local_attention__window=16), position) for position in (16, 1_000, 100_000)
    ]
    assert len(set(sizes)) == 1 and sizes[0] == costs.state_bytes(*shapes(kind, local_attention__window=16)) > 0


def test_a_cache_grows_by_keys_and_values_until_it_is_full():
    model, params = shapes("attention", attention__window=100)
    sizes = [costs.state_bytes_at(model, params, position) for position in (0, 1, 50, 100, 101, 10**9)]
    step, count = 2 * 4 * 2 * 8, 2 * 4  # two layers: two vectors of 8 floats a step, and one number
    assert sizes == [count, count + step, count + 50 * step, count + 100 * step, count + 100 * step, count + 100 * step]
    assert costs.transformer_bytes_at(model.config, 50) == 50 * step
    assert costs.state_bytes(model, params) == sizes[-1]
    with pytest.raises(ValueError, match="position=-1 must be at least 0"):
        costs.state_bytes_at(model, params, -1)


@pytest.mark.parametrize(
    ("cache", "state", "expected"),
    [
        (lambda t: 2 * t, lambda t: 100, 51),  # 100 is not more than 100
        (lambda t: 2 * t, lambda t: 99, 50),
        (lambda t: 2 * t, lambda t: 0, 1),
        (lambda t: 5, lambda t: 4, 0),
        (lambda t: min(t, 64), lambda t: 64, None),
        (lambda t: t, lambda t: min(t, 30), 31),
        (lambda t: t, lambda t: 2**40 - 1, 2**40),
        (lambda t: t, lambda t: 2**40, None),
    ],
)
def test_a_cache_overtakes_at_the_first_position_where_it_is_larger(cache, state, expected):
    assert costs.crossover(cache, state) == expected


def test_a_decoding_step_late_in_a_text_holds_the_cache_up_to_there():
    early, late = (
        costs.decode_step(*shapes("attention", attention__window=4_096), position) for position in (64, 2_048)
    )
    model, params = shapes("attention", attention__window=4_096)
    grown = costs.state_bytes_at(model, params, 2_049) - costs.state_bytes_at(model, params, 65)
    assert late.argument_bytes - early.argument_bytes == grown
    assert late.peak_bytes - early.peak_bytes >= grown and late.flops > 4 * early.flops
    one, other = (costs.decode_step(*shapes("gru"), position) for position in (64, None))
    assert one == other


@pytest.mark.parametrize("kind", MIXERS)
def test_a_decoding_step_of_every_mixer_is_weighed(kind):
    found = costs.decode_step(*shapes(kind))
    assert found.peak_bytes >= costs.state_bytes(*shapes(kind)) and found.flops > 0


def test_parameters_by_hand(built):
    _, params = built
    found = costs.parameters(params)
    selective = 8 * 6 + 6 + 6 + 8 * 6 + 6 * 8 + 8  # gate kernel, gate bias, A, B, C, D
    block = 8 + selective + (3 * 8 + 8) + 8 + 8 * 32 + 16 * 8  # norm, mixer, convolution, norm, MLP in, MLP out
    assert found == {"encoder": 7 * 8, "block_0": block, "block_1": block, "norm": 8, "head": 8 * 7}
    assert costs.tree_bytes(params) == 4 * sum(found.values())


def test_cost_of_a_product_counts_arguments_outputs_and_operations():
    x = jnp.ones((64, 32))
    found = costs.cost(lambda a, b: a @ b, x, x.T)
    assert found.argument_bytes == 2 * 4 * 64 * 32
    assert found.peak_bytes >= found.argument_bytes + 4 * 64 * 64
    assert found.flops == pytest.approx(2 * 64 * 64 * 32, rel=0.01)


def test_donated_memory_counts_once():
    x = jnp.ones(1 << 20)
    kept, donated = (costs.cost(jax.jit(lambda a: a + 1, donate_argnums=given), x) for given in ((), 0))
    assert kept.peak_bytes - donated.peak_bytes == x.nbytes


def test_account_is_whole_and_grows_with_the_batch(built):
    model, params = built
    found = costs.account(EXPERIMENT, model, params, ROW)
    assert found["batch"] == {"size": 4, "steps": 10}
    assert found["state_bytes_at"] == dict.fromkeys(("1", "1024", "65536"), found["state_bytes"])
    assert found["crossover"] == found["state_bytes"] // (2 * 4 * 2 * 8) + 1
    assert found["parameter_bytes"] == 4 * sum(found["parameters"].values())
    train, decode = found["training_step"], found["decode_step"]
    # a training step holds at least parameters and both moments of Adam, a decoding step at least the parameters and
    # the state
    assert train["argument_bytes"] > 3 * found["parameter_bytes"] and train["peak_bytes"] > train["argument_bytes"]
    assert decode["peak_bytes"] >= found["parameter_bytes"] + found["state_bytes"]
    assert train["flops"] > decode["flops"] > 0
    large = {name: jax.ShapeDtypeStruct((64, *value.shape), value.dtype) for name, value in ROW.items()}
    assert costs.training_step(EXPERIMENT, model, params, large).temporary_bytes > 2 * train["temporary_bytes"]


@pytest.mark.parametrize(
    "task", [Task("classification", channels=1, classes=3), Task("forecasting", channels=2, horizon=4)]
)
def test_a_frame_of_a_signal_can_be_decoded(task):
    stride = 2 if task.kind == "classification" else 1
    model = SequenceModel(
        runs.model(
            pattern=("selective",),
            d_model=8,
            d_state=6,
            frame=2 * stride,
            stride=stride,
            selective__process_noise=0.1,
            task=task,
        )
    )
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    params = model.init(keys, jnp.zeros((1, 4, task.channels)))["params"]
    assert costs.decode_step(model, params).peak_bytes > costs.tree_bytes(params)
