"""What one state knows of each of several answers, the channels of a forecast that all read it, and what each of its
components tells of them: which are shared by answers, and which are private to one (theory, sections 7 and 8).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from selssm_jax.analysis.memory_by_component import CHANCE, MARGIN, choose_witnesses, deal_groups
from selssm_jax.analysis.memory_by_lag import group_moments
from selssm_jax.analysis.memory_of_future import FUTURE, bound_future
from selssm_jax.analysis.results import BITS, Results
from selssm_jax.analysis.state_samples import Block, Recording
from selssm_jax.information import canonical, checks
from selssm_jax.information.estimators import Training
from selssm_jax.information.retention import LEAST

MOST = 8  # answers that are told apart


class Answers(NamedTuple):
    """Answers by name, (M, F) each: the next `steps` values of a channel, those that change. Rows of one group may be
    alike. "known": nats that the past tells of each of them, and of all together, where the law of the data says it.
    """

    values: dict[str, np.ndarray]
    groups: np.ndarray
    known: tuple[list[float], float] | None
    steps: int


def find_answers(recording: Recording, about: Mapping[str, Any]) -> Answers | None:
    """Returns the answers of a forecast of 2 to `MOST` channels that read one state; None of anything else.

    Args:
      about: the metadata of the data set.
    """
    if recording.targets is None or not 2 <= recording.targets.shape[2] <= MOST:
        return None
    horizon, channels = recording.targets.shape[1:]
    names = about.get("channels") or [f"channel {index + 1}" for index in range(channels)]
    columns = np.moveaxis(recording.targets[:, :FUTURE], 2, 0)
    changing = {str(name): part[:, part.std(axis=0) > 0] for name, part in zip(names, columns, strict=True)}
    values = {name: part for name, part in changing.items() if part.shape[1]}
    if len(values) < 2:
        return None
    rows = np.arange(len(recording.targets))
    groups = group_moments(recording, rows, np.full(len(rows), recording.moments[-1]))
    law = about.get("answers_known")
    known = (law["nats"], law["nats_of_all"]) if law and horizon <= FUTURE else None
    return Answers(values, groups, known, min(horizon, FUTURE))


def by_answer(block: Block, asked: Answers, together: Results, training: Training) -> Results:
    """Lower bounds on I(h_T; answer) of each answer by itself, and what every component tells of it.

    "overlap" is their sum less what the state knows of all together. Of two answers A and B it is I(A; B) - I(A; B |
    h): redundancy less synergy (Gat and Tishby 1999, who have the other sign). Above 0 the state tells the same of
    several answers; below 0, or at 0, it may do so still, for answers that have a cause in common tell more of the
    state together than apart. It is no measure of what is shared alone, and as a difference of lower bounds an
    estimate. Its error is the sum of theirs, which holds however they move together.

    Args:
      together: "future" and "stderr", in bits, of all answers together, by the same estimator
        (`memory_of_future.efficiency`).
      training: of the critics.
    """
    single = [bound_future(block.states[:, -1], part, training) for part in asked.values.values()]
    bits, stderr = [max(one.bits, 0.0) for one in single], [one.stderr * BITS for one in single]
    known = None
    if asked.known is not None:
        apart, whole = [nats * BITS for nats in asked.known[0]], asked.known[1] * BITS
        known = {"bits": apart, "together": whole, "overlap": sum(apart) - whole}
    return {
        "answers": list(asked.values),
        "steps": asked.steps,
        "direction": "lower",
        "bits": bits,
        "stderr": stderr,
        "together": {"bits": together["future"], "stderr": together["stderr"], "direction": "lower"},
        "overlap": {
            "bits": sum(bits) - together["future"],
            "stderr": sum(stderr) + together["stderr"],
            "direction": "estimate",
        },
        "known": known,
        "notes": sorted({note for one in single for note in one.notes}),
        "components": by_component(block.states[:, -1], asked, seed=training.seed),
    }


def by_component(states: np.ndarray, asked: Answers, *, seed: int = 0) -> Results:
    """I(h_{T,i}; answer) of every component by itself, (n, C), in bits: an estimate, of the normal scores of both, and
    unbiased where the law of the scores is normal.

    A component tells of an answer where it knows `LEAST` nats or more of it beyond two standard errors, and more than
    `MARGIN` times what any component seems to know of answers that belong to other sequences. It is shared where it
    tells of several answers, and private where it tells of one. A component that mixes what is private to two answers
    is shared in this sense too: it serves both, with what differs.

    Args:
      states: (M, n). asked: their answers. seed: of the pairings by chance.
    """
    rng = np.random.default_rng(seed)
    scores = checks.scores(states, rng)
    values = [checks.scores(part, rng) for part in asked.values.values()]
    nats, stderr = _table(scores.T, values)
    chance, witnesses = [], choose_witnesses(scores.T)
    for _ in range(CHANCE):
        together, dealt = deal_groups(asked.groups, rng)
        chance.append(_table(witnesses[:, together], [part[dealt] for part in values])[0].max())
    limit = max(MARGIN * max(chance), LEAST)
    tells = nats - 2 * stderr > limit
    names = np.array(list(asked.values))
    return {
        "direction": "estimate",
        "bits": (nats * BITS).tolist(),
        "stderr": (stderr * BITS).tolist(),
        "least": limit * BITS,
        "tells": [names[row].tolist() for row in tells],
        "shared": int((tells.sum(axis=1) > 1).sum()),
        "private": (tells & (tells.sum(axis=1) == 1)[:, None]).sum(axis=0).tolist(),
        "silent": int((~tells.any(axis=1)).sum()),
    }


def _table(components: np.ndarray, values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Nats and their standard errors, (n, C) each."""
    cells = [[canonical.gaussian(component, part) for part in values] for component in components]
    nats, stderr = ([[getattr(cell, name) for cell in row] for row in cells] for name in ("nats", "stderr"))
    return np.array(nats), np.array(stderr)
