"""Signals: padded, cut and masked; augmented in training alone and always in the same way; files of one's own."""

import json
import tracemalloc

import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.config import Data, Model
from selssm_jax.errors import InputError

RNG = np.random.default_rng(0)
LENGTHS = np.tile([5, 12, 20, 9, 16], 10)
CLIPS = [RNG.standard_normal(size).astype(np.float32) for size in LENGTHS]
LABELS = np.arange(50) % 3
SPLITS = ("train", "validation", "test")
SPLIT = np.repeat([0, 1, 2], [30, 8, 12])
# Signals are standardised by training.
TRAIN = np.concatenate(CLIPS[:30]).astype(np.float64)
SCALED = [(clip - TRAIN.mean()) / TRAIN.std() for clip in CLIPS]


@pytest.fixture
def load(tmp_path):
    """Saves arrays as an NPZ and loads it: (known metadata, options of the config, **arrays) -> data set."""

    def loaded(arrays, known=None, **options):
        path = tmp_path / "mine.npz"
        np.savez(path, **arrays)
        return data.load(Data(source="npz", file=str(path), **{"length": 16, **options}), known)

    return loaded


def packed(clips=CLIPS, labels=LABELS, split=SPLIT):
    return {"wave": np.concatenate(clips), "offset": np.cumsum([0, *map(len, clips)]), "label": labels, "split": split}


def covered(dataset, split, batch_size=7):
    """All examples of a split in order, without the rows that fill the last batch."""
    batches = list(dataset.evaluate(split, batch_size))
    keep = np.concatenate([batch["weights"] > 0 for batch in batches])
    return {key: np.concatenate([batch[key] for batch in batches])[keep] for key in batches[0]}


@pytest.mark.parametrize(
    ("split", "rows"), [("train", range(30)), ("validation", range(30, 38)), ("test", range(38, 50))]
)
def test_signals_are_cut_or_padded_at_their_end(load, split, rows):
    found = covered(load(packed()), split)
    assert found["inputs"].shape == (len(rows), 16, 1)
    for place, row in enumerate(rows):
        size = min(LENGTHS[row], 16)
        np.testing.assert_allclose(found["inputs"][place, :size, 0], SCALED[row][:16], rtol=1e-5)
        assert (found["inputs"][place, size:] == 0).all()
        np.testing.assert_array_equal(found["valid"][place], np.arange(16) < size)
    np.testing.assert_array_equal(found["targets"], LABELS[list(rows)])


def test_length_0_keeps_the_longest_whole(load):
    dataset = load(packed(), length=0)
    assert dataset.task.length == 20
    assert covered(dataset, "test")["valid"].sum() == LENGTHS[38:].sum()


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_signals_of_one_length_may_have_channels(load, channels):
    signal = RNG.standard_normal((40, 12, *[channels] * bool(channels)))
    dataset = load(
        {"signal": signal, "label": np.arange(40) % 2, "split": np.repeat([0, 1, 2], [20, 10, 10])}, length=0
    )
    assert (dataset.task.channels, dataset.task.length, dataset.task.classes) == (max(channels, 1), 12, 2)
    assert not dataset.is_stream
    expected = signal.reshape(40, 12, -1)
    train = expected[:20].reshape(240, -1)
    expected = (expected - train.mean(axis=0)) / train.std(axis=0)
    np.testing.assert_allclose(
        np.concatenate([covered(dataset, split)["inputs"] for split in SPLITS]), expected, rtol=1e-4, atol=1e-6
    )


def test_file_without_a_split_is_cut_80_10_10_by_a_fixed_shuffle(load):
    # The label of every clip is its number, so that it can be followed.
    dataset = load({"signal": np.ones((103, 4)), "label": np.arange(103)}, length=0)
    labels = [covered(dataset, split)["targets"].tolist() for split in SPLITS]
    assert [len(part) for part in labels] == [83, 10, 10] == [dataset.metadata()[f"{split}_clips"] for split in SPLITS]
    joined = [label for part in labels for label in part]
    assert sorted(joined) == list(range(103)) != joined
    again = load({"signal": np.ones((103, 4)), "label": np.arange(103)}, length=0, seed=5)
    assert labels == [covered(again, split)["targets"].tolist() for split in SPLITS]


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.int16, np.uint8, np.float32, np.float64])
def test_signals_are_standardised_whatever_their_type(load, kind):
    signal = np.random.default_rng(0).integers(20, 220, (40, 50)).astype(kind)
    found = covered(
        load({"signal": signal, "label": np.arange(40) % 2, "split": np.repeat([0, 1, 2], [20, 10, 10])}), "train"
    )["inputs"]
    train = signal[:20].astype(float)
    np.testing.assert_allclose(found[..., 0], ((train - train.mean()) / train.std())[:, :16], atol=1e-5)


