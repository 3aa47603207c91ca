"""Every compiled step is traced once, however often it is called with the same shapes: a run never waits for XLA
again.
"""

import dataclasses
import functools
from functools import partial
from types import FunctionType

import chex
import jax
import numpy as np
import pytest

import runs
from recurrences import OPS
from selssm_jax import data, generation
from selssm_jax.analysis import gate_selectivity, gates, rate_sweep
from selssm_jax.compression import compress, finetune, pruning, sparse_decode
from selssm_jax.config import Compress
from selssm_jax.layers import SelectiveSSM
from selssm_jax.model import SequenceModel
from selssm_jax.training import loop, multi_seed, optimizer, parallel, step
from selssm_jax.training.evaluation import Evaluator

CALLS = 3


@pytest.fixture
def traces(monkeypatch):
    """How often each program is traced that jax.jit and jax.pmap are given, by the name of its function; twice is an
    error.
    """
    chex.clear_trace_counter()
    counts = {}

    def watch(transform):
        @functools.wraps(transform)
        def compile_once(function, *arguments, **options):
            # chex tells programs apart by their names
            name = f"{getattr(function, 'func', function).__name__}:{len(counts)}"
            counts[name] = 0

            def program(*args, **kwargs):
                counts[name] += 1
                return function(*args, **kwargs)

            if isinstance(function, FunctionType):  # static arguments are found by the signature
                program = functools.wraps(function)(program)
            program.__name__ = name
            return transform(chex.assert_max_traces(program, n=1), *arguments, **options)

        return compile_once

    for transform in ("jit", "pmap"):
        monkeypatch.setattr(jax, transform, watch(getattr(jax, transform)))
    return counts


def times(traces, name):
    """How often each program of a function of this name was traced."""
    return [count for program, count in traces.items() if program.split(":")[0] == name]


@functools.cache
def subject(source="selective_copying", **model):
    """An experiment, its data set, its model and parameters."""
    experiment = runs.experiment(data__source=source, **{f"model__{key}": value for key, value in model.items()})
    dataset = data.load(experiment.data)
    network = SequenceModel(experiment.model.of_task(dataset.task))
    first = step.initial(experiment, network, optimizer.build(experiment), next(dataset.train(8, seed=0)))
    return experiment, dataset, network, first.params


def train_step(experiment, network):
    return partial(step.train_step, model=network, optimizer=optimizer.build(experiment), experiment=experiment)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("kind", runs.TASKS)
def test_a_training_step(traces, kind, count):
    experiment, devices = runs.experiment(), jax.local_devices()[:count]
    network = SequenceModel(experiment.model.of_task(runs.TASKS[kind]))
    batches = [runs.ragged(runs.TASKS[kind], seed=seed) for seed in range(CALLS)]
    runner = loop.SingleRun(train_step(experiment, network), devices)
    states = jax.device_put(
        step.initial(experiment, network, optimizer.build(experiment), batches[0]), parallel.layout(devices)
    )
    for batch in batches:
        states, _ = runner(states, [batch])
    assert times(traces, "train_step") == [1]


def test_a_step_of_several_seeds(traces):
    experiment, dataset, network, _ = subject()
    runner, batches = multi_seed.StackedRuns(train_step(experiment, network), 2), dataset.train(8, seed=0)
    first = step.initial(experiment, network, optimizer.build(experiment), next(batches))
    for _ in range(CALLS):
        states = runner.stack([first, first])
        for _ in range(CALLS):
            states, _ = runner(states, [next(batches), next(batches)])
        runner.unstack(states)
    assert times(traces, "step_stacked") == times(traces, "_stack_trees") == [1]
    assert times(traces, "_split_runs") == [1]


def test_a_whole_run_with_evaluations_and_checkpoints(traces, tmp_path):
    assert loop.fit(
        runs.experiment(training__steps=9, training__eval_every=3, training__checkpoint_every=3), str(tmp_path / "run")
    ).finished
    assert set(traces.values()) <= {0, 1} and times(traces, "train_step") == times(traces, "_evaluate_batch") == [1]


@pytest.mark.parametrize("source", ["selective_copying", "linear_gaussian"])
def test_an_evaluation(traces, source):
    experiment, dataset, network, params = subject(source)
    evaluate = Evaluator(experiment, network)
    for split in ("validation", "test", "validation"):
        evaluate(params, dataset, split)
    assert times(traces, "_evaluate_batch") == [1]


