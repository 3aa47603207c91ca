"""What cannot fit is refused from its sizes, and what can is not: estimates lie below what is really there."""

import bisect
import contextlib
import dataclasses
import io
import re
import time
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import data, errors
from selssm_jax.config import Data, Experiment, Model, Task, mixers
from selssm_jax.errors import InputError
from selssm_jax.model import SequenceModel
from selssm_jax.training import capacity

LANGUAGE = Task("language", vocab=5, length=16)
HUGE = [
    ({"data__batch_size": 10**12}, "data.batch_size=1000000000000"),
    ({"data__eval_batch_size": 10**12}, "data.eval_batch_size=1000000000000"),
    ({"data__length": 10**13}, "data.length=10000000000000"),
    ({"data__vocab": 10**12}, "data.vocab=1000000000000"),
    ({"data__train_examples": 10**13}, "data.train_examples=10000000000000"),
    ({"model__d_model": 10**8}, "d_model=100000000"),
    ({"model__d_state": 10**13}, "d_state=10000000000000"),
    ({"model__d_state": 10**6, "model__selective__transition": "dense"}, "selective of d_model=8, d_state=1000000"),
    ({"model__mlp_ratio": 1e17}, r"model\.mlp_ratio=1e\+17"),
    ({"model__pattern": ("s5",), "model__d_state": 10**6}, "s5 of d_model=8, d_state=1000000"),
    ({"model__pattern": ("attention",), "model__attention__window": 10**12}, "window=1000000000000"),
    ({"model__pattern": ("tcn",), "model__tcn__dilations": (10**12,)}, "dilation=1000000000000"),
    ({"model__pattern": ("tcn",) * 60}, "carries for 8 rows: tcn of .*dilation="),
]


@pytest.mark.parametrize(
    ("overrides", "words"), HUGE, ids=lambda value: "-".join(value) if isinstance(value, dict) else ""
)
def test_what_cannot_fit_is_refused_by_name_before_work_starts(overrides, words, tmp_path, capsys):
    experiment = runs.experiment(**overrides)
    arguments = [
        f"--config={runs.REPOSITORY / 'configs' / 'smoke.py'}",
        f"--workdir={tmp_path / 'run'}",
        *runs.overrides(experiment),
    ]
    start = time.monotonic()
    assert runs.command("train.py", *arguments) == 2
    assert time.monotonic() - start < 60
    told = capsys.readouterr().err
    assert "error: this needs at least" in told and "lower what it says" in told
    assert re.search(words, told), told


def test_horizons_are_counted_too():
    with pytest.raises(InputError, match=r"data\.horizon=1000000000000"):
        data.load(Data(source="linear_gaussian", length=8, horizon=10**12))


@pytest.mark.parametrize("name", sorted(mixers.MIXERS))
def test_an_estimate_lies_below_what_is_there(name):
    model = runs.model(pattern=(name,), d_model=64, d_state=96, attention__window=50, mlp_ratio=1.0, task=LANGUAGE)
    shapes = jax.eval_shape(SequenceModel(model).init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32))["params"]
    there = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    basis = capacity.WIDE * model.d_state**2 if name == "s5" else 0  # numbers that its parameters are drawn from
    sizes = model.arguments(name)
    assert 0.5 * there <= capacity.weights(name, sizes) - basis + 3 * 64**2 + 2 * 64 * 5 <= there
    state = jax.eval_shape(
        lambda params: SequenceModel(model).apply({"params": params}, 1, method="initial_state"), shapes
    )
    assert capacity.state_numbers(name, sizes) <= sum(
        2 * leaf.size if jnp.iscomplexobj(leaf) else leaf.size for leaf in jax.tree.leaves(state)
    )


def test_a_model_as_large_as_half_of_the_memory_is_let_pass(monkeypatch):
    experiment = dataclasses.replace(Experiment(), model=Model(pattern=("gru",), d_model=64, d_state=64))
    needed = 4 * 4 * (4 * 64**2 + 3 * 64**2 + 6 * 64**2)
    monkeypatch.setattr(capacity, "available", lambda: 40 * needed)
    capacity.check(experiment, LANGUAGE)
    monkeypatch.setattr(capacity, "available", lambda: needed)
    with pytest.raises(InputError, match="this needs at least"):
        capacity.check(experiment, LANGUAGE)


