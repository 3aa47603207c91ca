"""Text from a model: a prompt read in one parallel pass, then a token after another, the recurrent state carried and nothing else."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from selssm_jax.model import Reader


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Raises ValueError, which names the setting, where one is out of its range.

    Attributes:
      temperature: of the softmax; 0 takes the most probable token.
      top_k: only so many of the most probable tokens are drawn; 0: all.
      top_p: only the fewest of the most probable tokens that together have this probability are drawn; 1: all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(f"temperature={self.temperature} must be a number of at least 0: 0 takes the most probable token, 1 draws as the model says")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0: 0 draws from all tokens, 1 takes the most probable one")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1: 1 draws from all tokens")


def generate(
    model: Reader,
    params: PyTree,
    prompt: Int[Array, "B P"] | Int[np.ndarray, "B P"],
    count: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    key: Array | None = None,
) -> Int[Array, "B N"]:
    """Returns the `count` tokens that a language model writes after each prompt, (B, P) -> (B, count).

    x_t ~ filtered(logits(x_{<t})), for temperature 0 its most probable token. The prompt is read in one pass, the rest in one compiled loop
    of single steps that carries the state, so memory does not grow with the text, but for a cache, which has room for just these steps.
    Compiled once for a model, a shape of the prompt, a count and a way of sampling.

    Args:
      model: a `SequenceModel`, or one that carries its state packed, which reads its prompt step by step too.
      temperature, top_k, top_p: see `Sampling`.
      key: needed above temperature 0; noise in a model's state is drawn from it too.

    Raises:
      ValueError: for a model of another task, a prompt without tokens or with tokens that the model does not have, count < 1, a setting out
        of its range, or no key where tokens are drawn.
    """
    sampling = Sampling(temperature, top_k, top_p)
    _check(model, np.asarray(prompt), count)
    if key is None and temperature > 0:
        raise ValueError(f"key is None, but temperature={temperature} draws tokens at random: give a key, for example jax.random.key(0)")
    return _written(params, jnp.asarray(prompt, jnp.int32), jax.random.key(0) if key is None else key, model=model, count=count, sampling=sampling)


def filtered(logits: Float[Array, "*B V"], temperature: float, top_k: int, top_p: float) -> Float[Array, "*B V"]:
    """Returns logits / temperature, -inf for tokens that are not to be drawn: all but the `top_k` largest, and of these all but the nucleus.

    The nucleus is the fewest of the most probable tokens whose probabilities, after temperature and `top_k`, sum to at least `top_p` (Holtzman
    et al. 2020). Temperature 0 leaves the largest alone; of equal logits the first counts as larger. Raises as `Sampling`.
    """
    Sampling(temperature, top_k, top_p)
    if not temperature:
        temperature, top_k = 1.0, 1
    scaled = logits / temperature
    if not top_k and top_p == 1:
        return scaled
    values, places = jax.lax.top_k(scaled, min(top_k, logits.shape[-1]) or logits.shape[-1])
    odds = jax.nn.softmax(values, axis=-1)
    more_probable = jnp.cumsum(odds, axis=-1) - odds
    kept = jnp.where(more_probable < top_p, values, -jnp.inf) if top_p < 1 else values
    return jnp.put_along_axis(jnp.full_like(scaled, -jnp.inf), places, kept, axis=-1, inplace=False)


@functools.partial(jax.jit, static_argnames=("model", "count", "sampling"))
def _written(params: PyTree, prompt: Array, key: Array, *, model: Reader, count: int, sampling: Sampling) -> Array:
    read = functools.partial(model.apply, {"params": params})
    keys = jax.random.split(key, count)

    def one(carried: tuple[Array, PyTree], key: Array) -> tuple[tuple[Array, PyTree], Array]:
        token, state = carried
        logits, state = read(token, state, method="step", rngs={"noise": key})
        token = _drawn(logits, key, sampling)
        return (token, state), token

    state = read(len(prompt), prompt.shape[1] + count, method="initial_state")
    logits, state = read(prompt, state, rngs={"noise": keys[0]})
    first = _drawn(logits[:, -1], keys[0], sampling)
    _, rest = jax.lax.scan(one, (first, state), keys[1:])
    return jnp.concatenate([first[None], rest]).T


def _drawn(logits: Array, key: Array, sampling: Sampling) -> Array:
    if not sampling.temperature:
        return logits.argmax(axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, filtered(logits, *dataclasses.astuple(sampling))).astype(jnp.int32)


def _check(model: Reader, prompt: np.ndarray, count: int) -> None:
    task = model.config.task
    if task.kind != "language":
        raise ValueError(f"the model's task is {task.kind}: only a language model writes tokens")
    if prompt.ndim != 2 or not prompt.size:
        raise ValueError(f"prompt has the shape {prompt.shape}, expected (B, P) with at least one token in each of at least one row")
    if prompt.min() < 0 or prompt.max() >= task.vocab:
        raise ValueError(f"prompt holds tokens from {prompt.min()} to {prompt.max()}, but the model's are 0 to {task.vocab - 1}")
    if count < 1:
        raise ValueError(f"count={count} must be at least 1 token")
