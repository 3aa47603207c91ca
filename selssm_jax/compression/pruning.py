"""Pruning: score the components of a state, choose which to keep, and build the smaller model (theory, section 10).

For any mixer that names its state axes (`layers.state_axes`); a block whose mixer names none is left whole. A component
is scored by how far the outputs, or the loss, go when it is removed, by the size of its weights, by the activity of its
gate, or by its part in the Hankel map; removed, it is gone from the parameters and from the carried state.
Batches are those of `Dataset.evaluate`, of training or of validation, never of test; each is read from an empty memory.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from selssm_jax.compression.hankel import gramians
from selssm_jax.config import Model
from selssm_jax.errors import suggest
from selssm_jax.layers.blocks import mixing
from selssm_jax.layers.state_axes import StateAxes
from selssm_jax.layers.variables import parameters
from selssm_jax.model import SequenceModel, block_names, mixer_places
from selssm_jax.observe import find_valid_frames, observe
from selssm_jax.shapes import Batch
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import pieces

PyTree = Any
Scores = dict[str, Float[np.ndarray, "n"]]  # block -> what each component is worth
Keep = Mapping[str, Int[np.ndarray, "k"]]  # block -> the components that stay
# (parameters, masks (n,), the key of noise) -> what reads a piece of a model whose n parts count as much as their masks
ReadMasked = Callable[[PyTree, Array, PRNGKeyArray], pieces.Read]
CHUNK = 16  # sequences whose gradients are taken at once


@dataclasses.dataclass(frozen=True)
class Quadratic:
    """The loss that removing a set S of components adds, to second order around all of them: -g' 1_S + 1/2 1_S' F 1_S.

    Attributes:
      sizes: components of each block; vectors and matrices hold the blocks one after another, n in all.
      gradient: g_i = dL/dm_i at masks m = 1 on the readouts, <dL/dC_i, C_i>, in the loss's unit a term (nats, squared
        error).
      curvature: F, the Gauss-Newton matrix of the masks of all blocks together; for a log loss the Fisher matrix, 1/2
        1_S' F 1_S then being the expected divergence of the outputs from the whole model's.
    """

    sizes: Mapping[str, int]
    gradient: Float[np.ndarray, "n"]
    curvature: Float[np.ndarray, "n n"]

    @property
    def divergence(self) -> "Quadratic":
        """The same without g: how far the outputs go from the whole model's, whatever the targets.

        Loss that g promises to win holds for small steps only, and removing many components is no small step: of a
        model that is too sure of itself on new data, choosing with g does worse than choosing without
        (benchmarks/pruning.py measures both).
        """
        return dataclasses.replace(self, gradient=np.zeros_like(self.gradient))

    def cost(self, kept: Keep) -> float:
        """Returns what is added to the loss by keeping these components only; blocks that are not named are whole."""
        removed = 1.0 - np.concatenate(
            [_indicator(kept.get(name, np.arange(size)), size) for name, size in self.sizes.items()]
        )
        return float(removed @ (self.curvature @ removed / 2 - self.gradient))

    def scores(self) -> Scores:
        """Returns the cost of removing each component alone, -g_i + 1/2 F_ii."""
        return _by_block(np.diag(self.curvature) / 2 - self.gradient, self.sizes)

    def choose(self, budget: int) -> dict[str, np.ndarray]:
        """Returns `budget` components to keep, at least one a block: again and again, what costs least given what is
        gone is removed.

        Greedy, hence not always the best set (`compression.search`). Raises ValueError for a budget out of range.
        """
        _check_budget(budget, self.sizes)
        block = np.repeat(np.arange(len(self.sizes)), list(self.sizes.values()))
        left, kept = np.array(list(self.sizes.values())), np.ones(len(block), bool)
        cost = np.diag(self.curvature) / 2 - self.gradient
        for _ in range(len(block) - budget):
            worst = int(np.where(kept & (left[block] > 1), cost, np.inf).argmin())
            kept[worst] = False
            left[block[worst]] -= 1
            cost = cost + self.curvature[worst]
        return {name: np.flatnonzero(part) for name, part in _by_block(kept, self.sizes).items()}


def state_axes(config: Model) -> dict[str, StateAxes]:
    """Returns where the mixer's components are, of every block whose mixer says. Raises ValueError where none does: see
    `prunable`.
    """
    axes = _named_axes(config)
    if not axes:
        kinds = "two directions of " * config.bidirectional + ", ".join(dict.fromkeys(config.pattern))
        raise ValueError(
            f"no block names state axes, found {kinds}: give a mixer a method state_axes(), see "
            "selssm_jax/layers/state_axes.py"
        )
    return axes


def prunable(config: Model) -> bool:
    """Returns whether any block's mixer names its state axes, so that components of it can be weighed and removed."""
    return bool(_named_axes(config))


