"""The configuration of an experiment: frozen values that are checked when they are built. All defaults are here.

A file `configs/NAME.py` returns `Experiment(...).to_config_dict()`; `Experiment.from_config_dict` reads it back after
command-line overrides and refuses, by name, every unknown key, wrong type and impossible value.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import runpy
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import ml_collections

from selssm_jax import settings
from selssm_jax.errors import InputError, suggest
from selssm_jax.paths import check_regular


def _check_fields(value: Any, path: str) -> None:
    """Raises InputError where a field's value is not of its annotated type."""
    hints = typing.get_type_hints(type(value))
    for field in dataclasses.fields(value):
        _check(hints[field.name], getattr(value, field.name), f"{path}.{field.name}")


LARGEST_FLOAT = 3.4e38
MOST_EVALUATED = 10_000_000  # examples of an evaluation: each is made when it is read, and more would take days
TUPLES = {
    str: "names, for example ('selective', 'selective')",
    int: "whole numbers, for example (64, 32)",
    float: "numbers, for example (0.001, 0.004)",
}


def _check(hint: Any, found: Any, path: str) -> None:
    if typing.get_origin(hint) is Literal:
        if found not in typing.get_args(hint):
            raise InputError(f"{path}={found!r} is not a choice: {suggest(str(found), typing.get_args(hint))}")
    elif typing.get_origin(hint) is tuple:
        kind = typing.get_args(hint)[0]
        if not isinstance(found, tuple) or not all(type(item) in (kind, *([int] if kind is float else [])) for item in found):
            raise InputError(f"{path}={found!r} must be a tuple of {TUPLES[kind]}")
        _check_float32(found if kind is float else (), path)
    elif hint is float and type(found) in (int, float):
        _check_float32((found,), path)
    elif type(found) is str and "\0" in found:
        raise InputError(f"{path}={found!r} holds the character NUL, which no file's name can: take it out")
    elif type(found) is not hint:
        raise InputError(f"{path}={found!r} is of type {type(found).__name__}, expected {hint.__name__}")


def _check_float32(values: Sequence[float], path: str) -> None:
    """Raises InputError for a finite number that float32, in which all is computed, does not have."""
    for value in values:
        if LARGEST_FLOAT < abs(value) < math.inf:
            raise InputError(f"{path}={value} is out of range: use at most {LARGEST_FLOAT:g}, about the largest number of float32")


def _at_least(value: Any, path: str, **limits: float) -> None:
    for key, least in limits.items():
        if not least <= getattr(value, key) < math.inf:  # refuses not-a-number too
            raise InputError(f"{path}.{key}={getattr(value, key)} is out of range: use at least {least}")


def _calls(keys: Mapping[str, str]) -> settings.Say:
    """What the model's config calls the arguments of a mixer."""
    return lambda argument: f"model.{keys[argument]}"


@contextlib.contextmanager
def _as_input_error() -> Iterator[None]:
    """A rule of a layer is one of the config."""
    try:
        yield
    except ValueError as error:
        raise InputError(str(error)) from None


def _within(value: Any, path: str, low: float, high: float, *keys: str) -> None:
    for key in keys:
        if not (low <= getattr(value, key) <= high and math.isfinite(getattr(value, key))):
            raise InputError(f"{path}.{key}={getattr(value, key)} is out of range: use a value from {low} to {high}")


LEAST_NOISE, LEAST_OPEN = 1e-6, -10.0  # of a state whose rate is priced: its variance stays in float32
LARGEST_SEED = 2**32 - 1  # JAX's keys are made of 32 bits: 2**32 would be 0 again, in silence


def _seed(value: Any, path: str) -> None:
    if not 0 <= value.seed <= LARGEST_SEED:
        raise InputError(f"{path}.seed={value.seed} is out of range: use at least 0 and at most {LARGEST_SEED}")


NEEDS_FILE = ("text", "csv", "npz")
SIGNALS = ("fsdd", "smnist", "psmnist", "npz")
TABLES = ("etth1", "ettm1", "weather", "csv")
SERIES = (*TABLES, "linear_gaussian")  # what is forecast
TEXTS = ("python_reference", "tiny_shakespeare", "wikitext2", "text")
SYMBOLS = ("selective_copying", "induction_heads", "delayed_recall")
SYNTHETIC = (*SYMBOLS, "linear_gaussian")
# Where data come from, and the kind of task that they ask; `data.register_data` adds own ones.
SOURCES: dict[str, str] = {
    **dict.fromkeys((*TEXTS, *SYMBOLS), "language"),
    **dict.fromkeys(SIGNALS, "classification"),
    **dict.fromkeys(SERIES, "forecasting"),
}
# What a sweep compares, and the mixer that each is made of.
CONTENDERS = {"selective": "selective", "selective_state": "selective"} | {name: name for name in ("mamba", "s5", "lstm", "gru", "rnn", "attention", "tcn")}
# Keys that some data alone read, and keys that are read with another alone; those of mixers and of kinds of task are in `settings.MIXERS` and `settings.TASKS`.
SOURCES_OF = {
    "data.file": NEEDS_FILE,
    "data.gaps": ("csv",),
    "data.level": TEXTS,
    "data.vocab": SYMBOLS,
    "data.tokens": ("selective_copying",),
    "data.lag": ("delayed_recall",),
    "data.noise": ("linear_gaussian",),
    "data.augment": SIGNALS,
    **dict.fromkeys(("data.train_examples", "data.eval_examples"), SYNTHETIC),
}
ONLY_WITH = {
    "model.solver": "model.gate_state",
    "model.memory_scope": "model.memory_bits",
    "model.memory_tables": "model.memory_bits",
    "model.memory_rounding": "model.memory_bits",
    "training.multiplier_rate": "training.target_dimension",
    "training.rate_form": "training.rate",
}