def test_a_level_far_from_zero_is_taken_off_before_anything_is_rounded(load):
    beat = np.random.default_rng(0).standard_normal((40, 50))
    found, near = (
        covered(load({"signal": far + beat, "label": np.arange(40) % 2}), "test")["inputs"] for far in (1e9, 0)
    )
    np.testing.assert_allclose(found, near, atol=1e-5)


@pytest.mark.parametrize(("wild", "most"), [(1, 1.05), (45, 2.5)])
def test_wild_values_do_not_scale_all_else_away(load, wild, most):
    signal = np.random.default_rng(0).standard_normal((40, 50))
    signal.reshape(-1)[np.random.default_rng(1).permutation(1000)[:wild]] = 1e9
    found = load(
        {"signal": signal, "label": np.arange(40) % 2, "split": np.repeat([0, 1, 2], [20, 10, 10])}
    ).metadata()["scaling"]
    assert 0.95 < found["deviation"][0] < most and abs(found["mean"][0]) < 0.8


def test_channels_have_a_scale_each_and_rare_events_their_own(load):
    signal = np.random.default_rng(0).standard_normal((40, 500, 3)) * [1e-12, 1.0, 0.0]
    signal[:, 7, 2] = 5.0  # a spike in a channel that stands still
    found = covered(load({"signal": signal, "label": np.arange(40) % 2}, length=0), "train")["inputs"]
    np.testing.assert_allclose(found.std(axis=(0, 1)), 1, rtol=0.05)


def test_a_run_from_before_keeps_its_scale(load):
    known = load(packed()).metadata()
    del known["scaling"]
    known["task"] = {key: value for key, value in known["task"].items() if key not in ("frame", "stride")}
    old = load(packed(), {**known, "scale": 0.25})
    np.testing.assert_allclose(covered(old, "test")["inputs"][0, :9, 0], 0.25 * CLIPS[38][:9], rtol=1e-6)
    whole = {"signal": np.full((10, 4), 2**14, np.int16), "label": np.zeros(10, int)}
    np.testing.assert_allclose(covered(load(whole, known), "test")["inputs"][:, :4], 0.5, atol=1e-4)


def test_no_signal_is_padded_beyond_the_longest_and_what_is_cut_is_said(load):
    dataset = load(packed(), length=8000)
    assert dataset.task.length == 20 and covered(dataset, "test")["inputs"].shape[1] == 20
    assert (
        "read 50 clips of 5 to 20 samples and 1 channel (float32); kept 30 train, 8 validation, 12 test, the first 20 "
        "samples of each: 0 cut" in dataset.reading
    )
    cut = load(packed() | {"patient": np.arange(50)}).reading
    assert "the first 16 samples of each: 10 cut, 30 padded; left out 'patient'" in cut


def test_classes_are_matched_by_name(load):
    known = load({**packed(), "classes": ["a", "b", "c"]}).metadata()
    turned = load({**packed(labels=2 - LABELS), "classes": ["c", "b", "a"]}, known)
    np.testing.assert_array_equal(covered(turned, "test")["targets"], LABELS[38:])
    with pytest.raises(InputError, match=r"has the class 'd', which the run never saw; it knows a, b, c"):
        load({**packed(), "classes": ["a", "b", "d"]}, known)


def test_signals_of_another_rate_or_of_swapped_axes_are_refused(load):
    known = load({**packed(), "sample_rate": 8000}).metadata()
    with pytest.raises(InputError, match="is sampled at 16000 hertz, the run was trained at 8000: resample"):
        load({**packed(), "sample_rate": 16_000}, known)
    with pytest.raises(
        InputError,
        match=r"which would be 400 channels of 2 samples each: the order is \(clips, samples, channels\); swap",
    ):
        load({"signal": np.zeros((20, 2, 400)), "label": np.zeros(20, int)})


@pytest.mark.parametrize(
    ("samples", "rate", "frames"),
    [(187, 0, (5, 2)), (4000, 8000, (200, 80)), (44_100, 44_100, (1102, 441)), (5000, 360, (125, 50))],
)
def test_frames_that_suit_the_data_are_of_time(load, samples, rate, frames):
    signal = {"signal": np.random.default_rng(0).standard_normal((10, samples)), "label": np.zeros(10, int)}
    task = load(signal | ({"sample_rate": rate} if rate else {}), length=0).task
    assert (task.frame, task.stride) == frames
    model = Model(frame=0, stride=0).of_task(task)
    assert (model.frame, model.stride) == frames and Model(frame=4, stride=3).of_task(task).frame == 4


def test_scale_of_a_run_holds_for_another_file(load):
    known = json.loads(json.dumps(load(packed()).metadata()))
    louder = packed([10 * clip for clip in CLIPS])
    found = covered(load(louder, known), "test")
    np.testing.assert_allclose(
        found["inputs"][0, : LENGTHS[38], 0][:16], ((10 * CLIPS[38] - TRAIN.mean()) / TRAIN.std())[:16], rtol=1e-4
    )


