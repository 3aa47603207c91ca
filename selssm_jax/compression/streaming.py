"""Models that carry their memory as packed bytes from one step to the next (theory, section 10).

Every array that a model carries is packed, whatever mixers it has: see `state_layout`. Reading goes step by step, in
one compiled loop, because what is rounded is what the next step reads. The loop is differentiable (`Quantizer.snap`),
so a packed model can be trained like any other.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from selssm_jax.compression import sharing
from selssm_jax.compression.quantization import Quantizer
from selssm_jax.config import Model
from selssm_jax.model import SequenceModel, mixer_places
from selssm_jax.observe import find_valid_frames, replace_states
from selssm_jax.state_layout import StateLayout, mixer_components
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training import pieces

State = Any
PyTree = Any
LEVELS = "levels"  # the name of a quantiser's levels among a packed model's parameters
LARGEST = 2**25  # numbers of all samples of calibration: 128 MB
Update = Callable[[Float[Array, "R M"], Any], tuple[Float[Array, "R M"], Any]]


class Reading(NamedTuple):
    """What `read` returns: the model's outputs, the state after the last step, what `update` gave after every step, and
    what the model sowed.
    """

    outputs: Array
    state: State
    given: Any
    sown: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PackedModel:
    """A `SequenceModel` whose state is packed: the same `apply`, and a state of bytes.

    Its parameters are those of the model, and "levels": the reproduction values of all tables, one after another, (K,);
    or, where `tables` is empty, of every component that is carried by itself, (M, L). Its state is {"packed": (R, b)
    uint8, "kept": the few leaves that stay as they are}, R rows a sequence. Between pieces of a sequence ("begin") it
    has "levels", (R, M), in place of "packed": the same numbers, through which gradients go.

    Attributes:
      model: what reads. bits: of every component, one string of digits a leaf that is packed, in the state's order.
      scope: what is packed: "all" that is carried, or the states of the "mixers" alone.
      rounding: to the "nearest" level, or "stochastic", by a dither that the state itself decides (`dither`): small
        updates, which the nearest level swallows step after step, then survive on average.
      tables: which table of levels each component reads; components of one table have equal bits. Empty: each its own.
    """

    model: SequenceModel
    bits: tuple[str, ...]
    scope: Literal["all", "mixers"] = "all"
    rounding: Literal["nearest", "stochastic"] = "nearest"
    tables: tuple[int, ...] = ()

    @property
    def config(self) -> Model:
        """The configuration of the model, which names the bits."""
        return dataclasses.replace(
            self.model.config,
            memory_bits=self.bits,
            memory_scope=self.scope,
            memory_rounding=self.rounding,
            memory_tables=self.tables,
        )

    def quantizer(self, params: Mapping[str, Any]) -> Quantizer:
        """Returns the quantiser of all components."""
        bits = self.component_bits
        if not self.tables:
            return Quantizer(params[LEVELS], bits)
        places = _places(tuple(bits[index] for index in self._first()))
        return Quantizer(params[LEVELS][places[np.asarray(self.tables), : 2 ** max(bits)]], bits)

    @property
    def component_bits(self) -> tuple[int, ...]:
        """Bits of all components, leaf after leaf."""
        return tuple(int(digit) for leaf in self.bits for digit in leaf)

    def table_bytes(self, params: Mapping[str, Any]) -> int:
        """Returns the bytes that all sequences share: the levels, and for each component the number of its table, or of
        its bits where each has its own.
        """
        return (
            sharing.table_bytes(self.tables, self.component_bits)
            if self.tables
            else params[LEVELS].nbytes + -(-4 * len(self.component_bits) // 8)
        )

    def sort_levels(self, params: Mapping[str, Any]) -> Array:
        """Returns the levels in rising order again, which training may have left."""
        if not self.tables:
            return self.quantizer(params).sort_levels().levels
        bits = tuple(self.component_bits[index] for index in self._first())
        rising = Quantizer(params[LEVELS][_places(bits)], bits).sort_levels().levels
        return jnp.concatenate([row[: 2**count] for row, count in zip(rising, bits, strict=True)])

    def _first(self) -> Int[np.ndarray, "k"]:
        """Of every table, the first component that reads it."""
        return np.unique(self.tables, return_index=True)[1]

    def apply(
        self,
        variables: Mapping[str, Any],
        inputs: Any = None,
        state: State | None = None,
        *,
        method: str | None = None,
        **options: Any,
    ) -> Any:
        """Calls the model as Flax would: a sequence, "step" or "initial_state", with packed states; any other method is
        the model's own.

        "initial_state" has room for any number of steps, whatever it is told of them: there are levels for all slots of
        a cache. Options are those of `SequenceModel`, `rngs` and `mutable` among them; with `mutable`, "state" among
        the intermediates is what was carried.
        """
        if method == "initial_state":
            return self._initial(variables["params"], inputs)
        if method == "step":
            outputs, after = self._sequence(variables["params"], inputs[:, None], state, **options)
            return (outputs[:, 0] if kind_of(self.config.task).every_step else outputs), after
        if method == "begin":
            return self._begin(variables["params"], inputs, state)
        if method is not None:
            return self.model.apply({"params": _drop_levels(variables["params"])}, method=method)
        return self._sequence(variables["params"], inputs, state, **options)

    def _initial(self, params: Mapping[str, Any], batch: int) -> State:
        layout = StateLayout(self.model, _drop_levels(params), self.scope)
        empty = self.model.apply({"params": _drop_levels(params)}, batch, method="initial_state")
        quantizer = self.quantizer(params)
        return {"packed": quantizer.pack(quantizer.quantize(layout.vector(empty))), "kept": layout.select_fixed(empty)}

    def _begin(self, params: Mapping[str, Any], inputs: Array, state: State) -> State:
        layout, known = StateLayout(self.model, _drop_levels(params), self.scope), self._unpack(params, state)
        begun = self.model.apply({"params": _drop_levels(params)}, inputs, known, method="begin")
        return {LEVELS: layout.vector(begun), "kept": layout.select_fixed(begun)}

    def _unpack(self, params: Mapping[str, Any], state: State) -> State:
        """The model's own state."""
        layout, quantizer = StateLayout(self.model, _drop_levels(params), self.scope), self.quantizer(params)
        vector = state[LEVELS] if LEVELS in state else quantizer.dequantize(quantizer.unpack(state["packed"]))
        return layout.state(vector, state["kept"])

    def _sequence(
        self, params: Mapping[str, Any], inputs: Array, state: State | None, *, mutable: Any = False, **options: Any
    ) -> Any:
        """Unpacks once, carries levels from step to step, which are the packed bytes in another form, and packs
        once.
        """
        layout, quantizer = StateLayout(self.model, _drop_levels(params), self.scope), self.quantizer(params)
        state = self._initial(params, len(inputs)) if state is None else state

        def snap(vector: Array, _: None) -> tuple[Array, None]:
            noise = dither(quantizer.quantize(jax.lax.stop_gradient(vector))) if self.rounding == "stochastic" else None
            return quantizer.snap(vector, noise), None

        rollout = read(
            self.model,
            _drop_levels(params),
            inputs,
            self._unpack(params, state),
            snap,
            scope=self.scope,
            mutable=mutable,
            **options,
        )
        vector, kept = layout.vector(rollout.state), layout.select_fixed(rollout.state)
        after = (
            {LEVELS: vector, "kept": kept}
            if LEVELS in state
            else {"packed": quantizer.pack(quantizer.quantize(jax.lax.stop_gradient(vector))), "kept": kept}
        )
        return ((rollout.outputs, after), rollout.sown) if mutable else (rollout.outputs, after)


