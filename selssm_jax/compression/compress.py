"""From a trained model to a smaller memory: candidates at equal bytes, the frontier of bytes and loss, the chosen one
fine-tuned (theory, section 10).

Levels, variances and sensitivities come from training batches, every choice from the validation split; the test split
is not read here.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from selssm_jax.compression import pruning, quantization, sharing, truncation
from selssm_jax.compression.finetune import finetune
from selssm_jax.compression.progress import Progress
from selssm_jax.compression.removal_search import Removal, check_removal, remove_from, search
from selssm_jax.compression.search import Point, smallest
from selssm_jax.compression.sensitivity import error_weights
from selssm_jax.compression.streaming import LEVELS, PackedModel, calibration, flat_levels
from selssm_jax.compression.subject import Subject, loss_of, relative_loss
from selssm_jax.config import Compress, Experiment
from selssm_jax.errors import InputError
from selssm_jax.model import ModelLike, SequenceModel
from selssm_jax.state_layout import StateLayout

PyTree = Any
FACTORS = (4.0, 8.0, 16.0, 32.0)  # of the frontier, beside the one that is asked for
PRUNED = 2  # one component of so many is kept, where components are pruned before the rest is packed
HALF, QUARTER = "half", "a quarter"
EQUAL, VARIANCE, INFORMATION = "equal bits", "bits by variance", "bits by information"
BALANCED = "balanced truncation"


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What is known of the memory on training batches: samples (S, M), and what a unit of squared error costs (M,).

    The memory is all that the model carries or, of the scope "mixers", their states alone.
    """

    layout: StateLayout
    scope: Literal["all", "mixers"]
    samples: Float[np.ndarray, "S M"]
    weights: Float[np.ndarray, "M"]

    @property
    def variances(self) -> Float[np.ndarray, "M"]:
        """Of every component over the samples."""
        return self.samples.var(axis=0, dtype=np.float64)

    @property
    def float_bytes(self) -> int:
        """Bytes of one sequence's memory in float32."""
        return 4 * self.layout.rows * self.layout.size + self.constant

    @property
    def constant(self) -> int:
        """Bytes of the memory that are not packed."""
        return _constant(self.layout.kept_bytes, self.scope)


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One compressed model: how it was made, what it takes, its metrics on the validation split, and which components
    are left where some were removed.

    Attributes:
      nbytes: that one sequence carries. table: bytes that all sequences share, of the levels and of which component
        reads which.
      truncated: blocks that balanced truncation has made smaller, and what is proved of each.
      removed: parts of blocks that are gone, by their names in the whole model.
    """

    method: str
    nbytes: int
    model: ModelLike
    params: PyTree
    validation: dict[str, float]
    keep: pruning.Keep = dataclasses.field(default_factory=dict)
    table: int = 0
    truncated: dict[str, truncation.Truncation] = dataclasses.field(default_factory=dict)
    removed: tuple[str, ...] = ()

    def share(self, sequences: int) -> float:
        """Returns the bytes of one sequence and its share of the table, where so many are carried at once."""
        return self.nbytes + self.table / sequences

    def pays_from(self, reference: "Candidate") -> int | None:
        """Returns from how many sequences on all of it is fewer bytes than the reference, the table counted; None where
        it never is.
        """
        saved = reference.nbytes - self.nbytes
        return self.table // saved + 1 if saved > 0 else None


@dataclasses.dataclass(frozen=True)
class Compression:
    """All that was tried, and what was chosen.

    Attributes:
      reference: the model itself, in float32. methods: candidates at the bytes that were asked for. frontier: the best
        method at other bytes, and at these. chosen: the best of the methods, fine-tuned, where that did not make it
        worse. removal: what parts of blocks cost that were removed; None where none were asked for.
    """

    calibration: Calibration
    reference: Candidate
    methods: list[Candidate]
    frontier: list[Candidate]
    chosen: Candidate
    removal: Removal | None = None


# A rule of bits: from what calibration tells to what an error in each component costs, (M,), by which reverse
# water-filling gives bits.
RULES: dict[str, Callable[[Calibration], np.ndarray]] = {
    INFORMATION: lambda known: known.layout.newest_most(known.weights * known.variances),
    VARIANCE: lambda known: known.variances,
    EQUAL: lambda known: np.ones(known.layout.size),
}


def register_method(name: str, errors: Callable[[Calibration], np.ndarray]) -> None:
    """Makes an own way to give bits to components known: every compression tries it beside the others, at equal bytes,
    judged on validation.

    Commands read the file that registers it by `--extend FILE.py`.

    Args:
      name: what the report calls it.
      errors: from what calibration tells of the M carried components (`Calibration`: samples (S, M), their variances,
        and what a unit of squared error costs the loss, weights (M,)) to what an error in each costs, (M,): at least 0
        and finite. Bits go where errors cost most.

    Raises:
      ValueError: for a name that is taken.
    """
    if name in RULES:
        raise ValueError(f"the method {name!r} is there already: give another name")
    RULES[name] = errors


def calibrate(subject: Subject) -> Calibration:
    """Returns what calibration tells, from `compress.calibration` training batches."""
    scope, model, params = subject.experiment.compress.scope, subject.model, subject.params
    how: dict[str, Any] = {"scope": scope, "piece": subject.experiment.training.piece}
    batches = subject.draw_batches()
    weights = error_weights(model, params, batches, **how)
    return Calibration(StateLayout(model, params, scope), scope, calibration(model, params, batches, **how), weights)


def quantise(subject: Subject, known: Calibration, nbytes: float, rule: str) -> tuple[PackedModel, PyTree]:
    """Returns the model with its memory packed into at most `nbytes` bytes a sequence, its share of the table of levels
    counted; bits by a rule of `RULES`.

    "bits by information" is reverse water-filling of what an error costs the loss, "bits by variance" of the error
    itself. Of all ways to share tables (`sharing.groupings`) the one is taken whose errors cost least on the samples,
    for what tables take is not there for bits.

    Raises:
      InputError: where not even the numbers that stay as they are fit, and one table for all.
    """
    layout, options = known.layout, subject.experiment.compress
    weights = known.weights if rule == INFORMATION else np.ones(layout.size)
    errors = RULES[rule](known)
    if errors.shape != (layout.size,) or not (np.isfinite(errors).all() and (errors >= 0).all()):
        raise ValueError(
            f"the rule {rule!r} gives errors of shape {errors.shape}, expected {(layout.size,)} finite numbers of at "
            "least 0"
        )
    best: tuple[float, quantization.Quantizer, tuple[int, ...]] | None = None
    for groups in sharing.groupings(known.samples, layout.channels(), weights):
        if (bits := _affordable(known, options, nbytes, errors, groups)) is None:
            continue
        quantizer = quantization.fit(known.samples, bits, channels=groups)
        cost = float(weights @ sharing.squared_errors(quantizer, known.samples))
        if best is None or cost < best[0]:
            best = cost, quantizer, sharing.number_tables(groups, bits)
    if best is None:
        raise _too_few(nbytes, known.constant, options)
    _, quantizer, tables = best
    digits = tuple("".join(map(str, quantizer.bits[at])) for _, at in layout.parts())
    model = PackedModel(subject.model, digits, known.scope, options.rounding, tables)
    return model, {**subject.params, LEVELS: flat_levels(quantizer, tables)}


def _constant(kept_bytes: int, scope: str) -> int:
    """Bytes of a memory that are not packed: none, where the memory is the mixers' states alone."""
    return kept_bytes if scope == "all" else 0


