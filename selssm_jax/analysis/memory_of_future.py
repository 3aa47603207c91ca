"""What a state says of what is still to come: the answers of a task, and the future of a series under the bottleneck's
curve (theory, section 7).
"""

import math
import warnings
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.optimize import brentq
from scipy.special import digamma

from selssm_jax.analysis import memory_of_past
from selssm_jax.analysis.memory_by_lag import decoder_training
from selssm_jax.analysis.results import BITS, Results
from selssm_jax.analysis.state_samples import Answers, Block, Recording
from selssm_jax.information import bottleneck, estimators, limits, retention
from selssm_jax.information._estimate import Estimate
from selssm_jax.information.estimators import Training
from selssm_jax.runs import Run

PAST, FUTURE = 16, 8  # steps under the bottleneck curve
ROWS = 5  # sequences a column that a curve needs: with fewer, what is taken off is larger than what is left


class Covariances(NamedTuple):
    """Of the last inputs and the values that follow, standardised, with the information between them that is left when
    the bias of so few sequences is taken off; and those values, (M, F).
    """

    past: Array
    across: Array
    future: Array
    values: np.ndarray


def answers(run: Run, recording: Recording, given: Answers, blocks: dict[str, Results]) -> Results:
    """What the states before the first answer hold of all answers: by the model's own, and by a decoder of all blocks'
    states together.
    """
    entropy = float(run.dataset.info["answer_nats"])
    states = np.concatenate([block.states[:, -1] for block in recording.blocks.values()], axis=1)
    classes = int(given.tokens.max()) + 1
    probe = retention.tokens(states, given.tokens, classes=classes, training=decoder_training(run.experiment.measure))
    length = given.tokens.shape[1]
    decoder = {
        "bits": float(probe.nats.sum()) * BITS,
        "stderr": _sum_error(probe.pointwise) * BITS,
        "accuracy": float(1 - probe.error.mean()),
    }
    results = {"entropy": entropy * BITS, "answers": length, "moment": int(recording.moments[-1]), "direction": "lower"}
    for name, bound in (("model", _decode(given, entropy)), ("decoder", decoder)):
        results[name] = bound | {"share": bound["bits"] / results["entropy"]}
    return results | {"fano": _fano(blocks, entropy, classes, length)}


def _decode(given: Answers, entropy: float) -> Results:
    """H + E log q of the model itself, which reads no more than its state and marks that are the same in every
    sequence.
    """
    return {
        "bits": (entropy + float(given.log_p.astype(np.float64).sum(axis=1).mean())) * BITS,
        "stderr": _sum_error(given.log_p) * BITS,
        "accuracy": float(given.right.mean()),
    }


def _sum_error(pointwise: np.ndarray) -> float:
    return float(pointwise.astype(np.float64).sum(axis=1).std() / len(pointwise) ** 0.5)


def _fano(blocks: dict[str, Results], entropy: float, classes: int, length: int) -> float | None:
    """The least share of wrong answers, where all blocks' states have noise: they know no more than the sum of what
    each knows of its inputs.
    """
    bounds = [memory_of_past.ceiling(block["information"][-1:]) for block in blocks.values()]
    total = sum(math.inf if bound is None else memory_of_past.limit(bound) for bound in bounds)
    if math.isinf(total):
        return None
    return float(limits.fano_error(entropy, min(total, entropy), classes, length=length))


def count_needed(frames: np.ndarray, targets: np.ndarray) -> int:
    """Returns how many sequences `covariances` needs."""
    return _count_rows(*_past_and_future(frames, targets))


def covariances(frames: np.ndarray, targets: np.ndarray) -> Covariances | None:
    """Covariances of the last inputs and the values that follow, standardised; None of fewer than `count_needed`
    sequences.

    Sample covariances know more than the law does: of n sequences of independent Gaussian columns some pq/2n nats.
    Canonical correlations are shrunk alike until what they know is unbiased: E log det S of a Wishart law is known.
    """
    before, after = _past_and_future(frames, targets)
    if len(frames) < _count_rows(before, after):
        return None
    joint = np.concatenate([before, after], axis=1)
    cov = np.cov(joint / joint.std(axis=0, keepdims=True), rowvar=False)
    cut, share = before.shape[1], _unbiased_share(before, after)
    past, across, future = (jnp.asarray(part) for part in (cov[:cut, :cut], share * cov[:cut, cut:], cov[cut:, cut:]))
    return Covariances(past, across, future, after)


def _count_rows(before: np.ndarray, after: np.ndarray) -> int:
    return ROWS * (before.shape[1] + after.shape[1])


def _past_and_future(frames: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The columns of both that change."""
    columns = (frames[:, -PAST:].reshape(len(frames), -1), targets[:, :FUTURE].reshape(len(frames), -1))
    before, after = (values[:, values.std(axis=0) > 0] for values in columns)
    return before, after


def _unbiased_share(before: np.ndarray, after: np.ndarray) -> float:
    """What all canonical correlations are to be multiplied by; 1 where one is 1, whose information has no end."""
    bases = [np.linalg.qr(values - values.mean(axis=0))[0] for values in (before.astype(float), after.astype(float))]
    correlations = np.minimum(np.linalg.svd(bases[0].T @ bases[1], compute_uv=False), 1)
    if (correlations > 1 - 1e-9).any():
        return 1.0

    def nats(share: float) -> float:
        return float(-np.log1p(-np.square(share * correlations)).sum() / 2)

    freedom, (p, q) = len(before) - 1, (before.shape[1], after.shape[1])
    excess = [digamma((freedom - np.arange(d)) / 2).sum() - d * math.log(freedom / 2) for d in (p, q, p + q)]
    left = nats(1) - (excess[0] + excess[1] - excess[2]) / 2
    return float(brentq(lambda share: nats(share) - left, 0, 1)) if 0 < left < nats(1) else 0.0


def efficiency(block: Block, known: list[Results], given: Covariances, training: Training) -> Results:
    """The point (I(h; past), I(h; future)) under the bottleneck curve of a Gaussian process with the covariances of the
    data.
    """
    reached = bound_future(block.states[:, -1], given.values, training)
    ceiling = memory_of_past.ceiling(known[-1:])
    most = math.inf if ceiling is None else memory_of_past.limit(ceiling)
    point = bottleneck.memory_efficiency(jnp.float32(most), jnp.float32(max(reached.nats, 0)), *given[:3])
    line = bottleneck.gaussian(given.past, given.across, given.future, jnp.geomspace(1.01, 1e3, 60))
    # a future without noise has no end
    curve = np.stack([line.complexity, line.relevance])[:, np.isfinite(line.relevance)] * BITS
    return {
        "past": _finite(most * BITS),
        "future": max(reached.bits, 0.0),
        "stderr": reached.stderr * BITS,
        "direction": "lower",
        "bound": _finite(float(point.bound) * BITS),
        "efficiency": _finite(float(point.efficiency)),
        "curve": {"past": curve[0].tolist(), "future": curve[1].tolist()},
        "steps": {"past": PAST, "future": FUTURE},
        "notes": list(reached.notes),
    }


def bound_future(states: np.ndarray, future: np.ndarray, training: Training) -> Estimate:
    """Returns a lower bound on I(states; future); what there is to say of it, which is not printed, is in its notes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimators.hybrid(states, future, training=training)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
