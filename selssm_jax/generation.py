"""Text generation: a prompt is read in one parallel pass, then one token at a time from the recurrent state alone.

generate(model, params, prompts, 100)                  all tokens, in one compiled loop
for tokens in stream(model, params, prompts, 100):     the same, one step at a time
write_on(model, params, dataset, texts, tokens=100)    texts of one's own, and the text after them
"""

import dataclasses
import functools
import math
import numbers
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from selssm_jax.config import LARGEST_SEED
from selssm_jax.config.fields import check_value, to_python
from selssm_jax.data import vocabulary
from selssm_jax.data.pipeline import Dataset
from selssm_jax.errors import InputError, as_input_error
from selssm_jax.layers.variables import parameters
from selssm_jax.model import ModelLike
from selssm_jax.ops.extremes import largest
from selssm_jax.tasks.registry import kind_of

NOTHING = -1  # stands after a stop token, where no token is
MOST = 10_000_000  # tokens of one call
SMALLEST = float(np.finfo(np.float32).tiny)  # temperature: below it float32 has 0
HALF = "\ufffd"  # what bytes are shown as that are no whole character yet


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Raises ValueError, which names the setting, where one is out of its range.

    Attributes:
      temperature: of the softmax; 0 takes the most probable token, as does what float32 cannot hold.
      top_k: only so many of the most probable tokens are drawn; 0: all.
      top_p: only the fewest of the most probable tokens that together have this probability are drawn; 1: all.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p"):
            if not isinstance(getattr(self, name), numbers.Real):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is of type {type(getattr(self, name)).__name__}, expected a number"
                )
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ValueError(
                f"temperature={self.temperature} must be a number of at least 0: 0 takes the most probable token, 1 "
                "draws as the model says"
            )
        check_value(int, to_python(self.top_k), "top_k")
        if self.top_k < 0:
            raise ValueError(
                f"top_k={self.top_k} must be at least 0: 0 draws from all tokens, 1 takes the most probable one"
            )
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be above 0 and at most 1: 1 draws from all tokens")


def generate(
    model: ModelLike,
    params: PyTree,
    prompt: Any,
    count: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    key: Array | None = None,
    stop: Sequence[int] = (),
) -> Int[Array, "B N"]:
    """Returns the `count` tokens that a language model writes after each prompt, (B, P) -> (B, count).

    x_t ~ filtered(logits(x_{<t})), for temperature 0 its most probable token. The prompt is read in one pass, the rest
    in one compiled loop of single steps that carries the state, so memory does not grow with the text, but for a cache,
    which has room for just these steps. Compiled once for a model, a shape of the prompt, a count and a way of
    sampling.

    Args:
      model: a `SequenceModel`, or one that carries its state packed, which reads its prompt step by step too.
      params: its parameters, or what `init` returned, with them in it.
      prompt: whole numbers, (B, P), or a list of lists of unequal lengths, each written on as it would be alone.
      temperature, top_k, top_p: see `Sampling`.
      key: needed above temperature 0; noise in a model's state is drawn from it too.
      stop: tokens that end a row; such a token is its last, and after it stands `NOTHING`, -1.

    Raises:
      ValueError: for a model of another task, a prompt without tokens, of numbers that are not whole or with tokens
        that the model does not have, a count below 1 or over `MOST`, a setting out of its range, no key where tokens
        are drawn, and logits that are not finite.
    """
    begun = _begin(model, prompt, count, Sampling(temperature, top_k, top_p), key, stop)
    written, bad = _write(
        parameters(params),
        begun.tokens,
        begun.reset,
        begun.key,
        model=model,
        count=count,
        sampling=begun.sampling,
        stop=begun.stop,
    )
    for step in np.flatnonzero(np.asarray(bad).any(axis=1))[:1]:
        _refuse(int(step), np.asarray(bad)[step])
    return written