def test_training_without_augmentation_shows_the_clips_as_they_are(load):
    dataset = load(packed())
    batch, whole = next(dataset.train(30, seed=0)), covered(dataset, "train")
    order, expected = (np.lexsort(part["inputs"][..., 0].T) for part in (batch, whole))
    for key in batch:
        np.testing.assert_array_equal(batch[key][order], whole[key][expected])


def test_training_on_validation_adds_its_clips(load):
    batch = next(load(packed(), train_on="train+validation").train(38, seed=0))
    np.testing.assert_allclose(np.sort(batch["inputs"][:, 0, 0]), np.sort([clip[0] for clip in SCALED[:38]]), rtol=1e-4)


def test_augmentation_is_a_function_of_seed_and_number(load):
    dataset = load(packed(), augment=True)
    first, again, other = (next(dataset.train(16, seed=seed)) for seed in (1, 1, 2))
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    assert not np.array_equal(first["inputs"], other["inputs"])
    halves = dataset.train(8, seed=1)
    np.testing.assert_array_equal(np.concatenate([next(halves)["inputs"] for _ in range(2)]), first["inputs"])


def test_augmentation_changes_a_clip_anew_each_epoch_and_keeps_its_label(load):
    dataset = load(packed(), augment=True)
    iterator = dataset.train(30, seed=0)
    epochs = [next(iterator) for _ in range(3)]
    assert len({batch["inputs"].tobytes() for batch in epochs}) == 3
    for batch in epochs:
        np.testing.assert_array_equal(np.sort(batch["targets"]), np.sort(LABELS[:30]))
        assert np.isfinite(batch["inputs"]).all() and (batch["inputs"][~batch["valid"]] == 0).all()
        assert batch["valid"][:, 0].all() and (np.diff(batch["valid"].astype(int), axis=1) <= 0).all()


def test_augmented_clip_is_the_clip_moved_scaled_and_a_little_noisy(load):
    # One long tone with a marked onset: the augmented copy correlates with it once moved back.
    time = np.arange(400)
    clip = (np.sin(time / 7) * np.exp(-time / 200)).astype(np.float32)
    dataset = load({"signal": np.tile(clip, (30, 1)), "label": np.zeros(30, int)}, length=500, augment=True)
    batch = next(dataset.train(64, seed=0))
    sizes = batch["valid"].sum(axis=1)
    assert (sizes >= 380).all() and (sizes <= 440).all() and len(set(sizes)) > 5
    gains = []
    for row, size in zip(batch["inputs"][..., 0], sizes, strict=True):
        shift = size - 400
        moved = row[shift : shift + 400] if shift >= 0 else np.pad(row[: 400 + shift], (-shift, 0))
        kept = slice(max(-shift, 0), None)
        assert np.corrcoef(moved[kept], clip[kept])[0, 1] > 0.99
        gains.append(moved[kept] @ clip[kept] / (clip[kept] @ clip[kept]))
    assert 0.2 < np.log(gains).std() < 0.7


def test_evaluation_is_never_augmented(load):
    plain, augmented = (load(packed(), augment=augment) for augment in (False, True))
    for split in SPLITS:
        for key, value in covered(plain, split).items():
            np.testing.assert_array_equal(value, covered(augmented, split)[key])


def test_majority_class_is_that_of_training(load):
    labels = np.where(np.arange(50) < 20, 1, np.arange(50) % 3)
    found = load(packed(labels=labels)).baselines("test")
    assert found == {"majority class": {"accuracy": pytest.approx((labels[38:] == 1).mean())}}


def test_classes_of_a_run_hold_for_another_file(load):
    known = json.loads(json.dumps(load(packed()).metadata()))
    dataset = load(packed(labels=np.zeros(50, int)), known)
    assert dataset.task.classes == 3


def test_label_that_the_run_never_saw_is_refused(load):
    known = load(packed()).metadata()
    with pytest.raises(InputError, match=r"mine\.npz has labels from 0 to 3, expected 0 to 2"):
        load(packed(labels=np.where(np.arange(50) == 45, 3, LABELS)), known)


