"""Penalties beside the loss of a task, and metrics from inside a model, as sums that add up over batches and
devices.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from selssm_jax.information import variational
from selssm_jax.layers.contract import Law
from selssm_jax.layers.encoders import frame_valid
from selssm_jax.observe import Observed
from selssm_jax.ops import linear_scan
from selssm_jax.shapes import Batch
from selssm_jax.tasks.scores import Sums, hide_unweighted

Blocks = Mapping[str, Observed]


def weights(loss: str, batch: Batch, stride: int, *, steps: str = "all") -> dict[str, Array]:
    """Returns the weight of every term of the training loss in a batch: the divisors of the sums of `loss`,
    `gate_penalties`, `ratios` and `rates`; `steps`, those that `rates` is of.
    """
    frames = frame_valid(batch["valid"], stride).astype(jnp.float32)
    every = dict.fromkeys(("gate_l1", "gate_l0", "ratio"), frames.sum())
    return {loss: batch["weights"].sum()} | every | {"rate": weigh_steps(frames, steps).sum()}


def weigh_steps(frames: Float[Array, "B F"], steps: str) -> Float[Array, "B F"]:
    """Returns 1 at the frames whose nats have a price, 0 at the others: at all that are valid, or each row's last."""
    if steps == "all":
        return frames
    later = jnp.cumsum(frames[:, ::-1], axis=1)[:, ::-1] - frames
    return frames * (later == 0)


def gate_penalties(blocks: Blocks, frames: Float[Array, "B F"]) -> Sums:
    """Returns the mean over valid frames, components and blocks of the gates, "gate_l1", and of P(gate > 0), "gate_l0".

    Both as (weighted sum, weight), like the scores of a task; "gate_l0" is there for gates that have one
    (hard_concrete). `frames` is 1 where valid.
    """
    values = {"gate_l1": _collect(blocks, "gate"), "gate_l0": _collect(blocks, "open")}
    return {
        name: jnp.stack([jnp.stack([_over_frames(gate, frames) for gate in gates]).mean(), frames.sum()])
        for name, gates in values.items()
        if gates
    }


def dimensions(blocks: Blocks, frames: Float[Array, "B F"]) -> Sums:
    """Returns "dim_eff", sum_i g_i in the mean over valid frames and blocks, and "compression_factor", n / dim_eff
    (theory, section 9).

    As (weighted sum, weight): dim_eff over frames, and n summed over frames over dim_eff summed over frames. Nothing
    for mixers without gates.
    """
    gates = _collect(blocks, "gate")
    if not gates:
        return {}
    effective = jnp.stack([gate.shape[-1] * _over_frames(gate, frames) for gate in gates]).mean()
    n = sum(gate.shape[-1] for gate in gates) / len(gates)
    return {
        "dim_eff": jnp.stack([effective, frames.sum()]),
        "compression_factor": jnp.stack([n * frames.sum(), effective]),
    }


