"""Synthetic tasks: answers found by another rule, examples that are functions of their number, optima that are
optimal.
"""

import math

import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.config import Data
from selssm_jax.data import synthetic
from selssm_jax.errors import InputError
from selssm_jax.information.conditional import of_covariance as conditional_information

DISCRETE = ("selective_copying", "induction_heads", "associative_recall", "delayed_recall")
TASKS = (*DISCRETE, "linear_gaussian", "changing_noise", "changing_drift", "two_answers")
SPLITS = ("train", "validation", "test")


def load(source, **options):
    return data.load(
        Data(
            source=source,
            **{
                "length": 20,
                "vocab": 5,
                "tokens": 5 if source == "associative_recall" else 6,
                "lag": 3,
                "horizon": 4,
                "train_examples": 90,
                "eval_examples": 60,
                **options,
            },
        )
    )


def examples(dataset, split="test", batch_size=16):
    """All examples of a split in order."""
    batches = list(dataset.evaluate(split, batch_size))
    count = int(sum(np.sign(batch["weights"]).reshape(batch_size, -1).max(axis=1).sum() for batch in batches))
    return {key: np.concatenate([batch[key] for batch in batches])[:count] for key in batches[0]}


def answered(found):
    """(input tokens, {step: answer}) of every example, as plain lists."""
    for tokens, targets, weights in zip(
        found["inputs"].tolist(), found["targets"].tolist(), found["weights"].tolist(), strict=True
    ):
        yield (
            tokens,
            {step: answer for step, (answer, weight) in enumerate(zip(targets, weights, strict=True)) if weight == 1},
        )


def test_selective_copying_asks_for_the_symbols_in_order():
    dataset = load("selective_copying")
    assert (dataset.task.vocab, dataset.task.length) == (7, 26)
    blank, mark = 5, 6
    for tokens, answers in answered(examples(dataset)):
        said = [token for token in tokens if token not in (blank, mark)]
        assert len(said) == 6 and tokens[20:] == [mark] * 6 and mark not in tokens[:20]
        assert answers == {20 + place: symbol for place, symbol in enumerate(said)}


def test_selective_copying_may_fill_every_step():
    dataset = load("selective_copying", tokens=20)
    for tokens, answers in answered(examples(dataset)):
        assert list(answers.values()) == tokens[:20]


def test_places_of_the_symbols_are_uniform():
    found = examples(load("selective_copying", eval_examples=4000), batch_size=500)
    counts = (found["inputs"][:, :20] < 5).sum(axis=0)
    assert np.abs(counts - 4000 * 6 / 20).max() < 5 * math.sqrt(4000 * 0.3 * 0.7)


def test_induction_heads_asks_for_what_followed_the_mark():
    dataset = load("induction_heads")
    assert (dataset.task.vocab, dataset.task.length) == (6, 20)
    places = set()
    for tokens, answers in answered(examples(dataset, "train")):
        assert tokens.count(5) == 2 and tokens[-1] == 5
        first = tokens.index(5)
        places.add(first)
        assert answers == {19: tokens[first + 1]} and first + 1 < 19
    assert len(places) > 10 and max(places) <= 17


def test_associative_recall_asks_for_the_value_of_every_key():
    dataset = load("associative_recall")
    assert (dataset.task.vocab, dataset.task.length) == (11, 20)
    orders = set()
    for tokens, answers in answered(examples(dataset)):
        said = dict(zip(tokens[:10:2], tokens[1:10:2], strict=True))
        assert sorted(said) == [5, 6, 7, 8, 9] and set(said.values()) <= set(range(5))
        assert answers == {step: said[token] for step, token in enumerate(tokens) if step >= 10 and token != 10}
        asked = [tokens[step] for step in answers]
        assert sorted(asked) == sorted(said)
        orders.add(tuple(asked))
    assert len(orders) > 30


def test_delayed_recall_asks_for_what_was_read_lag_steps_before():
    dataset = load("delayed_recall")
    assert (dataset.task.vocab, dataset.task.length) == (5, 20)
    for tokens, answers in answered(examples(dataset)):
        assert answers == {step: tokens[step - 3] for step in range(3, 20)}


@pytest.mark.parametrize("source", DISCRETE)
def test_symbols_are_uniform(source):
    found = examples(load(source, eval_examples=4000), batch_size=500)
    answers = found["targets"][found["weights"] > 0]
    counts = np.bincount(answers, minlength=5)
    assert len(counts) == 5
    assert np.abs(counts - len(answers) / 5).max() < 5 * math.sqrt(len(answers) * 0.2 * 0.8)


