"""Claim: exact and bracketed information is fast, brackets are narrow and cover the truth, verdicts raise no false
alarm.

  python benchmarks/memory.py --rounds 100

Rounds are the seeds of every bracket. Truths: the closed form for fixed gates, quadrature for gates that read the input
(one step from h_0 = 0, h = g(x) (x + w), x and w standard normal).
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np

from selssm_jax.information import bracket, estimators, gaussian, limits, samplers
from selssm_jax.information._estimate import Estimate
from selssm_jax.information.estimators import Training

STEPS, WIDTH, LAGS = 4096, 16, 1024  # of the closed form
SAMPLES, TIMES, COMPONENTS = 8000, 50, 4  # of a bracket
CHAINS, LEAKS = 200, 20
SHORT = Training(steps=200)
Sample = tuple[jax.Array, jax.Array, jax.Array]

GATES: dict[str, Callable[[jax.Array], jax.Array]] = {
    "sigmoid(2x)": lambda x: jax.nn.sigmoid(2 * x),
    "1/(1+|x|)": lambda x: 1 / (1 + jnp.abs(x)),
    "0.1+0.9 sigmoid(4(|x|-1))": lambda x: 0.1 + 0.9 * jax.nn.sigmoid(4 * (jnp.abs(x) - 1)),
    "1/(1+x^2)": lambda x: 1 / (1 + x**2),
}


def seconds_of(call: Callable[[], Any], rounds: int) -> list[float]:
    """After one call that compiles."""
    times = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return times[1:]


def closed_form(dense: bool) -> dict[str, float]:
    """Seconds of all times, and of the retention of 1,024 lags."""
    rng = np.random.default_rng(0)
    A = (
        0.9 * np.linalg.qr(rng.normal(size=(STEPS, WIDTH, WIDTH)))[0]
        if dense
        else rng.uniform(0.5, 0.99, (STEPS, WIDTH))
    )
    system = (
        jnp.asarray(A, jnp.float32),
        jnp.asarray(rng.normal(size=(STEPS, WIDTH, 4)), jnp.float32),
        jnp.eye(4),
        0.1 * jnp.eye(WIDTH),
    )
    kind = "dense" if dense else "diagonal"
    return {
        f"exact, all of 4096 steps, n=16 {kind}, s": median(
            seconds_of(lambda: gaussian.state_information(*system), 15)
        ),
        f"retention of 1024 lags, n=16 {kind}, s": median(
            seconds_of(lambda: gaussian.retention(*system, t=STEPS - 1, lags=LAGS), 15)
        ),
    }


def samples() -> dict[str, float]:
    """Seconds of one default estimate, compilation included, and of nearest neighbours after it."""
    x, y, _ = samplers.TASKS["multinormal-dense-25-25-0.5"](jax.random.key(0), 10_000)
    start = time.perf_counter()
    estimators.estimate(x, y)
    first = time.perf_counter() - start
    x, y, _ = samplers.TASKS["student-identity-5-5-2"](jax.random.key(0), 10_000)
    return {
        "default estimate of 10000 samples of 25+25 columns, s": first,
        "KSG of 10000 samples of 5+5 columns, s": median(seconds_of(lambda: estimators.ksg(x, y).nats, 7)),
    }


def one_step(gate: Callable[[jax.Array], jax.Array], key: jax.Array) -> Sample:
    x, w = jax.random.normal(key, (2, SAMPLES, 1))
    return gate(x) * x, gate(x) ** 2, gate(x) * (x + w)


def quadrature(gate: Callable[[jax.Array], jax.Array]) -> float:
    """I(h; x) = h(h) - E log(g(x)) - h(w), the marginal of h summed over x."""
    x = np.linspace(-8, 8, 4001)
    weight = np.exp(-0.5 * x**2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    g = np.asarray(gate(jnp.asarray(x)), np.float64)
    h = np.linspace(-9, 9, 18001)
    density = np.concatenate(
        [
            (np.exp(-0.5 * ((part[:, None] - g * x) / g) ** 2) / (g * np.sqrt(2 * np.pi))) @ weight
            for part in np.array_split(h, 40)
        ]
    )
    marginal = -np.sum(density * np.log(np.maximum(density, 1e-300))) * (h[1] - h[0])
    return float(marginal - weight @ np.log(g) - 0.5 * np.log(2 * np.pi * np.e))


def fixed_gates() -> tuple[tuple[jax.Array, ...], float]:
    """A system of random gates that do not read the input, and its information after the last step."""
    rng = np.random.default_rng(0)
    g = rng.uniform(0.1, 1, (TIMES, COMPONENTS))
    A = 1 - g * (1 - rng.uniform(0.5, 0.95, COMPONENTS))
    B = g[:, :, None] * (rng.normal(size=(COMPONENTS, COMPONENTS)) + 2 * np.eye(COMPONENTS))
    system = tuple(jnp.asarray(value, jnp.float32) for value in (A, B, g**2))
    noise = jax.vmap(jnp.diag)(system[2])
    return system, float(gaussian.state_information(system[0], system[1], 0.4 * jnp.eye(COMPONENTS), noise)[-1])


def many_steps(system: tuple[jax.Array, ...], key: jax.Array) -> Sample:
    A, B, noise = system
    x, w = jax.random.normal(key, (2, TIMES, SAMPLES, COMPONENTS))

    def step(carry: Sample, now: tuple[jax.Array, ...]) -> tuple[Sample, None]:
        mean, cov, state = carry
        A, B, noise, x, w = now
        drive = jnp.sqrt(0.4) * x @ B.T
        return (
            A[None] * mean + drive,
            A[None] ** 2 * cov + noise[None],
            A[None] * state + drive + jnp.sqrt(noise)[None] * w,
        ), None

    zero = jnp.zeros((SAMPLES, COMPONENTS))
    return jax.lax.scan(step, (zero, zero, zero), (A, B, noise, x, w))[0]


def brackets(draw: Callable[[jax.Array], Sample], truth: float, seeds: int) -> dict[str, Any]:
    """Widest of all seeds, how many cover the truth with two standard errors, and median seconds."""
    draw = jax.jit(draw)
    drawn = [draw(jax.random.key(seed)) for seed in range(seeds)]
    jax.block_until_ready(bracket.state_information(*drawn[0]))
    found, times = [], []
    for sample in drawn:
        start = time.perf_counter()
        found.append(jax.block_until_ready(bracket.state_information(*sample)))
        times.append(time.perf_counter() - start)
    covered = sum(bool(one.lower - 2 * one.stderr <= truth <= one.upper + 2 * one.stderr) for one in found)
    width = max(float(one.upper - one.lower) for one in found)
    return {
        "truth": truth,
        "widest": width,
        "covered": covered / seeds,
        "seconds": median(times),
        "resolved": all(bool(one.resolved) for one in found),
    }


def false_alarms() -> int:
    """Valid chains of 1,000 samples, I(x; h) known, a held-out lower bound on I(x; h~), judged "violated"."""
    verdicts = []
    for seed in range(CHAINS):
        chain = samplers.markov_chain(jax.random.key(seed), 1000, upstream=0.2 + 0.005 * seed, downstream=2.0)
        verdicts.append(judged(chain, estimators.hybrid(chain.x, chain.compressed, training=SHORT)))
    return verdicts.count("violated")


def leaks_found() -> float:
    """Share of chains of 5,000 samples with 0.3 nats around the state that are judged "violated"."""
    chains = [
        samplers.markov_chain(jax.random.key(seed), 5000, upstream=0.5, downstream=6.0, leak=0.3)
        for seed in range(LEAKS)
    ]
    return [judged(chain, estimators.hybrid(chain.x, chain.compressed)) for chain in chains].count("violated") / LEAKS


def judged(chain: samplers.Chain, downstream: Estimate) -> str:
    return limits.data_processing(Estimate(chain.upstream, 0.0, "exact", "closed form"), downstream).status


def benchmark(seeds: int) -> dict[str, Any]:
    """Everything, beside its target."""
    times = closed_form(dense=False) | closed_form(dense=True)
    system, truth = fixed_gates()
    found = {"fixed gates, 50 steps, n=4": brackets(lambda key: many_steps(system, key), truth, seeds)}
    for name, gate in GATES.items():
        found[f"one step, {name}"] = brackets(partial(one_step, gate), quadrature(gate), seeds)
    estimate, neighbours = samples().items()
    ratios = {name: {"ours": value, "at_most": 0.3} for name, value in times.items()} | {
        estimate[0]: {"ours": estimate[1], "at_most": 30},
        neighbours[0]: {"ours": neighbours[1], "at_most": 0.5},
        "widest bracket of 8000 samples, nats": {"ours": max(one["widest"] for one in found.values()), "at_most": 0.06},
        "least share of seeds covered": {"ours": min(one["covered"] for one in found.values()), "at_least": 0.95},
        "longest bracket, s": {"ours": max(one["seconds"] for one in found.values()), "at_most": 5},
        "false alarms in 200 valid chains": {"ours": float(false_alarms()), "at_most": 0},
        "leaks of 0.3 nats found": {"ours": leaks_found(), "at_least": 0.9},
    }
    return {"dtype": "float32", "seeds": seeds, "ratios": ratios, "brackets": found}


if __name__ == "__main__":
    measure.run("memory", __doc__, benchmark, rounds=100)