def ratios(blocks: Blocks, frames: Float[Array, "B F"], rate: int) -> Sums:
    """Returns of blocks that read some steps alone "read_share", the share of valid frames that they read, and
    "refused_share", of those that were chosen without room; where they read from boundary to boundary also "ratio",
    N / (N - 1) ((N - 1) F G + (1 - F) (1 - G)) with N = rate, F the share of a sequence that is read and G the mean
    probability of a boundary: least, 1, at F = G = 1 / N (H-Net, Hwang et al. 2025).

    As (weighted sum, weight), weighted by frames. Of each sequence by itself, so that no way to split a batch changes
    it; H-Net takes F and G over a batch.
    """
    kept, refused, chance = (_collect(blocks, quantity)[:1] for quantity in ("keep", "refused", "chance"))
    if not kept:  # else they all read the same steps
        return {}
    weight = jnp.repeat(frames, len(kept[0]) // len(frames), axis=0)
    weight = weight * len(frames) / len(weight)
    shares = {"read_share": kept[0], "refused_share": refused[0]}
    sums: Sums = {name: jnp.stack([(weight * steps).sum(), weight.sum()]) for name, steps in shares.items()}
    if not chance or rate < 2:
        return sums
    count = weight.sum(axis=1)
    F, G = ((weight * steps).sum(axis=1) / jnp.maximum(count, 1e-6) for steps in (kept[0], chance[0]))
    loss = rate / (rate - 1) * ((rate - 1) * F * G + (1 - F) * (1 - G))
    return sums | {"ratio": jnp.stack([(count * loss).sum(), count.sum()])}


def rates(
    blocks: Blocks,
    frames: Float[Array, "B F"],
    *,
    form: str = "vib",
    total: Callable[[Array], Array] = lambda part: part,
) -> Sums:
    """Returns "rate", nats of memory in the mean over valid frames and blocks, as (weighted sum, weight) (theory,
    sections 4.2 and 10). Of blocks that know the nats that each step gains, these, whatever the form (section 11).

    form "vib": E KL(p(h_t|x) || r), r of the moments of all valid states of the batch, an upper bound on the mean of
    I(h_t; inputs of the block) over t; where gates read the state, p(h_t | h_{t-1}, x_t) instead, for I(h_t; x_{1:t})
    <= I(h_t; h_{t-1}, x_t) (section 4.3). "capacity": 1/2 sum_i log(1 + Var(B x)_i / q), a bound for constant gates and
    inputs that are independent over time.

    Args:
      blocks: with their laws, or the nats that they gained. frames: as `weigh_steps` gives them.
      total: adds a sum to those of other devices. Only the moments need it; they are held fixed in the gradient, which
        that does not change (see `information.variational`): value and gradient of the whole batch are the sums of
        those of its parts.
    """
    nats = [_rate(*moments(law, form), frames, total) for law in _collect(blocks, "law")]
    nats = nats or [gained.shape[-1] * _over_frames(gained, frames) for gained in _collect(blocks, "gained")]
    return {"rate": jnp.stack([jnp.stack(nats).mean(), frames.sum()])}


def moments(law: Law, form: str, before: tuple[Array, Array] | None = None) -> tuple[Array, Array]:
    """Returns the means and variances, (B, T, n), of the normal laws whose rate `form` asks for; complex components as
    pairs of reals.

    `before` is what it returns of the step before, (B, n) each, where a sequence goes on; None: it begins.
    """
    if form == "capacity":
        return law.drive / law.noise, jnp.ones_like(law.noise)
    if law.A is None:
        return law.drive, law.noise**2
    mean, variance = (None, None) if before is None else before
    if before is not None and jnp.iscomplexobj(law.drive):
        mean, variance = jax.lax.complex(*jnp.split(before[0], 2, axis=-1)), jnp.split(before[1], 2, axis=-1)[0]
    means = linear_scan(law.A, law.drive, mean)[0]
    variances = linear_scan(jnp.abs(law.A) ** 2, law.noise**2, variance)[0]
    if not jnp.iscomplexobj(means):
        return means, variances
    return jnp.concatenate([means.real, means.imag], axis=-1), jnp.concatenate([variances, variances], axis=-1)


def _rate(means: Array, variances: Array, frames: Array, total: Callable[[Array], Array]) -> Array:
    """Sum over valid frames of the divergence from the batch's moments; where channels run apart, each is a row of its
    own.
    """
    channels = len(means) // len(frames)
    weights = jnp.repeat(frames, channels, axis=0).ravel() / channels
    means, variances = (
        jnp.where(weights[:, None] == 0, hidden, part.reshape(-1, part.shape[-1]))
        for part, hidden in ((means, 0), (variances, 1))
    )
    r = jax.lax.stop_gradient(variational.marginal(means, variances, weights, total=total))
    return (weights * variational.divergence(means, variances, r)).sum()


def fallbacks(blocks: Blocks) -> Sums:
    """Returns "fell_back", the share of sequences, over blocks, that Newton could not solve, for models whose gates
    read the state.
    """
    solves = [jnp.ravel(fell_back) for fell_back in _collect(blocks, "fell_back")]
    if not solves:
        return {}
    every = jnp.concatenate(solves).astype(jnp.float32)
    return {"fell_back": jnp.stack([every.sum(), jnp.float32(every.size)])}


def _collect(blocks: Blocks, quantity: str) -> list[Any]:
    return [value for block in blocks.values() if (value := getattr(block, quantity)) is not None]


def _over_frames(gate: Array, frames: Array) -> Array:
    """Sum over valid frames of the mean gate; where channels run apart, each is a row of its own."""
    return (
        hide_unweighted(gate.mean(axis=-1).reshape(frames.shape[0], -1, frames.shape[1]).mean(axis=1), frames) * frames
    ).sum()
