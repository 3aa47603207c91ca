"""The group `data`, where data come from, and what a kind of task reads."""

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple

from selssm_jax.config.fields import EXTEND, Count, Least, NonNegative, OneOf, Positive, Seed, Within, check_fields
from selssm_jax.errors import InputError, suggest

MOST_EVALUATED = 10_000_000  # examples of an evaluation: each is made when it is read, and more would take days
MOST_PLACES = 1 << 24  # in a cycle that a model learns
CALENDAR = ("minute", "hour", "weekday", "day", "yearday", "month")
LABELLED = ("labelled_text",)  # a class for a text
TAGGED = ("tagged_text",)  # a class for every token
NEEDS_FILE = ("text", "csv", "npz", *LABELLED, *TAGGED)
SIGNALS = ("fsdd", "smnist", "psmnist", "npz")
TABLES = ("etth1", "ettm1", "weather", "csv")
PROCESSES = ("linear_gaussian", "changing_noise", "changing_drift", "two_answers")
SERIES = (*TABLES, *PROCESSES)  # what is forecast
TEXTS = ("python_reference", "tiny_shakespeare", "wikitext2", "text")
SYMBOLS = ("selective_copying", "induction_heads", "associative_recall", "delayed_recall")
SYNTHETIC = (*SYMBOLS, *PROCESSES)
# Where data come from, and the kind of task that they ask; `data.register_data` adds own ones.
SOURCES: dict[str, str] = {
    **dict.fromkeys((*TEXTS, *SYMBOLS), "language"),
    **dict.fromkeys(SIGNALS, "classification"),
    **dict.fromkeys(SERIES, "forecasting"),
    **dict.fromkeys(LABELLED, "text_classification"),
    **dict.fromkeys(TAGGED, "token_classification"),
}
# Keys that some data alone read; those of kinds of task are in TASKS.
SOURCES_OF = {
    "data.file": NEEDS_FILE,
    **dict.fromkeys((f"data.{key}" for key in ("gaps", "missing", "calendar", "series_id", "ignore")), ("csv",)),
    **dict.fromkeys((f"data.{key}" for key in ("targets", "past_covariates", "future_covariates", "static")), ("csv",)),
    "data.level": (*TEXTS, *LABELLED),
    "data.vocab": SYMBOLS,
    "data.tokens": ("selective_copying", "associative_recall"),
    "data.lag": ("delayed_recall",),
    "data.noise": PROCESSES,
    "data.decay": ("changing_noise",),
    "data.blank": ("linear_gaussian",),
    "data.augment": SIGNALS,
    **dict.fromkeys(("data.train_examples", "data.eval_examples"), SYNTHETIC),
}


class TaskRule(NamedTuple):
    """What the config knows of a kind of task: keys that not every kind reads, and whether all is read before an
    answer, so that mixers may run backwards.
    """

    keys: tuple[str, ...] = ()
    whole: bool = False


_FRAMES = ("model.frame", "model.stride", "model.filterbank")
_SERIES = (
    "head_context",
    "linear_skip",
    "normalize",
    "normalize_scale",
    "channel_independent",
    "channel_embedding",
    "channel_mixing",
)
TASKS: dict[str, TaskRule] = {
    "language": TaskRule(("model.tie_embeddings",)),
    "classification": TaskRule(("model.pool", *_FRAMES), whole=True),
    "text_classification": TaskRule(("model.pool",), whole=True),
    "token_classification": TaskRule(whole=True),
    "forecasting": TaskRule(
        (
            "data.horizon",
            "data.quantiles",
            "training.forecast_loss",
            "training.information_steps",
            *(f"model.{key}" for key in _SERIES),
            *_FRAMES,
        )
    ),
}


def sources_of(path: str) -> tuple[str, ...]:
    """Returns the sources whose data, or whose kind of task, read a key; all of them where it is read for any."""
    kinds = [kind for kind, rule in TASKS.items() if path in rule.keys]
    return SOURCES_OF.get(path) or tuple(source for source, kind in SOURCES.items() if kind in kinds or not kinds)


def add_source(name: str, kind: str) -> None:
    """Makes `data.source=name` a choice, for data that ask a kind of task. Raises ValueError for a name that is taken
    and a kind that is unknown.
    """
    if name in SOURCES:
        raise ValueError(f"the data source {name!r} is there already: give another name")
    if kind not in TASKS:
        raise ValueError(
            f"the data source {name!r} asks the task {kind!r}, which is unknown: {suggest(kind, TASKS)}; register a "
            "task of yours first"
        )
    SOURCES[name] = kind


