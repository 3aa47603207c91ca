"""From a trained model to one without some of its parts: which go, one after another, and what each costs (theory,
section 15).

Parts are chosen on training batches, every model on the way is judged on the validation split; the test split is not
read here.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from selssm_jax.compression import removal
from selssm_jax.compression.finetune import finetune
from selssm_jax.compression.progress import Progress
from selssm_jax.compression.subject import Subject, loss_of, relative_loss
from selssm_jax.config import Compress, Model
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Remainder:
    """What is left of a model, and its metrics on the validation split.

    Attributes:
      gone: the parts that went, in their order. cost: of these, by what chose them; None of the whole model.
    """

    gone: tuple[str, ...]
    cost: float | None
    model: SequenceModel
    params: PyTree
    validation: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Removal:
    """All that was removed, one part after another.

    Attributes:
      parts: those that might have gone. remainders: the whole model first, then without one part, two, and so on.
      chosen: the last of these, after fine-tuning where that was asked for and did not make it worse.
      evaluations: how often the batches were read for the choice, with gradients or without; None where all of it was
        recalled.
    """

    parts: tuple[str, ...]
    remainders: tuple[Remainder, ...]
    chosen: Remainder
    evaluations: int | None

    @property
    def is_tuned(self) -> bool:
        """Whether the chosen model was fine-tuned."""
        return self.chosen is not self.remainders[-1]


def check_removal(options: Compress, config: Model) -> None:
    """Raises InputError, before work starts, where a model has no such parts, or not so many that could go."""
    if options.remove == "none":
        return
    if config.resample.rule != "none":
        raise InputError(
            f"compress.remove={options.remove!r} weighs what branches add to every step, found model.resample.rule="
            f"{config.resample.rule!r}, whose blocks read some alone: use compress.remove='none', or a run without it"
        )
    try:
        parts = _list_parts(options, config)
        list(removal.find_greedily(lambda parts: 0.0, config, parts, _count(options, parts)))
    except ValueError as error:
        raise InputError(
            f"compress.remove={options.remove!r}, compress.removed={options.removed}: {error}; use another kind of "
            "part, or a smaller share"
        ) from error


def remove_parts(
    subject: Subject, say: Callable[[str], None] = lambda line: None, progress: Progress | None = None
) -> Removal:
    """Removes the share of parts that `experiment.compress` says, and fine-tunes what is left. `say` is told how it
    goes; what `progress` holds of it already is not done again.

    Raises:
      InputError: as `check_removal`, and for a loss of fine-tuning that is not finite.
    """
    progress = progress or Progress()
    whole = search(subject, say, progress)
    options, last = subject.experiment.compress, whole.remainders[-1]
    if not options.steps:
        return whole
    params = finetune(subject.experiment, last.model, last.params, subject.dataset, progress)
    tuned = dataclasses.replace(last, params=params, validation=subject.validate(last.model, params))
    say(_line("fine-tuned", tuned, whole.remainders[0], subject.metric))
    better = min(tuned, last, key=lambda remainder: loss_of(remainder.validation, subject.metric))
    return dataclasses.replace(whole, chosen=better)


def remove_from(subject: Subject, parts: Sequence[str]) -> Subject:
    """Returns the subject without these parts of its blocks."""
    config, params = removal.remove(subject.model.config, subject.params, parts)
    return dataclasses.replace(subject, model=SequenceModel(config), params=params)


def search(subject: Subject, say: Callable[[str], None], progress: Progress) -> Removal:
    """Returns what `remove_parts` does, without fine-tuning. Raises what `check_removal` raises."""
    options, config = subject.experiment.compress, subject.model.config
    check_removal(options, config)
    parts, measured = _list_parts(options, config), _Measured(subject)
    steps = _recall_steps(progress)
    count = _count(options, parts) - len(steps)
    known = [step.part for step in steps]
    for step in removal.find_greedily(measured, config, parts, count, gone=known):
        steps.append(step)
        progress.keep(f"removal {len(steps)}", step._asdict(), {})
    remainders: list[Remainder] = []
    for number in range(len(steps) + 1):
        remainders.append(_judge(subject, steps[:number], progress))
        name = f"without {steps[number - 1].part}" if number else "the whole model"
        say(_line(name, remainders[-1], remainders[0], subject.metric))
    return Removal(parts, tuple(remainders), remainders[-1], measured.evaluations)


class _Measured:
    """What removing parts of a subject costs, measured when it is first asked for."""

    def __init__(self, subject: Subject) -> None:
        self._subject = subject
        self._cost: removal.Cost | None = None

    def __call__(self, parts: Sequence[str]) -> float:
        if self._cost is None:
            subject, how = self._subject, self._subject.experiment.compress.remove_by
            batches, piece = subject.draw_batches(), subject.experiment.training.piece
            try:
                self._cost = removal.measure_costs(subject.model, subject.params, batches, how, piece=piece)
            except ValueError as error:
                raise InputError(
                    f"compress.remove_by={how!r} cannot be measured on compress.calibration={len(batches)} batches: "
                    f"{error}; use more batches, or 'loss'"
                ) from error
        return self._cost(parts)

    @property
    def evaluations(self) -> int | None:
        if self._cost is None:
            return None
        return self._cost.evaluations if isinstance(self._cost, removal.BypassedLoss) else 1


def _recall_steps(progress: Progress) -> list[removal.Step]:
    """The steps that were kept, from the first on."""
    steps: list[removal.Step] = []
    while (item := progress.recall(f"removal {len(steps) + 1}")) is not None:
        steps.append(removal.Step(**item[0]))
    return steps


def _judge(subject: Subject, steps: Sequence[removal.Step], progress: Progress) -> Remainder:
    """What is left after these steps, with its scores, as `progress` has them or judged now."""
    gone = tuple(step.part for step in steps)
    left = remove_from(subject, gone) if gone else subject
    name = f"without {' '.join(gone)}"
    if (item := progress.recall(name)) is None:
        validation = subject.validate(left.model, left.params)
        progress.keep(name, validation, {})
    else:
        validation = item[0]
    return Remainder(gone, steps[-1].cost if steps else None, left.model, left.params, validation)


def _list_parts(options: Compress, config: Model) -> tuple[str, ...]:
    return removal.list_parts(config, removal.KINDS if options.remove == "all" else (options.remove,))


def _count(options: Compress, parts: Sequence[str]) -> int:
    return max(1, round(options.removed * len(parts)))


def _line(name: str, remainder: Remainder, whole: Remainder, metric: str) -> str:
    lost = relative_loss(remainder.validation, whole.validation, metric)
    return f"{name:28s} validation {metric} {remainder.validation[metric]:.4f}  ({lost:+.2%})"
