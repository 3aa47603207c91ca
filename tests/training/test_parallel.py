"""Devices that exist and share rows equally; one result, whatever their number; a state that is used up."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import data
from selssm_jax.errors import InputError
from selssm_jax.runs import compress_run, open_run
from selssm_jax.sweep import runner
from selssm_jax.training import multi_seed, parallel


def test_all_devices_or_the_first_few():
    assert parallel.choose_devices(0, 8) == jax.local_devices()
    assert parallel.choose_devices(2, 8) == jax.local_devices()[:2]


def test_more_devices_than_there_are():
    with pytest.raises(
        InputError, match=r"training\.devices=5, but this machine has 4 cpu device\(s\): use at most that, or 0"
    ):
        parallel.choose_devices(5, 10)


def test_rows_that_devices_cannot_share():
    with pytest.raises(
        InputError,
        match=r"data\.batch_size over optimizer\.accumulate is 6, which 4 devices cannot share equally: use a "
        r"multiple of 4",
    ):
        parallel.choose_devices(4, 6)


def test_processes_give_equally_many_devices_in_the_order_of_their_rows(monkeypatch):
    devices = jax.local_devices()
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "local_devices", lambda process=0: devices[2 * process : 2 * process + 2])
    assert parallel.choose_devices(0, 8) == devices
    assert parallel.choose_devices(2, 8) == [devices[0], devices[2]]
    with pytest.raises(
        InputError, match=r"training\.devices=3 are not shared equally by 2 processes: .* multiple of 2"
    ):
        parallel.choose_devices(3, 6)
    with pytest.raises(InputError, match=r"training\.devices=6, but a process of 2 has 2 cpu device\(s\)"):
        parallel.choose_devices(6, 6)


ENTRANCES = {
    "together": lambda folder: multi_seed.fit_seeds(
        [runs.experiment(), runs.experiment(training__seed=1)], [str(folder / "a"), str(folder / "b")]
    ),
    "sweep": lambda folder: list(runner.cells(runs.experiment(), folder, ["ssm"])),
}


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_work_of_one_process_is_refused_in_a_cluster_before_it_reads_or_writes(entrance, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("data were read"))
    with pytest.raises(InputError, match=r"process 0 of a cluster of 2, and .* is the work of one process: start it"):
        ENTRANCES[entrance](tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_compression_is_refused_in_a_cluster(smoke_run, monkeypatch):
    run = open_run(smoke_run)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(InputError, match="and compression is the work of one process"), compress_run(run, print):
        pass


def test_what_is_recomputed_is_not_kept_on_a_cpu_too():
    """XLA drops the barriers that jax.checkpoint sets and merges the values, as in jax#8609: 25 MiB became 30 instead
    of 10.
    """

    def layer(x, w):
        for _ in range(4):
            x = jnp.tanh(x @ w)
        return x

    def loss(w, x):
        for _ in range(6):
            x = jax.checkpoint(layer)(x, w)
        return (x**2).sum()

    def step(state, batch, *, axis=None):
        return state - jax.grad(loss)(state, batch), {}

    state, batch = jnp.zeros((64, 64)), jnp.zeros((256, 64))
    take = {remat: parallel.data_parallel(step, jax.local_devices()[:1], remat=remat) for remat in (False, True)}
    take["together"] = multi_seed.StackedRuns(step, 1, remat=True)._step
    given = {False: (state, batch), True: (state, batch), "together": (state[None], batch[None])}
    peak = {name: one.lower(*given[name]).compile().memory_analysis().temp_size_in_bytes for name, one in take.items()}
    assert peak[True] < 0.6 * peak[False] and peak["together"] < 0.6 * peak[False]


@pytest.mark.parametrize("count", [1, 2, 4])
def test_sums_over_devices_are_those_of_the_whole_batch(count):
    devices = parallel.choose_devices(count, 8)

    def step(state, batch, *, axis):
        seen = parallel.total({"rows": batch["x"].sum(0), "devices": jnp.ones(())}, axis)
        return {"w": state["w"] + seen["rows"]}, seen

    take = parallel.data_parallel(step, devices)
    state = jax.device_put({"w": jnp.zeros(3)}, parallel.layout(devices))
    batch = {"x": np.arange(24, dtype=np.float32).reshape(8, 3)}
    for _ in range(2):
        before = state
        state, seen = take(state, batch)
        assert state["w"].sharding == parallel.layout(devices), (
            "the state comes back where it was, so that nothing is compiled twice"
        )
        assert before["w"].is_deleted(), "its memory is used again"
    np.testing.assert_allclose(state["w"], 2 * batch["x"].sum(0))
    assert state["w"].shape == (3,), "no device axis"
    assert seen["devices"] == count
    assert len(parallel.one_copy(state)["w"].devices()) == 1


def test_devices_are_numbered_as_their_rows_are():
    def step(state, batch, *, axis):
        return state, parallel.total(parallel.device_number(axis) * batch["x"].sum(), axis)

    for count, expected in ((1, 0), (4, 1 * 10 + 2 * 100 + 3 * 1000)):
        devices = parallel.choose_devices(count, 4)
        take = parallel.data_parallel(step, devices)
        assert (
            take(jax.device_put(jnp.zeros(1), parallel.layout(devices)), {"x": np.array([1, 10, 100, 1000])})[1]
            == expected
        )