def _too_few(nbytes: float, constant: int, options: Compress) -> InputError:
    return InputError(
        f"{nbytes:.4g} bytes a sequence cannot hold the {constant} that stay as they are and a share of a table of "
        f"levels: lower compress.factor, or raise compress.sequences={options.sequences}, the sequences that share it"
    )


def check_memory(experiment: Experiment, model: SequenceModel, params: PyTree) -> None:
    """Raises InputError, before work starts, where no memory can be what is asked for; `params` may be shapes alone.

    For a model that reads both ways or chooses steps of a whole signal, and for a compress.factor that leaves too few
    bytes for what is not packed and a table without a bit; and for parts to remove that the model has not.
    """
    check_removal(experiment.compress, model.config)
    if not experiment.compress.packed:
        return
    if model.config.bidirectional:
        raise InputError(
            "model.bidirectional=True reads a signal in one piece, found a run to compress, whose memory is what it "
            "carries from step to step: train it with model.bidirectional=False"
        )
    if not model.config.resample.causal:
        raise InputError(
            "model.resample.causal=False reads a signal in one piece, found a run to compress, whose memory is what it "
            "carries from step to step: train it with model.resample.causal=True"
        )
    options = experiment.compress
    layout = StateLayout(model, params, options.scope)
    constant = _constant(layout.kept_bytes, options.scope)
    allowed = (4 * layout.rows * layout.size + constant) / options.factor if options.factor else math.inf
    if constant + sharing.table_bytes((0,) * layout.size, (0,) * layout.size) / options.sequences > allowed:
        raise _too_few(allowed, constant, options)


