"""Tables in files of the cache: whatever is read of them is what is read of a table in memory, bit for bit."""

import dataclasses
import threading
from concurrent import futures

import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.config import Data
from selssm_jax.data import mapped, pipeline
from selssm_jax.errors import InputError

ROWS = 300


def write(folder, form):
    """A table, and how it is to be read."""
    rng = np.random.default_rng(0)
    time, values = np.datetime64("2020-01-01T00", "h"), 1000 + 3 * rng.normal(size=(ROWS, 3)).cumsum(axis=0)
    rows = [f"{time + row},{','.join(f'{value:.4f}' for value in values[row])}" for row in range(ROWS)]
    keys = {}
    if form == "newest first":
        rows = rows[::-1]
    elif form == "filled":
        rows, keys = [row for number, row in enumerate(rows) if number % 17], {"gaps": "fill", "missing": "mask"}
    elif form == "series":
        rows = [f"{row},{'y' if number % 2 else 'x'}" for number, row in enumerate(rows)]
        keys = {"series_id": "id", "targets": ("b",), "past_covariates": ("a",), "calendar": ("hour",)}
    elif form == "offsets":
        rows = [f"{row[8:10]}.{row[5:7]}.{row[2:4]} {row[11:13]}:00+02{row[13:]}" for row in rows]
    elif form == "period":
        keys = {"period": 24}
    elif form == "decimal commas":
        rows = [row.replace(",", ";").replace(".", ",") for row in rows]
    head = "date,a,b,c,id" if form == "series" else "date,a,b,c"
    (folder / "t.csv").write_text("\n".join([head.replace(",", ";") if "commas" in form else head, *rows]) + "\n")
    if form == "files":
        (folder / "t2.csv").write_text("\n".join([head, *rows[:200]]) + "\n")
    file = str(folder / ("t*.csv" if form == "files" else "t.csv"))
    return Data(source="csv", file=file, length=16, horizon=6, cache_dir=str(folder / "cache"), **keys)


FORMS = ["plain", "newest first", "filled", "series", "period", "decimal commas", "files", "offsets"]


@pytest.mark.parametrize("form", FORMS)
def test_a_large_table_gives_the_batches_of_a_small_one(tmp_path, monkeypatch, form):
    config = write(tmp_path, form)
    small = data.load(config)
    monkeypatch.setattr(mapped, "LARGE", 0)
    monkeypatch.setattr(mapped, "HELD", 5000)  # pages are given back while it is read
    for large in (data.load(config), data.load(config)):  # parsed, and found in the cache
        assert large.metadata() == small.metadata() and large.reading == small.reading
        for split in ("train", "validation", "test", "whole"):
            for one, other in zip(small.evaluate(split, 40), large.evaluate(split, 40), strict=True):
                assert set(one) == set(other)
                for name in one:
                    np.testing.assert_array_equal(one[name], other[name])
        drawn = [next(dataset.train(8, seed=1))["inputs"] for dataset in (small, large)]
        np.testing.assert_array_equal(*drawn)
        assert large.baselines("test") == small.baselines("test")
    assert (tmp_path / "cache" / "tables").is_dir()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    config = write(tmp_path, "plain")
    (tmp_path / "cache").write_text("a file")
    monkeypatch.setattr(mapped, "LARGE", 0)
    with pytest.raises(InputError, match=r"cannot keep the numbers of a large table .*set data\.cache_dir"):
        data.load(config)


def test_a_table_that_is_refused_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    config = write(tmp_path, "plain")
    (tmp_path / "t.csv").write_text((tmp_path / "t.csv").read_text() + "2021-01-01T00,1,2,word\n")
    monkeypatch.setattr(mapped, "LARGE", 0)
    with pytest.raises(InputError, match=r"line 302 column 4 holds 'word'"):
        data.load(dataclasses.replace(config, gaps="ignore"))
    assert list((tmp_path / "cache" / "tables").iterdir()) == []


@pytest.mark.parametrize("left", ["nothing", "half a folder"])
def test_workers_that_fill_one_folder_together_all_get_it(tmp_path, left):
    folder, together = tmp_path / "tables" / "content", threading.Barrier(4)
    if left != "nothing":
        folder.mkdir(parents=True)
        (folder / "values").write_text("cut o")

    def make(place):
        (place / "values").write_text("whole")
        together.wait(20)  # all have found it missing
        return {"format": mapped.FORMAT}

    def work():
        return mapped.keep(folder, make), (folder / "values").read_text()

    with futures.ThreadPoolExecutor(4) as pool:
        answers = [future.result() for future in [pool.submit(work) for _ in range(4)]]
    assert answers == [({"format": mapped.FORMAT}, "whole")] * 4
    assert [path.name for path in folder.parent.iterdir()] == ["content"]


@pytest.mark.parametrize("count", [1, 2, 37, 1000, 4097])
def test_an_order_that_is_not_listed_is_a_permutation_too(monkeypatch, count):
    monkeypatch.setattr(pipeline, "LISTED", 0)
    rows = pipeline.shuffled_rows(3, np.arange(2 * count), count)
    np.testing.assert_array_equal(np.sort(rows.reshape(2, count), axis=1), np.arange(count)[None].repeat(2, axis=0))
    np.testing.assert_array_equal(
        pipeline.shuffled_rows(3, np.arange(count // 2, count), count), rows[count // 2 : count]
    )
    if count > 100:
        assert abs(np.corrcoef(rows[:count], np.arange(count))[0, 1]) < 4 / count**0.5
        assert (rows[:count] != rows[count:]).mean() > 0.9
