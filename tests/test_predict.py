"""What a trained run answers is what its model says, in the user's units: whole, step by step, and from files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.io import wavfile

import runs
import selssm_jax
import small_runs
from selssm_jax import data
from selssm_jax.config import Data
from selssm_jax.data import times
from selssm_jax.errors import InputError
from selssm_jax.intervals import Intervals
from selssm_jax.predict import load
from selssm_jax.prediction_files import predict_files, save_lines
from selssm_jax.runs import open_run
from small_runs import WORDS, write_files, write_untrained


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs "text", "csv" and "npz" on files of one's own, and "cycle" on the table less its cycle."""
    folder = tmp_path_factory.mktemp("predict")
    configs = write_files(folder)
    rng = np.random.default_rng(0)
    hours = np.arange("2020-02-28T00", 200, dtype="datetime64[h]")
    rows = [f"{hour},{20 + np.sin(row / 4) + rng.normal():.4f},{row % 7}" for row, hour in enumerate(hours)]
    (folder / "hours.csv").write_text("\n".join(["when,warm,seventh", *rows]) + "\n")
    table = Data(source="csv", file=str(folder / "hours.csv"), batch_size=4, length=16, horizon=8)
    configs |= {"hours": table, "cycle": Data(**(vars(table) | {"period": 7}))}
    for name, config in configs.items():
        write_untrained(folder / name, config)
    return folder


@pytest.fixture(scope="module")
def trained(folder):
    return {name: load(folder / name) for name in ("text", "npz", "hours", "cycle")}


def last_window(folder, name="hours"):
    """(rows of the table in its units, the model's outputs for its last window, mean and deviation of training)."""
    run = open_run(folder / name)
    rows = np.loadtxt(folder / "hours.csv", delimiter=",", skiprows=1, usecols=(1, 2))
    scaling = run.dataset.info["scaling"]
    mean, deviation = np.array(scaling["mean"]), np.array(scaling["deviation"])
    cycle = np.array(scaling.get("cycle", [[0.0, 0.0]]))
    scaled = (rows[-16:] - mean) / deviation - cycle[(len(rows) - 16 + np.arange(16)) % len(cycle)]
    outputs, _ = run.model.apply({"params": run.params}, jnp.asarray(scaled[None], jnp.float32))
    ahead = cycle[(len(rows) + np.arange(8)) % len(cycle)]
    return rows, (np.asarray(outputs, np.float64)[0] + ahead) * deviation + mean


