"""A run that writes: what a language model makes of a beginning of yours."""

import contextlib
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from selssm_jax.config import LARGEST_SEED
from selssm_jax.data import vocabulary
from selssm_jax.errors import InputError
from selssm_jax.generation import MOST, Sampling, generate, stream
from selssm_jax.reporting.run import Run, open_run
from selssm_jax.tasks.registry import kind_of

HALF = "\ufffd"  # what bytes are shown as that are no whole character yet


def write(
    workdir: str | pathlib.Path,
    text: str,
    *,
    tokens: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    local_dir: str = "",
    stop: Sequence[str] = (),
) -> str:
    """Returns `text` and the `tokens` tokens that the run in `workdir` writes after it, of whatever kind and size its memory is.

    Where a string of `stop` comes, what was written ends before it. A tokenizer's own beginning-of-text token is read first, and not shown.

    Raises InputError for what `open_run` refuses, for a run that is not of language, for a text that is empty or has what the run's vocabulary
    lacks, for settings that `Sampling` refuses, and for a model whose logits are no numbers.
    """
    how = _sampling(tokens, temperature, top_k, top_p, seed, stop)
    return "".join(_pieces(open_run(workdir, local_dir=local_dir, examples=False), text, how, stop))


def tell(workdir: str | pathlib.Path, texts: Sequence[str], *, stop: Sequence[str] = (), local_dir: str = "", **how: Any) -> Iterator[str]:
    """Yields, in pieces to be shown at once, what `write` returns of one text; of several, of whatever lengths, each when all are written.

    Arguments and errors are those of `write`; several texts are one batch, and an empty line stands between them.
    """
    options = _sampling(stop=stop, **how)
    run = open_run(workdir, local_dir=local_dir, examples=False)
    if len(texts) == 1:
        yield from _pieces(run, texts[0], options, stop)
        return
    prompts = [_prompt(run, text) for text in texts]
    with _as_input_error():
        written = np.asarray(generate(run.model, run.params, [list(prompt) for prompt in prompts], options["count"], **_drawing(options)))
    parts = ["".join(_cut(_texts(run, prompt, row.tolist()), text, stop)) for prompt, row, text in zip(prompts, written, texts, strict=True)]
    yield "\n\n".join(parts)


def _pieces(run: Run, text: str, how: dict[str, Any], stop: Sequence[str]) -> Iterator[str]:
    prompt = _prompt(run, text)
    with _as_input_error():
        steps = stream(run.model, run.params, prompt[None], how["count"], **_drawing(how))
        yield from _cut(_texts(run, prompt, (int(tokens[0]) for tokens in steps)), text, stop)


def _texts(run: Run, prompt: np.ndarray, tokens: Iterable[int]) -> Iterator[str]:
    """The text so far, before the first token and after each."""
    shown = list(prompt[len(_beginning(run)) :])
    yield run.dataset.decode(np.array(shown, np.int32))
    for token in tokens:
        shown.append(token)
        yield run.dataset.decode(np.array(shown, np.int32))


def _cut(texts: Iterable[str], begun: str, stop: Sequence[str]) -> Iterator[str]:
    """What each text adds to those before it: whole characters alone, and nothing of what may become a string of `stop`; the end at such a string."""
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


@contextlib.contextmanager
def _as_input_error() -> Iterator[None]:
    """What is wrong with a run's model is said as all mistakes are."""
    try:
        yield
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"--generate: {error}") from error


def _sampling(tokens: int, temperature: float, top_k: int, top_p: float, seed: int, stop: Sequence[str]) -> dict[str, Any]:
    try:
        Sampling(temperature, top_k, top_p)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    if not 1 <= tokens <= MOST:
        raise InputError(f"--tokens={tokens} must be at least 1: it is how many tokens are written, at most {MOST}")
    if not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"--seed={seed} is out of range: use at least 0 and at most {LARGEST_SEED}")
    if not all(stop):
        raise InputError("--stop is empty: give the text that ends what is written")
    return {"count": tokens, "temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}


def _drawing(how: dict[str, Any]) -> dict[str, Any]:
    return {name: how[name] for name in ("temperature", "top_k", "top_p")} | {"key": jax.random.key(how["seed"])}


def _beginning(run: Run) -> np.ndarray:
    return vocabulary.beginning(run.dataset.level, run.dataset.tokenizer)


def _prompt(run: Run, text: str) -> np.ndarray:
    task = run.dataset.task
    if not kind_of(task).writes:
        raise InputError(f"--generate needs a run of language, but the task of {run.workdir} is {task.kind}: name a run that was trained on text")
    prompt = np.concatenate([_beginning(run), run.dataset.encode(text)])
    if not len(prompt):
        raise InputError(f"--generate={text!r} holds no token to begin with: give the beginning of a text")
    return prompt
