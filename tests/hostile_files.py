"""Files of a stranger that are no text, no table or no signals, or nearly, and folders that are no place for a run.

`FILES` has for each name the source that reads it and its content, `PLACES` what makes a folder.
"""

import bz2
import gzip
import io
import lzma
import pathlib
import zipfile
from collections.abc import Callable

import numpy as np


def pack(**arrays: np.ndarray) -> bytes:
    """Returns an NPZ."""
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def zip_members(**members: bytes) -> bytes:
    """Returns a ZIP of files, whatever they hold."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def write_array(array: np.ndarray) -> bytes:
    """Returns an NPY."""
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


SIGNALS = {"signal": np.sin(np.arange(480.0)).reshape(24, 20), "label": np.arange(24) % 3}
WAVES = {"wave": SIGNALS["signal"].ravel(), "offset": np.arange(25) * 20, "label": SIGNALS["label"]}
TEXT = "the state of a model is what it keeps of the past\n" * 40
MOMENTS = [f"2020-01-{1 + hour // 24:02d} {hour % 24:02d}:00" for hour in range(200)]
TABLE = "date,x,y\n" + "".join(f"{moment},{hour},{-hour}\n" for hour, moment in enumerate(MOMENTS))
WHOLE = {"text": TEXT.encode(), "csv": TABLE.encode(), "npz": pack(**SIGNALS)}


def damage(source: str) -> dict[str, bytes]:
    """Returns a good file, damaged in the ways that any file can be."""
    whole = WHOLE[source]
    damaged = {
        "empty": b"",
        "random": np.random.default_rng(0).bytes(4096),
        "NUL": b"\0" * 999,
        "newlines": b"\n" * 999,
        "one byte": whole[:1],
        "BOM": b"\xff\xfe" + whole,
        "long line": b"a," * 50_000,
        "gzip": gzip.compress(whole),
        "bzip2": bz2.compress(whole),
        "xz": lzma.compress(whole),
        "in a ZIP": zip_members(data=whole),
        "HTML": b"<!doctype html><html><body>404 not found</body></html>\n" * 20,
        "JSON": b'{"rows": [1, 2, 3]}\n' * 40,
        "Parquet": b"PAR1" + bytes(range(256)) * 4 + b"PAR1",
    }
    damaged |= {f"cut at {share}": whole[: len(whole) * share // 8] for share in range(1, 8)}
    damaged |= {
        f"flipped {place}": whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :]
        for place in range(0, len(whole), len(whole) // 40)
    }
    damaged |= {f"doubled {start}": whole + whole[start:] for start in (0, 1, 7)}
    return damaged | {f"as {other}": content for other, content in WHOLE.items() if other != source}


def write_table(fields: Callable[[int], str], header: str = "date,x,y", rows: int = 200) -> bytes:
    """Returns a table whose rows hold these fields beside their dates."""
    return (header + "\n" + "".join(f"{MOMENTS[row]},{fields(row)}\n" for row in range(rows))).encode()


TEXTS = {
    "UTF-16": TEXT.encode("utf-16"),
    "UTF-32": TEXT.encode("utf-32"),
    "Latin-1": (TEXT + "naïveté é\n").encode("latin-1"),
    "a surrogate": TEXT.encode() + b"\xed\xa0\x80" + TEXT.encode(),
    "blanks": b" \t\n" * 400,
    "one line": b"abc " * 400,
    "carriage returns": TEXT.replace("\n", "\r").encode(),
    "emoji": ("\U0001f600\U0001f3fd\u200d\U0001f680 " * 100).encode(),
    "controls": bytes(range(1, 32)) * 40,
    "one character": b"a" * 2000,
    "combining": ("e" + "\u0301" * 60).encode() * 20,
    "every character once": "".join(map(chr, range(0x4E00, 0x4E00 + 3000))).encode(),
}
TABLES = {
    "a header alone": b"date,x,y\n",
    "no header": TABLE.partition("\n")[2].encode(),
    "one row": TABLE[:30].encode(),
    "three rows": write_table(lambda row: f"{row},1", rows=3),
    "one column": b"x\n" + b"".join(b"%d\n" % row for row in range(200)),
    "names twice": TABLE.replace("x,y", "x,x").encode(),
    "a name left out": TABLE.replace("x,y", "x,").encode(),
    "dates twice": write_table(lambda row: f"{MOMENTS[row]},1", "date,date,y"),
    "a field too many": TABLE.replace("\n2020-01-02 03:00,", "\n2020-01-02 03:00,7,").encode(),
    "a field too few": TABLE.replace(",27,-27", ",27").encode(),
    "an open quote": TABLE.replace("27,", '"27,').encode(),
    "a quoted line": TABLE.replace("27,", '"2\n7",').encode(),
    "tabs": TABLE.replace(",", "\t").encode(),
    "bars": TABLE.replace(",", "|").encode(),
    "aligned": TABLE.replace(",", "    ").encode(),
    "constant": write_table(lambda row: "1,1"),
    "all missing": write_table(lambda row: ","),
    "one missing": TABLE.replace(",27,", ",,").encode(),
    "words for missing": TABLE.replace(",27,", ",n/a,").encode(),
    "not a number": write_table(lambda row: "nan,1"),
    "infinite": TABLE.replace(",27,", ",inf,").encode(),
    "huge": write_table(lambda row: f"{row}e305,{row}"),
    "tiny": write_table(lambda row: f"{row}e-320,{row}"),
    "long numbers": write_table(lambda row: f"{'9' * 400},{row}"),
    "hexadecimal": write_table(lambda row: f"{hex(row)},{row}"),
    "truths": write_table(lambda row: f"{row % 2 == 0},{row}"),
    "other digits": write_table(lambda row: f"{row},{-row}")
    .decode()
    .translate(str.maketrans("0123456789", "٠١٢٣٤٥٦٧٨٩"))
    .encode(),
    "formulas": write_table(lambda row: f"=A{row}+1,{row}"),
    "money": write_table(lambda row: f"${row},{row}"),
    "decimal commas": TABLE.replace(",27,", ',"27,5",').encode(),
    "decimal commas and semicolons": TABLE.replace(",", ";").replace(";27;", ";27,5;").encode(),
    "percent": write_table(lambda row: f"{row}%,{row}"),
    "units": write_table(lambda row: f"{row} kW,{row}"),
    "no such day": TABLE.replace("2020-01-02", "2020-13-45").encode(),
    "dates of two kinds": TABLE.replace("2020-01-02", "02/01/2020").encode(),
    "newest first": b"date,x,y\n" + b"".join(f"{MOMENTS[row]},{row},1\n".encode() for row in reversed(range(200))),
    "one moment": write_table(lambda row: f"{row},1").decode().replace("-02 ", "-01 ").encode(),
    "zones": TABLE.replace(":00,", ":00+02:00,").encode(),
    "seconds since 1970": b"time,x\n"
    + b"".join(f"{1_577_836_800 + 3600 * row},{row}\n".encode() for row in range(200)),
    "a year of five digits": TABLE.replace("2020-", "12020-").encode(),
    "comments": b"# made by hand\n" + WHOLE["csv"],
    "Windows lines": TABLE.replace("\n", "\r\n").encode(),
    "UTF-8 BOM": b"\xef\xbb\xbf" + WHOLE["csv"],
    "UTF-16": TABLE.encode("utf-16"),
    "a NUL in a field": TABLE.replace(",27,", ",2\x007,").encode(),
    "5,000 columns": (",".join(f"c{column}" for column in range(5000)) + "\n").encode() + (b"1," * 4999 + b"2\n") * 40,
    "a hostile name": TABLE.replace("x,y", "$\\frac{$,<script>alert(1)</script>").encode(),
    "a name of 100,000 letters": TABLE.replace("x,y", "x" * 100_000 + ",y").encode(),
    "dates in the last column": b"x,date\n" + b"".join(f"{row},{MOMENTS[row]}\n".encode() for row in range(200)),
    "words alone": write_table(lambda row: "a,b"),
}
ARCHIVES = {
    "pickled": pack(signal=np.ones((4, 20)), label=np.zeros(4, int), more=np.array([{}, []], object)),
    "claims": zip_members(
        **{
            "signal.npy": b"\x93NUMPY\x01\x00v\x00"
            + b"{'descr': '<f8', 'fortran_order': False, 'shape': (4000000000000000,), }".ljust(117)
            + b"\n"
        }
    ),
    "a bomb": zip_members(**{"signal.npy": b"\0" * 50_000_000, "label.npy": write_array(SIGNALS["label"])}),
    "no arrays": zip_members(readme=b"nothing"),
    "a path upwards": zip_members(**{"../signal.npy": write_array(SIGNALS["signal"])}),
    "an NPY": write_array(SIGNALS["signal"]),
    "complex": pack(signal=np.ones((4, 20), complex), label=np.zeros(4, int)),
    "strings": pack(signal=np.array([["a"] * 20] * 4), label=np.zeros(4, int)),
    "no clips": pack(signal=np.ones((0, 20)), label=np.zeros(0, int)),
    "four axes": pack(signal=np.ones((2, 2, 2, 2)), label=np.zeros(2, int)),
    "no axes": pack(signal=np.float64(1), label=np.zeros(1, int)),
    "records": pack(signal=np.zeros(4, [("left", float), ("right", float)]), label=np.zeros(4, int)),
    "dates": pack(signal=SIGNALS["signal"].astype("datetime64[s]"), label=SIGNALS["label"]),
    "truths": pack(signal=SIGNALS["signal"] > 0, label=SIGNALS["label"]),
    "half": pack(signal=SIGNALS["signal"].astype(np.float16), label=SIGNALS["label"]),
    "long doubles": pack(signal=SIGNALS["signal"].astype(np.longdouble), label=SIGNALS["label"]),
    "big-endian": pack(signal=SIGNALS["signal"].astype(">f4"), label=SIGNALS["label"].astype(">i8")),
    "Fortran order": pack(signal=np.asfortranarray(SIGNALS["signal"]), label=SIGNALS["label"]),
    "largest whole numbers": pack(signal=np.full((24, 20), 2**64 - 1, np.uint64), label=SIGNALS["label"]),
    "constant": pack(signal=np.ones((24, 20)), label=SIGNALS["label"]),
    "huge": pack(signal=SIGNALS["signal"] * 1e308, label=SIGNALS["label"]),
    "tiny": pack(signal=SIGNALS["signal"] * 1e-310, label=SIGNALS["label"]),
    "not a number": pack(signal=np.full((24, 20), np.nan), label=SIGNALS["label"]),
    "infinite": pack(signal=np.full((24, 20), np.inf), label=SIGNALS["label"]),
    "channels first": pack(signal=np.ones((24, 2, 500)), label=SIGNALS["label"]),
    "no label": pack(signal=SIGNALS["signal"]),
    "a label too few": pack(signal=SIGNALS["signal"], label=SIGNALS["label"][1:]),
    "one class": pack(signal=SIGNALS["signal"], label=np.zeros(24, int)),
    **{
        f"label {name}": pack(signal=np.ones((4, 20)), label=label)
        for name, label in {
            "nan": np.full(4, np.nan),
            "large": np.full(4, 2**62),
            "beyond int64": np.full(4, 2**63, np.uint64),
            "negative": np.full(4, -1),
            "wide": np.zeros((4, 2), int),
            "truths": np.zeros(4, bool),
            "words": np.array(["a", "b", "a", "b"]),
        }.items()
    },
    **{
        f"offset {name}": pack(**WAVES | {"offset": offset})
        for name, offset in {
            "falling": WAVES["offset"][::-1],
            "beyond": WAVES["offset"] * 2,
            "real": WAVES["offset"] * 1.0,
            "huge": np.full(25, 2**63 - 1),
            "empty": np.zeros(0, int),
        }.items()
    },
    **{
        f"sample_rate {name}": pack(**SIGNALS, sample_rate=np.array(rate))
        for name, rate in {"0": 0, "nan": np.nan, "words": "fast", "two": [1, 2], "huge": 1e308, "tiny": 1e-308}.items()
    },
    **{
        f"split {name}": pack(**SIGNALS, split=split)
        for name, split in {
            "of 3": np.full(24, 3),
            "of train alone": np.zeros(24, int),
            "too short": np.zeros(3, int),
            "words": np.array(["test"] * 24),
        }.items()
    },
    **{
        f"classes {name}": pack(**SIGNALS, classes=np.array(classes))
        for name, classes in {
            "too few": ["a"],
            "twice": ["a", "a", "b"],
            "empty": [],
            "numbers": [1.5, 2.5, 3.5],
            "long": ["a" * 9999, "b", "c"],
        }.items()
    },
}
FILES: dict[str, tuple[str, bytes]] = {
    f"{source}: {name}": (source, content)
    for source, made in (("text", TEXTS), ("csv", TABLES), ("npz", ARCHIVES))
    for name, content in (damage(source) | made).items()
}


def make_folder(place: pathlib.Path, name: str, content: bytes) -> None:
    """Makes a folder that holds one file."""
    place.mkdir()
    (place / name).write_bytes(content)


PLACES: dict[str, Callable[[pathlib.Path], object]] = {
    "a file": lambda place: place.write_text("mine"),
    "below a file": lambda place: place.write_text("mine"),
    "a link to itself": lambda place: place.symlink_to(place),
    "a link to nothing": lambda place: place.symlink_to(place.parent / "nothing"),
    "another program's folder": lambda place: make_folder(place, "config.json", b"[]"),
    "a config of null": lambda place: make_folder(place, "config.json", b"null"),
    "a config of NUL": lambda place: make_folder(place, "config.json", b"\0" * 99),
    "a config of depth": lambda place: make_folder(place, "config.json", b"[" * 100_000),
    "a config of other keys": lambda place: make_folder(place, "config.json", b'{"model": {"layers": 3}}'),
    "a folder as config": lambda place: (place / "config.json").mkdir(parents=True),
    "a data set of lists": lambda place: make_folder(place, "dataset.json", b"[1]"),
}
