"""The group `model`: what every block has, and a group for each mixer that has something to set."""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from selssm_jax.config.data import Task
from selssm_jax.config.fields import (
    EXTEND,
    Count,
    Least,
    Positive,
    Say,
    Share,
    Spread,
    build,
    check_fields,
    check_value,
    to_python,
)
from selssm_jax.config.mixers import (
    BUILT_IN,
    MIXERS,
    NONE,
    AttentionConfig,
    KalmanAttentionConfig,
    KalmanConfig,
    LocalAttentionConfig,
    Mamba2Config,
    MambaConfig,
    MixerConfig,
    RGLRUConfig,
    SelectiveConfig,
    TCNConfig,
)
from selssm_jax.config.resampling import ResampleConfig
from selssm_jax.errors import InputError, suggest

Pool = Literal["mean", "last"]
MOST_BLOCKS = 10_000  # of a model: each is compiled


def check_frames(frame: int, stride: int, say: Say) -> None:
    """Raises InputError for frames that are none, or leave samples out between them."""
    check_value(Positive, to_python(frame), say("frame"))
    check_value(Positive, to_python(stride), say("stride"))
    if stride > frame:
        raise InputError(
            f"{say('stride')}={stride} is larger than {say('frame')}={frame}: samples in between would be dropped; use "
            "stride <= frame"
        )


