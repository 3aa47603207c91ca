"""The section of a report that shows a model at work: shaded text, what it wrote, a signal over its gates, a
forecast.
"""

import pathlib
from collections.abc import Mapping

import numpy as np

from selssm_jax.analysis.results import Continuation, ShadedText, Shown, ShownForecast, ShownSignal
from selssm_jax.report import figures
from selssm_jax.report.document import Block, Paragraph, Picture, Shaded, Token, Verbatim


def show(example: list[Shown], folder: pathlib.Path) -> list[Block]:
    """Returns the parts of a report that show an example, and writes their figures to `folder`."""
    return [block for shown in example for block in _show_one(shown, folder)]


def _show_one(shown: Shown, folder: pathlib.Path) -> list[Block]:
    match shown:
        case ShadedText():
            return [_shade(shown)]
        case Continuation():
            prompt, written = Verbatim(shown.prompt), Verbatim(shown.written)
            return [Paragraph(f"{shown.words} The prompt:"), prompt, Paragraph("Written by the model:"), written]
        case ShownSignal():
            return [_draw_signal(shown, folder)]
        case ShownForecast():
            return [_draw_forecast(shown, folder)]


def _shade(text: ShadedText) -> Shaded:
    ends = _find_ends(text.values)
    shades = np.clip((text.values - ends[0]) / (ends[1] - ends[0]), 0, 1).tolist()
    answers, truths = text.answers or [None] * len(text.pieces), text.truths or [""] * len(text.pieces)
    return Shaded(tuple(map(Token, text.pieces, shades, answers, truths)), ends, text.caption)


def _find_ends(values: np.ndarray) -> tuple[float, float]:
    """The scale of a shade: from the first to the last percentile, so that a few large values leave the others
    visible.
    """
    real = values[np.isfinite(values)]
    low, high = np.quantile(real, (0.01, 0.99)) if len(real) else (0.0, 0.0)
    return float(low), float(max(high, low + 1e-6))


def _draw_signal(shown: ShownSignal, folder: pathlib.Path) -> Picture:
    names = [figures.drawable(*label) for label in shown.labels]
    title = shown.title.format(*names) if names else shown.title
    figure = figures.waveform(
        shown.signal, shown.gates, duration=shown.duration, unit=shown.unit, title=title, steps=shown.steps
    )
    return Picture(figures.save(figure, folder / "signal.png"), shown.words)


def _pair_quantiles(quantiles: Mapping[float, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Quantiles below and above the median, the outermost first, by what they are called."""
    levels = sorted(quantiles)
    pairs = zip(levels[: len(levels) // 2], reversed(levels), strict=False)
    return {f"quantiles {low:g} and {high:g}": (quantiles[low], quantiles[high]) for low, high in pairs}


def _draw_forecast(shown: ShownForecast, folder: pathlib.Path) -> Picture:
    past = shown.past[-2 * len(shown.truth) :]  # more of the past would leave no room for the forecast
    figure = figures.forecast(
        past,
        shown.truth,
        shown.guess,
        names=shown.names,
        units="value (units of the data)",
        fan=_pair_quantiles(shown.quantiles),
    )
    words = shown.words
    if any(figures.drawable(name, "") != name for name in shown.names):
        words += (
            " Channels: " + ", ".join(f"{number}, {name}" for number, name in enumerate(shown.names, start=1)) + "."
        )
    return Picture(figures.save(figure, folder / "forecast.png"), words)
