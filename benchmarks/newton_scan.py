"""Claim: newton_scan solves h_t = f(h_{t-1}, x_t) in a few iterations, however long the sequence, where f contracts.

  python benchmarks/newton_scan.py    # with the package installed

The step is a retain update whose gates read the state elementwise, float32. Its weights W are a share of the largest
for which contraction is certified (theory, section 5 B5: L_G < g_min (1 - alpha)^2 / (2 U) with g_min = 0.3, alpha =
0.5, U = 1); a share above 1 is beyond the certificate, and with open gates (g_min = 0) and a large drive there is none.
Side by side: newton_scan and jax.lax.scan on the same inputs, with the iterations, whether it converged, and the
largest difference to lax.scan over the largest state.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measure
from jax import Array

from selssm_jax.ops import Solve, newton_scan, sequential_scan

FLOOR, ALPHA, DRIVE = 0.3, 0.5, 1.0
LARGEST = FLOOR * (1 - ALPHA) ** 2 / (2 * DRIVE) * 4 / (1 - FLOOR)  # |W| at which L_G = (1 - floor) |W| / 4 meets B5
LENGTHS, WIDTHS, SHARES = (256, 1024, 4096, 16_384), (4, 64, 256), (0.1, 0.5, 0.99, 10.0, 100.0)
SEED = 0


def benchmark(rounds: int) -> dict[str, Any]:
    """Iterations, time and error as functions of length, width and gain, one varied at a time."""
    sweeps = {
        "length": [compare(rounds, steps=steps) for steps in LENGTHS],
        "width": [compare(rounds, width=width) for width in WIDTHS],
        "gain": [compare(rounds, share=share) for share in SHARES],
        "without contraction": [compare(rounds, steps=1024, share=30.0, floor=0.0, drive=5.0)],
    }
    certified = [case for name in ("length", "width", "gain") for case in sweeps[name] if case["share"] < 1]
    ratios = {
        "iterations where certified": {"largest": max(case["iterations"] for case in certified), "at_most": 12},
        "error where certified": {"largest": max(case["error"] for case in certified), "at_most": 1e-5},
        "time against lax.scan at T=16384 N=64": {"peer_over_ours": sweeps["length"][-1]["peer_over_ours"]},
    }
    return {"dtype": "float32", "seed": SEED, "rounds": rounds, "ratios": ratios, "sweeps": sweeps}


def compare(
    rounds: int, *, steps: int = 16_384, width: int = 64, share: float = 0.5, floor: float = FLOOR, drive: float = DRIVE
) -> dict[str, Any]:
    """newton_scan beside lax.scan in one setting."""
    given = inputs(steps, width, share, drive)
    step = partial(gate_step, floor)
    solvers = {
        "newton_scan": measure.compiled(partial(solve, step), *given),
        "lax.scan": measure.compiled(partial(loop, step), *given),
    }
    (h, end), expected = (solver(*given) for solver in solvers.values())
    times = measure.in_turn({name: (solver, given) for name, solver in solvers.items()}, rounds)
    return {
        "steps": steps,
        "width": width,
        "share": share,
        "g_min": floor,
        "drive": drive,
        "iterations": int(end.iterations),
        "converged": bool(end.converged),
        "error": float(jnp.abs(h - expected).max() / jnp.abs(expected).max()),
        "peer_over_ours": measure.ratio(times["lax.scan"], times["newton_scan"]),
        "milliseconds": measure.milliseconds(times),
    }


def inputs(steps: int, width: int, share: float, drive: float) -> tuple[Any, ...]:
    """Weights (W, A), h0 and the sequences (z, drive) of a gate with |W| = share * LARGEST, |A| <= ALPHA, |drive| <=
    `drive`.
    """
    keys = jax.random.split(jax.random.key(SEED), 5)
    W = share * LARGEST * jnp.sign(jax.random.normal(keys[0], (width,)))
    A = jax.random.uniform(keys[1], (width,), minval=-ALPHA, maxval=ALPHA)
    h0 = jax.random.uniform(keys[2], (width,), minval=-1.0)
    return (
        (W, A),
        h0,
        (
            jax.random.normal(keys[3], (steps, width)),
            jax.random.uniform(keys[4], (steps, width), minval=-drive, maxval=drive),
        ),
    )


def gate_step(floor: float, weights: tuple[Array, Array], h: Array, now: tuple[Array, Array]) -> Array:
    """One step: a gate of z + W h, then the retain update."""
    (W, A), (z, drive) = weights, now
    gate = floor + (1 - floor) * jax.nn.sigmoid(z + W * h)
    return (1 - gate) * h + gate * (A * h + drive)


def solve(
    step: Callable[..., Array], weights: tuple[Array, Array], h0: Array, xs: tuple[Array, Array]
) -> tuple[Array, Solve]:
    """Ours."""
    return newton_scan(partial(step, weights), h0, xs)


def loop(step: Callable[..., Array], weights: tuple[Array, Array], h0: Array, xs: tuple[Array, Array]) -> Array:
    """The peer: lax.scan."""
    return sequential_scan(partial(step, weights), h0, xs)


if __name__ == "__main__":
    measure.run("newton_scan", __doc__, benchmark, rounds=10)