def sources_of(path: str) -> tuple[str, ...]:
    """Returns the sources whose data, or whose kind of task, read a key; all of them where it is read for any."""
    kinds = [kind for kind, rule in settings.TASKS.items() if path in rule.keys]
    return SOURCES_OF.get(path) or tuple(source for source, kind in SOURCES.items() if kind in kinds or not kinds)


def add_source(name: str, kind: str) -> None:
    """Makes `data.source=name` a choice, for data that ask a kind of task. Raises ValueError for a name that is taken and a kind that is unknown."""
    if name in SOURCES:
        raise ValueError(f"the data source {name!r} is there already: give another name")
    if kind not in settings.TASKS:
        raise ValueError(f"the data source {name!r} asks the task {kind!r}, which is unknown: {suggest(kind, settings.TASKS)}; register a task of yours first")
    SOURCES[name] = kind


@dataclasses.dataclass(frozen=True)
class Task:
    """What the data asks of a model; filled in from the data, so that a config never repeats it.

    kind "language": a token for every step; "classification": a class for a whole signal; "forecasting": the next
    `horizon` values of every channel.
    """

    kind: str = "language"  # one of `tasks.TASKS`
    vocab: int = 0
    channels: int = 0
    classes: int = 0
    length: int = 0
    horizon: int = 0
    frame: int = 0  # signals: samples of a frame that suit the data, and from one to the next, for models that leave it to them
    stride: int = 0


@dataclasses.dataclass(frozen=True)
class Data:
    """Which examples, from where, how many at a time."""

    source: str = "python_reference"  # one of SOURCES
    file: str = ""  # your own file, for the sources "text", "csv" and "npz"
    local_dir: str = ""  # a folder that holds the originals; empty: they are downloaded from their public origin
    cache_dir: str = ""  # where prepared records are kept; empty: $SELSSM_DATA_DIR, else ~/.cache/selssm_jax
    train_on: Literal["train", "train+validation"] = "train"
    batch_size: int = 32
    eval_batch_size: int = 0  # 0: batch_size
    length: int = 256  # steps of one example: context, lookback; signals: the longest kept; 0: what suits a file of yours, and signals whole
    horizon: int = 96  # forecasting: values to predict
    cycle: int = 0  # tables: rows of a cycle whose mean course over the training rows is taken off, 24 for a day of hours; 0: none
    gaps: Literal["refuse", "ignore"] = "refuse"  # csv: times that are missing or come twice; ignored, each row follows the one before
    level: Literal["character", "word", "byte", "subword"] = "character"  # text: what a token is; "subword": of imported models alone
    augment: bool = False  # signals: random shift, gain and noise in training
    vocab: int = 16  # synthetic: symbols
    tokens: int = 16  # synthetic: symbols to remember
    lag: int = 16  # delayed_recall: how far back; linear_gaussian: unused
    noise: float = 0.1  # linear_gaussian: observation noise variance
    train_examples: int = 100_000  # synthetic: training examples before the order repeats
    eval_examples: int = 1_000  # synthetic: examples of validation and of test, each
    seed: int = 0  # order of the data, draws of synthetic examples, psmnist's permutation

    def __post_init__(self) -> None:
        _check_fields(self, "data")
        if self.source not in SOURCES:
            hint = "; if a file of yours registers it, name that file by --extend"
            raise InputError(f"data.source={self.source!r} is not a choice: {suggest(self.source, SOURCES)}{hint}")
        if self.source in NEEDS_FILE and not self.file:
            raise InputError(f"data.file is empty, but data.source={self.source!r} reads a file of yours: set data.file to its path")
        _at_least(self, "data", batch_size=1, eval_batch_size=0, length=0, horizon=1, cycle=0)
        _seed(self, "data")
        _at_least(self, "data", vocab=2, tokens=1, lag=1, train_examples=1, eval_examples=1)
        if self.eval_examples > MOST_EVALUATED:
            raise InputError(f"data.eval_examples={self.eval_examples} would take days to evaluate: use at most {MOST_EVALUATED}")
        if not self.length and self.source in (*SERIES, *TEXTS, *SYMBOLS) and self.source not in ("text", "csv"):
            raise InputError(f"data.length=0 keeps signals whole, but data.source={self.source!r} is cut into windows: use at least 1")
        if self.cycle and self.source not in TABLES:
            raise InputError(f"data.cycle={self.cycle} is of tables, found data.source={self.source!r}: use data.cycle=0, or one of {', '.join(TABLES)}")
        _within(self, "data", 0.0, float("inf"), "noise")


