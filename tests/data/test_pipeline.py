"""Batches: every epoch once, the same examples for any batch size and number of processes, and exactly resumable."""

import json

import jax
import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.config import Data, Task
from selssm_jax.data.pipeline import Dataset, count_examples, in_order, resize_state, shuffled_rows
from selssm_jax.errors import InputError


def numbered(count=50):
    """A data set whose examples say their own row."""

    def take(rows):
        weights = np.ones(len(rows), np.float32)
        return {
            "inputs": rows[:, None].astype(np.int32),
            "targets": rows.astype(np.int32),
            "weights": weights,
            "valid": np.ones((len(rows), 1), bool),
        }

    return Dataset(
        task=Task("classification", channels=1, classes=count, length=1),
        draw=lambda seed, numbers: take(shuffled_rows(seed, numbers, count)),
        cover=lambda split, batch_size: in_order(count, batch_size, take),
        info={},
        baselines=lambda split: {},
    )


def drawn(dataset, batch_size, batches, seed=0):
    """The rows of the first training batches, one after the other."""
    stream = dataset.train(batch_size, seed=seed)
    return np.concatenate([next(stream)["targets"] for _ in range(batches)])


def assert_same(first, second):
    assert first.keys() == second.keys()
    for key in first:
        assert first[key].dtype == second[key].dtype
        np.testing.assert_array_equal(first[key], second[key], err_msg=key)


@pytest.mark.parametrize("source", ["selective_copying", "linear_gaussian", "python_reference"])
@pytest.mark.parametrize("before", [0, 1, 5])
def test_iterator_resumes_bit_equal_from_json(source, before):
    # 40 examples in batches of 16: the state falls in the middle of an epoch, and the batches after it cross the end of
    # one.
    dataset = data.load(Data(source=source, length=24, horizon=4, tokens=4, train_examples=40, eval_examples=3))
    whole = dataset.train(16, seed=3)
    for _ in range(before):
        next(whole)
    state = json.loads(json.dumps(whole.get_state()))
    expected = [next(whole) for _ in range(4)]
    resumed = dataset.train(16, seed=3)
    resumed.set_state(state)
    for batch in expected:
        assert_same(next(resumed), batch)


def test_state_can_be_set_back_on_an_iterator_that_ran_ahead():
    stream = numbered().train(8, seed=0)
    next(stream)
    state = stream.get_state()
    expected = [next(stream) for _ in range(3)]
    for _ in range(7):
        next(stream)
    stream.set_state(state)
    for batch in expected:
        assert_same(next(stream), batch)


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 3), (7, 3), (10, 10), (10, 16), (10, 35), (64, 5)])
def test_shuffled_rows_cover_every_epoch_once(count, batch_size):
    batches = -(-4 * count // batch_size)
    rows = np.concatenate(
        [shuffled_rows(0, number * batch_size + np.arange(batch_size), count) for number in range(batches)]
    )
    for epoch in range(4):
        assert sorted(rows[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_shuffle_depends_on_seed_and_epoch():
    orders = [
        tuple(shuffled_rows(seed, np.arange(epoch * 100, (epoch + 1) * 100), 100))
        for seed in range(3)
        for epoch in range(3)
    ]
    assert len(set(orders)) == 9
    assert orders[0] != tuple(range(100))


def test_shuffled_rows_may_be_asked_for_in_any_order():
    numbers = np.arange(100)
    backwards = shuffled_rows(5, numbers[::-1], 30)
    np.testing.assert_array_equal(backwards[::-1], shuffled_rows(5, numbers, 30))


def test_examples_do_not_depend_on_the_batch_size():
    np.testing.assert_array_equal(drawn(numbered(), 6, 20), drawn(numbered(), 20, 6))


def test_training_never_ends_and_counts_every_row_equally():
    rows = drawn(numbered(), 25, 8)
    np.testing.assert_array_equal(np.bincount(rows), np.full(50, 4))


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("sizes", [(8, 6), (6, 8), (4, 8), (8, 2, 6, 10)])
def test_another_batch_size_goes_on_with_the_next_example(sizes, processes, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: processes)
    seen, state, count = [], None, 0
    for before, size in zip((sizes[0], *sizes), sizes, strict=False):
        streams = []
        for process in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            streams.append(numbered(1000).train(size, seed=0))
        for stream in streams if state else ():
            stream.set_state(resize_state(json.loads(json.dumps(state)), before, size))
        seen += [next(stream)["targets"] for _ in range(3) for stream in streams]
        state, count = streams[0].get_state(), count + 3 * size
        assert count_examples(state, size) == count
    np.testing.assert_array_equal(np.concatenate(seen), shuffled_rows(0, np.arange(count), 1000))


@pytest.mark.parametrize(("count", "batch_size"), [(1, 1), (1, 8), (7, 3), (9, 3), (10, 16)])
def test_in_order_covers_every_row_once_with_weight(count, batch_size):
    batches = list(numbered(count).evaluate("test", batch_size))
    assert len(batches) == -(-count // batch_size)
    assert {len(batch["targets"]) for batch in batches} == {batch_size}
    targets = np.concatenate([batch["targets"] for batch in batches])
    weights = np.concatenate([batch["weights"] for batch in batches])
    np.testing.assert_array_equal(targets[weights > 0], np.arange(count))
    assert weights.sum() == count and weights.dtype == np.float32


def test_filling_rows_weigh_nothing_at_any_step():
    def take(rows):
        return {"inputs": rows, "weights": np.full((len(rows), 3), 0.5, np.float32)}

    (batch,) = in_order(2, 4, take)
    np.testing.assert_array_equal(batch["weights"], [[0.5] * 3] * 2 + [[0] * 3] * 2)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_the_rows_of_each_batch(monkeypatch, processes):
    expected = drawn(numbered(), 8, 5).reshape(5, 8)
    parts = []
    for process in range(processes):
        monkeypatch.setattr(jax, "process_count", lambda: processes)
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        parts.append(drawn(numbered(), 8, 5).reshape(5, 8 // processes))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected, "in the order that one process has")


def test_batch_that_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    with pytest.raises(InputError, match=r"data\.batch_size=8 .* 3 processes: use a multiple of 3"):
        numbered().train(8, seed=0)


def test_unknown_split_is_named():
    with pytest.raises(ValueError, match="'dev' is unknown: use one of train, validation, test"):
        numbered().evaluate("dev", 4)


@pytest.mark.parametrize("source", ["selective_copying", "linear_gaussian", "python_reference"])
def test_batches_have_the_promised_shapes_and_types(source):
    dataset = data.load(Data(source=source, length=24, horizon=4, tokens=4, eval_examples=10))
    task = dataset.task
    language = task.kind == "language"
    batches = [
        next(dataset.train(8, seed=0)),
        *(next(iter(dataset.evaluate(split, 8))) for split in ("train", "validation", "test")),
    ]
    for batch in batches:
        shapes = {key: (value.shape, value.dtype.name) for key, value in batch.items()}
        steps = (8, task.length)
        assert shapes == {
            "inputs": (steps, "int32") if language else ((*steps, 1), "float32"),
            "targets": (steps, "int32") if language else ((8, task.horizon, 1), "float32"),
            "weights": (steps if language else (8,), "float32"),
            "valid": (steps, "bool"),
        }


@pytest.mark.parametrize("source", ["selective_copying", "linear_gaussian", "python_reference"])
def test_metadata_is_json(source):
    metadata = data.load(Data(source=source, length=24, horizon=4, tokens=4)).metadata()
    assert json.loads(json.dumps(metadata)) == metadata
    assert metadata["source"] == source
