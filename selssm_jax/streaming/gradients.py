"""Gradients of a stream's loss, step by step, in memory that does not grow with the stream (theory, section 16).

A method of gradients is asked at each truth for the gradient of the loss of the step that it belongs to. It carries
what it needs from step to step.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, PyTree

from selssm_jax.layers.mixers import mixer
from selssm_jax.layers.state_axes import StateAxes
from selssm_jax.model import SequenceModel, State, block_names
from selssm_jax.ops.boundaries import hide_rows
from selssm_jax.streaming.samples import Sample, average, measure_errors, read_step

TOLERANCE = 1e-3  # of the check that components do not touch one another, relative to the largest derivative
Trace = dict[str, Array]  # by the path of a mixer's parameter, (B, P, *its shape)


class Gradient(NamedTuple):
    """What a method says at a truth: the gradient, whether there is one to be used now, the state after the step that
    it was of, and what the method carries on.
    """

    gradient: PyTree
    ready: Array
    state: State
    memory: PyTree


@runtime_checkable
class GradientMethod(Protocol):
    """What a stream asks of a method: `ExactGradient` and `TruncatedGradient` are ones."""

    def check(self, model: SequenceModel, params: PyTree) -> None:
        """Raises ValueError for a model whose gradients it cannot give."""
        ...

    def start(self, model: SequenceModel, params: PyTree, sample: Sample) -> PyTree:
        """Returns what is carried before the first step, for samples of these shapes."""
        ...

    def forget(self, memory: PyTree, share: float) -> PyTree:
        """Returns what is carried where all states have become `share` times what they were."""
        ...

    def differentiate(
        self, model: SequenceModel, params: PyTree, state: State, memory: PyTree, sample: Sample
    ) -> Gradient:
        """Reads a step from the state before it, and returns the gradient of its mean loss over the streams."""
        ...


class _Component(NamedTuple):
    """A mixer by itself: the module, where its components are in its parameters, and what its state is like."""

    module: Any
    axes: StateAxes
    like: PyTree

    @property
    def shape(self) -> tuple[int, int]:
        """(P, N), the real numbers of a component and the components."""
        count, size = jax.eval_shape(_split, self.like).shape[1:]
        return count, size

    def list_traced(self, params: PyTree) -> dict[str, int]:
        """The parameters that the state depends on, and the axis of each that runs over the components."""
        present = flatten_dict(dict(params), sep="/")
        return {name: axes[0] for name, axes in self.axes.axes.items() if name in present and name != self.axes.readout}

    def step(self, params: PyTree, x: Array, parts: Array, reset: Array) -> Array:
        """Parts (P, N) after a step x (D,) of one stream."""
        state = _join(parts[None], self.like)
        return _split(self.module.apply({"params": params}, x[None, None], state, reset=reset[None, None])[1])[0]


@dataclasses.dataclass(frozen=True)
class ExactGradient:
    """Real-time recurrent learning (Williams and Zipser 1989) where components of a state do not touch one another.

    Of h_t = f(h_{t-1}, x_t; theta), component by component, it carries the trace E_t = dh_t/dtheta, and the gradient of
    the loss of a step is what theta does at this step, h_{t-1} given, and what h_{t-1} owes to it:

    E_t = (dh_t/dh_{t-1}) E_{t-1} + df/dtheta,    dL_t/dtheta = (dL_t/dtheta given h_{t-1}) + (dL_t/dh_{t-1}) E_{t-1}.

    A parameter of component n moves h_n alone, so that E has the shape of the parameters of the mixer, once for each
    number of which a component is made: one for a real, two for a complex one, two for mean and nats of `kalman`. None
    of this is derived by hand: derivatives are those of JAX, and any mixer whose `state_axes` names one axis a
    parameter and whose components are independent has traces: `selective` with a diagonal or complex transition,
    `kalman`, `lru`, `min_gru`. `check` tests that on random numbers.

    Exact is the gradient of the mixer's own parameters at fixed inputs of the mixer, through all of the past since the
    last reset, and of all that has no memory behind the last mixer. Encoder, norms, convolutions, MLPs and mixers that
    come before another mixer receive what they did to the present step, and, of a mixer's own trace, what its state
    says through the layers behind it at this step: that earlier outputs moved the states of later mixers is left out.
    So it is exact for one layer, whose encoder has no parameters that are trained, and exact within each layer of a
    stack. As parameters change while a trace is carried, it is that of slowly changing parameters.
    """

    def check(self, model: SequenceModel, params: PyTree) -> None:
        """Raises ValueError for a mixer whose components are not independent, as far as random numbers tell."""
        for name, component in zip(block_names(model.config), list_components(model, params), strict=True):
            _check_independence(name, component, params[name]["mixer"])

    def start(self, model: SequenceModel, params: PyTree, sample: Sample) -> list[Trace]:
        """Returns traces of 0, one for each mixer: nothing has been read."""
        rows, traces = len(sample.inputs), []
        for name, component in zip(block_names(model.config), list_components(model, params), strict=True):
            flat = flatten_dict(dict(params[name]["mixer"]), sep="/")
            count, _ = component.shape
            traces.append(
                {
                    path: jnp.zeros((rows, count, *flat[path].shape), jnp.float32)
                    for path in component.list_traced(params[name]["mixer"])
                }
            )
        return traces

    def forget(self, memory: list[Trace], share: float) -> list[Trace]:
        """Returns the traces times `share`, the derivative of share h."""
        return jax.tree.map(lambda trace: share * trace, memory)

    def differentiate(
        self, model: SequenceModel, params: PyTree, state: State, memory: list[Trace], sample: Sample
    ) -> Gradient:
        """See `GradientMethod`."""
        names, components = block_names(model.config), list_components(model, params)
        parts = [_split(block["mixer"]) for block in state["blocks"]]
        memory = hide_rows(sample.reset, memory)

        def score(params: PyTree, parts: list[Array]) -> tuple[Array, tuple[State, list[Array]]]:
            mixers = [_join(part, component.like) for part, component in zip(parts, components, strict=True)]
            blocks = tuple(block | {"mixer": carried} for block, carried in zip(state["blocks"], mixers, strict=True))
            read: dict[str, Array] = {}
            with nn.intercept_methods(_record_inputs(read)):
                outputs, after = read_step(model, params, sample.inputs, sample.reset, state | {"blocks": blocks})
            loss = average(measure_errors(model, outputs, sample), sample.weights)
            return loss, (after, [read[name] for name in names])

        (gradient, owed), (after, inputs) = jax.grad(score, argnums=(0, 1), has_aux=True)(params, parts)
        traces = []
        for place, (name, component) in enumerate(zip(names, components, strict=True)):
            own = params[name]["mixer"]
            past = _collect(component, own, owed[place], memory[place])
            gradient = gradient | {name: gradient[name] | {"mixer": _add_flat(gradient[name]["mixer"], past)}}
            traces.append(_advance(component, own, memory[place], inputs[place][:, 0], parts[place], sample.reset))
        return Gradient(gradient, jnp.ones((), bool), after, traces)


class Piece(NamedTuple):
    """What `TruncatedGradient` carries: K samples, of which `filled` are there."""

    samples: Sample
    filled: Array


@dataclasses.dataclass(frozen=True)
class TruncatedGradient:
    """Backpropagation through pieces of K steps: after every K truths the gradient of the mean loss of these steps,
    from the state that they began with, of all parameters of any model. What the state owes to earlier pieces is left
    out. Of one step it is the instantaneous gradient.

    Attributes:
      steps: K, truths of a piece; memory grows with it.

    Raises:
      ValueError: for fewer than one step.
    """

    steps: int = 32

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps={self.steps} is out of range: use at least 1")

    def check(self, model: SequenceModel, params: PyTree) -> None:
        """Raises nothing: any model has such a gradient."""

    def start(self, model: SequenceModel, params: PyTree, sample: Sample) -> Piece:
        """Returns a piece without a step."""
        empty = jax.tree.map(lambda leaf: jnp.zeros((self.steps, *leaf.shape), leaf.dtype), sample)
        return Piece(empty, jnp.zeros((), jnp.int32))

    def forget(self, memory: Piece, share: float) -> Piece:
        """Returns what was carried: samples are read again, and the state that they are read from has changed."""
        return memory

    def differentiate(
        self, model: SequenceModel, params: PyTree, state: State, memory: Piece, sample: Sample
    ) -> Gradient:
        """See `GradientMethod`; the state moves when a piece is whole."""
        samples = jax.tree.map(lambda held, new: held.at[memory.filled].set(new), memory.samples, sample)
        whole = memory.filled + 1 == self.steps

        def score(params: PyTree) -> tuple[Array, State]:
            def step(state: State, sample: Sample) -> tuple[State, Array]:
                outputs, state = read_step(model, params, sample.inputs, sample.reset, state)
                return state, measure_errors(model, outputs, sample)

            after, errors = jax.lax.scan(step, state, samples)
            return average(errors, samples.weights), after

        def learn(_: None) -> tuple[PyTree, State]:
            return jax.grad(score, has_aux=True)(params)

        def wait(_: None) -> tuple[PyTree, State]:
            return jax.tree.map(jnp.zeros_like, params), state

        gradient, after = jax.lax.cond(whole, learn, wait, None)
        return Gradient(gradient, whole, after, Piece(samples, jnp.where(whole, 0, memory.filled + 1)))


def list_components(model: SequenceModel, params: PyTree) -> list[_Component]:
    """Returns the mixers of a model one by one.

    Raises:
      ValueError: for one that reads backwards, does not say where its components are in its parameters, or has a state
        of another form than a number, or some, a component.
    """
    config = model.config
    if config.bidirectional:
        raise ValueError("the model reads sequences from their end too, and a stream has none: use bidirectional=False")
    if config.resample.rule != "none":
        raise ValueError(
            f"model.resample.rule={config.resample.rule!r} lets blocks read some steps alone, whose traces are not "
            "kept: use TruncatedGradient(steps), or model.resample.rule='none'"
        )
    components = []
    for name, kind, settings in zip(block_names(config), config.pattern, config.blocks, strict=True):
        module = mixer(kind, settings)
        bound = module.bind({"params": params[name]["mixer"]})
        axes = bound.state_axes() if hasattr(bound, "state_axes") else None
        like = jax.eval_shape(lambda bound=bound: bound.initial_state(1)) if axes else None
        shapes = {leaf.shape for leaf in jax.tree.leaves(like)}
        if axes is None or len(shapes) != 1 or len(next(iter(shapes))) != 2:
            raise ValueError(
                f"{name}, a {kind!r}, has no traces: its state is not one number, or some, a component; use "
                "TruncatedGradient(steps)"
            )
        components.append(_Component(module, axes, like))
    return components


def _split(state: PyTree) -> Float[Array, "B P N"]:
    """A mixer's state as real numbers, P of each component."""
    leaves = [
        part
        for leaf in jax.tree.leaves(state)
        for part in ((jnp.real(leaf), jnp.imag(leaf)) if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else (leaf,))
    ]
    return jnp.stack(leaves, axis=1)


