"""The published files themselves, where a folder holds them: $SELSSM_TEST_DATA, or shared/data beside the checkout."""

import os
import pathlib

import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.config import Data

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
FOLDER = pathlib.Path(os.environ.get("SELSSM_TEST_DATA") or REPOSITORY.parent / "shared" / "data")
SPLITS = ("train", "validation", "test")


@pytest.fixture
def load():
    """Loads a public set from the folder, or skips the test."""

    def loaded(source, **options):
        if not FOLDER.is_dir():
            pytest.skip("the published files are not here: name their folder in SELSSM_TEST_DATA")
        return data.load(Data(source=source, local_dir=str(FOLDER), **{"length": 96, "horizon": 96, **options}))

    return loaded


def sizes(dataset, unit):
    return [dataset.metadata()[f"{split}_{unit}"] for split in SPLITS]


def test_tiny_shakespeare(load):
    dataset = load("tiny_shakespeare")
    assert len(dataset.vocabulary) == dataset.task.vocab == 65
    assert sizes(dataset, "tokens") == [948_084, 55_770, 111_540]
    first = next(iter(dataset.evaluate("train", 1)))
    assert dataset.decode(first["inputs"][0]).startswith(
        "First Citizen:\nBefore we proceed any further, hear me speak."
    )
    baselines = dataset.baselines("test")
    assert 2.4 < baselines["bigram entropy"]["nats"] < 2.6 < 3.2 < baselines["unigram entropy"]["nats"] < 3.5


def test_wikitext2_words(load):
    dataset = load("wikitext2", level="word")
    assert len(dataset.vocabulary) == 33_278
    assert sizes(dataset, "tokens") == [2_088_628, 217_646, 245_569]
    first = next(iter(dataset.evaluate("test", 1)))
    assert dataset.decode(first["inputs"][0]).strip().startswith("= Robert <unk> =")


@pytest.mark.parametrize(("source", "period"), [("etth1", 24), ("ettm1", 96), ("weather", 144)])
def test_days_are_found(load, source, period):
    assert load(source, period=-1, course="learned").task.period == period


def test_etth1(load):
    dataset = load("etth1")
    assert sizes(dataset, "windows") == [8449, 2785, 2785]
    baselines = dataset.baselines("test")
    assert baselines["repeat last"] == {"mse": pytest.approx(1.294, abs=6e-4), "mae": pytest.approx(0.713, abs=6e-4)}
    assert baselines["ridge"] == {"mse": pytest.approx(0.383, abs=0.002), "mae": pytest.approx(0.392, abs=0.002)}


def test_jena_weather(load):
    dataset = load("weather")
    assert sizes(dataset, "windows") == [36_887 - 191, 5270 - 95, 10_539 - 95]
    assert dataset.task.channels == 21
    # The baselines also fit a ridge, which takes long on 21 channels: repeating the last value needs none.
    squared, absolute, count = 0.0, 0.0, 0
    for batch in dataset.evaluate("test", 500):
        wrong = (batch["inputs"][:, -1:] - batch["targets"])[batch["weights"] > 0]
        squared, absolute, count = (
            squared + np.square(wrong).sum(dtype=np.float64),
            absolute + np.abs(wrong).sum(dtype=np.float64),
            count + wrong.size,
        )
    assert (squared / count, absolute / count) == (pytest.approx(0.259, abs=6e-4), pytest.approx(0.254, abs=6e-4))


def test_spoken_digits(load):
    dataset = load("fsdd", length=0)
    assert sizes(dataset, "clips") == [2400, 300, 300]
    assert dataset.task.length == 18_262 and dataset.metadata()["sample_rate"] == 8000
    batches = list(dataset.evaluate("test", 100))
    np.testing.assert_array_equal(np.bincount(np.concatenate([batch["targets"] for batch in batches])), np.full(10, 30))
    lengths = np.concatenate([batch["valid"].sum(axis=1) for batch in batches])
    assert lengths.min() >= 1148 and lengths.max() <= 18_262
    assert max(np.abs(batch["inputs"]).max() for batch in batches) <= 1
    assert dataset.baselines("test") == {"majority class": {"accuracy": pytest.approx(0.1)}}
