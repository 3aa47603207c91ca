"""Public data from small originals made here: checked, prepared once and whole, read in order, silent, and clear about
what is missing.
"""

import dataclasses
import errno
import gzip
import hashlib
import io
import itertools
import pathlib
import shutil
import struct
import urllib.error
import urllib.request
import wave
import zipfile

import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.config import Data
from selssm_jax.data.builders import origins, public
from selssm_jax.errors import InputError

RNG = np.random.default_rng(0)
PLAYS = "".join(RNG.choice(list("abc \n"), 300_000))  # several records


@pytest.fixture
def publish(monkeypatch):
    """Makes contents the published ones of a builder: (builder, {name: content})."""

    def published(builder, contents):
        known = {
            name: dataclasses.replace(origin, sha256=hashlib.sha256(contents[name]).hexdigest())
            for name, origin in builder.ORIGINS.items()
        }
        monkeypatch.setattr(builder, "ORIGINS", known)

    return published


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "originals"
    path.mkdir()
    return path


@pytest.fixture
def load(tmp_path, folder):
    def loaded(source, **options):
        return data.load(
            Data(
                source=source,
                **{
                    "local_dir": str(folder),
                    "cache_dir": str(tmp_path / "cache"),
                    "length": 16,
                    "horizon": 4,
                    **options,
                },
            )
        )

    return loaded


@pytest.fixture
def plays(publish, folder):
    """Publishes a text as that of the plays and puts it into the local folder."""

    def written(text=PLAYS):
        (folder / "tinyshakespeare.txt").write_text(text)
        publish(public.TinyShakespeare, {"text": text.encode()})

    return written


@pytest.fixture
def offline(monkeypatch):
    def refused(url, timeout):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refused)


def whole_text(dataset):
    """The text of all splits, without the first character of each."""
    parts = []
    for split in ("train", "validation", "test"):
        batches = list(dataset.evaluate(split, 1))
        parts += [batch["targets"][batch["valid"]] for batch in batches]
    return dataset.decode(np.concatenate(parts))


def covered(dataset, split):
    batches = list(dataset.evaluate(split, 64))
    keep = np.concatenate([batch["weights"] > 0 for batch in batches])
    return {key: np.concatenate([batch[key] for batch in batches])[keep] for key in batches[0]}


def expected_text(text=PLAYS):
    marks = [0, int(0.85 * len(text)), int(0.9 * len(text)), len(text)]
    return "".join(text[first + 1 : last] for first, last in itertools.pairwise(marks))


# Preparation.


def test_order_of_a_text_is_restored(load, plays):
    plays()
    assert whole_text(load("tiny_shakespeare", length=1000)) == expected_text()


def test_preparation_happens_once(load, plays, tmp_path, monkeypatch):
    plays()
    first = load("tiny_shakespeare")
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    monkeypatch.setattr(public.TinyShakespeare, "download_and_prepare", lambda self: pytest.fail("prepared again"))
    assert load("tiny_shakespeare").metadata() == first.metadata()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")} == files


def test_changed_source_is_prepared_anew_and_the_old_one_kept(load, plays):
    plays()
    assert load("tiny_shakespeare").metadata()["vocabulary"] == list("\n abc")
    plays(PLAYS.replace("a", "x"))
    changed = load("tiny_shakespeare")
    assert changed.metadata()["vocabulary"] == list("\n bcx") and whole_text(changed) == expected_text(
        PLAYS.replace("a", "x")
    )
    plays()
    assert load("tiny_shakespeare").metadata()["vocabulary"] == list("\n abc")


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError, SystemExit])
def test_broken_off_preparation_leaves_nothing(load, plays, tmp_path, monkeypatch, interruption):
    plays()
    generate = public.TinyShakespeare._generate_examples

    def broken(self, records):
        yield next(generate(self, records))
        raise interruption

    monkeypatch.setattr(public.TinyShakespeare, "_generate_examples", broken)
    with pytest.raises(interruption):
        load("tiny_shakespeare")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []
    monkeypatch.setattr(public.TinyShakespeare, "_generate_examples", generate)
    assert whole_text(load("tiny_shakespeare", length=1000)) == expected_text()


