"""Text generation: a prompt is read in one parallel pass, then one token at a time from the recurrent state alone.

generate(model, params, prompts, 100)                  all tokens, in one compiled loop
generate_scored(model, params, prompts, 100)           the same, with log-probabilities and the state after them
for tokens in stream(model, params, prompts, 100):     the same, one step at a time
write_on(model, params, dataset, texts, tokens=100)    texts of one's own, and the text after them
write_texts(model, params, dataset, texts, tokens=100) the same, with log-probabilities and states
write_through(read, keep, dataset, text, tokens=100)   the same of one text, whose memory something else holds
"""

import bisect
import dataclasses
import functools
import json
import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from selssm_jax.config import LARGEST_SEED
from selssm_jax.config.fields import check_value, to_python
from selssm_jax.data import vocabulary
from selssm_jax.data.pipeline import Dataset
from selssm_jax.errors import ArgumentError, as_input_error
from selssm_jax.layers.variables import parameters
from selssm_jax.model import ModelLike
from selssm_jax.ops.boundaries import choose_rows
from selssm_jax.ops.extremes import largest
from selssm_jax.tasks.registry import kind_of

State = Any
NOTHING = -1  # stands after a stop token, where no token is
MOST = 10_000_000  # tokens of one call
MOST_ANSWERS = 1_000_000  # of one call
MILDEST, STRONGEST = 0.01, 100.0  # repetition penalty: beyond them float32 may have no logits
SMALLEST = float(np.finfo(np.float32).tiny)  # temperature: below it float32 has 0
SETTINGS = 32  # ways of sampling whose programs are kept
HALF = "\ufffd"  # what bytes are shown as that are no whole character yet


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is drawn. Raises ArgumentError, a ValueError, where a setting is out of its range.

    Attributes:
      temperature: of the softmax; 0 takes the most probable token, as does what float32 cannot hold.
      top_k: only so many of the most probable tokens are drawn; 0: all.
      top_p: only the fewest of the most probable tokens that together have this probability are drawn; 1: all.
      repetition_penalty: of the tokens of the prompt and of those written so far; 1: none. See `penalise_repetition`.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        for name in ("temperature", "top_p", "repetition_penalty"):
            if not isinstance(getattr(self, name), numbers.Real):
                value = getattr(self, name)
                raise ArgumentError(name, f"={value!r} is of type {type(value).__name__}, expected a number")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ArgumentError(
                "temperature",
                f"={self.temperature} must be a number of at least 0: 0 takes the most probable token, 1 draws as the "
                "model says",
            )
        check_value(int, to_python(self.top_k), "top_k")
        if self.top_k < 0:
            raise ArgumentError(
                "top_k", f"={self.top_k} must be at least 0: 0 draws from all tokens, 1 takes the most probable one"
            )
        if not 0 < self.top_p <= 1:
            raise ArgumentError("top_p", f"={self.top_p} must be above 0 and at most 1: 1 draws from all tokens")
        if not MILDEST <= self.repetition_penalty <= STRONGEST:
            raise ArgumentError(
                "repetition_penalty",
                f"={self.repetition_penalty} must be from {MILDEST} to {STRONGEST}: 1 is none, and 1.2 makes tokens "
                "that were there less probable",
            )

    @property
    def is_greedy(self) -> bool:
        """Whether the most probable token is taken."""
        return self.temperature < SMALLEST


class Generated(NamedTuple):
    """What a model wrote, and what it holds after that.

    Attributes:
      tokens: as `generate` returns them.
      log_probs: log p of each under the model given all before it, in nats: of the softmax of its logits, before
        penalty, temperature and filters. 0 where `NOTHING` is.
      state: the memory after the prompt and all of a row's tokens. It can be given to `generate`, `stream` and the
        model as often as is wanted: nothing changes it.
    """

    tokens: Int[Array, "B N"]
    log_probs: Float[Array, "B N"]
    state: State


class Written(NamedTuple):
    """A text of one's own and what a model wrote after it.

    Attributes:
      prompt, text: what was given, and what follows it, up to a string that ends it.
      tokens: the names of the tokens of `text`; one that reaches into the string that ends it is not among them.
      log_probs: of these, as in `Generated`. state: the memory of one sequence after prompt and tokens.
    """

    prompt: str
    text: str
    tokens: tuple[str, ...]
    log_probs: Float[np.ndarray, "N"]
    state: State


