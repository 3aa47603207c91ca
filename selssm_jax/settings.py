"""What the settings of a layer must be, each rule once: a layer raises it when it is set up, the config before JAX is imported, so this file knows none.

A rule reads a layer's own arguments. `Say` turns the name of one into what the caller calls it: "gate_floor" for a layer, "model.gate_floor" for the config.
"""

import numbers
import sys
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, get_args

from selssm_jax.errors import suggest

Say = Callable[[str], str]
Reads = Literal["none", "elementwise", "dense"]
Update = Literal["retain", "effective"]
Transition = Literal["diagonal", "complex", "dense"]
Method = Literal["auto", "sequential", "associative", "chunked"]
Solver = Literal["auto", "sequential", "newton"]
Rule = Literal["zoh", "bilinear"]
Pool = Literal["mean", "last"]


class Kind(NamedTuple):
    """What a kind of gate can do: `jumps`, 0 or 1 and nothing between; `closes`, exactly 0, so that a step leaves no trace and lets no noise in."""

    jumps: bool
    closes: bool


GATES: dict[str, Kind] = {
    "sigmoid": Kind(jumps=False, closes=False),
    "tanh": Kind(jumps=False, closes=False),
    "hard_sigmoid": Kind(jumps=False, closes=True),
    "hard_concrete": Kind(jumps=False, closes=True),
    "constant": Kind(jumps=False, closes=False),
    "binary": Kind(jumps=True, closes=True),
    "top_k": Kind(jumps=True, closes=True),
}


class TaskRule(NamedTuple):
    """What the config knows of a kind of task: keys that not every kind reads, and whether all is read before an answer, so that mixers may run backwards."""

    keys: tuple[str, ...] = ()
    whole: bool = False


_FRAMES = ("model.frame", "model.stride", "model.filterbank")
_SERIES = ("head_steps", "linear_skip", "normalize", "normalize_scale", "channels_apart")
TASKS: dict[str, TaskRule] = {
    "language": TaskRule(("model.tie_embeddings",)),
    "classification": TaskRule(("model.pool", *_FRAMES), whole=True),
    "forecasting": TaskRule(("data.horizon", "training.forecast_loss", *(f"model.{key}" for key in _SERIES), *_FRAMES)),
}
# The least value of whole numbers, the range of others, and what may be chosen, by the argument's name.
LEAST: dict[str, int] = {
    **dict.fromkeys(("d_model", "d_state", "expand", "d_conv", "heads", "groups", "window", "kernel", "dilation"), 1),
    **dict.fromkeys(("gate_active", "dt_rank"), 0),
}
MOST_BLOCKS = 10_000  # of a model: each is compiled
MOST: dict[str, int] = dict.fromkeys(("kernel", "d_conv"), 4096)  # taps, which are written out one by one: more would take a day to compile
RANGES: dict[str, tuple[float, float]] = {
    "gate_floor": (0.0, 0.999),
    "gate_bias": (-20.0, 20.0),
    **dict.fromkeys(("process_noise", "observation_noise", "norm_epsilon", "inner_norm_epsilon"), (0.0, 1e38)),  # of float32
}
CHOICES: dict[str, Any] = {
    "gate": GATES,
    "gate_state": Reads,
    "update": Update,
    "transition": Transition,
    "method": Method,
    "solver": Solver,
    **dict.fromkeys(("certified", "projection_bias", "conv_bias"), Literal[True, False]),
}
# The methods that a recurrence does not have, and why.
WITHOUT = {
    "dense": ({"chunked"}, "is not written for matrices"),
    "mamba": ({"associative"}, "would store all states of 'mamba', which has a scan of its own"),
}