@pytest.mark.parametrize(
    ("overrides", "memories"),
    [
        ({"data__batch_size": 2**20, "data__length": 512}, (4, 1)),
        (
            {
                "data__batch_size": 2**18,
                "data__length": 2048,
                "training__mesh": (2, 2),
                "training__devices": 4,
                "training__piece": 0,
            },
            (2, 2),
        ),
        ({"model__pattern": ("gru",), "model__d_state": 2048, "training__shard_parameters": True}, (4, 1)),
    ],
    ids=["rows", "rows and steps", "parameters"],
)
def test_devices_with_memories_of_their_own_share_what_they_hold(overrides, memories, monkeypatch):
    experiment = runs.experiment(**overrides)
    task = dataclasses.replace(LANGUAGE, length=experiment.data.length)

    def fits(bytes_there):
        monkeypatch.setattr(capacity, "available", lambda: bytes_there)
        with contextlib.suppress(InputError):
            capacity.check(experiment, task)
            return True
        return False

    def needed():
        return bisect.bisect_left(range(2**40), True, key=fits)

    whole = needed()  # of virtual devices of a CPU none has a memory of its own
    monkeypatch.setattr(capacity, "_count_memories", lambda experiment: memories)
    assert 0.25 <= needed() / whole < 0.27


def test_too_many_taps_and_blocks_are_refused():
    for changes, words in (
        ({"pattern": ("gru",) * 10_001}, "10001 blocks, which nothing compiles"),
        ({"tcn__kernel": 10**9}, "model.tcn.kernel=1000000000 is out of range: use at least 1 and at most 4096"),
        ({"conv": 10**9}, "model.conv=1000000000 is out of range: use at least 0 and at most 4096"),
        ({"mamba__d_conv": 10**6}, "model.mamba.d_conv=1000000 is out of range"),
    ):
        with pytest.raises(InputError, match=words):
            runs.model(**changes)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("RESOURCE_EXHAUSTED: Failed to allocate 3 bytes"), True),
        (RuntimeError("INTERNAL: Error preparing computation: Out of memory allocating 4000000000000000 bytes."), True),
        (RuntimeError("INTERNAL: another thing"), False),
    ],
)
def test_memory_that_ran_out_is_said_in_words(error, expected, capsys):
    """A CPU says INTERNAL where a GPU says RESOURCE_EXHAUSTED."""
    with pytest.raises(SystemExit if expected else RuntimeError), errors.report_errors():
        raise error
    assert ("there is not enough memory" in capsys.readouterr().err) == expected


def test_a_cpu_that_ran_out_says_so():
    with pytest.raises((MemoryError, RuntimeError), match=r"(?i)memory") as caught:
        jax.block_until_ready(jnp.zeros((2**20, 2**20, 2**12), jnp.int8) + 1)
    assert errors.out_of_memory(caught.value)


def archive(claim, size, squeeze=zipfile.ZIP_DEFLATED):
    """An NPZ whose arrays claim a shape and hold `size` bytes."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": claim})
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", squeeze) as file:
        file.writestr("signal.npy", header.getvalue() + bytes(size))
        file.writestr("label.npy", header.getvalue())
    return packed.getvalue()


def test_archives_that_claim_more_than_they_have_are_refused(tmp_path):
    (tmp_path / "huge.npz").write_bytes(archive((10**9, 500_000), 64))
    with pytest.raises(InputError, match=r"'signal.npy' claims an array of 4 PB, and has \d+ bytes"):
        data.load(Data(source="npz", file=str(tmp_path / "huge.npz"), length=8))


def test_labels_far_beyond_the_number_of_signals_are_refused(tmp_path):
    for largest in (10**7, 2**62):
        np.savez(tmp_path / "labels.npz", signal=np.ones((12, 20)), label=np.arange(12) + largest)
        with pytest.raises(InputError, match=f"labels up to {largest + 11} for 12 signals: renumber them"):
            data.load(Data(source="npz", file=str(tmp_path / "labels.npz"), length=8))


def test_nul_in_a_path_is_named():
    for key in ("file", "local_dir", "cache_dir"):
        with pytest.raises(InputError, match=rf"data.{key}='a\\x00b' holds the character NUL"):
            Data(source="text", **{"file": "a", key: "a\0b"})


@pytest.mark.parametrize(
    ("task", "steps"),
    [
        (Task("classification", channels=1, classes=3, length=40, frame=8, stride=4), 10),
        (Task("classification", channels=1, classes=3, length=40), 40),
        (Task("forecasting", channels=2, horizon=3, length=40), 40),
    ],
)
def test_frames_that_are_left_to_the_data_are_those_of_the_data(task, steps, monkeypatch):
    """As in the recipe `my_signals`."""
    monkeypatch.setattr(capacity, "available", lambda: 1)
    asked = Experiment(
        data=Data(source="npz", file="own.npz", batch_size=10**6),
        model=Model(pattern=("selective",), d_model=64, d_state=4, frame=0, stride=0),
    )
    with pytest.raises(InputError, match=f"activations of 1000000 rows .* of {steps} steps"):
        capacity.check(asked, task)