def components(config: Model) -> dict[str, int]:
    """Returns how many components every block has whose mixer says."""
    return {name: part.components for name, part in _named_axes(config).items()}


def scores(model: SequenceModel, params: PyTree, batches: Iterable[Batch], how: str) -> Scores:
    """Returns what each component is worth, (n,) a block of those that name axes, the larger the more.

    Args:
      model, params: as trained; the model's config with its task filled in.
      batches: for "information", "loss" and "gate"; the others read weights alone.
      how: "information", 1/2 F_ii, what is lost of what the state says of the future, to second order: the divergence
        of the outputs from the whole model's when it alone is removed (`quadratic`);
        "loss", -g_i + 1/2 F_ii, what that adds to the loss, to second order;
        "magnitude", |B_i| |C_i|, norms of the weights that write and read it;
        "gate", the mean of its gate over valid steps;
        "hankel", sqrt(P_ii Q_ii) of the mixer's Gramians, |b_i| |c_i| / (1 - |a_i|^2) for a diagonal transition, a and
        b with the gates in them.

    Raises:
      ValueError: for an unknown `how`, no batches, "gate" of a mixer that sows none, "hankel" of one that is not
        time-invariant, and where no block names axes.
    """
    if how not in SCORES:
        raise ValueError(f"how={how!r} is unknown: {suggest(how, SCORES)}")
    return SCORES[how](model, parameters(params), batches)


def quadratic(
    model: SequenceModel,
    params: PyTree,
    batches: Iterable[Batch],
    *,
    draws: int = 1,
    seed: int = 0,
    piece: int = pieces.AUTO,
) -> Quadratic:
    """Returns the second-order model of the loss in masks on the readouts of all components.

    g is the gradient of the loss at the batches' targets. F is the sum of u u' over gradients u of single sequences at
    targets that the model itself would have, so that no error of the real ones counts: for classes each of them,
    weighted by its probability; for tokens `draws` from the softmax, F being the Fisher matrix of the log loss; for
    values `draws` with unit Gaussian errors, F being 2 J'J / M on average, or of the law of the model's quantiles, F
    being M times the covariance of u. From S samples the entries off the diagonal
    are noisy; they are shrunk by the share that loses least (Schäfer and Strimmer 2005, target D). `piece` is as
    training.piece; what is drawn is drawn anew for each.

    Raises:
      ValueError: where there are no batches or nothing in them is scored.
    """
    axes = state_axes(model.config)
    sizes = {name: part.components for name, part in axes.items()}

    def read_masked(params: PyTree, mask: Array, noise: PRNGKeyArray) -> pieces.Read:
        masks = _by_block(mask, sizes)
        masked = {
            name: params[name] | {"mixer": part.mask_readout(params[name]["mixer"], masks[name])}
            for name, part in axes.items()
        }
        return pieces.make_reader(model, {**params, **masked}, noise)

    return expand_loss(model, params, batches, sizes, read_masked, draws=draws, seed=seed, piece=piece)