@dataclasses.dataclass(frozen=True)
class Model:
    """A stack of pre-norm residual blocks, each a mixer over time and a gated MLP (theory, sections 1-3)."""

    pattern: tuple[str, ...] = ("selective",) * 4  # the mixer of each block
    d_model: int = 128
    d_state: int = 256  # numbers of the state of a layer; mamba and mamba2: of a channel
    block_states: tuple[int, ...] = ()  # d_state of each block, in the order of the pattern; empty: the same in all
    gate: str = "sigmoid"  # one of settings.GATES
    gate_active: int = 0  # top_k: how many components a step updates
    gate_floor: float = 0.0  # smallest value that a gate can take
    gate_bias: float = 0.0  # added to the biases that gates start with; positive: more open
    gate_state: settings.Reads = "none"  # what of the state before it a gate reads besides the input
    update: settings.Update = "retain"
    transition: settings.Transition = "diagonal"
    process_noise: float = 0.0  # standard deviation of w_t
    observation_noise: float = 0.0  # standard deviation of v_t
    certified: bool = False  # contraction by construction: needs a gate_floor, and caps how gates read the state
    expand: int = 2  # mamba, mamba2: inner width over d_model
    dt_rank: int = 0  # mamba: rank of the map to step sizes; 0: d_model / 16, rounded up
    d_conv: int = 4  # mamba, mamba2: width of their own short convolution
    projection_bias: bool = False  # mamba, mamba2: biases of their maps in and out
    conv_bias: bool = True  # mamba, mamba2: of their own short convolution
    inner_norm_epsilon: float = 0.0  # mamba: added to the mean squares of three norms more, of dt, B and C, as Falcon Mamba has them; 0: no such norms
    dt_limit: tuple[float, ...] = ()  # mamba2: the smallest and the largest step size; empty: any
    heads: int = 4  # attention, mamba2; rg_lru: blocks of its gates' maps
    groups: int = 1  # mamba2: heads // groups of them share their B and C
    context: int = 1024  # attention: the steps that it looks back on, itself among them
    window: int = 128  # local_attention: the same
    kernel: int = 3  # tcn: taps of a convolution
    dilations: tuple[int, ...] = ()  # tcn: steps between taps, one for each tcn block of the pattern; empty: 1, 2, 4, ...
    bidirectional: bool = False  # classification: a second mixer reads from the end; a signal is then read in one piece
    conv: int = 0  # width of a short causal convolution before the recurrence; 0: none
    mlp_ratio: float = 2.0  # hidden width of the gated MLP over d_model; 0: no MLP
    norm: Literal["rms", "none"] = "rms"  # before every branch and the head; "none" leaves a model of linear parts linear
    norm_epsilon: float = 1e-6  # added to the mean square under its root
    dropout: float = 0.0
    tie_embeddings: bool = False  # language: the readout is the transposed embedding
    frame: int = 1  # signals and forecasting: samples of one frame of the encoder; 0: what suits the data, for signals 25 ms of sound
    stride: int = 1  # signals and forecasting: samples from one frame to the next; 0: what suits the data, for signals 10 ms of sound
    filterbank: int = 0  # signals: log-magnitude filters of the encoder; 0: a linear frame encoder
    pool: settings.Pool = "mean"  # classification: over the valid steps
    head_steps: int = 1  # forecasting: how many of the last steps the head reads
    linear_skip: int = 0  # forecasting: the last inputs that also reach the head by one linear map, past the mixers; 0: none
    normalize: bool = True  # forecasting: reversible instance normalisation, of the level
    normalize_scale: bool = True  # forecasting: and of the scale, where the level is
    channels_apart: bool = False  # forecasting: one model, applied to every channel by itself
    scan: settings.Method = "auto"
    solver: settings.Solver = "auto"  # of the recurrence where gates read the state
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; states and parameters stay float32
    memory_bits: tuple[str, ...] = ()  # bits of every component that is carried, a string of digits for each array of the state; empty: as computed
    memory_tables: tuple[int, ...] = ()  # of every component that is carried, which table of levels it reads; empty: each its own
    memory_scope: Literal["all", "mixers"] = "all"  # what memory_bits is about: all that is carried, or the mixers' states alone
    memory_rounding: Literal["nearest", "stochastic"] = "nearest"  # how what is carried is rounded to its levels
    remat: bool = False  # recompute a block's activations in the backward pass
    task: Task = Task()

    def __post_init__(self) -> None:
        _check_fields(self, "model")
        if not self.pattern:
            raise InputError("model.pattern is empty: name at least one mixer, for example ('selective',)")
        if len(self.pattern) > settings.MOST_BLOCKS:
            raise InputError(f"model.pattern has {len(self.pattern)} blocks, which nothing compiles: use at most {settings.MOST_BLOCKS}")
        for name in self.pattern:
            if name not in settings.MIXERS:
                hint = "; if a file of yours registers it, name that file by --extend"
                raise InputError(f"model.pattern names the mixer {name!r}: {suggest(name, settings.MIXERS)}{hint}")
        _at_least(self, "model", mlp_ratio=0, filterbank=0, head_steps=1, linear_skip=0)
        _within(self, "model", 0.0, 0.999, "dropout")
        with _as_input_error():
            settings.whole("model.conv", self.conv, 0, settings.MOST["d_conv"])
            for mixer in settings.MIXERS.values():
                own = {argument: getattr(self, key) for argument, key in mixer.keys.items() if key != "dilations"}
                settings.ranges(own, _calls(mixer.keys))
            if self.frame or self.stride:  # both 0: what suits the data
                settings.frames(self.frame, self.stride, "model.{}".format)
        self._check_blocks()
        for digits in self.memory_bits:
            if not digits or set(digits) - set("012345678"):
                raise InputError(f"model.memory_bits holds {digits!r}: give each array of the state its components' bits, a digit from 0 to 8 each")
        pairs = set(zip(self.memory_tables, "".join(self.memory_bits), strict=False))
        if self.memory_tables and (len(self.memory_tables) != sum(map(len, self.memory_bits)) or len(pairs) != len(set(self.memory_tables))):
            raise InputError("model.memory_tables does not fit model.memory_bits: give each component the number of a table, and those of one table equal bits")

    def arguments(self, name: str) -> dict[str, Any]:
        """Returns the arguments of the mixer that the pattern calls `name`, of a model of one block."""
        return self._arguments(name, self.d_state, self.dilations[:1])

    def _arguments(self, name: str, d_state: int, dilations: tuple[int, ...]) -> dict[str, Any]:
        own = {"d_state": d_state, "dilations": dilations[0] if dilations else 1}
        return {argument: own[key] if key in own else getattr(self, key) for argument, key in settings.MIXERS[name].keys.items()}

    def of_task(self, task: Task) -> "Model":
        """Returns the model of a task: frames that are left to the data are as the task has them."""
        return dataclasses.replace(self, task=task, frame=self.frame or task.frame or 1, stride=self.stride or task.stride or 1)

    @property
    def blocks(self) -> tuple["Model", ...]:
        """The model as each block reads it: with a d_state of its own."""
        sizes = self.block_states or (self.d_state,) * len(self.pattern)
        parts = zip(self.pattern, sizes, self._steps_between_taps(), strict=True)
        return tuple(dataclasses.replace(self, pattern=(name,), d_state=size, block_states=(), dilations=taps) for name, size, taps in parts)

    def _steps_between_taps(self) -> list[tuple[int, ...]]:
        """The dilation of each block, () where it is no tcn."""
        given = self.dilations or tuple(2**index for index in range(self.pattern.count("tcn")))
        rest = iter(given)
        return [(next(rest),) if name == "tcn" else () for name in self.pattern]

    def _check_blocks(self) -> None:
        """Raises InputError where sizes are not one a block, or break a rule of the block's mixer."""
        if self.block_states and len(self.block_states) != len(self.pattern):
            raise InputError(
                f"model.block_states={self.block_states} has {len(self.block_states)} sizes for the {len(self.pattern)} blocks of model.pattern: "
                "give one a block, or () for d_state in all"
            )
        if any(size < 1 for size in self.block_states):
            raise InputError(f"model.block_states={self.block_states} is out of range: use at least 1 in every block")
        if self.dilations and len(self.dilations) != self.pattern.count("tcn"):
            raise InputError(
                f"model.dilations={self.dilations} has {len(self.dilations)} numbers for {self.pattern.count('tcn')} tcn blocks of model.pattern: "
                "give one a block, or () for 1, 2, 4, ..."
            )
        if any(steps < 1 for steps in self.dilations):
            raise InputError(f"model.dilations={self.dilations} is out of range: use at least 1 step between taps")
        sizes = self.block_states or (self.d_state,) * len(self.pattern)
        with _as_input_error():
            for index, (name, size, taps) in enumerate(zip(self.pattern, sizes, self._steps_between_taps(), strict=True)):
                calls = {"d_state": f"block_states[{index}]"} if self.block_states else {}
                settings.check_arguments(name, self._arguments(name, size, taps), _calls(settings.MIXERS[name].keys | calls))


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """AdamW with linear warm-up and cosine decay; no decay of weights on A, dt, gate biases and norms."""

    peak_rate: float = 2e-3
    end_rate: float = 2e-5
    warmup_steps: int = 100
    weight_decay: float = 0.1
    b1: float = 0.9
    b2: float = 0.99
    clip_norm: float = 1.0  # of the whole gradient; 0: no clipping
    accumulate: int = 1  # micro-batches of one step: each of data.batch_size // accumulate examples

    def __post_init__(self) -> None:
        _check_fields(self, "optimizer")
        _at_least(self, "optimizer", warmup_steps=0, accumulate=1)
        _within(self, "optimizer", 0.0, float("inf"), "peak_rate", "end_rate", "weight_decay", "clip_norm")
        _within(self, "optimizer", 0.0, 0.9999999, "b1", "b2")