def test_remains_of_a_killed_preparation_do_no_harm(load, plays, tmp_path):
    plays()
    load("tiny_shakespeare")
    prepared = tmp_path / "cache" / "prepared"
    half = next(prepared.rglob("*.array_record*"))
    remains = tmp_path / "cache" / ".tiny_shakespeare.0" / half.parent.parent.name / half.parent.name
    remains.mkdir(parents=True)
    (remains / half.name).write_bytes(half.read_bytes()[:100])
    shutil.rmtree(prepared)
    assert whole_text(load("tiny_shakespeare", length=1000)) == expected_text()
    assert not (tmp_path / "cache" / ".tiny_shakespeare.0").exists(), "and are cleared"


def test_a_preparation_that_still_runs_is_not_cleared(load, plays, tmp_path):
    plays()
    running = tmp_path / "cache" / ".tiny_shakespeare.1"
    running.mkdir(parents=True)
    with origins.hold(running) as is_free:
        assert is_free
        load("tiny_shakespeare")
    assert running.is_dir()


def test_parts_of_killed_downloads_are_cleared_and_those_that_still_come_are_not(load, plays, tmp_path):
    plays()
    downloads = tmp_path / "cache" / "downloads"
    downloads.mkdir(parents=True)
    killed, running, kept = (downloads / name for name in (f".a-one.txt.{'0' * 32}", f".b-two.txt.{'f' * 32}", ".keep"))
    for path in (killed, running, kept):
        path.write_bytes(b"to be, or")
    with origins.hold(running):
        load("tiny_shakespeare")
    assert sorted(downloads.iterdir()) == [running, kept]


def test_second_preparation_that_was_faster_is_kept(load, plays, monkeypatch):
    plays()
    prepare = public.TinyShakespeare.download_and_prepare

    def slow(self):
        prepare(self)
        monkeypatch.setattr(public.TinyShakespeare, "download_and_prepare", prepare)
        load("tiny_shakespeare")  # as another process would in the meantime

    monkeypatch.setattr(public.TinyShakespeare, "download_and_prepare", slow)
    assert whole_text(load("tiny_shakespeare", length=1000)) == expected_text()