@pytest.mark.parametrize("source", DISCRETE)
def test_answers_have_the_stated_entropy(source):
    dataset = load(source)
    scored = examples(dataset)["weights"][0].sum()
    assert dataset.metadata()["answer_nats"] == pytest.approx(scored * math.log(5))
    assert dataset.baselines("test") == {
        "optimal": {"nats": 0.0, "accuracy": 1.0},
        "uniform guess": {"nats": pytest.approx(math.log(5)), "accuracy": pytest.approx(0.2)},
    }


@pytest.mark.parametrize("source", TASKS)
def test_example_is_a_function_of_its_number(source):
    dataset = load(source)
    for split in SPLITS:
        one, many = (examples(dataset, split, batch_size) for batch_size in (1, 32))
        for key in many:
            np.testing.assert_array_equal(one[key], many[key])


@pytest.mark.parametrize("source", TASKS)
def test_more_examples_leave_the_first_ones_as_they_were(source):
    few, more = (examples(load(source, eval_examples=count))["inputs"] for count in (10, 40))
    np.testing.assert_array_equal(few, more[:10])


@pytest.mark.parametrize("source", TASKS)
def test_training_draws_the_examples_of_the_training_split(source):
    dataset = load(source)
    drawn = next(dataset.train(90, seed=4))["inputs"].reshape(90, -1)
    split = examples(dataset, "train")["inputs"].reshape(90, -1)
    np.testing.assert_array_equal(np.unique(drawn, axis=0), np.unique(split, axis=0))
    assert not np.array_equal(drawn, split)


@pytest.mark.parametrize("source", TASKS)
def test_splits_and_seeds_are_disjoint_streams(source):
    streams = [
        examples(load(source, seed=seed, length=40), split)["inputs"][:60]
        for seed in (0, 1, 2**32 - 1)
        for split in SPLITS
    ]
    rows = np.concatenate([stream.reshape(len(stream), -1) for stream in streams])
    assert len(rows) == 9 * 60 and len(np.unique(rows, axis=0)) == len(rows)
    # Nor does a stream run ahead of another: no two examples share their symbols' order anywhere in a column.
    assert all(
        not np.array_equal(first[shift:], second[: 60 - shift])
        for first in streams
        for second in streams
        for shift in range(1, 5)
    )


def test_neighbouring_examples_are_independent():
    found = examples(load("linear_gaussian", eval_examples=4000, length=3, horizon=1), batch_size=500)["inputs"][
        :, 0, 0
    ]
    assert abs(np.corrcoef(found[:-1], found[1:])[0, 1]) < 5 / math.sqrt(4000)


# The linear-Gaussian channel.


def covariance(total, noise, decay=0.9):
    """Of x_1..x_total, with x = z + n."""
    step = np.arange(total)
    return decay ** np.abs(step[:, None] - step[None]) + noise * np.eye(total)


def conditional(length, horizon, noise):
    """The map from the past to the mean of the future, and the future's covariance given the past."""
    joint = covariance(length + horizon, noise)
    past, cross, future = joint[:length, :length], joint[length:, :length], joint[length:, length:]
    map_ = np.linalg.solve(past, cross.T).T
    return map_, future - map_ @ cross.T


@pytest.mark.parametrize("noise", [0.0, 0.1, 2.0])
@pytest.mark.parametrize(("length", "horizon"), [(1, 1), (2, 5), (20, 4), (60, 12)])
def test_optimum_equals_the_conditional_covariance(length, horizon, noise):
    dataset = load("linear_gaussian", length=length, horizon=horizon, noise=noise)
    _, given = conditional(length, horizon, noise)
    assert synthetic.DECAY == 0.9
    assert dataset.baselines("test")["optimal"]["mse"] == pytest.approx(np.diag(given).mean(), rel=1e-9)
    assert dataset.metadata()["optimum"]["mse"] == dataset.baselines("test")["optimal"]["mse"]


@pytest.mark.parametrize("blank", [0, 3])
def test_best_forecast_of_the_examples_errs_as_stated(blank):
    dataset = load("linear_gaussian", length=20, horizon=4, noise=0.3, blank=blank, eval_examples=20_000)
    found = examples(dataset, batch_size=1000)
    map_, _ = conditional(20 - blank, 4 + blank, 0.3)
    assert ((found["inputs"][:, 20 - blank :] == 0).all() and dataset.info.get("process") is None) or not blank
    wrong = np.square(found["inputs"][:, : 20 - blank, 0] @ map_[blank:].T - found["targets"][..., 0]).mean(axis=1)
    assert abs(wrong.mean() - dataset.baselines("test")["optimal"]["mse"]) < 4 * wrong.std() / math.sqrt(len(wrong))
    zero = np.square(found["targets"]).mean(axis=(1, 2))
    assert abs(zero.mean() - dataset.baselines("test")["zero"]["mse"]) < 4 * zero.std() / math.sqrt(len(zero))


