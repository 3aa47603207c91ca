"""Columns that are forecast and columns that are read beside them, missing values, and series of their own: what a
batch holds of each, and what a model makes of it.
"""

import dataclasses
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.config import Data, Experiment, Model, Optimizer, Training
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.tasks.registry import kind_of
from selssm_jax.testing import check_task
from selssm_jax.training import optimizer
from selssm_jax.training.step import initial, train_step

ROWS, LENGTH, HORIZON = 200, 8, 4


def make_columns(rows=ROWS):
    rng = np.random.default_rng(0)
    return {
        name: np.round(rng.normal(size=rows) * scale + scale, 4)
        for name, scale in zip("abcd", (1, 9, 2, 5), strict=True)
    }


def write(path, columns, *, missing=(), first="2020-01-01T00", extra=None):
    """A table of hours; `missing` are (column, row) without a value, `extra` words of more columns, by row."""
    time, names = np.datetime64(first, "h"), list(columns)
    lines = [",".join(["date", *names, *(extra or {})])]
    for row in range(len(columns[names[0]])):
        cells = ["" if (name, row) in missing else f"{columns[name][row]:.4f}" for name in names]
        lines.append(",".join([str(time + row), *cells, *(words[row] for words in (extra or {}).values())]))
    path.write_text("\n".join(lines) + "\n")
    return Data(source="csv", file=str(path), length=LENGTH, horizon=HORIZON)


def load(config, known=None, **keys):
    return data.load(dataclasses.replace(config, **keys), known)


def scaled(values):
    train = values[: ROWS * 7 // 10]
    return (values - np.nanmean(train)) / np.nanstd(train)


def first_of(dataset, split="train", size=4):
    return next(dataset.evaluate(split, size))


def test_covariates_stand_behind_the_targets_and_what_is_known_is_of_rows_ahead(tmp_path):
    columns = make_columns()
    config = write(tmp_path / "t.csv", columns)
    roles = {"targets": ("c",), "past_covariates": ("a",), "future_covariates": ("d",), "calendar": ("hour",)}
    dataset = load(config, **roles)
    task, batch = dataset.task, first_of(dataset)
    assert (task.channels, task.covariates, task.known_ahead, task.masked) == (1, 4, 3, False)
    np.testing.assert_allclose(batch["inputs"][1, :, 0], scaled(columns["c"])[1 : 1 + LENGTH], atol=1e-5)
    np.testing.assert_allclose(batch["inputs"][1, :, 1], scaled(columns["a"])[1 : 1 + LENGTH], atol=1e-5)
    ahead = np.arange(1, 1 + LENGTH) + HORIZON
    np.testing.assert_allclose(batch["inputs"][1, :, 2], scaled(columns["d"])[ahead], atol=1e-5)
    np.testing.assert_allclose(batch["inputs"][1, :, 3], np.sin(2 * np.pi * ahead / 24), atol=1e-5)
    np.testing.assert_allclose(batch["inputs"][1, :, 4], np.cos(2 * np.pi * ahead / 24), atol=1e-5)
    np.testing.assert_allclose(batch["targets"][1, :, 0], scaled(columns["c"])[1 + LENGTH :][:HORIZON], atol=1e-5)
    about = dataset.metadata()
    assert about["channels"] == ["c"] and len(about["scaling"]["mean"]) == 1
    assert (about["covariates"]["past"], about["covariates"]["future"]) == (["a"], ["d"])
    assert "left out 'b' (of no role)" in dataset.reading
    other = write(tmp_path / "other.csv", {name: columns[name] for name in "dbca"})
    again = load(other, json.loads(json.dumps(about)), **roles)  # by name
    np.testing.assert_array_equal(first_of(again)["inputs"], batch["inputs"])
    with pytest.raises(InputError, match=r"few\.csv lacks 'd', which the run was trained on"):
        load(write(tmp_path / "few.csv", {name: columns[name] for name in "ca"}), about, **roles)


def test_all_but_covariates_are_targets_unless_some_are_named(tmp_path):
    config = write(tmp_path / "t.csv", make_columns())
    assert load(config).metadata()["channels"] == list("abcd")
    assert load(config, past_covariates=("b",), ignore=("d",)).metadata()["channels"] == ["a", "c"]


def test_a_table_without_names_has_roles_by_number(tmp_path):
    columns = make_columns()
    bare = write(tmp_path / "t.csv", columns)
    body = (tmp_path / "t.csv").read_text().split("\n", 1)[1]
    (tmp_path / "t.csv").write_text(body)
    dataset = load(bare, targets=("column 4",), past_covariates=("column 2",))
    np.testing.assert_allclose(first_of(dataset)["inputs"][0, :, 0], scaled(columns["c"])[:LENGTH], atol=1e-5)
    again = load(bare, dataset.metadata(), targets=("column 4",), past_covariates=("column 2",))
    np.testing.assert_array_equal(first_of(again)["inputs"], first_of(dataset)["inputs"])


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"targets": ("x",)}, r"has no column 'x' of data\.targets: .*known: a, b, c, d"),
        ({"ignore": ("a", "b", "c", "d")}, "has no column left to forecast"),
        ({"static": ("a",)}, r"data\.static names 'a', which changes within a series"),
        ({"targets": ("a",), "ignore": ("a",)}, r"data\.ignore names the column 'a', which data\.targets names too"),
        ({"calendar": ("hours",)}, r"data\.calendar=\('hours',\) has 'hours': did you mean 'hour'"),
        ({"calendar": ("hour",), "length": 3}, r"data\.length=3 is shorter than data\.horizon=4"),
    ],
)
def test_a_role_that_cannot_be_is_refused_by_name(tmp_path, keys, message):
    with pytest.raises(InputError, match=message):
        load(write(tmp_path / "t.csv", make_columns()), **keys)


