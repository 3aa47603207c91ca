"""Laws that every mixer, estimator and kind of task obeys, for tests of your own: `check_mixer`, `check_estimator`,
`check_conditional_estimator`, `check_task`.

Each raises AssertionError with the law that is broken and where. What passes can be used wherever this package uses its
own: split over time, stepped, packed with resets, streamed, compressed; or reported beside other estimates.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from selssm_jax.config import Model
from selssm_jax.data import Dataset
from selssm_jax.information import Estimate, samplers
from selssm_jax.model import SequenceModel, begin_reading
from selssm_jax.tasks import TaskKind, kind_of
from selssm_jax.tasks.scores import Sums

ROWS, STEPS, CUTS, RESET = 2, 9, (1, 5), 4
CLOSE = {"rtol": 2e-4, "atol": 2e-5}  # of float32 sums of a few dozen terms in another order
CLOSE_GRADIENTS = {"rtol": 2e-3, "atol": 5e-5}
SAMPLES = 1000
BIAS = 0.05  # nats by which an estimate may be off beside its stated error

State = Any


class Subject(NamedTuple):
    """A layer with parameters as drawn, and an input."""

    layer: nn.Module
    params: Any
    x: Float[Array, "B T D"]

    def read(
        self, x: Array, state: State = None, reset: Array | None = None, params: Any = None
    ) -> tuple[Array, State]:
        """Returns outputs and the last state."""
        return self.layer.apply(self.params if params is None else params, x, state, reset=reset)

    def read_in_pieces(self, params: Any = None) -> tuple[Array, State]:
        """As `read`, in calls that end at `CUTS`."""
        outputs, state = [], None
        for piece in jnp.split(self.x, CUTS, axis=1):
            y, state = self.read(piece, state, params=params)
            outputs.append(y)
        return jnp.concatenate(outputs, axis=1), state


def check_mixer(layer: nn.Module, *, d_model: int) -> None:
    """Raises AssertionError where a layer breaks a law of mixers, in values or gradients.

    A mixer is called as `layer(x, state=None, *, reset=None) -> (y, state)`, x and y (B, T, d_model), reset (B, T)
    bool, and has `initial_state(batch)`. Its laws: one call is any split of it, with the state carried, in values,
    states and gradients of parameters; one step after the other, from `initial_state` on and under `jax.lax.scan`, is
    one call; no output depends on a later input, and some on an earlier one; a reset before step t makes it the first:
    values, gradients, and even NaN before it are not seen; rows of a batch do not see one another.

    Args:
      layer: a Flax Linen module. d_model: width of its input.
    """
    x = jax.random.normal(jax.random.key(0), (ROWS, STEPS, d_model))
    subject = Subject(layer, jax.jit(layer.init)(jax.random.key(1), x), x)
    for law in MIXER_LAWS:
        law(subject)


def _is_any_split(subject: Subject) -> None:
    (whole, last), (y, state) = jax.jit(subject.read)(subject.x), jax.jit(subject.read_in_pieces)()
    assert whole.shape == subject.x.shape, (
        f"outputs have shape {whole.shape}, expected that of the input, {subject.x.shape}"
    )
    _compare("the outputs of one call and of its pieces", y, whole, CLOSE)
    _compare("the states after one call and after its pieces", state, last, CLOSE)


def _has_the_gradients_of_any_split(subject: Subject) -> None:
    def slopes(read: Callable[[Any], tuple[Array, State]]) -> Any:
        return jax.jit(jax.grad(lambda params: jnp.square(read(params)[0]).mean()))(subject.params)

    whole = slopes(lambda params: subject.read(subject.x, params=params))
    _compare(
        "the gradients of parameters through one call and through its pieces",
        slopes(subject.read_in_pieces),
        whole,
        CLOSE_GRADIENTS,
    )


def _is_one_step_after_the_other(subject: Subject) -> None:
    def step(state: State, x: Array) -> tuple[State, Array]:
        y, state = subject.read(x[:, None], state)
        return state, y[:, 0]

    start = subject.layer.apply(subject.params, ROWS, method="initial_state")
    y = jax.jit(lambda: jax.lax.scan(step, start, subject.x.swapaxes(0, 1))[1])().swapaxes(0, 1)
    _compare(
        "the outputs of one step after the other, from initial_state on, and of one call",
        y,
        jax.jit(subject.read)(subject.x)[0],
        CLOSE,
    )


def _is_causal(subject: Subject) -> None:
    slope = jax.jit(jax.jacrev(lambda x: subject.read(x)[0][0].sum(axis=-1)))(subject.x)[:, 0]  # of y_t by x_s
    size = np.abs(np.asarray(slope)).sum(axis=-1)
    later = np.argwhere(np.triu(size, 1))
    assert not len(later), (
        f"the output of step {later[0][0]} depends on the input of step {later[0][1]}, which is later"
    )
    assert np.tril(size, -1).any(), "no output depends on an earlier input: nothing is remembered"


def _forgets_at_a_reset(subject: Subject) -> None:
    reset = jnp.zeros((ROWS, STEPS), bool).at[:, RESET].set(True)
    read = jax.jit(lambda x: subject.read(x, reset=reset)[0])
    alone = jax.jit(subject.read)(subject.x[:, RESET:])[0]
    _compare("the outputs after a reset and those of the rest alone", read(subject.x)[:, RESET:], alone, CLOSE)
    ill = read(subject.x.at[:, RESET - 1].set(jnp.nan))[:, RESET:]
    _compare("the outputs after a reset where an input before it is NaN and those of the rest alone", ill, alone, CLOSE)
    slope = jax.jit(jax.grad(lambda x: jnp.square(subject.read(x, reset=reset)[0][:, RESET:]).sum()))(subject.x)[
        :, :RESET
    ]
    assert not np.asarray(slope).any(), "outputs after a reset have a gradient in inputs before it"


def _keeps_rows_apart(subject: Subject) -> None:
    read = jax.jit(lambda x: subject.read(x)[0])
    other = subject.x.at[1].set(jnp.nan)
    _compare("the outputs of a row beside another one", read(other)[0], read(subject.x)[0], CLOSE)


MIXER_LAWS: tuple[Callable[[Subject], None], ...] = (
    _is_any_split,
    _has_the_gradients_of_any_split,
    _is_one_step_after_the_other,
    _is_causal,
    _forgets_at_a_reset,
    _keeps_rows_apart,
)


def _compare(which: str, one: Any, other: Any, close: dict[str, float]) -> None:
    shapes = [jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (one, other)]
    assert shapes[0] == shapes[1], f"{which} differ in form: {shapes[0]} and {shapes[1]}"
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert np.allclose(a, b, rtol=close["rtol"], atol=close["atol"]), (
            f"{which} differ by up to {np.abs(a - b).max()}"
        )


Estimator = Callable[[Any, Any], Estimate]


def check_estimator(estimator: Estimator) -> None:
    """Raises AssertionError where an estimator of mutual information breaks what its `Estimate` promises.

    `estimator(x, y)` takes rows paired, x (N, dx) and y (N, dy), and returns an `Estimate` in nats. Of correlated
    Gaussians of known information a "lower" one is at most the truth and an "upper" one at least, up to three standard
    errors; any other is within three of it and .05. Independent samples have none, up to the same. Neither the units of
    x, 1e-20, nor its place, 1e8, move the value by more than its error. The order of the pairs does not matter. NaN,
    complex numbers and unequal numbers of rows are a ValueError (or a TypeError, where shapes are checked at every
    call).
    """
    draw = samplers.multinormal(jax.random.key(1), SAMPLES, samplers.dense_covariance(2, 2, 0.4), 2)
    x, y = np.asarray(draw.x, np.float64), np.asarray(draw.y, np.float64)
    found = _check_estimate(estimator(x, y))
    _check_truth(found, float(draw.information))
    apart = samplers.independent(jax.random.key(2), SAMPLES, 2, 2)
    _check_truth(_check_estimate(estimator(np.asarray(apart.x), np.asarray(apart.y))), 0.0)
    _check_sameness(estimator, found, x, y)
    _check_refusals(estimator, x, y)


def check_conditional_estimator(estimator: Callable[[Any, Any, Any], Estimate]) -> None:
    """Raises AssertionError where an estimator of conditional mutual information breaks what its `Estimate` promises.

    `estimator(x, y, z)` takes rows of three arrays, (N, dx), (N, dy) and (N, dz), and returns an `Estimate` of
    I(x; y | z) in nats. Of Gaussians: two effects of one cause have none given the cause, however much they share
    without it; two causes have some given their common effect, though none without it. What else is asked is what
    `check_estimator` asks.

    Args:
      estimator: of samples of numbers.
    """
    x, y, z = np.random.default_rng(0).normal(size=(3, SAMPLES, 1))
    _check_truth(_check_estimate(estimator(z + x, z + y, z)), 0.0)
    effect = x + y + z
    found = _check_estimate(estimator(x, y, effect))
    _check_truth(found, 0.5 * math.log(4 / 3))  # given the effect, x and y have the correlation -1/2
    _check_sameness(estimator, found, x, y, effect)
    _check_refusals(estimator, x, y, effect)


def _check_sameness(estimator: Callable[..., Estimate], found: Estimate, x: np.ndarray, *others: np.ndarray) -> None:
    """Neither units nor places of x nor the order of the rows move the value by more than its error."""
    order = np.random.default_rng(0).permutation(SAMPLES)
    for what, other in (
        ("in units of 1e-20", estimator(1e-20 * x, *others)),
        ("around 1e8", estimator(1e8 + x, *others)),
        ("with its pairs in another order", estimator(x[order], *(side[order] for side in others))),
    ):
        room = BIAS + 3 * math.hypot(*(0.0 if math.isnan(one.stderr) else one.stderr for one in (found, other)))
        assert abs(other.nats - found.nats) <= room, (
            f"the same sample {what} has {other.nats} nats, and {found.nats} before"
        )


def _check_estimate(found: Any) -> Estimate:
    assert isinstance(found, Estimate), f"found {type(found).__name__}, expected an information.Estimate"
    assert found.method, "the method of the estimate is not named"
    return found


def _check_truth(found: Estimate, truth: float) -> None:
    room = BIAS + 3 * (0.0 if math.isnan(found.stderr) else found.stderr)
    above, below = found.nats - truth > room, truth - found.nats > room
    wrong = {"lower": above, "upper": below}.get(found.direction, above or below)
    assert not wrong, (
        f"a sample of {truth:.3f} nats is said to have {found}, {found.direction}: off by more than three of its "
        f"errors and {BIAS}"
    )


def _check_refusals(estimator: Callable[..., Estimate], *samples: np.ndarray) -> None:
    def spoil(sample: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
        holed = sample.copy()
        holed[0, 0] = np.nan
        yield from (("NaN", holed), ("complex numbers", sample + 1j), ("unequal numbers of rows", sample[1:]))

    for place, what, bad in ((place, *case) for place, sample in enumerate(samples) for case in spoil(sample)):
        try:
            found = estimator(*samples[:place], bad, *samples[place + 1 :])
        except (ValueError, TypeError):
            continue
        raise AssertionError(f"{what} are answered by {found}, where a ValueError is expected")


class Trial(NamedTuple):
    """A small model of a data set's task with parameters as drawn, and a batch of training examples."""

    kind: TaskKind
    model: SequenceModel
    params: Any
    batch: Mapping[str, Array]

    def answer(self, inputs: Array, state: State = None, params: Any = None) -> tuple[Array, State]:
        """Returns outputs and the last state."""
        return self.model.apply({"params": self.params if params is None else params}, inputs, state)

    def score(self, outputs: Array, **changes: Array) -> Sums:
        """Returns the metrics of the batch with other targets or weights, as (weighted sum, weight)."""
        return self.kind.score(outputs, {**self.batch, **changes})