def bad(**changes):
    return {key: value for key, value in {**packed(), **changes}.items() if value is not None}


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (bad(label=None), r"mine\.npz holds \['offset', 'split', 'wave'\], expected 'label'"),
        (bad(offset=None), r"expected 'label' and either 'signal' or 'wave' with 'offset'"),
        (
            bad(label=LABELS.astype(float)),
            r"'label' has shape \(50,\) and type float64, expected one whole number from 0 for each signal",
        ),
        (
            bad(label=np.where(np.arange(50) == 7, -1, LABELS)),
            r"mine\.npz has labels from -1 to 2, expected 0 to 2: renumber them, or name every class",
        ),
        (bad(label=LABELS[:49]), r"50 signals and 49 labels: give one label for each signal"),
        (
            bad(split=SPLIT[:49]),
            r"'split' has shape \(49,\), expected 0 \(training\), 1 \(validation\) or 2 \(test\) for each of the 50 "
            r"signals",
        ),
        (bad(split=SPLIT + 1), r"'split'.*expected 0 \(training\)"),
        (
            bad(split=np.zeros(50, int)),
            r"the validation split of .*mine\.npz has no signals: give every split at least one",
        ),
        (bad(wave=np.array(["a"] * LENGTHS.sum())), r"'wave' is of type <U1, expected real numbers"),
        (
            bad(wave=np.where(np.arange(LENGTHS.sum()) == 40, np.nan, packed()["wave"])),
            r"'wave' holds nan at \[40\], expected a finite number",
        ),
        (bad(wave=packed()["wave"][:-5]), r"'offset' must rise from 0 to the 615 samples of 'wave'"),
        (bad(offset=packed()["offset"][::-1].copy()), r"'offset' must rise"),
        (bad(offset=np.insert(packed()["offset"], 1, 0)[:-1]), r"'offset' must rise"),
        (
            {"signal": np.zeros(50), "label": LABELS},
            r"'signal' has shape \(50,\), expected \(clips, samples\) or \(clips, samples, channels\)",
        ),
        ({"signal": np.zeros((0, 5)), "label": np.zeros(0, int)}, r"mine\.npz: 'label' has shape \(0,\)"),
        ({"signal": np.zeros((5, 0)), "label": np.zeros(5, int)}, r"mine\.npz: 'signal' has shape \(5, 0\)"),
        (
            {"signal": np.zeros((5, 4), complex), "label": np.zeros(5, int)},
            r"'signal' is of type complex128, expected real numbers",
        ),
    ],
    ids=[
        *(
            "no labels",
            "no offsets",
            "fractional labels",
            "negative label",
            "few labels",
            "few splits",
            "unknown split",
            "no validation",
            "words",
        ),
        *(
            "not finite",
            "short wave",
            "falling offsets",
            "empty clip",
            "one number a clip",
            "no clips",
            "no samples",
            "complex",
        ),
    ],
)
def test_bad_signals_are_refused(load, arrays, message):
    with pytest.raises(InputError, match=message):
        load(arrays)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", b"hello"])
def test_file_that_is_no_npz_is_refused(tmp_path, content):
    path = tmp_path / "mine.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine\.npz is no NPZ of plain arrays .*write it with numpy\.savez"):
        data.load(Data(source="npz", file=str(path)))


def test_single_array_is_no_npz(tmp_path):
    path = tmp_path / "mine.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(InputError, match="no NPZ"):
        data.load(Data(source="npz", file=str(path)))


def test_pickles_are_never_opened(load):
    with pytest.raises(InputError, match="no NPZ of plain arrays"):
        load({"signal": np.array([{"a": 1}], dtype=object), "label": np.zeros(1, int)})


def test_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.file=.*nowhere\.npz.*No such file"):
        data.load(Data(source="npz", file=str(tmp_path / "nowhere.npz")))


def many(kind):
    """Arrays of some ten megabytes."""
    size, rows = {"real": (1000, 4000), "bytes": (2000, 6000), "short": (10, 200_000)}[kind]
    label = np.arange(rows) % 2
    if kind == "real":
        return {"signal": RNG.standard_normal((rows, size), np.float32), "label": label}
    return {
        "wave": RNG.integers(-9, 9, rows * size, np.int8),
        "offset": np.arange(0, rows * size + 1, size),
        "label": label,
    }


# Of clips of ten bytes their places are more than they are; a scale is of quantiles of a million samples in float64.
@pytest.mark.parametrize(
    ("kind", "most", "evaluated"), [("real", 3, False), ("real", 3, True), ("bytes", 3, True), ("short", 4.5, True)]
)
def test_memory_is_a_few_times_the_arrays(tmp_path, kind, most, evaluated):
    path = tmp_path / "many.npz"
    np.savez(path, **many(kind))
    config = Data(source="npz", file=str(path), length=8, train_on="train+validation")
    known = data.load(config).metadata() if evaluated else None
    tracemalloc.start()
    try:
        data.load(config, known).baselines("test")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < most * sum(array.nbytes for array in many(kind).values()) + (8e6 if evaluated else 40e6)


def test_what_nothing_reads_of_an_npz_takes_no_memory(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, **packed(), **{f"more{number}": np.zeros(1_000_000) for number in range(5)})
    tracemalloc.start()
    try:
        dataset = data.load(Data(source="npz", file=str(path)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6 and "left out 'more0', 'more1'" in dataset.reading