def test_a_calendar_needs_times(tmp_path):
    (tmp_path / "t.csv").write_text("a,b\n" + "".join(f"{i / 9},{i % 7}\n" for i in range(90)))
    with pytest.raises(InputError, match=r"has no column of times, which data\.calendar=\('hour',\) needs"):
        load(Data(source="csv", file=str(tmp_path / "t.csv"), length=LENGTH, horizon=HORIZON), calendar=("hour",))


# Values that are missing.


def gappy(path, **keys):
    rng = np.random.default_rng(1)
    columns = {name: values for name, values in make_columns().items() if name in "ab"}
    missing = {("a", int(row)) for row in rng.choice(ROWS, 60, replace=False)} | {("b", row) for row in range(100, 125)}
    return columns, missing, load(write(path, columns, missing=missing), missing="mask", **keys)


def test_missing_values_are_0_beside_a_mask_and_targets_without_weight(tmp_path):
    columns, missing, dataset = gappy(tmp_path / "t.csv")
    values = np.stack([columns[name] for name in "ab"], axis=1)
    for column, row in missing:
        values[row, "ab".index(column)] = np.nan
    whole = np.stack([scaled(values[:, k]) for k in range(2)], axis=1)
    batch = first_of(dataset, size=400)
    starts = np.flatnonzero([not np.isnan(whole[s + LENGTH : s + LENGTH + HORIZON]).all() for s in range(140 - 11)])
    assert int((batch["weights"].reshape(400, -1) > 0).any(axis=1).sum()) == len(starts) == dataset.sizes["train"]
    for place, start in enumerate(starts[:120:17]):
        place *= 17
        rows, ahead = whole[start : start + LENGTH], whole[start + LENGTH : start + LENGTH + HORIZON]
        np.testing.assert_allclose(batch["inputs"][place, :, :2], np.nan_to_num(rows), atol=1e-5)
        np.testing.assert_array_equal(batch["inputs"][place, :, 2:], ~np.isnan(rows))
        np.testing.assert_allclose(batch["targets"][place], np.nan_to_num(ahead), atol=1e-5)
        np.testing.assert_allclose(batch["weights"][place], ~np.isnan(ahead) / ahead.size, atol=1e-7)


def test_metrics_are_means_over_what_is_there_whatever_the_batches(tmp_path):
    _, _, dataset = gappy(tmp_path / "t.csv")
    kind, rng = kind_of(dataset.task), np.random.default_rng(0)
    batches = list(dataset.evaluate("test", 7))
    guesses = [rng.normal(size=batch["targets"].shape).astype(np.float32) for batch in batches]
    sums = [
        kind.score(jnp.asarray(guess), jax.tree.map(jnp.asarray, batch))
        for guess, batch in zip(guesses, batches, strict=True)
    ]
    total = {name: sum(np.asarray(part[name], np.float64) for part in sums) for name in sums[0]}
    there = np.concatenate([batch["weights"] for batch in batches]) > 0
    error = (np.concatenate(guesses) - np.concatenate([batch["targets"] for batch in batches]))[there]
    assert total["mse"][0] / total["mse"][1] == pytest.approx(np.square(error).mean(), rel=1e-5)
    assert total["mae"][0] / total["mae"][1] == pytest.approx(np.abs(error).mean(), rel=1e-5)
    parts = [
        kind.error_sums(Model(), jnp.asarray(g), jax.tree.map(jnp.asarray, b))
        for g, b in zip(guesses, batches, strict=True)
    ]
    by = kind.error_parts(
        {name: sum(np.asarray(p[name], np.float64) for p in parts) for name in parts[0]}, dataset.metadata()
    )
    wrong = np.where(there, np.concatenate(guesses) - np.concatenate([b["targets"] for b in batches]), np.nan)
    np.testing.assert_allclose(by["by_channel"]["mse"], np.nanmean(wrong**2, axis=(0, 1)), rtol=1e-5)
    np.testing.assert_allclose(by["by_horizon"]["mae"], np.nanmean(np.abs(wrong), axis=(0, 2)), rtol=1e-5)