@pytest.mark.parametrize("name", ["hours", "cycle"])
def test_a_forecast_is_the_models_in_own_units_and_its_file_goes_on_in_time(folder, trained, name):
    rows, expected = last_window(folder, name)
    forecast = trained[name].predict(rows, first_row=0)
    np.testing.assert_allclose(forecast.values, expected, rtol=1e-6, atol=1e-8)
    assert forecast.channels == ("warm", "seventh")
    header, *lines = predict_files(trained[name], [str(folder / "hours.csv")])
    assert header == "when,warm,seventh"
    assert [line.split(",")[0] for line in lines][:2] == ["2020-03-07 08:00", "2020-03-07 09:00"]
    np.testing.assert_allclose(
        [[float(cell) for cell in line.split(",")[1:]] for line in lines], expected, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize(("begin", "offset"), [("00:00+02:00", "+02:00"), ("01:00+03:00", "+00:00")])
def test_the_times_of_a_forecast_have_the_offset_of_its_table(folder, trained, tmp_path, begin, offset):
    head, *rows = (folder / "hours.csv").read_text().splitlines()
    rows = [f"{row[:13]}:00+02:00{row[13:]}" for row in rows]
    rows[0] = rows[0].replace("00:00+02:00", begin)  # the same time, in another offset or not
    (tmp_path / "zoned.csv").write_text("\n".join([head, *rows]) + "\n")
    line = list(predict_files(trained["hours"], [str(tmp_path / "zoned.csv")]))[1]
    assert line.startswith({"+02:00": "2020-03-07 08:00+02:00,", "+00:00": "2020-03-07 06:00+00:00,"}[offset])


def test_columns_are_found_by_name_and_others_refused(folder, trained, tmp_path):
    rows = (folder / "hours.csv").read_text().splitlines()
    swapped = tmp_path / "swapped.csv"
    swapped.write_text("\n".join(",".join((a, c, b)) for a, b, c in (row.split(",") for row in rows)))
    assert list(predict_files(trained["hours"], [str(swapped)])) == list(
        predict_files(trained["hours"], [str(folder / "hours.csv")])
    )
    other = tmp_path / "other.csv"
    other.write_text("\n".join(["when,warm,eighth", *rows[1:]]))
    with pytest.raises(InputError, match="lacks 'seventh'"):
        list(predict_files(trained["hours"], [str(other)]))
    short = tmp_path / "short.csv"
    short.write_text("\n".join(rows[:12]))
    with pytest.raises(InputError, match=r"short.csv: inputs have 11 rows, but a forecast reads 16"):
        list(predict_files(trained["hours"], [str(short)]))


def test_reading_on_is_reading_all(folder, trained):
    rows, _ = last_window(folder)
    window, state = trained["hours"].read(rows[:16])
    later, again = trained["hours"].step(rows[16], state)
    whole, _ = trained["hours"].read(rows[16:20], state)
    for row in rows[17:20]:
        later, again = trained["hours"].step(row, again)
    np.testing.assert_allclose(later.values, whole.values, rtol=1e-5)
    assert later.values.shape == window.values.shape == (8, 2)


def test_a_cycle_asks_which_row_is_the_first(folder, trained):
    rows, _ = last_window(folder)
    with pytest.raises(ValueError, match="give first_row"):
        trained["cycle"].predict(rows)
    shifted = trained["cycle"].predict(rows[3:], first_row=3)
    np.testing.assert_array_equal(shifted.values, trained["cycle"].predict(rows, first_row=0).values)


def test_clips_are_named_as_evaluation_names_them(folder, trained):
    run = open_run(folder / "npz")
    batch = next(iter(run.dataset.evaluate("train", 6)))
    logits, _ = run.model.apply({"params": run.params}, jnp.asarray(batch["inputs"]), valid=jnp.asarray(batch["valid"]))
    arrays = dict(np.load(folder / "npz" / ".." / "signals.npz"))
    rows = np.flatnonzero(data.signals.split("", arrays, 30) == 0)[:6]
    answer = trained["npz"].predict(list(arrays["signal"][rows]))
    np.testing.assert_allclose(answer.probabilities, jax.nn.softmax(logits), rtol=1e-5)
    assert answer.label == [answer.classes[index] for index in np.argmax(logits, axis=1)]
    assert trained["npz"].predict(arrays["signal"][rows[0]]).label == answer.label[0]
    begun, state = trained["npz"].read(arrays["signal"][rows[0]][:30])
    for sample in arrays["signal"][rows[0]][30:]:
        begun, state = trained["npz"].step(sample, state)
    np.testing.assert_allclose(begun.probabilities, answer.probabilities[0], rtol=1e-4)
    scores = trained["npz"].score(list(arrays["signal"][rows]), arrays["label"][rows])
    assert scores["accuracy"] == np.mean(np.argmax(logits, axis=1) == arrays["label"][rows])


def test_files_of_signals_need_no_labels(folder, trained, tmp_path):
    signal = np.load(folder / "signals.npz")["signal"]
    np.savez(tmp_path / "bare.npz", signal=signal)
    header, *lines = predict_files(trained["npz"], [str(tmp_path / "bare.npz")])
    assert header == "clip,label,p(0),p(1)" and len(lines) == 30
    answer = trained["npz"].predict(list(signal[:4]))
    assert [line.split(",")[1] for line in lines[:4]] == answer.label
    wavfile.write(
        tmp_path / "a.wav", 8000, np.round(signal[0, :, 0] * 2**15).clip(-(2**15), 2**15 - 1).astype(np.int16)
    )
    _, line = predict_files(trained["npz"], [str(tmp_path / "a.wav")])
    np.testing.assert_allclose(float(line.split(",")[2]), answer.probabilities[0, 0], atol=1e-3)
    wavfile.write(tmp_path / "stereo.wav", 8000, np.zeros((40, 2), np.int16))
    with pytest.raises(InputError, match=r"stereo.wav: .*expected real numbers of shape \(T, 1\)"):
        list(predict_files(trained["npz"], [str(tmp_path / "stereo.wav")]))


def test_nats_of_a_text_are_those_of_evaluation(folder, trained, tmp_path):
    run, text = open_run(folder / "text"), WORDS[:2500]
    tokens = run.dataset.encode(text)
    logits, _ = run.model.apply({"params": run.params}, jnp.asarray(tokens[None]))
    expected = -np.take_along_axis(np.asarray(jax.nn.log_softmax(logits))[0, :-1], tokens[1:, None], axis=1)[:, 0]
    score = trained["text"].score(text)
    np.testing.assert_allclose(score.nats, expected, atol=2e-5)
    assert "".join(score.tokens) == text[1:] and np.isclose(score.total, expected.sum(), rtol=1e-5)
    (tmp_path / "some.txt").write_text(text)
    *lines, last = map(json.loads, predict_files(trained["text"], [str(tmp_path / "some.txt")]))
    np.testing.assert_allclose([line["nats"] for line in lines], expected, atol=2e-5)
    assert last["tokens"] == len(lines) and np.isclose(last["nats"], expected.sum(), rtol=1e-5)


def test_streams_of_tokens_are_the_text(trained):
    model = trained["text"]
    whole = model.predict("the past")
    answer, state = model.read("the pa")
    for token in model.dataset.encode("st"):
        answer, state = model.step(token, state)
    np.testing.assert_allclose(answer.probabilities, whole.probabilities, atol=1e-6)
    both, states = model.read(["the past", "a"])
    for index, text in enumerate(("the past", "a")):
        alone = model.step(3, model.read(text)[1])[0].probabilities
        np.testing.assert_allclose(model.step(np.array([3, 3]), states)[0].probabilities[index], alone, atol=1e-6)
    with pytest.raises(ValueError, match="several lengths"):
        model.read(["the", "a"], states)
    np.testing.assert_allclose(both.probabilities[0], whole.probabilities, atol=1e-6)
    with pytest.raises(ValueError, match="a step reads a token, a whole number: `read` takes text"):
        model.step("a", model.initial_state())
    answer, _ = model.step(np.array([2, 3]), model.initial_state(2))
    assert answer.probabilities.shape == (2, len(model.dataset.vocabulary))
    assert model.states("the past")["block_0"].shape == (8, 6)
    np.testing.assert_allclose(model.embed(["the past", "a"])[1], model.embed("a"), atol=1e-6)
    assert len(model.generate(["the ", "a"], 5)) == 2


def test_texts_are_written_with_scores_and_go_on_from_states(trained):
    model = trained["text"]
    (written,) = model.generate("the past", 6, details=True, seed=3)
    assert model.generate("the past", 6, seed=3) == "the past" + written.text and len(written.tokens) == 6
    score = model.score("the past" + written.text)
    np.testing.assert_allclose(written.log_probs, -score.nats[-6:], atol=1e-5)
    # what comes from a string that ends a text on is neither scored nor remembered
    end = written.text[3:5]
    (cut,) = model.generate("the past", 6, details=True, seed=3, stop=[end])
    assert cut.text == written.text[: written.text.index(end)] == "".join(cut.tokens)
    _, state = model.read("the past" + cut.text)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), cut.state, state)
    (after,) = model.generate(" and", 5, details=True, temperature=0.0, state=cut.state)
    (whole,) = model.generate("the past" + cut.text + " and", 5, details=True, temperature=0.0)
    assert (after.prompt, after.text) == (" and", whole.text)
    np.testing.assert_allclose(after.log_probs, whole.log_probs, atol=1e-5)
    nested = model.generate(["the ", "a"], 5, answers=3)
    assert [len(row) for row in nested] == [3, 3] and all(text.startswith("a") for text in nested[1])
    assert model.generate("a", 5, answers=2)[0].startswith("a")