def expand_loss(
    model: SequenceModel,
    params: PyTree,
    batches: Iterable[Batch],
    sizes: Mapping[str, int],
    read_masked: ReadMasked,
    *,
    draws: int = 1,
    seed: int = 0,
    piece: int = pieces.AUTO,
) -> Quadratic:
    """Returns the second-order model of the loss in masks on whatever `read_masked` masks, `sizes` of them by name, as
    `quadratic` of components. Raises what that raises.
    """
    sample = jax.jit(partial(_slopes, model, sum(sizes.values()), read_masked, draws, piece))
    keys = jax.random.key(seed)
    samples_of_batches = [
        sample(params, dict(batch), jax.random.fold_in(keys, number)) for number, batch in enumerate(batches)
    ]
    weight = sum(float(np.sum(one.weight)) for one in samples_of_batches)
    if not weight:
        raise ValueError("the batches are none, or nothing in them has a weight: give batches of Dataset.evaluate")
    gradient = sum(np.asarray(one.real, np.float64).sum(axis=0) for one in samples_of_batches) / weight
    samples = np.concatenate(
        [np.asarray(one.own, np.float64).reshape(-1, sum(sizes.values())) for one in samples_of_batches]
    )
    return Quadratic(sizes, gradient, shrunk(samples) * (len(samples) / weight))


def shrunk(samples: Float[np.ndarray, "S n"]) -> Float[np.ndarray, "n n"]:
    """Returns mean_s u_s u_s' with entries off the diagonal times 1 - share, share = sum Var(r_ij) / sum r_ij^2 over i
    != j, r the normed entries.

    Source: Schäfer and Strimmer 2005, target D, about a mean of zero.
    """
    count = len(samples)
    scale = np.sqrt((samples**2).mean(axis=0))
    normed = samples / np.where(scale > 0, scale, 1)
    r = normed.T @ normed / count
    noise = ((normed**2).T @ normed**2 / count - r**2) / count
    apart = ~np.eye(len(r), dtype=bool)
    total = (r[apart] ** 2).sum()
    share = min(1.0, noise[apart].sum() / total) if total else 1.0
    return np.where(apart, 1 - share, 1) * r * scale[:, None] * scale[None]


def choose(scores: Scores, budget: int) -> dict[str, np.ndarray]:
    """Returns the `budget` components of highest score in the whole model, at least the best one of each block, as
    indices to keep.

    Raises ValueError for a budget below the number of blocks or above that of components.
    """
    sizes = {name: len(part) for name, part in scores.items()}
    _check_budget(budget, sizes)
    raised = {name: np.where(np.arange(len(part)) == part.argmax(), np.inf, part) for name, part in scores.items()}
    flat = np.concatenate(list(raised.values()))
    kept = np.zeros(len(flat), bool)
    kept[np.argsort(-flat, kind="stable")[:budget]] = True
    return {name: np.flatnonzero(part) for name, part in _by_block(kept, sizes).items()}


def prune(config: Model, params: PyTree, keep: Keep) -> tuple[Model, PyTree]:
    """Returns (config, parameters) of the model that has these components alone: smaller arrays, fewer carried bytes.

    Outputs are the same where those that went were not read: a readout of zero, and no other component that reads them,
    as a dense transition or dense state gates do.

    Args:
      config: the model's, with block_states or without. keep: indices of the components to keep, one array a block, in
        the order in which they shall stand; a block that is not named keeps all, as one must whose mixer names no axes.

    Raises:
      ValueError: for a block that there is not or that names no axes, for none or repeated components, and for indices
        out of range.
    """
    axes, params = state_axes(config), parameters(params)
    for name in keep:
        if name not in axes:
            raise ValueError(f"keep names {name!r}, no block whose components can be removed: {suggest(name, axes)}")
    kept = {
        name: _check_choice(keep.get(name, np.arange(part.components)), part.components, name)
        for name, part in axes.items()
    }
    blocks = {
        name: params[name] | {"mixer": part.take(params[name]["mixer"], kept[name])} for name, part in axes.items()
    }
    sizes = {name: part.d_state for name, part in zip(block_names(config), config.blocks, strict=True)}
    sizes |= {name: part.size * len(kept[name]) for name, part in axes.items()}
    return dataclasses.replace(config, block_states=tuple(sizes.values())), {**params, **blocks}


def loss(model: SequenceModel, params: PyTree, batches: Iterable[Batch], *, piece: int = pieces.AUTO) -> float:
    """Returns the mean loss, nats or squared error, of batches that are each read from an empty memory; `piece` as
    training.piece.

    Raises ValueError where there are no batches or nothing in them is scored.
    """

    @jax.jit
    def score(params: PyTree, batch: Batch) -> Array:
        return sum_losses(model, params, batch, pieces.make_reader(model, params, jax.random.key(0)), piece)

    return average(score(params, dict(batch)) for batch in batches)


