"""Figures: each is drawn from plain arrays, written as a PNG that shows something, without a window."""

import matplotlib
import matplotlib.image
import numpy as np
import pytest

from selssm_jax.report import figures
from selssm_jax.report.figures import Curve

N, T = 6, 20
RNG = np.random.default_rng(0)
GATES = RNG.uniform(size=(T, N))
BLOCK = {
    "components": N,
    "mean": 0.5,
    "by_component": GATES.mean(0),
    "first_sequence": GATES.sum(1),
    "histogram": {"edges": np.linspace(0, 1, 11), "counts": np.arange(10)},
    "over_time": {
        "position": list(range(T)),
        "effective_dimension": GATES.sum(1),
        "hard_count": (GATES > 0.5).sum(1),
        "participation_ratio": GATES.sum(1),
    },
}
BITS = {"bits_gained": GATES.sum(1), "bits_forgotten": GATES.sum(1) / 2}
STEPS = [10, 20, 30]
FIGURES = {
    "curve": lambda: figures.learning_curve(
        Curve("training", STEPS, [3, 2, 1]),
        Curve("validation", [20], [2.5]),
        label="nats",
        chosen=20,
        references={"unigram": 2.8, "bigram": 2.2},
    ),
    "curve without a validation": lambda: figures.learning_curve(
        Curve("training", STEPS, [3, 2, 1]), Curve("v", [], []), label="nats", chosen=30, references={}
    ),
    "one block": lambda: figures.gate_activity({"block_0": BLOCK}),
    "three blocks": lambda: figures.gate_activity({f"block_{index}": BLOCK for index in range(3)}),
    "bits of gates": lambda: figures.gate_bits(
        {f"block_{index}": BLOCK | {"over_time": BLOCK["over_time"] | BITS} for index in range(2)}
    ),
    "one channel": lambda: figures.forecast(*RNG.normal(size=(3, T, 1)), names=["x"], units="value"),
    "seven channels": lambda: figures.forecast(
        *RNG.normal(size=(3, T, 7)), names=[f"c{index}" for index in range(7)], units="value"
    ),
    "fan": lambda: figures.forecast(
        *RNG.normal(size=(3, T, 1)), names=["x"], units="value", fan={"quantiles": (GATES[:, :1], GATES[:, 1:])}
    ),
    "signal": lambda: figures.waveform(
        RNG.normal(size=(T, 1)),
        {"block_0": GATES, "block_1": GATES},
        duration=2.5,
        unit="s",
        title="class 1, predicted 1",
    ),
    "signal without gates": lambda: figures.waveform(
        RNG.normal(size=(T, 2)), {}, duration=20, unit="steps", title="class 1"
    ),
    "signal of which some frames are read": lambda: figures.waveform(
        RNG.normal(size=(T, 1)),
        {"block_0": GATES},
        duration=2.5,
        unit="s",
        title="class 1",
        steps=np.arange(T) % 4 == 0,
    ),
    "states": lambda: figures.draw_state_bytes(
        [Curve("attention", [1, 10, 100], [8, 80, 800]), Curve("gru", [1, 10, 100], [40, 40, 40])]
    ),
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


HOSTILE = "$\\frac{$"
HUGE = np.array([[1e38, np.nan], [np.inf, -1e38], [0.0, 1e308]])


@pytest.mark.parametrize(
    "draw",
    [
        lambda: figures.forecast(HUGE, HUGE, HUGE, names=[HOSTILE, "温度"], units=HOSTILE),
        lambda: figures.waveform(
            HUGE, {"block_0": np.full((3, 4), np.nan)}, duration=1, unit="s", title=f"class {HOSTILE}"
        ),
        lambda: figures.learning_curve(
            Curve("training", STEPS, [np.inf, np.nan, 1e38]),
            Curve("validation", [30], [1e308]),
            label=HOSTILE,
            chosen=30,
            references={HOSTILE: 1e38},
        ),
        lambda: figures.by_horizon([np.nan, 1e308, np.inf], [1e38, 1.0, 1e-38], label="mse"),
        lambda: figures.draw_state_bytes([Curve(HOSTILE, [1, 10], [8, 80])]),
    ],
)
def test_no_name_and_no_number_stops_a_figure(draw, tmp_path):
    figures.save(draw(), tmp_path / "figure.png")  # warnings are errors: a letter that the font lacks would be one


def test_a_name_that_the_font_cannot_show_is_a_number():
    assert (
        figures.drawable("sine °C", "channel 1") == "sine °C" and figures.drawable("温度", "channel 2") == "channel 2"
    )
    assert figures.drawable("درجة", "channel 3") == "channel 3", (
        "Matplotlib joins no letters and writes from left to right"
    )
    assert figures.drawable("", "channel 4") == "channel 4" and len(figures.drawable("x" * 900, "")) == figures.LABEL


@pytest.mark.parametrize("names", [["a"], ["unigram entropy (validation)"] * 6, ["x" * 300] * 3])
def test_legends_stay_inside(names, tmp_path):
    curves = [Curve(name, [1, 10, 100], [8 + index, 80, 800]) for index, name in enumerate(names)]
    figure = figures.draw_state_bytes(curves)
    figures.save(figure, tmp_path / "figure.png")
    inside, page = figure.legends[0].get_window_extent(), figure.bbox
    assert page.x0 <= inside.x0 and inside.x1 <= page.x1 and page.y0 <= inside.y0 and inside.y1 <= page.y1


def test_the_first_steps_do_not_flatten_a_curve():
    steps = list(range(10, 1010, 10))
    train = Curve("training", steps, [1000.0 if step < 60 else 2 - step / 1000 for step in steps])
    figure = figures.learning_curve(
        train,
        Curve("validation", [500, 1000], [1.6, 1.1]),
        label="nats",
        chosen=1000,
        references={"near": 2.1, "far": 90.0},
    )
    low, high = figure.axes[0].get_ylim()
    assert low < 1 and 2.1 < high < 2.5
    assert [line.get_label() for line in figure.axes[0].lines][-2:] == ["near", "far: 90.00, not drawn"]


def test_axes_of_decades_have_no_formulas(tmp_path):
    figure = figures.draw_state_bytes([Curve("attention", [1, 10, 100_000], [8, 80, 8e9])])
    figures.save(figure, tmp_path / "figure.png")
    labels = [
        label.get_text() for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis) for label in axis.get_ticklabels()
    ]
    assert (
        "100" in labels
        and "10,000" in labels
        and {"1e8", "1e9"} & set(labels)
        and not any("$" in label or "mathdefault" in label for label in labels)
    )