@pytest.mark.parametrize(
    ("name", "inputs", "said"),
    [
        ("text", np.array([0.5, 1.0]), "expected a text or tokens"),
        ("text", np.array([0, 999]), "not from 0 to"),
        ("text", [], "at least one text"),
        ("text", "", "inputs are empty: give at least one text"),
        ("text", ["a", ""], r"inputs\[1\] is empty"),
        ("hours", [], "inputs are empty: give at least one row of the columns warm, seventh"),
        ("npz", [], "inputs are empty: give at least one signal"),
        ("hours", np.zeros((16, 3)), r"expected \(T, 2\)"),
        ("hours", np.full((16, 2), np.nan), "not finite"),
        ("hours", np.array([["a", "b"]] * 16), "expected real numbers"),
        ("npz", np.zeros((4, 4, 4, 4)), r"expected real numbers of shape \(T, 1\)"),
        ("npz", np.full(40, np.inf), "not finite"),
    ],
)
def test_what_cannot_be_read_is_said(trained, name, inputs, said):
    for method in ("predict", "states", "embed", *(["score"] if name == "text" else [])):
        with pytest.raises(ValueError, match=said):
            getattr(trained[name], method)(inputs)


def test_mistakes_are_said_of_arguments_in_python_and_of_flags_by_a_command(folder, trained, tmp_path, capsys):
    model, argv = trained["text"], ["eval.py", f"--workdir={folder / 'text'}"]
    for given, flags, said in (
        ({"prompt": ""}, ["--generate="], ("prompt", "generate", "='' holds no token to begin with")),
        ({"tokens": 0}, ["--generate=a", "--tokens=0"], ("tokens", "tokens", "=0 must be at least 1")),
        ({"stop": [""]}, ["--generate=a", "--stop="], ("stop", "stop", " is empty")),
        ({"top_p": 2.0}, ["--generate=a", "--top_p=2"], ("top_p", "top_p", "=2.0 must be above 0")),
        ({"answers": 0}, ["--generate=a", "--answers=0"], ("answers", "answers", "=0 must be at least 1")),
    ):
        argument, flag, reason = said
        with pytest.raises(InputError, match=f"^{argument}{reason}"):
            model.generate(**{"prompt": "a", **given})
        assert runs.command(*argv, *flags) == 2 and capsys.readouterr().err.startswith(f"error: --{flag}{reason}")
    with pytest.raises(InputError, match=r"^prompt is empty"):
        model.generate([])
    with pytest.raises(InputError, match=r"^run_folder=.*absent does not exist"):
        load(tmp_path / "absent")
    with pytest.raises(InputError, match=r"^names: 2 files"):
        predict_files(model, ["a.txt", "b.txt"])
    with pytest.raises(InputError, match=r"^split='tset' is not a split"):
        open_run(folder / "text", split="tset")


