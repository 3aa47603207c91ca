"""Claim: newton_scan never says converged of states that are far from the loop's, whatever the step, its gain, length,
dtype and Jacobian.

  python benchmarks/newton_attack.py    # with the package installed; some minutes

Random recurrences of every kind that is known to deceive Newton's method: gates of gains from 0.1 to 1000, latches,
chaos, gates that jump, quantised states, unstable growth, components whose sizes differ by 10^12, steps declared
diagonal that are not; over 1 to 100,000 steps, in float32, float32 with bfloat16 inputs, and float64. Each is solved by
newton_scan and by jax.lax.scan. A solve is false where it says converged and any state differs from the loop's by more
than `FALSE` times the largest size that its component had until then.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import measure
import numpy as np
from jax import Array

from selssm_jax.ops import newton_scan

FALSE = 1e-3
WIDTH = 4
TRIALS = {  # of every kind, by inputs and steps
    "float32": {10: 200, 60: 200, 500: 40, 5000: 4, 100_000: 1},
    "bfloat16": {20: 100},
    "float64": {20: 100},
}


class Kind(NamedTuple):
    """A family of steps: (weights, h, x) -> h. `weights` draws what a trial fixes, by name; inputs are two normal
    numbers a component.
    """

    step: Callable[[dict[str, Array], Array, Array], Array]
    jacobian: str = "diagonal"


def update(gate: Array, a: Array, h: Array, drive: Array) -> Array:
    """(1 - g) h + g (a h + u)."""
    return (1 - gate) * h + gate * (a * h + drive)


def opening(w: dict[str, Array], z: Array) -> Array:
    """A sigmoid above the floor."""
    return w["floor"] + (1 - w["floor"]) * jax.nn.sigmoid(z)


def latch(w: dict[str, Array], h: Array, x: Array) -> Array:
    """Armed where the drive is positive, and open only above a threshold: two attractors."""
    drive = 2 * jnp.sign(x[1])
    gate = 0.02 + 0.98 * jax.nn.sigmoid(w["gain"] * (h - 1)) * jax.nn.sigmoid(20 * drive)
    return (1 - gate) * h + gate * drive


def scaled(w: dict[str, Array], h: Array, x: Array) -> Array:
    """Gates that read every component in its own unit, components of sizes 10^-6 to 10^6."""
    own = h / w["unit"]
    return w["unit"] * update(opening(w, x[0] + w["gain"] * w["W"] @ own / WIDTH), w["a"], own, x[1])


def jumping(w: dict[str, Array], h: Array, x: Array) -> Array:
    """A gate that is closed or open."""
    return update(jnp.where(w["w"] * h + x[0] > 0, 0.9, w["floor"]), w["a"], h, x[1])


KINDS = {
    "gate": Kind(lambda w, h, x: update(opening(w, x[0] + w["gain"] * w["w"] * h), w["a"], h, x[1])),
    "dense gate": Kind(
        lambda w, h, x: update(opening(w, x[0] + w["gain"] * w["W"] @ h / WIDTH), w["a"], h, x[1]), "dense"
    ),
    "dense gate, declared diagonal": Kind(
        lambda w, h, x: update(opening(w, x[0] + w["gain"] * w["W"] @ h / WIDTH), w["a"], h, x[1])
    ),
    "gate that reads its neighbour, declared diagonal": Kind(
        lambda w, h, x: update(opening(w, x[0] + w["gain"] * w["w"] * jnp.roll(h, 1)), w["a"], h, x[1])
    ),
    "effective gate": Kind(lambda w, h, x: opening(w, x[0] + w["gain"] * w["w"] * h) * (w["a"] * h + x[1])),
    "latch": Kind(latch),
    "hard sigmoid": Kind(
        lambda w, h, x: update(jnp.clip((x[0] + w["gain"] * w["w"] * h) / 6 + 0.5, w["floor"], 1), w["a"], h, x[1])
    ),
    "gate that jumps": Kind(jumping),
    "quantised state": Kind(
        lambda w, h, x: jnp.round(w["gain"] * update(opening(w, x[0] + h), w["a"], h, x[1])) / w["gain"]
    ),
    "logistic map": Kind(lambda w, h, x: w["r"] * h * (1 - h)),
    "driven logistic map": Kind(lambda w, h, x: jnp.clip(w["r"] * h * (1 - h) + 1e-3 * x[0], 0, 1)),
    "circle map": Kind(lambda w, h, x: jnp.mod(h + 0.3 + w["gain"] * jnp.sin(2 * jnp.pi * h) / 10, 1)),
    "tanh network": Kind(lambda w, h, x: jnp.tanh(w["gain"] * w["W"] @ h / WIDTH + x[0]), "dense"),
    "growth": Kind(lambda w, h, x: (1 + 0.1 * w["a"]) * h + x[0]),
    "sizes far apart": Kind(scaled, "dense"),
    "sizes far apart, declared diagonal": Kind(scaled),
}


def draw(rng: np.random.Generator, count: int, steps: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """(weights, h0, x (count, T, 2, N)) of `count` trials."""

    def uniform(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, (count, WIDTH))

    weights: dict[str, np.ndarray] = {
        "gain": 10 ** rng.uniform(-1, 3, count),
        "floor": rng.choice([0, 0.01, 0.05, 0.3], count),
        "a": uniform(-0.95, 0.95),
        "r": uniform(2.5, 4),
        "w": rng.normal(size=(count, WIDTH)),
        "W": rng.normal(size=(count, WIDTH, WIDTH)),
        "unit": 10 ** uniform(-6, 6),
    }
    scale = 10 ** rng.uniform(-2, 1, (count, 1, 1, 1))
    return weights, uniform(0.1, 0.9), scale * rng.normal(size=(count, steps, 2, WIDTH))


def trial(kind: Kind, weights: dict[str, Array], h0: Array, xs: Array) -> tuple[Array, Array, Array]:
    """(converged, error, iterations) of one trial; the error is infinite where any state, or the loop's, is not
    finite.
    """
    step = partial(kind.step, weights)
    expected = jax.lax.scan(lambda h, x: (step(h, x),) * 2, h0, xs)[1]
    h, solve = newton_scan(step, h0, xs, jacobian=kind.jacobian)
    size = jnp.maximum(jax.lax.cummax(jnp.abs(expected)), jnp.abs(h0)[None])
    errors = jnp.abs(h - expected) / size
    return solve.converged, jnp.where(jnp.isfinite(errors).all(), errors.max(), jnp.inf), solve.iterations


def attack(names: tuple[str, ...], lengths: dict[int, int], inputs: str, *, seed: int = 0) -> list[dict[str, Any]]:
    """All trials of the kinds named, counted by kind and length."""
    dtype = jnp.float64 if inputs == "float64" else jnp.float32
    rows = []
    with jax.enable_x64(inputs == "float64"):
        for steps, count in lengths.items():
            weights, h0, xs = jax.tree.map(
                lambda value: jnp.asarray(value, dtype), draw(np.random.default_rng((seed, steps)), count, steps)
            )
            for name in names:
                run = jax.jit(jax.vmap(partial(trial, KINDS[name])))
                converged, errors, iterations = (np.asarray(value) for value in run(weights, h0, xs.astype(inputs)))
                rows.append({"kind": name, "inputs": inputs, "steps": steps} | counted(converged, errors, iterations))
    return rows


def counted(converged: np.ndarray, errors: np.ndarray, iterations: np.ndarray) -> dict[str, Any]:
    """What came of the trials of one program."""
    return {
        "trials": len(converged),
        "converged": int(converged.sum()),
        "false": int((converged & ~(errors <= FALSE)).sum()),
        "largest error where converged": float(errors[converged].max(initial=0.0)),
        "median iterations where converged": float(np.median(iterations[converged])) if converged.any() else None,
    }


def benchmark(rounds: int) -> dict[str, Any]:
    """Every kind at every length, `rounds` times with other seeds."""
    rows = []
    for inputs, lengths in TRIALS.items():
        for seed in range(rounds):
            rows += attack(tuple(KINDS), lengths, inputs, seed=seed)
    total = {key: sum(row[key] for row in rows) for key in ("trials", "converged", "false")}
    by_kind = {name: {key: sum(row[key] for row in rows if row["kind"] == name) for key in total} for name in KINDS}
    ratios = {
        "trials": {"count": total["trials"], "at_least": 10_000},
        "false converged": {"count": total["false"], "at_most": 0},
        "largest error where converged": {
            "found": max(row["largest error where converged"] for row in rows),
            "at_most": FALSE,
        },
    }
    return {"dtype": ", ".join(TRIALS), "ratios": ratios, "total": total, "kinds": by_kind, "rows": rows}


if __name__ == "__main__":
    measure.run("newton_attack", __doc__, benchmark, rounds=1)
