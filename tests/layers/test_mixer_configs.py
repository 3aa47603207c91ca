"""The rules of layers: each layer refuses what the config refuses, in its own words, and what a rule lets pass
computes.
"""

import itertools
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.config import Model, SelectiveConfig, Task
from selssm_jax.config.fields import Positive, Spread, list_fields
from selssm_jax.config.mixers import GATES, MIXERS, WITHOUT, Method, Solver
from selssm_jax.errors import InputError
from selssm_jax.layers.convolution import DilatedConv, ShortConv
from selssm_jax.layers.encoders import FrameEncoder
from selssm_jax.layers.gates import Gate
from selssm_jax.layers.mixers import LAYERS
from selssm_jax.layers.output_heads import ClassHead, ForecastHead
from selssm_jax.ops._dense_scan import METHODS as OF_MATRICES
from selssm_jax.ops._kalman_scan import METHODS as OF_FILTERS
from selssm_jax.ops._linear_scan import METHODS
from selssm_jax.ops._newton_scan import SOLVERS
from selssm_jax.ops._selective_scan import METHODS as OF_MAMBA

D = 8
ODD = {
    "d_model": 6,
    "d_state": 5,
    "heads": 3,
    "blocks": 3,
    "groups": 2,
    "expand": 1,
    "d_conv": 1,
    "dt_rank": 3,
    "window": 1,
    "kernel": 1,
    "gate_active": 2,
    "gate_slot_width": 2,
}
FLOATS = {
    "inner_norm_epsilon": (1e-6, -1.0),
    "gate_floor": (2.0, 0.1),
    "gate_bias": (-1.0, 30.0),
    "gate_temperature": (0.5, 0.0),
    "process_noise": (0.3, -1.0),
    "drive_noise": (0.3, -1.0),
    "drive_dropout": (0.3, 1.0),
    "observation_noise": (0.3, float("nan")),
    "norm_epsilon": (1e-6, -1.0),
}
TUPLES = {"dt_limit": ((), (0.01, 0.2), (0.2, 0.01), (0.1,)), "dilations": ((0,), (2,))}
SIZES = {"d_model": D, "d_state": 4, "heads": 2, "blocks": 2}
SHARED = {"d_model": Positive, "d_state": Positive, "norm_epsilon": Spread}


def arguments_of(name):
    """The annotations of a mixer's arguments."""
    return {key: SHARED[key] for key in ("d_model", *MIXERS[name].keys)} | list_fields(MIXERS[name].config)


def values_of(argument, hint):
    """Values of an argument that are tried: possible ones and others, of another type among them."""
    kind, *limits = typing.get_args(hint) if typing.get_origin(hint) is typing.Annotated else (hint,)
    if kind is int:
        return (limits[0].low - 1, 2.5, ODD[argument])
    names = {bool: (True, False), str: tuple(GATES)}.get(kind, typing.get_args(kind))
    return TUPLES.get(argument) or FLOATS.get(argument) or (*names, "none of these")


def pairs_of(name):
    """Every pair of values of two arguments of a mixer, beside sizes that go together."""
    hints = arguments_of(name)
    sizes = {key: value for key, value in SIZES.items() if key in hints}
    for one, other in itertools.combinations(hints, 2):
        for value, another in itertools.product(values_of(one, hints[one]), values_of(other, hints[other])):
            yield sizes | {one: value, other: another}


def layer_refuses(name, arguments):
    keys, width = (
        {key: jax.random.key(0) for key in ("params", "noise", "gates")},
        arguments["d_model"] if arguments["d_model"] in (6, D) else D,
    )
    arguments = {
        {"dilations": "dilation"}.get(key, key): value[0] if key == "dilations" else value
        for key, value in arguments.items()
    }
    try:
        jax.eval_shape(LAYERS[name](**arguments).init, keys, jnp.zeros((1, 3, width)))
    except ValueError as error:
        return str(error)
    return ""


def config_refuses(name, arguments):
    group = list_fields(MIXERS[name].config)
    values = {f"{name}__{key}" if key in group else key: value for key, value in arguments.items()}
    try:
        runs.model(pattern=(name,), **values)
    except InputError as error:
        return str(error)
    return ""


def test_a_table_says_which_gates_jump_and_which_can_be_exactly_0():
    extremes = jnp.array([[-1e4, 1e4]])
    for kind in GATES:
        gate = Gate(2, kind, active=1 if kind == "top_k" else 0)
        variables = gate.init(jax.random.key(0), jnp.zeros((1, 1, 2)))
        found = gate.apply(variables, jnp.zeros((1, 1, 2))).replace(z=extremes).at()
        # those round to 0, and are not
        assert GATES[kind].closes == bool(found.min() == 0) or kind in ("sigmoid", "tanh", "constant", "softmax")
        between = gate.apply(variables, jnp.zeros((1, 1, 2))).replace(z=jnp.array([[-0.5, 0.5]])).at()
        assert GATES[kind].jumps == bool(jnp.isin(between, jnp.array([0.0, 1.0])).all())


