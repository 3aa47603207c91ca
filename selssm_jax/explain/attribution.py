"""How much each input step has to do with one number that a model says.

"lrp", layer-wise relevance propagation by the rules of MambaLRP (Jafari et al. 2024, arXiv 2406.07592): R_t = sum_d
x_td dF/dx_td of the function whose values are the model's and whose gates, norms, attention and quotients of
activations are constants (`layers.relevance_rules`). Where nothing is added that no input has a part in, sum_t R_t = F.
"gradient_x_input" is the same of the gradient itself. "integrated_gradients" is the mean of that gradient on the line
from 0 to x, times x (Sundararajan et al. 2017): sum_t R_t = F(x) - F(0). "occlusion" is F(x) - F(x with step t 0)
(Zeiler and Fergus 2014).

x are embeddings where inputs are tokens, else the inputs themselves.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from selssm_jax.layers.relevance_rules import RECORDED, RULES, SHIFTED, explaining
from selssm_jax.layers.variables import parameters
from selssm_jax.model import Inputs, ModelLike, SequenceModel, State, residual_name
from selssm_jax.shapes import Reset
from selssm_jax.tasks.registry import kind_of

METHODS = ("lrp", "gradient_x_input", "integrated_gradients", "occlusion")
STEPS = 64  # parts of the line that gradients are integrated on

Output = Callable[[Array], Array]
Given = Mapping[str, Any]  # inputs, state, reset, valid and the key of noise, of one call


class Explanation(NamedTuple):
    """What a number that a model says is owed to.

    Attributes:
      relevance: R of every row and step. output: F, the number itself. of_state: what is owed to the state that was
        given; 0 where none was, and by methods that hold it still.
      remainder: what is owed to nothing of these: F - sum R - of_state, of biases, noise and learned cycles where the
        method is "lrp"; F(x) - F(0) - sum R for "integrated_gradients", the error of its sum.
      blocks: of "lrp" and "gradient_x_input", R at the input of every block and behind the last, summed over width,
        (L + 1, B, F), F the frames that blocks read: steps, of tokens. None of the others.
    """

    relevance: Float[Array, "B T"]
    output: Float[Array, ""]
    of_state: Float[Array, ""]
    remainder: Float[Array, ""]
    blocks: Float[Array, "L B F"] | None = None


def gather_call(
    inputs: Inputs,
    *,
    state: State | None = None,
    reset: Reset | None = None,
    valid: Array | None = None,
    key: PRNGKeyArray | None = None,
) -> Given:
    """Returns what a call of a model is given; the key of noise is 0's where there is none."""
    key = jax.random.key(0) if key is None else key
    return {"inputs": jnp.asarray(inputs), "state": state, "reset": reset, "valid": valid, "key": key}


def read_shifted(
    model: SequenceModel, params: PyTree, given: Given, shifts: Mapping[str, Any]
) -> tuple[Array, Mapping[str, Any]]:
    """Returns (outputs, what the model shows while it is explained) of one call in which some of that is shifted."""
    (outputs, _), shown = model.apply(
        {"params": params, SHIFTED: dict(shifts)},
        given["inputs"],
        given["state"],
        reset=given["reset"],
        valid=given["valid"],
        rngs={"noise": given["key"]},
        mutable=[RECORDED],
    )
    return outputs, shown[RECORDED]


def list_values(shown: Mapping[str, Any]) -> dict[str, Array]:
    """Returns what a module itself shows by name, without what modules inside it do."""
    return {name: value[0] for name, value in shown.items() if not isinstance(value, Mapping)}


