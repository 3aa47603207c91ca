"""What reads sequences after training reads them in pieces too: the same results, and no call that reads more than a
piece.
"""

import functools
import inspect
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.analysis import gate_selectivity, gates, scores, state_samples
from selssm_jax.analysis.examples import Source
from selssm_jax.compression import pruning, sensitivity, streaming
from selssm_jax.config import Experiment, Task, Training
from selssm_jax.model import SequenceModel

B, T, PIECE = 4, 26, 6  # four pieces and a rest
MOMENTS, SCORED = (5, 6, 12, 13, 24), (0, 7, 25)  # the first and last of pieces among them
TASKS = {
    "language": (Task("language", vocab=5, length=T), {}),
    "classification": (Task("classification", channels=1, classes=3, length=2 * T), {"frame": 4, "stride": 2}),
    "forecasting": (Task("forecasting", channels=2, horizon=4, length=T), {"channel_independent": True}),
}


@functools.cache
def built(task, pattern=("selective", "lstm"), length=1, **changes):
    """(model, parameters, a batch), `length` times as long."""
    task, more = TASKS[task]
    model = SequenceModel(runs.model(pattern=pattern, d_model=8, d_state=4, conv=3, task=task, **more, **changes))
    batch = runs.ragged(task, B)
    batch = batch | {"valid": np.arange(task.length)[None] < np.array([task.length, 1, 14, 9])[:, None]}
    kind = "language" if model.kind.every_step else ""
    over_time = {"inputs", "valid", *(("targets", "weights") if kind else ())}
    batch = {
        name: np.concatenate([leaf] * length, axis=1) if name in over_time else leaf for name, leaf in batch.items()
    }
    return model, model.init(jax.random.key(0), jnp.asarray(batch["inputs"][:1]))["params"], batch


def record(model, params, batch, piece, moments=MOMENTS, **options):
    return state_samples.record(model, params, [batch], samples=100, moments=moments, piece=piece, **options)


def find_errors(model, params, batch, piece):
    run = types.SimpleNamespace(
        model=model,
        params=params,
        experiment=Experiment(training=Training(piece=piece)),
        dataset=types.SimpleNamespace(evaluate=lambda split, size: [batch], metadata=dict),
    )
    return inspect.unwrap(scores.find_errors)(run, "test")


READERS = {
    "gates and outputs": lambda *of, piece: gates.observe_gates(*of[:2], of[2:], is_stream=False, piece=piece),
    "gates of a stream": lambda *of, piece: gates.observe_gates(*of[:2], 2 * of[2:], is_stream=True, piece=piece),
    "mean gates": lambda *of, piece: gate_selectivity.mean_gates(*of[:2], of[2:], piece=piece)[1],
    "states": lambda *of, piece: record(*of, piece, scored=SCORED if of[0].kind.every_step else ()),
    "errors": lambda *of, piece: find_errors(*of, piece),
    "samples": lambda *of, piece: streaming.calibration(*of[:2], of[2:], most=37, piece=piece),
    "costs of errors": lambda *of, piece: sensitivity.error_weights(*of[:2], of[2:], piece=piece),
    "loss": lambda *of, piece: pruning.loss(*of[:2], of[2:], piece=piece),
    "slopes": lambda *of, piece: pruning.quadratic(*of[:2], of[2:], piece=piece).gradient,
}


@pytest.fixture
def longest(monkeypatch):
    """The most steps that any call of a model, or of a loop over its steps, was given."""
    seen = [0]

    def note(call, arguments, keywords, context):
        if isinstance(context.module, SequenceModel) and context.method_name == "__call__":
            seen[0] = max(seen[0], arguments[0].shape[1])
        return call(*arguments, **keywords)

    def note_loop(model, params, inputs, *rest, loop=streaming.read, **options):
        seen[0] = max(seen[0], inputs.shape[1])
        return loop(model, params, inputs, *rest, **options)

    monkeypatch.setattr(streaming, "read", note_loop)
    with nn.intercept_methods(note):
        yield seen