@dataclasses.dataclass(frozen=True)
class Training:
    """How long, how often, on how many devices, and what is added to the loss."""

    steps: int = 1000
    seed: int = 0  # of parameters, dropout and noise
    log_every: int = 10
    eval_every: int = 200
    checkpoint_every: int = 200
    keep_checkpoints: int = 2
    select: Literal["best", "last"] = "best"  # which parameters eval.py reads: best on validation, or the last
    devices: int = 0  # 0: all there are
    forecast_loss: Literal["mse", "huber"] = "mse"  # huber: squares errors up to one deviation, takes larger ones as they are
    gate_l1: float = 0.0  # weight of the mean gate value
    gate_l0: float = 0.0  # weight of the expected share of open gates (hard_concrete)
    target_dimension: float = 0.0  # share of the components that gates update in the mean, reached by a Lagrange multiplier; 0: none
    multiplier_rate: float = 0.01  # step size of the multiplier's dual ascent
    rate: float = 0.0  # weight of the nats of memory a block, in the mean over steps; needs model.process_noise
    rate_form: Literal["vib", "capacity"] = "vib"
    penalty_warmup: int = 0  # steps over which the weight of every penalty grows from 0; 0: none

    def __post_init__(self) -> None:
        _check_fields(self, "training")
        _at_least(self, "training", steps=1, log_every=1, eval_every=1, checkpoint_every=1, keep_checkpoints=1, devices=0, penalty_warmup=0)
        _seed(self, "training")
        _within(self, "training", 0.0, float("inf"), "gate_l1", "gate_l0", "multiplier_rate", "rate")
        _within(self, "training", 0.0, 0.999, "target_dimension")
        if self.target_dimension and self.gate_l1:
            raise InputError(
                f"training.target_dimension={self.target_dimension} weighs the mean gate by a multiplier of its own, found training.gate_l1={self.gate_l1} "
                "beside it: set one of the two to 0"
            )
        if self.target_dimension and not self.multiplier_rate:
            raise InputError("training.multiplier_rate=0.0 keeps the multiplier of training.target_dimension at 0: use for example 0.01")
        if self.penalty_warmup and not self.penalised:
            raise InputError(
                f"training.penalty_warmup={self.penalty_warmup} has no penalty to warm up: set training.gate_l1, gate_l0, target_dimension or rate, "
                "or penalty_warmup=0"
            )
        if self.penalty_warmup >= self.steps:
            raise InputError(
                f"training.penalty_warmup={self.penalty_warmup} ends with no step of training.steps={self.steps} left at full weight: use fewer, or more steps"
            )

    @property
    def penalised(self) -> bool:
        """Whether anything is added to the task's loss."""
        return bool(self.gate_l1 or self.gate_l0 or self.target_dimension or self.rate)


