"""Causal attention over the steps before, whose state is its cache of keys and values."""

import itertools
import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from selssm_jax.config.mixers import AttentionConfig, check_layer
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.bounds import Bounds, Inputs
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import project
from selssm_jax.ops import shards
from selssm_jax.ops.boundaries import finite, poison
from selssm_jax.shapes import Activations, Reset, Rows

BASE = 10_000.0  # of the wave lengths of rotary positions
FEW = 2**18  # scores that a CPU's cache holds together, a MiB
# by pieces: queries of a piece; parts of a sequence whose pieces are compiled for keys of one length
QUERIES, PARTS = 32, 4
HIDDEN = -1e30  # score of what is not seen: exp of it is 0, and it is a number where nothing is seen

State = dict[str, Array]


def rotate_pairs(x: Float[Array, "B T H P"], positions: Int[Array, "T"]) -> Float[Array, "B T H P"]:
    """Turns pair i of each head, components i and i + P/2, by the angle position * BASE^(-2i/P) (Su et al. 2021).

    Products of two of these depend on the difference of their positions alone.
    """
    half = x.shape[-1] // 2
    angle = positions[:, None] * BASE ** (-jnp.arange(half, dtype=jnp.float32) / half)[None]
    cos, sin = (part.astype(x.dtype)[None, :, None] for part in (jnp.cos(angle), jnp.sin(angle)))
    left, right = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([left * cos - right * sin, left * sin + right * cos], axis=-1)


def attend(
    q: Float[Array, "B T H P"],
    k: Float[Array, "B S H P"],
    v: Float[Array, "B S H P"],
    begin: Int[Array, "B T"],
    window: int,
) -> Float[Array, "B T H P"]:
    """y_t = sum_s softmax_s(q_t . k_s / sqrt(P)) v_s over the last `window` steps s up to t that are not before
    begin_t.

    Queries are the last T of the S steps that keys are of; begin counts in those, from 0. Scores and softmax are
    float32. On a CPU only the scores of some queries of one row are there at a time, made again for the gradient (Rabe
    and Staats 2021): memory O(S), not O(T S), in less time, for they stay in its cache.
    """
    at = jnp.arange(k.shape[1])
    now = at[len(at) - q.shape[1] :]
    q, k, v = (value.swapaxes(1, 2) for value in (rotate_pairs(q, now), rotate_pairs(k, at), v))
    # a batch of any size may be large
    few = len(now) <= QUERIES or (isinstance(q.shape[0], int) and q.shape[0] * q.shape[1] * len(now) * len(at) <= FEW)
    if few or jax.default_backend() != "cpu":
        y = jax.vmap(partial(_read, now=now, at=at, window=window))(q, k, v, begin)
    else:
        y = jax.lax.map(partial(_read_by_pieces, window=window), (q, k, v, begin))
    return y.swapaxes(1, 2)


def _read(q: Array, k: Array, v: Array, begin: Array, now: Array, at: Array, window: int) -> Array:
    """What queries (H, Q, P) of one row, of its steps `now`, see of keys and values (H, K, P) of its steps `at`."""
    age = now[:, None] - at[None]
    seen = (age >= 0) & (age < window) & (at[None] >= begin[:, None])
    bad = ~(jnp.isfinite(k) & jnp.isfinite(v)).all(axis=(0, 2))
    scores = jnp.einsum("hqp,hkp->hqk", q, finite(k), preferred_element_type=jnp.float32) / math.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(seen[None], scores, HIDDEN), axis=-1)
    # a weight of 0 would not hide what is not finite
    y = jnp.einsum("hqk,hkp->hqp", weights.astype(v.dtype), finite(v))
    return poison(y, (seen & bad[None]).any(axis=1)[None, :, None])


