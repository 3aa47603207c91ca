"""The mixers that a pattern can name, what each can be set to, and its rules. A layer applies them when it is set up,
the config before JAX is imported.

A mixer's config has a field for each argument of its layer that is not the model's. A name that is given to a rule's
`say` is that of such a field, "d_model" or "d_state"; it returns what the caller calls it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, get_args

from selssm_jax.config.fields import (
    Count,
    OneOf,
    Positive,
    Say,
    Share,
    Spread,
    Taps,
    Within,
    check_arguments,
    check_fields,
    check_multiple,
    to_python,
)
from selssm_jax.errors import InputError

Reads = Literal["none", "elementwise", "dense"]
Update = Literal["retain", "effective"]
Drive = Literal["gated", "normalised"]
Transition = Literal["diagonal", "complex", "dense"]
Decay = Literal["constant", "input"]
Method = Literal["auto", "sequential", "associative", "chunked"]
Solver = Literal["auto", "sequential", "newton"]


class Kind(NamedTuple):
    """What a kind of gate can do: `jumps`, 0 or 1 and nothing between; `closes`, exactly 0, so that a step leaves no
    trace and lets no noise in.
    """

    jumps: bool
    closes: bool


# `layers.gates.register_gate` adds own ones.
GATES: dict[str, Kind] = {
    "sigmoid": Kind(jumps=False, closes=False),
    "tanh": Kind(jumps=False, closes=False),
    "hard_sigmoid": Kind(jumps=False, closes=True),
    "hard_concrete": Kind(jumps=False, closes=True),
    "constant": Kind(jumps=False, closes=False),
    "binary": Kind(jumps=True, closes=True),
    "top_k": Kind(jumps=True, closes=True),
    "softmax": Kind(jumps=False, closes=False),
}
GateName = Annotated[str, OneOf(GATES)]
GateBias = Annotated[float, Within(-20.0, 20.0)]
Temperature = Annotated[float, Within(0.01, 100.0)]
# What draws noise, by the names of the selective mixer's keys and its layer's arguments.
NOISES = ("process_noise", "drive_noise", "drive_dropout", "observation_noise")
# What one kind of gate alone reads: that kind, and the value that others leave it at; by their names of a layer's gate.
GATE_SETTINGS: dict[str, tuple[str, float]] = {
    "active": ("top_k", 0),
    "slot_width": ("softmax", 1),
    "temperature": ("softmax", 1.0),
}
# The methods that a recurrence does not have, and why.
WITHOUT = {
    "dense": ({"chunked"}, "is not written for matrices"),
    "kalman": ({"chunked"}, "is not written for filters"),
    "mamba": ({"associative"}, "would store all states of 'mamba', which has a scan of its own"),
}


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """What a mixer can be set to: a subclass, frozen too, has a field for each key, whose annotation is checked. As it
    stands: nothing.
    """

    def check(self, d_model: int, d_state: int, say: Say) -> None:
        """Raises InputError where fields, each of which is as annotated, do not go together or with the sizes."""

    def arguments(self) -> dict[str, Any]:
        """Returns the fields as arguments of the layer of one block."""
        return {name: getattr(self, name) for name in (field.name for field in dataclasses.fields(self))}


@dataclasses.dataclass(frozen=True)
class SelectiveConfig(MixerConfig):
    """What `layers.SelectiveSSM` can be set to."""

    gate: GateName = "sigmoid"
    gate_active: Count = 0  # top_k: how many components a step updates
    gate_slot_width: Positive = 1  # softmax: how many components of the state, a slot, share a gate
    gate_temperature: Temperature = 1.0  # softmax: low, and a step is written to the slot that matches best
    gate_floor: Share = 0.0  # smallest value that a gate can take
    gate_bias: GateBias = 0.0  # added to the biases that gates start with; positive: more open
    gate_state: Reads = "none"  # what of the state before it a gate reads besides the input
    update: Update = "retain"
    # what B x_t is times: the gate, or sqrt(1 - |A_t|^2), which keeps the variance of a white drive
    drive: Drive = "gated"
    transition: Transition = "diagonal"
    process_noise: Spread = 0.0  # standard deviation of w_t
    observation_noise: Spread = 0.0  # standard deviation of v_t
    output_gate: bool = False  # outputs times silu(W_z x_t)
    certified: bool = False  # contraction by construction: needs a gate_floor, and caps how gates read the state
    method: Method = "auto"
    solver: Solver = "auto"  # of the recurrence where gates read the state
    # standard deviation of what each component of B x_t is times, beside 1: noise that grows with what is written
    drive_noise: Spread = 0.0
    drive_dropout: Share = 0.0  # share of the components of B x_t that a step loses; the others are scaled up

    def check(self, d_model: int, d_state: int, say: Say) -> None:
        """Raises InputError for sizes that poles or gates do not fit, a method that is lacking, and gates that no
        certificate is for.
        """
        if self.transition == "complex" and d_state % 2:
            raise InputError(
                f"{say('d_state')}={d_state} is odd, but complex poles come in conjugate pairs: use even sizes, or "
                f"{say('transition')}='diagonal'"
            )
        _check_method(self.transition, self.method, say("method"))
        settings = {name: getattr(self, f"gate_{name}") for name in GATE_SETTINGS} | {"bias": self.gate_bias}
        features = d_state // 2 if self.transition == "complex" else d_state
        check_gate(self.gate, features, settings, lambda key: say(key if key == "gate" else f"gate_{key}"))
        if self.drive == "normalised":
            self._check_normalised(say)
        if self.gate_state != "none":
            self._check_state_gates(say)
        if self.certified and self.update == "retain" and not self.gate_floor > 0:
            raise InputError(
                f"{say('certified')}=True needs gates that stay open a little, found "
                f"{say('gate_floor')}={self.gate_floor}: use for example 0.01"
            )

    def _check_normalised(self, say: Say) -> None:
        scaled = f"{say('drive')}='normalised' scales the drive by sqrt(1 - |A_t|^2)"
        if self.transition == "dense":
            raise InputError(
                f"{scaled}, one number a component, found {say('transition')}='dense': use 'diagonal' or 'complex'"
            )
        if self.gate_state != "none":
            raise InputError(
                f"{scaled}, which no certificate knows where the state moves the gates, found "
                f"{say('gate_state')}={self.gate_state!r}: use {say('gate_state')}='none', or {say('drive')}='gated'"
            )

    def _check_state_gates(self, say: Say) -> None:
        reads = f"{say('gate_state')}={self.gate_state!r}"
        if self.method not in ("auto", "sequential"):
            raise InputError(
                f"{say('method')}={self.method!r} needs gates of the input alone and a linear recurrence, but {reads} "
                f"makes them read the state: use {say('method')}='auto', and {say('solver')}='newton' to run in "
                "parallel"
            )
        if self.transition == "complex":
            raise InputError(
                f"{reads} reads real states, found {say('transition')}='complex': use 'diagonal' or 'dense', or "
                f"{say('gate_state')}='none'"
            )
        if self.certified and GATES[self.gate].jumps:
            raise InputError(
                f"{say('certified')}=True with {reads} needs gates of bounded slope, found "
                f"{say('gate')}={self.gate!r}, which jumps: use {say('gate_state')}='none', or a gate such as "
                "'hard_sigmoid'"
            )
        for noise in ("process_noise", "drive_noise"):
            if self.certified and getattr(self, noise):
                raise InputError(
                    f"{say('certified')}=True with {reads} bounds what moves the state, found "
                    f"{say(noise)}={getattr(self, noise)}, a Gaussian without bound: use {noise}=0 or "
                    "gate_state='none'"
                )


def check_gate(kind: str, features: int, settings: Mapping[str, float], say: Say) -> None:
    """Raises InputError where settings of a gate are read by another kind, or do not fit its number of components."""
    for name, (reader, idle) in GATE_SETTINGS.items():
        if kind != reader and settings[name] != idle:
            last, choice = (say(key).rpartition(".")[2] for key in (name, "gate"))
            raise InputError(
                f"{say(name)}={settings[name]} is read by {say('gate')}={reader!r} alone, found {say('gate')}="
                f"{kind!r}: use {last}={idle}, or {choice}={reader!r}"
            )
    if kind == "top_k" and not 1 <= settings["active"] <= features:
        raise InputError(
            f"{say('active')}={settings['active']} is out of range for {say('gate')}='top_k' of {features} gates: use "
            f"a number from 1 to {features}"
        )
    if kind == "softmax":
        if features % settings["slot_width"]:
            raise InputError(
                f"{say('slot_width')}={settings['slot_width']} does not divide the {features} components of the state "
                "into slots: use a divisor of it, for example 1"
            )
        if settings["bias"]:
            raise InputError(
                f"{say('bias')}={settings['bias']} would be added to all logits of a step, which {say('gate')}="
                "'softmax' does not see: use 0, and a floor to open gates"
            )


@dataclasses.dataclass(frozen=True)
class KalmanConfig(MixerConfig):
    """What `layers.KalmanSSM` can be set to."""

    gate_bias: GateBias = 0.0  # added to the log precisions that readings start with; positive: gates more open
    decay: Decay = "constant"  # of what is held, from step to step; "input": the input decides it
    method: Method = "auto"
    sampled: bool = False  # the state is a sample of what is believed, not its mean: it holds so many nats, not more

    def check(self, d_model: int, d_state: int, say: Say) -> None:
        """Raises InputError for a method that the filter has not."""
        _check_method("kalman", self.method, say("method"))


@dataclasses.dataclass(frozen=True)
class KalmanAttentionConfig(MixerConfig):
    """What `layers.KalmanAttention` can be set to."""

    heads: Positive = 4
    expand: Positive = 1  # width of all values over d_model
    d_conv: Taps = 4  # width of its own short convolutions
    gate_bias: GateBias = 0.0  # added to the log precisions that readings start with; positive: gates more open
    decay: Decay = "constant"  # of what is held, from step to step; "input": the input decides it
    method: Method = "auto"

    def check(self, d_model: int, d_state: int, say: Say) -> None:
        """Raises InputError where heads are not of one size, and for a method that the filter has not."""
        values = f"{say('expand')} * {say('d_model')}"
        check_multiple(values, self.expand * d_model, say("heads"), self.heads, "kalman_attention")
        _check_method("kalman", self.method, say("method"))


@dataclasses.dataclass(frozen=True)
class PolesConfig(MixerConfig):
    """`layers.S4D`, `S5` and `LRU`, whose state is one of each conjugate pair, have nothing to set."""

    def check(self, d_model: int, d_state: int, say: Say) -> None:
        """Raises InputError for an odd d_state."""
        check_multiple(say("d_state"), d_state, "a complex number, size", 2, "s4d and s5 and lru")


@dataclasses.dataclass(frozen=True)
class RGLRUConfig(MixerConfig):
    """What `layers.RGLRU` can be set to."""

    blocks: Positive = 4  # on the diagonal of its gates' maps
    d_conv: Taps = 4  # width of its convolution

    def check(self, d_model: int, d_state: int, say: Say) -> None:
        """Raises InputError where blocks are not of one size."""
        check_multiple(say("d_state"), d_state, say("blocks"), self.blocks, "rg_lru")


@dataclasses.dataclass(frozen=True)
class MambaConfig(MixerConfig):
    """What `layers.Mamba` can be set to, and `layers.FalconMamba`, which it is with norms of its own."""

    expand: Positive = 2  # inner width over d_model
    dt_rank: Count = 0  # rank of the map to step sizes; 0: d_model / 16, rounded up
    d_conv: Taps = 4  # width of its own short convolution
    projection_bias: bool = False  # biases of its maps in and out
    conv_bias: bool = True  # of its own short convolution
    # added to the mean squares of three norms more, of dt, B and C, as Falcon Mamba has them; 0: no such norms
    inner_norm_epsilon: Spread = 0.0
    method: Method = "auto"

    def check(self, d_model: int, d_state: int, say: Say) -> None:
        """Raises InputError for a method that its scan has not."""
        _check_method("mamba", self.method, say("method"))


@dataclasses.dataclass(frozen=True)
class Mamba2Config(MixerConfig):
    """What `layers.Mamba2` can be set to."""

    heads: Positive = 4
    groups: Positive = 1  # heads // groups of them share their B and C
    expand: Positive = 2  # inner width over d_model
    d_conv: Taps = 4  # width of its own short convolutions
    projection_bias: bool = False  # biases of its maps in and out
    conv_bias: bool = True  # of its own short convolutions
    dt_limit: tuple[float, ...] = ()  # the smallest and the largest step size; empty: any

    def check(self, d_model: int, d_state: int, say: Say) -> None:
        """Raises InputError where heads or groups are not of one size, and for a limit that is no range."""
        check_multiple(f"{say('expand')} * {say('d_model')}", self.expand * d_model, say("heads"), self.heads, "mamba2")
        check_multiple(say("heads"), self.heads, say("groups"), self.groups, "mamba2")
        limit = self.dt_limit
        if limit and not (len(limit) == 2 and 0 <= limit[0] < limit[1]):
            raise InputError(
                f"{say('dt_limit')}={limit} is no range: give the smallest and the largest step size, for example "
                "(0.001, 0.1), or () for any"
            )


@dataclasses.dataclass(frozen=True)
class AttentionConfig(MixerConfig):
    """What `layers.Attention` can be set to."""

    heads: Positive = 4
    window: Positive = 1024  # the steps that it looks back on, itself among them

    def check(self, d_model: int, d_state: int, say: Say) -> None:
        """Raises InputError where heads are not of one even size."""
        check_multiple(say("d_model"), d_model, say("heads"), self.heads, "attention and local_attention")
        width = d_model // self.heads
        if width % 2:
            raise InputError(
                f"{say('d_model')} / {say('heads')}={width} is odd, but rotary positions turn pairs: use an even width "
                "of a head"
            )


@dataclasses.dataclass(frozen=True)
class LocalAttentionConfig(AttentionConfig):
    """The same, of a shorter window."""

    window: Positive = 128


@dataclasses.dataclass(frozen=True)
class TCNConfig(MixerConfig):
    """What `layers.TCN` can be set to, and how far apart the taps of each are."""

    kernel: Taps = 3  # taps of a convolution
    dilations: tuple[int, ...] = ()  # steps between taps, one for each tcn block of the pattern; empty: 1, 2, 4, ...

    def arguments(self) -> dict[str, Any]:
        """Returns the arguments of a block's layer, whose `dilations` is one."""
        return {"kernel": self.kernel, "dilation": self.dilations[0] if self.dilations else 1}

    def of_blocks(self, count: int, say: Say) -> "list[TCNConfig]":
        """Returns what each of `count` blocks is set to. Raises InputError where dilations are not one a block."""
        steps = self.dilations or tuple(2**index for index in range(count))
        if len(steps) != count and count:
            raise InputError(
                f"{say('dilations')}={steps} has {len(steps)} numbers for {count} tcn blocks of model.pattern: give "
                "one a block, or () for 1, 2, 4, ..."
            )
        if any(step < 1 for step in steps):
            raise InputError(f"{say('dilations')}={steps} is out of range: use at least 1 step between taps")
        return [dataclasses.replace(self, dilations=(step,)) for step in steps]


