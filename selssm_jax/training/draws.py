"""Keys that draw by example: what a row of the batch is given hangs on its number in the whole batch, not on the share
in which it is read.
"""

import jax
import jax.extend.random
import jax.numpy as jnp
from jaxtyping import Array, Integer, Key, PRNGKeyArray

# The key data are the two words of a threefry key, which alone are split and folded, and the number of the share.
WORDS = 2


def by_row(key: PRNGKeyArray, share: Integer[Array, ""] | int) -> PRNGKeyArray:
    """Returns a key for one of the equal shares of a batch, numbered in the order of their rows: row i of r draws what
    row share r + i of the whole would.

    Rows are the first axis of all that is drawn by this key or by keys made of it; where examples have several rows
    each, one after another, their numbers follow. Draw no parameters by it, and nothing under a `jax.vmap` over rows.
    """
    return jax.random.wrap_key_data(_beside(key, jnp.asarray(share, jnp.uint32)), impl=BY_ROW)


def _beside(keys: Key[Array, "*s"], share: Array) -> Array:
    """The data of keys of a share, of plain keys of any shape."""
    words = jax.random.key_data(keys)
    return jnp.concatenate([words, jnp.broadcast_to(share, (*words.shape[:-1], 1))], axis=-1)


def _plain(data: Array) -> PRNGKeyArray:
    return jax.random.wrap_key_data(data[:WORDS], impl="threefry2x32")


def _seed(seed: Array) -> Array:
    return _beside(jax.random.key(seed, impl="threefry2x32"), jnp.uint32(0))


def _split(data: Array, shape: tuple[int, ...]) -> Array:
    return _beside(jax.random.split(_plain(data), shape), data[WORDS])


def _fold_in(data: Array, number: Array | int) -> Array:
    return _beside(jax.random.fold_in(_plain(data), number), data[WORDS])


def _bits(data: Array, bit_width: int, shape: tuple[int, ...]) -> Array:
    key, dtype = _plain(data), jnp.dtype(f"uint{bit_width}")
    if not shape:
        return jax.random.bits(key, shape, dtype)
    rows = data[WORDS] * jnp.uint32(shape[0]) + jnp.arange(shape[0], dtype=jnp.uint32)
    return jax.vmap(lambda row: jax.random.bits(jax.random.fold_in(key, row), shape[1:], dtype))(rows)


BY_ROW = jax.extend.random.define_prng_impl(
    key_shape=(WORDS + 1,),
    seed=_seed,
    split=_split,
    random_bits=_bits,
    fold_in=_fold_in,
    name="threefry2x32_by_row",
    tag="row",
)
