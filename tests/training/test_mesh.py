"""Meshes of devices that share the steps of a sequence, or the parameters: what one device would do, in a part of its
memory.
"""

import dataclasses
import os
import re
import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest

import runs
from selssm_jax.config import Data, Experiment, Training
from selssm_jax.config.mixers import MIXERS
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.ops import shards
from selssm_jax.training import loop, optimizer, parallel, pieces, shares
from selssm_jax.training.step import initial, train_step

B, T = 8, 24
SIZES = {"d_model": 8, "d_state": 4, "conv": 3} | runs.HEADS | {"attention__window": 7, "local_attention__window": 8}
TASKS = {name: dataclasses.replace(task, length=T) for name, task in runs.TASKS.items()}
TASKS |= {"cycle": dataclasses.replace(TASKS["forecasting"], period=3)}
KINDS = sorted(kind for kind in MIXERS if not MIXERS[kind].waits)
PATTERN = ("selective", "local_attention")


def build(name, pattern, *, mesh=(0, 1), shard=False, piece=0, training=None, optimizer_keys=None, **changes):
    """(experiment, model, a batch): packed with a shard of nothing but resets where it is a language, else padded, of
    rows that leave whole shards empty.
    """
    base = Experiment(data=Data(batch_size=B), model=runs.model(pattern=pattern, **SIZES | changes))
    experiment = dataclasses.replace(
        base,
        training=Training(mesh=mesh, shard_parameters=shard, piece=piece, **training or {}),
        optimizer=dataclasses.replace(base.optimizer, **optimizer_keys or {}),
    )
    batch = runs.ragged(TASKS[name], B)
    if name == "language":
        reset = np.random.default_rng(1).random((B, T)) < 0.2
        reset[0, T // 4 : T // 2] = reset[1, [T // 4, T // 2 - 1]] = True
        batch |= {"reset": reset}
    return experiment, SequenceModel(experiment.model.of_task(TASKS[name])), batch


def train(name, pattern, *, devices=1, steps=20, **keys):
    """(parameters, metrics) after some steps of the same batch."""
    experiment, model, batch = build(name, pattern, **keys)
    tx, devices = optimizer.build(experiment), jax.devices()[:devices]
    step = partial(train_step, model=model, optimizer=tx, experiment=experiment)
    run = loop.SingleRun(step, devices)
    if len(devices) > 1:
        run = loop.MeshRun(step, devices, experiment, model.config)
    first = initial(experiment, model, tx, batch)
    state = jax.device_put(first, jax.tree.map(loop.choose_layout(experiment, devices), first))
    for _ in range(steps):
        state, sums = run(state, [batch])
    metrics = {metric: total / weight for metric, (total, weight) in jax.device_get(sums[0]).items()}
    return jax.device_get(parallel.one_copy(state.params)), metrics


def compare(one, other, rtol=1e-5):
    for (path, left), right in zip(jax.tree_util.tree_leaves_with_path(one[0]), jax.tree.leaves(other[0]), strict=True):
        scale = max(np.linalg.norm(left), 1e-3)
        assert np.linalg.norm(left - right) <= rtol * scale, (jax.tree_util.keystr(path), left, right)
    assert one[1] == pytest.approx(other[1], rel=rtol, abs=1e-6)


@pytest.mark.always
def test_meshes_train_as_one_device_does():
    one = train("language", PATTERN)
    compare(one, train("language", PATTERN, devices=4, mesh=(1, 4)))
    compare(one, train("language", PATTERN, devices=4, mesh=(2, 2), shard=True))


@pytest.mark.exhaustive
@pytest.mark.parametrize(("mesh", "shard"), [((1, 4), False), ((2, 2), True), ((4, 1), True)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_mixer_that_can_trains_as_on_one_device(kind, mesh, shard):
    compare(train("language", (kind,)), train("language", (kind,), devices=4, mesh=mesh, shard=shard))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("name", "pattern", "changes"),
    [
        ("language", ("selective",), {"selective__transition": "dense"}),
        ("language", ("selective",), {"selective__transition": "complex"}),
        ("language", ("selective",), {"selective__gate_state": "elementwise", "selective__solver": "newton"}),
        ("language", ("selective",), {"selective__gate_state": "dense", "selective__solver": "newton"}),
        ("language", ("selective", "tcn"), {"piece": 8, "training": {"gate_l1": 0.1}}),
        ("language", ("local_attention",), {"piece": 12, "optimizer_keys": {"accumulate": 2}}),
        ("classification", ("selective",), {"pool": "mean", "frame": 4, "stride": 2, "training": {"gate_l1": 0.1}}),
        ("classification", ("s4d",), {"pool": "last", "piece": 12}),
        ("forecasting", ("selective",), {"linear_skip": 9, "head_context": 8, "piece": 8}),
        ("forecasting", ("s4d",), {"channel_independent": True, "frame": 2, "stride": 2}),
        (
            "cycle",
            ("s4d",),
            {"channel_independent": True, "channel_embedding": True, "channel_mixing": True, "frame": 2, "stride": 2},
        ),
    ],
    ids=str,
)
def test_tasks_recurrences_and_pieces_are_those_of_one_device(name, pattern, changes):
    one = train(name, pattern, **changes)
    compare(one, train(name, pattern, devices=4, mesh=(2, 2), **changes))


@pytest.mark.exhaustive
def test_a_price_of_information_is_that_of_all_steps():
    changes = {"selective__process_noise": 0.3, "training": {"information_weight": 0.1}}
    one, other = (
        train("language", ("selective",), steps=1, devices=count, mesh=(1, count), **changes) for count in (1, 2)
    )
    assert one[1]["rate"] == pytest.approx(other[1]["rate"], rel=0.1)  # noise is drawn for each device


@pytest.mark.exhaustive
def test_eight_devices_train_as_one_does(repository):
    script = "import test_mesh as t; one = t.train('language', t.PATTERN)\n" + "\n".join(
        f"t.compare(one, t.train('language', t.PATTERN, devices=8, mesh={mesh}, shard={shard}))"
        for mesh, shard in (((8, 1), True), ((2, 4), True), ((1, 8), False))
    )
    paths = [str(repository / "tests"), str(repository / "tests" / "training"), str(repository)]
    flags = re.sub(r"device_count=\d+", "device_count=8", os.environ["XLA_FLAGS"])
    subprocess.run(
        [sys.executable, "-c", script],
        check=True,
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(paths)},
    )


def test_devices_hold_their_part_of_parameters_and_moments():
    experiment, model, batch = build("language", PATTERN, mesh=(4, 1), shard=True, d_model=32, d_state=16)
    state = jax.eval_shape(partial(initial, experiment, model, optimizer.build(experiment), batch))
    layout = loop.choose_layout(experiment, jax.devices()[:4])
    for part in (state.params, state.opt_state):
        whole = sum(leaf.size for leaf in jax.tree.leaves(part))
        own = sum(np.prod(layout(leaf).shard_shape(leaf.shape)) for leaf in jax.tree.leaves(part))
        assert own <= (1 / 4 + 0.05) * whole
    assert all(layout(leaf).is_fully_replicated for leaf in (state.rng, state.step))


@pytest.mark.always
def test_a_run_on_a_mesh_is_evaluated_saved_and_resumed_by_one_device(tmp_path):
    keys = {"data__batch_size": 4, "data__length": 24, "optimizer__warmup_steps": 1}
    keys |= dict.fromkeys(("training__eval_every", "training__checkpoint_every", "training__log_every"), 2)
    shared = {"training__devices": 4, "training__mesh": (2, 2), "training__shard_parameters": True}
    for name, first in (("one", {}), ("mesh", shared)):
        assert loop.fit(runs.experiment(training__steps=2, **keys | first), str(tmp_path / name)).finished
        assert loop.fit(runs.experiment(training__steps=4, **keys), str(tmp_path / name)).step == 4
    for one, other in zip(*(runs.history(tmp_path / name) for name in ("one", "mesh")), strict=True):
        assert one.pop("split") == other.pop("split") and one == pytest.approx(other, rel=1e-4, abs=1e-5)


def test_steps_lie_with_the_devices_that_read_them():
    config = runs.model(pattern=PATTERN, **SIZES).of_task(TASKS["language"])
    steps = np.tile(np.arange(20), (2, 1))
    batch = {"inputs": steps, "targets": steps, "weights": steps * 1.0, "valid": steps >= 0}
    arranged = shares.arrange(config, batch, 8, groups=1, count=2)
    expected = [[*range(4), *range(8, 12), *range(16, 18)], [*range(4, 8), *range(12, 16), *range(18, 20)]]
    for name in ("inputs", "targets", "weights"):
        np.testing.assert_array_equal(arranged[name][0].reshape(2, 10), expected)
    whole = shares.arrange(config, batch, 0, groups=1, count=2)
    np.testing.assert_array_equal(whole["inputs"], steps)
    assert pieces.choose(config, 2, 10, 8, shares=2) == 4


@pytest.mark.parametrize(
    ("pattern", "changes", "said"),
    [
        (("selective", "lstm"), {}, "the mixer 'lstm' waits for the state of each step.*use 'selective' or 'min_gru'"),
        (("gru",), {}, "the mixer 'gru' waits"),
        (("rnn",), {}, "the mixer 'rnn' waits"),
        (("attention",), {"attention__window": 64}, "the mixer 'attention' looks back on all.*bounded memory"),
    ],
)
def test_what_devices_cannot_share_is_refused_by_name(pattern, changes, said):
    experiment, *_ = build("language", pattern, mesh=(1, 4), **changes)
    with pytest.raises(InputError, match=rf"training.mesh=\(1, 4\) lets 4 devices share a sequence, but {said}"):
        shares.check(experiment, TASKS["language"])
    shares.check(build("language", pattern, mesh=(4, 1), **changes)[0], TASKS["language"])


def test_a_model_that_reads_from_the_end_is_refused():
    config = runs.model(pattern=("lru",), bidirectional=True, **SIZES).of_task(TASKS["classification"])
    assert "model.bidirectional=True" in shares.why_not(config, T)


@pytest.mark.parametrize(
    ("mesh", "piece", "length", "said"),
    [
        ((1, 4), 0, 22, r"cuts sequences \(data.length\) of 22 steps into 4 equal shares.*example 24"),
        ((1, 4), 6, 24, r"cuts training.piece=6 steps into 4 equal shares.*a multiple of 4, for example 8"),
    ],
)
def test_shares_are_equal(mesh, piece, length, said):
    experiment, *_ = build("language", PATTERN, mesh=mesh, piece=piece)
    with pytest.raises(InputError, match=said):
        shares.check(experiment, dataclasses.replace(TASKS["language"], length=length))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"training__mesh": (0, 3)}, r"training.mesh=\(0, 3\) cannot be made of 4 devices"),
        ({"training__mesh": (4, 2)}, r"training.mesh=\(4, 2\), but this machine has 4"),
        ({"training__mesh": (1, 2), "training__devices": 4}, r"training.mesh=\(1, 2\) cannot be made of 4 devices"),
        ({"training__mesh": (0, 2), "data__batch_size": 7}, r"is 7, which 2 groups of 2 devices"),
    ],
)
def test_devices_that_form_no_mesh_are_refused(keys, said):
    with pytest.raises(InputError, match=said):
        loop.choose_devices(runs.experiment(**{"training__devices": 0} | keys))


@pytest.mark.parametrize("mesh", [(1,), (0, 0), (-1, 2), (1, 2, 3)], ids=str)
def test_a_mesh_has_two_numbers(mesh):
    with pytest.raises(InputError, match=r"training\.mesh="):
        Training(mesh=mesh)


def test_the_axis_of_sequences_is_named_in_one_place():
    mesh = parallel.build_mesh(jax.devices()[:4], (0, 2))
    assert mesh.axis_names == ("data", shards.AXIS) and dict(mesh.shape) == {"data": 2, "sequence": 2}