OF_FILES = ("data.gaps",)  # how another file is read, which evaluation may be told too
EVALUATION = ("measure", "compress")  # groups that evaluation reads
UNREAD = (*EVALUATION, "sweep")  # groups that a run's training does not read
FEWEST = 100  # sequences that a memory can be measured on


@dataclasses.dataclass(frozen=True)
class Measure:
    """What `eval.py --measure` records of a trained model's memory, and how long its decoders are fitted; nothing of it touches training."""

    samples: int = 2000  # sequences of the split that are read, each from an empty memory; at most what there is
    positions: int = 8  # moments of a sequence whose states are kept
    longest_lag: int = 64  # the largest lag k of x_(t-k) that is decoded from h_t; lags are spaced geometrically
    decoder_steps: int = 400
    decoder_width: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        _check_fields(self, "measure")
        _at_least(self, "measure", samples=FEWEST, positions=1, longest_lag=0, decoder_steps=1, decoder_width=1)
        _seed(self, "measure")


@dataclasses.dataclass(frozen=True)
class Compress:
    """What `eval.py --compress` makes of a trained model; nothing of it touches training."""

    factor: float = 16.0  # how many times fewer bytes are carried than in float32; 0: the most that keeps the loss within `within`
    scope: Literal["all", "mixers"] = "all"  # what is packed: all that is carried (states, past inputs, pooled features), or mixers' states alone
    rounding: Literal["nearest", "stochastic"] = "stochastic"  # the nearest level swallows small updates step after step
    sequences: int = 32  # carried at once, among which the table of levels is shared: bytes of one are its own and its share of the table
    within: float = 0.01  # relative loss of the metric that is allowed
    most_bits: int = 6  # of one component
    calibration: int = 4  # training batches that levels, variances and sensitivities are taken from
    steps: int = 300  # of fine-tuning; 0: none
    peak_rate: float = 5e-4  # of fine-tuning
    weights: Literal["float32", "int8"] = "float32"  # as the compressed run stores them
    seed: int = 0

    def __post_init__(self) -> None:
        _check_fields(self, "compress")
        _at_least(self, "compress", calibration=1, steps=0)
        _seed(self, "compress")
        _within(self, "compress", 0.0, 1.0, "within")
        _within(self, "compress", 1, 8, "most_bits")
        _within(self, "compress", 0.0, float("inf"), "factor", "peak_rate")
        if 0 < self.factor < 1:
            raise InputError(f"compress.factor={self.factor} would enlarge the memory: use at least 1, or 0 for the most that stays within compress.within")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `train.py --sweep` compares: models of one size, each tuned by as many trials, then trained from several seeds; nothing of it touches a run.

    The grid of a model is every combination of its sizes (state components; heads; taps), with selective gates gate_biases and penalties too, and
    of peak rates spaced evenly in their logarithm, as many as make `trials` points.
    """

    models: tuple[str, ...] = tuple(CONTENDERS)
    parameters: int = 0  # of each model, 5 % more or less, by the width of its MLP; 0: as many as the configured model has
    trials: int = 8  # points of each model's grid
    trial_steps: int = 0  # training steps of a trial; 0: training.steps
    seeds: int = 3  # that the best point is trained from, at training.steps
    rates: tuple[float, ...] = (2e-3, 8e-3)  # the lowest and the highest peak rate
    sizes: tuple[float, ...] = (0.5, 1.0)  # of a model's memory, over what is usual for it beside model.d_state
    gate_biases: tuple[float, ...] = (0.0,)
    penalties: tuple[float, ...] = (0.0,)  # weights of the mean gate
    lengths: tuple[int, ...] = ()  # synthetic: further values of data.length that the trained models are scored at

    def __post_init__(self) -> None:
        _check_fields(self, "sweep")
        _at_least(self, "sweep", parameters=0, trials=1, trial_steps=0, seeds=1)
        for name in self.models:
            if name not in CONTENDERS:
                raise InputError(f"sweep.models names {name!r}: {suggest(name, CONTENDERS)}")
        if len(self.rates) != 2 or not 0 < self.rates[0] <= self.rates[-1]:
            raise InputError(f"sweep.rates={self.rates} is no range: give the lowest and the highest peak rate, for example (0.002, 0.008)")
        for key, least in (("sizes", 0.01), ("penalties", 0.0), ("gate_biases", -20.0), ("lengths", 1)):
            if (not getattr(self, key) and key != "lengths") or any(not least <= value < math.inf for value in getattr(self, key)):
                raise InputError(f"sweep.{key}={getattr(self, key)} is out of range: give one or more values of at least {least}")
        most = len(self.sizes) * len(self.gate_biases) * len(self.penalties)
        if self.trials % most:
            raise InputError(
                f"sweep.trials={self.trials} is no multiple of the {most} combinations of sizes, gate_biases and penalties, so that models would get unequal "
                f"numbers of trials: use a multiple of {most}"
            )


@dataclasses.dataclass(frozen=True)
class Experiment:
    """One run, whole: saved beside its checkpoints, so that a run describes itself."""

    name: str = "experiment"
    data: Data = Data()
    model: Model = Model()
    optimizer: Optimizer = Optimizer()
    training: Training = Training()
    measure: Measure = Measure()
    compress: Compress = Compress()
    sweep: Sweep = Sweep()

    def __post_init__(self) -> None:
        _check_fields(self, "config")
        whole = tuple(source for source, kind in SOURCES.items() if settings.TASKS[kind].whole)
        if self.model.bidirectional and self.data.source not in whole:
            raise InputError(
                f"model.bidirectional=True reads a whole signal before it answers, found data.source={self.data.source!r}, where answers come on the way: "
                f"use bidirectional=False, or one of {', '.join(whole)}"
            )
        series = sources_of("training.forecast_loss")
        if self.training.forecast_loss != "mse" and self.data.source not in series:
            raise InputError(
                f"training.forecast_loss={self.training.forecast_loss!r} is a loss of forecasts, found data.source={self.data.source!r}, which has none: "
                f"leave it out, or use one of {', '.join(series)}"
            )
        for key in ("process_noise", "observation_noise", "certified"):
            if getattr(self.model, key) and not set(settings.readers(key)) & set(self.model.pattern):
                raise InputError(_unread(f"model.{key}", self.model.pattern, settings.readers(key), "model.pattern"))
        if self.optimizer.warmup_steps >= self.training.steps:
            raise InputError(
                f"optimizer.warmup_steps={self.optimizer.warmup_steps} leaves nothing of training.steps={self.training.steps}: "
                "use fewer warm-up steps or more steps"
            )
        if self.data.batch_size % self.optimizer.accumulate:
            raise InputError(
                f"data.batch_size={self.data.batch_size} cannot be cut into optimizer.accumulate={self.optimizer.accumulate} equal micro-batches: "
                "use a multiple of it"
            )
        if (self.training.gate_l1 or self.training.target_dimension) and not set(settings.list_gated()) & set(self.model.pattern):
            raise InputError(
                f"training.gate_l1={self.training.gate_l1} and target_dimension={self.training.target_dimension} weigh gates, and no mixer of model.pattern="
                f"{self.model.pattern} has any: set both to 0, or use one of {', '.join(settings.list_gated())}"
            )
        if self.training.gate_l0 and self.model.gate != "hard_concrete":
            raise InputError(
                f"training.gate_l0 needs a gate with a differentiable L0, found model.gate={self.model.gate!r}: use 'hard_concrete', or training.gate_l1"
            )
        if 0 < self.training.target_dimension <= self.model.gate_floor:
            raise InputError(
                f"training.target_dimension={self.training.target_dimension} cannot be reached by gates of at least model.gate_floor="
                f"{self.model.gate_floor}: raise the target, or lower the floor"
            )
        if self.training.rate:
            self._check_rate()

    def refuse_unread(self, base: "Experiment | None" = None, *, sweep: bool = False) -> None:
        """Raises InputError for a key that is set, away from its default, and that nothing of this experiment reads.

        The models of a sweep read too, of one that is asked for or whose group is set. For what is begun: runs of older versions may hold such
        keys, and go on.

        Args:
          base: the experiment of a config file before anything was overridden: what it sets and reads may lie idle once its data or mixers are others.
        """
        known = {} if base is None else base.unread(sweep=sweep)
        for path, message in self.unread(sweep=sweep).items():
            group, _, key = path.partition(".")
            inherited = base is not None and path not in known and getattr(getattr(self, group), key) == getattr(getattr(base, group), key)
            if not inherited:
                raise InputError(message)

    def unread(self, *, sweep: bool = False) -> dict[str, str]:
        """Returns the keys that are set and that nothing reads, each with what is to be said of it."""
        swept = [CONTENDERS[name] for name in self.sweep.models] if sweep or self.sweep != Sweep() else []
        mixers, source, found = {*self.model.pattern, *swept}, self.data.source, {}
        changed = self._list_changes()
        for path in changed:
            readers = settings.readers(path.removeprefix("model.")) if path.startswith("model.") else ()
            elsewhere = path == "model.d_model" or (path == "model.norm_epsilon" and self.model.norm == "rms")
            if readers and not elsewhere and not set(readers) & mixers:
                found[path] = _unread(path, self.model.pattern, readers, "model.pattern")
            elif source not in sources_of(path):
                found[path] = _unread(path, source, sources_of(path), "data.source")
            elif path in ONLY_WITH and ONLY_WITH[path] not in changed:
                found[path] = f"{path} is read with {ONLY_WITH[path]} alone, which is not set: leave it out, or set both"
        return found

    def _list_changes(self) -> list[str]:
        """The keys of data, model and training that are not at their defaults."""
        groups = (("data", self.data, Data), ("model", self.model, Model), ("training", self.training, Training))
        return [
            f"{name}.{field.name}"
            for name, values, kind in groups
            for field in dataclasses.fields(kind)
            if field.name not in ("source", "task") and getattr(values, field.name) != field.default
        ]

    def _check_rate(self) -> None:
        """Raises InputError where the state has no density given the inputs, or its rate is not known."""
        model, form = self.model, self.training.rate_form
        if set(model.pattern) != {"selective"}:
            raise InputError(f"training.rate prices the noisy memory of 'selective' blocks, found model.pattern={model.pattern}: use those alone, or rate=0")
        if not model.process_noise:
            raise InputError(
                f"training.rate={self.training.rate} needs a state with noise, found model.process_noise=0.0: without it the state holds infinitely many nats; "
                "use for example model.process_noise=0.3"
            )
        if model.transition == "dense":
            raise InputError("training.rate is defined for components that do not mix, found model.transition='dense': use 'diagonal' or 'complex'")
        if model.process_noise < LEAST_NOISE:
            raise InputError(
                f"training.rate takes the logarithm of the state's variance, found model.process_noise={model.process_noise}, whose square float32 cannot "
                f"hold once a gate has let it in: use at least {LEAST_NOISE}"
            )
        if model.gate_bias < LEAST_OPEN and not model.gate_floor:
            raise InputError(
                f"training.rate needs noise at every step, but gates of model.gate_bias={model.gate_bias} are so small that float32 has no square of them: "
                f"use model.gate_floor=0.001 or so, or a bias of at least {LEAST_OPEN}"
            )
        if settings.GATES[model.gate].closes and not model.gate_floor:
            raise InputError(
                f"training.rate needs noise at every step, but gates of model.gate={model.gate!r} can be exactly 0 and let none in: "
                "use model.gate_floor=0.001 or so, or model.gate='sigmoid'"
            )
        if form == "capacity" and model.gate != "constant":
            raise InputError(
                f"training.rate_form='capacity' bounds the memory of gates that do not read the input, found model.gate={model.gate!r}: "
                "use rate_form='vib', or model.gate='constant'"
            )
        for key, wanted in (("gate_state", "none"), ("transition", "diagonal")):
            if form == "capacity" and getattr(model, key) != wanted:
                raise InputError(
                    f"training.rate_form='capacity' bounds the memory of a model.{key}={wanted!r}, found {getattr(model, key)!r}: use rate_form='vib'"
                )
        if self.optimizer.accumulate > 1:
            raise InputError(
                f"training.rate reads the moments of a whole batch, found optimizer.accumulate={self.optimizer.accumulate}: use 1, "
                "and more devices or model.remat=True where memory is short"
            )

    def to_config_dict(self) -> ml_collections.ConfigDict:
        """Returns the same values as a ConfigDict with locked keys, for `--config.key=value`."""
        return ml_collections.ConfigDict(dataclasses.asdict(self)).lock()

    @classmethod
    def from_config_dict(cls, config: ml_collections.ConfigDict) -> "Experiment":
        """Returns the experiment that a ConfigDict describes. Raises InputError that names the key and the fix."""
        return cls.from_dict(config.to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Experiment":
        """Returns the experiment that nested dictionaries describe. Raises InputError that names the key and the fix."""
        return _build(cls, values, "config")

    def overridden(self, assignments: typing.Iterable[str]) -> "Experiment":
        """Returns the experiment with "group.key=value" for keys that evaluation reads, of the groups measure and compress, and data.gaps; values as in JSON.

        Raises InputError for other groups, and for what is refused anywhere else.
        """
        values = dataclasses.asdict(self)
        for assignment in assignments:
            name, _, text = assignment.partition("=")
            group, _, key = name.partition(".")
            if group not in EVALUATION and name not in OF_FILES:
                raise InputError(
                    f"--override={assignment!r} is of no group that evaluation reads: give measure.KEY=VALUE, "
                    f"compress.KEY=VALUE or {OF_FILES[0]}=VALUE; another file is --file"
                )
            values[group] = values[group] | {key: _parse(text)}
        return self.from_dict(values)

    def to_json(self) -> str:
        """Returns the experiment as indented JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Experiment":
        """Returns the experiment that `to_json` wrote. Raises InputError for anything else."""
        try:
            return cls.from_dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise InputError(f"the experiment is not JSON ({error}): restore config.json or start in a new workdir") from error


