"""All that the report of a compression says: the methods at equal bytes, the chosen one, its loss, and the bounds that
hold.
"""

import time
from functools import partial

import numpy as np

from selssm_jax.analysis import costs
from selssm_jax.analysis.data_processing import find_verdicts
from selssm_jax.analysis.removal_analysis import describe_removal
from selssm_jax.analysis.results import Results
from selssm_jax.analysis.setting import describe_setting
from selssm_jax.analysis.stability import certify_contraction
from selssm_jax.compression import distortion_bound
from selssm_jax.compression.checkpoint import encode_params, nbytes
from selssm_jax.compression.compress import Calibration, Candidate, Compression, points
from selssm_jax.compression.removal_search import Removal
from selssm_jax.compression.search import knee
from selssm_jax.compression.streaming import PackedModel
from selssm_jax.compression.subject import relative_loss
from selssm_jax.runs import Compressed
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training.evaluation import Evaluator

FORMAT = 1  # of compression.json
COMPONENTS = 8  # whose D(R) is computed


def analyse_compression(compressed: Compressed) -> Results:
    """Scores a run before and after its compression on the split once, and returns everything that compression.json
    holds.

    "packed" says whether what is carried was packed; "removal", None where nothing was to be removed, what parts of
    blocks cost.
    """
    run, tried = compressed.before, compressed.tried
    before, after = (
        Evaluator(made.experiment, made.model)(made.params, made.dataset, run.split) for made in (run, compressed.after)
    )
    if isinstance(tried, Removal):
        return _describe_both(compressed, tried) | {
            "reference": {"test": before},
            "compressed": {
                "test": after,
                "lost": relative_loss(after, before, kind_of(run.dataset.task).primary),
                "tuned": tried.is_tuned,
            },
        }
    return _describe_both(compressed, tried.removal) | _describe_packing(compressed, tried, before, after)


def _describe_both(compressed: Compressed, removal: Removal | None) -> Results:
    """What is said of every compression."""
    run, smaller = compressed.before, compressed.after
    stored = {"before": run.params, "after": encode_params(smaller.experiment, smaller.params)}
    return {
        "format": FORMAT,
        "name": run.experiment.name,
        "split": run.split,
        "metric": kind_of(run.dataset.task).primary,
        "packed": run.experiment.compress.packed,
        "removal": None if removal is None else describe_removal(run, removal),
        "carried_bytes": {
            "before": costs.state_bytes(run.model, run.params),
            "after": costs.state_bytes(smaller.model, smaller.params),
        },
        "parameter_bytes": {name: costs.tree_bytes(params) for name, params in stored.items()},
        "disk_bytes": nbytes(smaller.workdir / "best"),
        **describe_setting(smaller.experiment),
        "resumed": compressed.is_resumed,
        "command": run.command("--compress"),
        "seconds": time.perf_counter() - compressed.start,
    }


def _describe_packing(
    compressed: Compressed, tried: Compression, before: dict[str, float], after: dict[str, float]
) -> Results:
    """What is said of methods at equal bytes and of the chosen one; `before` and `after` are metrics on the split."""
    run, smaller = compressed.before, compressed.after
    split, options, metric = run.split, run.experiment.compress, kind_of(run.dataset.task).primary
    describe = partial(_describe, reference=tried.reference, metric=metric, sequences=options.sequences)
    return {
        "reference": describe(tried.reference) | {"test": before, "lost": 0.0},
        "compressed": describe(tried.chosen) | {"test": after, "lost": relative_loss(after, before, metric)},
        "methods": [describe(candidate) for candidate in tried.methods],
        "frontier": [
            describe(candidate) | _measure_error(candidate, tried.calibration) for candidate in tried.frontier
        ],
        "knee": knee(points(tried.frontier, tried.reference, metric, options.sequences)).name,
        "within": options.within,
        "components": COMPONENTS,
        "scope": tried.calibration.scope,
        "sequences": options.sequences,
        "rounding": options.rounding,
        "data_processing": find_verdicts(smaller, split),
        "certificates": {"before": certify_contraction(run), "after": certify_contraction(smaller)},
    }


def _describe(candidate: Candidate, *, reference: Candidate, metric: str, sequences: int) -> Results:
    bits = candidate.model.component_bits if isinstance(candidate.model, PackedModel) else ()
    return {
        "method": candidate.method,
        "bytes": candidate.nbytes,
        "table_bytes": candidate.table,
        "pays_from": candidate.pays_from(reference),
        "factor": reference.nbytes / candidate.share(sequences),
        "validation": candidate.validation,
        "validation_lost": relative_loss(candidate.validation, reference.validation, metric),
        "bits": float(np.mean(bits)) if bits else 32.0,
        "truncated": {name: proved._asdict() for name, proved in candidate.truncated.items()},
    }


def _measure_error(candidate: Candidate, calibration: Calibration) -> Results:
    """The squared error of some components, and what it cannot be less than."""
    size = calibration.layout.size
    components = np.random.default_rng(0).choice(size, min(COMPONENTS, size), replace=False)
    quantizer = candidate.model.quantizer(candidate.params)  # type: ignore[attr-defined]
    measured, least = distortion_bound.squared_error(quantizer, calibration.samples, components.tolist())
    return {
        "error": measured,
        "error_bound": least,
        "error_bits": float(np.mean([quantizer.bits[index] for index in components])),
    }
