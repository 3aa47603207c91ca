"""The attention that a linear recurrence is: y_i = sum_j alpha_ij u_j, alpha_ij = C_i (A_i ... A_{j+1}) B_j (Ali,
Zimerman and Wolf 2024, arXiv 2403.01590).

With gates, step sizes and maps held as they are (`layers.relevance_rules`) every mixer but the RNN, the LSTM, the GRU
and the TCN is linear in its drive u. So alpha is read off the recurrence itself: row i is the pullback of a unit of the
read-out at step i, many rows at a time, whatever the recurrence is made of.

What is drive and what is read is the mixer's own: of `selective`, `kalman`, `s5`, `lru`, `rg_lru` and `min_gru` the
numbers written to the components of the state, and the states; of `s4d` and `mamba` the inputs and outputs of
channels; of `mamba2` and `kalman_attention` those of heads, whose numbers share one alpha; of attention values and what
is read of them.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Inexact, PRNGKeyArray, PyTree

from selssm_jax.explain.attribution import Given, Output, Question, gather_call, list_values, read_shifted
from selssm_jax.layers.mixers import mixer
from selssm_jax.layers.relevance_rules import explaining
from selssm_jax.layers.state_axes import StateAxes
from selssm_jax.layers.variables import parameters
from selssm_jax.model import Inputs, SequenceModel, State, block_name, names_read_in_part
from selssm_jax.shapes import Reset

TILE = 64  # rows of alpha that are pulled back at a time
MEANS = ("mean", "channel")


class HiddenAttention(NamedTuple):
    """The hidden attention of a block; R rows are the sequences that blocks make of a batch, F frames their steps, C
    the channels of the recurrence: components, channels or heads (this module).

    Attributes:
      alpha: (R, C, F, F), [i, j] what the read-out of step i has of the drive of step j, 0 for j > i; complex where
        states are. (R, C, C, F, F), [c, d] what channel c has of d, where the transition is dense. Of a mean over
        channels, of each of itself, (R, F, F).
      drive, read: u and y, (R, F, C), or (R, F, C, P) of heads. skip: what of its own step a read-out has beside the
        recurrence, (C,); alpha lacks it.
      rest: y - alpha u - skip u: what the state that was given, biases and noise have in it; 0 but for rounding where
        there are none.
      profile: (F,), the mean of |alpha_ij| by lag i - j, over rows, channels and steps.
      energy: (R, C), sum_ij |alpha_ij|^2 / F: what a unit that is written to a channel at any step adds to the squares
        of all that is read of it, the diagonal of the observability Gramian in units of the drive.
    """

    alpha: Inexact[Array, "..."]
    drive: Inexact[Array, "R F C ..."]
    read: Inexact[Array, "R F C ..."]
    skip: Float[Array, "C"]
    rest: Inexact[Array, "R F C ..."]
    profile: Float[Array, "F"]
    energy: Float[Array, "R C"]


def hidden_attention(
    model: SequenceModel,
    params: PyTree,
    inputs: Inputs,
    *,
    block: int,
    over: str = "mean",
    state: State | None = None,
    reset: Reset | None = None,
    valid: Array | None = None,
    key: PRNGKeyArray | None = None,
    tile: int = TILE,
) -> HiddenAttention:
    """Returns the attention that the recurrence of a block is, on these inputs (this module).

    `tile` rows are pulled back at a time: memory beside the result is that of so many gradients of the recurrence. A
    mean over channels is taken inside a tile, so that 4,096 steps take 64 MiB a row whatever the width.

    Args:
      model, params: as trained. inputs: (B, T) tokens or (B, T, C) values. block: its number, from 0.
      over: "mean" over channels, or "channel", each by itself. state, reset, valid: as the model takes them.
      key: of noise that the model draws. tile: rows at a time.

    Raises:
      ValueError: for a block that the model has not, a mixer that is no linear recurrence, an unknown `over`, and a
        tile of no rows.
    """
    if over not in MEANS:
        raise ValueError(f"over={over!r} is unknown: use 'mean' or 'channel'")
    if tile < 1:
        raise ValueError(f"tile={tile}: use at least 1 row")
    _check_block(model, block)
    given = gather_call(inputs, state=state, reset=reset, valid=valid, key=key)
    reading = _Reading(model, block)
    if not {"drive", "read"} <= set(jax.eval_shape(lambda: reading.show(parameters(params), given, {}))):
        raise ValueError(
            f"block {block} is of the mixer {model.config.pattern[block]!r}, which is not linear in what it reads, or "
            "does not show its drive and what is read of it by `explain.rules.tap`"
        )
    return _attend(reading, over, tile, parameters(params), given)


def component_relevance(
    model: SequenceModel,
    params: PyTree,
    inputs: Inputs,
    output: Output,
    *,
    block: int,
    state: State | None = None,
    reset: Reset | None = None,
    valid: Array | None = None,
    key: PRNGKeyArray | None = None,
) -> Float[Array, "N"]:
    """Returns what each component of the state of a block has to do with one number that the model says, summed over
    rows and steps: R_n = sum <dF/dy, y_n>, y_n what is read of component n alone, dF/dy by the rules of relevance.

    The components are those of the mixer's `state_axes`, numbers that go together as one. What goes past the state
    beside them, as D x does, is in none of them. Mixers whose states are not kept are read once for each component.

    Args: as `explain_output`; block: its number, from 0.

    Raises:
      ValueError: for a block that the model has not, or whose mixer names no axes of its state, or shows nothing of it.
    """
    _check_block(model, block)
    given = gather_call(inputs, state=state, reset=reset, valid=valid, key=key)
    params, reading = parameters(params), _Reading(model, block)
    layer = mixer(model.config.pattern[block], model.config.blocks[block])
    axes = layer.state_axes() if callable(getattr(layer, "state_axes", None)) else None
    if axes is None or "read" not in jax.eval_shape(lambda: reading.show(params, given, {})):
        raise ValueError(
            f"block {block} is of the mixer {model.config.pattern[block]!r}, which names no components of its state "
            "(`layers.state_axes`), or does not show what is read of them by `explain.rules.tap`"
        )
    slope = _slope_of_read(Question(model, output), block, params, given)
    each = _components_read(reading, axes, params, given)
    if each is None:  # what is read are the components themselves
        read = reading.show(params, given, {})["read"]
        shares = jnp.real(slope * read).reshape(-1, read.shape[-1]).sum(axis=0)
        return shares.reshape(-1, axes.components).sum(axis=0)
    return each(slope)


class _Reading(NamedTuple):
    """What the mixer of one block shows of its recurrence."""

    model: SequenceModel
    block: int

    def show(self, params: PyTree, given: Given, shifts: Mapping[str, Array]) -> dict[str, Array]:
        """Returns "drive", "read", "skip" and "mixed", those that it shows, of a call in which some are shifted."""
        name = block_name(self.block)
        with jax.default_matmul_precision("highest"), explaining():
            _, shown = read_shifted(self.model, params, given, {name: {"mixer": dict(shifts)}})
        return list_values(shown.get(name, {}).get("mixer", {}))


def _check_block(model: SequenceModel, block: int) -> None:
    if not 0 <= block < len(model.config.pattern):
        raise ValueError(f"block={block} of a model of {len(model.config.pattern)} blocks: count from 0")
    if block_name(block) in names_read_in_part(model.config):
        raise ValueError(
            f"block={block} reads some steps alone, found model.resample.rule={model.config.resample.rule!r}: its "
            "attention is one of these steps, so ask for another block"
        )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _attend(reading: _Reading, over: str, tile: int, params: PyTree, given: Given) -> HiddenAttention:
    show = reading.show(params, given, {})
    drive, mixed = show["drive"], "mixed" in show
    frames, channels = drive.shape[1:3]
    read, pull = jax.vjp(lambda shift: reading.show(params, given, {"drive": shift})["read"], jnp.zeros_like(drive))
    skip = jnp.broadcast_to(show.get("skip", jnp.zeros(channels)), (channels,))

    def rows(first: Array) -> tuple[Array, ...]:
        at = first + jnp.arange(tile)
        alpha = jax.vmap(functools.partial(_pull_row, pull, read, mixed=mixed))(jnp.minimum(at, frames - 1))
        here = (at[:, None] == jnp.arange(frames)[None])[:, None, :, None]
        alpha = alpha if mixed else alpha - jnp.where(here, skip[None, None, None], 0).astype(alpha.dtype)
        itself = jnp.diagonal(alpha, axis1=2, axis2=4) if mixed else alpha
        seen = at < frames
        size = jnp.where(seen[:, None, None, None], jnp.abs(itself), 0)
        # read of the drives: heads' numbers share one alpha
        made = jnp.einsum("trcjd,rjd->trc", alpha, drive) if mixed else jnp.einsum("trjc,rjc...->trc...", alpha, drive)
        lagged = jnp.zeros(frames).at[at[:, None] - jnp.arange(frames)[None]].add(size.mean(axis=(1, 3)), mode="drop")
        shown = itself.mean(axis=-1) if over == "mean" else alpha
        return shown, made, lagged, jnp.square(size).sum(axis=(0, 2))

    count = -(-frames // tile)
    alpha, made, lagged, energy = jax.lax.map(rows, tile * jnp.arange(count))
    join = lambda value: value.reshape(count * tile, *value.shape[2:])[:frames]  # noqa: E731
    made, alpha = jnp.moveaxis(join(made), 0, 1), join(alpha)
    beside = skip.reshape(1, 1, -1, *[1] * (drive.ndim - 3)) * drive
    return HiddenAttention(
        _order(alpha, over, mixed=mixed),
        drive,
        read,
        skip,
        read - made - beside,
        lagged.sum(axis=0) / (frames - jnp.arange(frames)),
        energy.sum(axis=0) / frames,
    )


def _pull_row(pull: Any, read: Array, step: Array, *, mixed: bool) -> Array:
    """Row `step` of alpha, (R, F, C); of channels that mix (R, C, F, D). Of a head's numbers the first speaks."""
    at = (jnp.arange(read.shape[1]) == step)[None, :, None].astype(read.dtype)
    if mixed:
        units = jnp.eye(read.shape[2], dtype=read.dtype)
        pulled = jax.vmap(lambda unit: pull(jnp.broadcast_to(at * unit[None, None], read.shape))[0])(units)
        return jnp.moveaxis(pulled, 0, 1)
    if read.ndim == 3:
        return pull(jnp.broadcast_to(at, read.shape))[0]
    first = (jnp.arange(read.shape[3]) == 0).astype(read.dtype)[None, None, None]
    return pull(jnp.broadcast_to(at[..., None] * first, read.shape))[0][..., 0]


