"""What a model shows of itself while it reads: gates, states and laws, by block. The one reader of what mixers sow.

A mixer sows "gate", "open", "gained", "forgotten" and "state" among its intermediates, "law" among laws and "fell_back"
among diagnostics (`layers.mixers`). Blocks that read some steps alone show which (`layers.resampling`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from selssm_jax.config import Model
from selssm_jax.layers.contract import Law
from selssm_jax.layers.encoders import frame_valid
from selssm_jax.model import ModelLike, mixer_places, names_read_in_part
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of

Sown = Mapping[str, Any]


class Observed(NamedTuple):
    """What the mixer of one block showed; None: it sows no such thing, or nobody asked for it.

    R rows are the sequences that the blocks make of a batch, one for each channel where channels run apart; F frames
    are the steps of the blocks.

    Attributes:
      gate: (R, F, n). open: P(gate > 0), (R, F, n). gained, forgotten: nats of a step by the mixer's own model, (R, F,
        n). state: (R, F, N). law: of the states. fell_back: (R,), sequences that Newton could not solve.
      keep: (R, F), which frames were read, where not all are; refused: those that were chosen and had no room. clock:
        (R, F), step sizes by which they are chosen. chance: (R, F), probabilities of boundaries.
    """

    gate: Array | None = None
    open: Array | None = None
    gained: Array | None = None
    forgotten: Array | None = None
    state: Array | None = None
    law: Law | None = None
    fell_back: Array | None = None
    keep: Array | None = None
    refused: Array | None = None
    clock: Array | None = None
    chance: Array | None = None

    def nats(self) -> list[Array]:
        """Returns the nats gained and those forgotten, or nothing."""
        return [value for value in (self.gained, self.forgotten) if value is not None]


class Observation(NamedTuple):
    """Outputs of one call of a model, the state after it, and what each block with a mixer showed."""

    outputs: Array
    state: Any
    blocks: dict[str, Observed]


def observe(
    model: ModelLike,
    params: PyTree,
    batch: Batch,
    state: Any = None,
    *,
    rngs: Mapping[str, Array],
    collections: Sequence[str] = ("intermediates",),
    deterministic: bool = True,
) -> Observation:
    """Reads a batch from `state` on and returns outputs, the state after it, and what the blocks showed of
    `collections`: intermediates, laws, diagnostics.

    Args:
      model, params: as trained. batch: as a dataset gives it. state: None: every sequence is read from an empty memory.
      rngs: keys of "noise", and of what else is drawn. deterministic: no dropout.
    """
    (outputs, after), sown = model.apply(
        {"params": params},
        jnp.asarray(batch["inputs"]),
        state=state,
        reset=None if batch.get("reset") is None else jnp.asarray(batch["reset"]),
        valid=jnp.asarray(batch["valid"]),
        deterministic=deterministic,
        rngs=rngs,
        mutable=list(collections),
    )
    shown = read_sown(sown)
    # states and laws of the steps that were read: of all steps it is what is carried that is known
    shown |= {
        name: shown[name]._replace(state=None, law=None) for name in names_read_in_part(model.config) if name in shown
    }
    return Observation(outputs, after, {name: shown.get(name, Observed()) for name in mixer_places(model.config)})


def read_sown(sown: Sown) -> dict[str, Observed]:
    """Returns what each block sowed, whatever the collections; blocks that sowed nothing are left out."""
    blocks: dict[str, Observed] = {}
    for collection in sown.values():
        for name, block in collection.items():
            if "mixer" in block:
                values = {key: value[0] for key, value in block["mixer"].items() if key in Observed._fields}
                blocks[name] = blocks.get(name, Observed())._replace(**values)
    return blocks


def replace_states(sown: Sown, states: Mapping[str, Array]) -> dict[str, Any]:
    """Returns what was sown with these states, by block, in place of those that mixers computed or sowed none of."""
    if "intermediates" not in sown:
        return dict(sown)
    blocks = dict(sown["intermediates"])
    for name, state in states.items():
        block = blocks.get(name, {})
        blocks[name] = {**block, "mixer": {**block.get("mixer", {}), "state": (state,)}}
    return {**sown, "intermediates": blocks}


def find_data_rows(batch: Batch) -> Bool[Array, "B"]:
    """Returns which rows are data: those with a weight. The others fill the last batch."""
    weights = jnp.asarray(batch["weights"])
    return (weights.reshape(len(weights), -1) > 0).any(axis=1)


def find_valid_frames(config: Model, valid: Any) -> Bool[Array, "R F"]:
    """Returns which frames are valid, from the valid steps (B, T) of a batch's rows."""
    kind = kind_of(config.task)
    return jnp.repeat(frame_valid(jnp.asarray(valid), kind.stride(config)), kind.rows(config), axis=0)


def find_data_frames(config: Model, batch: Batch) -> Bool[Array, "R F"]:
    """Returns which frames count in a measurement: valid ones of rows that are data."""
    return find_valid_frames(config, jnp.asarray(batch["valid"]) & find_data_rows(batch)[:, None])
