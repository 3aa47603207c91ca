"""What train.py says before it trains, where the report or the compression asked for would be refused afterwards."""

import dataclasses

import pytest

from runs import command, experiment
from selssm_jax import data
from selssm_jax.analysis import check_ahead
from selssm_jax.errors import InputError

EXAMPLES = "--config.data.eval_examples"


def refused(folder, *arguments):
    """Trains configs/smoke.py into a folder, which must be refused before anything is written there."""
    assert command("train.py", "--config=configs/smoke.py", f"--workdir={folder}", *arguments) == 2
    assert not any(path.is_file() and path.name != ".lock" for path in folder.rglob("*"))


def test_a_split_too_small_to_be_measured_is_refused_before_training(tmp_path, capsys):
    refused(tmp_path / "run", "--measure", f"{EXAMPLES}=99")
    told = capsys.readouterr().err
    assert (
        "--measure needs at least 100 sequences, and the test split has 99" in told
        and "train with more data.eval_examples than 99" in told
    )


def test_a_compressed_run_in_the_way_is_refused_before_training(tmp_path, capsys):
    (tmp_path / "run-compressed").mkdir()
    (tmp_path / "run-compressed" / "config.json").write_text("{}")
    refused(tmp_path / "run", "--compress")
    assert "run-compressed exists already" in capsys.readouterr().err


def test_a_test_split_without_an_example_is_refused_before_training(tmp_path):
    fine = experiment()
    dataset = dataclasses.replace(data.load(fine.data), sizes={"train": 9, "validation": 9, "test": 0})
    with pytest.raises(InputError, match="the test split of selective_copying is too small for one example"):
        check_ahead(fine, tmp_path / "run", dataset, report=True, measure=False, compress=False)


@pytest.mark.parametrize(
    ("task", "change", "words"),
    [
        (
            "csv",
            {"factor": 1e6},
            r"bytes a sequence cannot hold the \d+ that stay as they are .*lower compress\.factor",
        ),
        ("npz", {"factor": 0.0}, r"model\.bidirectional=True reads a signal in one piece"),
    ],
)
def test_what_no_parameters_could_be_compressed_to_is_refused_before_training(task, change, words, files, tmp_path):
    small = experiment()
    model = dataclasses.replace(small.model, normalize=task == "csv", bidirectional=task == "npz")
    wanted = dataclasses.replace(
        small, data=files[task], model=model, compress=dataclasses.replace(small.compress, **change)
    )
    with pytest.raises(InputError, match=words):
        check_ahead(wanted, tmp_path / "run", data.load(wanted.data), report=False, measure=False, compress=True)


def test_what_can_be_measured_and_compressed_is_not_refused(tmp_path):
    fine = experiment(data__eval_examples=100)
    check_ahead(fine, tmp_path / "run", data.load(fine.data), report=True, measure=True, compress=True)


def test_a_run_that_nothing_is_asked_of_needs_no_test_split(tmp_path):
    fine = experiment()
    dataset = dataclasses.replace(data.load(fine.data), sizes={"test": 0})
    check_ahead(fine, tmp_path / "run", dataset, report=False, measure=False, compress=False)