def flat_levels(quantizer: Quantizer, tables: tuple[int, ...]) -> Float[Array, "K"]:
    """Returns the levels of all tables, one after another, of a quantiser whose components of one table have the same
    ones.
    """
    first = np.unique(tables, return_index=True)[1]
    return jnp.concatenate([quantizer.levels[index, : 2 ** quantizer.bits[index]] for index in first])


def _places(bits: tuple[int, ...]) -> Int[np.ndarray, "k L"]:
    """Of tables of so many bits each, where their levels are among all; the last one's is repeated where a table has
    fewer.
    """
    sizes = 2 ** np.asarray(bits)
    return (np.cumsum(sizes) - sizes)[:, None] + np.minimum(np.arange(sizes.max())[None], sizes[:, None] - 1)


def dither(codes: Int[Array, "R M"]) -> Float[Array, "R M"]:
    """Returns numbers spread evenly over [0, 1), a hash of a state's nearest codes and of a component's place.

    A noise for stochastic rounding that needs no generator's state: the same state always gets the same, whoever reads
    it, in a loop or step by step, and another state another. A state that nothing moves any more stays where it is.
    Mixing: the finaliser of MurmurHash3 (Appleby 2011) over wrapping sums.
    """
    place = jnp.arange(1, codes.shape[1] + 1, dtype=jnp.uint32)[None]
    row = _mix_bits((codes.astype(jnp.uint32) * _mix_bits(place)).sum(axis=1, keepdims=True, dtype=jnp.uint32))
    return (_mix_bits(row ^ _mix_bits(place + jnp.uint32(0x9E3779B9))) >> 8).astype(jnp.float32) / 2**24


