"""Examples: what is shown is what the model says, for every kind of task."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.analysis import examples, gates
from selssm_jax.config import Data
from selssm_jax.report import example_section
from selssm_jax.report.document import Picture, Shaded, Verbatim
from selssm_jax.runs import Run
from small_runs import built


def shown(config, folder, **options):
    """The example of an untrained model on some data, as it is shown, the run, and the sequences that were seen."""
    small, dataset, model, params = built(config, **options)
    run = Run(folder, small, model, params, 0, dataset, [])
    _, seen = gates.observe_gates(
        model, params, itertools.islice(dataset.evaluate("test", 4), 4), is_stream=dataset.is_stream
    )
    return example_section.show(examples.show(run, seen), folder), run, seen


def pictures(blocks):
    return [block.path.name for block in blocks if isinstance(block, Picture)]


def test_surprise_of_known_odds():
    logits = np.log([[0.5, 0.25, 0.25], [0.125, 0.75, 0.125]]) + 3
    np.testing.assert_allclose(examples.surprise(logits, np.array([0, 2])), [1, 3], rtol=1e-12)


def test_mean_gate_counts_every_component_once():
    np.testing.assert_allclose(examples.mean_gate({"a": np.ones((2, 3)), "b": np.zeros((2, 1))}), [0.75, 0.75])


@pytest.mark.parametrize("level", ["character", "word"])
def test_a_text_is_shown_as_written(files, tmp_path, level):
    blocks, run, _ = shown(dataclasses.replace(files["text"], level=level), tmp_path)
    # as text, not as a picture: fonts of figures lack most scripts
    surprising, updating = [block for block in blocks if isinstance(block, Shaded)]
    assert "in bits" in surprising.caption and "mean gate" in updating.caption
    prompt, drawn = [block.text for block in blocks if isinstance(block, Verbatim)]
    batches = list(run.dataset.evaluate("test", 4))
    stream = np.concatenate([batch["inputs"][0][batch["weights"][0] > 0] for batch in batches])[: examples.PROMPT]
    assert "".join(prompt.split()) == "".join(run.dataset.decode(stream).replace("<eos>", "").split())
    assert "<eos>" not in drawn and len(drawn) >= examples.DRAWN


def test_a_synthetic_task_shows_its_answers(tmp_path):
    config = Data(source="selective_copying", length=16, vocab=4, tokens=3, batch_size=4, eval_examples=8)
    blocks, run, _ = shown(config, tmp_path)
    assert pictures(blocks) == [] and isinstance(blocks[0], Shaded)
    assert len(blocks[0].tokens) == 19 and sum(token.answer is not None for token in blocks[0].tokens) == 3
    first = next(run.dataset.evaluate("test", 4))
    logits, _ = jax.jit(run.model.apply)({"params": run.params}, jnp.asarray(first["inputs"]))
    right = int(((logits.argmax(-1)[0] == first["targets"][0]) * first["weights"][0]).sum())
    assert f"{right} of 3 are right" in blocks[0].caption


def test_a_signal_shows_its_class_and_gates(files, tmp_path):
    blocks, run, seen = shown(files["npz"], tmp_path, frame=4, stride=2)
    assert pictures(blocks) == ["signal.png"]
    assert seen[0].live_gates(2)["block_0"].shape == (20, 6)
    batch = next(run.dataset.evaluate("test", 4))
    logits, _ = jax.jit(run.model.apply)({"params": run.params}, batch["inputs"], valid=batch["valid"])
    odds = jax.nn.softmax(logits[0])
    assert f"class {batch['targets'][0]}, predicted {odds.argmax()} (probability {odds.max():.3f})" in blocks[0].caption


def test_a_text_shows_which_steps_are_read(files, tmp_path):
    """By the same rule in one call over the passage, though the text came in several batches."""
    options = {"resample__rule": "boundary", "resample__first": 1, "resample__spare": 0, "resample__rate": 2}
    blocks, run, seen = shown(files["text"], tmp_path, **options)
    *_, block = [block for block in blocks if isinstance(block, Shaded)]
    steps = examples.find_read_steps(run, seen, is_scored=True)
    passage = examples._join(seen).batch["inputs"]
    assert 1 < steps.sum() < len(passage)
    again = examples.find_read_steps(run, [seen[0]._replace(batch=whole_batch(passage))])
    np.testing.assert_array_equal(steps[: len(passage)], again)
    dark = [token.shade == 1 for token in block.tokens]
    np.testing.assert_array_equal(dark, again[1:])
    assert f"{again[1:].sum()} of {len(dark)} by block 1 (model.resample.rule='boundary')" in block.caption


def whole_batch(tokens):
    return {"inputs": tokens, "weights": np.ones(len(tokens)), "valid": np.ones(len(tokens), bool)}


def test_a_signal_marks_the_frames_that_are_read(files, tmp_path, monkeypatch):
    drawn = {}
    figure = example_section.figures.waveform
    monkeypatch.setattr(
        example_section.figures,
        "waveform",
        lambda *arrays, **options: drawn.update(options) or figure(*arrays, **options),
    )
    blocks, _, _ = shown(files["npz"], tmp_path, frame=4, stride=2, resample__rule="static", resample__rate=3)
    assert np.flatnonzero(drawn["steps"]).tolist() == [*range(0, 20, 3)]
    assert "7 of 20 by blocks 0 to 1 (model.resample.rule='static')" in blocks[0].caption


@pytest.mark.parametrize("period", [0, 19])
def test_a_forecast_is_shown_in_the_units_of_the_data(files, tmp_path, monkeypatch, period):
    drawn = {}
    figure = example_section.figures.forecast
    monkeypatch.setattr(
        example_section.figures,
        "forecast",
        lambda *arrays, **options: drawn.update(options, arrays=arrays) or figure(*arrays, **options),
    )
    blocks, _, _ = shown(dataclasses.replace(files["csv"], period=period), tmp_path)
    assert pictures(blocks) == ["forecast.png"] and drawn["names"] == ["sine", "cosine"]
    past, truth, guess = drawn["arrays"]
    assert past.shape == (16, 2) and truth.shape == guess.shape == (8, 2)
    first = 200 - 40 - 16  # the test split is the last fifth and may look back
    np.testing.assert_allclose(truth[:, 1], 10 + np.cos(np.arange(first + 16, first + 24) / 3), atol=1e-3)
