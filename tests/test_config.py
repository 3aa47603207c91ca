"""Every validator of the configuration fires and names the key and the fix; every configuration file loads."""

import ast
import dataclasses
import functools
import importlib.util
import json
import math
import pathlib
import re
import sys
from typing import Any

import ml_collections
import pytest
from absl import flags
from ml_collections import config_flags

from selssm_jax.config import Data, Experiment, Model, Optimizer, Task, TCNConfig, Training
from selssm_jax.config.fields import Least, Within, list_fields
from selssm_jax.errors import InputError

FOLDER = pathlib.Path(__file__).parent.parent / "configs"
CONFIGS = sorted(FOLDER.rglob("*.py"))


def build(**overrides: Any) -> Experiment:
    """Returns the default experiment after overrides such as `data__batch_size=0`, through the command line's door."""
    values = Experiment().to_config_dict().to_dict()
    for path, value in overrides.items():
        *groups, key = path.split("__")
        target = values
        for group in groups:
            target = target[group]
        target[key] = value
    return Experiment.from_config_dict(ml_collections.ConfigDict(values))


def load(path: pathlib.Path) -> ml_collections.ConfigDict:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


NOISY = {"training__information_weight": 0.1, "model__selective__process_noise": 0.3}
WRONG = [
    # Unknown names: the nearest known one is suggested.
    ({"data__batch_sise": 8}, r"config\.data has no key 'batch_sise': did you mean 'batch_size'\?"),
    ({"steps": 8}, r"config has no key 'steps'.*known: compress, data, explain, measure, model"),
    ({"data__source": "etth2"}, r"data\.source='etth2' is not a choice: did you mean 'etth1'\?"),
    ({"model__selective__gate": "sigmiod"}, r"model\.selective\.gate='sigmiod'.*did you mean 'sigmoid'\?"),
    ({"model__pattern": ("selectve",)}, r"mixer 'selectve': did you mean 'selective'\?"),
    ({"model__norm": "layer"}, r"model\.norm='layer' is not a choice: .*known: none, rms"),
    ({"compress__steps": -1}, r"compress\.steps=-1 is out of range"),
    ({"compress__seed": -1}, r"compress\.seed=-1 is out of range"),
    ({"compress__calibration": 0}, r"compress\.calibration=0 is out of range"),
    ({"compress__most_bits": 9}, r"compress\.most_bits=9 is out of range: use a value from 1 to 8"),
    ({"compress__within": 2.0}, r"compress\.within=2.0 is out of range"),
    ({"compress__factor": -1.0}, r"compress\.factor=-1.0 is out of range"),
    ({"compress__factor": 0.5}, "would enlarge the memory"),
    ({"compress__peak_rate": -1.0}, r"compress\.peak_rate=-1.0 is out of range"),
    ({"compress__remove": "heads"}, r"compress\.remove='heads' is not a choice: .*known: .*blocks.*mlps"),
    ({"compress__removed": 1.0}, r"compress\.removed=1.0 is out of range: use a value from 0\.0 to 0\.999"),
    ({"compress__remove_by": "gate"}, r"compress\.remove_by='gate' is not a choice"),
    (
        {"compress__remove": "mlps", "compress__remove_by": "memory"},
        r"compress\.remove_by='memory' weighs what mixers hold, found compress\.remove='mlps'.*use 'information'",
    ),
    (
        {"compress__packed": False},
        r"compress\.remove='none', which removes nothing: name what .*compress\.remove='blocks'",
    ),
    ({"model__mamba__expand": 0}, r"model\.mamba\.expand=0 is out of range"),
    ({"model__mamba__dt_rank": -1}, r"model\.mamba\.dt_rank=-1 is out of range"),
    ({"model__rg_lru__d_conv": 0}, r"model\.rg_lru\.d_conv=0 is out of range"),
    ({"model__mamba2__heads": 0}, r"model\.mamba2\.heads=0 is out of range"),
    ({"model__mamba2__groups": 0}, r"model\.mamba2\.groups=0 is out of range"),
    ({"model__attention__window": 0}, r"model\.attention\.window=0 is out of range"),
    ({"model__local_attention__window": 0}, r"model\.local_attention\.window=0 is out of range"),
    ({"model__tcn__kernel": 0}, r"model\.tcn\.kernel=0 is out of range"),
    ({"model__norm_epsilon": -1.0}, r"model\.norm_epsilon=-1\.0 is out of range"),
    (
        {"model__pattern": ("attention",), "model__attention__heads": 3},
        r"model\.d_model=\d+ is no multiple of model\.attention\.heads=3, which attention and local_attention need",
    ),
    (
        {"model__pattern": ("attention",), "model__d_model": 12, "model__attention__heads": 4},
        "is odd, but rotary positions turn pairs",
    ),
    (
        {"model__pattern": ("mamba2",), "model__mamba2__heads": 5},
        r"model\.mamba2\.expand \* model\.d_model=\d+ is no multiple of model\.mamba2\.heads=5",
    ),
    (
        {"model__pattern": ("mamba2",), "model__mamba2__heads": 4, "model__mamba2__groups": 3},
        r"model\.mamba2\.heads=4 is no multiple of model\.mamba2\.groups=3",
    ),
    (
        {"model__pattern": ("rg_lru",), "model__rg_lru__blocks": 3, "model__d_state": 8},
        r"model\.d_state=8 is no multiple of model\.rg_lru\.blocks=3",
    ),
    ({"model__pattern": ("lru",), "model__d_state": 7}, r"model\.d_state=7 is no multiple of a complex number, size=2"),
    (
        {"model__pattern": ("mamba",), "model__mamba__method": "associative"},
        r"model\.mamba\.method='associative' would store all states of 'mamba'",
    ),
    ({"model__pattern": ("tcn", "tcn"), "model__tcn__dilations": (1,)}, r"has 1 numbers for 2 tcn blocks"),
    ({"model__mamba__inner_norm_epsilon": -1.0}, r"model\.mamba\.inner_norm_epsilon=-1\.0 is out of range"),
    (
        {"model__pattern": ("mamba2",), "model__mamba2__dt_limit": (0.2, 0.1)},
        r"model\.mamba2\.dt_limit=\(0\.2, 0\.1\) is no range",
    ),
    ({"model__selective__gate_active": -1}, r"model\.selective\.gate_active=-1 is out of range: use at least 0"),
    ({"model__pattern": ("tcn",), "model__tcn__dilations": (0,)}, "at least 1 step between taps"),
    (
        {"model__pattern": ("gru",), "model__selective__process_noise": 0.1},
        r"model\.selective\.process_noise is read by the mixer 'selective' alone",
    ),
    (
        {"model__pattern": ("lru",), "training__gate_l1": 0.1},
        r"weigh gates, and no mixer of model\.pattern=\('lru',\) has any",
    ),
    ({"training__gate_l0": 0.1, "model__pattern": ("kalman",)}, r"gate_l0=0.1 weighs gates of 'selective' blocks"),
    (
        {"training__information_weight": 0.1, "model__pattern": ("kalman",), "training__information_bound": "capacity"},
        r"information_bound='capacity' is of the noisy memory.*leave it at 'vib'",
    ),
    (NOISY | {"model__pattern": ("selective", "gru")}, "prices the noisy memory of 'selective' blocks"),
    ({"model__bidirectional": True}, "reads a whole signal before it answers"),
    ({"model__memory_bits": ("2291",)}, "a digit from 0 to 8"),
    ({"measure__sample": 5}, r"config\.measure has no key 'sample': did you mean 'samples'\?"),
    ({"training__select": "first"}, r"training\.select='first' is not a choice: .*known: best, last"),
    # Wrong types.
    ({"training__steps": "100"}, r"training\.steps='100' is of type str, expected int"),
    ({"training__steps": 100.0}, r"training\.steps=100\.0 is of type float, expected int"),
    ({"data__augment": 1}, r"data\.augment=1 is of type int, expected bool"),
    ({"data__batch_size": True}, r"data\.batch_size=True is of type bool, expected int"),
    ({"optimizer__peak_rate": "fast"}, r"optimizer\.peak_rate='fast' is of type str, expected float"),
    ({"model__pattern": "selective"}, r"model\.pattern='selective' must be a tuple of names"),
    ({"model__pattern": (1,)}, r"model\.pattern=\(1,\) must be a tuple of names"),
    ({"model__block_states": 4}, r"model\.block_states=4 must be a tuple of whole numbers, for example \(64, 32\)"),
    ({"model__block_states": (4, 4, 4, "4")}, r"model\.block_states=\(4, 4, 4, '4'\) must be a tuple of whole numbers"),
    ({"model__block_states": (4, 4, 4, True)}, r"must be a tuple of whole numbers"),
    ({"name": 3}, r"config\.name=3 is of type int, expected str"),
    ({"model": 3}, r"config\.model must be a group of keys, found 3"),
    # Values too small.
    *[
        ({f"{group}__{key}": least - 1}, rf"{group}\.{key}={least - 1} is out of range: use at least {least}")
        for group, limits in {
            "data": {
                "batch_size": 1,
                "eval_batch_size": 0,
                "length": 0,
                "horizon": 1,
                "vocab": 2,
                "tokens": 1,
                "lag": 1,
                "train_examples": 1,
                "eval_examples": 1,
                "seed": 0,
            },
            "model": {
                "d_model": 1,
                "d_state": 1,
                "conv": 0,
                "frame": 1,
                "stride": 1,
                "filterbank": 0,
                "head_context": 1,
                "linear_skip": 0,
            },
            "optimizer": {"warmup_steps": 0, "accumulate": 1},
            "measure": {
                "samples": 100,
                "positions": 1,
                "longest_lag": 0,
                "decoder_steps": 1,
                "decoder_width": 1,
                "seed": 0,
            },
            "training": {
                "steps": 1,
                "log_every": 1,
                "eval_every": 1,
                "checkpoint_every": 1,
                "keep_checkpoints": 1,
                "devices": 0,
                "penalty_warmup": 0,
            },
        }.items()
        for key, least in limits.items()
    ],
    ({"model__mlp_ratio": float("nan")}, r"model\.mlp_ratio=nan is out of range: use at least 0"),
    ({"model__mlp_ratio": -0.5}, r"model\.mlp_ratio=-0\.5 is out of range: use at least 0"),
    # Values out of range, not-a-number and infinity among them.
    *[
        (
            {f"{group}__{key}".replace(".", "__"): value},
            rf"{group}\.{key}={value} is out of range: use a value from 0\.0 to {high}",
        )
        for group, key, value, high in [
            ("data", "noise", -0.1, "inf"),
            ("model.selective", "gate_floor", 1.0, r"0\.999"),
            ("model", "dropout", -0.1, r"0\.999"),
            ("model.selective", "process_noise", -1.0, r"1e\+38"),
            ("model.selective", "observation_noise", -1.0, r"1e\+38"),
            ("optimizer", "peak_rate", -1.0, "inf"),
            ("optimizer", "peak_rate", float("nan"), "inf"),
            ("optimizer", "peak_rate", float("inf"), "inf"),
            ("optimizer", "end_rate", -1.0, "inf"),
            ("optimizer", "weight_decay", -1.0, "inf"),
            ("optimizer", "clip_norm", -1.0, "inf"),
            ("optimizer", "b1", 1.0, r"0\.9999999"),
            ("optimizer", "b2", 1.0, r"0\.9999999"),
            ("training", "gate_l1", -1.0, "inf"),
            ("training", "gate_l0", -1.0, "inf"),
            ("training", "multiplier_rate", -1.0, "inf"),
            ("training", "information_weight", -1.0, "inf"),
            ("training", "target_dimension", -0.1, r"0\.999"),
            ("training", "target_dimension", 1.0, r"0\.999"),
        ]
    ],
    # Values that do not go together.
    ({"model__pattern": ()}, r"model\.pattern is empty: name at least one mixer"),
    ({"model__pattern": ("none", "none")}, r"has no mixer, so no step would know of an earlier one: name at least one"),
    (
        {"model__pattern": ("gru", "none"), "model__block_mlp_ratios": (1.0, 0.0)},
        r"block 1 has neither a mixer nor an MLP.*model\.pattern\[1\]='none' and an mlp_ratio of 0: take it out",
    ),
    (
        {"model__block_mlp_ratios": (1.0, 2.0)},
        r"model\.block_mlp_ratios=\(1\.0, 2\.0\) has 2 numbers for the 4 blocks of model\.pattern: give one a block",
    ),
    (
        {"model__block_mlp_ratios": (1.0, 2.0, -1.0, 0.0)},
        r"model\.block_mlp_ratios\[2\]=-1\.0 is out of range: use at least 0\.0",
    ),
    (
        {"model__block_states": (8, 4)},
        r"model\.block_states=\(8, 4\) has 2 sizes for the 4 blocks of model\.pattern: give one a block, or \(\)",
    ),
    (
        {"model__block_states": (8, 4, 0, 2)},
        r"model\.block_states=\(8, 4, 0, 2\) is out of range: use at least 1 in every block",
    ),
    (
        {"model__block_states": (8, 4, 3, 2), "model__selective__transition": "complex"},
        r"model\.block_states\[2\]=3 is odd.*use even sizes, or model\.selective\.transition='diagonal'",
    ),
    ({"model__frame": 4, "model__stride": 5}, r"model\.stride=5 is larger than model\.frame=4.*use stride <= frame"),
    (
        {"model__selective__gate_state": "dense", "model__selective__method": "associative"},
        r"model\.selective\.method='associative' needs gates of the input alone.*use model\.selective\.method='auto'",
    ),
    (
        {"model__selective__gate_state": "dense", "model__selective__transition": "complex"},
        r"model\.selective\.gate_state='dense' reads real states.*use 'diagonal' or 'dense'",
    ),
    (
        {"model__selective__certified": True},
        r"certified=True needs gates that stay open a little, found model\.selective\.gate_floor=0\.0: use for "
        r"example 0\.01",
    ),
    (
        {"model__selective__drive": "normalised", "model__selective__gate_state": "dense"},
        r"model\.selective\.drive='normalised' scales .* found model\.selective\.gate_state='dense': use",
    ),
    (
        {"model__selective__gate_temperature": 0.5},
        r"gate_temperature=0\.5 is read by model\.selective\.gate='softmax' alone, found .*'sigmoid': use "
        r"gate_temperature=1\.0, or gate='softmax'",
    ),
    (
        {"model__selective__gate": "softmax", "model__selective__gate_slot_width": 3},
        r"model\.selective\.gate_slot_width=3 does not divide the 256 components .* use a divisor of it",
    ),
    (
        {"model__selective__gate": "softmax", "model__selective__gate_bias": 1.0},
        r"model\.selective\.gate_bias=1\.0 would be added to all logits .* use 0",
    ),
    (
        {"model__selective__gate": "softmax", "training__gate_l1": 0.1},
        r"gate_l1=0\.1 .*found model\.selective\.gate='softmax', whose gates sum to 1 .*set both to 0",
    ),
    (
        {
            "model__selective__certified": True,
            "model__selective__gate_floor": 0.1,
            "model__selective__gate_state": "dense",
            "model__selective__process_noise": 0.1,
        },
        r"model\.selective\.process_noise=0\.1, a Gaussian without bound: use process_noise=0",
    ),
    (
        {"data__length": 0},
        r"data\.length=0 keeps signals whole, but data\.source='python_reference' is cut into windows: use at least 1",
    ),
    *[
        ({"data__source": source}, rf"data\.file is empty, but data\.source='{source}'.*set data\.file")
        for source in ("text", "csv", "npz", "labelled_text", "tagged_text")
    ],
    (
        {"training__steps": 50, "optimizer__warmup_steps": 50},
        r"warmup_steps=50 leaves nothing of training\.steps=50: use fewer",
    ),
    (
        {"data__batch_size": 30, "optimizer__accumulate": 4},
        r"batch_size=30 cannot be cut into optimizer\.accumulate=4.*use a multiple",
    ),
    (
        {"model__selective__gate": "top_k"},
        r"model\.selective\.gate_active=0 is out of range for model\.selective\.gate='top_k' of 256 gates: use a "
        r"number from 1 to 256",
    ),
    (
        {
            "model__selective__gate": "top_k",
            "model__selective__gate_active": 200,
            "model__selective__transition": "complex",
        },
        r"of 128 gates: use a number from 1 to 128",
    ),
    (
        {"model__d_state": 5, "model__selective__transition": "complex"},
        r"model\.d_state=5 is odd.*use even sizes, or model\.selective\.transition='diagonal'",
    ),
    (
        {"model__selective__transition": "dense", "model__selective__method": "chunked"},
        r"model\.selective\.method='chunked' is not written for matrices: use 'auto', 'sequential' or 'associative'",
    ),
    (
        {"model__selective__gate_active": 3},
        r"gate_active=3 is read by model\.selective\.gate='top_k' alone, found model\.selective\.gate='sigmoid': use "
        r"gate_active=0, or gate='top_k'",
    ),
    (
        {"model__selective__gate_slot_width": 4},
        r"gate_slot_width=4 is read by model\.selective\.gate='softmax' alone, .* use gate_slot_width=1, or "
        r"gate='softmax'",
    ),
    (
        {
            "model__selective__certified": True,
            "model__selective__gate_floor": 0.1,
            "model__selective__gate_state": "dense",
            "model__selective__gate": "binary",
        },
        r"needs gates of bounded slope, found model\.selective\.gate='binary', which jumps: use "
        r"model\.selective\.gate_state='none'",
    ),
    (
        {"training__gate_l0": 0.1},
        r"gate_l0 needs a gate with a differentiable L0, found model\.selective\.gate='sigmoid': use 'hard_concrete'",
    ),
    (
        {"training__target_dimension": 0.1, "training__gate_l1": 0.2},
        r"target_dimension=0\.1 .*found training\.gate_l1=0\.2 .*set one of the two to 0",
    ),
    (
        {"training__target_dimension": 0.1, "training__multiplier_rate": 0.0},
        r"multiplier_rate=0\.0 keeps the multiplier .* at 0: use for example 0\.01",
    ),
    (
        {"training__target_dimension": 0.1, "model__selective__gate_floor": 0.1},
        r"target_dimension=0\.1 cannot be reached .*model\.selective\.gate_floor=0\.1: raise the target",
    ),
    (
        {"model__resample__rule": "equal_time", "model__resample__causal": False},
        r"causal=False reads a whole signal before it chooses steps, found data\.source='python_reference', where "
        r"answers come on the way and the future must not choose: use model\.resample\.causal=True, or one of",
    ),
    (
        {"model__resample__rule": "often"},
        r"model\.resample\.rule='often' is not a choice: .*known: boundary, equal_time",
    ),
    ({"model__resample__rate": 0}, r"model\.resample\.rate=0 is out of range: use at least 1"),
    ({"model__resample__bits": 0.0}, r"model\.resample\.bits=0\.0 is out of range"),
    (
        {"training__resample_ratio": 0.03},
        r"resample_ratio=0\.03 weighs how many boundaries there are, found model\.resample\.rule='none'",
    ),
    (
        {"training__resample_ratio": 0.03, "model__resample__rule": "boundary", "training__piece": 64},
        r"weighs the steps of a whole sequence, found training\.piece=64: use piece=0",
    ),
    ({"training__penalty_warmup": 10}, r"penalty_warmup=10 has no penalty to warm up: set training\.gate_l1"),
    (
        {"training__penalty_warmup": 1000, "training__gate_l1": 0.1},
        r"penalty_warmup=1000 ends with no step of training\.steps=1000 left .*use fewer",
    ),
    (
        {"training__information_weight": 0.1},
        r"training\.information_weight=0\.1 needs a state with noise, found model\.selective\.process_noise=0\.0: "
        r".*use for example model\.selective\.process_noise=0\.3, or blocks of 'kalman'",
    ),
    (
        {**NOISY, "model__selective__transition": "dense"},
        r"components that do not mix, found model\.selective\.transition='dense': use 'diagonal' or 'complex'",
    ),
    *[
        (
            {**NOISY, "model__selective__gate": gate},
            rf"model\.selective\.gate='{gate}' can be exactly 0 .*gate_floor=0\.001",
        )
        for gate in ("hard_sigmoid", "hard_concrete", "binary")
    ],
    (
        {**NOISY, "model__selective__gate": "top_k", "model__selective__gate_active": 3},
        r"model\.selective\.gate='top_k' can be exactly 0 .*gate_floor=0\.001",
    ),
    (
        {**NOISY, "training__information_bound": "capacity"},
        r"information_bound='capacity' .*do not read the input, found model\.selective\.gate='sigmoid': use "
        r"information_bound='vib'",
    ),
    *[
        (
            {
                **NOISY,
                "training__information_bound": "capacity",
                "model__selective__gate": "constant",
                f"model__selective__{key}": value,
            },
            rf"model\.selective\.{key}='{known}', found '{value}'",
        )
        for key, value, known in (("gate_state", "elementwise", "none"), ("transition", "complex", "diagonal"))
    ],
    (
        {**NOISY, "training__information_steps": "last"},
        r"information_steps='last' prices the memory that a forecast is read from, found "
        r"data\.source='python_reference', .*use 'all'",
    ),
    *[
        ({**NOISY, "training__information_steps": "last", "data__source": "linear_gaussian", key: value}, words)
        for key, value, words in (
            ("model__head_context", 2, r"the one step .*found model\.head_context=2: use model\.head_context=1"),
            ("training__mesh", (1, 2), r"on every device, found training\.mesh=\(1, 2\), .*use \(0, 1\), or 'all'"),
        )
    ],
    (
        {"training__information_weight": 0.1, "model__pattern": ("kalman",), "training__information_bound": "capacity"},
        r"found model\.pattern=\('kalman',\), whose gates know their nats: leave it at 'vib'",
    ),
    (
        {
            "training__information_weight": 0.1,
            "model__pattern": ("kalman", "kalman_attention"),
            "model__kalman__sampled": True,
        },
        r"what the samples of 'kalman' blocks hold, .*\('kalman', 'kalman_attention'\): use blocks of one kind",
    ),
    ({**NOISY, "optimizer__accumulate": 2}, r"moments of a whole batch, found optimizer\.accumulate=2: use 1"),
    ({"data__period": -2}, r"data\.period=-2 is out of range: use at least -1"),
    (
        {"data__period": 24},
        r"data\.period=24 is of tables, found data\.source='python_reference': use data\.period=0, or one of etth1, "
        r"ettm1, weather, csv",
    ),
    *[
        ({"data__quantiles": quantiles}, rf"data\.quantiles=\({str(quantiles)[1:4]}.* {said}")
        for quantiles, said in (
            ((0.1, 0.9, 0.5), "do not rise from above 0 to below 1 in pairs around the median"),
            ((0.0, 0.5, 1.0), "do not rise"),
            ((0.1, 0.5, 0.8), "do not rise"),
            ((0.1, 0.9), "lack the median, which is the forecast"),
        )
    ],
    (
        {"data__quantiles": (0.1, 0.5, 0.9), "training__forecast_loss": "huber", "data__source": "etth1"},
        r"forecast_loss='huber' is a loss of forecasts of one number, found data\.quantiles=\(0\.1, 0\.5, 0\.9\), .*"
        r"use training\.forecast_loss='mse'",
    ),
    (
        {"training__forecast_loss": "huber"},
        r"forecast_loss='huber' is a loss of forecasts, found data\.source='python_reference', .*one of etth1",
    ),
    (
        {"training__information_bound": "mib"},
        r"training\.information_bound='mib' is not a choice: did you mean 'vib'\?",
    ),
    (
        {"model__selective__gate_bias": 21.0},
        r"model.selective.gate_bias=21.0 is out of range: use a value from -20.0 to 20.0",
    ),
    ({"sweep__models": ("lstn",)}, r"sweep.models names 'lstn': did you mean 'lstm'\?"),
    ({"sweep__parameters": -1}, r"sweep.parameters=-1 is out of range: use at least 0"),
    ({"sweep__trials": 0}, r"sweep.trials=0 is out of range: use at least 1"),
    ({"sweep__trial_steps": -1}, r"sweep.trial_steps=-1 is out of range: use at least 0"),
    ({"sweep__seeds": 0}, r"sweep.seeds=0 is out of range: use at least 1"),
    (
        {"sweep__learning_rates": (0.1, 0.01)},
        r"sweep.learning_rates=\(0.1, 0.01\) is no range: give the lowest and the highest",
    ),
    ({"sweep__learning_rates": (0.1,)}, r"sweep.learning_rates=\(0.1,\) is no range"),
    ({"sweep__learning_rates": ("x",)}, r"sweep.learning_rates=\('x',\) must be a tuple of numbers"),
    ({"sweep__sizes": ()}, r"sweep.sizes=\(\) is out of range: give one or more values of at least 0.01"),
    ({"sweep__penalties": (-1.0,)}, r"sweep.penalties=\(-1.0,\) is out of range"),
    ({"sweep__gate_biases": (math.inf,)}, r"sweep.gate_biases=\(inf,\) is out of range"),
    ({"sweep__lengths": (0,)}, r"sweep.lengths=\(0,\) is out of range"),
    (
        {"sweep__storage": "trials.txt"},
        r"sweep.storage='trials.txt' is neither a URL nor a path of a known kind",
    ),
    ({"sweep__pruner": "medain"}, r"sweep.pruner='medain'"),
    (
        {"sweep__trials": 3},
        r"sweep.trials=3 is no multiple of the 2 combinations of sizes, gate_biases and penalties.*use 2 or 4",
    ),
]


