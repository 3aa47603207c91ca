"""What models, metrics and families of tasks are called, in which order they come, and which way a metric is better."""

from typing import NamedTuple

from selssm_jax.tasks.scores import higher_is_better

OURS = "selective"
MODELS = {
    "selective": "Selective SSM",
    "selective_state": "Selective SSM (x, h)",
    "mamba": "Mamba",
    "s5": "S5",
    "lstm": "LSTM",
    "gru": "GRU",
    "rnn": "RNN",
    "attention": "Transformer",
    "tcn": "TCN",
}
RIVALS = ("lstm", "gru")  # of the paper's Table 1
FAMILIES = {
    "time series": ("etth1", "ettm1", "weather", "csv"),
    "language": ("tiny_shakespeare", "wikitext2", "text", "python_reference"),
    "labelled text": ("labelled_text", "tagged_text"),
    "signals": ("fsdd", "smnist", "psmnist", "npz"),
    "synthetic": (
        "selective_copying",
        "induction_heads",
        "associative_recall",
        "delayed_recall",
        "linear_gaussian",
        "changing_noise",
        "changing_drift",
        "two_answers",
    ),
}  # of data.source
PAPERS = ("time series", "language", "signals")  # the families of the paper's three tasks


class Metric(NamedTuple):
    """A metric's name, its title on the page, and what its values are multiplied by to be shown."""

    name: str
    title: str
    scale: float = 1.0

    @property
    def higher(self) -> bool:
        """Whether more of it is better."""
        return higher_is_better(self.name)

    @property
    def loss_title(self) -> str:
        """What its loss is called: it itself, or the error that is left of a share."""
        return "error" if self.higher else self.title

    def loss(self, value: float) -> float:
        """Returns a value of it as a loss: that of an accuracy is 1 - accuracy."""
        return 1 - value if self.higher else value

    @property
    def direction(self) -> str:
        """Which way is better, in words."""
        return f"{self.title}, {'higher' if self.higher else 'lower'} is better"


METRICS = {
    metric.name: metric
    for metric in (
        Metric("mse", "MSE"),
        Metric("mae", "MAE"),
        Metric("r2", "R²"),
        Metric("direction", "right direction (%)", scale=100.0),
        Metric("nats", "nats"),
        Metric("bits", "bits"),
        Metric("accuracy", "accuracy (%)", scale=100.0),
    )
}
FIELD = {
    "forecasting": ("mse", "mae", "r2", "direction"),
    "language": ("nats", "bits", "accuracy"),
    "classification": ("accuracy", "nats"),
}  # the metrics of each kind of task
# what "prediction accuracy (%)" is
SHARE = {"forecasting": "direction", "language": "accuracy", "classification": "accuracy"}


def family(source: str) -> str:
    """Returns the family of tasks that a data source belongs to."""
    return next(name for name, sources in FAMILIES.items() if source in sources)


def title(model: str) -> str:
    """Returns what a model is called on the page; a name that is not known stays as it is."""
    return MODELS.get(model, model)


def join_words(words: list[str]) -> str:
    """Returns "a", "a and b" or "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
