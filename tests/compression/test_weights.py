"""Weights of 8 bits: within half a step of what they were, and a quarter of the bytes."""

import jax
import jax.numpy as jnp
import numpy as np

from selssm_jax.compression.weights import decode_weights, encode_weights


def test_what_is_decoded_is_within_half_a_step_of_every_column():
    W = jax.random.normal(jax.random.key(0), (30, 5)) * jnp.asarray([1e-3, 1.0, 50.0, 0.0, 2.0])[None]
    found = encode_weights({"block": {"kernel": W, "bias": jnp.ones(5)}})
    assert found["block"]["kernel"]["int8"].dtype == jnp.int8
    step = np.asarray(found["block"]["kernel"]["scale"])
    back = decode_weights(found)["block"]
    np.testing.assert_array_less(
        np.abs(np.asarray(back["kernel"] - W)), np.broadcast_to(step / 2 * (1 + 1e-5) + 1e-30, W.shape)
    )
    np.testing.assert_array_equal(back["bias"], np.ones(5))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(found["block"]["kernel"])) == 30 * 5 + 4 * 5


def test_what_was_never_encoded_stays_as_it_is():
    tree = {"a": {"kernel": jnp.ones((2, 2))}, "levels": jnp.zeros((3, 4))}
    assert jax.tree.structure(decode_weights(tree)) == jax.tree.structure(tree)
    again = encode_weights(decode_weights(encode_weights(tree)))
    np.testing.assert_array_equal(again["a"]["kernel"]["int8"], encode_weights(tree)["a"]["kernel"]["int8"])
