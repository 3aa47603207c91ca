"""What the states of a trained model know: of all their past, of single inputs by lag, of the answers and of the future (theory, sections 4, 6, 7).

All numbers of the results are in bits, and each goes with its direction: exact, lower, upper or estimate.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from selssm_jax.config import Measure
from selssm_jax.information import bottleneck, bracket, estimators, gaussian, limits, retention
from selssm_jax.information.estimate import Estimate
from selssm_jax.information.estimators import Training
from selssm_jax.model import SequenceModel
from selssm_jax.reporting.recording import Answers, Block, Recording, record
from selssm_jax.reporting.run import Run

Results = dict[str, Any]
BITS = 1 / math.log(2)
LARGEST_VOCABULARY = 256  # tokens that are told apart by a decoder: the most frequent ones, and "other"
CHANNELS = 4  # of values that are decoded
BINS = 8  # of a component's values, and of an input's, in the table of components
LAGS = 16  # that are decoded, at most
PAST, FUTURE = 16, 8  # steps under the bottleneck curve


def measure(run: Run, split: str) -> Results:
    """Returns everything that the report says of the run's memory, as JSON-able values in bits."""
    settings = run.experiment.measure
    first = next(iter(run.dataset.evaluate(split, 2)))
    scored = _scored_steps(run, first)
    moments = _moments(run.model, first, settings, scored)
    size = run.experiment.data.eval_batch_size or run.experiment.data.batch_size
    batches = run.dataset.evaluate(split, size)
    seen = record(run.model, run.params, batches, samples=settings.samples, moments=moments, scored=scored, seed=settings.seed)
    curve = None if seen.targets is None else _future(seen.frames, seen.targets)
    blocks = {name: _block(run, seen, name, curve) for name in seen.blocks}
    answers = None if seen.answers is None else _answers(run, seen, seen.answers, blocks)
    return {"unit": "bits", "sequences": len(seen.frames), "moments": list(moments), "blocks": blocks, "answers": answers}


def _scored_steps(run: Run, batch: dict[str, Any]) -> list[int]:
    """The steps of a task whose answers are all fixed before the first of them, and are therefore in the state if anywhere; else none."""
    if run.dataset.info.get("answer_nats") is None:
        return []
    steps = np.flatnonzero(np.asarray(batch["weights"])[0] > 0)
    after = np.asarray(batch["inputs"])[:, steps[0] :]
    return steps.tolist() if (after == after[0, 0]).all() and steps[0] > 0 else []


