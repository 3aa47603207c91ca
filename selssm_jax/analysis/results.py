"""What an analysis gives: values for people and programs, and what figures need besides."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

Results = dict[str, Any]
BITS = 1 / math.log(2)  # of a nat


class ShadedText(NamedTuple):
    """Pieces of a text, each with a value; and where something was asked, the answer to it and what is right, else None
    and any text.
    """

    caption: str
    pieces: list[str]
    values: np.ndarray
    answers: list[str | None] | None = None
    truths: list[str] | None = None


class Continuation(NamedTuple):
    """A prompt and what the model wrote after it, with words on how."""

    words: str
    prompt: str
    written: str


class ShownSignal(NamedTuple):
    """A signal (T, C) over the gates that it opened, {block: (F, n)}.

    `title` has a {} for each of `labels`, which are names that anybody gave, and what stands in for one that cannot be
    drawn. `steps`, (F,), True at the frames that blocks read which read some alone; None where all read all.
    """

    words: str
    title: str
    labels: tuple[tuple[str, str], ...]
    signal: np.ndarray
    gates: Mapping[str, np.ndarray]
    duration: float
    unit: str
    steps: np.ndarray | None = None


class ShownForecast(NamedTuple):
    """What was read (T, C), what followed (H, C) and what was forecast (H, C), of channels with names, and of a model
    that forecasts quantiles these, by level, all in the units of the data.
    """

    words: str
    past: np.ndarray
    truth: np.ndarray
    guess: np.ndarray
    names: list[str]
    quantiles: Mapping[float, np.ndarray]


Shown = ShadedText | Continuation | ShownSignal | ShownForecast


class Analysis(NamedTuple):
    """What the report of a run says.

    Attributes:
      values: all that results.json holds. history: the records of the run. example: what shows the model at work, in
        order.
    """

    values: Results
    history: list[dict[str, Any]]
    example: list[Shown]
