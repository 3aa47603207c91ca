"""What a model costs, against counts by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.config import Data, Experiment, Model, Optimizer, Task, Training
from selssm_jax.model import SequenceModel
from selssm_jax.reporting import accounting

MODEL = Model(pattern=("selective", "selective"), d_model=8, d_state=6, conv=3, task=Task("language", vocab=7, length=10))
EXPERIMENT = Experiment(data=Data(batch_size=4), model=MODEL, optimizer=Optimizer(warmup_steps=1), training=Training(steps=2))
ROW = {"inputs": np.zeros(10, np.int32), "targets": np.zeros(10, np.int32), "weights": np.ones(10, np.float32), "valid": np.ones(10, bool)}


@pytest.fixture(scope="module")
def built():
    model = SequenceModel(MODEL)
    return model, model.init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]


def test_state_bytes_are_two_states_and_two_convolutions(built):
    assert accounting.state_bytes(*built) == 2 * 4 * 6 + 2 * 4 * 2 * 8


def test_parameters_by_hand(built):
    _, params = built
    found = accounting.parameters(params)
    selective = 8 * 6 + 6 + 6 + 8 * 6 + 6 * 8 + 8  # gate kernel, gate bias, A, B, C, D
    block = 8 + selective + (3 * 8 + 8) + 8 + 8 * 32 + 16 * 8  # norm, mixer, convolution, norm, MLP in, MLP out
    assert found == {"encoder": 7 * 8, "block_0": block, "block_1": block, "norm": 8, "head": 8 * 7}
    assert accounting.tree_bytes(params) == 4 * sum(found.values())


def test_cost_of_a_product_counts_arguments_outputs_and_operations():
    x = jnp.ones((64, 32))
    found = accounting.cost(lambda a, b: a @ b, x, x.T)
    assert found.argument_bytes == 2 * 4 * 64 * 32
    assert found.peak_bytes >= found.argument_bytes + 4 * 64 * 64
    assert found.flops == pytest.approx(2 * 64 * 64 * 32, rel=0.01)


def test_donated_memory_counts_once():
    x = jnp.ones(1 << 20)
    kept, donated = (accounting.cost(jax.jit(lambda a: a + 1, donate_argnums=given), x) for given in ((), 0))
    assert kept.peak_bytes - donated.peak_bytes == x.nbytes


def test_account_is_whole_and_grows_with_the_batch(built):
    model, params = built
    found = accounting.account(EXPERIMENT, model, params, ROW)
    assert found["batch"] == {"size": 4, "steps": 10}
    assert found["parameter_bytes"] == 4 * sum(found["parameters"].values())
    train, decode = found["training_step"], found["decode_step"]
    # a training step holds at least parameters and both moments of Adam, a decoding step at least the parameters and the state
    assert train["argument_bytes"] > 3 * found["parameter_bytes"] and train["peak_bytes"] > train["argument_bytes"]
    assert decode["peak_bytes"] >= found["parameter_bytes"] + found["state_bytes"]
    assert train["flops"] > decode["flops"] > 0
    large = {name: jax.ShapeDtypeStruct((64, *value.shape), value.dtype) for name, value in ROW.items()}
    assert accounting.training_step(EXPERIMENT, model, params, large).temporary_bytes > 2 * train["temporary_bytes"]


@pytest.mark.parametrize("task", [Task("classification", channels=1, classes=3), Task("forecasting", channels=2, horizon=4)])
def test_a_frame_of_a_signal_can_be_decoded(task):
    stride = 2 if task.kind == "classification" else 1
    model = SequenceModel(Model(pattern=("selective",), d_model=8, d_state=6, frame=2 * stride, stride=stride, process_noise=0.1, task=task))
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    params = model.init(keys, jnp.zeros((1, 4, task.channels)))["params"]
    assert accounting.decode_step(model, params).peak_bytes > accounting.tree_bytes(params)