def _mix_bits(x: Array) -> Array:
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def packed_bytes(model: PackedModel, params: PyTree) -> int:
    """Returns the bytes that are carried for one sequence."""
    layout = StateLayout(model.model, _drop_levels(params), model.scope)
    return layout.rows * model.quantizer(params).nbytes + layout.kept_bytes


def read(
    model: SequenceModel,
    params: PyTree,
    inputs: Array,
    state: State | None,
    update: Update,
    xs: Any = None,
    *,
    scope: str = "all",
    reset: Array | None = None,
    valid: Array | None = None,
    deterministic: bool = True,
    rngs: Mapping[str, Array] | None = None,
    mutable: Any = False,
) -> Reading:
    """Reads a sequence a step at a time, and after every one lets `update` change the vector of all that is carried.

    A step is a token, or a stride of a signal; what is left of a stride at the end of one is read too. Outputs are
    those of every step where every step is answered, else those after the last.

    Args:
      update: (vector (R, M), x) -> (vector, anything), given back stacked over steps. xs: an x for every step, stacked;
        None for none.
    """
    layout, kind, places = StateLayout(model, params, scope), kind_of(model.config.task), mixer_places(model.config)
    known = jnp.ones(inputs.shape[:2], bool) if valid is None else valid
    state = pieces.begin(model, params, {"inputs": inputs, "valid": known}, state)
    stride = kind.stride(model.config)
    # the head speaks after the last step alone
    looped = kind.frames(model.config, inputs.shape[1]) - (not kind.every_step)

    def step(state: State, now: tuple[Any, ...]) -> tuple[State, tuple[Any, Any, Any]]:
        number, x, piece, reset, valid = now
        keys = {name: jax.random.fold_in(key, number) for name, key in (rngs or {}).items()}
        options: dict[str, Any] = dict(
            reset=reset, valid=valid, deterministic=deterministic, rngs=keys, mutable=mutable
        )
        answer = model.apply({"params": params}, piece, state, **options)
        (outputs, after), sown = answer if mutable else (answer, {})
        vector, given = update(layout.vector(after), x)
        state = layout.state(vector, layout.select_fixed(after))
        blocks = state["blocks"]
        states = {name: mixer_components(blocks[index]["mixer"])[:, None] for name, index in places.items()}
        return state, (outputs, given, replace_states(sown, states))

    def onward(state: State, now: tuple[Any, ...]) -> tuple[State, tuple[Any, ...]]:
        state, (_, given, sown) = step(state, now)
        return state, (given, sown)

    arrays, ahead = (inputs, reset, valid), jax.tree.map(lambda leaf: leaf[:looped], xs)
    steps = (jnp.arange(looped), ahead, *(_strides(array, looped, stride) for array in arrays))
    if kind.every_step:
        state, (outputs, given, sown) = jax.lax.scan(step, state, steps)
        return Reading(_frames(outputs), state, given, _merge_steps(sown))
    state, many = jax.lax.scan(onward, state, steps)
    rest = (None if array is None else array[:, looped * stride :] for array in arrays)
    state, (outputs, *one) = step(state, (looped, jax.tree.map(lambda leaf: leaf[looped], xs), *rest))
    given, sown = jax.tree.map(lambda before, last: jnp.concatenate([before, last[None]]), many, tuple(one))
    return Reading(outputs, state, given, _merge_steps(sown))


