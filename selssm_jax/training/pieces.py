"""A long sequence, read in pieces that carry the state: the memory of one piece, and the gradient of the whole (theory,
section 12).

L = sum_k loss(theta, piece_k, s_{k-1}) with s_k = f(theta, piece_k, s_{k-1}): reverse mode over the pieces, each read
again from the state that it began with, is exact. Nothing is truncated.
"""

import math
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp

from selssm_jax.config import Experiment, Model, Task
from selssm_jax.errors import InputError
from selssm_jax.model import ModelLike, SequenceModel, State, begin_reading
from selssm_jax.ops import shards
from selssm_jax.ops.boundaries import vary_alike
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of

AUTO, WHOLE = -1, 0  # values of training.piece
# By benchmarks/records/pieces.json reading twice takes a quarter to a half more time where the allocator keeps its
# pages, and less than the whole where it does not: it is worth that where the whole would hold this much.
HELD = 2**30  # bytes of activations
NUMBERS = 25  # float32 numbers that a block keeps for its gradient, for each step and each unit of its width
FRAMES = 512  # of a piece that is chosen here, at least
FEWEST = 4  # pieces of a sequence that is cut unasked
OF_TIME = ("inputs", "valid", "reset")  # what every batch has for each step

Read = Callable[[Any, Batch, Any], tuple[Any, Any, Any]]
Score = Callable[[Any, Batch], Any]


def choose(config: Model, rows: int, steps: int, asked: int, *, shares: int = 1) -> int:
    """Returns how many steps of the inputs a piece has; `steps` where sequences are read whole, as those are that
    cannot be cut.

    Args:
      config: the model, with its task. rows, steps: of a batch's inputs. asked: training.piece.
      shares: how many devices share a sequence, each with `steps`, and a piece, each with what is returned.
    """
    kind = kind_of(config.task)
    stride, frames = kind.stride(config), kind.frames(config, steps)
    if asked == AUTO:
        held = 4 * NUMBERS * rows * kind.rows(config) * frames * config.d_model * len(config.pattern)
        asked = stride * _even(frames) if held >= HELD and frames >= FEWEST * FRAMES else WHOLE
    elif asked > 0:
        asked //= shares
    if asked == WHOLE or asked >= steps or why_whole(config, shares * steps):
        return steps
    return asked


