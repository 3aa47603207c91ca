"""What a trained selective model keeps of one real example: its gates, and how much of what a step wrote is there at
the end.
"""

import itertools
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from selssm_jax.analysis import gates
from selssm_jax.model import block_names
from selssm_jax.ops.gating import effective_transition
from selssm_jax.runs import Run
from selssm_jax.tasks.registry import kind_of

LONGEST = 2000  # samples of a signal that are kept, evenly spaced
CHANNELS = 3  # of a signal
DIGITS = 4


def show_gates(run: Run) -> dict[str, Any]:
    """Returns the first test example of a run of "selective" blocks with what each block did, as JSON-able values.

    gate: the mean over components, by frame. kept: of what frame s wrote, the share that is still there at the end of
    the example, sum_i g_si prod_(r>s) |a_ri| / sum_i g_si with a_t = A_t's diagonal (theory, section 1). position: the
    token or, of a signal thinned out to at most LONGEST points, the point at which a frame ends.
    """
    size = run.experiment.data.eval_batch_size or run.experiment.data.batch_size
    batches = itertools.islice(run.dataset.evaluate("test", size), 1)
    piece = run.experiment.training.piece
    sequence = gates.observe_gates(run.model, run.params, batches, is_stream=False, piece=piece)[1][0]
    kind = kind_of(run.dataset.task)
    stride = kind.stride(run.model.config)
    live = sequence.live_gates(stride)
    transitions = run.model.apply({"params": run.params}, method=lambda model: [block.mixer.A for block in model.block])
    poles = dict(zip(block_names(run.model.config), transitions, strict=True))
    blocks = {
        name: _block(np.asarray(gate), np.asarray(poles[name]), run.model.config.selective.update)
        for name, gate in live.items()
    }
    frames = len(next(iter(live.values())))
    length = sequence.shown_steps(stride)
    positions = np.minimum(np.arange(1, frames + 1) * stride, length) - 1
    every = 1 if kind.tokens else -(-length // LONGEST)
    unit = "step" if every == 1 else f"step of {every} sample"
    title = kind.title(sequence.batch, np.asarray(sequence.outputs), run.dataset.metadata())
    return {
        "title": title,
        "unit": unit,
        **_thin_signal(run, sequence.batch["inputs"][:length], every),
        "position": (positions // every).tolist(),
        "blocks": blocks,
    }


def share_kept(gate: Float[np.ndarray, "F n"], a: Float[np.ndarray, "F n"]) -> Float[np.ndarray, "F"]:
    """Returns, of what every frame wrote, the share that is still there after the last one; 0 where it wrote
    nothing.
    """
    after = np.cumprod(np.abs(a[::-1]), axis=0)[::-1]
    survives = np.concatenate([after[1:], np.ones((1, a.shape[1]))])
    written = gate.sum(axis=1)
    return np.where(written > 0, (gate * survives).sum(axis=1) / np.where(written > 0, written, 1), 0.0)


def _block(gate: np.ndarray, A: np.ndarray, update: str) -> dict[str, list[float]]:
    a = np.asarray(jax.device_get(effective_transition(gate[None], A, update)))[0]
    return {"gate": _round_values(gate.mean(axis=1)), "kept": _round_values(share_kept(gate, a))}


def _thin_signal(run: Run, inputs: np.ndarray, every: int) -> dict[str, Any]:
    """The tokens, or the signal thinned out to what a page can show."""
    if kind_of(run.dataset.task).tokens:
        return {"tokens": [run.dataset.vocabulary[int(token)] for token in inputs], "signal": None}
    return {"tokens": None, "signal": [_round_values(row) for row in inputs[::every, :CHANNELS]]}


def _round_values(values: np.ndarray) -> list[float]:
    return [round(float(value), DIGITS) for value in values]
