"""Removal: which parts of a trained model can go, what each is worth, and the model that is smaller without them
(theory, section 15).

A block is x + mixer(norm(x)), then x + MLP(norm(x)): two branches. A branch that goes is replaced by its skip, so that
x passes as it is. Parts are named "block_3", all that the block has, "block_3/mixer" and "block_3/mlp"; they are those
of the whole model, whatever has gone already. Batches are of training or of validation, never of test.

Source: Mamba-Shedder (Muñoz, Yuan and Jain 2025, arXiv 2501.17088).
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import ArrayLike
from jaxtyping import Array, PRNGKeyArray

from selssm_jax.compression import pruning
from selssm_jax.config import Model
from selssm_jax.config.mixers import BUILT_IN, MIXERS, NONE
from selssm_jax.errors import suggest
from selssm_jax.information import canonical
from selssm_jax.layers.relevance_rules import RULES, explaining
from selssm_jax.layers.variables import parameters
from selssm_jax.model import SequenceModel, block_names
from selssm_jax.observe import find_data_frames
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import hide_unweighted
from selssm_jax.training import pieces

PyTree = Any
Cost = Callable[[Sequence[str]], float]  # parts -> what a model without them costs
MIXER, MLP = "mixer", "mlp"
HELD = {MIXER: ("norm", "conv", "mixer"), MLP: ("mlp_norm", "mlp")}  # branch -> its parameters
KINDS = ("blocks", "recurrences", "attention", "mlps")
ATTENTION = ("attention", "local_attention")
# Of "memory": the longest lag, samples of a lag, and numbers that vectors are projected to
LONGEST, SAMPLES, WIDEST = 64, 4096, 32


class Step(NamedTuple):
    """One part that was removed, and what the model without it, and without all that went before it, costs."""

    part: str
    cost: float


def list_parts(config: Model, kinds: Iterable[str] = KINDS) -> tuple[str, ...]:
    """Returns the parts of a model that can be removed, block by block.

    Args:
      kinds: of "blocks"; "recurrences", the mixers of blocks but for attention; "attention"; "mlps". A block of one
        branch is the same part as that branch, and is named once.

    Raises:
      ValueError: for another kind, and where the model has no such part.
    """
    kinds = tuple(kinds)
    for kind in kinds:
        if kind not in KINDS:
            raise ValueError(f"kinds={kinds} names {kind!r}: {suggest(kind, KINDS)}")
    parts: list[str] = []
    for name, mixer, branches in zip(block_names(config), config.pattern, _list_branches(config), strict=True):
        whole = "blocks" in kinds
        parts += [name] * whole
        of_mixer = "attention" if mixer in ATTENTION else "recurrences"
        asked = {MIXER: of_mixer in kinds, MLP: "mlps" in kinds}
        parts += [f"{name}/{branch}" for branch in branches if asked[branch] and not (whole and len(branches) == 1)]
    if not parts:
        raise ValueError(f"the model of model.pattern={config.pattern} has none of {', '.join(kinds)} to remove")
    return tuple(parts)


def remove(config: Model, params: PyTree, parts: Iterable[str]) -> tuple[Model, PyTree]:
    """Returns (config, parameters) of the model without these parts: fewer parameters, fewer carried bytes, less to
    compute.

    A block without its mixer is "none" in the pattern, one without its MLP has the ratio 0 among
    `model.block_mlp_ratios`, and one without either is gone; later blocks move up. What a mixer of which no block is
    left was set to falls back to its defaults.

    Raises:
      ValueError: for a part that the model has not, and where no mixer would be left.
    """
    gone = _find_branches(config, parts)
    _check_mixer_left(config, gone)
    params, names, whole = parameters(params), block_names(config), config.blocks
    branches = {
        index: [branch for branch in there if f"{names[index]}/{branch}" not in gone]
        for index, there in enumerate(_list_branches(config))
    }
    places = [index for index, there in branches.items() if there]
    blocks = {}
    for place, index in enumerate(places):
        dropped = {key for branch, keys in HELD.items() if branch not in branches[index] for key in keys}
        blocks[names[place]] = {key: value for key, value in params[names[index]].items() if key not in dropped}
    pattern = tuple(config.pattern[index] if MIXER in branches[index] else NONE for index in places)
    ratios = tuple(whole[index].mlp_ratio * (MLP in branches[index]) for index in places)
    dilations = tuple(
        steps
        for index, mixer in zip(places, pattern, strict=True)
        if mixer == "tcn"
        for steps in whole[index].tcn.dilations
    )
    resample = config.resample
    for count, index in enumerate(reversed([index for index in branches if index not in places])):
        resample = resample.without(index, len(names) - count)
    smaller = dataclasses.replace(
        config,
        pattern=pattern,
        block_states=tuple(config.block_states[index] for index in places) if config.block_states else (),
        mlp_ratio=max(ratios),
        block_mlp_ratios=ratios if len(set(ratios)) > 1 else (),
        tcn=dataclasses.replace(config.tcn, dilations=dilations),
        resample=resample,
    )
    idle = {"resample"} if resample.rule == "none" else set()
    return _reset_idle(smaller, config.kinds), {
        key: value for key, value in params.items() if key not in {*names, *idle}
    } | blocks


def bypass(masks: Mapping[str, ArrayLike]) -> Any:
    """Returns a context within which branches of a model count as much as their masks, {"block_3/mixer": 0.0}, in all
    that `apply` computes or JAX traces: x + mask * branch(x). At 0 the branch is bypassed.
    """

    def scale(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        outputs = call(*args, **kwargs)
        mask = masks.get("/".join(context.module.path)) if context.method_name == "__call__" else None
        if mask is None:
            return outputs
        if isinstance(outputs, tuple):  # a mixer's, with its state
            return outputs[0] * jnp.asarray(mask, outputs[0].dtype), *outputs[1:]
        return outputs * jnp.asarray(mask, outputs.dtype)

    return nn.intercept_methods(scale)


class BypassedLoss:
    """The mean loss of a model on batches without parts of it, which are bypassed: one program for all sets of parts.

    Attributes:
      evaluations: how often the batches were read.
    """

    def __init__(
        self, model: SequenceModel, params: PyTree, batches: Iterable[Batch], *, piece: int = pieces.AUTO
    ) -> None:
        self.config, self.branches = model.config, _name_branches(model.config)
        self._params, self._batches, self.evaluations = params, [dict(batch) for batch in batches], 0

        def score(params: PyTree, mask: Array, batch: Batch) -> Array:
            reader = _read_masked(model, self.branches, params, mask, jax.random.key(0))
            return pruning.sum_losses(model, params, batch, reader, piece)

        self._score = jax.jit(score)

    def __call__(self, parts: Sequence[str]) -> float:
        """Returns the loss, in nats or squared error. Raises ValueError for a part that the model has not, and where
        nothing in the batches is scored.
        """
        gone = _find_branches(self.config, parts)
        mask = jnp.asarray([float(branch not in gone) for branch in self.branches])
        self.evaluations += 1
        return pruning.average(self._score(self._params, mask, batch) for batch in self._batches)


def expand_loss(
    model: SequenceModel, params: PyTree, batches: Iterable[Batch], *, piece: int = pieces.AUTO
) -> pruning.Quadratic:
    """Returns the second-order model of the loss in masks on all branches, from one pass with gradients; its sizes are
    1 for each branch. As `pruning.quadratic` of components. Raises what that raises.
    """
    branches = _name_branches(model.config)
    sizes = dict.fromkeys(branches, 1)
    return pruning.expand_loss(model, params, batches, sizes, partial(_read_masked, model, branches), piece=piece)


def sum_scores(config: Model, scores: Mapping[str, float]) -> Cost:
    """Returns the cost that is the sum of the scores of parts: what `find_greedily` takes for scores of one's
    own.

    Args:
      scores: part -> what it is worth. A part that has none is worth as much as its branches.

    Raises:
      ValueError: from the cost, for a part that neither has a score nor branches with one.
    """

    def cost(parts: Sequence[str]) -> float:
        total = 0.0
        for part in parts:
            names = [part] if part in scores else sorted(_find_branches(config, [part]))
            for name in names:
                if name not in scores:
                    raise ValueError(f"{name} has no score: {suggest(name, scores)}")
                total += scores[name]
        return total

    return cost


def measure_costs(
    model: SequenceModel, params: PyTree, batches: Iterable[Batch], how: str, *, piece: int = pieces.AUTO
) -> Cost:
    """Returns what removing parts costs, as `find_greedily` takes it.

    Args:
      how: "loss", the loss without them, read anew for every set of parts (`BypassedLoss`);
        or from one pass over the batches:
        "expansion", what that adds to the loss, to second order in masks on the branches (`expand_loss`);
        "information", how far the outputs go from the whole model's, in nats, to second order: 1/2 1' F 1, F the Fisher
        information that the outputs have of the masks;
        "memory", nats that the output of a mixer holds of single earlier inputs, by canonical correlations, summed over
        lags 1, 2, 4, ..., 64 of which there are enough samples; an MLP alone has no such score;
        "influence", 1 - cos(x, x + branch(x)), the mean over steps (Men et al. 2024);
        "relevance", the share that what a branch adds has of the relevance of the answers (`explain`), sizes summed
        over steps: of the logits of the most probable answers, or of squared forecasts.

    Raises:
      ValueError: for another name, and where there are no batches, or too short ones for a lag.
    """
    if how not in COSTS:
        raise ValueError(f"how={how!r} is unknown: {suggest(how, COSTS)}")
    return COSTS[how](model, parameters(params), batches, piece)


def find_greedily(
    cost: Cost, config: Model, parts: Sequence[str], count: int, *, gone: Sequence[str] = ()
) -> Iterator[Step]:
    """Yields `count` parts, each the one whose removal costs least given those that are gone; of equal ones the first.
    `gone` are those that went before the first of them.

    At most count * len(parts) calls of `cost`. What is gone does not come back, so that a set can cost more than the
    best (`find_exhaustively`). The last mixer is never removed. A cost that is not a number counts as infinite.

    Raises:
      ValueError: where so many parts cannot go.
    """
    names = list(gone)
    for number in range(count):
        branches = _find_branches(config, names)
        left = [part for part in parts if _can_go(config, branches, part)]
        if not left:
            raise ValueError(
                f"count={count} of {len(parts)} parts cannot be removed, {number} can: one mixer has to stay"
            )
        step = min((Step(part, _finite(cost((*names, part)))) for part in left), key=lambda step: step.cost)
        names.append(step.part)
        yield step


def find_exhaustively(cost: Cost, config: Model, parts: Sequence[str], count: int) -> tuple[tuple[str, ...], float]:
    """Returns the `count` parts that cost least together, and what they cost: all sets are tried. Raises ValueError
    where so many cannot go.
    """
    sets = [chosen for chosen in itertools.combinations(parts, count) if _leaves_mixer(config, chosen)]
    if not sets:
        raise ValueError(f"count={count} of {len(parts)} parts cannot be removed: one mixer has to stay")
    costs = [_finite(cost(chosen)) for chosen in sets]
    best = int(np.argmin(costs))
    return sets[best], costs[best]


def _of_loss(model: SequenceModel, params: PyTree, batches: Iterable[Batch], piece: int) -> Cost:
    return BypassedLoss(model, params, batches, piece=piece)


def _of_quadratic(model: SequenceModel, params: PyTree, batches: Iterable[Batch], piece: int, *, targets: bool) -> Cost:
    whole = expand_loss(model, params, batches, piece=piece)
    quadratic = whole if targets else whole.divergence
    nothing = np.zeros(0, int)
    return lambda parts: quadratic.cost(dict.fromkeys(_find_branches(model.config, parts), nothing))


def _of_influence(model: SequenceModel, params: PyTree, batches: Iterable[Batch], piece: int) -> Cost:
    del piece  # nothing is carried between batches, and no gradient kept
    branches = _name_branches(model.config)
    totals, steps = np.zeros(len(branches)), 0.0
    for batch in batches:
        shown, frames = _read_branches(model, params, batch)
        for index, branch in enumerate(branches):
            x, y = shown[branch]
            norms = np.linalg.norm(x, axis=-1) * np.linalg.norm(x + y, axis=-1)
            cosine = (x * (x + y)).sum(axis=-1) / np.where(norms > 0, norms, 1)
            totals[index] += (1 - cosine)[frames].sum()
        steps += frames.sum()
    _check_steps(steps)
    return sum_scores(model.config, dict(zip(branches, (totals / steps).tolist(), strict=True)))


def _of_relevance(model: SequenceModel, params: PyTree, batches: Iterable[Batch], piece: int) -> Cost:
    del piece
    branches = _name_branches(model.config)
    config = dataclasses.replace(model.config, remat=False)
    totals = sum(
        (np.asarray(_add_relevance(config, params, dict(batch)), np.float64) for batch in batches), np.zeros(1)
    )
    _check_steps(totals.sum())
    return sum_scores(model.config, dict(zip(branches, (totals / totals.sum()).tolist(), strict=True)))


def _of_memory(model: SequenceModel, params: PyTree, batches: Iterable[Batch], piece: int) -> Cost:
    del piece
    branches = _name_branches(model.config)
    samples: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for batch in batches:
        shown, frames = _read_branches(model, params, batch)
        first = shown[branches[0]][0]  # what the encoder gives
        for lag in [2**power for power in range(LONGEST.bit_length()) if 2**power < frames.shape[1]]:
            both = frames[:, lag:] & frames[:, :-lag]
            for branch in branches:
                if branch.endswith(MIXER):
                    pair = shown[branch][1][:, lag:][both], first[:, :-lag][both]
                    samples.setdefault((branch, lag), []).append(pair)
    thinned = {
        name: [_thin(np.concatenate(values)) for values in zip(*both, strict=True)] for name, both in samples.items()
    }
    enough = {name: (y, x) for name, (y, x) in thinned.items() if len(y) > y.shape[1] + x.shape[1] + 1}
    _check_steps(len(enough))
    scores = dict.fromkeys([*block_names(model.config), *(name for name in branches if name.endswith(MIXER))], 0.0)
    for (branch, _), (y, x) in enough.items():
        nats = max(canonical.gaussian(y, x).nats, 0.0)
        for name in (branch, branch.partition("/")[0]):
            scores[name] += nats
    return sum_scores(model.config, scores)


COSTS: dict[str, Callable[[SequenceModel, PyTree, Iterable[Batch], int], Cost]] = {
    "loss": _of_loss,
    "expansion": partial(_of_quadratic, targets=True),
    "information": partial(_of_quadratic, targets=False),
    "memory": _of_memory,
    "influence": _of_influence,
    "relevance": _of_relevance,
}


def _read_masked(
    model: SequenceModel, branches: Sequence[str], params: PyTree, mask: Array, noise: PRNGKeyArray
) -> pieces.Read:
    """What reads a piece with each branch as its mask says."""
    reader = pieces.make_reader(model, params, noise)

    def read(before: Any, piece: Batch, number: Any) -> tuple[Any, Any, Any]:
        with bypass(dict(zip(branches, mask, strict=True))):
            return reader(before, piece, number)

    return read


def _read_branches(
    model: SequenceModel, params: PyTree, batch: Batch
) -> tuple[dict[str, tuple[np.ndarray, np.ndarray]], np.ndarray]:
    """({branch: (x before it, what it adds), each (R, F, D)}, which frames count (R, F)), every sequence read whole."""
    shown = _show_branches(dataclasses.replace(model.config, remat=False), params, dict(batch))
    frames = np.asarray(find_data_frames(model.config, batch))
    return {name: (np.asarray(x), np.asarray(y)) for name, (x, y) in shown.items()}, frames


@partial(jax.jit, static_argnums=0)
def _show_branches(config: Model, params: PyTree, batch: Batch) -> dict[str, tuple[Array, Array]]:
    model, seen = SequenceModel(config), dict[str, Array]()
    names = block_names(config)

    def look(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        path = "/".join(context.module.path)
        if context.method_name == "__call__" and path in names:
            seen[path] = args[0].astype(jnp.float32)
        outputs = call(*args, **kwargs)
        if context.method_name == "__call__" and path in branches:
            seen[path] = (outputs[0] if isinstance(outputs, tuple) else outputs).astype(jnp.float32)
        return outputs

    branches = _name_branches(config)
    with nn.intercept_methods(look):
        pieces.make_reader(model, params, jax.random.key(0))(None, batch, None)
    shown = {}
    for name, there in zip(names, _list_branches(config), strict=True):
        x = seen[name]
        for branch in there:
            shown[f"{name}/{branch}"] = x, seen[f"{name}/{branch}"]
            x = x + seen[f"{name}/{branch}"]
    return shown


@partial(jax.jit, static_argnums=0)
def _add_relevance(config: Model, params: PyTree, batch: Batch) -> Array:
    """The sum over rows and frames of |R| of what each branch adds: R = sum_d y_d dF/dy_d, the slope of F in a mask on
    the branch at that frame. F is linear in what each scored answer says.
    """
    kind, model, branches = kind_of(config.task), SequenceModel(config), _name_branches(config)
    frames = find_data_frames(config, batch)

    def answer(masks: Array) -> Array:
        with bypass(dict(zip(branches, masks, strict=True))):
            outputs, _, _ = pieces.make_reader(model, params, jax.random.key(0))(None, batch, None)
        outputs = hide_unweighted(outputs, batch["weights"])
        said = jax.nn.one_hot(outputs.argmax(axis=-1), outputs.shape[-1]) if kind.loss == "nats" else outputs
        return (hide_unweighted(jax.lax.stop_gradient(said), batch["weights"]) * outputs).sum()

    with jax.default_matmul_precision("highest"), explaining(RULES):
        R = jax.grad(answer)(jnp.ones((len(branches), *frames.shape, 1)))
    return jnp.abs(R[..., 0]).sum(axis=(1, 2), where=frames)


def _thin(vectors: np.ndarray) -> np.ndarray:
    """At most SAMPLES rows, evenly spaced, of at most WIDEST numbers, by a projection that is the same in every
    call.
    """
    rows = vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), SAMPLES)).astype(int)]
    width = rows.shape[1]
    if width <= WIDEST:
        return rows
    return rows @ np.random.default_rng(0).standard_normal((width, WIDEST)) / WIDEST**0.5


def _list_branches(config: Model) -> list[tuple[str, ...]]:
    """The branches of every block."""
    hidden = [round(block.mlp_ratio * block.d_model) for block in config.blocks]
    pairs = zip(config.pattern, hidden, strict=True)
    return [(MIXER,) * (mixer != NONE) + (MLP,) * (width > 0) for mixer, width in pairs]


def _name_branches(config: Model) -> tuple[str, ...]:
    pairs = zip(block_names(config), _list_branches(config), strict=True)
    return tuple(f"{name}/{branch}" for name, branches in pairs for branch in branches)


def _find_branches(config: Model, parts: Iterable[str]) -> frozenset[str]:
    """The branches that parts are made of. Raises ValueError for a part that the model has not."""
    branches, names = _name_branches(config), block_names(config)
    there: set[str] = set()
    for part in parts:
        if part not in (*names, *branches):
            raise ValueError(f"the model has no part {part!r}: {suggest(part, (*names, *branches))}")
        there |= {branch for branch in branches if part in (branch, branch.partition("/")[0])}
    return frozenset(there)


def _leaves_mixer(config: Model, parts: Iterable[str]) -> bool:
    gone = _find_branches(config, parts)
    return any(branch.endswith(MIXER) and branch not in gone for branch in _name_branches(config))


def _can_go(config: Model, gone: frozenset[str], part: str) -> bool:
    """Whether anything of a part is there still, and a mixer is left without it."""
    return not _find_branches(config, [part]) <= gone and _leaves_mixer(config, [*gone, part])


def _check_mixer_left(config: Model, gone: frozenset[str]) -> None:
    if not _leaves_mixer(config, gone):
        raise ValueError(f"without {', '.join(sorted(gone))} no mixer is left: a model without any has no memory")


def _check_steps(count: float) -> None:
    if not count:
        raise ValueError(
            "the batches are none, or hold too few steps to look back from: give more batches of Dataset.evaluate"
        )


def _finite(cost: float) -> float:
    return float(cost) if np.isfinite(cost) else float("inf")


def _reset_idle(config: Model, before: frozenset[str]) -> Model:
    """The config with what mixers were set to of which no block is left, of those `before`, at its defaults."""
    lost = before - config.kinds
    defaults: dict[str, Any] = {name: MIXERS[name].config() for name in lost & BUILT_IN if hasattr(config, name)}
    own = {name: value for name, value in config.own.items() if name not in lost}
    return dataclasses.replace(config, own=own, **defaults)
