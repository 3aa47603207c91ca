"""What a trained selective model keeps of one real example: its gates, what is left at the end, and one number about
it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from selssm_jax.report.tables import number

FILLER = 1 / 3  # a token that makes up more of a sequence than this is what lies between the others
Reading = Mapping[str, Any]


class Contrast(NamedTuple):
    """The mean gate of a block at some tokens and at the rest."""

    block: str
    what: str
    ours: float
    rest: str
    others: float


def filler(tokens: Sequence[str]) -> str | None:
    """Returns the token that fills a sequence, None where there is no such one."""
    token, count = Counter(tokens).most_common(1)[0]
    return token if count > FILLER * len(tokens) else None


def contrast(reading: Reading) -> Contrast | None:
    """Returns how the block that tells them apart most gates symbols and filler, or in a text letters and the space
    between words.

    None for signals, and for tokens that are of one sort.
    """
    tokens = reading.get("tokens")
    if not tokens:
        return None
    blank = filler(tokens)
    marked = np.asarray([token != blank if blank is not None else token.isspace() for token in tokens])[
        _frames(reading)
    ]
    if marked.all() or not marked.any():
        return None
    what, rest = (
        ("symbols", "the filler between them") if blank is not None else ("spaces and line ends", "other characters")
    )
    sides = {
        name: (float(np.mean(gate[marked])), float(np.mean(gate[~marked]))) for name, gate in _gates(reading).items()
    }
    block = max(sides, key=lambda name: abs(np.log((sides[name][0] + 1e-12) / (sides[name][1] + 1e-12))))
    return Contrast(block, what, sides[block][0], rest, sides[block][1])


def loudness(reading: Reading) -> tuple[str, float] | None:
    """Returns (block, correlation) of the gate with the distance of the signal from its mean, of the block where it is
    strongest.

    None for tokens, and where the gate or the signal does not vary.
    """
    if reading.get("signal") is None:
        return None
    signal = np.asarray(reading["signal"], float)
    distance = np.sqrt(((signal - signal.mean(0, keepdims=True)) ** 2).sum(-1))[_frames(reading)]
    found = {
        name: float(np.corrcoef(gate, distance)[0, 1])
        for name, gate in _gates(reading).items()
        if np.ptp(gate) > 0 and np.ptp(distance) > 0
    }
    return max(found.items(), key=lambda item: abs(item[1])) if found else None


def half_life(reading: Reading) -> tuple[str, int]:
    """Returns (block, steps before the end up to which at least half of what was written is kept), of the block that
    keeps longest.
    """
    position = np.asarray(reading["position"])
    spans = {}
    for name, block in reading["blocks"].items():
        lost = np.flatnonzero(np.asarray(block["kept"]) < 0.5)
        first = min(int(lost[-1]) + 1, len(position) - 1) if lost.size else 0
        spans[name] = int(position[-1] - position[first])
    return max(spans.items(), key=lambda item: item[1])


def caption(reading: Reading) -> str:
    """Returns one sentence with a number that is computed from the reading."""
    told, heard = contrast(reading), loudness(reading)
    if told:
        ratio = f", {number(told.ours / told.others)} times as much" if told.others else ""
        return (
            f"In {_words(told.block)} the mean gate is {number(told.ours)} at {told.what} and {number(told.others)} at "
            f"{told.rest}{ratio}."
        )
    if heard:
        return (
            f"In {_words(heard[0])} the gate and the distance of the signal from its mean have a correlation of "
            f"{heard[1]:+.2f}."
        )
    block, steps = half_life(reading)
    return (
        f"{_words(block).capitalize()} keeps at the end at least half of what was written in the last {number(steps)} "
        "steps."
    )


def _frames(reading: Reading) -> np.ndarray:
    """The sample or token of every frame, inside what is shown."""
    shown = reading.get("tokens") or reading["signal"]
    return np.clip(np.asarray(reading["position"], int), 0, len(shown) - 1)


def _gates(reading: Reading) -> dict[str, np.ndarray]:
    return {name: np.asarray(block["gate"], float) for name, block in reading["blocks"].items()}


def _words(block: str) -> str:
    return block.replace("_", " ")
