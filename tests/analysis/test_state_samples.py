"""What is recorded of states: the laws that layers state are those of simulation, and a recording lines up with what
was read.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.analysis.state_samples import law_of_state, record
from selssm_jax.layers.selective import SelectiveSSM
from small_runs import built

DRAWS, T, D, N = 20_000, 9, 2, 4
MOMENTS = (0, 4, 8)


def simulated(**options):
    """States (DRAWS, T, N) of one input sequence, and the law at MOMENTS."""
    layer = SelectiveSSM(D, N, process_noise=0.4, **options)
    x = jax.random.normal(jax.random.key(1), (1, T, D))
    params = layer.init({"params": jax.random.key(0), "noise": jax.random.key(2)}, x)
    reset = jnp.zeros((1, T), bool).at[0, 2].set(True)
    many = jnp.broadcast_to(x, (DRAWS, T, D))
    resets = jnp.broadcast_to(reset, (DRAWS, T))
    _, sown = layer.apply(
        params, many, reset=resets, rngs={"noise": jax.random.key(3)}, mutable=["intermediates", "laws"]
    )
    return sown["intermediates"]["state"][0], sown["laws"]["law"][0]


@pytest.mark.parametrize("update", ["retain", "effective"])
@pytest.mark.parametrize("transition", ["diagonal", "complex", "dense"])
def test_the_law_given_the_inputs_is_that_of_simulation(transition, update):
    """Means to five of their errors, (co)variances to 6 % of the largest: 20,000 draws leave 1 % (one deviation)."""
    states, law = simulated(transition=transition, update=update)
    states = np.asarray(jnp.concatenate([states.real, states.imag], axis=-1) if jnp.iscomplexobj(states) else states)[
        :, MOMENTS, :
    ]
    means, covs = law_of_state(jax.tree.map(lambda leaf: leaf[:1], law), MOMENTS)
    np.testing.assert_allclose(states.mean(0), means[0], atol=5 * states.std(0).max() / DRAWS**0.5)
    for moment in range(len(MOMENTS)):
        expected = np.diag(covs[0, moment]) if covs.ndim == 3 else covs[0, moment]
        np.testing.assert_allclose(
            np.cov(states[:, moment], rowvar=False), expected, atol=0.06 * np.abs(expected).max()
        )


def test_the_law_given_the_state_before_is_that_of_simulation():
    states, law = simulated(gate_state="elementwise")
    means, variances = law_of_state(law, MOMENTS)
    white = (np.asarray(states)[:, MOMENTS, :] - np.asarray(means)) / np.sqrt(np.asarray(variances))
    np.testing.assert_allclose(white.mean(0), 0, atol=5 / DRAWS**0.5)
    np.testing.assert_allclose(white.std(0), 1, atol=0.03)
    before = np.asarray(states)[:, [3, 7], :]
    assert (
        np.abs(np.mean(white[:, 1:] * (before - before.mean(0)[None]) / before.std(0)[None], axis=0)).max()
        < 5 / DRAWS**0.5
    )


def test_layers_without_noise_state_no_law():
    layer = SelectiveSSM(D, N)
    x = jnp.ones((1, T, D))
    _, sown = layer.apply(layer.init(jax.random.key(0), x), x, mutable=["laws"])
    assert not sown


def test_a_recording_is_what_was_read(files):
    """Windows of a series, channels apart: rows are channels of windows, frames the values, moments of an unpadded row
    all live.
    """
    _, dataset, model, params = built(files["csv"], channel_independent=True, selective__process_noise=0.2)
    found = record(model, params, dataset.evaluate("test", 4), samples=7, moments=(3, 15))
    batch = next(iter(dataset.evaluate("test", 4)))
    assert found.frames.shape == (7, 16, 1) and found.live.all()
    np.testing.assert_array_equal(found.frames[:2, :, 0], np.asarray(batch["inputs"])[0].T)
    np.testing.assert_array_equal(found.targets[1, :, 0], np.asarray(batch["targets"])[0, :, 1])
    assert {name: block.states.shape for name, block in found.blocks.items()} == {
        "block_0": (7, 2, 6),
        "block_1": (7, 2, 6),
    }
    assert found.blocks["block_0"].law.means.shape == (7, 2, 6) and found.blocks["block_0"].gate.shape == (7, 16)


def test_windows_are_spread_over_their_series(files):
    _, dataset, model, params = built(files["csv"])
    found = record(model, params, dataset.evaluate("train", 4), samples=100, moments=(3, 15), every=5)
    total = dataset.info["train_windows"]
    np.testing.assert_array_equal(found.starts, np.arange(0, total, 5))
    batches = np.concatenate([np.asarray(batch["inputs"]) for batch in dataset.evaluate("train", 4)])
    np.testing.assert_array_equal(found.frames, batches[:total:5])


def test_noise_is_drawn_anew_for_every_sequence_and_again_by_its_seed(files):
    _, dataset, model, params = built(files["text"], selective__process_noise=0.2)
    states = [
        record(model, params, dataset.evaluate("test", 4), samples=8, moments=(7,), seed=seed).blocks["block_0"].states
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(states[0], states[1])
    assert (states[0] != states[2]).all() and len(np.unique(states[0][:, 0, 0])) == len(states[0])


def test_mixers_that_sow_no_states_are_recorded_beside_others_with_noise(files):
    """What they carry is read from the sequence once more, which needs noise too."""
    _, dataset, model, params = built(files["text"], pattern=("selective", "mamba"), selective__process_noise=0.2)
    blocks = record(model, params, dataset.evaluate("test", 4), samples=8, moments=(3, 7)).blocks
    assert all(np.isfinite(block.states).all() and block.states.shape[1] == 2 for block in blocks.values())
    assert blocks["block_0"].law is not None and blocks["block_1"].law is None
