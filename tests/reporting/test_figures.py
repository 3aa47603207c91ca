"""Figures: each is drawn from plain arrays, written as a PNG that shows something, without a window."""

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from selssm_jax.reporting import figures
from selssm_jax.reporting.figures import Curve

N, T = 6, 20
RNG = np.random.default_rng(0)
GATES = RNG.uniform(size=(T, N))
BLOCK = {
    "components": N,
    "mean": 0.5,
    "by_component": GATES.mean(0),
    "first_sequence": GATES.sum(1),
    "histogram": {"edges": np.linspace(0, 1, 11), "counts": np.arange(10)},
    "over_time": {"position": list(range(T)), "effective_dimension": GATES.sum(1), "hard_count": (GATES > 0.5).sum(1), "participation_ratio": GATES.sum(1)},
}
STEPS = [10, 20, 30]
TEXT = list("a $ and 2 $ are no formula,\n<b> \\frac is no markup.\n" * 3)
FIGURES = {
    "curve": lambda: figures.learning_curve(
        Curve("training", STEPS, [3, 2, 1]), Curve("validation", [20], [2.5]), label="nats", chosen=20, references={"unigram": 2.8, "bigram": 2.2}
    ),
    "curve without a validation": lambda: figures.learning_curve(
        Curve("training", STEPS, [3, 2, 1]), Curve("v", [], []), label="nats", chosen=30, references={}
    ),
    "one block": lambda: figures.gate_activity({"block_0": BLOCK}),
    "three blocks": lambda: figures.gate_activity({f"block_{index}": BLOCK for index in range(3)}),
    "one channel": lambda: figures.forecast(*RNG.normal(size=(3, T, 1)), names=["x"], units="value"),
    "seven channels": lambda: figures.forecast(*RNG.normal(size=(3, T, 7)), names=[f"c{index}" for index in range(7)], units="value"),
    "signal": lambda: figures.waveform(RNG.normal(size=(T, 1)), {"block_0": GATES, "block_1": GATES}, duration=2.5, unit="s", title="class 1, predicted 1"),
    "signal without gates": lambda: figures.waveform(RNG.normal(size=(T, 2)), {}, duration=20, unit="steps", title="class 1"),
    "text": lambda: figures.shaded_text(TEXT, {"surprise (bits)": RNG.exponential(size=len(TEXT)), "gate": np.full(len(TEXT), 0.5)}),
    "states": lambda: figures.carried([Curve("attention", [1, 10, 100], [8, 80, 800]), Curve("gru", [1, 10, 100], [40, 40, 40])]),
    "answers": lambda: figures.answers(list("abcabc" * 10), list("abcabc" * 10), list("abcabd" * 10), np.arange(60) > 40, RNG.uniform(size=60)),
}


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_shows_something(name, tmp_path):
    before = dict(matplotlib.rcParams)
    path = figures.save(FIGURES[name](), tmp_path / "figure.png")
    image = matplotlib.image.imread(path)
    assert image.shape[1] == pytest.approx(figures.WIDTH * figures.DPI, abs=2) and image.shape[0] > 150
    assert 0.005 < (image[..., :3].min(axis=-1) < 0.95).mean() < 0.9, "neither blank nor full"
    assert dict(matplotlib.rcParams) == before, "a caller's own settings stay"


def test_axes_are_labelled():
    axes = FIGURES["curve"]().axes[0]
    assert axes.get_xlabel() == "training step" and axes.get_ylabel() == "nats"
    signal = FIGURES["signal"]().axes
    assert signal[2].get_xlabel() == "time (s)" and signal[0].get_ylabel() == "amplitude"


def test_what_is_carried_is_drawn_over_decades():
    (ax,) = FIGURES["states"]().axes
    assert ax.get_xscale() == ax.get_yscale() == "log" and "bytes" in ax.get_ylabel()
    assert [list(line.get_ydata()) for line in ax.lines] == [[8, 80, 800], [40, 40, 40]]


def test_lines_differ_in_black_and_white():
    forecast = FIGURES["one channel"]().axes[0]
    styles = {line.get_label(): (line.get_linestyle(), line.get_color()) for line in forecast.lines}
    assert styles["forecast"][0] == "--" and styles["what followed"] == ("-", "black")
    dimensions = FIGURES["one block"]().axes[2]
    assert [line.get_linestyle() for line in dimensions.lines[1:4]] == ["-", "--", "-."]


def test_shades_darken_from_white_all_the_way():
    levels = figures.SHADES(np.linspace(0, 1, 50))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert levels[0] > 0.99 and (np.diff(levels) < 0).all()


def test_layout_breaks_at_newlines_and_at_the_margin():
    places, lines = figures.layout(["ab ", "c\n", "\n", "d", "x" * (figures.COLUMNS - 1), "y"])
    assert places == [(0, 0), (3, 0), (5, 0), (0, 1), (1, 1), (0, 2)] and lines == 3
