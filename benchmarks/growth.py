"""Claim: on a CPU time and memory of every recurrence grow linearly with T, from 1k to 256k steps, and compile time
does not.

  python benchmarks/growth.py    # with the package installed

For linear_scan, selective_scan, ssd and newton_scan, and for the peers jax.lax.associative_scan and lax.scan over the
gates that newton_scan solves: milliseconds of the forward pass and of value and gradient, bytes of temporaries, and
seconds to trace and compile, by T. The slope is that of a straight line through log time over log T; the growth of
compile time is that of 256k over that of 1k. Rows are narrow where an op does little with each number: wide ones grow
out of the caches, and then no program is linear in T, not even the streaming pass over linear_scan's arrays that stands
beside them.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from jax import Array, lax

from selssm_jax.ops import linear_scan, newton_scan, selective_scan, sequential_scan, ssd

LENGTHS = tuple(1024 * 4**power for power in range(5))
SLOPE, COMPILE = 1.05, 1.5
PEERS = ("associative_scan", "lax.scan", "streaming pass")
SEED = 0
Draw = Callable[[int], tuple[Array, ...]]


def benchmark(rounds: int) -> dict[str, Any]:
    """Every op at every length."""
    found = {name: [at_length(*op, steps, rounds) for steps in LENGTHS] for name, op in OPS.items()}
    ratios = {}
    for name, cases in found.items():
        targets = ({}, {}) if name in PEERS else ({"at_most": SLOPE}, {"at_most": COMPILE})
        for kind in ("forward", "value_and_grad"):
            ratios[f"{name}: slope of {kind}"] = {
                "slope": slope([case["milliseconds"][kind]["median"] for case in cases])
            } | targets[0]
            seconds = [case["seconds_to_trace_and_compile"][kind] for case in cases]
            ratios[f"{name}: compile time of {kind}"] = {
                "last_over_first": round(seconds[-1] / seconds[0], 2)
            } | targets[1]
    return {"dtype": "float32", "seed": SEED, "rounds": rounds, "ratios": ratios, "growth": found}


def at_length(run: Callable[..., Array], draw: Draw, steps: int, rounds: int) -> dict[str, Any]:
    """One op at one length."""
    shapes = jax.eval_shape(lambda: draw(steps))  # gigabytes of arrays would slow the compiler
    kinds = {"forward": (run, slice(1, None)), "value_and_grad": (measure.weighted(run), slice(None))}
    seconds = {kind: measure.seconds_to_compile(function, *shapes[kept]) for kind, (function, kept) in kinds.items()}
    given = draw(steps)
    programs = {
        kind: (measure.compiled(function, *given[kept]), given[kept]) for kind, (function, kept) in kinds.items()
    }
    return {
        "steps": steps,
        "milliseconds": measure.milliseconds(measure.in_turn(programs, rounds)),
        "temporary_bytes": {kind: measure.temporaries(program) for kind, (program, _) in programs.items()},
        "seconds_to_trace_and_compile": seconds,
    }


def slope(times: list[float]) -> float:
    """Of log time over log T, by least squares."""
    return round(float(np.polyfit(np.log(LENGTHS), np.log(times), 1)[0]), 3)


def normal(*shapes: tuple[int, ...]) -> list[Array]:
    """Standard normal arrays."""
    keys = jax.random.split(jax.random.key(SEED), len(shapes))
    return [jax.random.normal(key, shape) for key, shape in zip(keys, shapes, strict=True)]


def draw_linear(steps: int, width: int = 16) -> tuple[Array, ...]:
    """Weights of a loss, factors, drives."""
    weights, a, b = normal(*[(1, steps, width)] * 3)
    return weights, 0.9 + 0.099 * jnp.tanh(a), b


def draw_selective(steps: int, width: int = 64, states: int = 16) -> tuple[Array, ...]:
    """Weights of a loss, x, dt, A, B, C."""
    weights, x, dt, B, C = normal(*[(1, steps, width)] * 3, *[(1, steps, states)] * 2)
    return weights, x, jax.nn.softplus(dt - 4), -jnp.broadcast_to(jnp.arange(1.0, states + 1), (width, states)), B, C


def draw_ssd(steps: int, heads: int = 2, width: int = 64, states: int = 64) -> tuple[Array, ...]:
    """Weights of a loss, x, dt, A, B, C."""
    weights, x, dt, B, C = normal(*[(1, steps, heads, width)] * 2, (1, steps, heads), *[(1, steps, 1, states)] * 2)
    return weights, x, jax.nn.softplus(dt - 4), -jnp.arange(1.0, heads + 1), B, C


def draw_gated(steps: int, width: int = 16) -> tuple[Array, ...]:
    """Weights of a loss, W, z, drive: gates that contract for certain (theory, section 5 B5)."""
    weights, W, z, drive = normal((steps, width), (width,), *[(steps, width)] * 2)
    return weights, 0.05 * jnp.tanh(W), z, jnp.tanh(drive)


def gate_step(W: Array, h: Array, now: tuple[Array, Array]) -> Array:
    """A retain update with gates of at least 0.3 and a = 0.5."""
    z, drive = now
    gate = 0.3 + 0.7 * jax.nn.sigmoid(z + W * h)
    return (1 - gate) * h + gate * (0.5 * h + drive)


def associative_scan(a: Array, b: Array) -> Array:
    """The peer of linear_scan."""
    return lax.associative_scan(lambda x, y: (x[0] * y[0], y[0] * x[1] + y[1]), (a, b), axis=1)[1]


OPS: dict[str, tuple[Callable[..., Array], Draw]] = {
    "linear_scan": (lambda a, b: linear_scan(a, b)[0], draw_linear),
    "associative_scan": (associative_scan, draw_linear),
    "selective_scan": (lambda *given: selective_scan(*given)[0], draw_selective),
    "ssd": (lambda *given: ssd(*given)[0], draw_ssd),
    "newton_scan": (
        lambda W, *xs: newton_scan(lambda h, now: gate_step(W, h, now), jnp.zeros_like(W), xs)[0],
        draw_gated,
    ),
    "lax.scan": (
        lambda W, *xs: sequential_scan(lambda h, now: gate_step(W, h, now), jnp.zeros_like(W), xs),
        draw_gated,
    ),
    "streaming pass": (lambda a, b: 0.5 * a + b, draw_linear),
}


if __name__ == "__main__":
    measure.run("growth", __doc__, benchmark, rounds=5)
