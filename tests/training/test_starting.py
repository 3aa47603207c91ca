"""Runs that begin with the parameters of another: what they take over, how they go on, and what is refused."""

import dataclasses
import shutil

import jax
import numpy as np
import pytest

import runs
from selssm_jax.compression import weights
from selssm_jax.errors import InputError
from selssm_jax.training import checkpoint, loop, starting

TRAINED = "the state of a gate is a memory of what was read. " * 40
TUNED = "a gate reads the state. " * 60  # of fewer characters
STEPS = {"training__steps": 4, "training__eval_every": 2, "training__checkpoint_every": 2, "optimizer__warmup_steps": 1}


def experiment(file, **changes):
    text = {"data__source": "text", "data__file": str(file), "data__length": 16}
    return runs.experiment(**(text | runs.SMALL | STEPS | changes))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two texts, and a run on the first."""
    folder = tmp_path_factory.mktemp("starting")
    (folder / "trained.txt").write_text(TRAINED)
    (folder / "tuned.txt").write_text(TUNED)
    loop.fit(experiment(folder / "trained.txt"), str(folder / "first"))
    return folder


def tuned(place, **changes):
    return experiment(place / "tuned.txt", **({"training__start": str(place / "first")} | changes))


def read_params(workdir):
    return checkpoint.restore_for_eval(str(workdir))[1]


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_training_begins_with_the_parameters_and_the_vocabulary_of_the_run(average, place, tmp_path):
    """With rates of 0 they stay what they were; the text has fewer characters than the run knows."""
    still = {"optimizer__peak_rate": 0.0, "optimizer__end_rate": 0.0, "training__average": average}
    loop.fit(tuned(place, **still), str(tmp_path / "second"))
    near = lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5 * bool(average), atol=0)  # noqa: E731
    jax.tree.map(near, read_params(tmp_path / "second"), read_params(place / "first"))
    names = [checkpoint.read_metadata(str(folder))["vocabulary"] for folder in (tmp_path / "second", place / "first")]
    assert names[0] == names[1]


def test_a_run_goes_on_without_the_one_that_it_started_from(place, tmp_path):
    shutil.copytree(place / "first", tmp_path / "first")
    config = experiment(place / "tuned.txt", training__start=str(tmp_path / "first"), training__steps=6)
    loop.fit(config, str(tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        loop.fit(config, str(tmp_path / "stopped"), watch=_stop_at(4))
    shutil.rmtree(tmp_path / "first")
    loop.fit(config, str(tmp_path / "stopped"))
    jax.tree.map(np.testing.assert_array_equal, *(read_params(tmp_path / name) for name in ("stopped", "whole")))


def _stop_at(step):
    def watch(validations):
        if validations and validations[-1][0] == step:
            raise KeyboardInterrupt

    return watch


def test_the_model_is_that_of_the_run_but_for_what_is_asked(place, tmp_path):
    base = experiment(place / "tuned.txt", model__pattern=("lru",), model__d_model=20)
    asked = dataclasses.replace(
        base,
        model=dataclasses.replace(base.model, dropout=0.3),
        training=dataclasses.replace(base.training, start=str(place / "first")),
    )
    mine, plain = starting.take_over(asked, base, str(tmp_path / "new"))
    theirs = checkpoint.read_experiment(str(place / "first")).model
    assert mine.model == dataclasses.replace(theirs, dropout=0.3)
    assert plain.model == theirs
    assert mine.data == asked.data and mine.training == asked.training


def test_a_command_starts_from_a_run_and_goes_on_when_that_is_gone(place, tmp_path, monkeypatch):
    shutil.copytree(place / "first", tmp_path / "first")
    monkeypatch.chdir(tmp_path)
    given = [f"--config.{key.replace('__', '.')}={value}" for key, value in STEPS.items()]
    given += ["--config.data.source=text", f"--config.data.file={place / 'tuned.txt'}", "--config.data.length=16"]
    given += ["--config.training.start=first", "--workdir=second", "--config.training.devices=1"]
    recipe = ["--config", str(runs.REPOSITORY / "configs" / "smoke.py")]
    assert runs.command("train.py", *recipe, *given) == 0
    assert checkpoint.read_experiment("second").model.pattern == runs.SMALL["model__pattern"]
    shutil.rmtree("first")
    assert runs.command("train.py", *recipe, *given) == 0  # which has nothing left to do


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training__start": "nowhere"}, "nowhere"),
        ({"model__d_model": 24}, r"model\.d_model=24 \(there \d+\): leave these as they are there"),
        ({"model__pattern": ("lru",)}, r"\d+ in all\), which comes of model\.pattern=\('lru',\) \(there \('rnn',\)\)"),
    ],
)
def test_what_cannot_be_started_from_is_refused(changes, words, place, tmp_path):
    with pytest.raises(InputError, match=words):
        loop.fit(tuned(place, **changes), str(tmp_path / "second"))


def test_a_text_that_has_what_the_run_never_read_is_refused(place, tmp_path):
    (tmp_path / "strange.txt").write_text("Zebras\n" * 40)
    config = experiment(tmp_path / "strange.txt", training__start=str(place / "first"))
    with pytest.raises(InputError, match="that the training vocabulary lacks"):
        loop.fit(config, str(tmp_path / "second"))


def test_tokens_are_those_of_the_run(place, tmp_path):
    """Characters there: words are refused, and a command that does not name a level has them."""
    words = tuned(place, data__level="word")
    with pytest.raises(
        InputError, match=r"data\.level='word', but tokens of .* are of the level 'character': use that"
    ):
        loop.fit(words, str(tmp_path / "second"))
    mine, _ = starting.take_over(words, words, str(tmp_path / "second"))
    assert mine.data.level == "character"


def write_run(folder, config, params, step, like):
    workdir = checkpoint.Workdir(str(folder), config, alone=True)
    workdir.describe(checkpoint.read_metadata(str(like)))
    workdir.save_best(step, params, {})
    workdir.close()


def test_a_run_that_is_packed_cannot_be_started_from(place, tmp_path):
    """Neither by its memory nor by its weights."""
    theirs, params, step = checkpoint.restore_for_eval(str(place / "first"))
    packed = dataclasses.replace(theirs, model=dataclasses.replace(theirs.model, memory_bits=("4" * 8,)))
    write_run(tmp_path / "packed", packed, params, step, place / "first")
    write_run(tmp_path / "small", theirs, weights.encode_weights(params), step, place / "first")
    for name, words in (("packed", "memory is packed"), ("small", "weights in int8")):
        config = experiment(place / "tuned.txt", training__start=str(tmp_path / name))
        with pytest.raises(InputError, match=rf"{words}.*start from the run that it was made of"):
            loop.fit(config, str(tmp_path / "second"))


def test_a_table_is_read_at_the_scale_of_the_run(tmp_path):
    """Another table of the same columns, whose numbers are ten times as large."""
    wave = np.sin(np.arange(240) / 5)
    for name, scale in (("first", 1.0), ("second", 10.0)):
        rows = [f"{scale * x:.4f},{scale * y:.4f}" for x, y in zip(wave, wave[::-1], strict=True)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["up,down", *rows]) + "\n")
    table = {"data__source": "csv", "data__length": 16, "data__horizon": 4}
    made = lambda name, **more: experiment(tmp_path / f"{name}.csv", **table, **more)  # noqa: E731
    loop.fit(made("first"), str(tmp_path / "first"))
    loop.fit(made("second", training__start=str(tmp_path / "first")), str(tmp_path / "second"))
    first, second = (checkpoint.read_metadata(str(tmp_path / name)) for name in ("first", "second"))
    assert first["scaling"] == second["scaling"]
    loop.fit(made("second", training__start=str(tmp_path / "first")), str(tmp_path / "second"))


def test_a_synthetic_task_goes_on_at_another_length(tmp_path):
    task = {"data__source": "induction_heads", "data__vocab": 5, "data__eval_examples": 8, **runs.SMALL, **STEPS}
    loop.fit(runs.experiment(**task, data__length=8), str(tmp_path / "first"))
    longer = runs.experiment(**task, data__length=16, training__start=str(tmp_path / "first"))
    loop.fit(longer, str(tmp_path / "second"))
    assert jax.tree.map(np.shape, read_params(tmp_path / "first")) == jax.tree.map(
        np.shape, read_params(tmp_path / "second")
    )
