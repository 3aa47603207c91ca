"""Data of one's own, in one file outside the package."""

import json
import re

import pytest

import runs
from selssm_jax import config, data
from selssm_jax.config import Data
from selssm_jax.testing import check_task

PAGE = runs.REPOSITORY / "docs" / "adding_data.md"


@pytest.fixture
def own(tmp_path):
    """The file of the page; what it registers is gone after the test."""
    before = [dict(table) for table in (config.SOURCES, data.LOADERS)]
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "chaos.py").write_text(program)
    yield tmp_path / "chaos.py"
    for table, items in zip((config.SOURCES, data.LOADERS), before, strict=True):
        table.clear()
        table.update(items)


def test_the_data_of_the_page_train_and_report(own, tmp_path, capsys):
    keys = [f"--config.{key}" for key in (*runs.SHORT, "data.source=chaos", "data.horizon=4")]
    run = tmp_path / "run"
    assert runs.command("train.py", "--config=configs/smoke.py", f"--extend={own}", f"--workdir={run}", *keys) == 0, (
        capsys.readouterr().err
    )
    assert (
        runs.command("train.py", "--config=configs/smoke.py", f"--workdir={run}2", *keys, "--config.model.pool=last")
        == 2
    )
    assert "model.pool is read by fsdd, smnist, psmnist, npz alone" in capsys.readouterr().err
    assert runs.command("eval.py", f"--workdir={run}") == 0, capsys.readouterr().err
    results = json.loads((run / "report" / "results.json").read_text())
    assert (
        results["task"]["kind"] == "forecasting"
        and results["metrics"]["mse"] > 0
        and 0 < results["baselines"]["zero"]["mse"] < 0.2
    )
    assert (run / "report" / "forecast.png").exists() and results["errors"]["by_channel"]["names"] == ["x"]
    check_task(data.load(Data(source="chaos", length=8, horizon=3)))
