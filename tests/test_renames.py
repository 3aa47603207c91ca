"""Runs, command lines and config files of earlier versions: runs are read under the names that keys have now, all else
is told them.

`old_runs.json` holds what the last version with the old names wrote into config.json: runs of every mixer with keys
away from their defaults, of every rename, and one of a sweep. "old" is what differs from "defaults", "new" what must
differ from the defaults of now.
"""

import dataclasses
import json
import pathlib
import re

import pytest

import runs
from selssm_jax.config import Experiment
from selssm_jax.config.fields import flatten
from selssm_jax.config.renames import RENAMED, update
from selssm_jax.sweep import record
from selssm_jax.training import checkpoint, checksums

SAVED = json.loads((pathlib.Path(__file__).parent / "old_runs.json").read_text())
DEFAULTS = dict(flatten(json.loads(json.dumps(dataclasses.asdict(Experiment())))))


def old_config(name: str) -> dict:
    """What such a run has in its config.json."""
    values = json.loads(json.dumps(SAVED["defaults"]))
    for path, value in SAVED["runs"][name]["old"].items():
        *group, key = path.split(".")
        (values[group[0]] if group else values)[key] = value
    return {"format": 1, "experiment": values, "seal": ""}


def test_the_table_leads_from_keys_that_were_to_keys_that_are():
    old = {path for path, _ in flatten(SAVED["defaults"])}
    gone = {path for path in old if path not in DEFAULTS}
    assert gone == set(RENAMED)
    assert {name for names in RENAMED.values() for name in names} <= set(DEFAULTS) - old
    assert {path for values in SAVED["runs"].values() for path in values["old"]} >= set(RENAMED) - {"data.cycle"}


@pytest.mark.parametrize("name", SAVED["runs"])
def test_a_run_of_the_version_before_is_read_under_the_names_of_now(name, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(old_config(name)))
    found = checkpoint.read_experiment(str(tmp_path))
    values = dict(flatten(json.loads(json.dumps(dataclasses.asdict(found)))))
    assert {path: value for path, value in values.items() if value != DEFAULTS[path]} == SAVED["runs"][name]["new"]
    assert found.unread() == {}


def test_what_several_mixers_read_goes_to_those_of_the_pattern():
    assert update({"model.pattern": ["mamba2"], "model.heads": 2, "model.d_conv": 3}) == {
        "model.pattern": ["mamba2"],
        "model.mamba2.heads": 2,
        "model.mamba2.d_conv": 3,
    }


def test_a_run_of_the_version_before_goes_on(tmp_path, capsys):
    """What it was begun with is found to be the same; another value of a renamed key is not."""
    changes = {
        "training__steps": 2,
        "training__eval_every": 2,
        "training__checkpoint_every": 2,
        "optimizer__warmup_steps": 1,
    }
    asked = runs.experiment(**changes, model__selective__gate="tanh")
    arguments = ["train.py", "--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", *runs.overrides(asked)]
    assert runs.command(*arguments) == 0, capsys.readouterr().err
    for path in (tmp_path / "run" / "config.json", *(tmp_path / "run" / "checkpoints").glob("*/config.json")):
        age(path)
    assert runs.command("eval.py", f"--workdir={tmp_path / 'run'}") == 0, capsys.readouterr().err
    assert runs.command(*arguments, "--config.training.steps=4") == 0, capsys.readouterr().err
    assert runs.command(*arguments, "--config.training.steps=4", "--config.model.selective.gate=sigmoid") == 2
    assert "model.selective.gate: 'tanh' there, 'sigmoid' now" in capsys.readouterr().err


def age(path: pathlib.Path) -> None:
    """Writes a config.json of now as the version before would have, its checksum too where it has one."""
    values = json.loads(path.read_text())
    flat, old = dict(flatten(values["experiment"])), json.loads(json.dumps(SAVED["defaults"]))
    back = {new: key for key, names in RENAMED.items() for new in names if new in flat and flat[new] != DEFAULTS[new]}
    for key, value in flat.items():
        *group, name = back.get(key, key).split(".")
        place = old[group[0]] if group else old
        if len(group) < 2 and name in place:
            place[name] = value
    path.write_text(json.dumps({"format": 1, "experiment": old, "seal": values["seal"]}))
    if (path.parent / checksums.MANIFEST).exists():
        checksums.seal(path.parent)


def test_a_record_of_the_version_before_is_of_the_same_sweep():
    old = dict(flatten(SAVED["defaults"] | {"model": SAVED["defaults"]["model"] | {"context": 64}}))
    base = Experiment()
    asked = dataclasses.replace(base, model=runs.model(base.model, attention__window=64))
    found = record.identity(base) | update(
        {path: value for path, value in old.items() if path in {*record.identity(base), *RENAMED}}
    )
    assert found == record.identity(asked) != record.identity(base)


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_key_of_a_command_line_is_told_the_new_one(old, tmp_path, capsys):
    assert (
        runs.command("train.py", "--config=configs/smoke.py", f"--workdir={tmp_path / 'run'}", f"--config.{old}=1") == 2
    )
    told = capsys.readouterr().err
    assert told.startswith(f"error: {old} is now {RENAMED[old][0]}") and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (
            "Experiment(model=Model(gate='tanh')).to_config_dict()",
            "model.gate is now model.selective.gate: use that name",
        ),
        (
            "Experiment(training=Training(rate=0.1)).to_config_dict()",
            "training.rate is now training.information_weight",
        ),
        ("Experiment(sweep=Sweep(rates=(0.1, 0.2))).to_config_dict()", "sweep.rates is now sweep.learning_rates"),
        (
            "ConfigDict({'model': {'heads': 2}})",
            "model.heads is now model.attention.heads or .* the one of the mixer that it is meant for",
        ),
        ("ConfigDict({'data': {'cycle': 24}})", "data.cycle is now data.period"),
    ],
)
def test_an_old_key_of_a_config_file_is_told_the_new_one(lines, words, tmp_path, capsys):
    imports = (
        "from ml_collections import ConfigDict\nfrom selssm_jax.config import Experiment, Model, Sweep, Training\n"
    )
    (tmp_path / "mine.py").write_text(f"{imports}\n\ndef get_config():\n    return {lines}\n")
    assert runs.command("train.py", f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'run'}") == 2
    assert re.search(words, capsys.readouterr().err)