def _order(alpha: Array, over: str, *, mixed: bool) -> Array:
    """Rows of alpha, their step first, as `HiddenAttention` has them."""
    if over == "mean":
        return jnp.moveaxis(alpha, 0, 1)
    return jnp.transpose(alpha, (1, 2, 4, 0, 3) if mixed else (1, 3, 0, 2))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _slope_of_read(question: Question, block: int, params: PyTree, given: Given) -> Array:
    """The derivative of the number that is asked about by what is read of a block's state."""
    reading, name = _Reading(question.model, block), block_name(block)
    like = jax.eval_shape(lambda: reading.show(params, given, {}))["read"]

    def say(shift: Array) -> Array:
        with jax.default_matmul_precision("highest"), explaining():
            outputs, _ = read_shifted(question.model, params, given, {name: {"mixer": {"read": shift}}})
        return question.say(outputs)

    return jax.grad(say)(jnp.zeros(like.shape, like.dtype))


def _components_read(reading: _Reading, axes: StateAxes, params: PyTree, given: Given) -> Any:
    """slope -> R_n of all components, by what is read of each alone; None where what is read is not masked by them."""
    name = block_name(reading.block)

    @jax.jit
    def read(mask: Array) -> Array:
        inner = {**params[name], "mixer": axes.mask_readout(params[name]["mixer"], mask)}
        return reading.show({**params, name: inner}, given, {})["read"]

    none, whole = read(jnp.zeros(axes.components)), read(jnp.ones(axes.components))
    if np.array_equal(none, whole):
        return None
    unit = jnp.eye(axes.components)
    return jax.jit(lambda slope: jax.lax.map(lambda mask: jnp.real(slope * (read(mask) - none)).sum(), unit))
