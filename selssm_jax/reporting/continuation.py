"""A run that writes: what a language model makes of a beginning of yours."""

import pathlib

import jax
import numpy as np

from selssm_jax.errors import InputError
from selssm_jax.generation import Sampling, generate
from selssm_jax.reporting.run import Run, open_run


def write(
    workdir: str | pathlib.Path, text: str, *, tokens: int, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0, local_dir: str = ""
) -> str:
    """Returns `text` and the `tokens` tokens that the run in `workdir` writes after it, of whatever kind and size its memory is.

    Raises InputError for what `open_run` refuses, for a run that is not of language, for a text that is empty or has what the run's vocabulary
    lacks, and for settings that `Sampling` refuses.
    """
    try:
        Sampling(temperature, top_k, top_p)
    except ValueError as error:
        raise InputError(f"--{error}") from error
    if tokens < 1:
        raise InputError(f"--tokens={tokens} must be at least 1: it is how many tokens are written")
    run = open_run(workdir, local_dir=local_dir, examples=False)
    prompt = _prompt(run, text)
    key = jax.random.key(seed)
    written = generate(run.model, run.params, prompt[None], tokens, temperature=temperature, top_k=top_k, top_p=top_p, key=key)
    return run.dataset.decode(np.concatenate([prompt, np.asarray(written[0])]))


def _prompt(run: Run, text: str) -> np.ndarray:
    kind = run.dataset.task.kind
    if kind != "language":
        raise InputError(f"--generate needs a run of language, but the task of {run.workdir} is {kind}: name a run that was trained on text")
    prompt = run.dataset.encode(text)
    if not len(prompt):
        raise InputError(f"--generate={text!r} holds no token to begin with: give the beginning of a text")
    return prompt