def packed(rounding="nearest"):
    """A model whose state is packed, with its parameters."""
    experiment, dataset, network, params = subject()
    found = compress.Subject(experiment, network, params, dataset)
    known = compress.calibrate(found)
    model, params = compress.quantise(found, known, known.float_bytes / 4, compress.INFORMATION)
    return dataclasses.replace(model, rounding=rounding), params


def test_a_step_with_a_packed_state_and_its_calibration(traces):
    model, params = packed()
    experiment, dataset, *_ = subject()
    evaluate = Evaluator(experiment, model)
    for _ in range(CALLS):
        evaluate(params, dataset, "validation")
    now = jax.jit(lambda params, x, state: model.apply({"params": params}, x, state, method="step")[1])
    state = model.apply({"params": params}, 2, method="initial_state")
    for token in range(CALLS):
        state = now(params, np.full(2, token), state)
    assert set(traces.values()) <= {0, 1} and times(traces, "_evaluate_batch") == times(traces, "<lambda>") == [1]


def test_a_step_of_fine_tuning(traces):
    experiment, dataset, *_ = subject()
    model, params = packed()
    traces.clear()
    finetune.finetune(dataclasses.replace(experiment, compress=Compress(steps=4)), model, params, dataset)
    assert times(traces, "train_step") == [1] and set(traces.values()) == {1}


def test_readers_of_gates_and_scores_of_components(traces):
    _, dataset, network, params = subject(selective__process_noise=0.1)
    batches = lambda: dataset.evaluate("validation", 8)  # noqa: E731
    gates.observe_gates(network, params, batches(), is_stream=False)
    gate_selectivity.mean_gates(network, params, batches())
    rate_sweep.memory(network, params, batches())
    pruning.quadratic(network, params, batches())
    pruning.loss(network, params, batches())
    assert len(traces) >= 5 and set(traces.values()) == {1}


def test_generation(traces, monkeypatch):
    _, _, network, params = subject()
    for name in ("_write", "_first", "_step"):
        compiled = getattr(generation, name)
        static = ("model", "sampling", "stop") + (("count",) if name != "_step" else ())
        monkeypatch.setattr(generation, name, jax.jit(compiled.__wrapped__, static_argnames=static))
    for seed in range(CALLS):
        generation.generate(network, params, np.ones((2, 3), int), 5, temperature=1.0, key=jax.random.key(seed))
    for seed in range(CALLS):
        list(generation.stream(network, params, np.ones((2, 3), int), 5, temperature=1.0, key=jax.random.key(seed)))
    assert [times(traces, name) for name in ("_write", "_first", "_step")] == [[1], [1], [1]]


def test_a_sparse_step_of_decoding(traces):
    layer = SelectiveSSM(4, 8, gate="top_k", gate_active=2)
    x = jax.random.normal(jax.random.key(0), (2, CALLS, 4))
    decoder = sparse_decode.make_decoder(layer, layer.init(jax.random.key(0), x))
    now = jax.jit(lambda decoder, x, state: decoder.step(x, state))
    state = decoder.start(layer.initial_state(2))
    for t in range(CALLS):
        _, state = now(decoder, x[:, t], state)
    assert times(traces, "<lambda>") == [1]


@pytest.mark.parametrize("op", OPS)
def test_a_recurrence_in_a_program_and_by_itself(op):
    """By itself linear_scan is compiled by its first call; further ones trace nothing at all."""
    recurrence, rng = OPS[op], np.random.default_rng(0)
    method = recurrence.methods[0]
    draws = [
        jax.tree.map(lambda value: jax.numpy.asarray(value, np.float32), recurrence.draw(rng, 2, 6, 2))
        for _ in range(CALLS)
    ]
    reset = jax.numpy.zeros((2, 6), bool)
    chex.clear_trace_counter()
    program = jax.jit(
        chex.assert_max_traces(lambda sequences, fixed, h0: recurrence.run(sequences, fixed, h0, reset, method), n=1)
    )
    outputs = [program(*draw) for draw in draws]
    if op == "linear_scan":  # loops of the others are traced anew by each call outside of a program
        recurrence.run(*draws[0], reset, method)
        with jax.no_tracing():
            chex.assert_trees_all_close(
                outputs, [recurrence.run(*draw, reset, method) for draw in draws], rtol=1e-5, atol=1e-5
            )