def sum_losses(model: SequenceModel, params: PyTree, batch: Batch, read: pieces.Read, piece: int) -> Array:
    """Returns (the sum of weighted losses, the sum of weights) of a batch that `read` reads, piece after piece."""
    kind = kind_of(model.config.task)
    return jnp.stack(pieces.fold(read, kind.score, model, params, batch, piece)[1][kind.loss])


def average(sums: Iterable[Array]) -> float:
    """Returns the mean of what `sum_losses` gives of batches. Raises ValueError where nothing has a weight."""
    total = sum((np.asarray(pair, np.float64) for pair in sums), np.zeros(2))
    if not np.any(total):
        raise ValueError("the batches are none, or nothing in them has a weight: give batches of Dataset.evaluate")
    return float(total[0] / total[1])


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Slopes:
    """Of the R sequences of a batch: gradients of their summed loss, (R, n), of that at the model's targets, (R,
    targets, n), and weights, (R,).
    """

    real: Array
    own: Array
    weight: Array


def _slopes(
    model: SequenceModel,
    count: int,
    read_masked: ReadMasked,
    draws: int,
    piece: int,
    params: PyTree,
    batch: Batch,
    key: PRNGKeyArray,
) -> _Slopes:
    kind = kind_of(model.config.task)

    def losses(mask: Array, row: Batch, key: PRNGKeyArray) -> tuple[Array, Array]:
        noise, key = jax.random.split(key)
        reader = read_masked(params, mask, noise)

        def read(before: Any, part: Batch, number: Any) -> tuple[tuple[Array, Any], Any, Any]:
            outputs, after, sums = reader(before, part, number)
            return (outputs, number), after, sums

        def score(answer: tuple[Array, Any], part: Batch) -> dict[str, Array]:
            outputs, number = answer
            drawn = pieces.key_of(key, number if kind.every_step else None)
            targets, factors = kind.drawn_targets(jax.lax.stop_gradient(outputs), draws, drawn)
            weigh = lambda targets: kind.score(outputs, {**part, "targets": targets})[kind.loss]  # noqa: E731
            total, weight = weigh(part["targets"])
            own = factors * jax.vmap(lambda target: weigh(target)[0])(targets)
            return {"losses": jnp.concatenate([total[None], own]), "weight": weight}

        sums = pieces.fold(read, score, model, params, row, piece)[1]
        return sums["losses"], sums["weight"]

    def row(now: tuple[Batch, PRNGKeyArray]) -> _Slopes:
        one = {name: value[None] for name, value in now[0].items()}
        slopes, weight = jax.jacrev(losses, has_aux=True)(jnp.ones(count), one, now[1])
        return _Slopes(slopes[0], slopes[1:], weight)

    rows = len(batch["weights"])
    return jax.lax.map(row, (batch, jax.random.split(key, rows)), batch_size=min(CHUNK, rows))


def _information(model: SequenceModel, params: PyTree, batches: Iterable[Batch]) -> Scores:
    return quadratic(model, params, batches).divergence.scores()


def _loss(model: SequenceModel, params: PyTree, batches: Iterable[Batch]) -> Scores:
    return quadratic(model, params, batches).scores()


def _magnitude(model: SequenceModel, params: PyTree, batches: Iterable[Batch]) -> Scores:
    del batches
    return {
        name: part.norms(params[name]["mixer"], part.drive) * part.norms(params[name]["mixer"], part.readout)
        for name, part in state_axes(model.config).items()
    }


def _gate(model: SequenceModel, params: PyTree, batches: Iterable[Batch]) -> Scores:
    read = jax.jit(partial(_sum_gates, model, params))
    sums = [sums for batch in batches for sums, _ in pieces.walk(read, model, params, dict(batch), pieces.AUTO)]
    if not sums:
        raise ValueError("there are no batches to see gates on: give batches of Dataset.evaluate")
    total, steps = jax.tree.map(lambda *leaves: np.sum(np.asarray(leaves, np.float64), axis=0), *sums)
    return {name: value / steps for name, value in total.items()}