def test_baselines_carry_the_last_value_on_and_skip_what_is_missing(tmp_path):
    columns, missing, dataset = gappy(tmp_path / "t.csv")
    wrong = []
    for name in "ab":
        values = np.array([np.nan if (name, row) in missing else columns[name][row] for row in range(ROWS)])
        whole = scaled(values)
        last = whole[np.maximum.accumulate(np.where(np.isnan(whole), -1, np.arange(ROWS)))]
        wrong += [
            whole[row] - last[start - 1]
            for start in range(160, ROWS - HORIZON + 1)
            for row in range(start, start + HORIZON)
        ]
    found = dataset.baselines("test")
    assert found["repeat last"]["mse"] == pytest.approx(np.nanmean(np.square(wrong)), rel=1e-4)
    assert 0 < found["ridge"]["mse"] < found["repeat last"]["mse"]


def test_a_table_without_gaps_scores_alike_with_and_without_a_mask(tmp_path):
    config = write(tmp_path / "t.csv", make_columns())
    plain, masked = (first_of(load(config, missing=choice), "test", 16) for choice in ("refuse", "mask"))
    guess = jnp.asarray(np.random.default_rng(0).normal(size=plain["targets"].shape), jnp.float32)
    kind = kind_of(load(config).task)
    for name, (total, weight) in kind.score(guess, jax.tree.map(jnp.asarray, plain)).items():
        other = kind.score(guess, jax.tree.map(jnp.asarray, masked))[name]
        assert total / weight == pytest.approx(float(other[0] / other[1]), rel=1e-5)


def test_a_run_without_a_mask_refuses_missing_values(tmp_path):
    config = write(tmp_path / "t.csv", make_columns())
    known = load(config).metadata()
    other = write(tmp_path / "other.csv", make_columns(), missing={("a", 3)})
    with pytest.raises(InputError, match=r"line 5 column 2 holds ''.*or train with data\.missing='mask'"):
        load(other, known)
    with pytest.raises(InputError, match=r"has masked True, the run was trained with False"):
        load(other, known, missing="mask")
    columns = {"a": make_columns()["a"], "b": make_columns()["b"]}
    with pytest.raises(InputError, match="the column 'b' has no value in the training rows"):
        load(write(tmp_path / "none.csv", columns, missing={("b", row) for row in range(140)}), missing="mask")


# Several series.


def test_windows_never_cross_a_series(tmp_path):
    first, second = make_columns(120), make_columns(70)
    ids = ["x"] * 120 + ["y"] * 70
    joined = {name: np.concatenate([first[name], second[name] + 100]) for name in "ab"}
    config = write(tmp_path / "t.csv", {"a": joined["a"], "b": joined["b"]}, extra={"id": ids})
    dataset = load(config, series_id="id", gaps="ignore")
    assert [dataset.sizes[split] for split in ("train", "validation", "test", "whole")] == [
        84 - 11 + 49 - 11,
        (12 - 3) + (7 - 3),
        (24 - 3) + (14 - 3),
        120 - 11 + 70 - 11,
    ]
    about = dataset.metadata()["scaling"]
    for split in ("train", "validation", "test", "whole"):
        batch = first_of(dataset, split, 500)
        rows = np.concatenate([batch["inputs"], batch["targets"]], axis=1)[batch["weights"] > 0]
        level = rows[..., 1] * about["deviation"][1] + about["mean"][1]
        assert ((level > 60).all(axis=1) | (level < 60).all(axis=1)).all()
    drawn = next(dataset.train(dataset.sizes["train"], seed=0))["inputs"][:, 0, 0]
    np.testing.assert_array_equal(
        np.sort(drawn), np.sort(first_of(dataset, size=dataset.sizes["train"])["inputs"][:, 0, 0])
    )


def test_files_are_series_and_a_pattern_names_them(tmp_path):
    one, two = make_columns(120), make_columns(70)
    write(tmp_path / "p1.csv", one)
    write(tmp_path / "p2.csv", {name: two[name] for name in "dcab"})
    configs = [
        Data(source="csv", file=text, length=LENGTH, horizon=HORIZON)
        for text in (f"{tmp_path}/p*.csv", f"{tmp_path}/p1.csv, {tmp_path}/p2.csv")
    ]
    batches = [first_of(load(config), "whole", 300) for config in configs]
    np.testing.assert_array_equal(batches[0]["inputs"], batches[1]["inputs"])
    about = load(configs[0]).metadata()
    second = about["scaling"]["mean"][0] + about["scaling"]["deviation"][0] * batches[0]["inputs"][120 - 11, :, 0]
    np.testing.assert_allclose(second, two["a"][:LENGTH], atol=1e-3)
    with pytest.raises(InputError, match=r"data\.file='.*q\*\.csv' matches no file"):
        load(dataclasses.replace(configs[0], file=f"{tmp_path}/q*.csv"))
    with pytest.raises(InputError, match=r"data\.period=24 is of one series, found 2: use data\.calendar"):
        load(configs[0], period=24)


