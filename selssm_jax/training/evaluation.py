"""Exact metrics over a whole split, whatever the batch size."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import numpy as np

from selssm_jax.config import Experiment
from selssm_jax.data import Dataset
from selssm_jax.model import ModelLike
from selssm_jax.tasks.registry import kind_of
from selssm_jax.tasks.scores import Sums, means
from selssm_jax.training import draws, parallel, pieces


class Evaluator:
    """Evaluates one model on any parameters, splits and data sets, compiled once.

    Where the data set's batches continue one another (`is_stream`), the model's state is carried across them: a text is
    read as streams without an end, not as windows that each start from nothing.
    """

    def __init__(self, experiment: Experiment, model: ModelLike) -> None:
        self.batch_size = experiment.data.eval_batch_size or experiment.data.batch_size
        self.model = model
        self._step = jax.jit(partial(_evaluate_batch, model, experiment.training.piece))

    def __call__(
        self, params: Any, dataset: Dataset, split: str, *, unless: Callable[[], bool] = lambda: False
    ) -> dict[str, float]:
        """Returns the metrics of a split, summed in float64 on the host; none at all once `unless()` is true."""
        total: dict[str, np.ndarray] = {}
        for sums in self._sums(parallel.one_copy(params), dataset, split):
            if unless():
                return {}
            for name, pair in sums.items():
                total[name] = total.get(name, np.zeros(2)) + np.asarray(pair, np.float64)
        return means(total)

    def _sums(self, params: Any, dataset: Dataset, split: str) -> Iterator[Sums]:
        """Sums of every batch, each handed over after the next one was dispatched, so that the device never waits."""
        start = self.model.apply({"params": params}, self.batch_size, method="initial_state")
        state, pending = start, None
        for number, batch in enumerate(dataset.evaluate(split, self.batch_size)):
            sums, after = self._step(params, batch, state, number)
            state = after if dataset.is_stream else start
            if pending is not None:
                yield pending
            pending = sums
        if pending is not None:
            yield pending


def _evaluate_batch(
    model: ModelLike, piece: int, params: Any, batch: dict[str, jax.Array], state: Any, number: jax.Array
) -> tuple[Sums, Any]:
    read = pieces.make_reader(model, params, draws.by_row(jax.random.key(0), number))
    after, sums = pieces.fold(read, kind_of(model.config.task).score, model, params, batch, piece, state)
    return sums, after