def _sum_gates(
    model: SequenceModel, params: PyTree, state: Any, part: Batch, number: Any
) -> tuple[tuple[dict[str, Array], Array], Any]:
    """((sums of each component's gate over valid frames, how many these are), the state)."""
    key = pieces.key_of(jax.random.key(0), number)
    _, after, blocks = observe(model, params, part, state, rngs={"noise": key})
    frames = find_valid_frames(model.config, part["valid"])
    total = {}
    for name, axes in state_axes(model.config).items():
        gate = blocks[name].gate
        if gate is None:
            raise ValueError(f"{name}: its mixer sows no gates: use another score than 'gate'")
        if gate.shape[-1] != axes.components:
            raise ValueError(
                f"{name}: its mixer has {gate.shape[-1]} gates for {axes.components} components, so none is one's own: "
                "use another score than 'gate'"
            )
        total[name] = (gate * frames[..., None]).sum(axis=(0, 1))
    return (total, frames.sum()), after


def _hankel(model: SequenceModel, params: PyTree, batches: Iterable[Batch]) -> Scores:
    del batches
    axes, layers = state_axes(model.config), mixers(model.config)
    for name in axes:
        if getattr(layers[name], "output_gate", False):
            raise ValueError(
                f"{name}: its outputs are gated by the input, so no Hankel map is all of it: use a model of "
                "output_gate=False, or another score than 'hankel'"
            )
        if not callable(getattr(layers[name], "dynamics", None)):
            raise ValueError(
                f"{name}: a {type(layers[name]).__name__} is not time-invariant, or has no method dynamics(x) to say "
                "how: use another score than 'hankel'"
            )
    probe = jax.random.normal(jax.random.key(0), (1, 3, model.config.d_model))
    values = {}
    for name, part in axes.items():
        own = params[name]["mixer"]
        A, B = layers[name].apply({"params": own}, probe, method="dynamics")
        values[name] = _score_by_hankel(name, part, own, np.asarray(A[0]), np.asarray(B[0]))
    return values


def _score_by_hankel(name: str, axes: StateAxes, params: PyTree, A: np.ndarray, B: np.ndarray) -> np.ndarray:
    if np.ptp(A, axis=0).any() or np.ptp(B, axis=0).any():
        raise ValueError(
            f"{name} is not time-invariant, so it has no Hankel singular values: use a model of gate='constant', or "
            "another score"
        )
    energies = gramians(
        A[0], B[0], np.diag(axes.norms(params, axes.readout)) if A.ndim == 2 else np.asarray(params[axes.readout]).T
    )
    return np.sqrt(np.diag(energies.past).real * np.diag(energies.future).real)


SCORES = {"information": _information, "loss": _loss, "magnitude": _magnitude, "gate": _gate, "hankel": _hankel}


def mixers(config: Model) -> dict[str, Any]:
    """Returns the mixer of every block that has one, by the block's name."""
    return {name: mixing(config.pattern[index], config.blocks[index]) for name, index in mixer_places(config).items()}


def _named_axes(config: Model) -> dict[str, StateAxes]:
    return {
        name: layer.state_axes()
        for name, layer in mixers(config).items()
        if callable(getattr(layer, "state_axes", None))
    }


def _indicator(kept: np.ndarray, size: int) -> np.ndarray:
    return np.isin(np.arange(size), kept).astype(float)


def _by_block(values: Any, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Values of all components, block by block."""
    ends = np.cumsum(list(sizes.values()))
    return {name: values[end - size : end] for (name, size), end in zip(sizes.items(), ends.tolist(), strict=True)}


def _check_budget(budget: int, sizes: Mapping[str, int]) -> None:
    if not len(sizes) <= budget <= sum(sizes.values()):
        raise ValueError(
            f"budget={budget} components: use from {len(sizes)}, one a block, to {sum(sizes.values())}, all there are"
        )


def _check_choice(kept: np.ndarray, count: int, name: str) -> np.ndarray:
    kept = np.asarray(kept)
    if kept.ndim != 1 or not len(kept) or len(np.unique(kept)) != len(kept) or kept.min() < 0 or kept.max() >= count:
        raise ValueError(
            f"keep[{name!r}]={kept.tolist()}: expected at least one index, each once, from 0 to {count - 1}"
        )
    return kept
