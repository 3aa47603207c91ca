"""I(h_t; all inputs so far) of states with noise: exact where there is a closed form, bracketed elsewhere (theory, sections 4.1 to 4.4)."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from selssm_jax.information import bracket, gaussian
from selssm_jax.information.estimate import Estimate
from selssm_jax.model import Reader
from selssm_jax.reporting.memory.recording import Recording
from selssm_jax.reporting.run import Run

Results = dict[str, Any]
BITS = 1 / math.log(2)


def known(run: Run, seen: Recording, name: str) -> list[Results]:
    """I(h_t; inputs) at every moment, for states with noise: bracketed, and exact where the model up to there is linear and its input Gaussian."""
    law = seen.blocks[name].law
    if law is None:
        return []
    exact = _exact(run, seen.moments) if name == "block_0" else None
    given = "the inputs of the block" if run.model.config.gate_state == "none" else "the state before it and the input"
    return [
        _at_moment(seen, name, index) | {"exact": None if exact is None else float(exact[index]) * BITS, "given": given} for index in range(len(seen.moments))
    ]


def _at_moment(seen: Recording, name: str, index: int) -> Results:
    law, live = seen.blocks[name].law, seen.live[:, index]
    assert law is not None
    means, covs, states = (value[live, index] for value in (law.means, law.covs, seen.blocks[name].states))
    moment = {"moment": int(seen.moments[index])}
    deviations = np.diagonal(covs, axis1=1, axis2=2) if covs.ndim == 3 else covs
    if (deviations <= 0).any():
        return moment | {"skipped": "a component whose gate was never open holds no noise: its law has no density"}
    found = bracket.state_information(jnp.asarray(means), jnp.asarray(covs), jnp.asarray(states))
    result = {"lower": float(found.lower), "upper": float(found.upper), "stderr": float(found.stderr)}
    if len(states) >= states.shape[1] + 2:
        bound = bracket.upper_gaussian(jnp.asarray(covs), jnp.asarray(states))
        result |= {"gaussian_upper": float(bound.nats), "gaussian_upper_stderr": float(bound.stderr)}
    return moment | {key: value * BITS for key, value in result.items()} | {"resolved": bool(found.resolved)}


def _exact(run: Run, moments: np.ndarray) -> np.ndarray | None:
    """I(h_t; x_{1:t}) of the first block, in nats, where its input is a linear map of a Gaussian process and its gates are constant."""
    model, process = run.model.config, run.dataset.info.get("process")
    linear = model.norm == "none" and model.gate == "constant" and model.gate_state == "none" and model.transition != "complex"
    direct = model.conv == 0 and model.frame == model.stride == 1 and not model.filterbank and not model.normalize
    if process is None or not (linear and direct):
        return None
    A, B, noise = _linear_response(run.model, run.params, int(moments[-1]) + 1)
    decay, white = process["decay"], process["noise"]
    source = dict(F=jnp.diag(jnp.array([decay, 0.0])), H=jnp.ones((1, 2)), innovation_cov=jnp.diag(jnp.array([1 - decay**2, white])))
    start = jnp.diag(jnp.array([1.0, white]))
    return np.asarray(gaussian.coloured_information(A, B, jax.vmap(jnp.diag)(noise**2), **source, source_cov=start))[moments]


def _linear_response(model: Reader, params: PyTree, steps: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A_t, the drive that a unit input makes, (T, n, 1), and the noise, of the first block of a linear model with one channel."""

    @jax.jit
    def drives(value: jax.Array) -> Any:
        inputs = jnp.broadcast_to(value, (1, steps, 1))
        sown = model.apply({"params": params}, inputs, rngs={"noise": jax.random.key(0)}, mutable=["laws"])[1]
        return jax.tree.map(lambda leaf: leaf[0], sown["laws"]["block_0"]["mixer"]["law"][0])

    silent, driven = drives(jnp.float32(0)), drives(jnp.float32(1))
    return silent.A, (driven.drive - silent.drive)[..., None], silent.noise


def ceiling(moments: list[Results]) -> Estimate | None:
    """The least upper bound on what the state knows, at the moment where that is largest."""
    bounds: list[tuple[float, float]] = []
    for one in moments:
        pairs = [(one.get("exact"), 0.0), (one.get("upper"), one.get("stderr", 0.0)), (one.get("gaussian_upper"), one.get("gaussian_upper_stderr", 0.0))]
        finite = [(bound, stderr) for bound, stderr in pairs if bound is not None and math.isfinite(bound)]
        if not finite:
            return None
        bounds.append(min(finite))
    if not bounds:
        return None
    bits, stderr = max(bounds)
    return Estimate(bits / BITS, stderr / BITS, "upper", "least upper bound of the report")


def limit(bound: Estimate) -> float:
    """Nats that the truth hardly exceeds."""
    return bound.nats + 2 * bound.stderr