class Question(NamedTuple):
    """Which number of which model is asked about; it can be hashed, and so be compiled for."""

    model: SequenceModel
    output: Output

    @property
    def is_of_tokens(self) -> bool:
        """Whether what is explained are embeddings."""
        return kind_of(self.model.config.task).tokens

    def read(self, params: PyTree, given: Given, shifts: Mapping[str, Array]) -> tuple[Array, Mapping[str, Array]]:
        """Returns (outputs, what the residual stream was, by name) of one call whose residual stream is shifted."""
        outputs, shown = read_shifted(self.model, params, given, shifts)
        return outputs, list_values(shown)

    def say(self, outputs: Array) -> Array:
        """Returns the number that is explained. Raises ValueError where `output` gives none or several."""
        number = jnp.asarray(self.output(outputs))
        if number.shape != () or not jnp.issubdtype(number.dtype, jnp.floating):
            raise ValueError(
                f"output gives shape {number.shape} and dtype {number.dtype} of outputs {outputs.shape}, expected one "
                "real number: take one, for example lambda outputs: outputs[0, -1, 3], or a sum over rows"
            )
        return number

    def shift(self, params: PyTree, given: Given, by: Array) -> Array:
        """Returns the outputs where `by` is added to what is explained."""
        if self.is_of_tokens:
            return self.read(params, given, {residual_name(0): by})[0]
        return self.read(params, {**given, "inputs": given["inputs"] + by}, {})[0]

    def features(self, params: PyTree, given: Given) -> Array:
        """Returns what is explained: embeddings (B, T, D), or the inputs (B, T, C)."""
        return self.read(params, given, {})[1][residual_name(0)] if self.is_of_tokens else given["inputs"]


def relevance(
    model: ModelLike,
    params: PyTree,
    inputs: Inputs,
    output: Output,
    *,
    state: State | None = None,
    method: str = "lrp",
    reset: Reset | None = None,
    valid: Array | None = None,
) -> Float[Array, "B T"]:
    """Returns R, (B, T): what each step of each row has to do with one number that the model says (this module).

    `explain_output` says beside it what is owed to no input: where there are biases, R alone does not sum to the
    number.

    Args:
      model, params: as trained. inputs: (B, T) tokens or (B, T, C) values.
      output: the model's outputs -> the number, for example lambda logits: logits[0, -1, 3]. A sum over rows gives
        each row its own relevance.
      state: as the model takes it. method: "lrp", "gradient_x_input", "integrated_gradients" or "occlusion".
      reset, valid: as the model takes them.

    Raises:
      ValueError: for an unknown method, a model that is no `SequenceModel`, and an output that is not one real number.
    """
    return explain_output(model, params, inputs, output, state=state, method=method, reset=reset, valid=valid).relevance


