"""What is certified of each block of a run, and of a packed state how near rounding lets two states come."""

import json
import math
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from selssm_jax.analysis.results import Results
from selssm_jax.compression.distortion_bound import rounding_errors, rounding_radius
from selssm_jax.compression.quantization import Quantizer
from selssm_jax.compression.streaming import PackedModel
from selssm_jax.layers.bounds import Bounds
from selssm_jax.model import mixer_places
from selssm_jax.ops.gating import effective_transition
from selssm_jax.runs import Run
from selssm_jax.stability import Certificate, certify_bounds
from selssm_jax.stability.certificate import unknown
from selssm_jax.state_layout import StateLayout


def certify_run(run: Run, gates: Mapping[str, np.ndarray]) -> Results:
    """Returns each block's certificate as results.json holds it: its verdicts, its horizon and its words, and what
    `gates` (T, n) of one sequence did.
    """
    results = {}
    for name, (bounds, certificate) in _certify_blocks(run).items():
        observed = observe_rate(bounds, gates[name]) if name in gates else None
        results[name] = json.loads(certificate.to_json()) | {
            "words": str(certificate),
            "step": _describe_step(certificate),
            "observed_rate": observed,
        }
    return results


def certify_block(bounds: Bounds) -> Certificate:
    """Returns a block's certificate; of constants that no recurrence can have, weights that are not numbers, nothing is
    known.
    """
    try:
        return certify_bounds(bounds)
    except ValueError as error:
        return unknown(f"The bounds that the layer states are those of no recurrence: {error}")


def observe_rate(bounds: Bounds, gates: np.ndarray) -> float | None:
    """Returns |A_T ... A_1|_2^(1/T) of gates that were seen: of a diagonal transition that of its slowest component.

    None where gates are means over components.
    """
    if bounds.A is None or bounds.averaged:
        return None
    steps = effective_transition(np.asarray(gates, np.float64), np.asarray(bounds.A), bounds.update)
    with np.errstate(divide="ignore"):  # a product that vanishes has the rate 0
        if steps.ndim == 2:
            return float(np.exp(np.log(np.abs(steps)).mean(axis=0).max()))
        logarithm, product = 0.0, np.eye(len(bounds.A))
        for step in steps:
            product = step @ product
            size = max(np.abs(product).max(), np.finfo(np.float64).tiny)
            logarithm, product = logarithm + math.log(size), product / size
        return float(np.exp((logarithm + np.log(np.linalg.norm(product, ord=2))) / len(gates)))


def certify_contraction(run: Run) -> Results:
    """Returns, by block, the certified rate of a step and, of a packed state, how near two states come to each other
    for certain.
    """
    places = mixer_places(run.model.config)
    return {
        name: {
            "status": certificate.contraction.status,
            "rate": _describe_step(certificate)["rate"],
            "radius": _find_radius(run, places[name], certificate),
        }
        for name, (_, certificate) in _certify_blocks(run).items()
    }


def _certify_blocks(run: Run) -> dict[str, tuple[Bounds, Certificate]]:
    """What each block states of itself for all inputs, and its certificate."""
    stated = run.model.apply({"params": run.params}, method="bounds")
    return {name: (bounds, certify_block(bounds)) for name, bounds in stated.items()}


def _describe_step(certificate: Certificate) -> Results:
    """Rate and constant of a step where they are certified."""
    holds = certificate.contraction.status == "holds"
    return {
        "rate": certificate.contraction.rate if holds else None,
        "constant": certificate.contraction.constant if holds else None,
    }


def _find_radius(run: Run, block: int, certificate: Certificate) -> float | None:
    """Of a mixer that carries one array, which is what contracts; where it carries past inputs too, their rounding is
    part of what drives it.
    """
    verdict = certificate.contraction
    if (
        not isinstance(run.model, PackedModel)
        or verdict.status != "holds"
        or verdict.rate is None
        or verdict.rate >= 1
        or verdict.weights is None
    ):
        return None
    layout, quantizer = StateLayout(run.model.model, run.params, run.model.scope), run.model.quantizer(run.params)
    if (place := layout.find_single_array(block)) is None:
        return None
    leaf, at = place
    turns = 2 if jnp.issubdtype(leaf.dtype, jnp.complexfloating) else 1  # real parts, then imaginary ones
    sizes = rounding_errors(quantizer, run.model.rounding), _find_largest(quantizer)
    errors, reach = (np.sqrt((size[at].reshape(turns, -1) ** 2).sum(axis=0)) for size in sizes)
    box = certificate.invariant_radius
    if len(errors) != len(verdict.weights) or (
        certificate.uniform.status != "holds" and (box is None or (reach > box).any())
    ):
        return None  # gates that read the state are certified on their box, which levels could lie outside of
    return rounding_radius(errors, verdict.rate, verdict.weights)


def _find_largest(quantizer: Quantizer) -> np.ndarray:
    return np.abs(np.asarray(quantizer.levels, np.float64)).max(axis=1)
