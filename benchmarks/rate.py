"""Claim: what a bit of memory is worth is measured as a curve, and no point of it lies under what theory allows.

  python benchmarks/rate_sweep.py --rounds 3    # with the package installed

Rounds are seeds. configs/channel.py with observation noise of variance 1, where one observation says little and a
memory is worth having, trained once for every price of a nat (`compression.rate.sweep`). Bits: the rate of training, an
upper bound in the mean over steps; exactly, in closed form, the same mean, and those of the last state, about all
inputs and about all but the last one given that one: the model's forecast reads the last input beside the state. The
loss is told as its excess over the Kalman filter's on the same sequences, of which no forecast from a state of so many
bits has less than `least_excess`. All of the validation split.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from scipy.linalg import toeplitz

from configs import channel
from selssm_jax.analysis import rate_sweep
from selssm_jax.config import Experiment
from selssm_jax.observe import observe
from selssm_jax.runs import Run, open_run
from selssm_jax.training import objectives

BETAS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.06, 0.1)
TELLING = 0.03  # the price that ratios are told of
NOISE = 1.0  # variance of the observation noise
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "rate"
MARGIN = 3  # standard errors by which a measured excess may lie under a true one
DECAY, STEPS, HORIZON = 0.9, 64, 8  # of configs/channel.py


def benchmark(rounds: int) -> dict[str, Any]:
    """Every price at every seed."""
    curves = [curve(seed) for seed in range(rounds)]
    points = [point for one in curves for point in one]

    def at(beta: float, name: str) -> float:
        return float(np.mean([point[name] for point in points if point["beta"] == beta]))

    falls = [all(np.diff([point["rate_bits"] for point in one]) < 0) for one in curves]
    ratios = {
        "points not under the least excess of their bits, share": {
            "ours": np.mean([point["excess"] - point["least_excess"] > -MARGIN * point["stderr"] for point in points]),
            "at_least": 1,
        },
        "rate over exact bits, both in the mean over steps, least of all points": {
            "ours": min(point["rate_bits"] / point["exact_mean_bits"] for point in points),
            "at_least": 1,
        },
        "seeds whose bits fall with every price, share": {"ours": np.mean(falls), "at_least": 1},
        f"bits without a price over bits at {TELLING}": {"ours": at(0.0, "exact_bits") / at(TELLING, "exact_bits")},
        f"mean squared error at {TELLING} over that without a price": {"ours": at(TELLING, "mse") / at(0.0, "mse")},
        f"excess error at {TELLING} over the least of its bits": {
            "ours": at(TELLING, "excess") / at(TELLING, "least_excess")
        },
        "excess error at the highest price over that of no memory": {
            "ours": at(BETAS[-1], "excess") / least_excess(0.0)
        },
    }
    bound = [
        {"bits": bits, "least_excess": least_excess(bits)} for bits in (0.0, 0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0)
    ]
    return {
        "dtype": "float32",
        "seeds": rounds,
        "betas": list(BETAS),
        "noise": NOISE,
        "ratios": ratios,
        "bound": bound,
        "points": points,
    }


def curve(
    seed: int,
    folder: pathlib.Path = FOLDER,
    betas: tuple[float, ...] = BETAS,
    *,
    examples: int = 4000,
    warmup_steps: int = 100,
    **training: Any,
) -> list[dict[str, Any]]:
    """The points of one seed."""
    config = channel.get_config()
    config.data.update({"noise": NOISE, "eval_examples": examples, "eval_batch_size": min(examples, 500)})
    config.optimizer.warmup_steps = warmup_steps
    config.training.update({"seed": seed, "penalty_warmup": 500, "information_weight": 1.0, "devices": 1} | training)
    return [
        described(seed, point)
        for point in rate_sweep.sweep(Experiment.from_config_dict(config), betas, folder / f"seed_{seed}")
    ]


def described(seed: int, point: rate_sweep.Point) -> dict[str, Any]:
    """One run: its bits by every measure, its loss, and the excess of that over the Kalman filter's beside the least
    that its bits allow.
    """
    run = open_run(point.workdir, split="validation")
    bits = exact_bits(run)
    excess, stderr = excess_error(run)
    return {
        "seed": seed,
        "beta": point.beta,
        "rate_bits": point.bits,
        **bits,
        "mse": point.loss,
        "excess": excess,
        "stderr": stderr,
        "least_excess": least_excess(bits["beyond_last_input_bits"]),
    }


def exact_bits(run: Run) -> dict[str, float]:
    """Of a linear model on its Gaussian input: I(h_t; x_{1:t}) in the mean over steps and at the last one, and there
    I(h_T; x_{1:T} | x_T) too.

    1/2 log det(I + N^-1 W Sx W') with h_t = W x_{1:T} + noise of covariance N, and the same with Sx given x_T.
    """

    def law(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        batch = {"inputs": x[None, :, None], "valid": jnp.ones((1, STEPS), bool)}
        first, *_ = observe(
            run.model, run.params, batch, rngs={"noise": jax.random.key(0)}, collections=["laws"]
        ).blocks.values()
        assert first.law is not None
        means, variances = objectives.moments(first.law, "vib")
        return means[0], variances[0]

    W, N = (
        np.asarray(part, np.float64)
        for part in (jax.jit(jax.jacobian(lambda x: law(x)[0]))(jnp.zeros(STEPS)), law(jnp.zeros(STEPS))[1])
    )
    process = run.dataset.info["process"]
    Sx = toeplitz(process["decay"] ** np.arange(STEPS)) + process["noise"] * np.eye(STEPS)
    given_last = Sx - np.outer(Sx[:, -1], Sx[-1]) / Sx[-1, -1]
    total, beyond = (
        0.5 * np.linalg.slogdet(np.eye(N.shape[1]) + W @ S @ W.mT / N[:, :, None])[1] / np.log(2)
        for S in (Sx, given_last)
    )
    return {
        "exact_mean_bits": float(total.mean()),
        "exact_bits": float(total[-1]),
        "beyond_last_input_bits": float(beyond[-1]),
    }


def excess_error(run: Run) -> tuple[float, float]:
    """Mean squared error over that of the Kalman filter on the same sequences, in the mean over the horizon, and its
    standard error.
    """
    read = jax.jit(
        lambda batch, key: run.model.apply(
            {"params": run.params}, batch["inputs"], valid=batch["valid"], rngs={"noise": key}
        )[0]
    )
    differences = []
    for number, batch in enumerate(run.dataset.evaluate("validation", run.experiment.data.eval_batch_size)):
        kalman = (np.asarray(batch["inputs"])[..., 0] @ filter_weights())[:, None] * DECAY ** np.arange(1, HORIZON + 1)
        targets, ours = (
            np.asarray(values, np.float64)[..., 0] for values in (batch["targets"], read(batch, jax.random.key(number)))
        )
        difference = ((ours - targets) ** 2 - (kalman - targets) ** 2).mean(axis=1)
        differences.append(difference[np.asarray(batch["weights"]) > 0])
    found = np.concatenate(differences)
    return float(found.mean()), float(found.std(ddof=1) / np.sqrt(len(found)))


def filter_weights() -> np.ndarray:
    """z^_T = E[z_T | x_{1:T}] as weights of the inputs."""
    hidden = toeplitz(DECAY ** np.arange(STEPS))
    return np.linalg.solve(hidden + NOISE * np.eye(STEPS), hidden[:, -1])


def least_excess(bits: float) -> float:
    """The least excess over the Kalman filter's mean squared error, of forecasts from x_T and a state with so many bits
    on the inputs beyond it.

    With the filter's estimate z^ of z_T, x_{T+k} = decay^k z^ + what no past tells, and every estimate of z^ from
    (state, x_T) errs by at least var(z^ | x_T) 2^(-2 bits), the conditional rate-distortion function of a normal
    variable.
    """
    known = filter_weights() @ toeplitz(DECAY ** np.arange(STEPS))[:, -1]  # var(z^) = cov(z^, z)
    spread = known - 1 / (1 + NOISE)  # less cov(z^, x_T)^2 / var(x_T)
    return float((DECAY ** (2 * np.arange(1, HORIZON + 1))).mean() * spread * 2.0 ** (-2 * bits))


if __name__ == "__main__":
    measure.run("rate", __doc__, benchmark, rounds=3)