def _unread(path: str, found: Any, readers: Sequence[str], where: str) -> str:
    """What is said of a key that nothing reads."""
    who = f"the mixer {readers[0]!r}" if where == "model.pattern" and len(readers) == 1 else ", ".join(readers)
    return f"{path} is read by {who} alone, which {where}={found!r} lacks: leave it out, or use one"


def _build(kind: type, values: Any, path: str) -> Any:
    """Returns the dataclass `kind` from a dictionary, recursively, refusing what is not one of its fields."""
    if not isinstance(values, dict):
        raise InputError(f"{path} must be a group of keys, found {values!r}")
    hints = typing.get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise InputError(f"{path} has no key {key!r}: {suggest(key, hints)}")
    return kind(**{key: _cast(hints[key], value, f"{path}.{key}") for key, value in values.items()})


def _parse(text: str) -> Any:
    """A number or truth value as JSON has it, else the text."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _cast(hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return _build(hint, value, path)
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        return tuple(_cast(typing.get_args(hint)[0], item, path) for item in value)
    if hint is float and type(value) is int:
        return float(value) if abs(value) <= LARGEST_FLOAT else value  # which is refused by name
    return value


def find_recipe(name: str) -> str:
    """Returns the path of a config file: the file of that name, else the recipe of that name among those that came with the package."""
    if os.path.lexists(name):
        return name
    place = pathlib.PurePath(name.removeprefix("configs/").removesuffix(".py") + ".py")
    path = _recipes() / place
    return str(path) if ".." not in place.parts and not place.is_absolute() and path.is_file() else name


def _recipes() -> pathlib.Path:
    """The folder of the recipes: beside this file where the package is installed, else the clone's."""
    installed = pathlib.Path(__file__).parent / "recipes"
    return installed if installed.exists() else pathlib.Path(__file__).parent.parent / "configs"


def load(path: str) -> ml_collections.ConfigDict:
    """Returns what get_config() of a config file returns. Raises InputError where there is no such file or function, or it fails."""
    try:
        check_regular(path)
    except FileNotFoundError as error:
        near = [str(file) for file in pathlib.Path("configs").glob("*.py")] or [file.stem for file in _recipes().glob("*.py")]
        raise InputError(f"there is no config file {path}: {suggest(path, near)}") from error
    except (OSError, ValueError) as error:
        raise InputError(f"the config file {path!r} cannot be read ({getattr(error, 'strerror', None) or error}): name an existing file") from error
    try:
        config = runpy.run_path(path)["get_config"]()
    except Exception as error:  # whatever someone's own file may do
        reason = "there is no function get_config in it" if error.args == ("get_config",) else f"{type(error).__name__}: {error}"
        raise InputError(f"the config file {path} cannot be loaded: {reason}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(f"get_config() of {path} returned {config!r}: end it with return Experiment(...).to_config_dict()")
    return config