def calibration(
    model: SequenceModel,
    params: PyTree,
    batches: Iterable[Mapping[str, Any]],
    *,
    scope: str = "all",
    most: int = 20_000,
    piece: int = pieces.AUTO,
) -> Float[np.ndarray, "S M"]:
    """Returns what is carried after steps of all sequences: the samples that `quantization.fit` takes, at most about
    `most` of them, evenly spaced.

    Of very wide states fewer are taken, so that all samples together are no more than `LARGEST` numbers.

    Args:
      batches: as a dataset draws them, of training or validation, never of test. piece: as training.piece.
    """

    @jax.jit
    def calibrate_piece(state: State, part: Mapping[str, Array], number: Any) -> tuple[Array, State]:
        keep = lambda vector, _: (vector, vector)  # noqa: E731
        reading = read_piece(model, params, part, state, keep, number, scope=scope)
        return reading.given, reading.state

    batches, size = list(batches), StateLayout(model, params, scope).size
    count = sum(int(find_valid_frames(model.config, batch["valid"]).sum()) for batch in batches)
    every = -(-count // max(1, min(most, LARGEST // size)))
    samples = []
    for batch in batches:
        live, begun, seen = np.asarray(find_valid_frames(model.config, batch["valid"])), 0, 0
        for given, _ in pieces.walk(calibrate_piece, model, params, batch, piece):
            taken = np.asarray(given)[live[:, begun : begun + len(given)].T]  # (S, R, M) to those of valid steps
            samples.append(taken[-seen % every :: every])
            begun, seen = begun + len(given), seen + len(taken)
    return np.concatenate(samples)


def read_piece(
    model: SequenceModel,
    params: PyTree,
    part: Mapping[str, Any],
    state: State | None,
    update: Update,
    number: Any,
    *,
    scope: str,
) -> Reading:
    """Returns what `read` does of a piece of a batch, by its number (`pieces.fold`, `pieces.walk`)."""
    return read(
        model,
        params,
        part["inputs"],
        state,
        update,
        scope=scope,
        reset=part.get("reset"),
        valid=part["valid"],
        rngs={"noise": pieces.key_of(jax.random.key(0), number)},
    )


def _drop_levels(params: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters without the levels."""
    return {name: group for name, group in params.items() if name != LEVELS}


def _strides(array: Array | None, count: int, stride: int) -> Array | None:
    """(B, T, ...) to (count, B, stride, ...)."""
    if array is None:
        return None
    return array[:, : count * stride].reshape(len(array), count, stride, *array.shape[2:]).swapaxes(0, 1)


def _frames(steps: Array) -> Array:
    """(S, R, 1, ...) to (R, S, ...)."""
    return steps[:, :, 0].swapaxes(0, 1)


def _merge_steps(sown: Mapping[str, Any]) -> dict[str, Any]:
    """What single steps sowed, as one call would have: frames joined along time; diagnostics, which have none, stay
    apart.
    """
    return {name: values if name == "diagnostics" else jax.tree.map(_frames, values) for name, values in sown.items()}
