"""Data processing through a compression, x -> h_t -> h~_t: what decoders read of past inputs from states and from their
packed form (theory, section 7).
"""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from selssm_jax.analysis.memory import count_sequences, draw_samples
from selssm_jax.analysis.memory_by_lag import measure_retention
from selssm_jax.analysis.results import BITS, Results
from selssm_jax.compression.quantization import Quantizer
from selssm_jax.compression.streaming import LEVELS
from selssm_jax.config import FEWEST
from selssm_jax.information import limits
from selssm_jax.information._estimate import Estimate
from selssm_jax.model import mixer_places
from selssm_jax.runs import Run
from selssm_jax.state_layout import StateLayout

# a verdict needs no fine decoder
FEW = {"samples": 400, "positions": 4, "longest_lag": 16, "decoder_steps": 150, "decoder_width": 64}


def find_verdicts(run: Run, split: str) -> Results:
    """Returns, block by block of a compressed run, what decoders read at the lag of which the packed state says most,
    in bits, and a verdict.

    I(x; h~) <= I(h; h~) <= H(h~), at most the bits of h~, and for tokens at most log V: exact, so a lower bound from a
    decoder above it is "violated". Where the bits of h~ are no more than a decoder reads of h, x -> h -> h~ loses
    information for certain: "consistent". Else neither is shown, "inconclusive". Empty where the split has too few
    sequences to hold any out; without blocks whose states are too wide to be decoded whole.
    """
    if count_sequences(run.experiment, run.dataset, split) < FEWEST:
        return {}
    packed: Any = run.model
    quantizer = packed.quantizer(run.params)
    few = dataclasses.replace(run.experiment, measure=dataclasses.replace(run.experiment.measure, **FEW))
    plain = dataclasses.replace(
        run,
        experiment=few,
        model=packed.model,
        params={name: part for name, part in run.params.items() if name != LEVELS},
    )
    recording, results = draw_samples(plain, split), {}
    layout = StateLayout(plain.model, plain.params, packed.scope)
    places = mixer_places(plain.model.config)
    for name, block in recording.blocks.items():
        at = layout.of_block(places[name])
        # a projection of a wide state, or a part of what a mixer carries: not what is packed
        if len(at) != block.states.shape[1]:
            continue
        part = Quantizer(quantizer.levels[at], tuple(quantizer.bits[component] for component in at))
        rounded = np.asarray(part.dequantize(part.quantize(jnp.asarray(block.states))))
        before, after = (
            measure_retention(recording, samples, few.measure)["retention"]
            for samples in (block, block._replace(states=rounded))
        )
        most = int(np.argmax(after["lower"]))
        verdict = _verdict(before, after, most, sum(part.bits))
        results[name] = {
            "lag": after["lags"][most],
            "state": before["lower"][most],
            "packed": after["lower"][most],
            "stderr": after["stderr"][most],
            "capacity": sum(part.bits),
            "status": verdict.status,
        }
    return results


def _verdict(before: Results, after: Results, lag: int, bits: int) -> limits.Verdict:
    """Of x -> h -> h~ at a lag, from what decoders read of both states and from the most that the packed one can
    hold.
    """
    read = lambda retention, name: Estimate(  # noqa: E731
        retention["lower"][lag] / BITS, retention["stderr"][lag] / BITS, "lower", name
    )
    held = [Estimate(bits / BITS, 0.0, "upper", "bits of the packed state")]
    if after["symbols"]:
        held.append(Estimate(math.log(after["symbols"]), 0.0, "upper", "as many symbols"))
    packed = read(after, "decoder of the packed state")
    broken = limits.data_processing(held, packed)
    return (
        broken
        if broken.status == "violated"
        else limits.data_processing(read(before, "decoder of the state"), [packed, *held])
    )