def check_task(dataset: Dataset) -> None:
    """Raises AssertionError where the kind of task of a data set breaks a law of tasks, on a few of its training
    examples.

    Inputs are as `TaskKind.inputs` says. A model answers in one call as in several that carry its state. `loss` and
    `primary` are among the metrics. Sums of metrics over rows are those of their batch. What has weight 0 is not seen,
    not even NaN. The loss has a finite gradient, which is not 0 everywhere. `drawn_targets` have the form of targets,
    and a factor each.
    """
    kind, batch = (
        kind_of(dataset.task),
        {name: jnp.asarray(value) for name, value in dataset.draw(0, np.arange(ROWS)).items()},
    )
    model = SequenceModel(Model(pattern=("selective",), d_model=8, d_state=4).of_task(dataset.task))
    inputs = batch["inputs"]
    shape = kind.inputs(model.config, *inputs.shape[:2])
    assert (shape.shape, shape.dtype) == (inputs.shape, inputs.dtype), (
        f"inputs are {inputs.dtype}{inputs.shape}, `inputs` says {shape.dtype}{shape.shape}"
    )
    trial = Trial(kind, model, jax.jit(model.init)(jax.random.key(0), inputs)["params"], batch)
    outputs = jax.jit(trial.answer)(inputs)[0]
    for law in TASK_LAWS:
        law(trial, outputs)


