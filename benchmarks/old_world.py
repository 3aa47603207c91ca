"""Claim: the half-life of the old world in a memory, measured two ways, is the same within the intervals.

  python benchmarks/old_world.py --rounds 3

Rounds are seeds. One layer of the paper, of width and state 4, learns to forecast an autoregression x_t = a x_{t-1} +
b x_{t-2} + e_t that goes from world to world. Its parameters then stay. Of two worlds, A and B, one has lasted for 600
rows when it gives way to a third, C; which of the two it was is the label Y, one bit. What the state h knows of it k
rows after the change is I(Y; h_k), and its half-life is the k at which half of I(Y; h_0) is left.

"exact": of a gate that is constant the state is linear in the rows, and normal given Y. The covariances follow from the
layer's response to one impulse, in float64, and the mean log-ratio of the two densities is taken over DRAWS drawn
states: its error is the only one. "decoded": `information.retention.tokens` on recorded states, a lower bound.
"neighbours": nearest neighbours of states beside labels, corrected for smoothing (Ross 2014), an estimate. Of gates of
the input no state is normal, and the last two are held against each other.
"""

from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import optax

from selssm_jax.config import Model, Task
from selssm_jax.config.mixers import GateName, SelectiveConfig
from selssm_jax.information import neighbours, retention
from selssm_jax.model import SequenceModel
from selssm_jax.observe import observe
from selssm_jax.streaming import Stream
from selssm_jax.streaming.synthetic import BURN_IN, switch_autoregression

SIZE = 4  # width and state: neighbours read up to six numbers
WORLDS = ((1.5, -0.75), (-0.5, 0.3), (0.6, -0.2))  # A, B, and C, which follows either
LEARNT, EVERY, RATE = 20_000, 2000, 3e-3  # rows that the model learns from, rows of a world, Adam's rate
OLD, LAGS = 600, (0, 1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
SEQUENCES, AT_ONCE, DRAWS = 30_000, 1000, 200_000
ASKED = 10_000  # recorded states that neighbours are asked about
GATES: tuple[GateName, ...] = ("constant", "sigmoid")
NATS = np.log(2)  # of a bit


def main(rounds: int) -> dict[str, Any]:
    layers = {gate: [measure_layer(gate, seed) for seed in range(rounds)] for gate in GATES}
    ratios: dict[str, dict[str, Any]] = {}
    for gate, found in layers.items():
        one, other = found[0]["bits"]
        pairs = [(row["half_life"][one], row["half_life"][other]) for row in found]
        ratios[f"{gate} gate: layers whose two half-lives have intervals that overlap, share"] = {
            "ours": float(np.mean([meet(*pair) for pair in pairs])),
            "at_least": 1,
        }
        ratios[f"{gate} gate: half-life {other} over {one}, greatest distance from 1"] = {
            "ours": round(max(abs(b["lag"] / a["lag"] - 1) for a, b in pairs), 3)
        }
    beyond = [
        (low - exact) / np.hypot(error, wrong)
        for row in layers["constant"]
        for exact, wrong, low, error in zip(
            *(row["bits"][name][key] for name in ("exact", "decoded") for key in ("value", "stderr")), strict=True
        )
    ]
    ratios["bits decoded beyond the exact ones, in standard errors, greatest"] = {
        "ours": round(float(max(beyond)), 2),
        "at_most": 3,
    }
    return {
        "dtype": "float32, exact laws float64",
        "shape": f"state {SIZE}, {SEQUENCES} sequences of {OLD + max(LAGS)} rows, seeds 0 to {rounds - 1}",
        "ratios": ratios,
        "lags": LAGS,
        "layers": layers,
    }


def measure_layer(gate: GateName, seed: int) -> dict[str, Any]:
    """Bits of the old world by rows after the change, and half-lives, each measured two ways."""
    model, params, error = learn(gate, seed)
    responses = [respond(old) for old in WORLDS[:2]]
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 2, SEQUENCES)
    states = record_states(model, params, draw_rows(responses, label, rng))
    curves = {"decoded": [decode(values, label) for values in states]}
    if gate == "constant":
        curves = {"exact": find_exact_bits(model, params, responses, rng)} | curves
    else:
        curves["neighbours"] = [ask_neighbours(values, label) for values in states]
    bits = {name: {"value": [b for b, _ in curve], "stderr": [e for _, e in curve]} for name, curve in curves.items()}
    lives = {name: retention.half_life(LAGS, curve["value"], curve["stderr"]) for name, curve in bits.items()}
    return {
        "seed": seed,
        "mean squared error, of 1 at best": round(error, 3),
        "half_life": {name: {key: round(x, 1) for key, x in life._asdict().items()} for name, life in lives.items()},
        "bits": {name: {key: np.round(x, 4).tolist() for key, x in curve.items()} for name, curve in bits.items()},
    }