def _moments(model: SequenceModel, batch: dict[str, Any], settings: Measure, scored: list[int]) -> list[int]:
    """Evenly from the longest lag to the end, or to the step before the first answer."""
    frames = -(-batch["inputs"].shape[1] // (1 if model.config.task.kind == "language" else model.config.stride))
    last = scored[0] - 1 if scored else frames - 1
    start = min(settings.longest_lag, last // 2)
    return sorted({*np.linspace(start, last, settings.positions).round().astype(int).tolist(), last})


def _block(run: Run, seen: Recording, name: str, curve: dict[str, np.ndarray] | None) -> Results:
    block = seen.blocks[name]
    known = _known(run, seen, name)
    kept = _retention(run, seen, block)
    found = {"components": block.states.shape[-1], "information": known} | kept
    ceiling = _ceiling(known)
    found["retention"]["fano"] = None if ceiling is None else [_fano(entropy, ceiling, classes) for entropy, classes in kept["retention"]["asked"]]
    found["verdict"] = None if ceiling is None else _verdict(ceiling, kept["retention"])
    found["future"] = None if curve is None else _efficiency(block, known, curve, run.experiment.measure)
    return found


# All of the past.


def _known(run: Run, seen: Recording, name: str) -> list[Results]:
    """I(h_t; inputs) at every moment, for states with noise: bracketed, and exact where the model up to there is linear and its input Gaussian."""
    law = seen.blocks[name].law
    if law is None:
        return []
    exact = _exact(run, seen.moments) if name == "block_0" else None
    given = "the inputs of the block" if run.model.config.gate_state == "none" else "the state before it and the input"
    return [
        _known_at(seen, name, index) | {"exact": None if exact is None else float(exact[index]) * BITS, "given": given} for index in range(len(seen.moments))
    ]


def _known_at(seen: Recording, name: str, index: int) -> Results:
    law, live = seen.blocks[name].law, seen.live[:, index]
    assert law is not None
    means, covs, states = (value[live, index] for value in (law.means, law.covs, seen.blocks[name].states))
    moment = {"moment": int(seen.moments[index])}
    deviations = np.diagonal(covs, axis1=1, axis2=2) if covs.ndim == 3 else covs
    if (deviations <= 0).any():
        return moment | {"skipped": "a component whose gate was never open holds no noise: its law has no density"}
    found = bracket.state_information(jnp.asarray(means), jnp.asarray(covs), jnp.asarray(states))
    result = {"lower": float(found.lower), "upper": float(found.upper), "stderr": float(found.stderr)}
    if len(states) >= states.shape[1] + 2:
        bound = bracket.upper_gaussian(jnp.asarray(covs), jnp.asarray(states))
        result |= {"gaussian_upper": float(bound.nats), "gaussian_upper_stderr": float(bound.stderr)}
    return moment | {key: value * BITS for key, value in result.items()} | {"resolved": bool(found.resolved)}


def _exact(run: Run, moments: np.ndarray) -> np.ndarray | None:
    """I(h_t; x_{1:t}) of the first block, in nats, where its input is a linear map of a Gaussian process and its gates are constant."""
    model, process = run.model.config, run.dataset.info.get("process")
    linear = model.norm == "none" and model.gate == "constant" and model.gate_state == "none" and model.transition != "complex"
    direct = model.conv == 0 and model.frame == model.stride == 1 and not model.filterbank and not model.normalize
    if process is None or not (linear and direct):
        return None
    A, B, noise = _linear_response(run.model, run.params, int(moments[-1]) + 1)
    decay, white = process["decay"], process["noise"]
    source = dict(F=jnp.diag(jnp.array([decay, 0.0])), H=jnp.ones((1, 2)), innovation_cov=jnp.diag(jnp.array([1 - decay**2, white])))
    start = jnp.diag(jnp.array([1.0, white]))
    return np.asarray(gaussian.coloured_information(A, B, jax.vmap(jnp.diag)(noise**2), **source, source_cov=start))[moments]


def _linear_response(model: SequenceModel, params: PyTree, steps: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A_t, the drive that a unit input makes, (T, n, 1), and the noise, of the first block of a linear model with one channel."""

    @jax.jit
    def drives(value: jax.Array) -> Any:
        inputs = jnp.broadcast_to(value, (1, steps, 1))
        sown = model.apply({"params": params}, inputs, rngs={"noise": jax.random.key(0)}, mutable=["laws"])[1]
        return jax.tree.map(lambda leaf: leaf[0], sown["laws"]["block_0"]["mixer"]["law"][0])

    silent, driven = drives(jnp.float32(0)), drives(jnp.float32(1))
    return silent.A, (driven.drive - silent.drive)[..., None], silent.noise


def _ceiling(known: list[Results]) -> Estimate | None:
    """The least upper bound on what the state knows, at the moment where that is largest."""
    bounds: list[tuple[float, float]] = []
    for one in known:
        pairs = [(one.get("exact"), 0.0), (one.get("upper"), one.get("stderr", 0.0)), (one.get("gaussian_upper"), one.get("gaussian_upper_stderr", 0.0))]
        finite = [(bound, stderr) for bound, stderr in pairs if bound is not None and math.isfinite(bound)]
        if not finite:
            return None
        bounds.append(min(finite))
    if not bounds:
        return None
    bits, stderr = max(bounds)
    return Estimate(bits / BITS, stderr / BITS, "upper", "least upper bound of the report")


def _limit(bound: Estimate) -> float:
    """Nats that the truth hardly exceeds."""
    return bound.nats + 2 * bound.stderr


# Single inputs.


def _retention(run: Run, seen: Recording, block: Block) -> Results:
    """What decoders read of x_{t-k} from h_t, by lag; by component; and by how open the gates were when it was read."""
    lags = _lags(seen, run.experiment.measure)
    rows, index = np.nonzero(seen.live)
    states = block.states[rows, index]
    inputs = _inputs(seen.frames)
    asked = np.stack([inputs[rows, seen.moments[index] - lag] for lag in lags], axis=1)  # (N, K, C)
    training = _training(run.experiment.measure)
    tokens = seen.frames.ndim == 2
    if tokens:
        classes = int(inputs.max()) + 1
        probe = retention.tokens(states, asked[..., 0], classes=classes, groups=rows, training=training)
    else:
        probe = retention.values(states, asked.reshape(len(asked), -1), groups=rows, training=training)
    channels = asked.shape[2]
    mean = lambda values: np.asarray(values).reshape(len(lags), channels).mean(axis=1)  # noqa: E731
    nats, stderr = mean(probe.nats), mean(probe.stderr)  # of channels that move together, the error of the mean is at most the mean error
    found: Results = {
        "retention": {
            "lags": lags,
            "direction": "lower",
            "of": "tokens" if tokens else "values, one channel each",
            "lower": (nats * BITS).tolist(),
            "stderr": (stderr * BITS).tolist(),
            "entropy": (mean(probe.entropy) * BITS).tolist() if tokens else None,
            "error": mean(probe.error).tolist(),
            "asked": [(float(entropy), classes) for entropy in mean(probe.entropy)] if tokens else [],
        },
        "horizon": retention.horizon(lags, nats, stderr),
        "by_component": _by_component(states, asked[..., 0], tokens),
    }
    found["by_gate"] = None if block.gate is None else _by_gate(probe, block.gate, rows, seen.moments[index], lags, channels)
    return found


def _lags(seen: Recording, settings: Measure) -> list[int]:
    longest = min(settings.longest_lag, int(seen.moments[0]))
    return sorted({0, *np.geomspace(1, max(longest, 1), LAGS - 1).round().astype(int).tolist()} if longest else {0})


def _inputs(frames: np.ndarray) -> np.ndarray:
    """(M, F, C): values of the first channels, or tokens with the rare ones taken together, as labels from 0."""
    if frames.ndim == 3:
        return frames[..., :CHANNELS]
    counts = np.bincount(frames.ravel())
    frequent = np.argsort(-counts, kind="stable")[: min(LARGEST_VOCABULARY - 1, np.count_nonzero(counts))]
    label = np.full(len(counts), len(frequent))
    label[frequent] = np.arange(len(frequent))
    return label[frames][..., None]


def _training(settings: Measure) -> Training:
    return dataclasses.replace(retention.PROBE, steps=settings.decoder_steps, width=settings.decoder_width, seed=settings.seed)


def _by_component(states: np.ndarray, asked: np.ndarray, tokens: bool) -> Results:
    """An estimate of I(h_{t,i}; x_{t-k}), (n, K): counts over bins of equal shares, less their bias to first order (Miller and Madow)."""
    levels = [_binned(component) for component in states.T]
    labels = [column.astype(int) if tokens else _binned(column) for column in asked.T]
    bits = [[_counted_information(level, label) * BITS for label in labels] for level in levels]
    return {"direction": "estimate", "bits": bits}


def _binned(values: np.ndarray) -> np.ndarray:
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")


def _counted_information(a: np.ndarray, b: np.ndarray) -> float:
    joint = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)).reshape(a.max() + 1, -1)
    cells = np.count_nonzero(joint) - np.count_nonzero(joint.sum(1)) - np.count_nonzero(joint.sum(0)) + 1
    p = joint / joint.sum()
    product = p.sum(1, keepdims=True) * p.sum(0, keepdims=True)
    return float(np.sum(p[p > 0] * np.log(p[p > 0] / product[p > 0])) - cells / (2 * len(a)))


def _by_gate(probe: retention.Probe, gate: np.ndarray, rows: np.ndarray, times: np.ndarray, lags: list[int], channels: int) -> Results | None:
    """What is known of past inputs, by how open the gates were when they were read: means over tenths of the steps."""
    past = [k for k, lag in enumerate(lags) if lag > 0]
    if not past:
        return None
    held_out = probe.held_out
    opened = np.stack([gate[rows[held_out], times[held_out] - lags[k]] for k in past], axis=1).ravel()
    if np.ptp(opened) < 1e-6:
        return None
    known = probe.pointwise.reshape(len(held_out), len(lags), channels).mean(axis=2)[:, past].ravel() * BITS
    tenth = np.argsort(np.argsort(opened, kind="stable"), kind="stable") * 10 // len(opened)
    parts = [known[tenth == part] for part in range(10)]
    return {
        "direction": "lower",
        "gate": [float(opened[tenth == part].mean()) for part in range(10)],
        "bits": [float(part.mean()) for part in parts],
        "stderr": [float(part.std() / len(part) ** 0.5) for part in parts],
    }


def _fano(entropy: float, ceiling: Estimate, classes: int) -> float:
    return float(limits.fano_error(entropy, min(_limit(ceiling), entropy), classes))


def _verdict(ceiling: Estimate, kept: Results) -> Results:
    """Data processing from the state to what a decoder makes of it, at the lag of which it says most."""
    most = int(np.argmax(kept["lower"]))
    downstream = Estimate(kept["lower"][most] / BITS, kept["stderr"][most] / BITS, "lower", f"decoder of lag {kept['lags'][most]}")
    verdict = limits.data_processing(ceiling, downstream)
    return {"status": verdict.status, "slack": verdict.slack * BITS, "reason": verdict.reason}


# Answers and the future.


def _answers(run: Run, seen: Recording, answers: Answers, blocks: dict[str, Results]) -> Results:
    """What the states before the first answer hold of all answers: by the model's own, and by a decoder of all blocks' states together."""
    entropy = float(run.dataset.info["answer_nats"])
    states = np.concatenate([block.states[:, -1] for block in seen.blocks.values()], axis=1)
    classes = int(answers.tokens.max()) + 1
    probe = retention.tokens(states, answers.tokens, classes=classes, training=_training(run.experiment.measure))
    length = answers.tokens.shape[1]
    found = {"entropy": entropy * BITS, "answers": length, "moment": int(seen.moments[-1]), "direction": "lower"}
    found["model"] = _decoded(answers, entropy)
    found["decoder"] = {"bits": float(probe.nats.sum()) * BITS, "stderr": _sum_error(probe.pointwise) * BITS, "accuracy": float(1 - probe.error.mean())}
    for one in found["model"], found["decoder"]:
        one["share"] = one["bits"] / found["entropy"]
    return found | {"fano": _answers_fano(blocks, entropy, classes, length)}


def _decoded(answers: Answers, entropy: float) -> Results:
    """H + E log q of the model itself, which reads no more than its state and marks that are the same in every sequence."""
    return {
        "bits": (entropy + float(answers.log_p.astype(np.float64).sum(axis=1).mean())) * BITS,
        "stderr": _sum_error(answers.log_p) * BITS,
        "accuracy": float(answers.right.mean()),
    }


def _sum_error(pointwise: np.ndarray) -> float:
    return float(pointwise.astype(np.float64).sum(axis=1).std() / len(pointwise) ** 0.5)


def _answers_fano(blocks: dict[str, Results], entropy: float, classes: int, length: int) -> float | None:
    """The least share of wrong answers, where all blocks' states have noise: they know no more than the sum of what each knows of its inputs."""
    bounds = [_ceiling(block["information"][-1:]) for block in blocks.values()]
    total = sum(math.inf if bound is None else _limit(bound) for bound in bounds)
    if math.isinf(total):
        return None
    return float(limits.fano_error(entropy, min(total, entropy), classes, length=length))


def _future(frames: np.ndarray, targets: np.ndarray) -> dict[str, np.ndarray]:
    """Covariances of the last inputs and the values that follow, standardised."""
    past, future = frames[:, -PAST:].reshape(len(frames), -1), targets[:, :FUTURE].reshape(len(frames), -1)
    joint = np.concatenate([past, future], axis=1)
    cov = np.cov(joint / joint.std(axis=0, keepdims=True), rowvar=False)
    return {
        "past": cov[: past.shape[1], : past.shape[1]],
        "cross": cov[: past.shape[1], past.shape[1] :],
        "future": cov[past.shape[1] :, past.shape[1] :],
        "values": future,
    }


def _efficiency(block: Block, known: list[Results], curve: dict[str, np.ndarray], settings: Measure) -> Results:
    """The point (I(h; past), I(h; future)) under the bottleneck curve of a Gaussian process with the covariances of the data."""
    reached = estimators.hybrid(block.states[:, -1], curve["values"], training=Training(seed=settings.seed))
    ceiling = _ceiling(known[-1:])
    past = math.inf if ceiling is None else _limit(ceiling)
    before, across, after = (jnp.asarray(curve[name]) for name in ("past", "cross", "future"))
    found = bottleneck.memory_efficiency(jnp.float32(past), jnp.float32(max(reached.nats, 0)), before, across, after)
    line = bottleneck.gaussian(before, across, after, jnp.geomspace(1.01, 1e3, 60))
    return {
        "past": past * BITS if math.isfinite(past) else None,
        "future": reached.bits,
        "stderr": reached.stderr * BITS,
        "direction": "lower",
        "bound": float(found.bound) * BITS,
        "efficiency": float(found.efficiency),
        "curve": {"past": (np.asarray(line.complexity) * BITS).tolist(), "future": (np.asarray(line.relevance) * BITS).tolist()},
        "steps": {"past": PAST, "future": FUTURE},
        "notes": list(reached.notes),
    }