def test_methods_and_solvers_are_those_of_the_recurrences():
    assert typing.get_args(Method) == METHODS and typing.get_args(Solver) == SOLVERS
    for name, known in (("dense", OF_MATRICES), ("kalman", OF_FILTERS), ("mamba", OF_MAMBA)):
        assert set(METHODS) - WITHOUT[name][0] == set(known)


@pytest.mark.parametrize("name", sorted(MIXERS))
def test_the_config_refuses_a_layer_where_the_layer_refuses_itself(name):
    """All pairs of values of two arguments by the config, which asks the layer's own rules; a few of them by the
    layer.
    """
    refused: dict[bool, list] = {True: [], False: []}
    for arguments in pairs_of(name):
        refused[bool(config_refuses(name, arguments))].append(arguments)
    rng = np.random.default_rng(0)
    for expected, tried in refused.items():
        for index in rng.choice(len(tried), min(6 if expected else 1, len(tried)), replace=False):
            assert bool(layer_refuses(name, tried[index])) == expected, tried[index]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(MIXERS))
def test_every_pair_of_arguments_is_a_layer_or_refused_by_layer_and_config_alike(name):
    for arguments in pairs_of(name):
        assert bool(layer_refuses(name, arguments)) == bool(config_refuses(name, arguments)), (
            arguments,
            layer_refuses(name, arguments),
        )


@pytest.mark.parametrize(
    ("layer", "inputs", "words"),
    [
        (LAYERS["selective"](D, 4, gate_floor=2.0), 1, "gate_floor=2.0 is out of range: use a value from 0.0 to 0.999"),
        (LAYERS["selective"](D, 4, process_noise=-1.0), 1, "process_noise=-1.0 is out of range"),
        (LAYERS["selective"](D, 4, process_noise=float("nan")), 1, "process_noise=nan is out of range"),
        (LAYERS["selective"](D, 4, certified="no"), 1, "certified='no' is of type str, expected bool"),
        (LAYERS["mamba2"](D, 4, norm_epsilon=-1.0), 1, "norm_epsilon=-1.0 is out of range"),
        (LAYERS["mamba"](D, 4, dt_rank=-1), 1, "dt_rank=-1 is out of range: use at least 0"),
        (LAYERS["gru"](D, 4.0), 1, "d_state=4.0 is of type float, expected int"),
        (LAYERS["attention"](12, heads=4), 1, "d_model / heads=3 is odd"),
        (LAYERS["attention"](D, heads=0), 1, "heads=0 is out of range"),
        (Gate(4, floor=-0.1), 1, "floor=-0.1 is out of range"),
        (Gate(4, bias=99.0), 1, "bias=99.0 is out of range"),
        (ShortConv(0, D), 1, "width=0 is out of range"),
        (DilatedConv(D, 0), 1, "taps=0 is out of range"),
        (FrameEncoder(D, 8, frame=2, stride=3), 1, "stride=3 is larger than frame=2"),
        (ClassHead(3, D, "max"), 3, "pool='max' is not a choice: .*known: last, mean"),
        (ForecastHead(0, 2, D), 3, "horizon=0 is out of range"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_layers_check_what_the_config_checks(layer, inputs, words):
    x = jnp.zeros((1, 2, layer.d_model if hasattr(layer, "d_model") else D))
    more = {1: (), 3: (x, {}) if isinstance(layer, ForecastHead) else ({}, jnp.ones((1, 2), bool))}[inputs]
    with pytest.raises(ValueError, match=words):
        layer.init(jax.random.key(0), x, *more)


def test_rules_reach_every_block():
    """Sizes of blocks were not asked for top-k gates, heads of an RG-LRU and poles of an LRU."""
    task = Task("language", vocab=5)
    for pattern, states, more, words in (
        (
            ("selective",) * 2,
            (8, 2),
            {"selective__gate": "top_k", "selective__gate_active": 4},
            "gate_active=4 is out of range .* of 2 gates",
        ),
        (
            ("rg_lru",) * 2,
            (8, 6),
            {"rg_lru__blocks": 4},
            r"model\.block_states\[1\]=6 is no multiple of model\.rg_lru\.blocks=4",
        ),
        (("lru", "gru", "lru"), (8, 3, 3), {}, r"model\.block_states\[2\]=3 is no multiple of a complex number"),
    ):
        with pytest.raises(InputError, match=words):
            runs.model(pattern=pattern, d_model=D, block_states=states, task=task, **more)
    with pytest.raises(InputError, match=r"model\.d_state=5 is odd.*model\.selective\.transition='diagonal'"):
        Model(("selective",), D, 5, selective=SelectiveConfig(transition="complex"))
    with pytest.raises(InputError, match=r"model\.selective\.method='chunked' is not written for matrices"):
        Model(("selective",), D, 4, selective=SelectiveConfig(transition="dense", method="chunked"))