def stream(
    model: ModelLike,
    params: PyTree,
    prompt: Any,
    count: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    key: Array | None = None,
    stop: Sequence[int] = (),
) -> Iterator[Int[np.ndarray, "B"]]:
    """Yields the tokens that `generate` returns, (B,) a step, each as soon as it is drawn, and ends where every row has
    stopped.

    Arguments and errors are those of `generate`; what can be said before a token is drawn is raised by the call itself.
    """
    begun = _begin(model, prompt, count, Sampling(temperature, top_k, top_p), key, stop)
    return _steps(
        begun,
        functools.partial(_step, parameters(params), model=model, sampling=begun.sampling, stop=begun.stop),
        model,
        parameters(params),
        count,
    )


def _steps(begun: "_Begun", step: Any, model: ModelLike, params: PyTree, count: int) -> Iterator[np.ndarray]:
    keys = jax.random.split(begun.key, count)
    now = _first(
        params, begun.tokens, begun.reset, keys[0], model=model, count=count, sampling=begun.sampling, stop=begun.stop
    )
    for index in range(count):
        now = now if not index else step(now, keys[index])
        if bool(now.bad.any()):
            _refuse(index, np.asarray(now.bad))
        yield np.asarray(now.token)
        if bool(now.done.all()):
            return


def filter_logits(logits: Float[Array, "*B V"], temperature: float, top_k: int, top_p: float) -> Float[Array, "*B V"]:
    """Returns logits / temperature, up to one number a row, -inf for tokens that are not to be drawn.

    Those are all but the `top_k` largest, and of these all but the nucleus.

    The nucleus is the fewest of the most probable tokens whose probabilities, after temperature and `top_k`, sum to at
    least `top_p` (Holtzman et al. 2020). Temperature 0 leaves the largest alone; of equal logits the first counts as
    larger. Raises as `Sampling`.
    """
    Sampling(temperature, top_k, top_p)
    if temperature < SMALLEST:
        temperature, top_k = 1.0, 1
    # a small temperature must not carry the largest to infinity
    scaled = (logits - largest(logits, -1, keepdims=True)) / temperature
    if not top_k and top_p == 1:
        return scaled
    values, places = jax.lax.top_k(scaled, min(top_k, logits.shape[-1]) or logits.shape[-1])
    odds = jax.nn.softmax(values, axis=-1)
    more_probable = jnp.cumsum(odds, axis=-1) - odds
    kept = jnp.where(more_probable < top_p, values, -jnp.inf) if top_p < 1 else values
    return jnp.put_along_axis(jnp.full_like(scaled, -jnp.inf), places, kept, axis=-1, inplace=False)


