"""Data for a run that exists: of the same form, or refused by the name of what differs."""

import runpy

import numpy as np
import pytest

from runs import REPOSITORY
from selssm_jax import config as config_module
from selssm_jax import data
from selssm_jax.config import Data
from selssm_jax.errors import InputError

SMALL = {"length": 20, "horizon": 4, "tokens": 4}


def metadata(source, **options):
    return data.load(Data(source=source, **{**SMALL, **options})).metadata()


def test_every_source_of_the_config_has_a_loader():
    assert set(data.LOADERS) == set(config_module.SOURCES)


@pytest.mark.parametrize("source", ["selective_copying", "linear_gaussian", "python_reference"])
def test_data_of_the_same_form_is_accepted(source):
    known = metadata(source)
    assert (
        data.load(Data(source=source, **{**SMALL, "seed": 7, "length": 24}), known).metadata()["task"]["kind"]
        == known["task"]["kind"]
    )


@pytest.mark.parametrize(
    ("source", "options", "trained", "message"),
    [
        (
            "selective_copying",
            {},
            ("linear_gaussian", {}),
            r"^selective_copying has kind language, the run was trained with forecasting: give data of the same form",
        ),
        (
            "selective_copying",
            {"vocab": 8},
            ("selective_copying", {}),
            r"^selective_copying has vocab 10, the run was trained with 18",
        ),
        (
            "linear_gaussian",
            {"horizon": 5},
            ("linear_gaussian", {}),
            r"^linear_gaussian has horizon 5, the run was trained with 4",
        ),
    ],
)
def test_data_of_another_form_is_refused(source, options, trained, message):
    with pytest.raises(InputError, match=message):
        data.load(Data(source=source, **{**SMALL, **options}), metadata(trained[0], **trained[1]))


RECIPES = {"my_text": "tiny.txt", "my_table": "tiny.csv", "my_signals": "tiny.npz"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_for_files_of_ones_own_suit_small_ones_too(tmp_path, recipe):
    path = tmp_path / RECIPES[recipe]
    if recipe == "my_text":
        path.write_text("few words, said again. " * 30)
    elif recipe == "my_table":
        path.write_text("a,b\n" + "".join(f"{i % 7}.5,{i % 5}.5\n" for i in range(260)))
    else:
        np.savez(path, signal=np.random.default_rng(0).standard_normal((20, 33)), label=np.arange(20) % 2)
    config = runpy.run_path(str(REPOSITORY / "configs" / f"{recipe}.py"))["get_config"]()
    config.data.file = str(path)
    experiment = config_module.Experiment.from_config_dict(config)
    assert experiment.data.train_on == "train" and experiment.training.select == "best"
    dataset = data.load(experiment.data)
    assert dataset.task.length == {"my_text": 73, "my_table": 79, "my_signals": 33}[recipe]
    assert dataset.reading.startswith(f"{path}: read ")
    model = experiment.model.of_task(dataset.task)
    assert 1 <= model.stride <= model.frame <= dataset.task.length or recipe == "my_text"
    assert next(dataset.train(4, seed=0))["inputs"].shape[:2] == (4, dataset.task.length)
    again = data.load(experiment.data, dataset.metadata())
    assert again.task.length == dataset.task.length and (again.task.frame, again.task.stride) == (
        dataset.task.frame,
        dataset.task.stride,
    )


def test_a_key_of_how_a_file_is_read_can_be_given_to_evaluation():
    assert config_module.Experiment().overridden(["data.gaps=ignore"]).data.gaps == "ignore"
    with pytest.raises(InputError, match=r"data\.gaps='full' is not a choice: did you mean 'fill'"):
        config_module.Experiment().overridden(["data.gaps=full"])
    with pytest.raises(InputError, match=r"data\.gaps='fill' puts in rows .*set data\.missing='mask' too"):
        config_module.Experiment().overridden(["data.gaps=fill"])
    with pytest.raises(InputError, match="no group that evaluation reads"):
        config_module.Experiment().overridden(["data.length=3"])