def whole(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises ValueError where the value is no whole number of at least `least`, and at most `most`."""
    if type(value) is bool or not isinstance(value, numbers.Integral):
        raise ValueError(f"{name}={value!r} is of type {type(value).__name__}, expected int")
    if value < least:
        raise ValueError(f"{name}={value} is out of range: use at least {least}")
    if most is not None and int(value) > most:
        raise ValueError(f"{name}={value} is out of range: use at most {most}")


def within(name: str, value: Any, low: float, high: float) -> None:
    """Raises ValueError where the value is no finite number from `low` to `high`."""
    if type(value) is bool or not isinstance(value, numbers.Real):
        raise ValueError(f"{name}={value!r} is of type {type(value).__name__}, expected float")
    if value < low or not value <= min(high, sys.float_info.max):  # no NaN, and no whole number that is larger than any float
        raise ValueError(f"{name}={value} is out of range: use a value from {low} to {high}")


def choice(name: str, value: Any, kind: Any) -> None:
    """Raises ValueError where the value is none of a Literal's, or of a table's names."""
    if isinstance(kind, Mapping):
        if not isinstance(value, str) or value not in kind:
            raise ValueError(f"{name}={value!r} is unknown: {suggest(str(value), kind)}")
    elif value not in get_args(kind):
        raise ValueError(f"{name}={value!r} is unknown: use one of {', '.join(map(str, get_args(kind)))}")


def multiple(name: str, size: int, divisor: str, part: int, who: str) -> None:
    """Raises ValueError where `size`, called `name`, is no multiple of `part`, called `divisor`; `who` are the layers that need it."""
    if size % part:
        raise ValueError(f"{name}={size} is no multiple of {divisor}={part}, which {who} need: change one of them")


def ranges(arguments: Mapping[str, Any], say: Say) -> None:
    """Raises ValueError where an argument is out of the range that it has by itself, whatever the others are."""
    for name, value in arguments.items():
        if name in LEAST:
            whole(say(name), value, LEAST[name], MOST.get(name))
        if name in RANGES:
            within(say(name), value, *RANGES[name])
        if name in CHOICES:
            choice(say(name), value, CHOICES[name])


def gate(arguments: Mapping[str, Any], say: Say) -> None:
    """The rule of gates of `features` components, by the names that arguments have in `SelectiveSSM`."""
    kind, active, features = arguments["gate"], arguments["gate_active"], arguments["features"]
    if kind == "top_k" and not 1 <= active <= features:
        raise ValueError(f"{say('gate_active')}={active} is out of range for {say('gate')}='top_k' of {features} gates: use a number from 1 to {features}")
    if kind != "top_k" and active:
        raise ValueError(
            f"{say('gate_active')}={active} is read by {say('gate')}='top_k' alone, found {say('gate')}={kind!r}: use {_last(say('gate_active'))}=0"
        )


def selective(arguments: Mapping[str, Any], say: Say) -> None:
    """The rules of `selective.SelectiveSSM`."""
    transition, d_state = arguments["transition"], arguments["d_state"]
    if transition == "complex" and d_state % 2:
        raise ValueError(f"{say('d_state')}={d_state} is odd, but complex poles come in conjugate pairs: use even sizes, or {say('transition')}='diagonal'")
    _method(transition, arguments["method"], say)
    gate({**arguments, "features": d_state // 2 if transition == "complex" else d_state}, say)
    if arguments["gate_state"] != "none":
        _reading_state(arguments, say)
    if arguments["certified"] and arguments["update"] == "retain" and not arguments["gate_floor"] > 0:
        raise ValueError(
            f"{say('certified')}=True needs gates that stay open a little, found {say('gate_floor')}={arguments['gate_floor']}: use for example 0.01"
        )


def _reading_state(arguments: Mapping[str, Any], say: Say) -> None:
    reads = f"{say('gate_state')}={arguments['gate_state']!r}"
    if arguments["method"] not in ("auto", "sequential"):
        raise ValueError(
            f"{say('method')}={arguments['method']!r} needs gates of the input alone and a linear recurrence, but {reads} makes them read the state: "
            f"use {say('method')}='auto', and {say('solver')}='newton' to run in parallel"
        )
    if arguments["transition"] == "complex":
        raise ValueError(f"{reads} reads real states, found {say('transition')}='complex': use 'diagonal' or 'dense', or {say('gate_state')}='none'")
    if arguments["certified"] and GATES[arguments["gate"]].jumps:
        raise ValueError(
            f"{say('certified')}=True with {reads} needs gates of bounded slope, found {say('gate')}={arguments['gate']!r}, which jumps: "
            f"use {say('gate_state')}='none', or a gate such as 'hard_sigmoid'"
        )
    if arguments["certified"] and arguments["process_noise"]:
        raise ValueError(
            f"{say('certified')}=True with {reads} bounds what moves the state, found {say('process_noise')}={arguments['process_noise']}, "
            f"a Gaussian without bound: use {_last(say('process_noise'))}=0 or {_last(say('gate_state'))}='none'"
        )


def poles(arguments: Mapping[str, Any], say: Say) -> None:
    """The rule of `linear.S4D`, `S5` and `LRU`, whose state is one of each conjugate pair."""
    multiple(say("d_state"), arguments["d_state"], "a complex number, size", 2, "s4d and s5 and lru")


def sizes(arguments: Mapping[str, Any], say: Say) -> None:
    """The rule of layers whose arguments have no more to do with one another: none."""


def mamba(arguments: Mapping[str, Any], say: Say) -> None:
    """The rule of `mamba.Mamba`."""
    _method("mamba", arguments["method"], say)


def mamba2(arguments: Mapping[str, Any], say: Say) -> None:
    """The rules of `mamba.Mamba2`."""
    inner, heads = arguments["expand"] * arguments["d_model"], arguments["heads"]
    multiple(f"{say('expand')} * {say('d_model')}", inner, say("heads"), heads, "mamba2")
    multiple(say("heads"), heads, say("groups"), arguments["groups"], "mamba2")
    limit = arguments["dt_limit"]
    if limit and not (len(limit) == 2 and 0 <= limit[0] < limit[1]):
        raise ValueError(f"{say('dt_limit')}={limit} is no range: give the smallest and the largest step size, for example (0.001, 0.1), or () for any")


def rg_lru(arguments: Mapping[str, Any], say: Say) -> None:
    """The rule of `rg_lru.RGLRU`."""
    multiple(say("d_state"), arguments["d_state"], say("heads"), arguments["heads"], "rg_lru")


def attention(arguments: Mapping[str, Any], say: Say) -> None:
    """The rules of `attention.Attention`."""
    multiple(say("d_model"), arguments["d_model"], say("heads"), arguments["heads"], "attention and local_attention")
    width = arguments["d_model"] // arguments["heads"]
    if width % 2:
        raise ValueError(f"{say('d_model')} / {say('heads')}={width} is odd, but rotary positions turn pairs: use an even width of a head")


def frames(frame: int, stride: int, say: Say) -> None:
    """The rules of `encoders.FrameEncoder`."""
    whole(say("frame"), frame, 1)
    whole(say("stride"), stride, 1)
    if stride > frame:
        raise ValueError(f"{say('stride')}={stride} is larger than {say('frame')}={frame}: samples in between would be dropped; use stride <= frame")


def _same(*names: str, **others: str) -> dict[str, str]:
    return {name: name for name in ("d_model", *names)} | others


class Mixer(NamedTuple):
    """A mixer's rule, which key of the config each of its arguments is, whether it sows gates, and its own parameters that weight decay spares."""

    rule: Callable[[Mapping[str, Any], Say], None]
    keys: dict[str, str]
    gated: bool = False
    undecayed: tuple[str, ...] = ()


_GATES = ("gate", "gate_floor", "gate_active", "gate_bias", "gate_state")
_BIASES = ("projection_bias", "conv_bias")
MIXERS: dict[str, Mixer] = {
    "selective": Mixer(
        selective, _same("d_state", *_GATES, "update", "transition", "process_noise", "observation_noise", "certified", "solver", method="scan"), gated=True
    ),
    "s4d": Mixer(poles, _same("d_state")),
    "s5": Mixer(poles, _same("d_state")),
    "lru": Mixer(poles, _same("d_state")),
    "rg_lru": Mixer(rg_lru, _same("d_state", "heads", "d_conv"), gated=True),
    "mamba": Mixer(mamba, _same("d_state", "expand", "dt_rank", "d_conv", *_BIASES, "inner_norm_epsilon", method="scan"), gated=True),
    "mamba2": Mixer(mamba2, _same("d_state", "heads", "groups", "expand", "d_conv", "norm_epsilon", *_BIASES, "dt_limit"), gated=True),
    "min_gru": Mixer(sizes, _same("d_state"), gated=True),
    "rnn": Mixer(sizes, _same("d_state")),
    "lstm": Mixer(sizes, _same("d_state"), gated=True),
    "gru": Mixer(sizes, _same("d_state"), gated=True),
    "attention": Mixer(attention, _same("heads", window="context")),
    "local_attention": Mixer(attention, _same("heads", "window")),
    "tcn": Mixer(sizes, _same("kernel", dilation="dilations")),
}


def list_gated() -> tuple[str, ...]:
    """Returns the mixers that sow their gates."""
    return tuple(name for name, mixer in MIXERS.items() if mixer.gated)


def list_undecayed() -> frozenset[str]:
    """Returns the names of parameters that own mixers ask weight decay to spare."""
    return frozenset(name for mixer in MIXERS.values() for name in mixer.undecayed)


def check(name: str, layer: Any) -> None:
    """Raises ValueError where a layer's own arguments break a rule of the mixer that it is."""
    check_arguments(name, {argument: getattr(layer, argument) for argument in MIXERS[name].keys if hasattr(layer, argument)}, str)


def check_arguments(name: str, arguments: Mapping[str, Any], say: Say) -> None:
    """Raises ValueError where arguments of a mixer break its rule, or are out of their ranges."""
    ranges(arguments, say)
    MIXERS[name].rule(arguments, say)


def readers(key: str) -> tuple[str, ...]:
    """Returns the mixers that read a key of the model's config; none where it is not of mixers."""
    return tuple(name for name, mixer in MIXERS.items() if key in mixer.keys.values())


def _method(of: str, method: str, say: Say) -> None:
    lacking, reason = WITHOUT.get(of, (set(), ""))
    if method in lacking:
        left = [repr(known) for known in get_args(Method) if known not in lacking]
        raise ValueError(f"{say('method')}={method!r} {reason}: use {', '.join(left[:-1])} or {left[-1]}")


def _last(name: str) -> str:
    """A setting's name without its group."""
    return name.rpartition(".")[2]
