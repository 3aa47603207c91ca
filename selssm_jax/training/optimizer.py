"""AdamW with warm-up and cosine decay; the path of a parameter says whether its weights decay."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, PyTree

from selssm_jax.config import Experiment
from selssm_jax.config.mixers import list_undecayed

UNDECAYED = re.compile(r"(A|dt)(_\w+)?|log_dt|nu|theta|gamma_log|Lambda|D|b|c|\w*bias|scale|cycle|\w*embedding")


def build(experiment: Experiment) -> optax.GradientTransformation:
    """Returns clipping by the whole gradient's norm, then AdamW (Loshchilov and Hutter 2019)."""
    options = experiment.optimizer
    rate = schedule(experiment)
    adamw = optax.adamw(
        lambda steps_before: rate(steps_before + 1),
        options.b1,
        options.b2,
        weight_decay=options.weight_decay,
        mask=decay_mask,
    )
    return optax.chain(_clip(options.clip_norm), adamw) if options.clip_norm else adamw


def _clip(most: float) -> optax.GradientTransformation:
    """As `optax.clip_by_global_norm`, by the norm that is given, for a device may hold a part of the gradient alone."""

    def update(gradient: PyTree, state: Any, params: PyTree = None, *, norm: Array | None = None) -> tuple[PyTree, Any]:
        del params
        norm = optax.tree.norm(gradient) if norm is None else norm
        return jax.tree.map(lambda part: jnp.where(norm < most, part, part / norm * most), gradient), state

    return optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), update)


def schedule(experiment: Experiment) -> optax.Schedule:
    """Returns the rate of step 1, 2, ...: linear warm-up to peak_rate at step warmup_steps, then a cosine to end_rate
    at the last step.
    """
    options = experiment.optimizer
    return optax.warmup_cosine_decay_schedule(
        0.0, options.peak_rate, options.warmup_steps, experiment.training.steps, options.end_rate
    )


def decay_mask(params: PyTree) -> PyTree:
    """Returns True for every parameter that weight decay shrinks."""
    return jax.tree_util.tree_map_with_path(lambda path, _: is_decayed(tuple(str(key.key) for key in path)), params)


def is_decayed(path: tuple[str, ...]) -> bool:
    """Whether a parameter shrinks: all do but poles, step sizes, skips, biases (those of gates too), cycles,
    norms and embeddings.

    A decayed pole or gate bias would change how long a model remembers, which is what the data should decide.
    """
    return (
        not UNDECAYED.fullmatch(path[-1])
        and path[-1] not in list_undecayed()
        and not any(part.endswith("norm") for part in path)
    )