def _read_by_pieces(row: tuple[Array, Array, Array, Array], window: int) -> Array:
    """The same for a whole row, QUERIES at a time, in PARTS that leave out the keys that none of their queries sees."""
    q, k, v, begin = row
    (H, T, P), S = q.shape, k.shape[1]
    count, at = -(-T // QUERIES), jnp.arange(S)
    fill = count * QUERIES - T
    pieces = (
        jnp.pad(q, ((0, 0), (0, fill), (0, 0))).reshape(H, count, QUERIES, P).swapaxes(0, 1),
        jnp.pad(begin, (0, fill)).reshape(count, QUERIES),
        (S - T + jnp.arange(T + fill)).reshape(count, QUERIES),
    )

    def part(first: int, last: int) -> Array:
        seen = slice(max(S - T + first * QUERIES - window + 1, 0), S - T + last * QUERIES)

        @partial(jax.checkpoint, prevent_cse=False)
        def read(piece: tuple[Array, Array, Array]) -> Array:
            # else what is seen, known without q, is kept for all pieces: T S bytes
            q, begin, now = jax.lax.optimization_barrier(piece)
            return _read(q, k[:, seen], v[:, seen], begin, now, at[seen], window)

        return jax.lax.map(read, tuple(array[first:last] for array in pieces))

    cuts = sorted({count * index // PARTS for index in range(PARTS + 1)})
    y = jnp.concatenate([part(first, last) for first, last in itertools.pairwise(cuts)])
    return y.swapaxes(0, 1).reshape(H, T + fill, P)[:, :T]


class Attention(Layer):
    """y = W_o [heads of softmax(q_t . k_s / sqrt(P)) v_s], s the last `window` steps up to t, with rotary positions
    (Vaswani et al. 2017, Su et al. 2021).

    Attributes:
      d_model: width of inputs and outputs. heads: each d_model / heads = P wide. window: steps that are seen, itself
        among them.
      dtype: of activations and of the cache; scores and softmax are float32.

    The state is the cache, {"keys", "values": (B, S, d_model), the newest last, "count": (B,), how many of them were
    read}, S = window slots, fewer where `initial_state` was told that fewer steps will be read. Keys are kept as they
    were before they were turned: positions count from the first slot, so a million steps cost them no precision. Time
    O(T window), by blocks of `window` queries that see their own and the block before.
    """

    d_model: int
    heads: int = AttentionConfig.heads
    window: int = AttentionConfig.window
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        check_layer(AttentionConfig, self)
        normal = nn.initializers.lecun_normal()
        self.inward = self.param("in", normal, (self.d_model, 3 * self.d_model))
        self.outward = self.param("out", normal, (self.d_model, self.d_model))

    def __call__(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, State]:
        """Reads a sequence after what `state` holds, after nothing if None, and returns (y, state after the last step);
        True in `reset` forgets.
        """
        q, k, v = jnp.split(project(x.astype(self.dtype), self.inward), 3, axis=-1)
        v = rules.tap(self, "drive", v)
        slots = self.window if state is None else state["keys"].shape[1]
        # keys of other devices need room
        empty = self.initial_state(x.shape[0], None if shards.count() > 1 else 0)
        join = partial(_Cache.join, k=k, v=v, reset=reset)
        past, after = shards.pass_on(
            lambda past: join(past).last(slots), empty if state is None else state, span=slots, steps=x.shape[1]
        )
        y = self._read(q, join(past), min(self.window, max(slots, 1)))
        return project(rules.tap(self, "read", y.reshape(x.shape)), self.outward), after

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns that there are none."""
        del inputs
        return Bounds(
            unknown=f"attention holds a window of {self.window} steps: it forgets what is older at once and whole, "
            "which is no contraction"
        )

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns an empty cache with room for all that is seen, or for `steps` if no more will be read."""
        slots = self.window if steps is None else min(steps, self.window)
        return {
            "keys": jnp.zeros((batch, slots, self.d_model), self.dtype),
            "values": jnp.zeros((batch, slots, self.d_model), self.dtype),
            "count": jnp.zeros(batch, jnp.float32),
        }

    def _read(self, q: Array, cache: "_Cache", W: int) -> Array:
        """Attention over the last W steps: a cache of fewer slots than the window looks back on no more than it holds,
        in one call as in many.
        """
        T = q.shape[1]
        heads = lambda value: value.reshape(*value.shape[:2], self.heads, -1)  # noqa: E731
        q, cache = rules.detach(q, "attention"), cache._replace(keys=rules.detach(cache.keys, "attention"))
        if T <= W:
            return attend(heads(q), heads(cache.keys), heads(cache.values), cache.begin, W)
        past, blocks = cache.keys.shape[1] - T, -(-T // W)
        pad = lambda value, before: jnp.pad(value, ((0, 0), (before, blocks * W - T), (0, 0)))  # noqa: E731
        keys, values = (_overlapping(pad(value, W - past), W) for value in (cache.keys, cache.values))
        begin = (
            pad(cache.begin[..., None] + W - past, 0).reshape(q.shape[0], blocks, W)
            - W * jnp.arange(blocks)[None, :, None]
        )
        rows = lambda value: heads(value.reshape(-1, value.shape[-2], self.d_model))  # noqa: E731
        y = attend(
            rows(pad(q, 0).reshape(q.shape[0], blocks, W, q.shape[2])),
            rows(keys),
            rows(values),
            begin.reshape(-1, W),
            W,
        )
        return y.reshape(q.shape[0], blocks * W, q.shape[2])[:, :T]


class _Cache(NamedTuple):
    """Keys and values of steps before and of this call, (B, S + T, D), and where, counted in these, each of its steps
    begins to see, (B, T).
    """

    keys: Array
    values: Array
    begin: Array

    @classmethod
    def join(cls, past: State, k: Array, v: Array, reset: Array | None) -> "_Cache":
        """What `past` holds and the keys and values of this call."""
        keys, values = (jnp.concatenate([past[name], new], axis=1) for name, new in (("keys", k), ("values", v)))
        return cls(keys, values, _begin(past, k.shape[1], reset))

    def last(self, slots: int) -> State:
        """The newest ones, what is before the last reset as zeros."""
        total, first = self.keys.shape[1], self.begin[:, -1]
        live = (jnp.arange(total)[None] >= first[:, None])[..., None]
        kept = {
            name: _newest(jnp.where(live, value, 0), slots)
            for name, value in (("keys", self.keys), ("values", self.values))
        }
        return kept | {"count": jnp.minimum(total - first, slots).astype(jnp.float32)}


def _begin(past: State, steps: int, reset: Array | None) -> Array:
    slots = past["keys"].shape[1]
    first = jnp.broadcast_to((slots - past["count"].astype(jnp.int32))[:, None], (past["count"].shape[0], steps))
    if reset is None:
        return first
    return jax.lax.cummax(jnp.where(reset, slots + jnp.arange(steps)[None], first), axis=1)


def _newest(value: Array, slots: int) -> Array:
    value = jnp.pad(value, ((0, 0), (max(slots - value.shape[1], 0), 0), (0, 0)))
    return value[:, value.shape[1] - slots :]


def _overlapping(value: Array, size: int) -> Array:
    """(B, (n + 1) size, D) as (B, n, 2 size, D): every block after the one before it."""
    blocks = value.reshape(value.shape[0], value.shape[1] // size, size, value.shape[-1])
    return jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=2)