@pytest.mark.parametrize(
    ("length", "horizon", "noise", "decay"),
    [(1, 1, 3.0, 0.99), (20, 4, 3.0, 0.99), (60, 1, 0.0, 0.99), (64, 1, 3.0, 0.999)],
)
def test_the_filter_that_knows_the_changing_noise_errs_as_stated(length, horizon, noise, decay):
    dataset = load("changing_noise", length=length, horizon=horizon, noise=noise, decay=decay, eval_examples=20_000)
    found = examples(dataset, batch_size=1000)
    x, clear = found["inputs"][..., 0].astype(np.float64), found["inputs"][..., 1]
    assert set(np.unique(clear)) <= {0.0, 1.0} and abs(clear.mean() - synthetic.OFTEN) < 0.01
    m, P, a = np.zeros(len(x)), np.ones(len(x)), decay
    for step in range(length):
        m, P = (a * m, a**2 * P + 1 - a**2) if step else (m, P)
        gain = P / (P + np.where(clear[:, step] == 1, synthetic.CLEAR, noise))
        m, P = m + gain * (x[:, step] - m), (1 - gain) * P
    said = m[:, None] * a ** np.arange(1, horizon + 1)
    wrong = np.square(said - found["targets"][..., 0]).mean(axis=1)
    assert abs(wrong.mean() - dataset.baselines("test")["optimal"]["mse"]) < 4 * wrong.std() / math.sqrt(len(wrong))


@pytest.mark.parametrize(("length", "horizon", "noise"), [(40, 1, 0.1), (7, 3, 1.0)])
def test_the_filter_that_knows_the_changing_drift_errs_as_stated(length, horizon, noise):
    dataset = load("changing_drift", length=length, horizon=horizon, noise=noise, eval_examples=20_000)
    found = examples(dataset, batch_size=1000)
    x, storm = found["inputs"][..., 0].astype(np.float64), found["inputs"][..., 1] == 1
    assert abs(storm.mean() - 0.5) < 0.01
    assert abs((storm[:, 1:] != storm[:, :-1]).mean() - synthetic.TURN) < 0.005
    m, P = np.zeros(len(x)), np.ones(len(x))
    for step in range(length):
        a = np.where(storm[:, step], synthetic.FAST, synthetic.SLOW)
        m, P = (a * m, a**2 * P + 1 - a**2) if step else (m, P)
        gain = P / (P + noise)
        m, P = m + gain * (x[:, step] - m), (1 - gain) * P
    ahead, factors = np.ones((len(x), 2)), []
    turns = np.array([[1 - synthetic.TURN, synthetic.TURN], [synthetic.TURN, 1 - synthetic.TURN]])
    for _ in range(horizon):
        ahead = (ahead * [synthetic.SLOW, synthetic.FAST]) @ turns.T
        factors.append(np.where(storm[:, -1], ahead[:, 1], ahead[:, 0]))
    said = m[:, None] * np.stack(factors, axis=1)
    wrong = np.square(said - found["targets"][..., 0]).mean(axis=1)
    assert abs(wrong.mean() - dataset.baselines("test")["optimal"]["mse"]) < 4 * wrong.std() / math.sqrt(len(wrong))
    assert abs(np.square(found["targets"]).mean() - 1 - noise) < 0.05, "states keep their variance"


# Two answers.


def joint_law(length, horizon, noise):
    """Of the three readings of all steps and then the answers of the horizon, step by step: entry by entry."""
    decays, mixing = synthetic.PARTS, synthetic.MIXING
    steps = length + horizon
    maps = np.zeros((3 * length + 2 * horizon, 3 * steps))
    for step in range(length):
        for part in range(3):
            maps[3 * step + part, 3 * step + part] = 1
    for step in range(horizon):
        for answer in range(2):
            maps[3 * length + 2 * step + answer, 3 * (length + step) : 3 * (length + step + 1)] = mixing[answer]
    hidden = np.array(
        [
            [decays[i] ** abs(s - t) * (i == j) for t in range(steps) for j in range(3)]
            for s in range(steps)
            for i in range(3)
        ]
    )
    cov = maps @ hidden @ maps.T
    cov[: 3 * length, : 3 * length] += noise * np.eye(3 * length)
    return cov