def learn(gate: GateName, seed: int) -> tuple[SequenceModel, Any, float]:
    """A layer that has learnt the worlds as they came, its parameters, and its mean error in the last rows."""
    sizes: dict[str, Any] = {"pattern": ("selective",), "d_model": SIZE, "d_state": SIZE, "mlp_ratio": 0.0}
    task = Task("forecasting", channels=1, horizon=1)
    model = SequenceModel(
        Model(task=task, **sizes, normalize=False, linear_skip=2, norm="none", selective=SelectiveConfig(gate=gate))
    )
    params = jax.jit(model.init)(jax.random.key(seed), jnp.zeros((1, 1, 1)))["params"]
    learner = Stream(model, params, optax.adam(RATE))
    lessons = learner.replay(switch_autoregression(seed, LEARNT, EVERY, WORLDS).inputs).lessons
    return model, learner.params, float(lessons.errors[-EVERY:].mean())


def respond(old: tuple[float, float]) -> np.ndarray:
    """The rows of a world that gives way to C, as a matrix (rows, BURN_IN + rows) on the noise e."""
    steps = BURN_IN + OLD + max(LAGS)
    response = np.eye(steps)
    for step in range(steps):
        a, b = old if step < BURN_IN + OLD else WORLDS[2]
        response[step] += a * response[step - 1] if step > 0 else 0
        response[step] += b * response[step - 2] if step > 1 else 0
    return response[BURN_IN:]


def draw_rows(responses: list[np.ndarray], label: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(SEQUENCES, rows, 1), each of the world of its label."""
    rows = np.empty((len(label), len(responses[0]), 1), np.float32)
    for world, response in enumerate(responses):
        chosen = np.flatnonzero(label == world)
        for part in np.array_split(chosen, max(len(chosen) // AT_ONCE, 1)):
            rows[part, :, 0] = rng.normal(size=(len(part), response.shape[1])) @ response.T
    return rows


def record_states(model: SequenceModel, params: Any, rows: np.ndarray) -> np.ndarray:
    """States k rows after the change, (LAGS, sequences, n); whitened by their own covariance, which takes no
    information from them.
    """

    @jax.jit
    def read(part: jax.Array) -> jax.Array:
        batch = {"inputs": part, "valid": jnp.ones(part.shape[:2], bool)}
        shown = observe(model, params, batch, rngs={"noise": jax.random.key(0)}).blocks["block_0"]
        assert shown.state is not None
        return shown.state[:, OLD - 1 + jnp.asarray(LAGS)]

    parts = [np.asarray(read(jnp.asarray(part)), np.float64) for part in np.array_split(rows, len(rows) // AT_ONCE)]
    states = np.concatenate(parts).swapaxes(0, 1)
    return np.stack([centred @ whiten(centred) for centred in states - states.mean(axis=1, keepdims=True)])


def whiten(values: np.ndarray) -> np.ndarray:
    """W with W' cov W = 1."""
    return np.linalg.inv(np.linalg.cholesky(np.cov(values.T))).T


def decode(states: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Bits, a lower bound, and their standard error."""
    probe = retention.tokens(states, label[:, None], classes=2)
    return float(probe.nats[0] / NATS), float(probe.stderr[0] / NATS)


def ask_neighbours(states: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Bits and their standard error, of the first recorded sequences."""
    found = neighbours.mixtures(label[:ASKED], states[:ASKED])
    return found.nats / NATS, found.stderr / NATS


def find_exact_bits(
    model: SequenceModel, params: Any, responses: list[np.ndarray], rng: np.random.Generator
) -> list[tuple[float, float]]:
    """Bits and their standard error of a state that is normal given the label."""
    impulse = find_impulse_response(model, params, len(responses[0]))
    bits = []
    for lag in LAGS:
        read = impulse[: OLD + lag][::-1].T  # (n, rows) on the rows up to the state
        covs = [signal @ signal.T for signal in (read @ response[: OLD + lag] for response in responses)]
        bits.append(compare_normals([np.linalg.cholesky(cov) for cov in covs], rng))
    return bits


def find_impulse_response(model: SequenceModel, params: Any, steps: int) -> np.ndarray:
    """States (steps, n) after a first row of 1, less those after zeros."""
    rows = np.zeros((2, steps, 1), np.float32)
    rows[1, 0] = 1
    batch = {"inputs": rows, "valid": np.ones(rows.shape[:2], bool)}
    shown = observe(model, params, batch, rngs={"noise": jax.random.key(0)}).blocks["block_0"]
    zeros, ones = np.asarray(shown.state, np.float64)
    return ones - zeros


def compare_normals(roots: list[np.ndarray], rng: np.random.Generator) -> tuple[float, float]:
    """I(Y; h) in bits and its standard error, of Y a fair coin and h normal, of mean 0 and root Y."""
    label = rng.integers(0, 2, DRAWS)
    draws = rng.normal(size=(DRAWS, len(roots[0])))
    states = np.where(label[:, None] == 0, draws @ roots[0].T, draws @ roots[1].T)
    log_p = np.stack(
        [-0.5 * np.square(np.linalg.solve(root, states.T)).sum(axis=0) - np.log(np.diag(root)).sum() for root in roots]
    )
    own = log_p[label, np.arange(DRAWS)]
    values = (own - np.logaddexp(*log_p) + NATS) / NATS
    return float(values.mean()), float(values.std() / DRAWS**0.5)


def meet(one: dict[str, float], other: dict[str, float]) -> bool:
    """Whether two intervals overlap."""
    return max(one["low"], other["low"]) <= min(one["high"], other["high"])


if __name__ == "__main__":
    measure.run("old_world", __doc__, main, rounds=3)