def test_the_command_prints_or_writes_and_overwrites_nothing(folder, tmp_path, capsys):
    arguments = ["--workdir", str(folder / "hours"), "--predict", str(folder / "hours.csv")]
    assert runs.command("eval.py", *arguments) == 0
    printed = capsys.readouterr().out
    output = tmp_path / "ahead.csv"
    assert runs.command("eval.py", *arguments, f"--output={output}") == 0
    assert output.read_text() == printed and len(printed.splitlines()) == 9
    capsys.readouterr()
    assert runs.command("eval.py", *arguments, f"--output={output}") == 2
    assert "exists already" in capsys.readouterr().err
    # said before a run is opened, here one that is none
    (tmp_path / "none").mkdir()
    for place, said in ((output, "exists already"), (tmp_path / "absent" / "a.csv", "cannot be written (No such file")):
        assert runs.command("eval.py", f"--workdir={tmp_path / 'none'}", *arguments[2:], f"--output={place}") == 2
        assert capsys.readouterr().err.startswith(f"error: --output={place} {said}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ahead.csv", "none"]
    assert runs.command("eval.py", "--workdir", str(folder / "hours"), f"--output={output}") == 2
    assert "--predict" in capsys.readouterr().err


def test_what_fails_leaves_no_file(tmp_path):
    def lines():
        yield "a"
        raise InputError("no")

    with pytest.raises(InputError, match="no"):
        save_lines(lines(), str(tmp_path / "out.csv"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("dates", "following"),
    [
        (["2020-01-31", "2020-02-29", "2020-03-31"], ["2020-04-30", "2020-05-31"]),
        (["2019-11-15", "2019-12-15", "2020-01-15"], ["2020-02-15", "2020-03-15"]),
        (["2020-01-01", "2020-04-01", "2020-07-01"], ["2020-10-01", "2021-01-01"]),
        (["2020-01-02", "2020-01-03", "2020-01-06"], ["2020-01-07", "2020-01-08"]),
        (
            ["2020-01-09", "2020-01-10", "2020-01-13", "2020-01-14", "2020-01-15", "2020-01-16", "2020-01-17"],
            ["2020-01-20", "2020-01-21"],
        ),
        (["2020-02-27", "2020-02-28"], ["2020-02-29", "2020-03-01"]),
        (["2019-02-28", "2020-02-29", "2021-02-28"], ["2022-02-28", "2023-02-28"]),
        (["2023-01-30", "2023-02-28", "2023-03-30", "2023-04-30", "2023-05-30"], ["2023-06-30", "2023-07-30"]),
        (["2022-12-29", "2023-01-29", "2023-02-28"], ["2023-03-29", "2023-04-29"]),
        (["2023-01-30", "2023-02-28"], ["2023-03-30", "2023-04-30"]),
    ],
)
def test_times_go_on_as_they_go(dates, following):
    moments = np.array(dates, "datetime64[us]").astype(np.int64)
    ahead = times.continue_times(moments, 2, "date")
    assert [times.format_time(float(moment), "date")[:10] for moment in ahead] == following


def test_numbers_go_on_by_their_step():
    np.testing.assert_allclose(times.continue_times(np.array([0.0, 0.5, 1.0]), 2, "time"), [1.5, 2.0])
    with pytest.raises(ValueError, match="at least two"):
        times.continue_times(np.array([1.0]), 2, "time")


def test_the_front_door_loads_a_run(folder):
    assert isinstance(selssm_jax.load(folder / "text"), selssm_jax.TrainedModel)


# Tables with covariates, missing values and several series.

ROLES = {"targets": ("load",), "past_covariates": ("wind",), "future_covariates": ("price",), "calendar": ("hour",)}
TABLES = {
    "covariates": ROLES,
    "calendar": {"ignore": ("wind", "price"), "calendar": ("hour", "weekday")},
    "masked": ROLES | {"missing": "mask"},
    "panel": {"series_id": "shop", "targets": ("load",), "past_covariates": ("wind",), "missing": "mask"},
}


def write_hours(path, name, *, rows, hidden=0, columns=("load", "wind", "price")):
    """Hours of three columns, of a panel those of two shops one after the other; the last `hidden` rows hold the price
    alone.
    """
    rng = np.random.default_rng(3)
    lines = [",".join(["when", *columns, *(["shop"] if name == "panel" else [])])]
    for shop, count in (("north", rows), ("south", rows - 30)) if name == "panel" else (("", rows),):
        values = np.round(5 + rng.normal(size=(200, 3)).cumsum(axis=0), 4)
        for row, hour in enumerate(np.arange("2024-02-28T00", count, dtype="datetime64[h]")):
            cells = dict(zip(("load", "wind", "price"), map(str, values[row]), strict=True))
            if row >= count - hidden:
                cells |= {"load": "", "wind": ""}
            elif name in ("masked", "panel") and row % 11 == 5:
                cells["load"] = ""
            lines.append(",".join([str(hour), *(cells[column] for column in columns), *([shop] if shop else [])]))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@pytest.fixture(scope="module", params=TABLES)
def covariate_run(request, tmp_path_factory):
    """(kind, folder) of a run on a table of hours."""
    folder = tmp_path_factory.mktemp("covariates")
    file = write_hours(folder / "hours.csv", request.param, rows=150)
    write_untrained(
        folder / "run", Data(source="csv", file=file, batch_size=4, length=16, horizon=6, **TABLES[request.param])
    )
    return request.param, folder


def test_a_forecast_with_covariates_is_that_of_the_window_in_training(covariate_run):
    """The window before rows that are hidden is read as evaluation reads it, where nothing is hidden."""
    name, folder = covariate_run
    whole = write_hours(folder / "whole.csv", name, rows=156)
    run = open_run(folder / "run", file=whole)
    batches = list(run.dataset.evaluate("whole", 64))
    inputs = np.concatenate([batch["inputs"] for batch in batches])[: run.dataset.sizes["whole"]]
    places = [134, 134 + 1 + 104] if name == "panel" else [134]
    outputs, _ = run.model.apply({"params": run.params}, jnp.asarray(inputs[places]))
    scaling = run.dataset.info["scaling"]
    expected = np.asarray(outputs, np.float64) * scaling["deviation"] + scaling["mean"]
    ahead = 6 if name in ("covariates", "masked") else 0
    told = write_hours(folder / "told.csv", name, rows=150 + ahead, hidden=ahead)
    header, *lines = predict_files(load(folder / "run"), [told])
    cells = [line.split(",") for line in lines]
    assert header == ("when,shop,load" if name == "panel" else "when,load")
    assert [row[0] for row in cells[:2]] == ["2024-03-05 06:00", "2024-03-05 07:00"]
    np.testing.assert_allclose([float(row[-1]) for row in cells], expected.reshape(-1), rtol=1e-6)
    if name == "panel":
        assert [row[1] for row in cells] == ["north"] * 6 + ["south"] * 6 and cells[6][0] == "2024-03-04 00:00"


@pytest.mark.parametrize("covariate_run", ["covariates"], indirect=True)
def test_what_a_forecast_with_covariates_lacks_is_named(covariate_run):
    _, folder = covariate_run
    trained = load(folder / "run")
    file = write_hours(folder / "few.csv", "covariates", rows=153, hidden=3)
    with pytest.raises(InputError, match=r"few\.csv: 3 rows follow .* 'load', but a forecast reads 'price' of 6: add"):
        list(predict_files(trained, [file]))
    hole = write_hours(folder / "hole.csv", "covariates", rows=156, hidden=6)
    cells = [line.split(",") for line in (folder / "hole.csv").read_text().splitlines()]
    cells[-2][3] = ""
    (folder / "hole.csv").write_text("\n".join(map(",".join, cells)) + "\n")
    with pytest.raises(InputError, match=r"hole\.csv: inputs hold numbers of 'price' that are not finite"):
        list(predict_files(trained, [hole]))
    assert trained.columns == ("load", "wind", "price") and trained.channels == ("load",)
    window, hours = np.ones((22, 3)), np.arange("2024-03-01T00", 22, dtype="datetime64[h]")
    with pytest.raises(ValueError, match="reads hour of every row, and moments has 0 times: give 22"):
        trained.predict(window)
    _, state = trained.read(window, moments=hours)
    with pytest.raises(ValueError, match="known of the rows to be forecast, which a state does not hold"):
        trained.step(window[0], state)
    assert trained.predict(window, moments=hours).values.shape == (6, 1)
    with pytest.raises(ValueError, match=r"15 rows besides 6 that follow, but a forecast reads 16"):
        trained.predict(window[:21], moments=hours[:21])


@pytest.mark.parametrize("covariate_run", ["covariates"], indirect=True)
def test_rows_behind_those_that_are_forecast_are_said(covariate_run, capsys):
    _, folder = covariate_run
    trained = load(folder / "run")
    expected = list(predict_files(trained, [write_hours(folder / "six.csv", "covariates", rows=156, hidden=6)]))
    assert "not read" not in capsys.readouterr().err
    nine = write_hours(folder / "nine.csv", "covariates", rows=159, hidden=9)
    assert list(predict_files(trained, [nine])) == expected
    assert "only the 6 rows after the last value are forecast: 3 more" in capsys.readouterr().err


@pytest.mark.parametrize("covariate_run", ["panel"], indirect=True)
def test_series_that_are_too_short_are_left_out_and_said(covariate_run, capsys):
    _, folder = covariate_run
    file = write_hours(folder / "short.csv", "panel", rows=45)
    _, *lines = predict_files(load(folder / "run"), [file])
    assert {line.split(",")[1] for line in lines} == {"north"}
    assert "series left out for fewer than 16 rows: 1, the first 'south'" in capsys.readouterr().err
    write_hours(folder / "short.csv", "panel", rows=40)
    lines = (folder / "short.csv").read_text().splitlines()
    (folder / "short.csv").write_text("\n".join([*lines[:11], *lines[-10:]]) + "\n")
    with pytest.raises(InputError, match="no series has 16 rows"):
        list(predict_files(load(folder / "run"), [file]))


@pytest.mark.parametrize("covariate_run", ["masked"], indirect=True)
def test_intervals_are_scaled_by_the_values_that_are_there(covariate_run):
    _, folder = covariate_run
    trained = load(folder / "run")
    window = np.random.default_rng(0).normal(size=(22, 3)) + 5
    window[3:9, 0] = np.nan
    hours = np.arange("2024-03-01T00", 22, dtype="datetime64[h]")
    trained.intervals = Intervals(3, {0.8: np.full((6, 1), 2.0)})
    forecast = trained.predict(window, moments=hours)
    low, high = forecast.intervals[0.8]
    np.testing.assert_allclose(high - low, 4 * np.nanstd(window[:16, 0]) * np.ones((6, 1)), rtol=1e-4)
    score = trained.score(window, np.where(np.arange(6) < 3, np.nan, forecast.values[:, 0] + 2)[:, None], moments=hours)
    assert score["mse"] == pytest.approx(4) and score["mae"] == pytest.approx(2)


# Three tables as users have them, from file to forecast.


def rates(first, count):
    """Working days and a rate, without a line of names."""
    days = np.busday_offset(np.datetime64(first), np.arange(count), roll="forward")
    return [f"{day},{1.1 + 0.01 * np.sin(row / 3):.4f},{0.9 + row % 5 / 100:.4f}" for row, day in enumerate(days)]


def test_daily_rates_without_a_header_go_on_with_the_next_working_days(tmp_path):
    (tmp_path / "rates.csv").write_text("\n".join(rates("2023-01-02", 200)) + "\n")
    write_untrained(
        tmp_path / "run", Data(source="csv", file=str(tmp_path / "rates.csv"), batch_size=4, length=16, horizon=8)
    )
    header, *lines = predict_files(load(tmp_path / "run"), [str(tmp_path / "rates.csv")])
    assert header == "column 1,column 2,column 3"
    assert [line.split(",")[0] for line in lines[:3]] == ["2023-10-09", "2023-10-10", "2023-10-11"]
    swapped = [",".join((day, b, a)) for day, a, b in (row.split(",") for row in rates("2023-01-02", 200))]
    named = "\n".join(["day,dollar,pound", *swapped])
    (tmp_path / "named.csv").write_text(named + "\n")  # columns of the run have no names: by place, which is said
    assert next(predict_files(load(tmp_path / "run"), [str(tmp_path / "named.csv")])) == "day,column 2,column 3"


def test_a_table_with_gaps_and_a_comma_in_its_header_is_refused_by_name_or_read_as_is_asked(tmp_path):
    rows = [f"2024-01-{1 + row // 24:02}T{row % 24:02};{20 + row % 7},{row % 10}" for row in range(240)]
    rows = [row for number, row in enumerate(rows) if number not in (50, 51, 130)]
    (tmp_path / "t.csv").write_text("\n".join(["time;load, in kW", *rows]) + "\n")
    config = Data(source="csv", file=str(tmp_path / "t.csv"), batch_size=4, length=16, horizon=8)
    with pytest.raises(InputError, match=r"t\.csv: 2024-01-03 01:00 is followed by 2024-01-03 04:00"):
        data.load(config)
    write_untrained(tmp_path / "run", Data(**(vars(config) | {"gaps": "fill", "missing": "mask"})))
    header, first, *_ = predict_files(load(tmp_path / "run"), [str(tmp_path / "t.csv")])
    assert header == 'time,"load, in kW"' and first.split(",")[0] == "2024-01-11 00:00"


def test_a_run_that_reads_frames_goes_on_by_whole_frames(files, tmp_path):
    """Zeros would fill up the rest of a frame, and the forecast would be of them."""
    data = dataclasses.replace(files["csv"], length=8, horizon=2)
    small_runs.write_untrained(tmp_path / "run", data, frame=4, stride=4)
    trained = load(tmp_path / "run")
    rows = np.random.default_rng(0).standard_normal((16, 2))
    _, state = trained.read(rows[:8])
    with pytest.raises(ValueError, match="the run reads 4 at a time"):
        trained.step(rows[8], state)
    with pytest.raises(ValueError, match="have 6 steps"):
        trained.read(rows[8:14], state)
    at_once, _ = trained.read(rows[8:], state)
    _, between = trained.read(rows[8:12], state)
    np.testing.assert_allclose(trained.read(rows[12:], between)[0].values, at_once.values, rtol=1e-5, atol=1e-5)