@dataclasses.dataclass(frozen=True)
class Task:
    """What the data asks of a model; filled in from the data, so that a config never repeats it.

    kind "language": a token for every step; "classification": a class for a whole signal; "text_classification": for a
    whole text; "token_classification": for every token; "forecasting": the next `horizon` values of every channel.
    """

    kind: str = "language"  # one of `tasks.TASKS`
    vocab: int = 0
    channels: int = 0
    classes: int = 0
    length: int = 0
    horizon: int = 0
    # signals: samples of a frame that suit the data, and from one to the next, for models that leave it to them
    frame: int = 0
    stride: int = 0
    # forecasting: whether inputs say of every channel, behind all of them, where it has a value; what is read beside
    # the channels; and how many of the last of that tell of the row `horizon` steps ahead
    masked: bool = False
    covariates: int = 0
    known_ahead: int = 0
    quantiles: tuple[float, ...] = ()  # forecasting: of every value, those that are forecast; empty: its mean
    # forecasting: rows of a cycle that the model learns; inputs then end with the place of each row in it. 0: none
    period: int = 0

    @classmethod
    def recall(cls, values: Mapping[str, Any]) -> "Task":
        """Returns the task that a run keeps as JSON; keys that came later have their defaults, older ones are left
        out.
        """
        known: dict[str, Any] = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        return cls(**known | {"quantiles": tuple(known.get("quantiles", ()))})

    def describe(self) -> dict[str, Any]:
        """Returns the task as JSON has it, which `recall` reads."""
        return dataclasses.asdict(self) | {"quantiles": list(self.quantiles)}

    @property
    def width(self) -> int:
        """How many numbers a step of the inputs has."""
        return self.channels * (1 + self.masked) + self.covariates + (self.period > 0)


