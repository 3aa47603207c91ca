"""Blocks that read fewer steps than there are: which steps, what each of them gathers, and how what the blocks make of
them is carried back to all steps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from selssm_jax.config import Model
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.blocks import Block, normalisation
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import project
from selssm_jax.ops import linear_scan
from selssm_jax.ops.boundaries import choose_rows
from selssm_jax.shapes import Activations, Reset, Rows

TICKS = 2**16  # of one step of a clock: whole numbers add up alike in one call and in many
BASES = 4  # M, Gaussians of which the weight of a gathered step is made
BITS = 1 / np.log(2)  # of a nat
OVER_FRAMES = ("gate", "open", "gained", "forgotten")  # what blocks sow of a step, 0 at one that they do not read
CLOCK = ("phase", "spent", "begun", "since")  # columns of what is counted

State = dict[str, Any]


class Choice(NamedTuple):
    """Which steps (B, T) the blocks read.

    Attributes:
      keep: True at a step that they read. begin: True where a sequence begins. refused: True where there was no room.
      chance: p_t of a boundary, else None. since: unread steps directly before each. counts: what is counted after the
        last step, by name, (B,).
    """

    keep: Bool[Array, "B T"]
    begin: Bool[Array, "B T"]
    refused: Bool[Array, "B T"]
    chance: Float[Array, "B T"] | None
    since: Int[Array, "B T"]
    counts: dict[str, Array]


class Slots(NamedTuple):
    """Where the steps that are read stand among all, in K places that may be more than they are.

    Attributes:
      step: (B, K), the step in each place. live: False in places without one, which are the last.
      begin: where a sequence begins. latest: (B, T), one more than the place of the last step read, 0 before any.
    """

    step: Int[Array, "B K"]
    live: Bool[Array, "B K"]
    begin: Bool[Array, "B K"]
    latest: Int[Array, "B T"]


class Resampler(Layer):
    """y_t = z_k + (x_t - g_k), k the last step read up to t, z_k what the blocks make of g_k, what step k gathers of
    the steps since the one read before it.

    Where every step is read g_t = x_t, and y is what the blocks make of x, bit for bit. Every rule begins a sequence
    with a step that is read. Rules but "static" have `spare` steps of credit: one is paid back every `rate` steps, and
    a step that is chosen when none is left is not read. So T steps hold at most ceil(T / rate) + spare that are, the
    K places of a call; with a reset, which begins with full credit, K = T.

    static: every rate-th, dt_t = 1 / rate. equal_time: step sizes dt_t = softplus(w norm(x_t) + b); a step is read
    where their sum tau passes a whole number; without `causal` the sum over a sequence is divided into ceil(T / rate)
    parts. Both gather x_k + sum_l sum_m c_m exp(-(M (tau_k - tau_l) - m)^2 / 2) x_l of the last `window` steps, c_m
    learned for each channel from 0 on (Gaussian basis weights, SeRpEnt, Rando et al. 2025). information: as equal_time
    with the bits that the Kalman gates before gain, over `bits`, and nothing gathered. boundary: p_t = (1 - cos(W_q
    x_{t-1}, W_k x_t)) / 2, read where p_t > 1/2; z and g of the steps read are smoothed, h_k = p_k z_k + (1 - p_k)
    h_{k-1}, and the confidence c_t, p_t where read and 1 - p_t where not, is multiplied in with the value 1 and its own
    gradient (dynamic chunking, H-Net, Hwang et al. 2025).

    The state is {"count": {"clock": (B, 4)}, "held", "gathered": (B, D), z and g of the last step read}, and what a
    rule looks back on: "past", (B, D), the last input; "window", (B, window - 1, D), the last inputs, and
    count["dt"], (B, window - 1), their step sizes. Of an empty memory all are 0.

    Sown into the intermediates of each block's mixer: "keep", "refused", "clock", the step size in units of what is
    passed, and "chance", p_t, (B, T) each. Gates and nats that mixers sow are 0 at steps that are not read.

    Attributes:
      config: the model's.
    """

    config: Model

    def setup(self) -> None:
        rule, width = self.config.resample.rule, self.config.d_model
        if rule == "equal_time":
            self.norm = normalisation(self.config)
            self.dt_kernel = self.param("dt_kernel", nn.initializers.zeros, (width, 1))
            self.dt_bias = self.param("dt_bias", self._draw_bias, (1,))
        if self.config.resample.gathers:
            self.basis = self.param("basis", nn.initializers.zeros, (BASES, width))
        if rule == "boundary":
            self.query, self.key = (self.param(name, _identity, (width, width)) for name in ("query", "key"))

    def __call__(
        self,
        blocks: Sequence[Block],
        x: Activations,
        states: Sequence[State | None],
        before: State,
        reset: Reset | None,
        valid: Bool[Array, "B T"],
        nats: Float[Array, "B T"] | None,
        deterministic: bool,
    ) -> tuple[Activations, tuple[State, ...], State]:
        """Returns (y, the states of the blocks after the last step that they read, what is carried beside them).

        Args:
          blocks, states: modules and what they carried, None before the first step. before: what was carried beside
            them. valid: False at padding to the right, of which nothing is read. nats: what each step gains, where the
            rule reads it.
        """
        begin = _find_begins(before["count"]["clock"][:, CLOCK.index("begun")], x.shape[1], reset)
        dt, chance = rules.detach(self._measure_steps(x, before, begin, valid, nats))
        choice = self._choose(before, begin, valid, dt, chance)
        slots = _place(choice, self._count_places(x.shape[1], reset))
        gathered, window = self._gather(x, before, choice, slots, dt)
        gathered = jnp.where(slots.live[..., None], gathered, 0)
        z, after = _read(blocks, gathered, states, None if reset is None else slots.begin, slots.live, deterministic)
        y, held = self._carry_back(x, z, gathered, before, choice, slots)
        self._sow_choice(blocks, choice, slots, dt)
        clock = jnp.stack([choice.counts[name].astype(jnp.float32) for name in CLOCK], axis=-1)
        past = {"past": x[:, -1]} if "past" in before else {}
        return y, after, {"count": {"clock": clock} | window.pop("count", {}), **held, **past, **window}

    def initial_state(self, batch: Rows) -> State:
        """Returns what is carried before the first step."""
        options, dtype, width = self.config.resample, jnp.dtype(self.config.dtype), self.config.d_model
        state: State = {"count": {"clock": jnp.zeros((batch, len(CLOCK)), jnp.float32)}}
        names = ("held", "gathered", *(("past",) if options.rule == "boundary" else ()))
        state |= {name: jnp.zeros((batch, width), dtype) for name in names}
        if options.gathers:
            state["count"]["dt"] = jnp.zeros((batch, options.window - 1), jnp.float32)
            state["window"] = jnp.zeros((batch, options.window - 1, width), dtype)
        return state

    def _draw_bias(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Array:
        """b with softplus(b) = 1 / rate, so that at the start every rate-th step is read."""
        del key
        return jnp.log(jnp.expm1(jnp.full(shape, 1 / self.config.resample.rate)))

    def _count_places(self, steps: int, reset: Array | None) -> int:
        return self.config.resample.capacity(steps) if reset is None else steps

    def _measure_steps(
        self, x: Array, before: State, begin: Array, valid: Array, nats: Array | None
    ) -> tuple[Array | None, Array | None]:
        """(sizes of the steps, in units of what is passed, probabilities of boundaries), (B, T); None where the rule
        has none.
        """
        options = self.config.resample
        if options.rule == "equal_time":
            raw = project(self.norm(x), self.dt_kernel).astype(jnp.float32) + self.dt_bias[None, None]
            dt = jax.nn.softplus(raw[..., 0])
            return (jnp.minimum(dt, 1) if options.causal else _divide_whole(dt, begin, valid, options.rate)), None
        if options.rule == "information":
            assert nats is not None  # the config names the block that gains them
            return jax.lax.stop_gradient(jnp.minimum(nats * (BITS / options.bits), 1)), None
        if options.rule != "boundary":
            return None, None
        key = project(x, self.key).astype(jnp.float32)
        earlier = jnp.concatenate([before["past"][:, None].astype(x.dtype), x[:, :-1]], axis=1)
        query = jnp.where(begin[..., None], key, project(earlier, self.query).astype(jnp.float32))
        cosine = (_normalise(query) * _normalise(key)).sum(axis=-1)
        return None, jnp.where(begin, 1, jnp.clip((1 - cosine) / 2, 0, 1))

    def _choose(self, before: State, begin: Array, valid: Array, dt: Array | None, chance: Array | None) -> Choice:
        """Which steps are read: those that the rule chooses, while there is room."""
        options = self.config.resample
        counts = dict(zip(CLOCK, jnp.moveaxis(before["count"]["clock"], -1, 0), strict=True))
        unit = options.rate if dt is None else TICKS
        ticks = jnp.ones(valid.shape, jnp.uint32) if dt is None else jnp.round(dt * TICKS).astype(jnp.uint32)
        passed, phase = _pass_multiples(ticks, begin, counts["phase"].astype(jnp.uint32), unit)
        wanted = (begin | (passed if chance is None else chance > 0.5)) & valid
        keep, spent = wanted, counts["spent"]
        if options.rule != "static":
            most = options.rate * (options.spare_steps + 1)
            keep, spent = _ration(wanted, begin, spent, options.rate, most)
        since, after = _count_since(keep, begin, counts["since"])
        begun = jnp.maximum(counts["begun"], valid.any(axis=1))
        after = jnp.minimum(after, options.window)  # which is all that anything asks
        return Choice(
            keep,
            begin,
            wanted & ~keep,
            chance,
            since,
            {"phase": phase, "spent": spent, "begun": begun, "since": after},
        )

    def _gather(
        self, x: Array, before: State, choice: Choice, slots: Slots, dt: Array | None
    ) -> tuple[Array, dict[str, Any]]:
        """(what each step that is read gathers, (B, K, D), what the next call looks back on)."""
        if "window" not in before:
            return jnp.take_along_axis(x, slots.step[..., None], axis=1), {}
        size, rate = self.config.resample.window, self.config.resample.rate
        dt = jnp.full(x.shape[:2], 1 / rate, jnp.float32) if dt is None else dt
        rows = np.arange(size)[None, None]
        inputs = jnp.concatenate([before["window"], x.astype(before["window"].dtype)], axis=1)
        sizes = jnp.concatenate([before["count"]["dt"], dt], axis=1)
        since = jnp.take_along_axis(choice.since, slots.step, axis=1)
        member = rows <= since[..., None]  # (B, K, W), itself first and then back in time
        at = slots.step[..., None] + (size - 1 - rows)
        steps = jnp.where(member, _take_steps(sizes, at), 0)
        apart = jnp.cumsum(steps, axis=-1) - steps  # tau_k - tau_l
        weights = jnp.where((member & (rows > 0))[..., None], _evaluate_bases(apart), 0).astype(x.dtype)
        values = jnp.where(member[..., None], _take_steps(inputs, at), 0)
        parts = jnp.einsum("bkwm,bkwd->bkmd", weights, values) * self.basis[None, None].astype(x.dtype)
        return values[:, :, 0] + parts.sum(axis=2), {
            "window": inputs[:, x.shape[1] :],
            "count": {"dt": sizes[:, x.shape[1] :]},
        }

    def _carry_back(
        self, x: Array, z: Array, gathered: Array, before: State, choice: Choice, slots: Slots
    ) -> tuple[Array, State]:
        """(y of all steps, z and g of the last step that was read)."""
        pair = jnp.concatenate([z, gathered.astype(z.dtype)], axis=-1)
        start = jnp.concatenate([before["held"], before["gathered"]], axis=-1)
        weight = jnp.ones_like(x[..., :1])
        if choice.chance is not None:
            p = jnp.take_along_axis(choice.chance, slots.step, axis=1)[..., None]
            p = jnp.where(slots.live[..., None], p, 0)
            pair, _ = linear_scan(
                jnp.broadcast_to(1 - p, pair.shape), p * pair, start.astype(jnp.float32), reset=slots.begin
            )
            confidence = jnp.where(choice.keep, choice.chance, 1 - choice.chance)[..., None]
            weight += (confidence - jax.lax.stop_gradient(confidence)).astype(x.dtype)
        pair = jnp.concatenate([start[:, None].astype(x.dtype), pair.astype(x.dtype)], axis=1)
        held, g = jnp.split(jnp.take_along_axis(pair, slots.latest[..., None], axis=1), 2, axis=-1)
        return weight * held + (x - weight * g), {"held": held[:, -1], "gathered": g[:, -1]}

    def _sow_choice(self, blocks: Sequence[Block], choice: Choice, slots: Slots, dt: Array | None) -> None:
        """Sows which steps were read into every block, and spreads what blocks sowed of these over all steps."""
        if self.is_initializing() or not self.is_mutable_collection("intermediates"):
            return
        shown = {"keep": choice.keep, "refused": choice.refused, "clock": dt, "chance": choice.chance}
        place = jnp.maximum(slots.latest - 1, 0)[..., None]
        for block in (block for block in blocks if block.mixer is not None):
            for name in OVER_FRAMES:
                if block.mixer.has_variable("intermediates", name):
                    value: Array = block.mixer.get_variable("intermediates", name)[0]
                    value = jnp.where(choice.keep[..., None], jnp.take_along_axis(value, place, axis=1), 0)
                    block.mixer.put_variable("intermediates", name, (value,))
            for name, steps in shown.items():
                if steps is not None:
                    block.mixer.sow("intermediates", name, steps)


def _read(
    blocks: Sequence[Block],
    x: Array,
    states: Sequence[State | None],
    reset: Array | None,
    live: Array,
    deterministic: bool,
) -> tuple[Array, tuple[State, ...]]:
    """(what the blocks make of the K places, their states after the last live one).

    Places without a step are the last, so nothing that is read sees them. But a state after them is not that of the
    last step: it is read a second time, a place at a time, where a place without a step changes nothing. Nobody who
    asks for outputs alone pays for that: it is then no part of the program.
    """
    y, after = x, []
    for block, state in zip(blocks, states, strict=True):
        y, state = block(y, state, reset, live, deterministic)
        after.append(state)
    if blocks[0].is_initializing():
        return y, tuple(after)
    start = tuple(
        block.initial_state(x.shape[0]) if state is None else state for block, state in zip(blocks, states, strict=True)
    )
    if x.shape[1] == 1:
        return y, choose_rows(live[:, 0], tuple(after), start)
    modules = [block.unbind() for block in blocks]

    def step(states: tuple[State, ...], now: tuple[Array, ...]) -> tuple[tuple[State, ...], None]:
        value, begin, is_live = now
        value, after = value[:, None], list[State]()
        for (module, variables), state in zip(modules, states, strict=True):
            params, everywhere = {"params": variables["params"]}, jnp.ones(value.shape[:2], bool)
            answer: Any = module.apply(params, value, state, begin[:, None], everywhere, True)
            value = answer[0]
            after.append(answer[1])
        return choose_rows(is_live, tuple(after), states), None

    begin = jnp.zeros_like(live) if reset is None else reset
    moved = tuple(jnp.moveaxis(values, 1, 0) for values in (x, begin, live))
    return y, jax.lax.scan(step, start, moved)[0]


def _find_begins(begun: Array, steps: int, reset: Array | None) -> Bool[Array, "B T"]:
    """Where a sequence begins: at a reset, and at the first step of all."""
    first = (begun == 0)[:, None] & (np.arange(steps) == 0)[None]
    return first if reset is None else first | reset


def _divide_whole(dt: Array, begin: Array, valid: Array, rate: int) -> Array:
    """Step sizes over their mean over a sequence's share of the places: their sum is ceil(n / rate), n its steps."""
    number = jnp.cumsum(begin, axis=1)

    def share(row: tuple[Array, Array, Array]) -> Array:
        sizes, is_valid, number = row
        nothing = jnp.zeros(sizes.shape[0] + 1, sizes.dtype)
        total = nothing.at[number].add(jnp.where(is_valid, sizes, 0))
        count = nothing.at[number].add(is_valid.astype(sizes.dtype))
        return (jnp.ceil(count / rate) / jnp.where(total > 0, total, 1))[number]

    return dt * jax.vmap(share)((dt, valid, number))


