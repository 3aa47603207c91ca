"""Several processes that train one run: as one process would, bit for bit; together begun, stopped and lost."""

import pathlib
import signal
import time

import jax
import numpy as np
import pytest

import processes
import runs
from selssm_jax import lookout
from selssm_jax.errors import InputError
from selssm_jax.training import cluster, loop

SETTING = {
    "training__steps": 120,
    "training__log_every": 2,
    "training__eval_every": 40,
    "training__average": 0.9,
    "training__skip_nonfinite": 1,
}
ONE = runs.experiment(**SETTING, training__devices=2)
SEVERAL = runs.experiment(**SETTING, training__devices=0)


def assert_equal(one: pathlib.Path, other: pathlib.Path) -> None:
    """Two runs have the same last state, bit for bit, and the same records."""
    states = [jax.tree.map(np.asarray, runs.state(folder, 120)) for folder in (one, other)]
    np.testing.assert_equal(*states)
    assert runs.history(one) == runs.history(other)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The run of one process with two devices."""
    folder = tmp_path_factory.mktemp("cluster") / "one"
    loop.fit(ONE, str(folder))
    return folder


@pytest.mark.always
def test_two_processes_are_one_with_two_devices_bit_for_bit(undisturbed, tmp_path):
    ended = processes.finish(processes.train(tmp_path / "run", SEVERAL, 2, "--report"))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert_equal(tmp_path / "run", undisturbed)
    assert (tmp_path / "run" / "report" / "index.html").exists()
    assert "trained 120 steps" in ended[0][1] and "step 40/120" in ended[0][2]
    assert ended[1][1:] == ("", ""), "the first process alone says how it goes"
    assert len(list((tmp_path / "run" / "tensorboard").iterdir())) == 1


@pytest.mark.always
def test_a_signal_to_one_process_stops_all_saved_once_and_one_process_goes_on(undisturbed, tmp_path):
    folder = tmp_path / "run"
    started = processes.train(folder, SEVERAL, 2)
    processes.wait_for((folder / "metrics.jsonl").exists)
    started[1].send_signal(signal.SIGTERM)
    ended = processes.finish(started)
    assert [code for code, _, _ in ended] == [75, 75], ended
    (last,) = [int(entry.name) for entry in (folder / "checkpoints").iterdir() if int(entry.name) % 10] or [10]
    assert f"stopped at step {last} of 120, saved; to go on: python train.py" in ended[0][1]
    loop.fit(ONE, str(folder))
    assert_equal(folder, undisturbed)


@pytest.mark.always
@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_is_lost_and_the_other_says_so_and_the_same_command_goes_on(lost, undisturbed, tmp_path):
    folder = tmp_path / "run"
    started = processes.train(folder, SEVERAL, 2)
    processes.wait_for((folder / "checkpoints" / "10").exists)
    started[lost].kill()
    start = time.monotonic()
    code, _, said = processes.finish(started)[1 - lost]
    assert time.monotonic() - start < 30
    last = said.strip().splitlines()[-1]
    assert code not in (0, 75)
    assert last.startswith(f"error: process {lost} of this cluster was lost"), said
    assert "the last good checkpoint is step " in last and "python train.py --config" in last
    assert "@ 0x" not in said and "Traceback" not in said, "no stack dump"
    ended = processes.finish(processes.train(folder, SEVERAL, 2))
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert_equal(folder, undisturbed)


def test_two_processes_share_parameters_and_each_its_sequences(tmp_path):
    """As one device would, to rounding; what they saved is restored."""
    short = {
        "training__steps": 12,
        "training__eval_every": 6,
        "training__checkpoint_every": 6,
        "training__average": 0.9,
    }
    mesh = {"training__devices": 0, "training__mesh": (2, 2), "training__shard_parameters": True}
    for _ in range(2):
        ended = processes.finish(processes.train(tmp_path / "run", runs.experiment(**short | mesh), 2, devices=2))
        assert [code for code, _, _ in ended] == [0, 0], ended
    assert "resumed from step 12" in ended[0][2]
    loop.fit(runs.experiment(**short), str(tmp_path / "one"))
    for name in ("params", "average"):
        states = [jax.tree.map(np.asarray, runs.state(tmp_path / run, 12)["state"][name]) for run in ("run", "one")]
        jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), *states)


@pytest.mark.exhaustive
def test_patience_ends_all_processes_at_the_same_step(tmp_path):
    """Parameters that stand still validate alike, which is no better."""
    still = {"optimizer__peak_rate": 0.0, "optimizer__end_rate": 0.0, "training__patience": 2}
    setting = {"training__steps": 12, "training__eval_every": 3, "training__devices": 0}
    for _ in range(2):
        ended = processes.finish(processes.train(tmp_path / "run", runs.experiment(**still | setting), 2))
        assert [code for code, _, _ in ended] == [0, 0], ended
        assert "trained 9 steps of 12, then stopped early (training.patience); validation: " in ended[0][1]


def test_what_differs_between_processes_is_named(monkeypatch):
    values = {"training.seed": 0, "training.steps": 9}, {"training.seed": 1, "training.steps": 9}

    def gather(value):
        """What the other process has of the same."""
        others = {
            cluster._digest(values[0]).tobytes(): cluster._digest(values[1]),
            cluster._digest(["training.seed", 0]).tobytes(): cluster._digest(["training.seed", 1]),
        }
        rows = [others.get(row.tobytes(), row) for row in np.atleast_2d(value)]
        return np.stack([value, np.reshape(np.stack(rows), value.shape)])

    monkeypatch.setattr(cluster, "is_alone", lambda: False)
    monkeypatch.setattr(cluster, "_gather", gather)
    with pytest.raises(InputError, match=r"process 1 has other settings than process 0 \(training\.seed\): give"):
        cluster.check_same("settings", values[0])
    cluster.check_same("settings", {"training.steps": 9})


def test_flags_that_name_no_process():
    cluster.check_flags("", None, None)
    cluster.check_flags("host:1234", 2, 1)
    for given, message in {
        ("host:1234", None, None): "belong together",
        ("", 2, 0): "belong together",
        ("host", 2, 0): "is not HOST:PORT",
        ("host:0", 2, 0): "is not HOST:PORT",
        ("host:1234", 2, 2): "--process=2 is none of 0 to 1",
        ("host:1234", 0, 0): "--process=0 is none of",
    }.items():
        with pytest.raises(InputError, match=message):
            cluster.check_flags(*given)


SLURM = {"SLURM_NTASKS": "2", "SLURM_STEP_NODELIST": "a,b"}
LAUNCHED = {
    "Slurm": SLURM,
    "Open MPI": {"OMPI_COMM_WORLD_SIZE": "4"},
    "Kubernetes": {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
}
ALONE = [{}, {"SLURM_NTASKS": "2"}, SLURM | {"SLURM_NTASKS": "1"}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}]


@pytest.mark.parametrize("variables", [*LAUNCHED.values(), *ALONE], ids=str)
def test_what_launched_a_process_is_known_by_its_environment(variables, monkeypatch):
    """The shell of a Slurm batch job, or a pod by itself, is no process of a cluster: it would wait for others."""
    for name in ("SLURM_NTASKS", "SLURM_STEP_NODELIST", "OMPI_COMM_WORLD_SIZE", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    expected = next((launcher for launcher, those in LAUNCHED.items() if those == variables), "")
    assert cluster.find_launcher() == expected


TOLD = {
    "process 1": b"F1130 client.h:80] The following tasks are unhealthy (stopped sending heartbeats):\n1\nThe",
    "processes 1, 3": b"unhealthy (stopped sending heartbeats):\n1\n3\nThe tasks have crashed.",
    "process 2": b"UNAVAILABLE: Task 2 heartbeat timeout. This indicates that the remote task has failed",
    "process 0": b'PollForError: :UNKNOWN:Error received from peer {grpc_message:"Socket closed", grpc_status:14}',
    "a process": b"another task died",
}


@pytest.mark.parametrize("name", TOLD)
def test_which_process_was_lost_is_read_from_what_native_code_says(name):
    assert lookout.name_lost(TOLD[name]) == name
