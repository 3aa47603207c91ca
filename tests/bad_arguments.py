"""Calls every public measure with arguments that no law allows, and prints the calls that answer all the same.

    python tests/bad_arguments.py [BEGINNING OF A NAME ...]

tests/test_bad_arguments.py runs it in a process of its own, where no hook checks shapes and types before the function
does.
"""

import json
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from selssm_jax.analysis import gate_selectivity
from selssm_jax.compression import distortion_bound, event_trace, hankel, quantization, search
from selssm_jax.information import (
    bottleneck,
    bracket,
    conditional,
    discrete,
    estimators,
    gaussian,
    inference,
    limits,
    neighbours,
    normalisation,
    rate_distortion,
    retention,
    samplers,
    transfer,
    variational,
)
from selssm_jax.stability import certify_recurrence
from selssm_jax.stability.lipschitz import gate_lipschitz, operator_norm, spectral_norm_bound
from selssm_jax.stability.switching import joint_spectral_radius

RNG = np.random.default_rng(0)
T, N, M = 6, 2, 1
LINEAR = {"A_t": np.full((T, N), 0.9), "B_t": np.ones((T, N, M)), "input_cov": np.eye(M), "noise_cov": 0.1 * np.eye(N)}
OUTPUT = {**LINEAR, "C": np.ones((1, N)), "observation_cov": np.eye(1)}
COV = {"cov_x": np.eye(2), "cov_xy": 0.5 * np.eye(2), "cov_y": np.eye(2)}
X, Y, LABELS = RNG.normal(size=(150, 2)), RNG.normal(size=(150, 1)), RNG.integers(0, 3, 150)
Z, GROUPS = X[:, :1] + Y, {"source": [0], "target": [1]}
SOURCE, DISTORTION = np.array([0.5, 0.5]), 1 - np.eye(2)
TABLE = np.array([[5, 2], [1, 7]])
KEY = jax.random.key(0)