@pytest.mark.parametrize("damage", ["truncated", "emptied", "removed", "scrambled"])
def test_damaged_records_name_the_folder_to_delete(load, plays, tmp_path, damage):
    plays()
    load("tiny_shakespeare")
    for path in (tmp_path / "cache").rglob("*.array_record*"):
        whole = path.read_bytes()
        if damage == "removed":
            path.unlink()
        else:
            path.write_bytes({"truncated": whole[: len(whole) // 2], "emptied": b"", "scrambled": whole[::-1]}[damage])
    with pytest.raises(
        InputError,
        match=r"prepared data in .*tiny_shakespeare.* cannot be read .*: delete that folder, and it is prepared anew",
    ):
        load("tiny_shakespeare")
    shutil.rmtree(tmp_path / "cache" / "prepared")
    assert whole_text(load("tiny_shakespeare", length=1000)) == expected_text()


def test_preparation_is_silent(load, plays, capfd):
    plays()
    load("tiny_shakespeare")
    load("tiny_shakespeare")
    assert capfd.readouterr() == ("", "")


def test_cache_that_cannot_be_written_is_named(load, plays, tmp_path):
    plays()
    (tmp_path / "file").write_text("")
    with pytest.raises(
        InputError,
        match=r"file.* cannot hold prepared data .*: set data\.cache_dir to a folder with space that can be written",
    ):
        load("tiny_shakespeare", cache_dir=str(tmp_path / "file" / "cache"))


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("write failed: No space left on device")]
)
def test_full_disk_is_named(load, plays, monkeypatch, error):
    plays()

    def full(self):
        raise error

    monkeypatch.setattr(public.TinyShakespeare, "download_and_prepare", full)
    with pytest.raises(
        InputError, match=r"cannot hold prepared data \(.*No space left on device\): set data\.cache_dir"
    ):
        load("tiny_shakespeare")


def test_cache_is_named_by_the_environment(plays, folder, tmp_path, monkeypatch):
    plays()
    monkeypatch.setenv("SELSSM_DATA_DIR", str(tmp_path / "elsewhere"))
    data.load(Data(source="tiny_shakespeare", local_dir=str(folder)))
    assert list((tmp_path / "elsewhere").rglob("*.array_record*"))


# Originals.


def test_file_that_is_not_the_published_one_is_refused(load, plays, folder):
    plays()
    (folder / "tinyshakespeare.txt").write_text(PLAYS + "more")
    with pytest.raises(
        InputError,
        match=r"tinyshakespeare\.txt is not the published file: sha256 .*expected .*fetch it again from https://",
    ) as found:
        load("tiny_shakespeare")
    assert 'data.source "csv", "text" or "npz"' in str(found.value)


def test_changed_local_file_is_noticed_though_it_was_prepared_before(load, plays, folder):
    plays()
    load("tiny_shakespeare")
    (folder / "tinyshakespeare.txt").write_text(PLAYS + "more")
    with pytest.raises(InputError, match="is not the published file"):
        load("tiny_shakespeare")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "tiny_shakespeare",
            r"holds no tinyshakespeare\.txt or input\.txt: put it there, or leave data\.local_dir empty to download https://",
        ),
        ("wikitext2", r"holds no wikitext2_train\.txt\.gz or "),
        ("etth1", r"holds no etth1\.csv or ETTh1\.csv"),
        ("ettm1", r"holds no ettm1\.csv or ETTm1\.csv"),
        ("weather", r"holds no weather\.csv\.gz or weather\.csv: put it there$"),
        (
            "fsdd",
            r"holds no fsdd\.npz or free-spoken-digit-dataset-master\.zip: put it there, or leave data\.local_dir "
            r"empty",
        ),
        ("smnist", r"holds no train-images-idx3-ubyte\.gz or "),
    ],
)
def test_missing_file_is_named(load, source, message):
    with pytest.raises(InputError, match=r"data\.local_dir='.*originals' " + message):
        load(source)


def test_missing_folder_is_named(load, tmp_path):
    with pytest.raises(InputError, match=r"nowhere' holds no .*\(there is no such folder\): put it there"):
        load("tiny_shakespeare", local_dir=str(tmp_path / "nowhere"))


@pytest.mark.parametrize("source", ["tiny_shakespeare", "wikitext2", "etth1", "ettm1", "fsdd", "smnist"])
def test_no_network_is_named(load, offline, source):
    with pytest.raises(
        InputError,
        match=r"^https://.* could not be fetched \(Name or service not known\): check the network, or set "
        r"data\.local_dir",
    ):
        load(source, local_dir="")


def test_weather_has_no_address(load, offline):
    with pytest.raises(
        InputError,
        match=r"weather\.csv\.gz has no stable public address: set data\.local_dir to a folder that holds it",
    ):
        load("weather", local_dir="")


def test_damaged_gzip_is_named(load, folder):
    (folder / "weather.csv.gz").write_bytes(gzip.compress(b"date,a\n1,2\n" * 100)[:-20])
    with pytest.raises(InputError, match=r"weather\.csv\.gz cannot be read \(.*\): fetch it again"):
        load("weather")


@pytest.fixture
def web(monkeypatch):
    """A web of files by address; `asked` tells what was fetched."""
    files, asked = {}, []

    def urlopen(url, timeout):
        asked.append(url)
        return io.BytesIO(files[url])

    monkeypatch.setattr(urllib.request, "urlopen", urlopen)
    return files, asked


def test_download_is_checked_kept_and_used_again(load, publish, web, tmp_path):
    files, asked = web
    files[origins.SHAKESPEARE.url] = PLAYS.encode()
    publish(public.TinyShakespeare, {"text": PLAYS.encode()})
    assert whole_text(load("tiny_shakespeare", local_dir="", length=1000)) == expected_text()
    shutil.rmtree(tmp_path / "cache" / "prepared")
    load("tiny_shakespeare", local_dir="")
    assert asked == [origins.SHAKESPEARE.url]


