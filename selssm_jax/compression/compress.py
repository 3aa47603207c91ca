"""A trained model to a smaller memory: candidates at equal bytes, the frontier of bytes and loss, the chosen one fine-tuned (theory, section 10).

Levels, variances and sensitivities come from training batches, every choice from the validation split; the test split is not read here.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from selssm_jax.compression import pruning, quantization
from selssm_jax.compression.carried import Carried
from selssm_jax.compression.finetune import finetune
from selssm_jax.compression.search import Point, smallest
from selssm_jax.compression.sensitivity import error_weights
from selssm_jax.compression.streaming import LEVELS, PackedModel, calibration
from selssm_jax.config import Experiment
from selssm_jax.data import Dataset
from selssm_jax.errors import InputError
from selssm_jax.model import Reader, SequenceModel
from selssm_jax.training import objectives
from selssm_jax.training.evaluation import Evaluator

PyTree = Any
FACTORS = (4.0, 8.0, 16.0, 32.0)  # of the frontier, beside the one that is asked for
PRUNED = 2  # one component of so many is kept, where components are pruned before the rest is packed
EQUAL, VARIANCE, INFORMATION = "equal bits", "bits by variance", "bits by information"


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is to be compressed: a run's experiment, model, parameters and data."""

    experiment: Experiment
    model: SequenceModel
    params: PyTree
    dataset: Dataset

    @property
    def metric(self) -> str:
        """What the task is judged by."""
        return objectives.PRIMARY[self.dataset.task.kind]


