"""What each component of a state says of single inputs by itself: a map from counts, held against what chance alone
would draw (theory, section 8).
"""

from typing import Any

import numpy as np

from selssm_jax.analysis.results import Results
from selssm_jax.information import discrete

BINS = 8  # of a component's values, and of an input's
CHANCE = 2  # pairings by chance
WITNESSES = 16  # components that are paired by chance, evenly over all
# by which the largest number must exceed the largest of chance, beyond its mean: chance was drawn of fewer components
MARGIN = 1.5


def by_lag(
    states: np.ndarray, asked: np.ndarray, groups: np.ndarray, lags: list[int], *, tokens: bool, seed: int = 0
) -> Results:
    """An estimate of I(h_{t,i}; x_{t-k}) in bits, (n, K): from counts over bins of equal shares, less what is counted
    where h and x do not belong together.

    The information of counts lies over the truth, the more so the fewer the sequences and the more the symbols; Miller
    and Madow's correction takes the first order of that away, for independent samples. What is left is measured: the
    inputs of whole groups of samples are given to the states of others. "withheld" says why where no number stands out
    from those of chance; "bits" is None then.

    Args:
      states: (N, n). asked: (N, K) labels or values. groups: (N,) samples that may be alike. seed: of the pairings by
        chance.
    """
    levels = [_assign_bins(component) for component in states.T]
    labels = [column.astype(int) if tokens else _assign_bins(column) for column in asked.T]
    bits = _table(levels, labels)
    chance = _of_chance(levels, labels, groups, seed)
    mean = chance.mean(axis=(0, 1))
    limit = MARGIN * float((chance - mean[None, None]).max())
    found: Results = {
        "direction": "estimate",
        "lags": lags,
        "chance": limit,
        "withheld": None,
        "bits": (bits - mean[None]).tolist(),
    }
    if (bits - mean[None]).max() > limit:
        return found
    groups_read = len(np.unique(groups))
    return found | {
        "bits": None,
        "withheld": f"on {groups_read:,} independent parts of the data no component stands out from what chance counts",
    }


def _table(levels: list[np.ndarray], labels: list[np.ndarray]) -> np.ndarray:
    return np.array(
        [
            [
                discrete.mutual_information(discrete.count(level, label), correction="miller-madow").bits
                for label in labels
            ]
            for level in levels
        ]
    )


def _of_chance(levels: list[np.ndarray], labels: list[np.ndarray], groups: np.ndarray, seed: int) -> np.ndarray:
    """(CHANCE, components, K): the same table where the inputs of whole groups were dealt anew."""
    rng = np.random.default_rng(seed)
    witnesses, tables = choose_witnesses(levels), []
    for _ in range(CHANCE):
        together, dealt = deal_groups(groups, rng)
        tables.append(_table([level[together] for level in witnesses], [label[dealt] for label in labels]))
    return np.stack(tables)


def choose_witnesses(components: Any) -> Any:
    """Returns at most `WITNESSES` of what comes one a component, evenly over all."""
    return components[:: -(-len(components) // WITNESSES)]


def deal_groups(groups: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Returns (rows in the order of their groups, rows of whole groups in random order): paired, they do not belong
    together, and those of one group stay side by side.
    """
    together = np.argsort(groups, kind="stable")
    names, sizes = np.unique(groups, return_counts=True)
    parts = np.split(together, np.cumsum(sizes)[:-1])
    return together, np.concatenate([parts[part] for part in rng.permutation(len(names))])


def _assign_bins(values: np.ndarray) -> np.ndarray:
    edges = np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1])
    return np.searchsorted(edges, values, side="right")
