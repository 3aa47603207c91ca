"""The covariances under the bottleneck's curve: what they say is unbiased, and few sequences draw none."""

import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.analysis import memory_of_future
from selssm_jax.information import bottleneck

DECAY, NOISE = 0.9, 0.5


def draw(rows: int, seed: int, *, known: bool) -> tuple[np.ndarray, np.ndarray]:
    """Noisy readings of a decaying state, 16 and then 8; the future of another sequence if not `known`."""
    rng = np.random.default_rng(seed)
    state, steps = rng.standard_normal(rows), []
    for _ in range(24):
        steps.append(state + NOISE**0.5 * rng.standard_normal(rows))
        state = DECAY * state + (1 - DECAY**2) ** 0.5 * rng.standard_normal(rows)
    x = np.stack(steps, axis=1)[..., None]
    return x[:, :16], x[:, 16:] if known else rng.permutation(x[:, 16:])


def information(covariances: memory_of_future.Covariances) -> float:
    """Nats between past and future: where the curve ends."""
    line = bottleneck.gaussian(covariances.past, covariances.across, covariances.future, jnp.float32([1e6]))
    return float(line.relevance[-1])


def truth() -> float:
    lags = np.abs(np.subtract.outer(np.arange(24), np.arange(24)))
    cov = DECAY**lags + NOISE * np.eye(24)
    past, future, joint = (np.linalg.slogdet(part)[1] for part in (cov[:16, :16], cov[16:, 16:], cov))
    return (past + future - joint) / 2


@pytest.mark.parametrize("known", [True, False])
def test_few_sequences_know_no_more_than_the_law(known):
    """In the mean over samples; plain covariances of 150 sequences know some .4 nats more than there are."""
    found = []
    for seed in range(40):
        given = memory_of_future.covariances(*draw(150, seed, known=known))
        assert given is not None
        found.append(information(given))
    expected = truth() if known else 0.0
    error = np.std(found) / len(found) ** 0.5
    assert abs(np.mean(found) - expected) < (4 * error if known else 0.05)  # what is below 0 is cut to it


def test_fewer_sequences_than_the_curve_needs_draw_none():
    frames, targets = draw(119, 0, known=True)
    assert memory_of_future.count_needed(frames, targets) == 120
    assert memory_of_future.covariances(frames, targets) is None


def test_columns_that_never_change_count_for_nothing():
    frames, targets = draw(150, 0, known=True)
    flagged = np.concatenate([frames, np.ones_like(frames)], axis=-1)
    given, plain = memory_of_future.covariances(flagged, targets), memory_of_future.covariances(frames, targets)
    assert information(given) == pytest.approx(information(plain))


def test_a_future_that_repeats_the_past_has_no_end():
    frames, _ = draw(150, 0, known=True)
    given = memory_of_future.covariances(frames, frames[:, :8])
    assert given is not None
    np.testing.assert_allclose(np.diag(np.asarray(given.across)[:8]), 1, rtol=1e-2)