class Mixer(NamedTuple):
    """What a mixer can be set to, which keys of the model are its arguments too, whether it sows gates, its own
    parameters that weight decay spares, whether it waits for the state of each step, so that devices cannot share a
    sequence, and whether it sows the nats that its gates gain.
    """

    config: type[MixerConfig] = MixerConfig
    keys: tuple[str, ...] = ("d_state",)
    gated: bool = False
    undecayed: tuple[str, ...] = ()
    waits: bool = False
    gains: bool = False


# Those that have something to set have a field of `Model`; `layers.mixers.LAYERS` has the layers, and enters own ones
# here.
MIXERS: dict[str, Mixer] = {
    "selective": Mixer(SelectiveConfig, gated=True),
    "kalman": Mixer(KalmanConfig, gated=True, gains=True),
    "kalman_attention": Mixer(KalmanAttentionConfig, ("d_state", "norm_epsilon"), gated=True, gains=True),
    "s4d": Mixer(PolesConfig),
    "s5": Mixer(PolesConfig),
    "lru": Mixer(PolesConfig),
    "rg_lru": Mixer(RGLRUConfig, gated=True),
    "mamba": Mixer(MambaConfig, gated=True),
    "mamba2": Mixer(Mamba2Config, ("d_state", "norm_epsilon"), gated=True),
    "min_gru": Mixer(gated=True),
    "rnn": Mixer(waits=True),
    "lstm": Mixer(gated=True, waits=True),
    "gru": Mixer(gated=True, waits=True),
    "attention": Mixer(AttentionConfig, ()),
    "local_attention": Mixer(LocalAttentionConfig, ()),
    "tcn": Mixer(TCNConfig, ()),
}
BUILT_IN = frozenset(MIXERS)
NONE = "none"  # in a pattern: a block without a mixer
_SIZES = {"d_model": Positive, "d_state": Positive, "norm_epsilon": Spread}  # of the model, and arguments of layers