@dataclasses.dataclass(frozen=True)
class Data:
    """Which examples, from where, how many at a time."""

    source: Annotated[str, OneOf(SOURCES, f"; {EXTEND}")] = "python_reference"
    file: str = ""  # your own file, for the sources "text", "csv", "npz", "labelled_text" and "tagged_text"
    local_dir: str = ""  # a folder that holds the originals; empty: they are downloaded from their public origin
    cache_dir: str = ""  # where prepared records are kept; empty: $SELSSM_DATA_DIR, else ~/.cache/selssm_jax
    train_on: Literal["train", "train+validation"] = "train"
    batch_size: Positive = 32
    eval_batch_size: Count = 0  # 0: batch_size
    # steps of one example: context, lookback; signals: the longest kept; 0: what suits a file of yours, and signals
    # whole
    length: Count = 256
    horizon: Positive = 96  # forecasting: values to predict
    # forecasting: of every value to predict, the quantiles that a model forecasts, trained by their pinball loss, such
    # as (.025, .1, .5, .9, .975): the median and pairs around it; empty: the mean alone, by training.forecast_loss
    quantiles: tuple[float, ...] = ()
    # tables: rows of a season whose course is taken off before the blocks read, 24 for a day of hours; 0: none; -1: as
    # many as the training rows show
    period: Annotated[int, Least(-1)] = 0
    # of data.period: the mean over the training rows, taken off by the data, or one that the model learns, taken off
    # at the level and scale of each window
    course: Literal["mean", "learned"] = "mean"
    # csv: times that are missing or come twice; ignored, each row follows the one before; filled, rows without values
    # are put in, which data.missing="mask" carries, and of a time that comes twice the last row counts
    gaps: Literal["refuse", "ignore", "fill"] = "refuse"
    # csv: cells without a value (empty, NA, NaN, null, -, ?); masked, the model sees which they are, and no score
    # counts them
    missing: Literal["refuse", "mask"] = "refuse"
    # csv: names of columns; targets are forecast, empty: all that nothing else is said of. Past covariates are read,
    # future ones for the rows to be forecast too, static ones are the same throughout a series
    targets: tuple[str, ...] = ()
    past_covariates: tuple[str, ...] = ()
    future_covariates: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    series_id: str = ""  # csv: the column that tells which series a row is of, where a table holds several
    # csv: what is known of every row by its time, as sine and cosine: minute, hour, weekday, day, yearday, month
    calendar: tuple[str, ...] = ()
    # text: what a token is; "subword": of imported models alone
    level: Literal["character", "word", "byte", "subword"] = "character"
    augment: bool = False  # signals: random shift, gain and noise in training
    # synthetic: symbols, besides blanks and marks; associative_recall has as many values, as many keys and a blank
    vocab: Annotated[int, Least(2)] = 16
    tokens: Positive = 16  # synthetic: symbols, or pairs of a key and a value, to remember
    lag: Positive = 16  # delayed_recall: how far back
    decay: Annotated[float, Within(0.0, 0.99999)] = 0.99  # changing_noise: of the hidden state from step to step
    blank: Count = 0  # linear_gaussian: last steps without a reading, so that what is said comes from memory alone
    noise: NonNegative = 0.1  # variance of observations: linear_gaussian, changing_noise, changing_drift, two_answers
    train_examples: Positive = 100_000  # synthetic: training examples before the order repeats
    eval_examples: Positive = 1_000  # synthetic: examples of validation and of test, each
    seed: Seed = 0  # order of the data, draws of synthetic examples, psmnist's permutation

    def __post_init__(self) -> None:
        check_fields(self, "data.{}".format)
        if self.source in NEEDS_FILE and not self.file:
            raise InputError(
                f"data.file is empty, but data.source={self.source!r} reads a file of yours: set data.file to its path"
            )
        if self.eval_examples > MOST_EVALUATED:
            raise InputError(
                f"data.eval_examples={self.eval_examples} would take days to evaluate: use at most {MOST_EVALUATED}"
            )
        if not self.length and self.source in (*SERIES, *TEXTS, *SYMBOLS) and self.source not in ("text", "csv"):
            raise InputError(
                f"data.length=0 keeps signals whole, but data.source={self.source!r} is cut into windows: use at least "
                "1"
            )
        self._check_columns()
        self._check_quantiles()
        if self.gaps == "fill" and self.missing != "mask":
            raise InputError(
                "data.gaps='fill' puts in rows that have no values, which data.missing='refuse' refuses: set "
                "data.missing='mask' too"
            )
        if self.learned_period > MOST_PLACES:
            raise InputError(
                f"data.period={self.period} has more places than float32, in which a model reads them, tells apart: "
                f"use at most {MOST_PLACES}, or data.course='mean'"
            )
        if self.period and self.source not in TABLES:
            raise InputError(
                f"data.period={self.period} is of tables, found data.source={self.source!r}: use data.period=0, or one "
                f"of {', '.join(TABLES)}"
            )

    @property
    def learned_period(self) -> int:
        """Rows of a cycle whose course the model learns; 0 where there is none."""
        return self.period if self.course == "learned" else 0

    def _check_quantiles(self) -> None:
        """Raises InputError for quantiles that are not the median and pairs around it."""
        inside = all(0 < quantile < 1 for quantile in self.quantiles)
        rising = all(low < high for low, high in itertools.pairwise(self.quantiles))
        pairs = zip(self.quantiles, reversed(self.quantiles), strict=True)
        if not (inside and rising and all(abs(low + high - 1) < 1e-6 for low, high in pairs)):
            raise InputError(
                f"data.quantiles={self.quantiles} do not rise from above 0 to below 1 in pairs around the median: use "
                "for example (0.025, 0.1, 0.5, 0.9, 0.975)"
            )
        if self.quantiles and len(self.quantiles) % 2 == 0:
            raise InputError(
                f"data.quantiles={self.quantiles} lack the median, which is the forecast: put 0.5 in their middle"
            )

    def _check_columns(self) -> None:
        """Raises InputError for a column of two roles, an unknown feature of the calendar, and rows to be forecast that
        reach further ahead than those that are read.
        """
        roles = {
            key: getattr(self, key) for key in ("targets", "past_covariates", "future_covariates", "static", "ignore")
        } | {"series_id": (self.series_id,) if self.series_id else ()}
        seen: dict[str, str] = {}
        for role, names in roles.items():
            for name in names:
                if name in seen:
                    raise InputError(
                        f"data.{role} names the column {name!r}, which data.{seen[name]} names too: give it one role"
                    )
                seen[name] = role
        for feature in self.calendar:
            if feature not in CALENDAR:
                raise InputError(f"data.calendar={self.calendar} has {feature!r}: {suggest(feature, CALENDAR)}")
        if (self.future_covariates or self.calendar) and 0 < self.length < self.horizon:
            raise InputError(
                f"data.length={self.length} is shorter than data.horizon={self.horizon}, whose rows data.calendar and "
                "data.future_covariates tell of: look back on as many rows at least"
            )