def test_prepared_data_needs_neither_network_nor_download(load, publish, web, tmp_path):
    files, asked = web
    files[origins.SHAKESPEARE.url] = PLAYS.encode()
    publish(public.TinyShakespeare, {"text": PLAYS.encode()})
    load("tiny_shakespeare", local_dir="")
    shutil.rmtree(tmp_path / "cache" / "downloads")
    load("tiny_shakespeare", local_dir="")
    assert len(asked) == 1


def test_torn_download_is_fetched_again(load, publish, web, tmp_path):
    files, asked = web
    files[origins.SHAKESPEARE.url] = PLAYS.encode()
    publish(public.TinyShakespeare, {"text": PLAYS.encode()})
    load("tiny_shakespeare", local_dir="")
    (kept,) = (path for path in (tmp_path / "cache" / "downloads").iterdir())
    kept.write_bytes(kept.read_bytes()[:1000])
    shutil.rmtree(tmp_path / "cache" / "prepared")
    assert whole_text(load("tiny_shakespeare", local_dir="", length=1000)) == expected_text()
    assert len(asked) == 2


def test_wrong_download_is_refused_and_not_kept(load, publish, web, tmp_path):
    files, _ = web
    files[origins.SHAKESPEARE.url] = b"<html>404</html>"
    publish(public.TinyShakespeare, {"text": PLAYS.encode()})
    with pytest.raises(InputError, match=r"https://.* is not the published file"):
        load("tiny_shakespeare", local_dir="")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


# One set after the other.


def test_wikitext_keeps_its_splits(load, publish, folder):
    texts = {
        "train": " = A = \n the <unk> cat \n" * 40,
        "validation": " the cat \n" * 20,
        "test": " a dog \n the cat \n" * 20,
    }
    for name, split in (("train", "train"), ("valid", "validation"), ("test", "test")):
        (folder / f"wikitext2_{name}.txt.gz").write_bytes(gzip.compress(texts[split].encode()))
    publish(public.Wikitext2, {split: text.encode() for split, text in texts.items()})
    dataset = load("wikitext2", level="word")
    assert dataset.vocabulary == ("<eos>", "<unk>", "=", "A", "cat", "the")
    assert [dataset.metadata()[f"{split}_tokens"] for split in texts] == [40 * 8, 20 * 3, 20 * 6]
    assert dataset.metadata()["sha256"] == {
        split: hashlib.sha256(text.encode()).hexdigest() for split, text in texts.items()
    }
    assert load("wikitext2").metadata()["test_tokens"] == len(texts["test"])


@pytest.mark.parametrize("name", ["weather.csv.gz", "weather.csv"])
def test_weather_is_read_through_damaged_names_and_dos_lines(load, publish, folder, name):
    values = RNG.standard_normal((2500, 21)).round(3)
    head = "date," + ",".join(f"T{index} (°C)" for index in range(21))
    rows = [f"2020-01-01 00:{index:02},{','.join(map(str, row))}" for index, row in enumerate(values)]
    raw = "\r\n".join([head, *rows, ""]).encode("latin-1")
    (folder / name).write_bytes(gzip.compress(raw) if name.endswith("gz") else raw)
    publish(public.JenaWeather, {"table": raw})
    dataset = load("weather")
    scaled = (values - values[:1750].mean(axis=0)) / values[:1750].std(axis=0)
    found = covered(dataset, "test")
    assert len(found["inputs"]) == 500 - 4 + 1
    for window in (0, 250, 496):
        np.testing.assert_allclose(found["targets"][window], scaled[2000 + window : 2004 + window], atol=1e-5)


def test_transformer_table_has_its_split_and_names(load, publish, folder):
    values = np.cumsum(RNG.standard_normal((14500, 7)), axis=0).round(3)
    raw = "date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT\n" + "".join(f"2016,{','.join(map(str, row))}\n" for row in values)
    (folder / "ETTh1.csv").write_text(raw)
    publish(public.Etth1, {"table": raw.encode()})
    metadata = load("etth1", length=96, horizon=96).metadata()
    assert [metadata[f"{split}_windows"] for split in ("train", "validation", "test")] == [8449, 2785, 2785]
    assert metadata["channels"] == ["HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT"]
    np.testing.assert_allclose(metadata["scaling"]["mean"], values[:8640].mean(axis=0))