def choose_for_batch(config: Model, batch: Batch, asked: int, *, groups: int = 1, count: int = 1) -> int:
    """Returns how many steps of a batch's inputs a piece has, as `choose` says. A forecast's scale, where resets begin
    it anew, is of the whole: such a batch is read whole. Of one that is still to be split, into `groups` of rows and
    for `count` devices that share a sequence, it is that of a part.
    """
    if kind_of(config.task).forecasts and config.normalize and batch.get("reset") is not None:
        asked = WHOLE
    rows, steps = batch["valid"].shape
    return choose(config, rows // groups, steps // count, asked, shares=count * shards.count())


def check(experiment: Experiment, task: Task) -> None:
    """Raises InputError where pieces are asked for that cannot be."""
    asked, config, steps = experiment.training.piece, experiment.model.of_task(task), max(task.length, 1)
    if asked in (AUTO, WHOLE):
        return
    stride = kind_of(task).stride(config)
    if asked % stride:
        raise InputError(
            f"training.piece={asked} is no multiple of model.stride={stride}, the steps that the blocks read at a "
            f"time: use for example {stride * math.ceil(asked / stride)}"
        )
    if asked < steps and (reason := why_whole(config, steps)):
        raise InputError(
            f"training.piece={asked} cuts sequences of {steps} steps, but {reason}: use 0, to read them whole"
        )


def why_whole(config: Model, steps: int) -> str:
    """Returns why a sequence of so many steps cannot be read in pieces; nothing where it can."""
    if config.bidirectional:
        return "model.bidirectional=True reads them from their end too"
    if config.resample.rule != "none":
        return f"model.resample.rule={config.resample.rule!r} has places for a share of all steps, not of a piece's"
    frames = kind_of(config.task).frames(config, steps)
    whole, half = (_carried_numbers(config, count) for count in (frames, frames // 2))
    for name, most, least in zip(config.pattern, whole, half, strict=True):
        if most > least:
            return f"the mixer {name!r} looks back on all that was read, and carries more with every step"
    return ""


def fold(
    read: Read, score: Score, model: ModelLike, params: Any, batch: Batch, asked: int, state: Any = None
) -> tuple[Any, dict[str, Any]]:
    """Reads a batch piece after piece, or whole, and returns (the state after it, the sums of what is given and of the
    scores): one program, with a gradient.

    For a gradient each piece is read again, so that of the others only what they carried is kept.

    Args:
      read: (state, batch of a piece, its number) -> (outputs, state, sums); the number is None where there is but one.
      score: (outputs, batch) -> sums: of every piece where every step is answered, else of the last outputs.
      model, params: what reads. asked: training.piece. state: before the first step; None: an empty memory.
    """
    every_step = kind_of(model.config.task).every_step

    def read_and_score(before: Any, part: Batch, number: Any) -> tuple[Any, Any, Any]:
        outputs, after, sums = read(before, part, number)
        return ((), after, sums | score(outputs, part)) if every_step else (outputs, after, sums)

    piece = choose_for_batch(model.config, batch, asked)
    if piece >= batch["valid"].shape[1]:
        outputs, after, sums = read_and_score(state, batch, None)
    else:
        outputs, after, sums = _scan(read_and_score, begin(model, params, batch, state), batch, piece, model.config)
    return after, sums if every_step else sums | score(outputs, batch)


def walk(
    read: Callable[[Any, Batch, int | None], tuple[Any, Any]],
    model: ModelLike,
    params: Any,
    batch: Batch,
    asked: int,
    state: Any = None,
) -> Iterator[tuple[Any, Any]]:
    """Reads a batch piece after piece, or whole, without a gradient, and yields what `read` returns of each: what every
    step shows is with the host before the next piece is read.

    Args:
      read: (state, batch of a piece, its number) -> (what it shows, state), compiled; the number is None where there is
        but one. The other arguments are those of `fold`.
    """
    steps, piece = batch["valid"].shape[1], choose_for_batch(model.config, batch, asked)
    if whole := piece >= steps:
        piece = steps
    else:
        state = begin(model, params, batch, state)
    for number, start in enumerate(range(0, steps, piece)):
        part = cut(model.config, batch, start, start + piece)
        shown, state = read(state, part, None if whole else number)
        yield shown, state


def cut(config: Model, batch: Batch, start: int, stop: int) -> Batch:
    """Returns the batch of these steps of the inputs."""
    over_time = find_over_time(config, batch)
    return {name: values[:, start:stop] if name in over_time else values for name, values in batch.items()}


def make_reader(model: ModelLike, params: Any, key: jax.Array) -> Read:
    """Returns what reads a piece for `fold`: without dropout, with noise of `key`, and no sums but those of scores."""

    def read(before: Any, part: Batch, number: Any) -> tuple[Any, Any, Any]:
        noise = {"noise": key_of(key, number)}
        return *model.apply(
            {"params": params}, part["inputs"], before, reset=part.get("reset"), valid=part["valid"], rngs=noise
        ), {}

    return read


def key_of(key: jax.Array, number: Any) -> jax.Array:
    """Returns the key of a piece by its number: what is random is drawn anew for each. None: `key`, of the whole."""
    return key if number is None else jax.random.fold_in(key, number)


def begin(model: ModelLike, params: Any, batch: Batch, state: Any = None) -> State:
    """Returns the state that a batch is read from in several calls, as `begin_reading`, from its valid inputs."""
    inputs = jnp.asarray(batch["inputs"])
    if not kind_of(model.config.task).tokens:
        inputs = jnp.where(jnp.asarray(batch["valid"])[..., None], inputs, 0)
    return begin_reading(model, params, inputs, state)


def _scan(read: Read, state: Any, batch: Batch, piece: int, config: Model) -> tuple[Any, Any, Any]:
    """(the last outputs, the state after them, sums over all pieces)."""
    once = jax.checkpoint(read, prevent_cse=False)  # a loop of its own parts forward and backward
    over_time = find_over_time(config, batch)

    def slice_piece(start: Any, size: int) -> Batch:
        return {
            name: jax.lax.dynamic_slice_in_dim(values, start, size, axis=1) if name in over_time else values
            for name, values in batch.items()
        }

    def step(before: tuple[Any, Any, Any], number: jax.Array) -> tuple[tuple[Any, Any, Any], None]:
        outputs, after, given = once(before[1], slice_piece(number * piece, piece), number)
        return (outputs, after, jax.tree.map(jnp.add, before[2], given)), None

    shapes = jax.eval_shape(read, state, slice_piece(0, piece), 0)
    empty = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    start = vary_alike((empty[0], state, empty[2], batch))[:3]
    count, rest = divmod(batch["valid"].shape[1], piece)
    (outputs, after, total), _ = jax.lax.scan(step, start, jnp.arange(count))
    if rest:
        outputs, after, given = once(after, slice_piece(count * piece, rest), count)
        total = jax.tree.map(jnp.add, total, given)
    return outputs, after, total


def find_over_time(config: Model, batch: Batch) -> set[str]:
    """Returns what of a batch has a value for each step of the inputs: targets too, where every step is answered."""
    if not kind_of(config.task).every_step:
        return {name for name in OF_TIME if name in batch}
    return {name for name, values in batch.items() if values.shape[:2] == batch["valid"].shape}


def _even(frames: int) -> int:
    """Frames of a piece, FRAMES or a little more: of a size that leaves no rest, if there is one."""
    most = min(2 * FRAMES, frames // FEWEST)
    return next((size for size in range(FRAMES, most + 1) if frames % size == 0), FRAMES)


@lru_cache(maxsize=64)
def _carried_numbers(config: Model, frames: int) -> list[int]:
    """How many numbers each block carries for a sequence of which so many frames are read."""
    begin = partial(SequenceModel(config).init_with_output, jax.random.key(0), 1, frames, method="initial_state")
    state, _ = jax.eval_shape(begin)
    return [sum(leaf.size for leaf in jax.tree.leaves(block["mixer"])) for block in state["blocks"]]