def explain_output(
    model: ModelLike,
    params: PyTree,
    inputs: Inputs,
    output: Output,
    *,
    state: State | None = None,
    method: str = "lrp",
    reset: Reset | None = None,
    valid: Array | None = None,
    rules: Iterable[str] = RULES,
    steps: int = STEPS,
    key: PRNGKeyArray | None = None,
) -> Explanation:
    """Returns relevance with what it leaves over, and by block (this module).

    It is traced anew for each `output`: give the same function, not an equal one, where many inputs are explained.
    Products of matrices are in full precision, on accelerators too. "occlusion" takes T calls of the model.

    Args:
      model, params, inputs, output, state, method, reset, valid: see `relevance`.
      rules: of "lrp", those that are followed (`layers.relevance_rules`). steps: of "integrated_gradients", parts of
        the line. key: of noise that the model draws.

    Raises:
      ValueError: what `relevance` raises, and for rules that are none or no steps.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r} is unknown: use one of {', '.join(METHODS)}")
    if not isinstance(model, SequenceModel):
        raise ValueError(
            f"model is a {type(model).__name__}, expected a SequenceModel: of a compressed one explain its `model`"
        )
    if steps < 1:
        raise ValueError(f"steps={steps}: use at least 1")
    given = gather_call(inputs, state=state, reset=reset, valid=valid, key=key)
    active = frozenset(rules) if method == "lrp" else frozenset()
    return _explain(Question(model, output), method, active, steps, parameters(params), given)


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _explain(
    question: Question, method: str, rules: frozenset[str], steps: int, params: PyTree, given: Given
) -> Explanation:
    with jax.default_matmul_precision("highest"), explaining(rules):
        if method == "integrated_gradients":
            return _integrate(question, steps, params, given)
        if method == "occlusion":
            return _occlude(question, params, given)
        return _multiply_by_gradient(question, params, given)


def _multiply_by_gradient(question: Question, params: PyTree, given: Given) -> Explanation:
    """Gradient x input of the function that is traced here, at the input, in every block, and of the state."""
    shapes = jax.eval_shape(lambda: question.read(params, given, {})[1])
    zeros = {name: jnp.zeros(like.shape, like.dtype) for name, like in shapes.items()}
    values = None if question.is_of_tokens else given["inputs"]

    def say(shifts: Mapping[str, Array], values: Array | None, state: Any) -> tuple[Array, Mapping[str, Array]]:
        inputs = given["inputs"] if values is None else values
        outputs, stream = question.read(params, {**given, "inputs": inputs, "state": state}, shifts)
        return question.say(outputs), stream

    pull = jax.value_and_grad(say, argnums=(0, 1, 2), has_aux=True, allow_int=True)
    (number, stream), (by_stream, by_values, by_state) = pull(zeros, values, given["state"])
    blocks = jnp.stack(
        [
            _add_rows(question, (by_stream[name] * stream[name]).sum(axis=-1))
            for name in map(residual_name, range(len(stream)))
        ]
    )
    R = blocks[0] if values is None else (by_values * values).sum(axis=-1)
    of_state = sum(
        (
            jnp.real(slope * leaf).sum()
            for slope, leaf in zip(jax.tree.leaves(by_state), jax.tree.leaves(given["state"]), strict=True)
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        ),
        jnp.zeros(()),
    )
    return Explanation(R, number, of_state, number - R.sum() - of_state, blocks)


def _add_rows(question: Question, values: Float[Array, "R F"]) -> Float[Array, "B F"]:
    """The sum over the sequences that the blocks make of a row: its channels, where they run apart."""
    rows = kind_of(question.model.config.task).rows(question.model.config)
    return values.reshape(-1, rows, values.shape[1]).sum(axis=1)


def _integrate(question: Question, steps: int, params: PyTree, given: Given) -> Explanation:
    """x times the mean gradient at the middles of `steps` parts of the line from 0 to x."""
    x = question.features(params, given)
    say = lambda by: question.say(question.shift(params, given, by))  # noqa: E731

    def add(total: Array, share: Array) -> tuple[Array, None]:
        return total + jax.grad(say)((share - 1) * x), None

    total, _ = jax.lax.scan(add, jnp.zeros_like(x), (jnp.arange(steps, dtype=x.dtype) + 0.5) / steps)
    R, number, none = (x * total / steps).sum(axis=-1), say(jnp.zeros_like(x)), jnp.zeros(())
    return Explanation(R, number, none, number - say(-x) - R.sum())


def _occlude(question: Question, params: PyTree, given: Given) -> Explanation:
    """F less F without a step, step by step and row by row: rows do not see one another, so one call serves all."""
    x = question.features(params, given)
    rows, steps = jnp.arange(x.shape[0]), jnp.arange(x.shape[1])
    outputs = question.shift(params, given, jnp.zeros_like(x))
    number = question.say(outputs)

    def without(step: Array) -> Array:
        hidden = question.shift(params, given, jnp.where((steps == step)[None, :, None], -x, 0))
        beside = rows.reshape(-1, *[1] * (outputs.ndim - 1))
        return jax.lax.map(lambda row: question.say(jnp.where(beside == row, hidden, outputs)), rows)

    R = number - jax.lax.map(without, steps).T
    return Explanation(R, number, jnp.zeros(()), number - R.sum())