# What a model makes of them.

EVERYTHING = {"targets": ("a", "b"), "past_covariates": ("c",), "future_covariates": ("d",), "calendar": ("hour",)}


def test_a_task_with_masks_and_covariates_keeps_the_laws(tmp_path):
    missing = {("a", row) for row in range(3, ROWS, 5)} | {("d", row) for row in range(0, ROWS, 9)}
    check_task(load(write(tmp_path / "t.csv", make_columns(), missing=missing), missing="mask", **EVERYTHING))


def test_channels_that_run_apart_each_read_their_own_mask_and_all_covariates(tmp_path):
    missing = {("a", row) for row in range(3, ROWS, 5)}
    dataset = load(write(tmp_path / "t.csv", make_columns(), missing=missing), missing="mask", **EVERYTHING)
    inputs = jnp.asarray(first_of(dataset)["inputs"])
    config = Model(pattern=("selective",), d_model=4, d_state=4, linear_skip=3, channel_independent=True)
    model = SequenceModel(config.of_task(dataset.task))
    params = model.init(jax.random.key(0), inputs)["params"]
    outputs = model.apply({"params": params}, inputs)[0]
    swapped = model.apply({"params": params}, inputs[..., jnp.array([1, 0, 3, 2, *range(4, inputs.shape[-1])])])[0]
    np.testing.assert_allclose(swapped[..., ::-1], outputs, atol=1e-5)
    for other in (2, 4, inputs.shape[-1] - 1):  # the mask of a, a past covariate, the calendar
        changed = model.apply({"params": params}, inputs.at[..., other].add(-0.5))[0] - outputs
        assert (np.abs(changed).max(axis=(0, 1)) > 0).tolist() == [True, other != 2]


def test_a_forecast_follows_what_is_known_of_its_own_rows_alone(tmp_path):
    dataset = load(write(tmp_path / "t.csv", make_columns()), **EVERYTHING)
    batch = jax.tree.map(jnp.asarray, first_of(dataset))
    model = SequenceModel(Model(pattern=("selective",), d_model=4, d_state=4).of_task(dataset.task))
    params = model.init(jax.random.key(0), batch["inputs"])["params"]
    kernel = params["head"]["known_kernel"]
    params = params | {"head": params["head"] | {"known_kernel": kernel.at[0, 0].set(1.0)}}
    plain = model.apply({"params": params | {"head": params["head"] | {"known_kernel": kernel}}}, batch["inputs"])[0]
    change = model.apply({"params": params}, batch["inputs"])[0] - plain
    scale = np.sqrt(np.asarray(batch["inputs"])[..., 0].var(axis=1) + 1e-5)[:, None]
    np.testing.assert_allclose(change[..., 0], batch["inputs"][:, -HORIZON:, 3] * scale, atol=1e-5)
    np.testing.assert_allclose(change[..., 1], 0, atol=1e-6)


def test_micro_batches_and_pieces_keep_the_weight_of_every_target(tmp_path):
    # rows of one micro-batch have many more targets than those of the other
    missing = {("a", row) for row in range(60, 190) if row % 13} | {("b", row) for row in range(60, 190) if row % 7}
    dataset = load(write(tmp_path / "t.csv", make_columns(), missing=missing), missing="mask", targets=("a", "b"))
    batch = jax.tree.map(jnp.asarray, dataset.draw(0, np.arange(8)))
    assert float(batch["weights"][:4].sum()) != float(batch["weights"][4:].sum())
    found = []
    for accumulate, piece in ((1, 0), (2, 0), (2, 4)):
        experiment = Experiment(
            data=Data(source="etth1", length=LENGTH, horizon=HORIZON, batch_size=8),
            model=Model(pattern=("selective",), d_model=4, d_state=4),
            optimizer=Optimizer(accumulate=accumulate, warmup_steps=0),
            training=Training(piece=piece, steps=3),
        )
        model = SequenceModel(experiment.model.of_task(dataset.task))
        tx = optimizer.build(experiment)
        state = initial(experiment, model, tx, batch)
        sums = jax.jit(partial(train_step, model=model, optimizer=tx, experiment=experiment))(state, batch)[1]
        found.append({name: float(sums[name][0] / sums[name][1]) for name in ("mse", "mae", "gradient_norm")})
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-4)
