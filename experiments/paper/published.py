"""What others report on the data sets of the page, at the same lookback, each number with its source: the one place
that has them.

They are quoted, not run: other sizes, budgets and hardware, and most of them one seed.
"""

from collections.abc import Mapping
from typing import NamedTuple

from experiments.paper.study import Task

LOOKBACK = 96  # steps that every forecast here was made from
READ, QUOTED = "its table was read", "quoted from others, its table was not read"


class Source(NamedTuple):
    """Where numbers stand, and how they came here."""

    title: str
    place: str  # arXiv's number, or an address
    basis: str = READ


class Published(NamedTuple):
    """A model's metrics on the test split, as its source prints them (accuracies as shares), and what differs from
    ours.
    """

    model: str
    values: Mapping[str, float]
    source: Source
    differs: str = ""


S_MAMBA = Source("Wang et al. 2024, Is Mamba effective for time series forecasting?", "arXiv:2403.11144")
TQNET = Source("Lin et al. 2025, Temporal query network", "arXiv:2505.12917", QUOTED)
CARD = Source("Wang et al. 2023, CARD", "arXiv:2305.12095", QUOTED)
CMAMBA = Source("Zeng et al. 2024, CMamba", "arXiv:2406.05316", QUOTED)
WAVE_RNN = Source("Keller et al. 2024, Traveling waves encode the recent past", "arXiv:2309.08045")
S4 = Source("Gu et al. 2022, Efficiently modeling long sequences", "arXiv:2111.00396", QUOTED)
S5 = Source("Smith et al. 2023, Simplified state space layers", "arXiv:2208.04933", QUOTED)
NANOGPT = Source("Karpathy, nanoGPT, README", "github.com/karpathy/nanoGPT")

COLUMNS = ("S-Mamba", "iTransformer", "RLinear", "PatchTST", "Crossformer", "TimesNet", "DLinear", "FEDformer")
# (MSE, MAE) of each of COLUMNS, from the tables of S_MAMBA, whose lookback is 96
FORECASTS: dict[tuple[str, int], tuple[tuple[float, float], ...]] = {
    ("etth1", 96): (
        (0.386, 0.405), (0.386, 0.405), (0.386, 0.395), (0.414, 0.419),
        (0.423, 0.448), (0.384, 0.402), (0.386, 0.400), (0.376, 0.419),
    ),
    ("etth1", 336): (
        (0.489, 0.468), (0.487, 0.458), (0.479, 0.446), (0.501, 0.466),
        (0.570, 0.546), (0.491, 0.469), (0.481, 0.459), (0.459, 0.465),
    ),
    ("ettm1", 96): (
        (0.333, 0.368), (0.334, 0.368), (0.355, 0.376), (0.329, 0.367),
        (0.404, 0.426), (0.338, 0.375), (0.345, 0.372), (0.379, 0.419),
    ),
    ("weather", 96): (
        (0.165, 0.210), (0.174, 0.214), (0.192, 0.232), (0.177, 0.218),
        (0.158, 0.230), (0.172, 0.220), (0.196, 0.255), (0.217, 0.296),
    ),
    ("weather", 336): (
        (0.274, 0.297), (0.278, 0.296), (0.292, 0.307), (0.278, 0.297),
        (0.272, 0.335), (0.280, 0.306), (0.283, 0.335), (0.339, 0.380),
    ),
}  # fmt: skip
MORE: dict[tuple[str, int], tuple[Published, ...]] = {
    ("etth1", 96): (Published("TQNet", {"mse": 0.371, "mae": 0.393}, TQNET),),
    ("ettm1", 96): (Published("TQNet", {"mse": 0.311}, TQNET),),
    ("weather", 96): (
        Published("TQNet", {"mse": 0.157}, TQNET),
        Published("CARD", {"mse": 0.150}, CARD),
        Published("CMamba", {"mse": 0.150}, CMAMBA),
    ),
}
LANGUAGE = "the best of its validations on the last 10 %, which is our test split"
OTHERS: dict[str, tuple[Published, ...]] = {
    "tiny_shakespeare": (
        Published("nanoGPT, 6 layers, 384 wide", {"nats": 1.4697}, NANOGPT, f"{LANGUAGE}; context 256, an A100"),
        Published("nanoGPT, 4 layers, 128 wide", {"nats": 1.88}, NANOGPT, f"{LANGUAGE}; context 64, a CPU"),
    ),
    "smnist": (
        Published("S5", {"accuracy": 0.9965}, S5),
        Published("S4", {"accuracy": 0.9963}, S4),
        Published("GRU", {"accuracy": 0.991}, WAVE_RNN, "256 units, 201k parameters"),
        Published("Transformer", {"accuracy": 0.989}, S4),
        Published("LSTM", {"accuracy": 0.988}, WAVE_RNN, "256 units, 267k parameters"),
    ),
}


def list_published(task: Task) -> list[Published]:
    """Returns what is published of a task, none for a forecast from another lookback."""
    if task.source in OTHERS:
        return list(OTHERS[task.source])
    if task.length != LOOKBACK:
        return []
    place = (task.source, task.horizon)
    columns = zip(COLUMNS, FORECASTS.get(place, ()), strict=False)
    table = [Published(model, {"mse": mse, "mae": mae}, S_MAMBA) for model, (mse, mae) in columns]
    return [*table, *MORE.get(place, ())]