SPEAKERS = ("ann", "bob", "cy", "dee", "eve_2", "flo")


def recordings():
    """(digit, speaker, take) -> samples of all 3,000 clips, in order."""
    names = [(digit, speaker, take) for digit in range(10) for speaker in SPEAKERS for take in range(50)]
    return {name: RNG.integers(-(2**15), 2**15, 5 + index % 13).astype(np.int16) for index, name in enumerate(names)}


def archive(path, clips, rate=8000):
    """Writes clips as the repository's archive, in no order, among other files."""
    items = list(clips.items())
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("free-spoken-digit-dataset-master/README.md", "# not a recording")
        for place in RNG.permutation(len(items)):
            (digit, speaker, take), samples = items[place]
            with io.BytesIO() as raw:
                with wave.open(raw, "wb") as clip:
                    clip.setparams((1, 2, rate, 0, "NONE", ""))
                    clip.writeframes(samples.tobytes())
                file.writestr(
                    f"free-spoken-digit-dataset-master/recordings/{digit}_{speaker}_{take}.wav", raw.getvalue()
                )


def test_spoken_digits_from_recordings_equal_the_packed_form(load, publish, folder, monkeypatch):
    clips = recordings()
    archive(folder / "free-spoken-digit-dataset-master.zip", clips)
    unpacked = load("fsdd", length=0)
    label, take = (np.array([name[place] for name in clips]) for place in (0, 2))
    np.savez(
        folder / "fsdd.npz",
        wave=np.concatenate(list(clips.values())),
        offset=np.cumsum([0, *map(len, clips.values())]),
        label=label,
        index=take,
    )
    digest = hashlib.sha256((folder / "fsdd.npz").read_bytes()).hexdigest()
    monkeypatch.setattr(origins, "PACKED_DIGITS", dataclasses.replace(origins.PACKED_DIGITS, sha256=digest))
    packed = load("fsdd", length=0)
    assert set(packed.metadata()["sha256"]) == {"packed"} and set(unpacked.metadata()["sha256"]) == {"archive"}
    for split, takes in {"train": range(10, 50), "validation": range(5, 10), "test": range(5)}.items():
        first, second = (covered(dataset, split) for dataset in (packed, unpacked))
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])
        expected = [samples for name, samples in clips.items() if name[2] in takes]
        np.testing.assert_array_equal(first["targets"], label[np.isin(take, takes)])
        np.testing.assert_array_equal(first["valid"].sum(axis=1), [len(samples) for samples in expected])
        np.testing.assert_allclose(first["inputs"][first["valid"]][:, 0], np.concatenate(expected) / 2**15, rtol=1e-6)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            "incomplete",
            r"the archive of spoken digits holds 1 recordings, expected 3000: fetch it again, or put fsdd\.npz into "
            r"data\.local_dir",
        ),
        ("rate", r"the archive of spoken digits is damaged \(.*expected \(1, 2, 8000\)\)"),
        ("torn", r"the archive of spoken digits is damaged \(File is not a zip file\)"),
    ],
)
def test_damaged_archive_of_spoken_digits_is_refused(load, folder, damage, message):
    path = folder / "free-spoken-digit-dataset-master.zip"
    archive(path, {(1, "ann", 0): np.zeros(9, np.int16)}, rate=16000 if damage == "rate" else 8000)
    if damage == "torn":
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match=message):
        load("fsdd")


@pytest.mark.parametrize("damage", ["torn", "flipped"])
def test_a_kept_archive_without_a_published_hash_is_fetched_again_when_it_is_bad(load, web, folder, tmp_path, damage):
    files, asked = web
    archive(folder / "whole.zip", recordings())
    files[origins.SPOKEN_DIGITS.url] = whole = (folder / "whole.zip").read_bytes()
    load("fsdd", local_dir="", length=0)
    (kept,) = (tmp_path / "cache" / "downloads").iterdir()
    first, last = np.array_split(np.frombuffer(whole, np.uint8), 2)
    kept.write_bytes(
        first.tobytes() + (b"" if damage == "torn" else (last[:400] ^ 255).tobytes() + last[400:].tobytes())
    )
    load("fsdd", local_dir="", length=0)
    assert kept.read_bytes() == whole and len(asked) == 2


