"""I(h_t; all inputs so far) of states with noise: exact where there is a closed form, bracketed elsewhere (theory,
sections 4.1 to 4.4).
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from selssm_jax.analysis.results import BITS, Results
from selssm_jax.analysis.state_samples import Recording
from selssm_jax.information import bracket, gaussian
from selssm_jax.information._estimate import Estimate
from selssm_jax.model import ModelLike, block_name
from selssm_jax.observe import observe
from selssm_jax.runs import Run

BESIDE = "nats that a filter carries beside its samples are a function of the inputs, without noise"
INPUTS = "the inputs of the block"  # what bounds are about, unless a law is known given more alone


def past_information(run: Run, recording: Recording, name: str) -> list[Results]:
    """I(h_t; inputs) at every moment.

    For states with noise it is bracketed, and exact where the model up to there is linear and its input Gaussian. Of
    tokens, noise or not, a state knows at most all that were read, "capacity": t log2 V bits for t tokens of a
    vocabulary of V. Nothing at all is known where there is neither.
    """
    law = recording.blocks[name].law
    capacity: list[Results] = [
        {"capacity": (int(moment) + 1) * math.log2(run.model.config.task.vocab)} if recording.is_tokens else {}
        for moment in recording.moments
    ]
    if law is None:
        return [
            {"moment": int(moment)} | most for moment, most in zip(recording.moments, capacity, strict=True) if most
        ]
    exact = _exact(run, recording.moments) if name == block_name(0) else None
    layer = run.model.config.selective
    given = INPUTS if layer.gate_state == "none" else "the state before it and the input"
    given += " and what was dropped" if layer.drive_dropout else ""
    about: list[Results] = [
        {"exact": None if exact is None else float(exact[index]) * BITS, "given": given} | most
        for index, most in enumerate(capacity)
    ]
    return [_at_moment(recording, name, index) | about[index] for index in range(len(recording.moments))]


def _at_moment(recording: Recording, name: str, index: int) -> Results:
    law, live = recording.blocks[name].law, recording.live[:, index]
    assert law is not None
    if law.means.shape[-1] < recording.blocks[name].states.shape[-1]:
        return {"moment": int(recording.moments[index]), "skipped": BESIDE}
    means, covs, states = (value[live, index] for value in (law.means, law.covs, recording.blocks[name].states))
    moment = {"moment": int(recording.moments[index])}
    deviations = np.diagonal(covs, axis1=1, axis2=2) if covs.ndim == 3 else covs
    if (deviations <= 0).any():
        return moment | {"skipped": "a component whose gate was never open holds no noise: its law has no density"}
    bounds = bracket.state_information(jnp.asarray(means), jnp.asarray(covs), jnp.asarray(states))
    result = {"lower": float(bounds.lower), "upper": float(bounds.upper), "stderr": float(bounds.stderr)}
    if len(states) >= states.shape[1] + 2:
        bound = bracket.upper_gaussian(jnp.asarray(covs), jnp.asarray(states))
        result |= {"gaussian_upper": float(bound.nats), "gaussian_upper_stderr": float(bound.stderr)}
    return moment | {key: value * BITS for key, value in result.items()} | {"resolved": bool(bounds.resolved)}


def _exact(run: Run, moments: np.ndarray) -> np.ndarray | None:
    """I(h_t; x_{1:t}) of the first block, in nats, where its input is a linear map of a Gaussian process and its gates
    are constant; from the transitions of all steps at once, of one sequence.
    """
    model, process = run.model.config, run.dataset.info.get("process")
    layer = model.selective
    linear = (
        model.norm == "none"
        and layer.gate == "constant"
        and layer.gate_state == "none"
        and layer.transition != "complex"
        and not (layer.drive_noise or layer.drive_dropout)  # which are not Gaussian beside Gaussian inputs
    )
    direct = model.conv == 0 and model.frame == model.stride == 1 and not model.filterbank and not model.normalize
    direct = direct and (model.task.channels == 1 or not model.channel_independent)
    if process is None or not (linear and direct):
        return None
    decay, white = np.atleast_1d(process["decay"]), process["noise"]
    read = jnp.array(process.get("read", [[1]]), jnp.float32)
    A, B, noise = _linear_response(run.model, run.params, int(moments[-1]) + 1, len(read))
    still = np.zeros_like(decay)
    source = dict(
        F=jnp.diag(jnp.concatenate([decay, still])),
        H=jnp.concatenate([read, read], axis=1),
        innovation_cov=jnp.diag(jnp.concatenate([1 - decay**2, still + white])),
    )
    start = jnp.diag(jnp.concatenate([still + 1, still + white]))
    return np.asarray(gaussian.coloured_information(A, B, jax.vmap(jnp.diag)(noise**2), **source, source_cov=start))[
        moments
    ]


def _linear_response(
    model: ModelLike, params: PyTree, steps: int, width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A_t, the drive that a unit of each input makes, (T, n, width), and the noise, of the first block of a linear
    model.
    """

    @jax.jit
    def drives(value: jax.Array) -> Any:
        batch = {"inputs": jnp.broadcast_to(value, (1, steps, width)), "valid": jnp.ones((1, steps), bool)}
        first = observe(model, params, batch, rngs={"noise": jax.random.key(0)}, collections=["laws"]).blocks[
            block_name(0)
        ]
        return jax.tree.map(lambda leaf: leaf[0], first.law)

    silent, *driven = (drives(value) for value in (jnp.zeros((1, 1, width)), *jnp.eye(width)[:, None, None]))
    return silent.A, jnp.stack([one.drive - silent.drive for one in driven], axis=-1), silent.noise


def ceiling(moments: list[Results]) -> Estimate | None:
    """The least upper bound on what the state knows, at the moment where that is largest."""
    bounds = [_least_upper(one) for one in moments]
    if not bounds or None in bounds:
        return None
    return max((bound for bound in bounds if bound is not None), key=limit)


def _least_upper(one: Results) -> Estimate | None:
    """The upper bound of a moment that says most, its error counted: an exact value needs none, and an estimate may
    stand below it by chance.
    """
    if one.get("exact") is not None:
        return Estimate(one["exact"] / BITS, 0.0, "upper", "the exact value")
    pairs = [
        (one.get("upper"), one.get("stderr", 0.0), "the bracket"),
        (one.get("gaussian_upper"), one.get("gaussian_upper_stderr", 0.0), "the covariance of the states"),
        (one.get("capacity"), 0.0, "the tokens read"),
    ]
    finite = [
        Estimate(bits / BITS, stderr / BITS, "upper", method)
        for bits, stderr, method in pairs
        if bits is not None and math.isfinite(bits)
    ]
    return min(finite, key=limit, default=None)


def limit(bound: Estimate) -> float:
    """Nats that the truth hardly exceeds."""
    return bound.nats + 2 * bound.stderr