def list_noises(mixer: MixerConfig) -> list[str]:
    """Returns the keys by which a mixer is set to draw noise at every step."""
    return [key for key in (*NOISES, "sampled") if getattr(mixer, key, False)]


def list_gated() -> tuple[str, ...]:
    """Returns the mixers that sow their gates."""
    return tuple(name for name, mixer in MIXERS.items() if mixer.gated)


def list_undecayed() -> frozenset[str]:
    """Returns the names of parameters that own mixers ask weight decay to spare."""
    return frozenset(name for mixer in MIXERS.values() for name in mixer.undecayed)


def check_layer(kind: type[MixerConfig], layer: Any) -> None:
    """Raises InputError where a layer's own arguments are not what the config of its mixer can be."""
    check_arguments(layer, {name: hint for name, hint in _SIZES.items() if hasattr(layer, name)})
    config = kind(
        **{field.name: to_python(getattr(layer, field.name, field.default)) for field in dataclasses.fields(kind)}
    )
    check_fields(config, str)
    config.check(int(layer.d_model), int(getattr(layer, "d_state", 0)), str)


def _check_method(of: str, method: str, name: str) -> None:
    lacking, reason = WITHOUT.get(of, (set(), ""))
    if method in lacking:
        left = [repr(known) for known in get_args(Method) if known not in lacking]
        raise InputError(f"{name}={method!r} {reason}: use {', '.join(left[:-1])} or {left[-1]}")