def compare(found, expected):
    left, right = jax.tree.leaves(found), jax.tree.leaves(expected)
    assert len(left) == len(right)
    for one, other in zip(left, right, strict=True):
        if isinstance(one, str):
            assert one == other
        else:
            np.testing.assert_allclose(one, other, rtol=2e-4, atol=1e-5)


@pytest.mark.always
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("task", TASKS)
def test_pieces_give_what_the_whole_does(task, reader, longest):
    whole = READERS[reader](*built(task), piece=0)
    steps, longest[0] = longest[0], 0
    compare(READERS[reader](*built(task), piece=PIECE), whole)
    assert longest[0] <= PIECE < steps or (whole is None and not steps)


@pytest.mark.parametrize("transition", ["diagonal", "complex", "dense"])
def test_laws_of_states_are_carried_from_piece_to_piece(transition):
    of = built("language", ("selective",), selective__process_noise=0.3, selective__transition=transition)
    batch = of[2] | {"reset": np.random.default_rng(0).random((B, T)) < 0.1}
    cut, whole = (record(*of[:2], batch, piece).blocks["block_0"].law for piece in (PIECE, 0))
    compare(cut, whole)


def test_curvature_of_all_classes_is_that_of_the_whole():
    compare(
        *(
            pruning.quadratic(*built("classification")[:2], built("classification")[2:], piece=piece).curvature
            for piece in (PIECE, 0)
        )
    )
    drawn = [
        pruning.quadratic(*built("language")[:2], built("language")[2:], piece=piece, draws=64).curvature
        for piece in (PIECE, 0)
    ]
    np.testing.assert_allclose(*map(np.diag, drawn), rtol=0.5)  # other draws of the same law


@pytest.mark.parametrize("name", ["costs of errors", "loss", "slopes"])
def test_memory_of_gradients_is_that_of_a_piece(name, monkeypatch):
    programs, jit = [], jax.jit

    def note(function, **options):
        programs.append(jit(function, **options))
        return programs[-1]

    def temporaries(length, piece):
        model, params, batch = built("language", ("selective",), length)
        del programs[:]
        READERS[name](model, params, batch, piece=piece)
        given = {"costs of errors": (batch,), "loss": (params, batch), "slopes": (params, batch, jax.random.key(0))}
        program = next(program for program in programs if program.__name__ in ("sum_squares", "score", "_slopes"))
        program = program.lower(*given[name]).compile()
        return program.memory_analysis().temp_size_in_bytes, sum(leaf.nbytes for leaf in batch.values())

    monkeypatch.setattr(jax, "jit", note)
    (whole, _), (cut, inputs), (longer, more) = temporaries(32, 0), temporaries(32, T), temporaries(128, T)
    assert cut < 0.2 * whole and longer - cut < 2 * (more - inputs), (whole, cut, longer)


def test_what_is_shown_of_a_long_sequence_is_its_beginning(monkeypatch):
    monkeypatch.setattr(gates, "SHOWN", 8)
    for task in ("language", "classification"):
        model, params, batch = built(task)
        whole, short = (
            gates.observe_gates(model, params, [batch], is_stream=False, piece=piece)[1][0] for piece in (0, PIECE)
        )
        compare(short, whole)
        assert len(short.gates["block_0"]) == 8 and short.batch["valid"].shape == batch["valid"].shape[1:]
        assert len(short.live_gates(model.kind.stride(model.config))["block_0"]) == 8
    first = jax.tree.map(lambda leaf: jnp.asarray(leaf[:1]), batch)
    outputs = model.apply({"params": params}, first["inputs"], valid=first["valid"])[0][0]
    np.testing.assert_allclose(short.outputs, outputs, rtol=1e-4, atol=1e-5)
    run = types.SimpleNamespace(model=model)
    source = types.SimpleNamespace(run=run, seen=[short], dataset=types.SimpleNamespace(metadata=dict))
    (shown,) = inspect.unwrap(Source.signal)(source, "The first signal.", "a signal")
    assert shown.signal.shape == (16, 1) and shown.words == "The first signal. Shown are its first 16 of 52 steps."