CALLS: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "gaussian.state_information": (gaussian.state_information, LINEAR),
    "gaussian.covariances": (gaussian.covariances, LINEAR),
    "gaussian.retention": (gaussian.retention, {**LINEAR, "t": 5, "lags": 3}),
    "gaussian.chain_terms": (gaussian.chain_terms, {**LINEAR, "t": 5}),
    "gaussian.past_information": (gaussian.past_information, {**LINEAR, "t": 5, "lags": 3}),
    "gaussian.forgetting_bound": (gaussian.forgetting_bound, {**LINEAR, "t": 5, "lags": 3}),
    "gaussian.output_information": (gaussian.output_information, OUTPUT),
    "gaussian.filtering_information": (gaussian.filtering_information, OUTPUT),
    "gaussian.capacity": (
        gaussian.capacity,
        {"B": np.ones((N, M)), "input_cov": np.eye(M), "noise_cov": 0.1 * np.eye(N)},
    ),
    "gaussian.coloured_information": (
        gaussian.coloured_information,
        {
            "A_t": LINEAR["A_t"],
            "B_t": LINEAR["B_t"],
            "noise_cov": 0.1 * np.eye(N),
            "F": 0.5 * np.eye(1),
            "H": np.ones((M, 1)),
            "innovation_cov": np.eye(1),
        },
    ),
    "bracket.state_information": (bracket.state_information, {"means": X, "covs": np.ones((150, 2)), "states": X}),
    "bracket.upper_gaussian": (bracket.upper_gaussian, {"covs": np.full((150, 2), 0.1), "states": X}),
    "bracket.conditional_moments": (
        bracket.conditional_moments,
        {"A_t": LINEAR["A_t"], "drives": np.ones((T, N)), "noise_covs": np.ones((T, N))},
    ),
    "bottleneck.gaussian": (bottleneck.gaussian, {**COV, "betas": np.array([2.0, 8.0])}),
    "bottleneck.gaussian_encoder": (bottleneck.gaussian_encoder, {**COV, "beta": 8.0}),
    "bottleneck.gaussian_relevance": (bottleneck.gaussian_relevance, {**COV, "complexity": 1.0}),
    "bottleneck.discrete": (bottleneck.discrete, {"p_xy": TABLE / TABLE.sum(), "betas": np.array([2.0, 8.0])}),
    "bottleneck.variational": (
        bottleneck.variational,
        {
            "mean": X,
            "log_variance": np.zeros((150, 2)),
            "log_likelihood": -np.ones(150),
            "rate_weight": 0.1,
            "target_entropy": 1.0,
        },
    ),
    "bottleneck.memory_efficiency": (
        bottleneck.memory_efficiency,
        {
            "past_information": 1.0,
            "future_information": 0.05,
            "cov_past": np.eye(2),
            "cov_cross": 0.5 * np.eye(2),
            "cov_future": np.eye(2),
        },
    ),
    "bottleneck.time_series_covariances": (
        bottleneck.time_series_covariances,
        {"autocovariance": 0.5 ** np.arange(6.0)[:, None, None], "past": 2, "future": 2},
    ),
    "bottleneck.autoregressive_autocovariance": (
        bottleneck.autoregressive_autocovariance,
        {"coefficients": np.full((1, 1, 1), 0.5), "innovation_cov": np.eye(1), "lags": 4},
    ),
    "bottleneck.sample_autocovariance": (bottleneck.sample_autocovariance, {"samples": X, "lags": 4}),
    "bottleneck.state_encoder": (
        bottleneck.state_encoder,
        {"A_t": LINEAR["A_t"], "B_t": LINEAR["B_t"], "noise_cov": 0.1 * np.eye(N)},
    ),
    "discrete.entropy_of": (discrete.entropy_of, {"p": SOURCE}),
    "discrete.information_of": (discrete.information_of, {"p_xy": TABLE / TABLE.sum()}),
    "discrete.count": (discrete.count, {"x": LABELS, "y": LABELS}),
    "discrete.conditional_information_of": (
        discrete.conditional_information_of,
        {"p_xyz": np.stack([TABLE, TABLE.T], axis=2) / (2 * TABLE.sum())},
    ),
    "discrete.conditional_information": (
        discrete.conditional_information,
        {"counts": np.stack([TABLE, TABLE], axis=2)},
    ),
    "conditional.of_covariance": (
        lambda cov: conditional.of_covariance(cov, [0], [1], [2]),
        {"cov": np.eye(3) + 0.5},
    ),
    "conditional.gaussian": (conditional.gaussian, {"x": X, "y": Y, "z": Z}),
    "conditional.ksg": (conditional.ksg, {"x": X, "y": Y, "z": Z, "k": 5}),
    "conditional.mixed": (conditional.mixed, {"x": X, "y": Y, "z": Z, "k": 5}),
    "conditional.discrete": (conditional.discrete, {"x": LABELS, "y": LABELS[::-1], "z": LABELS**2}),
    "transfer.of_autoregression": (
        lambda **given: transfer.of_autoregression(**given, **GROUPS),
        {"coefficients": np.full((1, 2, 2), 0.3), "noise_cov": np.eye(2), "lags": 2},
    ),
    "transfer.of_state_space": (
        lambda **given: transfer.of_state_space(**given, **GROUPS),
        {"A": np.full((2, 2), 0.3), "C": np.eye(2), "process_cov": np.eye(2), "observation_cov": np.eye(2), "lags": 2},
    ),
    "transfer.embed_past": (transfer.embed_past, {"source": X, "target": Y, "given": Z, "lags": 1}),
    "transfer.entropy": (transfer.entropy, {"source": X, "target": Y, "given": Z, "lags": 1}),
    "inference.permutation_test": (
        lambda **given: inference.permutation_test(estimators.gaussian, **given),
        {"x": X, "y": Y, "permutations": 3},
    ),
    "inference.shift_test": (
        lambda **given: inference.shift_test(estimators.gaussian, **given),
        {"x": X, "y": Y, "shifts": 3},
    ),
    "inference.local_permutation_test": (
        lambda **given: inference.local_permutation_test(conditional.gaussian, **given),
        {"x": X, "y": Y, "z": Z, "permutations": 3, "neighbours": 5},
    ),
    "inference.jackknife_interval": (
        lambda x, y, **given: inference.jackknife_interval(estimators.gaussian, x, y, **given),
        {"x": X, "y": Y, "blocks": 5, "level": 0.9},
    ),
    "normalisation.of_counts": (normalisation.of_counts, {"counts": TABLE}),
    "normalisation.share": (
        lambda entropy: normalisation.share(estimators.gaussian(X, Y), entropy),
        {"entropy": 1.0},
    ),
    "discrete.entropy": (discrete.entropy, {"counts": TABLE[0]}),
    "discrete.mutual_information": (discrete.mutual_information, {"counts": TABLE}),
    "rate_distortion.gaussian": (rate_distortion.gaussian, {"cov": np.eye(2), "distortion": 0.5}),
    "rate_distortion.gaussian of variances": (rate_distortion.gaussian, {"cov": np.ones(2), "distortion": 0.5}),
    "rate_distortion.water_filling": (rate_distortion.water_filling, {"cov": np.eye(2), "distortion": 0.5}),
    "rate_distortion.gaussian_inverse": (rate_distortion.gaussian_inverse, {"cov": np.eye(2), "rate": 0.5}),
    "rate_distortion.converse": (rate_distortion.converse, {"cov": np.eye(2), "information": 0.5}),
    "rate_distortion.sandwich": (rate_distortion.sandwich, {"cov": np.eye(2), "information": 0.5}),
    "rate_distortion.gauss_markov": (rate_distortion.gauss_markov, {"a": 0.9, "q": 1.0, "distortion": 0.5}),
    "rate_distortion.shannon_lower_bound": (
        rate_distortion.shannon_lower_bound,
        {"entropy": 1.0, "dimension": 2, "distortion": 0.5},
    ),
    "rate_distortion.blahut_arimoto": (rate_distortion.blahut_arimoto, {"p": SOURCE, "d": DISTORTION, "slope": 1.0}),
    "rate_distortion.curve": (rate_distortion.curve, {"p": SOURCE, "d": DISTORTION, "slopes": np.array([1.0, 2.0])}),
    "rate_distortion.neural": (rate_distortion.neural, {"samples": X, "slope": 1.0, "steps": 20, "codebook": 8}),
    "limits.fano_error": (
        limits.fano_error,
        {"entropy": 1.0, "information": 0.5, "cardinality": 10, "list_size": 1, "length": 1},
    ),
    "estimators.estimate": (estimators.estimate, {"x": X, "y": Y}),
    "estimators.gaussian": (estimators.gaussian, {"x": X, "y": Y}),
    "estimators.infonce": (estimators.infonce, {"x": X, "y": Y}),
    "estimators.club": (estimators.club, {"x": X, "y": Y}),
    "estimators.sliced": (estimators.sliced, {"x": X, "y": Y, "slices": 2, "k": 5}),
    "neighbours.ksg": (neighbours.ksg, {"x": X, "y": Y, "k": 5}),
    "neighbours.mixed": (neighbours.mixed, {"x": X, "y": Y, "k": 5}),
    "neighbours.entropy": (neighbours.entropy, {"x": X, "k": 5}),
    "retention.tokens": (retention.tokens, {"states": X, "targets": LABELS[:, None], "classes": 3}),
    "retention.values": (retention.values, {"states": X, "targets": Y}),
    "variational.rate": (variational.rate, {"means": X, "variances": np.ones((150, 2))}),
    "variational.capacity": (variational.capacity, {"drives": X, "noise": np.ones(2)}),
    "samplers.multinormal": (samplers.multinormal, {"key": KEY, "n": 10, "covariance": np.eye(2), "dim_x": 1}),
    "samplers.student": (samplers.student, {"key": KEY, "n": 10, "dispersion": np.eye(2), "dim_x": 1, "degrees": 3.0}),
    "samplers.additive_uniform": (samplers.additive_uniform, {"key": KEY, "n": 10, "epsilon": 0.1}),
    "samplers.discrete_channel": (
        samplers.discrete_channel,
        {"key": KEY, "n": 10, "law": SOURCE, "channel": np.eye(2)},
    ),
    "hankel.gramians": (hankel.gramians, {"A": 0.5 * np.eye(2), "B": np.ones((2, 1)), "C": np.ones((1, 2))}),
    "hankel.hankel_singular_values": (
        hankel.hankel_singular_values,
        {"A": 0.5 * np.eye(2), "B": np.ones((2, 1)), "C": np.ones((1, 2))},
    ),
    "quantization.allocate": (quantization.allocate, {"variances": np.ones(3), "budget": 6}),
    "quantization.fit": (quantization.fit, {"samples": X, "bits": (2, 3)}),
    "quantization.Quantizer.quantize": (lambda h: quantization.fit(X, (2, 3)).quantize(h), {"h": X}),
    "quantization.Quantizer.dequantize": (
        lambda codes: quantization.fit(X, (2, 3)).dequantize(codes),
        {"codes": np.zeros((4, 2), int)},
    ),
    "distortion_bound.floors": (distortion_bound.floors, {"values": X[:, 0], "levels": np.array([0.1, 0.2])}),
    "search.linear_gaussian": (lambda **given: search.exhaustive(search.linear_gaussian(**given), N), LINEAR),
    "gate_selectivity.auroc": (gate_selectivity.auroc, {"positive": X[:, 0], "negative": Y[:, 0]}),
    "gate_selectivity.separation": (
        gate_selectivity.separation,
        {"gate": np.full((4, 5), 0.5), "data": np.eye(4, 5, dtype=bool), "noise": ~np.eye(4, 5, dtype=bool)},
    ),
    "event_trace.encode": (event_trace.encode, {"states": X.astype(np.float32), "start": np.zeros(2, np.float32)}),
    "certify_recurrence": (
        certify_recurrence,
        {"A": 0.5 * np.eye(2), "gate_min": 0.1, "gate_max": 1.0, "gate_lipschitz": 0.1, "drive_bound": 1.0},
    ),
    "spectral_norm_bound": (spectral_norm_bound, {"W": np.eye(2)}),
    "operator_norm": (operator_norm, {"W": np.eye(2), "weights": np.ones(2)}),
    "gate_lipschitz": (lambda W: gate_lipschitz("sigmoid", W), {"W": np.eye(2)}),
    "joint_spectral_radius": (joint_spectral_radius, {"matrices": 0.5 * np.eye(2)[None]}),
}
# By beginnings of names, what looks impossible and is lawful: another number of columns where nothing else fixes it,
# bits of any state, complex systems.
LAWFUL = {
    "bottleneck.gaussian": {"betas longer"},
    "bottleneck.discrete": {"betas longer"},
    "bottleneck.sample_autocovariance": {"samples longer"},
    "bottleneck.state_encoder": {"B_t longer"},
    "distortion_bound.floors": {"values longer", "levels longer", "levels empty"},
    "conditional": {"x longer", "y longer", "z longer"},
    "discrete.conditional_information": {"counts longer"},
    "discrete.entropy": {"counts longer"},
    "discrete.entropy_of": {"p deeper"},
    "discrete.mutual_information": {"counts longer"},
    "estimators": {"x longer", "y longer"},
    "inference": {"x longer", "y longer", "z longer"},
    "transfer.embed_past": {"source longer", "target longer", "given longer"},
    "transfer.entropy": {"source longer", "target longer", "given longer"},
    "normalisation.of_counts": {"counts longer"},
    "hankel": {"A complex", "B complex", "C complex", "B longer", "B empty", "C empty"},
    "neighbours": {"x longer", "y longer"},
    "operator_norm": {"W complex"},
    "quantization.Quantizer": {"h empty", "h deeper", "codes empty", "codes deeper"},
    "quantization.allocate": {"variances longer"},
    "rate_distortion.blahut_arimoto": {"d longer"},
    "rate_distortion.curve": {"d longer", "slopes longer"},
    "rate_distortion.gaussian of variances": {"cov longer"},
    "rate_distortion.neural": {"samples longer"},
    "retention": {"states longer", "targets longer"},
    "gate_selectivity.auroc": {"positive longer", "negative longer"},
    "spectral_norm_bound": {"W complex", "W longer", "W empty"},
    "event_trace.encode": {"states nan", "states inf", "start nan", "start inf", "states complex", "start complex"},
}
BAD_NUMBERS = {"nan": float("nan"), "complex": 1 + 1j, "text": "many"}


