"""The screen of an installation: true of this one, and honest where something is wrong."""

import subprocess
import sys

import jax
import pytest

from selssm_jax import doctor
from selssm_jax.doctor import Finding


@pytest.fixture(scope="module")
def findings():
    return doctor.examine()


def test_every_recurrence_is_named_by_its_way_and_equals_the_loop(findings):
    said = {finding.subject: finding.words for finding in findings["recurrences"]}
    assert set(said) == {"linear_scan", "dense_scan", "selective_scan"}
    assert all(words.startswith("sequential: ") for words in said.values())  # on a CPU
    assert all(finding.is_well for finding in findings["recurrences"])


def test_devices_and_versions_are_those_of_this_process(findings):
    assert len(findings["devices"]) == 1 + len(jax.local_devices())
    assert findings["versions"][0].words.endswith(doctor.platform.system())
    assert all(finding.is_well for finding in findings["versions"])


def test_a_clone_that_is_not_installed_knows_what_it_needs(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "_is_package", lambda: False)
    said = {finding.subject: finding for finding in doctor._versions()}
    assert "pip install -e" in said["installation"].words and {"jax", "optuna"} <= set(said)
    assert all(finding.is_well for finding in said.values())
    (extra,) = [finding.words for finding in doctor._extras() if finding.subject == "subword"]
    assert extra == "texts by subwords: installed" or f"pip install '{doctor.PROJECT.parent}[subword]'" in extra
    monkeypatch.setattr(doctor, "PROJECT", tmp_path / "pyproject.toml")  # of a folder that was copied without it
    assert [finding.subject for finding in doctor._versions()][-1] == "packages"


def test_a_wrong_recurrence_is_told(monkeypatch):
    right = doctor.ops.linear_scan

    def wrong(a, b, *, method):
        h, last = right(a, b, method=method)
        return (h * 1.01 if method == "auto" else h), last

    monkeypatch.setattr(doctor.ops, "linear_scan", wrong)
    first = next(iter(doctor._recurrences()))
    assert first.subject == "linear_scan" and not first.is_well and "1e-02" in first.words


def test_what_is_not_in_order_is_marked_and_counted():
    screen = doctor.write_screen({"versions": [Finding("jax", "0.1, >=0.8 is needed", False), Finding("numpy", "2.0")]})
    assert screen.splitlines()[1].startswith("! jax") and screen.endswith("not in order: jax")


def test_it_is_a_command():
    done = subprocess.run([sys.executable, "-m", "selssm_jax.doctor"], capture_output=True, text=True)
    assert "recurrences" in done.stdout and done.returncode in (0, 1), done.stderr