class OwnMixers(dict[str, MixerConfig]):
    """What registered mixers are set to, by name. Nothing in it is changed once it is made, so that models are known by
    their hash.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


@dataclasses.dataclass(frozen=True)
class Model:
    """A stack of pre-norm residual blocks, each a mixer over time and a gated MLP (theory, sections 1-3)."""

    pattern: tuple[str, ...] = ("selective",) * 4  # the mixer of each block; "none": a block without
    d_model: Positive = 128
    d_state: Positive = 256  # numbers of the state of a layer; mamba and mamba2: of a channel
    block_states: tuple[int, ...] = ()  # d_state of each block, in the order of the pattern; empty: the same in all
    bidirectional: bool = False  # classification: a second mixer reads from the end; a signal is then read in one piece
    conv: Annotated[int, Least(0, 4096)] = 0  # width of a short causal convolution before the recurrence; 0: none
    mlp_ratio: Annotated[float, Least(0.0)] = 2.0  # hidden width of the gated MLP over d_model; 0: no MLP
    block_mlp_ratios: tuple[float, ...] = ()  # mlp_ratio of each block; empty: the same in all
    # before every branch and the head; "none" leaves a model of linear parts linear
    norm: Literal["rms", "none"] = "rms"
    norm_epsilon: Spread = 1e-6  # added to the mean square under its root
    dropout: Share = 0.0
    tie_embeddings: bool = False  # language: the readout is the transposed embedding
    # signals and forecasting: samples of one frame of the encoder; 0: what suits the data, for signals 25 ms of sound
    frame: int = 1
    # signals and forecasting: samples from one frame to the next; 0: what suits the data, for signals 10 ms of sound
    stride: int = 1
    filterbank: Count = 0  # signals: log-magnitude filters of the encoder; 0: a linear frame encoder
    pool: Pool = "mean"  # classification: over the valid steps
    head_context: Positive = 1  # forecasting: how many of the last steps the head reads
    # forecasting: the last inputs that also reach the head by one linear map, past the mixers; 0: none
    linear_skip: Count = 0
    normalize: bool = True  # forecasting: reversible instance normalisation, of the level
    normalize_scale: bool = True  # forecasting: and of the scale, where the level is
    channel_independent: bool = False  # forecasting: one model, applied to every channel by itself
    # forecasting: channels that run apart each have a vector of their own, which is added to every frame
    channel_embedding: bool = False
    # forecasting: channels that run apart read one another before the blocks, by learned weights and a gate
    channel_mixing: bool = False
    dtype: Literal["float32", "bfloat16"] = "float32"  # of activations; states and parameters stay float32
    # bits of every component that is carried, a string of digits for each array of the state; empty: as computed
    memory_bits: tuple[str, ...] = ()
    # of every component that is carried, which table of levels it reads; empty: each its own
    memory_tables: tuple[int, ...] = ()
    # what memory_bits is about: all that is carried, or the mixers' states alone
    memory_scope: Literal["all", "mixers"] = "all"
    memory_rounding: Literal["nearest", "stochastic"] = "nearest"  # how what is carried is rounded to its levels
    remat: bool = False  # recompute a block's activations in the backward pass
    selective: SelectiveConfig = SelectiveConfig()
    kalman: KalmanConfig = KalmanConfig()
    kalman_attention: KalmanAttentionConfig = KalmanAttentionConfig()
    rg_lru: RGLRUConfig = RGLRUConfig()
    mamba: MambaConfig = MambaConfig()
    mamba2: Mamba2Config = Mamba2Config()
    attention: AttentionConfig = AttentionConfig()
    local_attention: LocalAttentionConfig = LocalAttentionConfig()
    tcn: TCNConfig = TCNConfig()
    # registered mixers: what each is set to, its config or a dictionary of its keys
    own: Mapping[str, Any] = OwnMixers()
    task: Task = Task()
    resample: ResampleConfig = ResampleConfig()  # which blocks read fewer steps, and which steps these are

    def __post_init__(self) -> None:
        check_fields(self, "model.{}".format)
        if not self.pattern:
            raise InputError("model.pattern is empty: name at least one mixer, for example ('selective',)")
        if len(self.pattern) > MOST_BLOCKS:
            raise InputError(
                f"model.pattern has {len(self.pattern)} blocks, which nothing compiles: use at most {MOST_BLOCKS}"
            )
        for name in self.pattern:
            if name not in (*MIXERS, NONE):
                raise InputError(f"model.pattern names the mixer {name!r}: {suggest(name, MIXERS)}; {EXTEND}")
        if self.frame or self.stride:  # both 0: what suits the data
            check_frames(self.frame, self.stride, "model.{}".format)
        for key, does in (
            ("channel_embedding", "tells channels apart that share their weights"),
            ("channel_mixing", "lets channels that run apart read one another"),
        ):
            if getattr(self, key) and not self.channel_independent:
                raise InputError(
                    f"model.{key}=True {does}, found model.channel_independent=False, where each has weights of its "
                    f"own and reads all: set channel_independent=True, or leave {key} out"
                )
        object.__setattr__(self, "own", self._read_own())
        for name in MIXERS:
            check_fields(self.mixer(name), self._calls(name))
        self._check_blocks()
        self._check_memory()
        self.resample.check(self.pattern, [self.mixer(name) for name in self.pattern])

    def mixer(self, name: str) -> MixerConfig:
        """Returns what the mixer that a pattern calls `name` is set to."""
        config = getattr(self, name) if name in BUILT_IN and hasattr(self, name) else self.own.get(name)
        return config or (MixerConfig() if name == NONE else MIXERS[name].config())

    def arguments(self, name: str) -> dict[str, Any]:
        """Returns the arguments of the mixer that the pattern calls `name`, of a model of one block."""
        return {key: getattr(self, key) for key in ("d_model", *MIXERS[name].keys)} | self.mixer(name).arguments()

    def of_task(self, task: Task) -> "Model":
        """Returns the model of a task: frames that are left to the data are as the task has them."""
        return dataclasses.replace(
            self, task=task, frame=self.frame or task.frame or 1, stride=self.stride or task.stride or 1
        )

    @property
    def knows_gains(self) -> bool:
        """Whether the gates of every block know the nats that they gain."""
        return all(MIXERS[name].gains for name in self.kinds)

    @property
    def kinds(self) -> frozenset[str]:
        """The mixers of the pattern, whichever blocks have them."""
        return frozenset(self.pattern) - {NONE}

    @property
    def blocks(self) -> tuple["Model", ...]:
        """The model as each block reads it: with a d_state and an mlp_ratio of its own, and the steps that it is
        given.
        """
        count = len(self.pattern)
        sizes, ratios = self.block_states or (self.d_state,) * count, self.block_mlp_ratios or (self.mlp_ratio,) * count
        parts = zip(self.pattern, sizes, ratios, self._tcn_blocks(), strict=True)
        same: dict[str, Any] = {"block_states": (), "block_mlp_ratios": (), "resample": ResampleConfig()}
        return tuple(
            dataclasses.replace(self, pattern=(name,), d_state=size, mlp_ratio=ratio, tcn=tcn, **same)
            for name, size, ratio, tcn in parts
        )

    def _tcn_blocks(self) -> list[TCNConfig]:
        """What each block would be as a TCN."""
        each = iter(self.tcn.of_blocks(self.pattern.count("tcn"), self._calls("tcn")))
        return [next(each) if name == "tcn" else dataclasses.replace(self.tcn, dilations=()) for name in self.pattern]

    def _calls(self, mixer: str, **sizes: str) -> Say:
        """What the arguments of a mixer are called here."""
        shared = {"d_model": "model.d_model", "d_state": "model.d_state"} | sizes
        group = f"model.{mixer}" if mixer in BUILT_IN else f"model.own.{mixer}"
        return lambda name: shared.get(name, f"{group}.{name}")

    def _check_blocks(self) -> None:
        """Raises InputError where sizes are not one a block, or break a rule of the block's mixer."""
        self._check_ratios()
        if self.block_states and len(self.block_states) != len(self.pattern):
            raise InputError(
                f"model.block_states={self.block_states} has {len(self.block_states)} sizes for the "
                f"{len(self.pattern)} blocks of model.pattern: give one a block, or () for d_state in all"
            )
        if any(size < 1 for size in self.block_states):
            raise InputError(f"model.block_states={self.block_states} is out of range: use at least 1 in every block")
        self._tcn_blocks()
        for index, name in enumerate(self.pattern):
            size, calls = (
                (self.block_states[index], {"d_state": f"model.block_states[{index}]"})
                if self.block_states
                else (self.d_state, {})
            )
            self.mixer(name).check(self.d_model, size, self._calls(name, **calls))

    def _check_ratios(self) -> None:
        ratios = self.block_mlp_ratios
        if ratios and len(ratios) != len(self.pattern):
            raise InputError(
                f"model.block_mlp_ratios={ratios} has {len(ratios)} numbers for the {len(self.pattern)} blocks of "
                "model.pattern: give one a block, or () for mlp_ratio in all"
            )
        for index, ratio in enumerate(ratios):
            Least(0.0).check(ratio, f"model.block_mlp_ratios[{index}]")

    def _read_own(self) -> OwnMixers:
        """What registered mixers are set to: those of the pattern whole, others where they are set to anything."""
        known = [name for name in MIXERS if name not in BUILT_IN]
        for name in self.own:
            if name not in known:
                raise InputError(f"model.own has no mixer {name!r}: {suggest(name, known)}; {EXTEND}")
        found = OwnMixers()
        for name in known:
            kind, value = MIXERS[name].config, self.own.get(name, {})
            config = value if isinstance(value, kind) else build(kind, value, f"model.own.{name}")
            if name in self.pattern or config != kind():
                found[name] = config
        return found

    def _check_memory(self) -> None:
        for digits in self.memory_bits:
            if not digits or set(digits) - set("012345678"):
                raise InputError(
                    f"model.memory_bits holds {digits!r}: give each array of the state its components' bits, a digit "
                    "from 0 to 8 each"
                )
        pairs = set(zip(self.memory_tables, "".join(self.memory_bits), strict=False))
        if self.memory_tables and (
            len(self.memory_tables) != sum(map(len, self.memory_bits)) or len(pairs) != len(set(self.memory_tables))
        ):
            raise InputError(
                "model.memory_tables does not fit model.memory_bits: give each component the number of a table, and "
                "those of one table equal bits"
            )