def write_on(
    model: ModelLike,
    params: PyTree,
    dataset: Dataset,
    texts: Sequence[str],
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Yields, in pieces to be shown at once, a text and the `tokens` tokens that a trained model writes after it, of
    whatever kind and size its memory is.

    Several texts, of whatever lengths, are one batch: they are given when all are written, an empty line between them.
    Where a string of `stop` comes, what was written ends before it. A tokenizer's own beginning-of-text token is read
    first, and not shown.

    Raises InputError, which names the flag of eval.py, for a model that is not of language, for a text that is empty or
    has what the data's vocabulary lacks, for settings that `Sampling` refuses, and for a model whose logits are no
    numbers.
    """
    _check_request(tokens, seed, stop)
    with as_input_error("--"):
        Sampling(temperature, top_k, top_p)
    how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "key": jax.random.key(seed)}
    beginning = vocabulary.beginning(dataset.level, dataset.tokenizer)
    prompts = [np.concatenate([beginning, _encode(dataset, text)]).astype(np.int32) for text in texts]
    for text, prompt in zip(texts, prompts, strict=True):
        if not len(prompt):
            raise InputError(f"--generate={text!r} holds no token to begin with: give the beginning of a text")

    def show(text: str, prompt: np.ndarray, written: Iterable[int]) -> Iterator[str]:
        return _cut(_decode_each(dataset, prompt[len(beginning) :].tolist(), written), text, stop)

    with as_input_error("--generate: "):
        if len(texts) == 1:
            yield from show(
                texts[0], prompts[0], (int(step[0]) for step in stream(model, params, prompts[0][None], tokens, **how))
            )
            return
        rows = np.asarray(generate(model, params, [list(prompt) for prompt in prompts], tokens, **how)).tolist()
    yield "\n\n".join("".join(show(*parts)) for parts in zip(texts, prompts, rows, strict=True))


def _check_request(tokens: int, seed: int, stop: Sequence[str]) -> None:
    if not 1 <= tokens <= MOST:
        raise InputError(f"--tokens={tokens} must be at least 1: it is how many tokens are written, at most {MOST}")
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"--seed={seed} is out of range: use at least 0 and at most {LARGEST_SEED}")
    if not all(stop):
        raise InputError("--stop is empty: give the text that ends what is written")


def _encode(dataset: Dataset, text: str) -> np.ndarray:
    if not kind_of(dataset.task).writes:
        raise InputError(
            f"--generate needs a run of language, but the task of this one is {dataset.task.kind}: name a run that was "
            "trained on text"
        )
    return dataset.encode(text)


def _decode_each(dataset: Dataset, prompt: list[int], tokens: Iterable[int]) -> Iterator[str]:
    """The text so far, before the first token and after each."""
    shown = list(prompt)
    yield dataset.decode(np.array(shown, np.int32))
    for token in tokens:
        shown.append(token)
        yield dataset.decode(np.array(shown, np.int32))


def _cut(texts: Iterable[str], begun: str, stop: Sequence[str]) -> Iterator[str]:
    """What each text adds to those before it: whole characters alone, and nothing of what may become a string of
    `stop`; the end at such a string.
    """
    told, text, first = 0, "", len(begun)
    for text in texts:
        ends = [place for place in (text.find(end, first) for end in stop) if place >= 0]
        if ends:
            yield text[told : min(ends)]
            return
        sure = len(text.rstrip(HALF)) if stop or text.endswith(HALF) else len(text)
        sure = min([sure, *(len(text) - _overlap(text[first:], end) for end in stop)])
        if sure > told:
            yield text[told:sure]
            told = sure
    yield text[told:]


def _overlap(text: str, end: str) -> int:
    """How many characters at the end of a text are the beginning of another."""
    return next((size for size in range(min(len(end) - 1, len(text)), 0, -1) if end.startswith(text[-size:])), 0)


class _Begun(NamedTuple):
    """What a call is about, checked: prompts filled up on the left, True in `reset` where one begins, None where all
    are equally long.
    """

    tokens: Array
    reset: Array | None
    key: Array
    sampling: Sampling
    stop: tuple[int, ...]


class _Now(NamedTuple):
    """The step that was just taken: its tokens, whether rows have ended, whether their logits were no numbers, and the
    state after it.
    """

    token: Array
    done: Array
    bad: Array
    state: PyTree


@functools.partial(jax.jit, static_argnames=("model", "count", "sampling", "stop"))
def _write(
    params: PyTree,
    prompt: Array,
    reset: Array | None,
    key: Array,
    *,
    model: ModelLike,
    count: int,
    sampling: Sampling,
    stop: tuple[int, ...],
) -> tuple[Array, Array]:
    """(tokens (B, count), whether logits were no numbers, (count, B))."""
    keys = jax.random.split(key, count)

    def one(now: _Now, key: Array) -> tuple[_Now, tuple[Array, Array]]:
        now = _step(params, now, key, model=model, sampling=sampling, stop=stop)
        return now, (now.token, now.bad)

    first = _first(params, prompt, reset, keys[0], model=model, count=count, sampling=sampling, stop=stop)
    _, (rest, bad) = jax.lax.scan(one, first, keys[1:])
    return jnp.concatenate([first.token[None], rest]).T, jnp.concatenate([first.bad[None], bad])


@functools.partial(jax.jit, static_argnames=("model", "count", "sampling", "stop"))
def _first(
    params: PyTree,
    prompt: Array,
    reset: Array | None,
    key: Array,
    *,
    model: ModelLike,
    count: int,
    sampling: Sampling,
    stop: tuple[int, ...],
) -> _Now:
    state = model.apply({"params": params}, len(prompt), prompt.shape[1] + count, method="initial_state")
    logits, state = model.apply({"params": params}, prompt, state, reset=reset, rngs={"noise": key})
    return _after(logits[:, -1], state, jnp.zeros(len(prompt), bool), key, sampling, stop)


@functools.partial(jax.jit, static_argnames=("model", "sampling", "stop"))
def _step(
    params: PyTree, now: _Now, key: Array, *, model: ModelLike, sampling: Sampling, stop: tuple[int, ...]
) -> _Now:
    logits, state = model.apply(
        {"params": params}, jnp.maximum(now.token, 0), now.state, method="step", rngs={"noise": key}
    )
    return _after(logits, state, now.done, key, sampling, stop)


def _after(logits: Array, state: PyTree, done: Array, key: Array, sampling: Sampling, stop: tuple[int, ...]) -> _Now:
    token = jnp.where(done, NOTHING, _draw(logits, key, sampling))
    bad = ~jnp.isfinite(logits).all(axis=-1) & ~done
    return _Now(token, done | jnp.isin(token, jnp.array(stop, jnp.int32)) if stop else done, bad, state)


def _draw(logits: Array, key: Array, sampling: Sampling) -> Array:
    if sampling.temperature < SMALLEST:
        return logits.argmax(axis=-1).astype(jnp.int32)
    return jax.random.categorical(key, filter_logits(logits, *dataclasses.astuple(sampling))).astype(jnp.int32)


def _begin(model: ModelLike, prompt: Any, count: Any, sampling: Sampling, key: Array | None, stop: Any) -> _Begun:
    task = model.config.task
    if not kind_of(task).writes:
        raise ValueError(f"the model's task is {task.kind}: only a language model writes tokens")
    rows = _rows(prompt, task.vocab)
    check_value(int, to_python(count), "count")
    if not 1 <= count <= MOST:
        raise ValueError(f"count={count} must be at least 1 token, a whole number, and at most {MOST}")
    if key is None and sampling.temperature > 0:
        raise ValueError(
            f"key is None, but temperature={sampling.temperature} draws tokens at random: give a key, for example "
            "jax.random.key(0)"
        )
    if not all(np.issubdtype(type(token), np.integer) and 0 <= token < task.vocab for token in stop):
        raise ValueError(f"stop={stop!r} holds what is no token: the model's are 0 to {task.vocab - 1}")
    tokens, begins = align_rows(rows)
    reset = None if begins is None else jnp.asarray(begins)
    key = jax.random.key(0) if key is None else key
    return _Begun(jnp.asarray(tokens), reset, key, sampling, tuple(map(int, stop)))


def align_rows(rows: Sequence[np.ndarray]) -> tuple[Int[np.ndarray, "B P"], Bool[np.ndarray, "B P"] | None]:
    """Returns rows of tokens filled up on the left, so that they end together, and True where one begins: there a model
    forgets what fills it up. None where all are equally long.
    """
    longest = max(map(len, rows))
    tokens = np.stack([np.concatenate([np.zeros(longest - len(row), np.int32), row]) for row in rows])
    starts = np.array([longest - len(row) for row in rows])
    return tokens, starts[:, None] == np.arange(longest)[None] if starts.any() else None


def _rows(prompt: Any, vocab: int) -> list[np.ndarray]:
    """The prompts, int32, one array a row."""
    ragged = isinstance(prompt, list | tuple)
    rows = [np.asarray(row) for row in prompt]
    if not rows or any(row.ndim != 1 or not row.size for row in rows):
        shape = [row.shape for row in rows] if ragged else np.shape(prompt)
        raise ValueError(
            f"prompt has the shape {shape}, expected (B, P) with at least one token in each of at least one row"
        )
    for row in rows:
        if not np.issubdtype(row.dtype, np.integer):
            raise ValueError(
                f"prompt is of type {row.dtype}, expected tokens, which are whole numbers: convert it with "
                ".astype(int) if it holds such"
            )
    low, high = min(int(row.min()) for row in rows), max(int(row.max()) for row in rows)
    if low < 0 or high >= vocab:
        raise ValueError(f"prompt holds tokens from {low} to {high}, but the model's are 0 to {vocab - 1}")
    return [row.astype(np.int32) for row in rows]


def _refuse(step: int, bad: np.ndarray) -> None:
    raise ValueError(
        f"the logits of token {step} of row {int(bad.argmax())} are not finite, so no token can be drawn: the "
        "parameters hold nan or are too large, or the state has overflown"
    )
