"""The groups `measure`, `compress`, `explain` and `stream`, which evaluation reads."""

import dataclasses
from typing import Annotated, Literal

from selssm_jax.config.fields import Count, Least, NonNegative, Positive, Seed, Share, Within, check_fields
from selssm_jax.errors import InputError

FEWEST = 100  # sequences that a memory can be measured on


@dataclasses.dataclass(frozen=True)
class Measure:
    """What `eval.py --measure` records of a trained model's memory, and how long its decoders are fitted; nothing of it
    touches training.
    """

    # sequences of the split that are read, each from an empty memory; at most what there is
    samples: Annotated[int, Least(FEWEST)] = 2000
    positions: Positive = 8  # moments of a sequence whose states are kept
    longest_lag: Count = 64  # the largest lag k of x_(t-k) that is decoded from h_t; lags are spaced geometrically
    decoder_steps: Positive = 400
    decoder_width: Positive = 256
    seed: Seed = 0

    def __post_init__(self) -> None:
        check_fields(self, "measure.{}".format)


@dataclasses.dataclass(frozen=True)
class Compress:
    """What `eval.py --compress` makes of a trained model; nothing of it touches training."""

    # how many times fewer bytes are carried than in float32; 0: the most that keeps the loss within `within`
    factor: NonNegative = 16.0
    # what is packed: all that is carried (states, past inputs, pooled features), or mixers' states alone
    scope: Literal["all", "mixers"] = "all"
    # the nearest level swallows small updates step after step
    rounding: Literal["nearest", "stochastic"] = "stochastic"
    # carried at once, among which the table of levels is shared: bytes of one are its own and its share of the table
    sequences: int = 32
    within: Annotated[float, Within(0.0, 1.0)] = 0.01  # relative loss of the metric that is allowed
    most_bits: Annotated[int, Within(1, 8)] = 6  # of one component
    calibration: Positive = 4  # training batches that levels, variances and sensitivities are taken from
    steps: Count = 300  # of fine-tuning; 0: none
    peak_rate: NonNegative = 5e-4  # of fine-tuning
    weights: Literal["float32", "int8"] = "float32"  # as the compressed run stores them
    seed: Seed = 0
    # parts that may be removed: blocks; their mixers, whose place the skip takes; attention; MLPs; any of these
    remove: Literal["none", "blocks", "recurrences", "attention", "mlps", "all"] = "none"
    removed: Share = 0.25  # of these parts that are removed, but at least one part
    # what says which: the loss without them, read anew for every choice, or a score from one pass
    remove_by: Literal["loss", "expansion", "information", "memory", "influence", "relevance"] = "loss"
    packed: bool = True  # False: parts are removed, and what is carried stays in float32

    def __post_init__(self) -> None:
        check_fields(self, "compress.{}".format)
        if 0 < self.factor < 1:
            raise InputError(
                f"compress.factor={self.factor} would enlarge the memory: use at least 1, or 0 for the most that stays "
                "within compress.within"
            )
        if self.remove_by == "memory" and self.remove in ("mlps", "all"):
            raise InputError(
                f"compress.remove_by='memory' weighs what mixers hold, found compress.remove={self.remove!r}: an MLP "
                "holds nothing; use 'information', or remove blocks or recurrences"
            )
        if not self.packed and self.remove == "none":
            raise InputError(
                "compress.packed=False leaves what is carried as it is, found compress.remove='none', which removes "
                "nothing: name what is to be removed, for example compress.remove='blocks', or leave packed out"
            )


@dataclasses.dataclass(frozen=True)
class Explain:
    """What `eval.py --explain` says of a trained model; nothing of it touches training."""

    examples: Positive = 2  # first sequences of the split
    output: Literal["said", "right"] = "said"  # which token is explained: what the model says, or what is right
    method: Literal["lrp", "gradient_x_input"] = "lrp"
    longest: Positive = 160  # tokens of a text, which is cut there
    channel: Count = 0  # of a forecast

    def __post_init__(self) -> None:
        check_fields(self, "explain.{}".format)


@dataclasses.dataclass(frozen=True)
class Streaming:
    """How `eval.py --stream` learns on from rows of a table as they come; nothing of it touches training."""

    rate: NonNegative = 1e-3  # of Adam; 0: parameters stay, and are scored alone
    # exact: gradients through all of the past, of mixers that have them; pieces: through so many rows, of any mixer
    gradient: Literal["exact", "pieces"] = "exact"
    piece: Positive = 32  # rows of a piece
    fade: Annotated[float, Within(0.0, 1.0)] = 0.999  # factor of older errors in a score, from one row to the next
    detector: Literal["adwin", "page_hinkley", "none"] = "adwin"  # of changes of the learner's error
    # of adwin: the share of false alarms; of page_hinkley: what a sum of errors above their mean must pass is 50
    delta: Annotated[float, Within(1e-9, 0.5)] = 0.002
    # what follows a rise: steps are so many times as long and fall back over so many rows; moments are forgotten; this
    # share of the states stays; a fresh learner runs beside for so many rows, 0: none
    rise_rate: Annotated[float, Within(1e-3, 1e3)] = 1.0
    rise_rows: Positive = 500
    reset_optimizer: bool = False
    keep_memory: Annotated[float, Within(0.0, 1.0)] = 1.0
    fork: Count = 0
    history: Count = 0  # rows that are read before the first forecast: they set a scale, and nothing is learnt
    lags: Positive = 8  # rows that the recursive least squares read, to hold the learner against
    forgetting: Annotated[float, Within(0.5, 1.0)] = 0.999  # of these, from one row to the next
    log_every: Positive = 100  # rows
    save_every: Positive = 1000  # rows
    remembered: Annotated[int, Least(256)] = 4096  # rows, the last ones, of which the report says bits
    changes: tuple[int, ...] = ()  # rows at which the world is known to change, for the report alone

    def __post_init__(self) -> None:
        check_fields(self, "stream.{}".format)
        if any(row < 0 for row in self.changes):
            raise InputError(f"stream.changes={self.changes} are rows of the stream: use numbers from 0 on")
        if self.history > self.remembered:
            raise InputError(
                f"stream.history={self.history} is more than the stream.remembered={self.remembered} that are kept: "
                "use fewer, or remember more"
            )
