"""Traces: every bit comes back, in the bytes of what changed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from selssm_jax.compression import event_trace
from selssm_jax.layers import SelectiveSSM


def hard(steps, size, share, seed=0, dtype=np.float32):
    """States of which each component is rewritten with this probability a step."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((steps, size)).astype(dtype)
    for t in range(1, steps):
        states[t] = np.where(rng.random(size) < share, states[t], states[t - 1])
    return states


def same_bits(first, second):
    return first.dtype == second.dtype and first.shape == second.shape and first.tobytes() == second.tobytes()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 300),
    st.sampled_from([0.0, 0.01, 0.3, 1.0]),
    st.sampled_from([np.float32, np.float16, np.float64, np.complex64]),
)
def test_every_bit_comes_back(steps, size, share, dtype):
    states = hard(steps, size, share, dtype=dtype)
    assert same_bits(event_trace.encode(states).decode(), states)
    start = states[0].copy()
    assert same_bits(event_trace.encode(states, start).decode(), states)


def test_signs_of_zero_and_nan_are_kept():
    states = np.array([[0.0, -0.0, np.nan], [-0.0, -0.0, np.nan], [0.0, np.inf, -np.nan]], np.float32)
    assert same_bits(event_trace.encode(states).decode(), states)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("size", [64, 1000])
def test_bytes_are_those_of_what_changed(size, share):
    states = hard(500, size, share)
    found = event_trace.encode(states)
    active = found.find_changes().sum() / states.size
    assert found.nbytes <= (active + 0.05) * states.nbytes and found.full_nbytes == states.nbytes
    assert found.nbytes >= active * states.nbytes
    if share <= 0.001:  # indices are fewer bytes than bits
        assert found.nbytes <= (2 * active + 0.005) * states.nbytes


def test_a_layer_with_hard_gates_is_traced_at_its_effective_dimension():
    layer = SelectiveSSM(8, 64, gate="hard_sigmoid")
    x = 4 * jax.random.normal(jax.random.key(0), (1, 400, 8))
    params = layer.init(jax.random.key(1), x)["params"]
    params["G"]["bias"] = jnp.full(64, -9.0)  # most gates are exactly closed
    _, seen = layer.apply({"params": params}, x, mutable=["intermediates"])
    gates, states = (np.asarray(seen["intermediates"][name][0][0]) for name in ("gate", "state"))
    found = event_trace.encode(states)
    assert same_bits(found.decode(), states)
    assert not (found.find_changes() & (gates == 0)).any()  # a closed gate keeps every bit
    assert found.nbytes <= ((gates > 0).mean() + 0.05) * states.nbytes < 0.5 * states.nbytes


def test_a_trace_is_saved_without_pickle(tmp_path):
    states = hard(30, 10, 0.2)
    event_trace.encode(states).save(tmp_path / "states.npz")
    assert same_bits(event_trace.load(tmp_path / "states.npz").decode(), states)
    np.savez(tmp_path / "other.npz", a=1)
    with pytest.raises(ValueError, match="expected a trace of format 1"):
        event_trace.load(tmp_path / "other.npz")


@pytest.mark.parametrize(
    ("states", "start", "complaint"),
    [
        (np.zeros(3, np.float32), None, r"states have shape \(3,\)"),
        (np.zeros((0, 3), np.float32), None, r"states have shape \(0, 3\)"),
        (np.zeros((2, 3), int), None, "dtype int64"),
        (np.zeros((2, 3), np.float32), np.zeros(2, np.float32), r"start has shape \(2,\)"),
        (np.zeros((2, 3), np.float32), np.zeros(3), "dtype float64, expected"),
    ],
)
def test_mistakes_are_named(states, start, complaint):
    with pytest.raises(ValueError, match=complaint):
        event_trace.encode.__wrapped__(states, start) if hasattr(
            event_trace.encode, "__wrapped__"
        ) else event_trace.encode(states, start)