def _pass_multiples(ticks: Array, begin: Array, phase: Array, unit: int) -> tuple[Array, Array]:
    """(where the sum of ticks since the beginning passes a multiple of `unit`, the sum after the last step less
    multiples), in whole numbers, which wrap round.
    """
    total, number = jnp.cumsum(ticks, axis=1, dtype=jnp.uint32), jnp.arange(ticks.shape[1])[None]
    latest = jax.lax.cummax(jnp.where(begin, number, -1), axis=1)
    base = jnp.take_along_axis(total, jnp.maximum(latest, 0), axis=1)
    tau = total - jnp.where(latest < 0, -phase[:, None], base)
    return tau // unit != (tau - ticks) // unit, tau[:, -1] % unit


def _ration(wanted: Array, begin: Array, spent: Array, rate: int, most: int) -> tuple[Array, Array]:
    """(which of the wanted steps are read, what is spent after the last one): a step costs `rate`, 1 is paid back at
    every step, and no more than `most` is ever spent.
    """

    def step(spent: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        is_wanted, begins = now
        spent = jnp.where(begins, 0, jnp.maximum(spent - 1, 0))
        keep = is_wanted & (spent + rate <= most)
        return spent + rate * keep, keep

    last, keep = jax.lax.scan(step, spent, (wanted.T, begin.T), unroll=min(8, wanted.shape[1]))
    return keep.T, last


def _count_since(keep: Array, begin: Array, since: Array) -> tuple[Array, Array]:
    """(unread steps directly before each step of its own sequence, those before the step to come)."""
    number = jnp.arange(keep.shape[1] + 1)[None]
    latest = jax.lax.cummax(jnp.where(keep, number[:, :-1], -1), axis=1)
    before = jnp.pad(latest, ((0, 0), (1, 0)), constant_values=-1)
    count = jnp.where(before < 0, since[:, None].astype(number.dtype) + number, number - before - 1)
    return jnp.where(begin, 0, count[:, :-1]), count[:, -1]


def _place(choice: Choice, places: int) -> Slots:
    """Where the steps that are read stand, in so many places."""
    latest = jnp.cumsum(choice.keep, axis=1)
    at, steps = jnp.where(choice.keep, latest - 1, places), jnp.arange(latest.shape[1])
    step = jax.vmap(lambda row: jnp.zeros(places, jnp.int32).at[row].set(steps, mode="drop"))(at)
    live = jnp.arange(places)[None] < latest[:, -1:]
    return Slots(step, live, live & jnp.take_along_axis(choice.begin, step, axis=1), latest)


def _evaluate_bases(apart: Array) -> Array:
    """exp(-(M apart - m)^2 / 2), m = 0, ..., M - 1, along a new last axis: Gaussians over one unit of tau."""
    centres = jnp.arange(BASES, dtype=apart.dtype).reshape((1,) * apart.ndim + (BASES,))
    return jnp.exp(-jnp.square(BASES * apart[..., None] - centres) / 2)


def _take_steps(values: Array, at: Array) -> Array:
    """Values (B, T, ...) at steps (B, K, W): (B, K, W, ...)."""
    return jax.vmap(lambda row, steps: row[steps])(values, at)


def _normalise(x: Array) -> Array:
    """x over its length; 0 stays 0, with a gradient of 0."""
    square = jnp.square(x).sum(axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.where(square > 0, square, 1))


def _identity(key: PRNGKeyArray, shape: tuple[int, int]) -> Array:
    """The identity, with which cosines are those of the inputs themselves; `key` is unused."""
    del key
    return jnp.eye(*shape)
