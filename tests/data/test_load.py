"""Data for a run that exists: of the same form, or refused by the name of what differs."""

import typing

import pytest

from selssm_jax import config, data
from selssm_jax.config import Data
from selssm_jax.errors import InputError

SMALL = {"length": 20, "horizon": 4, "tokens": 4}


def metadata(source, **options):
    return data.load(Data(source=source, **{**SMALL, **options})).metadata()


def test_every_source_of_the_config_has_a_loader():
    assert set(data.LOADERS) == set(typing.get_args(config.Source))


@pytest.mark.parametrize("source", ["selective_copying", "linear_gaussian", "python_reference"])
def test_data_of_the_same_form_is_accepted(source):
    known = metadata(source)
    assert data.load(Data(source=source, **{**SMALL, "seed": 7, "length": 24}), known).metadata()["task"]["kind"] == known["task"]["kind"]


@pytest.mark.parametrize(
    ("source", "options", "trained", "message"),
    [
        (
            "selective_copying",
            {},
            ("linear_gaussian", {}),
            r"^selective_copying has kind language, the run was trained with forecasting: give data of the same form",
        ),
        ("selective_copying", {"vocab": 8}, ("selective_copying", {}), r"^selective_copying has vocab 10, the run was trained with 18"),
        ("linear_gaussian", {"horizon": 5}, ("linear_gaussian", {}), r"^linear_gaussian has horizon 5, the run was trained with 4"),
    ],
)
def test_data_of_another_form_is_refused(source, options, trained, message):
    with pytest.raises(InputError, match=message):
        data.load(Data(source=source, **{**SMALL, **options}), metadata(trained[0], **trained[1]))
