"""Where a model errs: by step of the horizon and by channel of a forecast, by class of a signal."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Array, PyTree

from selssm_jax.reporting.run import Run
from selssm_jax.tasks.registry import kind_of

Results = dict[str, Any]
Batch = dict[str, Array | np.ndarray]


def errors(run: Run, split: str) -> Results | None:
    """Returns the errors of a whole split in the parts that the task has, `TaskKind.error_parts`; None where it has none."""
    kind, data = kind_of(run.model.config.task), run.experiment.data
    if not kind.in_parts:
        return None

    @jax.jit
    def read(params: PyTree, batch: Batch, number: Array) -> dict[str, Array]:
        noise = {"noise": jax.random.fold_in(jax.random.key(0), number)}
        state = run.model.apply({"params": params}, len(batch["inputs"]), method="initial_state")
        outputs, _ = run.model.apply({"params": params}, batch["inputs"], state, valid=batch["valid"], rngs=noise)
        return kind.error_sums(run.model.config, outputs, batch)

    total: dict[str, np.ndarray] = {}
    for number, batch in enumerate(run.dataset.evaluate(split, data.eval_batch_size or data.batch_size)):
        for name, value in jax.device_get(read(run.params, batch, number)).items():
            total[name] = np.asarray(total.get(name, 0.0) + np.asarray(value, np.float64))
    return kind.error_parts(total, run.dataset.metadata())