def _affordable(
    known: Calibration, options: Compress, nbytes: float, errors: np.ndarray, groups: np.ndarray
) -> tuple[int, ...] | None:
    """The bits of most use that fit, what is carried and the share of the tables together; None where none do."""
    layout, most = known.layout, options.most_bits
    budget = min(8 * int((nbytes - known.constant) // layout.rows), most * layout.size)
    while budget >= 0:
        bits = quantization.allocate(errors, budget, most=most)
        shared = sharing.table_bytes(sharing.number_tables(groups, bits), bits) / options.sequences
        excess = known.constant + layout.rows * -(-sum(bits) // 8) + shared - nbytes
        if excess <= 0:
            return bits
        if not budget:
            break
        # tables shrink with bits: a quarter of the excess, and look again
        budget = max(0, budget - max(8, 8 * int(excess / layout.rows / 4)))
    return None


def prune_half(subject: Subject, how: str) -> Subject:
    """Returns the subject with half of its components, those that `how` ("information" or "magnitude") finds best, its
    arrays really smaller.

    Every block keeps one; blocks whose mixer names no axes keep all.
    """
    return select_components(subject, best_half(subject, how))


def select_components(subject: Subject, keep: pruning.Keep) -> Subject:
    """Returns the subject with these components alone."""
    config, params = pruning.prune(subject.model.config, subject.params, keep)
    return dataclasses.replace(subject, model=SequenceModel(config), params=params)


def truncate_half(subject: Subject) -> tuple[Subject, dict[str, truncation.Truncation]]:
    """Returns the subject whose time-invariant blocks have half of their components, by balanced truncation, and what
    is proved of each block.

    Raises ValueError where float64 does not determine what a block carries.
    """
    config, sizes = subject.model.config, pruning.components(subject.model.config)
    keep = {name: max(sizes[name] // PRUNED, 1) for name in truncation.truncatable(config)}
    config, params, proved = truncation.truncate(config, subject.params, keep)
    return dataclasses.replace(subject, model=SequenceModel(config), params=params), proved


def best_half(subject: Subject, how: str) -> pruning.Keep:
    """Returns the half of all components that `how` finds best, at least one a block."""
    drawn = subject.draw_batches()
    if how == "information":
        piece = subject.experiment.training.piece
        quadratic = pruning.quadratic(subject.model, subject.params, drawn, piece=piece).divergence
        return quadratic.choose(max(sum(quadratic.sizes.values()) // PRUNED, len(quadratic.sizes)))
    scores = pruning.scores(subject.model, subject.params, drawn, how)
    return pruning.choose(scores, max(sum(map(len, scores.values())) // PRUNED, len(scores)))


def compress(
    subject: Subject, say: Callable[[str], None] = lambda line: None, progress: Progress | None = None
) -> Compression:
    """Tries, chooses and fine-tunes as `experiment.compress` says. `say` is told how it goes; what `progress` holds of
    it already is not done again.

    Raises:
      InputError: where nothing that was tried is good enough for `compress.within`, or bytes are too few; for a model
        that reads both ways; where the model's own metric on validation is not finite.
    """
    check_memory(subject.experiment, subject.model, subject.params)
    options, trials = subject.experiment.compress, _Trials(subject, say, progress or Progress())
    factors = sorted(
        {*(factor for factor in FACTORS if factor <= trials.most), *([options.factor] if options.factor else [])}
    )
    frontier = list(
        {one.share(options.sequences): one for one in (trials.run(factor, INFORMATION) for factor in factors)}.values()
    )
    target = options.factor or _most(frontier, trials.reference, options, subject.metric)
    if target == 1:
        raise InputError(
            f"no memory that was tried loses at most compress.within={options.within}: allow more, or name a "
            "compress.factor"
        )
    same = next(one for one in frontier if one.share(options.sequences) <= trials.calibration.float_bytes / target)
    methods = [same, *(trials.run(target, rule) for rule in RULES if rule != INFORMATION), *trials.fewer(target)]
    removal = None if options.remove == "none" else search(subject, say, trials.progress)
    methods += [] if removal is None else [trials.remove(target, removal.chosen.gone)]
    chosen = min(methods, key=lambda one: loss_of(one.validation, subject.metric))
    chosen = trials.fine_tune(chosen) if options.steps else chosen
    return Compression(trials.calibration, trials.reference, methods, frontier, chosen, removal)


class _Trials:
    """What is tried on one subject: all at bytes that are a share of its own, all judged on its validation split."""

    def __init__(self, subject: Subject, say: Callable[[str], None], progress: Progress) -> None:
        self.subject, self.say, self.progress = subject, say, progress
        self.calibration = self._calibrate()
        layout, sequences = self.calibration.layout, subject.experiment.compress.sequences
        least = sharing.table_bytes((0,) * layout.size, (1,) * layout.size) / sequences  # one table of a bit
        # times fewer
        self.most = self.calibration.float_bytes / (
            self.calibration.constant + layout.rows * -(-layout.size // 8) + least
        )
        self.reference = self._judge(
            "float32", lambda: Candidate("float32", self.calibration.float_bytes, subject.model, subject.params, {})
        )
        if not np.isfinite(self.reference.validation[subject.metric]):
            raise InputError(
                f"the run's own validation {subject.metric} is {self.reference.validation[subject.metric]}: train it "
                "anew before compressing it"
            )
        self._tell(self.reference)
        self._halves: dict[str, pruning.Keep] = {}

    def run(self, factor: float, rule: str, share: str = "", how: str = "") -> Candidate:
        """Packs the subject, or a share of its components, into so many times fewer bytes than the subject has."""
        method = f"{share} of the components by {how}, {rule}" if how else rule

        def make() -> Candidate:
            keep = self._remaining_components(share, how) if how and how != BALANCED else {}
            of, proved = (
                truncate_half(self.subject)
                if how == BALANCED
                else (select_components(self.subject, keep) if keep else self.subject, {})
            )
            packed = self._pack(method, of, calibrate(of) if how else self.calibration, factor, rule)
            return dataclasses.replace(packed, keep=keep, truncated=proved)

        return self._tell(self._judge(f"{method} at {factor}", make))

    def remove(self, factor: float, parts: tuple[str, ...]) -> Candidate:
        """Packs the subject without these parts into so many times fewer bytes than the whole subject has."""
        names = " and ".join(part.replace("_", " ") for part in parts)
        method = f"without {names}, {INFORMATION}"

        def make() -> Candidate:
            of = remove_from(self.subject, parts)
            return dataclasses.replace(self._pack(method, of, calibrate(of), factor, INFORMATION), removed=parts)

        return self._tell(self._judge(f"{method} at {factor}", make))

    def _pack(self, method: str, of: Subject, known: Calibration, factor: float, rule: str) -> Candidate:
        """What is made of the subject, packed into so many times fewer bytes than the subject itself has."""
        model, params = quantise(of, known, self.calibration.float_bytes / factor, rule)
        carried = known.constant + known.layout.rows * model.quantizer(params).nbytes
        return Candidate(method, carried, model, params, {}, table=model.table_bytes(params))

    def fewer(self, factor: float) -> list[Candidate]:
        """Candidates of fewer components; none where the mixers do not say what a component is."""
        pattern = self.subject.model.config.pattern
        if not pruning.prunable(self.subject.model.config):
            self.say(
                f"no component is pruned: no mixer of {', '.join(dict.fromkeys(pattern))} names the axes of its state"
            )
            return []
        return [
            *self.prune(factor, "information", INFORMATION),
            *self.prune(factor, "magnitude", VARIANCE),
            *self.truncate(factor),
        ]

    def truncate(self, factor: float) -> list[Candidate]:
        """Half of the components of time-invariant blocks, by balanced truncation, where there are any and float64 can
        do it.
        """
        if not truncation.truncatable(self.subject.model.config):
            return []
        try:
            return [self.run(factor, INFORMATION, HALF, BALANCED)]
        except ValueError as error:
            self.say(f"nothing is truncated: {error}")
            return []

    def prune(self, factor: float, how: str, rule: str) -> list[Candidate]:
        """Half of the components, and half of these again, with as many times the bits for each."""
        return [self.run(factor, rule, share, how) for share in (HALF, QUARTER)]

    def fine_tune(self, chosen: Candidate) -> Candidate:
        """The candidate after fine-tuning, where that did not make it worse."""
        params = finetune(self.subject.experiment, chosen.model, chosen.params, self.subject.dataset, self.progress)
        tuned = self._tell(
            _score(self.subject, dataclasses.replace(chosen, method=f"{chosen.method}, fine-tuned", params=params))
        )
        return min(tuned, chosen, key=lambda one: loss_of(one.validation, self.subject.metric))

    def _calibrate(self) -> Calibration:
        """What is known of the subject's memory, of `progress` if it has it."""
        scope = self.subject.experiment.compress.scope
        if (item := self.progress.recall("calibration")) is not None:
            return Calibration(
                StateLayout(self.subject.model, self.subject.params, scope),
                scope,
                item[1]["samples"],
                item[1]["weights"],
            )
        fresh = calibrate(self.subject)
        self.progress.keep("calibration", {}, {"samples": fresh.samples, "weights": fresh.weights})
        return fresh

    def _remaining_components(self, share: str, how: str) -> pruning.Keep:
        """The components that are left, by their places in the subject."""
        if how not in self._halves:
            self._halves[how] = best_half(self.subject, how)
        half = self._halves[how]
        if share == HALF:
            return half
        return {name: half[name][left] for name, left in best_half(select_components(self.subject, half), how).items()}

    def _judge(self, name: str, make: Callable[[], Candidate]) -> Candidate:
        """The candidate with its scores, as `progress` has it or made and judged now."""
        if (item := self.progress.recall(name)) is not None:
            return _rebuilt(self.subject, *item)
        one = _score(self.subject, make())
        bits = one.model.bits if isinstance(one.model, PackedModel) else None
        tables = one.model.tables if isinstance(one.model, PackedModel) else ()
        values = {
            "method": one.method,
            "nbytes": one.nbytes,
            "table": one.table,
            "validation": one.validation,
            "bits": bits,
            "tables": tables,
        }
        values |= {"truncated": bool(one.truncated), "removed": one.removed}
        levels = {} if bits is None else {LEVELS: one.params[LEVELS]}
        self.progress.keep(name, values, {f"keep/{block}": left for block, left in one.keep.items()} | levels)
        return one

    def _tell(self, one: Candidate) -> Candidate:
        self.say(_line(one, self.reference, self.subject.metric, self.subject.experiment.compress.sequences))
        return one


def _rebuilt(subject: Subject, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> Candidate:
    """A candidate from what was kept of it: how many bits and which levels, and which components are left."""
    keep = {name.removeprefix("keep/"): array for name, array in arrays.items() if name.startswith("keep/")}
    options, proved = subject.experiment.compress, dict[str, truncation.Truncation]()
    removed = tuple(values.get("removed", ()))
    of = remove_from(subject, removed) if removed else select_components(subject, keep) if keep else subject
    if values.get("truncated"):
        of, proved = truncate_half(subject)
    model: ModelLike = of.model
    params = of.params
    if values["bits"] is not None:
        model = PackedModel(of.model, tuple(values["bits"]), options.scope, options.rounding, tuple(values["tables"]))
        params = {**of.params, LEVELS: jnp.asarray(arrays[LEVELS])}
    return Candidate(
        values["method"], values["nbytes"], model, params, values["validation"], keep, values["table"], proved, removed
    )


def points(candidates: list[Candidate], reference: Candidate, metric: str, sequences: int) -> list[Point]:
    """Returns candidates as points of a frontier, named by their factor: bytes with the share of the table, and 1 + the
    relative loss on validation.

    The reference itself is last; those that diverged, so that they have no loss, are no points.
    """
    made = [
        (one.share(sequences), 1 + relative_loss(one.validation, reference.validation, metric))
        for one in candidates
        if np.isfinite(one.validation[metric])
    ]
    return [
        *(Point(f"{reference.nbytes / nbytes:.1f}x", math.ceil(nbytes), loss) for nbytes, loss in made),
        Point("float32", reference.nbytes, 1.0),
    ]


def _most(frontier: list[Candidate], reference: Candidate, options: Compress, metric: str) -> float:
    """The largest factor of the frontier whose loss is allowed; 1 where none is."""
    measured = points(frontier, reference, metric, options.sequences)
    return reference.nbytes / smallest(measured, within=options.within, reference=measured[-1]).nbytes


def _score(subject: Subject, one: Candidate) -> Candidate:
    return dataclasses.replace(one, validation=subject.validate(one.model, one.params))


def _line(one: Candidate, reference: Candidate, metric: str, sequences: int) -> str:
    lost = relative_loss(one.validation, reference.validation, metric)
    shared = f" and {one.table:,d} for all" if one.table else ""
    score = f"validation {metric} {one.validation[metric]:.4f}  ({lost:+.2%})"
    return f"{one.method:28s} {one.nbytes:8,d} bytes{shared}  {reference.nbytes / one.share(sequences):5.1f}x  {score}"