def test_a_damaged_archive_is_not_kept_and_is_named(load, web, folder, tmp_path):
    files, _ = web
    archive(folder / "one.zip", {(1, "ann", 0): np.zeros(9, np.int16)})
    files[origins.SPOKEN_DIGITS.url] = (folder / "one.zip").read_bytes()
    with pytest.raises(
        InputError, match=r"^https://.*master\.zip: the archive of spoken digits holds 1 recordings, expected 3000"
    ):
        load("fsdd", local_dir="")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == []


def test_a_bad_kept_file_is_named_where_it_cannot_be_fetched_again(load, publish, web, tmp_path, monkeypatch):
    files, _ = web
    files[origins.SHAKESPEARE.url] = PLAYS.encode()
    publish(public.TinyShakespeare, {"text": PLAYS.encode()})
    load("tiny_shakespeare", local_dir="")
    (kept,) = (tmp_path / "cache" / "downloads").iterdir()
    kept.write_bytes(b"torn")
    shutil.rmtree(tmp_path / "cache" / "prepared")
    files.clear()
    monkeypatch.setattr(urllib.request, "urlopen", lambda url, timeout: (_ for _ in ()).throw(OSError("no network")))
    with pytest.raises(
        InputError, match=rf"^{kept} is not the published file.*; and https://.* could not be fetched \(no network\)"
    ):
        load("tiny_shakespeare", local_dir="")


def idx(array):
    """An array of bytes in the format of the MNIST files."""
    return gzip.compress(
        struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes(), compresslevel=1
    )


@pytest.fixture
def digits(publish, folder):
    """Publishes small MNIST files, several records long, and returns their arrays."""
    arrays = {
        "train-images-idx3-ubyte": RNG.integers(0, 256, (2300, 28, 28)),
        "t10k-images-idx3-ubyte": RNG.integers(0, 256, (1100, 28, 28)),
    }
    arrays |= {
        name.replace("images-idx3", "labels-idx1"): RNG.integers(0, 10, len(images)) for name, images in arrays.items()
    }
    files = {name: idx(array.astype(np.uint8)) for name, array in arrays.items()}
    (folder / "mnist").mkdir()
    for name, raw in files.items():
        pathlib.Path(folder / "mnist" / f"{name}.gz").write_bytes(raw)
    publish(public.Mnist, files)
    return arrays


def test_pixels_come_row_by_row_and_in_order(load, digits):
    dataset = load("smnist", length=784)
    assert (dataset.task.channels, dataset.task.classes, dataset.task.length) == (1, 10, 784)
    images, labels = digits["train-images-idx3-ubyte"] / 255, digits["train-labels-idx1-ubyte"]
    wanted = {"train": (images[:2070], labels[:2070]), "validation": (images[2070:], labels[2070:])}
    wanted["test"] = (digits["t10k-images-idx3-ubyte"] / 255, digits["t10k-labels-idx1-ubyte"])
    for split, (pictures, classes) in wanted.items():
        found = covered(dataset, split)
        np.testing.assert_allclose(found["inputs"][..., 0], pictures.reshape(len(pictures), 784), rtol=1e-6)
        np.testing.assert_array_equal(found["targets"], classes)
        assert found["valid"].all()


def test_permutation_is_fixed_by_the_seed(load, digits):
    plain = covered(load("smnist", length=784), "test")
    one, again, other = (load("psmnist", length=784, seed=seed) for seed in (1, 1, 2))
    assert one.metadata()["permutation_seed"] == 1
    first, second, third = (covered(dataset, "test")["inputs"][..., 0] for dataset in (one, again, other))
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(first, third) and not np.array_equal(first, plain["inputs"][..., 0])
    order = np.random.default_rng(1).permutation(784)
    np.testing.assert_array_equal(first, plain["inputs"][:, order, 0])
    train = covered(one, "train")["inputs"][..., 0]
    np.testing.assert_allclose(train[5], digits["train-images-idx3-ubyte"][5].reshape(784)[order] / 255, rtol=1e-6)