@dataclasses.dataclass(frozen=True)
class Known:
    """What is known of the memory on training batches: samples (S, M), and what a unit of squared error costs (M,).

    The memory is all that the model carries or, of the scope "mixers", their states alone.
    """

    layout: Carried
    scope: Literal["all", "mixers"]
    samples: Float[np.ndarray, "S M"]
    weights: Float[np.ndarray, "M"]

    @property
    def float_bytes(self) -> int:
        """Bytes of one sequence's memory in float32."""
        return 4 * self.layout.rows * self.layout.size + self.constant

    @property
    def constant(self) -> int:
        """Bytes of the memory that are not packed: none, where the memory is the mixers' states alone."""
        return self.layout.kept_bytes if self.scope == "all" else 0


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One compressed model: how it was made, what it carries, and its metrics on the validation split."""

    method: str
    nbytes: int
    model: Reader
    params: PyTree
    validation: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Compression:
    """All that was tried, and what was chosen.

    Attributes:
      reference: the model itself, in float32. methods: candidates at the bytes that were asked for. frontier: the best method at other bytes,
        and at these. chosen: the best of the methods, fine-tuned, where that did not make it worse.
    """

    known: Known
    reference: Candidate
    methods: list[Candidate]
    frontier: list[Candidate]
    chosen: Candidate


def known(subject: Subject) -> Known:
    """Returns what calibration tells, from `compress.calibration` training batches."""
    batches, scope = _drawn(subject), subject.experiment.compress.scope
    weights = error_weights(subject.model, subject.params, batches, scope=scope)
    return Known(Carried(subject.model, subject.params, scope), scope, calibration(subject.model, subject.params, batches, scope=scope), weights)


def quantised(subject: Subject, known: Known, nbytes: int, rule: str) -> tuple[PackedModel, PyTree]:
    """Returns the model with its memory packed into at most `nbytes` bytes a sequence, bits by one of the three rules.

    "bits by information" is reverse water-filling of what an error costs the loss, "bits by variance" of the error itself.

    Raises:
      InputError: where not even the numbers that stay as they are fit.
    """
    most, layout = subject.experiment.compress.most_bits, known.layout
    budget = 8 * ((nbytes - known.constant) // layout.rows)
    if budget < 0:
        raise InputError(f"{nbytes} bytes cannot hold the {known.constant} bytes that stay as they are: lower compress.factor")
    variances = known.samples.var(axis=0, dtype=np.float64)
    errors = {EQUAL: np.ones(layout.size), VARIANCE: variances, INFORMATION: layout.newest_most(known.weights * variances)}[rule]
    bits = quantization.allocate(errors, min(budget, most * layout.size), most=most)
    quantizer = quantization.fit(known.samples, bits, channels=layout.channels())
    digits = tuple("".join(map(str, bits[at])) for _, at in layout.parts())
    return PackedModel(subject.model, digits, known.scope, subject.experiment.compress.rounding), {**subject.params, LEVELS: quantizer.levels}


def pruned(subject: Subject, how: str) -> Subject:
    """Returns the subject with half of its components, those that `how` ("information" or "magnitude") finds best, its arrays really smaller.

    Every block keeps one; blocks whose mixer names no axes keep all.
    """
    drawn = _drawn(subject)
    if how == "information":
        found = pruning.quadratic(subject.model, subject.params, drawn).divergence
        keep = found.choose(max(sum(found.sizes.values()) // PRUNED, len(found.sizes)))
    else:
        scores = pruning.scores(subject.model, subject.params, drawn, how)
        keep = pruning.choose(scores, max(sum(map(len, scores.values())) // PRUNED, len(scores)))
    config, params = pruning.prune(subject.model.config, subject.params, keep)
    return dataclasses.replace(subject, model=SequenceModel(config), params=params)


def _drawn(subject: Subject) -> list[dict[str, np.ndarray]]:
    """The training batches that everything is calibrated on."""
    data, count = subject.experiment.data, subject.experiment.compress.calibration
    batches = subject.dataset.train(data.batch_size, seed=data.seed + 1)
    return [next(batches) for _ in range(count)]


def compress(subject: Subject, say: Callable[[str], None] = lambda line: None) -> Compression:
    """Tries, chooses and fine-tunes as `experiment.compress` says. `say` is told how it goes.

    Raises:
      InputError: where nothing that was tried is good enough for `compress.within`, or bytes are too few; for a model that reads both ways.
    """
    if subject.model.config.bidirectional:
        raise InputError(
            "model.bidirectional=True reads a signal in one piece, found a run to compress, whose memory is what it carries from step to step: "
            "train it with model.bidirectional=False"
        )
    options, trials = subject.experiment.compress, _Trials(subject, say)
    factors = sorted({*(factor for factor in FACTORS if factor <= trials.most), *([options.factor] if options.factor else [])})
    frontier = list({one.nbytes: one for one in (trials.run(factor, INFORMATION) for factor in factors)}.values())
    target = options.factor or _most(frontier, trials.reference, options.within, subject.metric)
    if target == 1:
        raise InputError(f"no memory that was tried loses at most compress.within={options.within}: allow more, or name a compress.factor")
    same = next(one for one in frontier if one.nbytes <= trials.known.float_bytes / target)
    methods = [same, trials.run(target, VARIANCE), trials.run(target, EQUAL), *trials.fewer(target)]
    chosen = min(methods, key=lambda one: loss_of(one.validation, subject.metric))
    return Compression(trials.known, trials.reference, methods, frontier, trials.tuned(chosen) if options.steps else chosen)


class _Trials:
    """What is tried on one subject: all at bytes that are a share of its own, all judged on its validation split."""

    def __init__(self, subject: Subject, say: Callable[[str], None]) -> None:
        self.subject, self.known, self.say = subject, known(subject), say
        self.reference = _judged(subject, "float32", self.known.float_bytes, subject.model, subject.params)
        self.most = self.known.float_bytes / (self.known.constant + self.known.layout.rows)  # times fewer: a byte a row
        self._tell(self.reference)

    def run(self, factor: float, rule: str, subject: Subject | None = None, how: str = "") -> Candidate:
        """Packs the subject, or another that was made of it, into so many times fewer bytes than the subject has."""
        of, found = (self.subject, self.known) if subject is None else (subject, known(subject))
        model, params = quantised(of, found, int(self.known.float_bytes / factor), rule)
        nbytes = found.constant + found.layout.rows * model.quantizer(params).nbytes
        return self._tell(_judged(of, f"{how}, {rule}" if how else rule, nbytes, model, params))

    def fewer(self, factor: float) -> list[Candidate]:
        """Candidates of fewer components; none where the mixers do not say what a component is."""
        pattern = self.subject.model.config.pattern
        if not pruning.prunable(self.subject.model.config):
            self.say(f"no component is pruned: no mixer of {', '.join(dict.fromkeys(pattern))} names the axes of its state")
            return []
        return [*self.pruned(factor, "information", INFORMATION), *self.pruned(factor, "magnitude", VARIANCE)]

    def pruned(self, factor: float, how: str, rule: str) -> list[Candidate]:
        """Half of the components, and half of these again, with as many times the bits for each."""
        half = pruned(self.subject, how)
        shares = {"half": half, "a quarter": pruned(half, how)}
        return [self.run(factor, rule, left, f"{share} of the components by {how}") for share, left in shares.items()]

    def tuned(self, chosen: Candidate) -> Candidate:
        """The candidate after fine-tuning, where that did not make it worse."""
        params = finetune(self.subject.experiment, chosen.model, chosen.params, self.subject.dataset)
        found = self._tell(_judged(self.subject, f"{chosen.method}, fine-tuned", chosen.nbytes, chosen.model, params))
        return min(found, chosen, key=lambda one: loss_of(one.validation, self.subject.metric))

    def _tell(self, one: Candidate) -> Candidate:
        self.say(_line(one, self.reference, self.subject.metric))
        return one


def relative_loss(metrics: Mapping[str, float], reference: Mapping[str, float], metric: str) -> float:
    """Returns by which share of the reference a metric is worse; negative where it is better."""
    worse = reference[metric] - metrics[metric] if metric in objectives.HIGHER_IS_BETTER else metrics[metric] - reference[metric]
    return worse / abs(reference[metric])


def loss_of(metrics: Mapping[str, float], metric: str) -> float:
    """Returns the metric as a number that is better when smaller."""
    return -metrics[metric] if metric in objectives.HIGHER_IS_BETTER else metrics[metric]


def points(candidates: list[Candidate], reference: Candidate, metric: str) -> list[Point]:
    """Returns candidates as points of a frontier, named by their factor: bytes, and 1 + the relative loss on validation, the reference itself last."""
    found = [(one.nbytes, 1 + relative_loss(one.validation, reference.validation, metric)) for one in candidates]
    return [*(Point(f"{reference.nbytes / nbytes:.1f}x", nbytes, loss) for nbytes, loss in found), Point("float32", reference.nbytes, 1.0)]


def _most(frontier: list[Candidate], reference: Candidate, within: float, metric: str) -> float:
    """The largest factor of the frontier whose loss is allowed; 1 where none is."""
    found = points(frontier, reference, metric)
    return reference.nbytes / smallest(found, within=within, reference=found[-1]).nbytes


def _judged(subject: Subject, method: str, nbytes: int, model: Reader, params: PyTree) -> Candidate:
    return Candidate(method, nbytes, model, params, Evaluator(subject.experiment, model)(params, subject.dataset, "validation"))


def _line(one: Candidate, reference: Candidate, metric: str) -> str:
    lost = relative_loss(one.validation, reference.validation, metric)
    return f"{one.method:28s} {one.nbytes:8,d} bytes  {reference.nbytes / one.nbytes:5.1f}x  validation {metric} {one.validation[metric]:.4f}  ({lost:+.2%})"