def generate(
    model: ModelLike,
    params: PyTree,
    prompt: Any,
    count: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    key: Array | None = None,
    stop: Sequence[int] = (),
    state: State = None,
    answers: int = 1,
) -> Int[Array, "B N"]:
    """Returns the `count` tokens that a language model writes after each prompt, (B, P) -> (B answers, count).

    x_t ~ filtered(logits(x_{<t})), for temperature 0 its most probable token. The prompt is read in one pass, the rest
    in one compiled loop of single steps that carries the state, so memory does not grow with the text, but for a cache,
    which has room for just these steps. Compiled once for a model, a shape of the prompt, a count and a way of
    sampling.

    Args:
      model: a `SequenceModel`, or one that carries its state packed, which reads its prompt step by step too.
      params: its parameters, or what `init` returned, with them in it.
      prompt: whole numbers, (B, P), or a list of lists of unequal lengths, each written on as it would be alone.
      temperature, top_k, top_p, repetition_penalty: see `Sampling`.
      key: needed above temperature 0; noise in a model's state is drawn from it too.
      stop: tokens that end a row; such a token is its last, and after it stands `NOTHING`, -1.
      state: of what was read before, by `generate_scored` or the model: of as many sequences, or of one, from which
        every prompt goes on. Prompts of unequal length are then read step by step, and the penalty knows the tokens
        of this call alone.
      answers: how many to each prompt, which is read once; they are rows one after another.

    Raises:
      ValueError: for a model of another task, a prompt without tokens, of numbers that are not whole or with tokens
        that the model does not have, a count below 1 or over `MOST`, a setting out of its range, no key where tokens
        are drawn, a state of another model or without room for more steps, several answers that would be the same, and
        logits that are not finite.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    begun = _begin(model, params, prompt, count, sampling, key, stop, state, answers)
    return _complete(model, parameters(params), begun, count, keep=False).tokens


def generate_scored(
    model: ModelLike,
    params: PyTree,
    prompt: Any,
    count: int,
    *,
    key: Array | None = None,
    stop: Sequence[int] = (),
    state: State = None,
    answers: int = 1,
    **sampling: Any,
) -> Generated:
    """Returns the tokens of `generate` with their log-probabilities and the state after them, which is one step more,
    and a cache of its whole window.

    Arguments and errors are those of `generate`; `sampling` are the settings of `Sampling`.
    """
    begun = _begin(model, params, prompt, count, Sampling(**sampling), key, stop, state, answers)
    return _complete(model, parameters(params), begun, count, keep=True)


def _complete(model: ModelLike, params: PyTree, begun: "_Begun", count: int, *, keep: bool) -> Generated:
    """What is written; without `keep` no state, and a cache that has room for no more."""
    how = {"model": model, "sampling": begun.sampling, "stop": begun.stop}
    prompt = _make_room(model, params, begun.prompt) if keep else begun.prompt
    tokens, log_probs, bad, last = _write(params, prompt, begun.key, count=count, **how)
    for step in np.flatnonzero(np.asarray(bad).any(axis=1))[:1]:
        _refuse(int(step), np.asarray(bad)[step])
    # the last token is written, and not yet read
    return Generated(tokens, log_probs, _step(params, last, begun.key, **how).state if keep else None)


def stream(
    model: ModelLike,
    params: PyTree,
    prompt: Any,
    count: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    repetition_penalty: float = 1.0,
    key: Array | None = None,
    stop: Sequence[int] = (),
    state: State = None,
    answers: int = 1,
) -> Iterator[Int[np.ndarray, "B"]]:
    """Yields the tokens that `generate` returns, (B answers,) a step, each as soon as it is drawn, and ends where every
    row has stopped.

    Arguments and errors are those of `generate`; what can be said before a token is drawn is raised by the call itself.
    """
    sampling = Sampling(temperature, top_k, top_p, repetition_penalty)
    begun = _begin(model, params, prompt, count, sampling, key, stop, state, answers)
    how = {"model": model, "sampling": sampling, "stop": begun.stop}
    steps = _steps(
        begun.key,
        functools.partial(_first, parameters(params), begun.prompt, count=count, **how),
        functools.partial(_step, parameters(params), **how),
        count,
    )
    return (np.asarray(now.token) for now in steps)


def _steps(key: Array, first: Any, step: Any, count: int) -> Iterator["_Now"]:
    now: Any = None
    for index, fresh in enumerate(jax.random.split(key, count)):
        now = step(now, fresh) if index else first(fresh)
        bad, done = jax.device_get((now.bad, now.done))
        if bad.any():
            _refuse(index, bad)
        yield now
        if done.all():
            return


def read_rows(model: ModelLike, params: PyTree, rows: Any, state: State = None) -> State:
    """Returns the memory after rows of tokens of whatever lengths, from an empty one in one pass, or from `state`, of
    as many sequences or of one, where lengths differ step by step.

    Raises:
      ValueError: as `generate` does, for rows and state.
    """
    prompt = _prepare(model, parameters(params), _rows(rows, model.config.task.vocab), state)
    prompt = _make_room(model, parameters(params), prompt)
    return _read(parameters(params), prompt, jax.random.key(0), model=model, room=0)[1]


def penalise_repetition(
    logits: Float[Array, "*B V"], seen: Bool[Array, "*B V"], penalty: float
) -> Float[Array, "*B V"]:
    """Returns the logits with those of tokens that are `seen` over the penalty where they are positive, and times it
    where they are negative (Keskar et al. 2019).
    """
    return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


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
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    answers: int = 1,
    state: State = None,
) -> Iterator[str]:
    """Yields, in pieces to be shown at once, a text and the `tokens` tokens that a trained model writes after it, of
    whatever kind and size its memory is.

    Several texts, of whatever lengths, are one batch, and so are several answers: they are given when all are written,
    an empty line between them. Where a string of `stop` comes, what was written ends before it. A tokenizer's own
    beginning-of-text token is read first, and not shown; not after a `state`, as `generate` has it.

    Raises InputError for a model that is not of language, for a text that is empty or has what the data's vocabulary
    lacks, for settings that `Sampling` refuses, for a state of another model, and for a model whose logits are no
    numbers.
    """
    how: dict[str, Any] = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    how["repetition_penalty"] = repetition_penalty
    _check_request(tokens, seed, stop, answers, how)
    if len(texts) > 1 or answers > 1:
        how |= {"tokens": tokens, "seed": seed, "stop": stop, "answers": answers, "state": state, "states": False}
        every = write_texts(model, params, dataset, texts, **how)
        yield "\n\n".join(written.prompt + written.text for written in every)
        return
    beginning, (prompt,) = _encode_texts(dataset, texts, continued=state is not None)
    with as_input_error(""):
        steps = stream(model, params, prompt[None], tokens, key=jax.random.key(seed), state=state, **how)
        shown = prompt[len(beginning) :]
        decoded = _decode_each(dataset, shown.tolist(), (int(step[0]) for step in steps))
        yield from _cut(decoded, dataset.decode(shown), stop)


def write_texts(
    model: ModelLike,
    params: PyTree,
    dataset: Dataset,
    texts: Sequence[str],
    *,
    tokens: int,
    seed: int = 0,
    stop: Sequence[str] = (),
    answers: int = 1,
    state: State = None,
    states: bool = True,
    **sampling: Any,
) -> list[Written]:
    """Returns what a trained model writes after each text, `answers` to the first, and so on to the last.

    Arguments and errors are those of `write_on`; `sampling` has its temperature, 1 where it is not given, top_k, top_p
    and repetition_penalty. Without `states` those of what is returned are None.
    """
    chosen = _check_request(tokens, seed, stop, answers, {"temperature": 1.0, **sampling})
    beginning, prompts = _encode_texts(dataset, texts, continued=state is not None)
    with as_input_error(""):
        begun = _begin(
            model, params, list(map(list, prompts)), tokens, chosen, jax.random.key(seed), (), state, answers
        )
        given = _complete(model, parameters(params), begun, tokens, keep=states)
    rows, log_probs, after = list(np.asarray(given.tokens)), np.asarray(given.log_probs), given.state
    asked = [prompt for prompt in prompts for _ in range(answers)]
    said = [_cut_row(dataset, prompt[len(beginning) :], row, stop) for prompt, row in zip(asked, rows, strict=True)]
    rows = [row[:size] for row, (*_, size) in zip(rows, said, strict=True)]
    if states and min(map(len, rows)) < tokens:  # what comes from a string of `stop` on is unsaid
        heard = [np.concatenate(parts) for parts in zip(asked, rows, strict=True)]
        after = read_rows(model, params, heard, None if state is None else _spread(state, len(rows)))
    return [
        Written(
            shown,
            text,
            tuple(dataset.vocabulary[token] for token in rows[index]),
            log_probs[index, :size],
            jax.tree.map(lambda leaf, index=index: leaf[index : index + 1], after),
        )
        for index, (shown, text, size) in enumerate(said)
    ]


def write_through(
    read: Callable[[np.ndarray], np.ndarray],
    keep: Callable[[np.ndarray], None],
    dataset: Dataset,
    text: str,
    *,
    tokens: int,
    seed: int = 0,
    stop: Sequence[str] = (),
    continued: bool = False,
    **sampling: Any,
) -> Iterator[str | Written]:
    """Yields, in pieces to be shown at once, what a language model writes after a text whose memory is held elsewhere,
    and in the end the whole of it, without a state: that of `write_texts`, of an equal seed.

    Args:
      read: takes tokens (T,) into that memory and returns logits (V,) after the last.
      keep: is told all tokens of the text and of what follows it, in the end; those that `stop` cuts off are not among
        them, though they were read.
      continued: whether something was read before, so that no beginning-of-text token is.
      dataset, text, tokens, seed, stop, sampling: as `write_texts` has them, and its errors.
    """
    chosen = _check_request(tokens, seed, stop, 1, {"temperature": 1.0, **sampling})
    beginning, (prompt,) = _encode_texts(dataset, [text], continued=continued)
    drawn: list[int] = []
    log_probs: list[float] = []

    def draw() -> Iterator[int]:
        for now in _steps_through(read, prompt, jax.random.key(seed), tokens, chosen):
            drawn.append(int(now.token[0]))
            log_probs.append(float(now.log_prob[0]))
            yield drawn[-1]

    begun, told = dataset.decode(prompt[len(beginning) :]), 0
    with as_input_error(""):
        for piece in _cut(_decode_each(dataset, prompt[len(beginning) :].tolist(), draw()), begun, stop):
            told += len(piece)
            if told > len(begun):
                yield piece[max(len(begun) - told + len(piece), 0) :]
    row = np.array(drawn, np.int32)
    _, said, size = _cut_row(dataset, prompt[len(beginning) :], row, stop)
    keep(np.concatenate([prompt, row[:size]]))
    names = tuple(dataset.vocabulary[token] for token in row[:size])
    yield Written(begun, said, names, np.array(log_probs[:size], np.float32), None)


def _steps_through(
    read: Callable[[np.ndarray], np.ndarray], prompt: np.ndarray, key: Array, count: int, sampling: Sampling
) -> Iterator["_Now"]:
    """As `stream` takes steps, of one row."""
    draw = _compile_draw(sampling)

    def take(tokens: np.ndarray, seen: Any, key: Array) -> _Now:
        logits = np.asarray(read(tokens))[None]
        if seen is None and sampling.repetition_penalty != 1:
            seen = np.isin(np.arange(logits.shape[1]), tokens)[None]
        return draw(logits, seen, key)

    first = functools.partial(take, prompt, None)
    return _steps(key, first, lambda now, key: take(np.asarray(now.token), now.seen, key), count)


@functools.lru_cache(maxsize=SETTINGS)
def _compile_draw(sampling: Sampling) -> Any:
    """A program that draws the token of one row."""

    def draw(logits: Array, seen: Array | None, key: Array) -> _Now:
        return _after(logits, None, jnp.zeros(1, bool), seen, key, sampling, ())

    return jax.jit(draw)


def write_lines(
    model: ModelLike, params: PyTree, dataset: Dataset, texts: Sequence[str], **options: Any
) -> Iterator[str]:
    """Yields what `write_on` does as JSON, one line for each answer: its prompt, its text, log_prob of all of it in
    nats, its tokens and the log_probs of each.
    """
    written = write_texts(model, params, dataset, texts, states=False, **options)
    yield "\n".join(json.dumps(_describe(answer), ensure_ascii=False) for answer in written)


def _describe(written: Written) -> dict[str, Any]:
    return {
        "prompt": written.prompt,
        "text": written.text,
        "log_prob": round(float(written.log_probs.sum(dtype=np.float64)), 6),
        "tokens": written.tokens,
        "log_probs": [round(value, 6) for value in written.log_probs.tolist()],
    }


def _check_request(tokens: int, seed: int, stop: Sequence[str], answers: int, sampling: Mapping[str, Any]) -> Sampling:
    if not 1 <= tokens <= MOST:
        raise ArgumentError(
            "tokens", f"={tokens} must be at least 1: it is how many tokens are written, at most {MOST}"
        )
    if not 0 <= seed <= LARGEST_SEED:
        raise ArgumentError("seed", f"={seed} is out of range: use at least 0 and at most {LARGEST_SEED}")
    if not all(stop):
        raise ArgumentError("stop", " is empty: give the text that ends what is written")
    chosen = Sampling(**sampling)
    _check_answers(answers, chosen)
    return chosen


def _encode_texts(dataset: Dataset, texts: Sequence[str], *, continued: bool) -> tuple[np.ndarray, list[np.ndarray]]:
    """(The tokens that stand before a text and are not shown, the tokens of every text with them)."""
    if not texts:
        raise ArgumentError("prompt", " is empty: give at least one text", flag="generate")
    beginning = vocabulary.beginning(dataset.level, dataset.tokenizer)[: 0 if continued else None]
    prompts = [np.concatenate([beginning, _encode(dataset, text)]).astype(np.int32) for text in texts]
    for text, prompt in zip(texts, prompts, strict=True):
        if not len(prompt):
            raise ArgumentError(
                "prompt", f"={text!r} holds no token to begin with: give the beginning of a text", flag="generate"
            )
    return beginning, prompts


def _encode(dataset: Dataset, text: str) -> np.ndarray:
    if not kind_of(dataset.task).writes:
        raise ArgumentError(
            "generate",
            f" needs a run of language, but the task of this one is {dataset.task.kind}: name a run that was trained "
            "on text",
        )
    return dataset.encode(text)


def _decode_each(dataset: Dataset, prompt: list[int], tokens: Iterable[int]) -> Iterator[str]:
    """The text so far, before the first token and after each."""
    shown = list(prompt)
    yield dataset.decode(np.array(shown, np.int32))
    for token in tokens:
        shown.append(token)
        yield dataset.decode(np.array(shown, np.int32))


def _cut_row(dataset: Dataset, prompt: np.ndarray, row: np.ndarray, stop: Sequence[str]) -> tuple[str, str, int]:
    """(The prompt as it was read, the text after it up to a string of `stop`, how many tokens end in that text)."""
    begun, whole = dataset.decode(prompt), np.concatenate([prompt, row])
    text = dataset.decode(whole)
    shown = "".join(_cut([begun, text], begun, stop))
    size = len(row)
    if len(shown) < len(text):
        decoded = lambda count: len(dataset.decode(whole[: len(prompt) + count]))  # noqa: E731
        size = bisect.bisect_right(range(1, size + 1), len(shown), key=decoded)
    return begun, shown[len(begun) :], size


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


class _Prompt(NamedTuple):
    """What is read first: rows of tokens filled up on the left.

    Attributes:
      reset: True where a row begins, with nothing before it; valid: False at what fills up, before a row that goes on
        from a state. None, both, where all are equally long. state: before it; None: an empty one.
      rows: which row each answer is to; None: one to each.
    """

    tokens: Array
    reset: Array | None
    valid: Array | None
    state: State
    rows: Array | None


class _Begun(NamedTuple):
    """What a call is about, checked."""

    prompt: _Prompt
    key: Array
    sampling: Sampling
    stop: tuple[int, ...]


class _Now(NamedTuple):
    """The step that was just taken: its tokens and their log-probabilities, whether rows have ended, whether their
    logits were no numbers, the tokens that were there (B, V) where any are penalised, and the state before the tokens.
    """

    token: Array
    log_prob: Array
    done: Array
    bad: Array
    seen: Array | None
    state: State


@functools.partial(jax.jit, static_argnames=("model", "count", "sampling", "stop"))
def _write(
    params: PyTree,
    prompt: _Prompt,
    key: Array,
    *,
    model: ModelLike,
    count: int,
    sampling: Sampling,
    stop: tuple[int, ...],
) -> tuple[Array, Array, Array, _Now]:
    """(tokens (B, count), their log-probabilities, whether logits were no numbers (count, B), the last step)."""
    keys = jax.random.split(key, count)

    def one(now: _Now, key: Array) -> tuple[_Now, tuple[Array, Array, Array]]:
        now = _step(params, now, key, model=model, sampling=sampling, stop=stop)
        return now, (now.token, now.log_prob, now.bad)

    first = _first(params, prompt, keys[0], model=model, count=count, sampling=sampling, stop=stop)
    last, rest = jax.lax.scan(one, first, keys[1:])
    begun = (first.token, first.log_prob, first.bad)
    tokens, log_probs, bad = (jnp.concatenate([value[None], values]) for value, values in zip(begun, rest, strict=True))
    return tokens.T, log_probs.T, bad, last


@functools.partial(jax.jit, static_argnames=("model", "count", "sampling", "stop"))
def _first(
    params: PyTree,
    prompt: _Prompt,
    key: Array,
    *,
    model: ModelLike,
    count: int,
    sampling: Sampling,
    stop: tuple[int, ...],
) -> _Now:
    logits, state = _read(params, prompt, key, model=model, room=prompt.tokens.shape[1] + count)
    seen = None if sampling.repetition_penalty == 1 else _find_seen(prompt, logits.shape[-1])
    if prompt.rows is not None:
        logits, state, seen = jax.tree.map(lambda leaf: leaf[prompt.rows], (logits, state, seen))
    return _after(logits, state, jnp.zeros(len(logits), bool), seen, key, sampling, stop)


@functools.partial(jax.jit, static_argnames=("model", "sampling", "stop"))
def _step(
    params: PyTree, now: _Now, key: Array, *, model: ModelLike, sampling: Sampling, stop: tuple[int, ...]
) -> _Now:
    logits, state = model.apply(
        {"params": params}, jnp.maximum(now.token, 0), now.state, method="step", rngs={"noise": key}
    )
    state = choose_rows(now.token != NOTHING, state, now.state) if stop else state
    return _after(logits, state, now.done, now.seen, key, sampling, stop)


def _after(
    logits: Array,
    state: State,
    done: Array,
    seen: Array | None,
    key: Array,
    sampling: Sampling,
    stop: tuple[int, ...],
) -> _Now:
    penalised = logits if seen is None else penalise_repetition(logits, seen, sampling.repetition_penalty)
    token = jnp.where(done, NOTHING, _draw(penalised, key, sampling))
    log_prob = jnp.take_along_axis(logits, jnp.maximum(token, 0)[:, None], axis=-1)[:, 0]
    log_prob = jnp.where(done, 0, log_prob - jax.nn.logsumexp(logits, axis=-1))
    bad = ~jnp.isfinite(logits).all(axis=-1) & ~done
    seen = None if seen is None else seen | jax.nn.one_hot(token, logits.shape[-1], dtype=bool)
    done = done | jnp.isin(token, jnp.array(stop, jnp.int32)) if stop else done
    return _Now(token, log_prob, done, bad, seen, state)


def _draw(logits: Array, key: Array, sampling: Sampling) -> Array:
    if sampling.is_greedy:
        return logits.argmax(axis=-1).astype(jnp.int32)
    filtered = filter_logits(logits, sampling.temperature, sampling.top_k, sampling.top_p)
    return jax.random.categorical(key, filtered).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "room"))
def _read(params: PyTree, prompt: _Prompt, key: Array, *, model: ModelLike, room: int) -> tuple[Array, State]:
    """(logits (B, V), state) after a prompt; a cache has room for so many steps where the prompt has no state."""
    state = prompt.state
    if state is None:
        state = model.apply({"params": params}, len(prompt.tokens), room, method="initial_state")
    if prompt.valid is None:
        logits, state = model.apply({"params": params}, prompt.tokens, state, reset=prompt.reset, rngs={"noise": key})
        return logits[:, -1], state

    def read(before: tuple[Array, State], step: tuple[Array, Array, Array]) -> tuple[tuple[Array, State], None]:
        token, valid, key = step
        logits, state = model.apply({"params": params}, token, before[1], method="step", rngs={"noise": key})
        return (logits, choose_rows(valid, state, before[1])), None

    keys = jax.random.split(key, prompt.tokens.shape[1])
    logits = jnp.zeros((len(prompt.tokens), model.config.task.vocab))
    return jax.lax.scan(read, (logits, state), (prompt.tokens.T, prompt.valid.T, keys))[0]


def _find_seen(prompt: _Prompt, vocab: int) -> Bool[Array, "B V"]:
    """Which tokens a prompt has."""
    read = prompt.valid if prompt.reset is None else jnp.cumsum(prompt.reset, axis=1) > 0
    read = jnp.ones(prompt.tokens.shape, bool) if read is None else read
    rows = jnp.arange(len(prompt.tokens))[:, None]
    return jnp.zeros((len(prompt.tokens), vocab), bool).at[rows, prompt.tokens].max(read)


def _spread(state: State, rows: int) -> State:
    """A state of so many rows, each of those that there are repeated."""
    return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf), rows // len(leaf), axis=0), state)


def _make_room(model: ModelLike, params: PyTree, prompt: _Prompt) -> _Prompt:
    """A prompt whose state can be read on from without end."""
    return prompt if prompt.state is not None else prompt._replace(state=_empty(model, params, len(prompt.tokens)))


def _empty(model: ModelLike, params: PyTree, rows: int) -> State:
    return model.apply({"params": params}, rows, method="initial_state")


def _begin(
    model: ModelLike,
    params: PyTree,
    prompt: Any,
    count: Any,
    sampling: Sampling,
    key: Array | None,
    stop: Any,
    state: State,
    answers: Any,
) -> _Begun:
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
    _check_answers(answers, sampling)
    key = jax.random.key(0) if key is None else key
    ready = _prepare(model, parameters(params), rows, state)
    if answers > 1:
        ready = ready._replace(rows=jnp.repeat(jnp.arange(len(rows)), answers))
    return _Begun(ready, key, sampling, tuple(map(int, stop)))


def _check_answers(answers: Any, sampling: Sampling) -> None:
    check_value(int, to_python(answers), "answers")
    if not 1 <= answers <= MOST_ANSWERS:
        raise ArgumentError("answers", f"={answers} must be at least 1 to a prompt, and at most {MOST_ANSWERS}")
    if answers > 1 and sampling.is_greedy:
        raise ArgumentError(
            "answers",
            f"={answers} of temperature={sampling.temperature} would all be the same: use a temperature above 0, or 1 "
            "answer",
        )


def _prepare(model: ModelLike, params: PyTree, rows: Sequence[np.ndarray], state: State) -> _Prompt:
    tokens, begins = align_rows(rows)
    if state is None:
        return _Prompt(jnp.asarray(tokens), None if begins is None else jnp.asarray(begins), None, None, None)
    _check_state(model, params, state, len(rows))
    valid = None if begins is None else jnp.asarray(np.cumsum(begins, axis=1) > 0)
    return _Prompt(jnp.asarray(tokens), None, valid, _spread(state, len(rows)), None)


def _check_state(model: ModelLike, params: PyTree, state: State, rows: int) -> None:
    """Raises ValueError for a state that is not of this model, that has no room, or is of another number of rows."""
    expected = jax.eval_shape(lambda params: _empty(model, params, 1), params)
    if [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)] != [
        jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(expected)
    ]:
        raise ValueError("state is not of this model, whose states have other leaves: give one that it returned")
    for (path, leaf), empty in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(expected), strict=True):
        if np.shape(leaf)[1:] != empty.shape[1:] or leaf.dtype != empty.dtype:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} is {leaf.dtype} of shape {np.shape(leaf)}, expected {empty.dtype} "
                f"of shape (B, {', '.join(map(str, empty.shape[1:]))}): it is of another model, or of a cache that was "
                "made for few steps and has no room for more; give one of generate_scored, or of "
                "initial_state(batch) without steps"
            )
        if len(leaf) not in (1, rows):
            raise ValueError(
                f"state is of {len(leaf)} sequences, but {rows} prompts go on from it: give one of as many, or of one "
                "for all"
            )


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
