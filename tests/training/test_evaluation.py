"""Exact over a split on any batch size; a text read as streams is read as one; the compiled step is one."""

import dataclasses
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.config import Experiment, Task
from selssm_jax.data.pipeline import in_order
from selssm_jax.model import SequenceModel
from selssm_jax.training import objectives
from selssm_jax.training.evaluation import Evaluator

TASK = Task("language", vocab=5, length=6)
TOKENS = np.random.default_rng(0).integers(0, TASK.vocab, (7, 25)).astype(np.int32)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Seven sequences of six steps; the last batch is filled up with rows of no weight."""

    task: Task = TASK
    carries: bool = False

    def evaluate(self, split: str, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        def take(rows: np.ndarray) -> dict[str, np.ndarray]:
            inputs = TOKENS[rows, :6]
            return {"inputs": inputs, "targets": TOKENS[rows, 1:7], "weights": np.ones(inputs.shape, np.float32), "valid": np.ones(inputs.shape, bool)}

        return in_order(len(TOKENS), batch_size, take)


@dataclasses.dataclass(frozen=True)
class Streams:
    """Two sequences of 24 steps, in windows of six, the second half of a pair of streams of which each row goes on."""

    task: Task = TASK
    carries: bool = True

    def evaluate(self, split: str, batch_size: int) -> Iterator[dict[str, np.ndarray]]:
        for start in range(0, 24, 6):
            inputs, targets = TOKENS[:batch_size, start : start + 6], TOKENS[:batch_size, start + 1 : start + 7]
            yield {"inputs": inputs, "targets": targets, "weights": np.ones(inputs.shape, np.float32), "valid": np.ones(inputs.shape, bool)}


@pytest.fixture(scope="module")
def model(smoke) -> SequenceModel:
    return SequenceModel(dataclasses.replace(smoke().model, task=TASK))


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)({"params": jax.random.key(0)}, jnp.zeros((1, 6), jnp.int32))["params"]


def whole(model: SequenceModel, params: dict, inputs: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The metrics of all rows in one call."""
    logits, _ = jax.jit(model.apply)({"params": params}, inputs)
    return objectives.means(objectives.score("language", logits, {"targets": targets, "weights": jnp.ones(targets.shape)}))


def evaluator(smoke, model: SequenceModel, rows: int) -> Evaluator:
    experiment: Experiment = smoke(data__eval_batch_size=rows)
    return Evaluator(experiment, model)


@pytest.mark.parametrize("rows", [3, 7])
def test_every_row_counts_once_whatever_the_batch_size(smoke, model, params, rows):
    evaluate = evaluator(smoke, model, rows)
    found = evaluate(params, Rows(), "validation")
    assert found == pytest.approx(whole(model, params, TOKENS[:, :6], TOKENS[:, 1:7]), rel=1e-5)
    assert evaluate(params, Rows(), "test") == found
    assert evaluate._step._cache_size() == 1


def test_a_state_is_carried_where_batches_go_on_and_only_there(smoke, model, params):
    evaluate = evaluator(smoke, model, 2)
    read_through = whole(model, params, TOKENS[:2, :24], TOKENS[:2, 1:25])
    assert evaluate(params, Streams(), "test") == pytest.approx(read_through, rel=1e-5)
    assert evaluate(params, Streams(carries=False), "test")["nats"] != pytest.approx(read_through["nats"], rel=1e-4)


def test_parameters_on_several_devices_are_evaluated_on_one(smoke, model, params):
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
    spread = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    evaluate = evaluator(smoke, model, 7)
    assert evaluate(spread, Rows(), "test") == evaluate(params, Rows(), "test")


def test_it_can_be_broken_off(smoke, model, params):
    calls = []
    assert evaluator(smoke, model, 3)(params, Rows(), "test", unless=lambda: calls.append(1) or len(calls) > 1) == {}
    assert len(calls) == 2
