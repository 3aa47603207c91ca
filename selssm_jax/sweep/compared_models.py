"""The models that a sweep compares: the same blocks around different mixers, with equally many parameters and equally
large grids.
"""

import dataclasses
import functools
import itertools
import math
from typing import Any

import jax
import numpy as np

from selssm_jax.config import COMPARED, Experiment, Model, Task
from selssm_jax.config.fields import assign
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.tasks.registry import kind_of

Point = dict[str, Any]  # "model.d_state" -> 64
WITHIN = 0.05  # of the number of parameters asked for
RATE = "optimizer.peak_rate"
NARROWEST = 1  # hidden units of an MLP
SHORT = 8  # steps of an input that shapes alone are worked out for


def grid(experiment: Experiment, name: str) -> list[Point]:
    """Returns the sweep.trials points of a compared model's grid, each a value for every key that is tuned."""
    sweep, model = experiment.sweep, COMPARED[name]
    axes: dict[str, list[Any]] = {model.key: [model.size(experiment.model.d_state, scale) for scale in sweep.sizes]}
    if model.mixer == "selective":
        axes |= {"model.selective.gate_bias": list(sweep.gate_biases), "training.gate_l1": list(sweep.penalties)}
    rest = sweep.trials // math.prod(map(len, axes.values()))
    axes[RATE] = [round_rate(rate) for rate in _rates(sweep.learning_rates[0], sweep.learning_rates[1], rest)]
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def extend_grid(experiment: Experiment, name: str, points: list[Point]) -> list[Point]:
    """Returns the points of a grid, and after them as many more as sweep.trials asks for: further peak rates for every
    combination of what else is tuned, first an end of sweep.learning_rates that is missing, then halves of the widest
    gaps. Points that begin the grid of sweep.trials, or are of no grid of this sweep, give way to that grid.

    Raises:
      InputError: for fewer points than there are.
    """
    trials, whole = experiment.sweep.trials, grid(experiment, name)
    rates, combinations = _gather_rates(points), _gather_rates(whole)
    low, high = map(round_rate, experiment.sweep.learning_rates)
    is_grid = rates.keys() == combinations.keys() and len({len(tried) for tried in rates.values()}) == 1
    if points == whole[: len(points)] or not is_grid or not all(low <= point[RATE] <= high for point in points):
        return whole
    if trials < len(points):
        raise InputError(
            f"sweep.trials={trials}, but {len(points)} points of {name!r} are part of this sweep already: ask for at "
            "least as many, or use another --workdir"
        )
    extended = list(points)
    for others, tried in rates.items():
        while len(tried) < trials // len(rates):
            tried.append(_find_rate(tried, low, high))
            extended.append({**dict(others), RATE: tried[-1]})
    return extended


def _gather_rates(points: list[Point]) -> dict[tuple[tuple[str, Any], ...], list[float]]:
    """The rates of every combination of what else is tuned."""
    rates: dict[tuple[tuple[str, Any], ...], list[float]] = {}
    for point in points:
        others = tuple((key, value) for key, value in point.items() if key != RATE)
        rates.setdefault(others, []).append(point[RATE])
    return rates


def configure(experiment: Experiment, name: str, point: Point, task: Task) -> Experiment:
    """Returns the experiment with a compared model's mixer in all blocks, at a point of its grid, at the size that the
    sweep asks for.

    Its number of parameters is that of the sweep by the hidden width of its MLPs. Gates are weighed and biased for
    selective ones alone.

    Raises:
      InputError: where no width comes within 5 %: the mixers alone are larger.
    """
    model, values = COMPARED[name], dataclasses.asdict(experiment) | {"name": f"{experiment.name}_{name}"}
    same = {"pattern": (model.mixer,) * len(experiment.model.pattern), "block_states": (), "block_mlp_ratios": ()}
    values["model"] |= same
    gates = {} if model.mixer == "selective" else {"training.gate_l1": 0.0}
    for path, value in ({"model.tcn.dilations": ()} | gates | model.changes | point).items():
        assign(values, path, value)
    found = Experiment.from_dict(values)
    return dataclasses.replace(found, model=_match_parameters(found.model, task, target(experiment, task), name))


def target(experiment: Experiment, task: Task) -> int:
    """Returns the number of parameters that every compared model is to have."""
    return experiment.sweep.parameters or parameters(experiment.model, task)


@functools.cache  # points of a grid that differ in their rates have the same model
def parameters(model: Model, task: Task) -> int:
    """Returns the number of parameters of a model for a task, from shapes alone."""
    whole = SequenceModel(model.of_task(task))
    inputs = kind_of(task).inputs(whole.config, 1, max(whole.config.frame, model.linear_skip, SHORT))
    keys = {name: jax.random.key(0) for name in ("params", "noise", "gates")}
    return sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(whole.init, keys, inputs)["params"]))


def _match_parameters(model: Model, task: Task, wanted: int, name: str) -> Model:
    """The model with MLPs as wide as makes `wanted` parameters; each hidden unit adds as many as the one before."""
    one, two = (parameters(_with_hidden(model, width), task) for width in (1, 2))
    width = max(NARROWEST, 1 + round((wanted - one) / (two - one)))
    found = _with_hidden(model, width)
    has = parameters(found, task)
    if abs(has / wanted - 1) > WITHIN:
        raise InputError(
            f"the compared model {name!r} has {has:,} parameters with MLPs of {width} hidden units, where "
            f"sweep.parameters asks for {wanted:,}: ask for more, or lower sweep.sizes or model.d_state"
        )
    return found


def _with_hidden(model: Model, width: int) -> Model:
    return dataclasses.replace(model, mlp_ratio=width / model.d_model)


def _find_rate(rates: list[float], low: float, high: float) -> float:
    """An end of the range that is missing, else the middle of the widest gap between rates, in their logarithm."""
    missing = [end for end in (low, high) if end not in rates]
    if missing:
        return missing[0]
    left, right = max(
        itertools.pairwise(sorted(rates)), key=lambda pair: pair[1] / pair[0], default=(rates[0], rates[0])
    )
    return round_rate(math.sqrt(left * right))


def round_rate(rate: float) -> float:
    """Returns a peak rate as points have it, of three digits."""
    return float(f"{rate:.3g}")


def _rates(low: float, high: float, count: int) -> np.ndarray:
    """Rates spaced evenly in their logarithm, both ends among them; the middle alone where there is one."""
    return np.geomspace(low, high, count) if count > 1 else np.sqrt(np.prod([low, high], keepdims=True))