@pytest.mark.parametrize(
    ("overrides", "message"), WRONG, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_impossible_value_names_key_and_fix(overrides, message):
    with pytest.raises(InputError, match=message):
        build(**overrides)


UNREAD = [
    (
        {"model__attention__heads": 8},
        r"model\.attention\.heads is read by the mixer 'attention' alone, which model\.pattern=.* lacks: leave it out",
    ),
    ({"model__tcn__kernel": 5}, r"model\.tcn\.kernel is read by the mixer 'tcn' alone"),
    (
        {"model__pattern": ("gru",), "model__selective__gate": "tanh"},
        r"model\.selective\.gate is read by the mixer 'selective' alone",
    ),
    (
        {"model__pattern": ("gru",), "model__mamba__method": "sequential"},
        r"model\.mamba\.method is read by the mixer 'mamba' alone",
    ),
    (
        {"model__selective__solver": "newton"},
        r"model\.selective\.solver is read with model\.selective\.gate_state alone",
    ),
    ({"model__frame": 4}, r"model\.frame is read by fsdd, .* alone, which data\.source='python_reference' lacks"),
    ({"data__lag": 3}, r"data\.lag is read by delayed_recall alone"),
    ({"data__source": "induction_heads", "data__level": "word"}, r"data\.level is read by python_reference, .* alone"),
    ({"training__multiplier_rate": 0.5}, r"training\.multiplier_rate is read with training\.target_dimension alone"),
    (
        {"data__source": "etth1", "data__course": "learned"},
        r"data\.course is read with data\.period alone, which is not set",
    ),
    (
        {"model__channel_independent": True, "model__channel_embedding": True},
        r"model\.channel_(embedding|independent) is read by .*csv.* alone, which data\.source='python_reference' lacks",
    ),
    ({"model__norm": "none", "model__norm_epsilon": 1e-3}, r"model\.norm_epsilon is read by .*, mamba2 alone"),
]


@pytest.mark.parametrize(
    ("overrides", "message"), UNREAD, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_a_key_that_nothing_reads_is_refused_when_a_run_begins(overrides, message):
    experiment = build(**overrides)
    with pytest.raises(InputError, match=message):
        experiment.refuse_unread()
    assert Experiment.from_json(experiment.to_json()) == experiment  # a run of an older version


def test_what_a_config_file_sets_may_lie_idle_once_its_data_or_mixers_are_others():
    base = build(data__source="induction_heads", data__vocab=4, model__selective__gate="tanh")
    build(data__vocab=4, model__selective__gate="tanh", model__pattern=("gru",)).refuse_unread(base)
    with pytest.raises(InputError, match=r"data\.vocab is read by"):
        build(data__vocab=5, model__selective__gate="tanh").refuse_unread(base)
    with pytest.raises(InputError, match=r"model\.attention\.heads is read by"):
        build(model__attention__heads=8).refuse_unread(build(model__attention__heads=8))  # the file's own


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_configs_set_nothing_that_is_not_read(path):
    Experiment.from_config_dict(load(path)).refuse_unread()


def test_the_models_of_a_sweep_read_their_keys():
    experiment = build(model__attention__window=64)
    experiment.refuse_unread(sweep=True)
    with pytest.raises(InputError, match=r"model\.attention\.window is read by the mixer 'attention' alone"):
        experiment.refuse_unread()


@pytest.mark.parametrize("group", ["data", "training", "measure", "compress"])
def test_a_seed_is_of_32_bits_for_a_larger_one_would_be_a_small_one_again(group):
    """jax.random.key(2**32) is key(0), and key(2**63) an OverflowError."""
    build(**{f"{group}__seed": 2**32 - 1})
    for seed in (2**32, 2**63, 10**40):
        with pytest.raises(
            InputError, match=rf"{group}\.seed={seed} is out of range: use at least 0 and at most 4294967295"
        ):
            build(**{f"{group}__seed": seed})


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"data": 3}', '{"name": null}'])
def test_json_of_something_else_is_refused(text):
    with pytest.raises(InputError, match=r"not JSON|must be a group|expected str"):
        Experiment.from_json(text)


def ranged(kind: Any, path: str = "") -> dict[str, Least | Within]:
    """The keys whose annotation has a range, and it."""
    hints = {f"{path}{name}": hint for name, hint in list_fields(kind).items()}
    below = [ranged(hint, f"{name}.") for name, hint in hints.items() if dataclasses.is_dataclass(hint)]
    limits = {name: getattr(hint, "__metadata__", (None,))[0] for name, hint in hints.items()}
    return functools.reduce(
        dict.__or__, below, {name: limit for name, limit in limits.items() if isinstance(limit, Least | Within)}
    )


@pytest.mark.parametrize("key", ranged(Experiment))
def test_every_range_is_kept_and_its_end_is_named(key):
    """Those of mixers that the pattern does not name, too."""
    limit = ranged(Experiment)[key]
    with pytest.raises(
        InputError,
        match=rf"^{re.escape(key)}={re.escape(str(limit.low - 1))} is out of range: use .*{re.escape(str(limit.low))}",
    ):
        build(**{key.replace(".", "__"): limit.low - 1})


def test_there_are_as_many_ranges_as_were_tried():
    assert len(ranged(Experiment)) > 70


@pytest.mark.parametrize("part", [Task, Data, Model, Optimizer, Training, Experiment])
def test_values_are_frozen(part):
    value = part()
    with pytest.raises(AttributeError, match="cannot assign"):
        value.seed = 1


def test_round_trips_change_nothing():
    experiment = build(
        data__source="etth1",
        model__pattern=("selective",) * 3,
        model__block_states=(8, 4, 2),
        optimizer__peak_rate=1e-3,
        model__task__kind="forecasting",
        model__task__channels=7,
    )
    assert Experiment.from_config_dict(experiment.to_config_dict()) == experiment
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert isinstance(json.loads(experiment.to_json())["model"]["pattern"], list)


@pytest.mark.parametrize(("value", "states"), [("(8, 4, 2, 1)", (8, 4, 2, 1)), ("8,4,2,1", (8, 4, 2, 1)), ("()", ())])
def test_sizes_of_blocks_come_from_the_command_line(value, states, monkeypatch):
    # ml_collections looks for the keys there
    monkeypatch.setattr(sys, "argv", ["train.py", f"--config.model.block_states={value}"])
    given = flags.FlagValues()
    config_flags.DEFINE_config_dict("config", Experiment().to_config_dict(), flag_values=given)
    given(sys.argv)
    assert Experiment.from_config_dict(given.config).model.block_states == states


def test_every_block_reads_the_model_with_its_own_state():
    config = Model(block_states=(8, 4, 2, 1), d_model=16)
    assert [part.d_state for part in config.blocks] == [8, 4, 2, 1]
    assert all(part.d_model == 16 and part.blocks == (part,) for part in config.blocks)
    assert Model(d_state=6).blocks == (Model(("selective",), d_state=6),) * 4
    assert [part.tcn.dilations for part in Model(("tcn", "gru", "tcn", "tcn")).blocks] == [(1,), (), (2,), (4,)]
    assert [part.tcn.dilations for part in Model(("tcn", "tcn"), tcn=TCNConfig(dilations=(3, 5))).blocks] == [
        (3,),
        (5,),
    ]


def test_whole_number_is_a_float_where_one_is_asked():
    assert build(optimizer__peak_rate=1).optimizer.peak_rate == 1.0


def test_config_dict_refuses_unknown_keys_at_once():
    with pytest.raises(AttributeError, match="batch_sise"):
        Experiment().to_config_dict().data.batch_sise = 3


def test_there_are_the_promised_configs():
    promised = {
        "quickstart",
        "shakespeare",
        "etth1",
        "fsdd",
        "smnist",
        "wikitext2_words",
        "selective_copying",
        "induction_heads",
        "smoke",
    }
    assert promised <= {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_file_loads_and_round_trips(path):
    config = load(path)
    experiment = Experiment.from_config_dict(config)
    assert experiment.to_config_dict().to_dict() == config.to_dict()
    assert Experiment.from_json(experiment.to_json()) == experiment
    assert experiment.name == path.stem
    assert experiment.data.local_dir == experiment.data.cache_dir == ""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_config_file_tells_command_time_hardware_and_score(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    labelled = dict(re.findall(r"^(\w[\w ]*): +(\S.*)$", text, re.MULTILINE))
    assert labelled["Command"].startswith(f"python train.py --config configs/{path.relative_to(FOLDER)}")
    assert re.search(r"CPU|GPU|TPU", labelled["Hardware"])
    assert not re.search(r"\S (Command|Data|Hardware|Time|Expected score): ", text), "one field a line"
    assert {"Time", "Expected score"} <= set(labelled)


def test_evaluation_can_override_its_own_groups_alone():
    found = Experiment().overridden(["compress.factor=8", "compress.scope=mixers", "measure.samples=500"])
    assert (found.compress.factor, found.compress.scope, found.measure.samples) == (8, "mixers", 500)
    assert Experiment().overridden([]) == Experiment()
    for assignment, words in (
        ("model.d_state=2", "no group that evaluation reads"),
        ("compress.factor=x", "expected float"),
        ("compress.step=1", "steps"),
    ):
        with pytest.raises(InputError, match=words):
            Experiment().overridden([assignment])


@pytest.mark.parametrize("path", ["optimizer.clip_norm", "optimizer.peak_rate", "training.gate_l1", "model.dropout"])
@pytest.mark.parametrize("value", [1e39, 1e300, -1e300, 10**400])
def test_a_number_that_float32_does_not_have_is_refused_by_name(path, value):
    group, key = path.split(".")
    with pytest.raises(InputError, match=rf"{path}=.*is out of range"):
        Experiment.from_dict({group: {key: value}})


def test_an_evaluation_that_would_take_days_is_refused():
    with pytest.raises(InputError, match=r"data\.eval_examples=4294967296 would take days"):
        Data(source="induction_heads", eval_examples=2**32)