def spoil(value: Any) -> Iterator[tuple[str, Any]]:
    """What no law allows in place of an argument, with its name."""
    if isinstance(value, np.ndarray) and value.dtype != bool:
        first = (0,) * value.ndim
        for name, number in {"nan": np.nan, "inf": np.inf, "complex": value[first] + 1j}.items():
            bad = value.astype(np.result_type(value.dtype, type(number), np.float32))
            bad[first] = number
            yield name, bad
        yield "longer", np.concatenate([value, value[..., -1:]], axis=-1)
        yield "empty", value[:0]
        yield "deeper", value[None, None]
        yield "text", np.full(value.shape, "a")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from BAD_NUMBERS.items()
        if isinstance(value, int):
            yield "fraction", value + 0.5
            yield "negative", -3


def answers(function: Callable[..., Any], given: dict[str, Any], kind: str) -> str:
    """What is wrong with how a call took a bad argument; empty where it refused it by an error of the right type."""
    try:
        result = function(**given)
    except (ValueError, TypeError) as error:
        return "" if isinstance(error, ValueError) or kind in ("text", "complex", "fraction") else f"TypeError {error}"
    except Exception as error:
        return f"{type(error).__name__} {error}"
    leaves = [
        np.asarray(leaf, float) for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array | np.ndarray | float)
    ]
    if kind == "inf" and leaves and not any(np.isnan(leaf).any() for leaf in leaves):
        return ""
    return f"answers {str(result)[:70]!r}"


def attack(names: list[str]) -> tuple[int, list[str]]:
    """The number of bad calls of the functions whose names begin so, and those that were answered."""
    calls, silent = 0, []
    for name, (function, given) in CALLS.items():
        if not name.startswith(tuple(names)):
            continue
        for argument, value in given.items():
            for kind, bad in spoil(value):
                if any(
                    f"{argument} {kind}" in kinds for beginning, kinds in LAWFUL.items() if name.startswith(beginning)
                ):
                    continue
                calls += 1
                wrong = answers(function, {**given, argument: bad}, kind)
                silent += [f"{name}({argument}: {kind}) {wrong}"] if wrong else []
    return calls, silent


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    calls, silent = attack(sys.argv[1:] or [""])
    print(json.dumps({"calls": calls, "silent": silent}, indent=1))
    sys.exit(bool(silent))