def _answers_in_pieces_as_at_once(trial: Trial, outputs: Array) -> None:
    def read() -> Array:
        state, parts = begin_reading(trial.model, trial.params, trial.batch["inputs"]), []
        stride = trial.kind.stride(trial.model.config)
        for piece in jnp.split(trial.batch["inputs"], [stride], axis=1):
            y, state = trial.answer(piece, state)
            parts.append(y)
        return jnp.concatenate(parts, axis=1) if trial.kind.every_step else parts[-1]

    _compare("the answers of one call and of its pieces", jax.jit(read)(), outputs, CLOSE)


def _has_its_metrics(trial: Trial, outputs: Array) -> None:
    metrics = set(trial.score(outputs))
    assert {trial.kind.loss, trial.kind.primary} <= metrics, (
        f"`loss` and `primary` are {trial.kind.loss} and {trial.kind.primary}, the metrics {sorted(metrics)}"
    )


def _adds_up_over_rows(trial: Trial, outputs: Array) -> None:
    rows = [
        trial.kind.score(outputs[row : row + 1], {name: value[row : row + 1] for name, value in trial.batch.items()})
        for row in range(ROWS)
    ]
    together = jax.tree.map(lambda *sums: sum(sums[1:], sums[0]), *rows)
    _compare("the metrics' sums over rows and those of their batch", together, trial.score(outputs), CLOSE)


