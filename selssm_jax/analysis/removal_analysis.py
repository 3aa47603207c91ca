"""What removed parts of blocks cost and save: the metric, bytes, parameters and the time of a decoded step, part after
part.
"""

from typing import Any

from selssm_jax.analysis import costs
from selssm_jax.analysis.decoding_time import time_decoding
from selssm_jax.analysis.results import Results
from selssm_jax.compression.removal_search import Remainder, Removal
from selssm_jax.compression.subject import relative_loss
from selssm_jax.runs import Run
from selssm_jax.tasks.registry import kind_of


def describe_removal(run: Run, removal: Removal) -> Results:
    """Returns what the report says of it: which kind of parts went, what said which, and by how many are gone the
    metric on validation, bytes, parameters and milliseconds of a step of one sequence.
    """
    options, metric = run.experiment.compress, kind_of(run.dataset.task).primary
    whole = removal.remainders[0]
    times = time_decoding([(remainder.model, remainder.params) for remainder in removal.remainders])

    def describe(remainder: Remainder, milliseconds: float, share: float) -> dict[str, Any]:
        return {
            "gone": list(remainder.gone),
            "cost": remainder.cost,
            "validation": remainder.validation,
            "validation_lost": relative_loss(remainder.validation, whole.validation, metric),
            "state_bytes": costs.state_bytes(remainder.model, remainder.params),
            "parameters": sum(costs.parameters(remainder.params).values()),
            "decode_milliseconds": milliseconds,
            "decode_share": share,
        }

    pairs = zip(removal.remainders, times, strict=True)
    return {
        "kind": options.remove,
        "by": options.remove_by,
        "parts": len(removal.parts),
        "evaluations": removal.evaluations,
        "remainders": [describe(remainder, *time) for remainder, time in pairs],
    }
