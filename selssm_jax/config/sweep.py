"""The group `sweep`, and the table of the models that a sweep can compare."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from selssm_jax.config.fields import Count, Positive, check_fields
from selssm_jax.errors import InputError, suggest

JOURNALS, DATABASES = (".log", ".journal"), (".db", ".sqlite", ".sqlite3")  # endings of a file that holds the trials


class ComparedModel(NamedTuple):
    """A mixer in all blocks of a model, which key is the size of its memory, and what else it is set to."""

    mixer: str
    key: str
    size: Callable[[int, float], int]  # (the model's d_state, scale) -> value of `key`
    changes: dict[str, Any] = {}  # noqa: RUF012  nothing changes it


def _share(numerator: int, denominator: int, multiple: int) -> Callable[[int, float], int]:
    """A share of d_state, a multiple of a number."""
    return lambda n, scale: max(multiple, round(n * scale * numerator / denominator / multiple) * multiple)


def _alone(usual: int) -> Callable[[int, float], int]:
    """A number that has nothing to do with d_state."""
    return lambda n, scale: max(1, round(usual * scale))


_ELEMENTWISE = {"model.selective.gate_state": "elementwise", "model.selective.transition": "diagonal"}
# LSTM and GRU have dense maps of their state, so that as many components cost more parameters; a Mamba's d_state is of
# a channel.
COMPARED: dict[str, ComparedModel] = {
    "selective": ComparedModel("selective", "model.d_state", _share(1, 1, 2)),
    "kalman": ComparedModel("kalman", "model.d_state", _share(1, 1, 1)),
    "kalman_attention": ComparedModel("kalman_attention", "model.d_state", _alone(16), {"model.conv": 0}),
    "selective_state": ComparedModel("selective", "model.d_state", _share(1, 1, 2), _ELEMENTWISE),
    "mamba": ComparedModel("mamba", "model.d_state", _alone(16), {"model.conv": 0}),
    "s5": ComparedModel("s5", "model.d_state", _share(1, 1, 2)),
    "lstm": ComparedModel("lstm", "model.d_state", _share(5, 8, 1)),
    "gru": ComparedModel("gru", "model.d_state", _share(5, 8, 1)),
    "rnn": ComparedModel("rnn", "model.d_state", _share(1, 1, 1)),
    "attention": ComparedModel("attention", "model.attention.heads", _alone(4)),
    "tcn": ComparedModel("tcn", "model.tcn.kernel", _alone(3), {"model.conv": 0}),
}


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What `train.py --sweep` compares: models of one size, each tuned by as many trials, then trained from several
    seeds; nothing of it touches a run.

    The grid of a model is every combination of its sizes (state components; heads; taps), with selective gates
    gate_biases and penalties too, and of peak rates spaced evenly in their logarithm, as many as make `trials` points.
    """

    # those of the committed tables; others are compared where they are named
    models: tuple[str, ...] = tuple(name for name in COMPARED if not name.startswith("kalman"))
    # of each model, 5 % more or less, by the width of its MLP; 0: as many as the configured model has
    parameters: Count = 0
    trials: Positive = 8  # points of each model's grid
    trial_steps: Count = 0  # training steps of a trial; 0: training.steps
    seeds: Positive = 3  # that the best point is trained from, at training.steps
    learning_rates: tuple[float, ...] = (2e-3, 8e-3)  # the lowest and the highest peak rate
    sizes: tuple[float, ...] = (0.5, 1.0)  # of a model's memory, over what is usual for it beside model.d_state
    gate_biases: tuple[float, ...] = (0.0,)
    penalties: tuple[float, ...] = (0.0,)  # weights of the mean gate
    lengths: tuple[int, ...] = ()  # synthetic: further values of data.length that the trained models are scored at
    # which trials end before their last step, by their validations: "median": worse than half of the others were then;
    # "halving": not among the best quarter at the first validation, at four times its step, at sixteen times, ...
    pruner: Literal["none", "median", "halving"] = "none"
    # where Optuna keeps the trials: a URL of a database, or a path of a journal (.log) or a SQLite file (.db); empty:
    # sweep.db in the workdir
    storage: str = ""

    def __post_init__(self) -> None:
        check_fields(self, "sweep.{}".format)
        for name in self.models:
            if name not in COMPARED:
                raise InputError(f"sweep.models names {name!r}: {suggest(name, COMPARED)}")
        if len(self.learning_rates) != 2 or not 0 < self.learning_rates[0] <= self.learning_rates[-1]:
            raise InputError(
                f"sweep.learning_rates={self.learning_rates} is no range: give the lowest and the highest peak rate, "
                "for example (0.002, 0.008)"
            )
        for key, least in (("sizes", 0.01), ("penalties", 0.0), ("gate_biases", -20.0), ("lengths", 1)):
            if (not getattr(self, key) and key != "lengths") or any(
                not least <= value < math.inf for value in getattr(self, key)
            ):
                raise InputError(
                    f"sweep.{key}={getattr(self, key)} is out of range: give one or more values of at least {least}"
                )
        if self.storage and "://" not in self.storage and not self.storage.endswith((*JOURNALS, *DATABASES)):
            raise InputError(
                f"sweep.storage={self.storage!r} is neither a URL nor a path of a known kind: let a path end in "
                f"{', '.join(JOURNALS)} for a journal, or in {', '.join(DATABASES)} for SQLite"
            )
        most = len(self.sizes) * len(self.gate_biases) * len(self.penalties)
        if self.trials % most:
            lower = self.trials // most * most
            near = " or ".join(str(count) for count in (lower, lower + most) if count)
            raise InputError(
                f"sweep.trials={self.trials} is no multiple of the {most} combinations of sizes, gate_biases and "
                f"penalties, each of which is tried at equally many peak rates: use {near}"
            )