def _join(parts: Float[Array, "B P N"], like: PyTree) -> PyTree:
    """The inverse of `_split`, for a state like this one."""
    rest, leaves = list(jnp.moveaxis(parts, 1, 0)), []
    for leaf in jax.tree.leaves(like):
        is_complex = jnp.issubdtype(leaf.dtype, jnp.complexfloating)
        leaves.append(jax.lax.complex(rest.pop(0), rest.pop(0)) if is_complex else rest.pop(0))
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _record_inputs(read: dict[str, Array]) -> Callable[..., Any]:
    """An interceptor that enters what each block's mixer reads, by the name of the block."""

    def intercept(call: Any, arguments: Any, options: Any, context: Any) -> Any:
        path = context.module.path
        if len(path) == 2 and path[1] == "mixer" and context.method_name == "__call__":
            read[path[0]] = arguments[0]
        return call(*arguments, **options)

    return intercept


def _spread(values: Array, shape: tuple[int, ...], axis: int) -> Array:
    """Values (..., N) of the components in the shape of a parameter that they run over, once or several times."""
    values = jnp.tile(values, shape[axis] // values.shape[-1])
    return values.reshape(*values.shape[:-1], *(size if place == axis else 1 for place, size in enumerate(shape)))


def _collect(component: _Component, params: PyTree, owed: Array, traces: Trace) -> dict[str, Array]:
    """(dL/dh) E, summed over streams and the numbers of a component."""
    return {
        path: (_spread(owed, traces[path].shape[2:], axis) * traces[path]).sum(axis=(0, 1))
        for path, axis in component.list_traced(params).items()
    }


def _add_flat(tree: PyTree, flat: dict[str, Array]) -> PyTree:
    """A tree of parameters plus what is given by their paths."""
    sums = flatten_dict(dict(tree), sep="/")
    return unflatten_dict(sums | {path: sums[path] + value for path, value in flat.items()}, sep="/")


def _differentiate_step(
    component: _Component, params: PyTree, x: Array, parts: Array, reset: Array, seeds: Array
) -> tuple[dict[str, Array], Array]:
    """(d sum_pn seed_pn h_pn / d parameter, the same by the parts before) of every seed (S, P, N), of one stream."""
    flat = flatten_dict(dict(params), sep="/")

    def step(flat: dict[str, Array], parts: Array) -> Array:
        return component.step(unflatten_dict(flat, sep="/"), x, parts, reset)

    return jax.vmap(jax.vjp(step, flat, parts)[1])(seeds)


def _advance(component: _Component, params: PyTree, traces: Trace, x: Array, parts: Array, reset: Array) -> Trace:
    """The traces after a step of every stream: of independent components the derivative of their sum, for each of their
    numbers, has that of every one in its own columns.
    """
    count, size = parts.shape[1:]
    seeds = jnp.broadcast_to(jnp.eye(count)[:, :, None], (count, count, size))

    def advance(traces: Trace, x: Array, parts: Array, reset: Array) -> Trace:
        direct, inward = _differentiate_step(component, params, x, parts, reset, seeds)
        after = {}
        for path, axis in component.list_traced(params).items():
            shape = traces[path].shape[1:]
            after[path] = direct[path] + (_spread(inward, shape, axis) * traces[path][None]).sum(axis=1)
        return after

    return jax.vmap(advance)(traces, x, parts, reset)


def _check_independence(name: str, component: _Component, params: PyTree) -> None:
    """Raises ValueError unless sum_n r_n dh_n has, for random signs r, r_n times the derivatives of sum_n dh_n in the
    columns of each n, and 0 elsewhere.
    """
    traced, flat = component.list_traced(params), flatten_dict(dict(params), sep="/")
    count, size = component.shape
    several = [path for path in component.axes.axes if len(component.axes.axes[path]) > 1 and path in flat]
    uneven = [path for path, axis in traced.items() if flat[path].shape[axis] % size]
    if several or uneven:
        raise ValueError(
            f"{name} has no traces: its components share {', '.join(several + uneven)}; use a diagonal transition and "
            "gates of their own, or TruncatedGradient(steps)"
        )
    rng = np.random.default_rng(0)
    draw = lambda shape: np.asarray(rng.normal(size=shape), np.float32)  # noqa: E731
    noisy = {path: np.asarray(value) + draw(value.shape) / 10 for path, value in flat.items()}
    x, parts, signs = draw(component.module.d_model), np.abs(draw((count, size))), np.sign(draw(size))
    seeds = np.broadcast_to(np.eye(count, dtype=np.float32)[:, :, None], (count, count, size))
    both = np.concatenate([seeds, seeds * signs])
    by_params, inward = jax.jit(partial(_differentiate_step, component))(
        unflatten_dict(noisy, sep="/"), x, parts, np.zeros((), bool), both
    )
    for path, value in {**by_params, "": inward}.items():
        plain, signed = np.split(np.asarray(value), 2)
        shape, axis = ((count, size), 1) if path == "" else (flat[path].shape, traced.get(path, -1))
        expected = np.asarray(_spread(jnp.asarray(signs), shape, axis)) * plain if axis >= 0 else 0 * plain
        if np.abs(signed - expected).max() > TOLERANCE * max(np.abs(plain).max(), 1e-6):
            raise ValueError(
                f"{name} has no traces: components of its state touch one another, by "
                f"{path or 'the state before'}; use a diagonal transition and gates of their own, or "
                "TruncatedGradient(steps)"
            )