def _sees_nothing_of_weight_0(trial: Trial, outputs: Array) -> None:
    weights = trial.batch["weights"].at[0].set(0)
    loss = lambda outputs: trial.score(outputs, weights=weights)[trial.kind.loss][0]  # noqa: E731
    ill = outputs.at[0].set(jnp.nan)
    _compare(
        "the metrics beside a row of weight 0 whose answer is NaN, or a number,",
        trial.score(ill, weights=weights),
        trial.score(outputs, weights=weights),
        CLOSE,
    )
    _compare("the gradients of the loss beside such a row", jax.grad(loss)(ill), jax.grad(loss)(outputs), CLOSE)


def _can_be_learned(trial: Trial, outputs: Array) -> None:
    del outputs
    slope = jax.jit(
        jax.grad(lambda params: trial.score(trial.answer(trial.batch["inputs"], params=params)[0])[trial.kind.loss][0])
    )(trial.params)
    sizes = [np.abs(np.asarray(leaf)).max() for leaf in jax.tree.leaves(slope)]
    assert np.isfinite(sizes).all(), "the gradient of the loss is not finite"
    assert max(sizes) > 0, "the gradient of the loss is 0 everywhere: nothing can be learned"


def _draws_targets(trial: Trial, outputs: Array) -> None:
    targets, factors = trial.kind.drawn_targets(outputs[:1], 3, jax.random.key(0))
    expected = trial.batch["targets"][:1].shape
    assert targets.shape[1:] == expected, (
        f"`drawn_targets` have shape {targets.shape[1:]}, targets of a row {expected}: define drawn_targets"
    )
    assert factors.shape == targets.shape[:1], (
        f"`drawn_targets` gives {factors.shape} factors for {targets.shape[0]} targets"
    )


TASK_LAWS: tuple[Callable[[Trial, Array], None], ...] = (
    _answers_in_pieces_as_at_once,
    _has_its_metrics,
    _adds_up_over_rows,
    _sees_nothing_of_weight_0,
    _can_be_learned,
    _draws_targets,
)