@pytest.mark.parametrize(("length", "horizon", "noise"), [(1, 1, 0.5), (12, 4, 0.5), (9, 3, 0.0), (20, 2, 2.0)])
def test_what_the_past_tells_of_two_answers_is_that_of_the_whole_law(length, horizon, noise):
    known = load("two_answers", length=length, horizon=horizon, noise=noise).metadata()["answers_known"]
    cov, past = joint_law(length, horizon, noise), range(3 * length)
    columns = [range(3 * length + answer, len(cov), 2) for answer in range(2)]
    for answer, column in enumerate(columns):
        cross = cov[np.ix_(column, past)]
        given = cov[np.ix_(column, column)] - cross @ np.linalg.solve(cov[np.ix_(past, past)], cross.T)
        assert known["mse"][answer] == pytest.approx(np.diag(given).mean(), rel=1e-9)
        assert known["nats"][answer] == pytest.approx(conditional_information(cov, past, column), rel=1e-8)
    both = [place for column in columns for place in column]
    assert known["nats_of_all"] == pytest.approx(conditional_information(cov, past, both), rel=1e-8)
    assert max(known["nats"]) < known["nats_of_all"]


def test_answers_that_share_a_state_may_tell_more_of_the_past_together_than_apart(monkeypatch):
    """Redundancy less synergy is no measure of what is shared: where the shared state moves faster than a private one,
    its future, which is in both answers, tells the one what the other leaves open.
    """
    redundant = load("two_answers", length=64, noise=2.0).metadata()["answers_known"]
    monkeypatch.setattr(synthetic, "PARTS", (0.95, 0.99, 0.8))
    synergetic = load("two_answers", length=64, noise=2.0).metadata()["answers_known"]
    assert sum(redundant["nats"]) - redundant["nats_of_all"] > 0.1
    assert sum(synergetic["nats"]) - synergetic["nats_of_all"] < 0


def test_the_filter_of_each_part_errs_as_stated_of_each_answer():
    dataset = load("two_answers", length=30, horizon=3, noise=0.5, eval_examples=20_000)
    assert (dataset.task.channels, dataset.task.covariates) == (2, 1)
    found = examples(dataset, batch_size=1000)
    first, second, shared = np.moveaxis(found["inputs"].astype(np.float64), -1, 0)
    said = np.zeros((len(first), 3, 2))
    for part, x in enumerate((shared, first - shared, second - shared)):
        m, P, a = np.zeros(len(x)), 1.0, synthetic.PARTS[part]
        for step in range(x.shape[1]):
            m, P = (a * m, a**2 * P + 1 - a**2) if step else (m, P)
            gain = P / (P + 0.5)
            m, P = m + gain * (x[:, step] - m), (1 - gain) * P
        ahead = m[:, None] * a ** np.arange(1, 4)
        said += ahead[..., None] * synthetic.MIXING[:, part]
    wrong = np.square(said - found["targets"]).mean(axis=1)
    error = wrong.std(axis=0) / math.sqrt(len(wrong))
    assert (np.abs(wrong.mean(axis=0) - dataset.metadata()["answers_known"]["mse"]) < 4 * error).all()
    assert dataset.baselines("test")["optimal"]["mse"] == pytest.approx(np.mean(dataset.info["answers_known"]["mse"]))
    zero = np.square(found["targets"]).mean(axis=(1, 2))
    assert abs(zero.mean() - dataset.baselines("test")["zero"]["mse"]) < 4 * zero.std() / math.sqrt(len(zero))


def test_examples_have_the_stated_covariance():
    found = examples(load("linear_gaussian", length=6, horizon=4, noise=0.3, eval_examples=20_000), batch_size=1000)
    x = np.concatenate([found["inputs"], found["targets"]], axis=1)[..., 0].astype(np.float64)
    expected = covariance(10, 0.3)
    # of an estimated covariance
    deviation = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / len(x))
    assert (np.abs(x.T @ x / len(x) - expected) < 5 * deviation).all()
    assert np.abs(x.mean(axis=0)).max() < 5 * math.sqrt(1.3 / len(x))
    kurtosis = (x**4).mean() / (x**2).mean() ** 2
    assert kurtosis == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (
            "selective_copying",
            {"tokens": 21},
            r"data\.tokens=21 do not fit into data\.length=20 steps: use fewer tokens or a longer sequence",
        ),
        (
            "associative_recall",
            {"tokens": 6},
            r"data\.tokens=6 keys must differ, but data\.vocab=5 has fewer: use fewer tokens or a larger vocab",
        ),
        (
            "associative_recall",
            {"length": 14},
            r"data\.length=14 is too short for data\.tokens=5 pairs and as many questions: use at least 15",
        ),
        ("induction_heads", {"length": 3}, r"data\.length=3 is too short for induction: use at least 4"),
        (
            "delayed_recall",
            {"lag": 20},
            r"data\.lag=20 reaches before the start of data\.length=20 steps: use a smaller lag or a longer sequence",
        ),
        ("linear_gaussian", {"length": 0}, r"data\.length=0"),
        ("linear_gaussian", {"length": 8, "blank": 8}, r"data\.blank=8 leaves no reading of data\.length=8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(source, options, message):
    with pytest.raises(InputError, match=message):
        load(source, **options)
