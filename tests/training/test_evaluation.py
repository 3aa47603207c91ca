"""Evaluation is exact: for any batch size, and on a text equal to reading one long stream with its state carried."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import data
from selssm_jax.config import Data, Model
from selssm_jax.model import SequenceModel
from selssm_jax.tasks import TASKS, kind_of
from selssm_jax.tasks.scores import means
from selssm_jax.training.evaluation import Evaluator

SMALL = Model(pattern=("selective",), d_model=6, d_state=5, conv=3)
TEXT = "a gate says what to keep, and what it keeps is the state\n" * 20


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluation")
    (folder / "text.txt").write_text(TEXT)
    rows = [f"{np.sin(index):.4f},{np.cos(index / 3):.4f}" for index in range(120)]
    (folder / "table.csv").write_text("\n".join(["x,y", *rows]) + "\n")
    rng = np.random.default_rng(0)
    np.savez(folder / "signals.npz", signal=rng.standard_normal((60, 11)).astype(np.float32), label=np.arange(60) % 3)
    return {
        "text": Data(source="text", file=str(folder / "text.txt"), length=16),
        "csv": Data(source="csv", file=str(folder / "table.csv"), length=8, horizon=4),
        "npz": Data(source="npz", file=str(folder / "signals.npz"), length=0),
        "selective_copying": runs.experiment().data,
    }


@pytest.fixture(scope="module")
def drawn(sources):
    """For each source, (data set, small model, its parameters as drawn)."""
    return {name: build(source) for name, source in sources.items()}


def build(source: Data, **options: float):
    dataset = data.load(source)
    model = SequenceModel(runs.model(SMALL, task=dataset.task, **options))
    inputs = next(iter(dataset.evaluate("test", 1)))["inputs"]
    keys = {"params": jax.random.key(0), "noise": jax.random.key(1)}
    return dataset, model, jax.jit(model.init)(keys, inputs)["params"]


def evaluate(source: Data, dataset, model, params, split: str = "test", **options) -> dict[str, float]:
    experiment = dataclasses.replace(runs.experiment(), data=source, model=model.config)
    return Evaluator(experiment, model)(params, dataset, split, **options)


@pytest.mark.parametrize("name", ["csv", "npz", "selective_copying"])
def test_any_batch_size_gives_the_same(name, sources, drawn):
    dataset, model, params = drawn[name]
    whole = next(iter(dataset.evaluate("test", sum(len(batch["weights"]) for batch in dataset.evaluate("test", 1)))))
    whole = jax.tree.map(jnp.asarray, whole)
    outputs, _ = jax.jit(model.apply)({"params": params}, whole["inputs"], valid=whole["valid"])
    expected = means(kind_of(dataset.task).score(outputs, whole))
    for size in (5, 7):
        assert evaluate(
            dataclasses.replace(sources[name], eval_batch_size=size), dataset, model, params
        ) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("size", "length"), [(1, 16), (1, 7), (3, 16)])
def test_a_text_is_read_as_streams_without_an_end(size, length, sources, drawn):
    source = dataclasses.replace(sources["text"], length=length, eval_batch_size=size)
    (_, model, params), dataset = drawn["text"], data.load(source)
    assert dataset.is_stream
    tokens = jnp.asarray(dataset.encode(TEXT))[int(0.9 * len(TEXT)) :]  # the test split is the last tenth
    rows = -(-(len(tokens) - 1) // size)
    sums = []
    for start in range(0, len(tokens) - 1, rows):
        stream = tokens[start : start + rows + 1][None]
        logits, _ = jax.jit(model.apply)({"params": params}, stream[:, :-1])
        batch = {"targets": stream[:, 1:], "weights": jnp.ones(stream[:, 1:].shape)}
        sums.append(TASKS["language"].score(logits, batch))
    total = jax.tree.map(lambda *parts: sum(parts), *sums)
    assert total["nats"][1] == len(tokens) - 1
    assert evaluate(source, dataset, model, params) == pytest.approx(means(total), rel=1e-5)


def test_noise_is_the_same_every_time(sources):
    dataset, model, params = build(sources["csv"], selective__observation_noise=0.5, selective__process_noise=0.5)
    noisy = [evaluate(sources["csv"], dataset, model, params) for _ in range(2)]
    assert noisy[0] == noisy[1]


def test_noise_is_the_same_for_any_batch_size(sources):
    """It is drawn for each example by its number in the split."""
    dataset, model, params = build(sources["npz"], selective__process_noise=0.5, selective__observation_noise=0.5)
    few, many = (
        evaluate(dataclasses.replace(sources["npz"], eval_batch_size=size), dataset, model, params) for size in (2, 3)
    )
    assert few == pytest.approx(many, rel=1e-5)


def test_an_evaluation_can_be_interrupted(sources, drawn):
    assert evaluate(sources["npz"], *drawn["npz"], unless=lambda: True) == {}
    assert evaluate(sources["npz"], *drawn["npz"], "validation").keys() == {"nats", "accuracy"}


def test_parameters_on_several_devices_are_evaluated_on_one(sources, drawn):
    dataset, model, params = drawn["npz"]
    mesh = jax.sharding.Mesh(np.array(jax.local_devices()), ("data",))
    spread = jax.device_put(params, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    assert evaluate(sources["npz"], dataset, model, spread) == evaluate(sources["npz"], dataset, model, params)


def test_batches_share_one_compiled_step(sources, drawn):
    dataset, model, params = drawn["npz"]
    evaluator = Evaluator(dataclasses.replace(runs.experiment(), data=sources["npz"], model=model.config), model)
    for split in ("validation", "test"):
        evaluator(params, dataset, split)
    assert evaluator._step._cache_size() == 1
