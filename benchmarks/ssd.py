"""Claim: on a CPU ssd beats its own recurrence: selective_scan, and one step after the other, on the same inputs.

  python benchmarks/ssd.py    # with the package installed

At B=1 T=4096 H=8 P=64 N=64 float32 it reads side by side: ours; selective_scan with every head's decay repeated over
its P x N states; and lax.scan over steps of the recurrence itself. A ratio is the median over rounds of peer / ours.
Then ssd runs by chunks of several lengths at other shapes: what `auto` picks by.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measure
from jax import Array, lax

from selssm_jax.ops import selective_scan, ssd

SHAPE = (1, 4096, 8, 64, 64)
SHAPES = [
    (1, 1024, 4, 16, 16),
    (8, 512, 8, 32, 32),
    (1, 4096, 8, 64, 16),
    (1, 4096, 8, 64, 64),
    (1, 4096, 8, 64, 128),
    (2, 2048, 4, 128, 128),
]
CHUNKS = (16, 32, 64, 128, 256)
SEED = 0


def benchmark(rounds: int) -> dict[str, Any]:
    """Ours and its recurrences at the main shape, then every chunk at every shape."""
    return {
        "dtype": "float32",
        "seed": SEED,
        **against_recurrences(rounds),
        "chunks": [every_chunk(shape, -(-rounds // 2)) for shape in SHAPES],
    }


def against_recurrences(rounds: int) -> dict[str, Any]:
    """Milliseconds, bytes and ratios beside their targets; ours runs anew beside each peer."""
    weights, *given = inputs(SHAPE)
    scans = {"ssd": lambda *given: ssd(*given)[0], "selective_scan": as_selective_scan, "lax.scan": step_by_step}
    calls: measure.Programs = {}
    for name, scan in scans.items():
        calls[name, "forward"] = measure.compiled(scan, *given), tuple(given)
        calls[name, "value_and_grad"] = measure.compiled(measure.weighted(scan), weights, *given), (weights, *given)
    ratios, found = {}, {}
    for peer in ("selective_scan", "lax.scan"):
        times = measure.in_turn({key: call for key, call in calls.items() if key[0] in ("ssd", peer)}, rounds)
        found[f"beside {peer}"] = measure.milliseconds(times)
        for kind in ("forward", "value_and_grad"):
            ratios[f"{kind} against {peer}"] = {"peer_over_ours": measure.ratio(times[peer, kind], times["ssd", kind])}
    for kind in ("forward", "value_and_grad"):
        ratios[f"{kind} against selective_scan"]["at_least"] = 3.0
    temporaries = {name: measure.temporaries(calls[name, "value_and_grad"][0]) for name in scans}
    return {"shape": SHAPE, "rounds": rounds, "ratios": ratios, "milliseconds": found, "temporary_bytes": temporaries}


def every_chunk(shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Milliseconds by chunks of every length, and that of `auto`, at one shape."""
    weights, *given = inputs(shape)
    calls: measure.Calls = {}
    for chunk in (*CHUNKS, "auto"):
        scan = partial(lambda *given, chunk: ssd(*given, chunk=chunk)[0], chunk=chunk)
        calls[chunk, "forward"] = measure.compiled(scan, *given), tuple(given)
        calls[chunk, "value_and_grad"] = measure.compiled(measure.weighted(scan), weights, *given), (weights, *given)
    return {"shape": shape, **measure.milliseconds(measure.in_turn(calls, rounds))}


def inputs(shape: tuple[int, ...]) -> tuple[Array, ...]:
    """Weights of a loss, then x, dt, A, B, C as Mamba-2 has them at the start of training, in one group."""
    batch, steps, heads, width, states = shape
    keys = jax.random.split(jax.random.key(SEED), 6)
    weights, x = (jax.random.normal(key, (batch, steps, heads, width)) for key in keys[:2])
    dt = jnp.exp(jax.random.uniform(keys[2], (batch, steps, heads), minval=jnp.log(1e-3), maxval=jnp.log(1e-1)))
    A = -jax.random.uniform(keys[3], (heads,), minval=1.0, maxval=16.0)
    B, C = (jax.random.normal(key, (batch, steps, 1, states)) for key in keys[4:])
    return weights, x, dt, A, B, C


def as_selective_scan(x: Array, dt: Array, A: Array, B: Array, C: Array) -> Array:
    """The same recurrence, each of the H x P channels with N decays that are all one."""
    heads, width = x.shape[2:]
    poles = jnp.broadcast_to(jnp.repeat(A, width)[:, None], (heads * width, B.shape[3]))
    y, _ = selective_scan(x.reshape(*x.shape[:2], -1), jnp.repeat(dt, width, axis=2), poles, B[:, :, 0], C[:, :, 0])
    return y.reshape(x.shape)


def step_by_step(x: Array, dt: Array, A: Array, B: Array, C: Array) -> Array:
    """The same recurrence by lax.scan, differentiated by JAX."""

    def step(h: Array, now: tuple[Array, ...]) -> tuple[Array, Array]:
        x, dt, b, c = now
        h = jnp.exp(dt * A[None])[..., None, None] * h + (dt[..., None] * x)[..., None] * b[:, None, None]
        return h, jnp.einsum("bhpn,bn->bhp", h, c)

    h0 = jnp.zeros((x.shape[0], *x.shape[2:], B.shape[3]))
    return lax.scan(step, h0, tuple(value.swapaxes(0, 1) for value in (x, dt, B[:, :, 0], C[:, :, 0])))[1].swapaxes(
        0, 1
    )


if __name__ == "__main__":
    measure.run("ssd", __doc__, benchmark, rounds=10)
