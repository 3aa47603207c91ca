"""Texts with a label each, or a label for every token: read from a table, JSON lines, columns of words or folders, and
padded to one length.
"""

import csv
import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data import files, vocabulary
from selssm_jax.data.pipeline import SPLITS, WHOLE, Batch, Dataset, in_order, shuffled_rows
from selssm_jax.errors import InputError

SPLIT_NAMES = {"train": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2}
SHARE = 10  # one text in so many is for validation, and one for the test, where a file does not say which
SHOWN = 8  # columns or classes that a message names


class Row(NamedTuple):
    """A text as a file has it: where it stands, file and line, its text or its words, its label or theirs, and its
    split; label and split are None where the file has none.
    """

    place: str
    text: str | list[str]
    label: Any
    split: Any


class OwnTexts(NamedTuple):
    """What a file or folder holds: its texts, the sha256 of all of it, and what was noticed in reading, as words."""

    rows: list[Row]
    sha256: str
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class Rows:
    """Texts one after the other: text i is codes[offset[i]:offset[i + 1]]; a label for each, or for each code."""

    codes: np.ndarray
    offset: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.offset) - 1

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of every text."""
        return np.diff(self.offset)

    def select(self, rows: np.ndarray) -> "Rows":
        """Returns some of the texts."""
        places = np.concatenate([np.arange(0), *(np.arange(self.offset[row], self.offset[row + 1]) for row in rows)])
        offset = np.concatenate([[0], np.cumsum(self.lengths[rows])])
        return Rows(self.codes[places], offset, self.label[places if self.has_tags else rows])

    @property
    def has_tags(self) -> bool:
        """Whether every token has a label."""
        return len(self.label) == len(self.codes) and len(self.label) != len(self)


def dataset(config: Data, known: Mapping[str, Any], *, tagged: bool) -> Dataset:
    """Returns the task of naming the class of a text, or where `tagged` of every token of it.

    Texts are cut or padded at their end to data.length tokens, 0: the longest. What is in the training texts less than
    twice is <unk> there, as all is that they lack.

    Args:
      config: the file or folder (`read`), and what a token is (level); tagged ones are as the file has them.
      known: the metadata of a training run, whose vocabulary and classes then hold; {} in training.

    Raises:
      InputError: for a file that `read` refuses, labels that are missing or that the run never saw, fewer than two
        classes, and splits without a text.
    """
    rows, sha256, notes = read(config.file, tagged=tagged)
    level = "word" if tagged else config.level
    tokens, offset = _tokenise(rows, level)
    labels, classes = _number_labels(config.file, rows, tuple(known.get("classes") or ()), tagged=tagged)
    split = _split(rows)
    names = tuple(known.get("vocabulary") or ()) or _build(tokens, offset, split, level)
    every = Rows(vocabulary.encode(tokens, names, config.file), offset, labels)
    parts = {name: every.select(np.flatnonzero(split == number)) for number, name in enumerate(SPLITS)}
    for name, part in parts.items():
        if not len(part) and not known:
            raise InputError(f"the {name} split of {config.file} has no text: give every split at least one")
    parts |= {WHOLE: every} if known else {}
    longest = int(every.lengths.max())
    length = known["task"]["length"] if "task" in known else min(config.length or longest, longest)
    training = parts["train"] if config.train_on == "train" else _join(parts["train"], parts["validation"])
    source = _Texts(length, training, parts, tagged)
    return Dataset(
        task=Task(
            "token_classification" if tagged else "text_classification",
            vocab=len(names),
            classes=len(classes),
            length=length,
        ),
        draw=source.draw,
        cover=source.cover,
        info={
            "source": config.source,
            "file": config.file,
            "sha256": sha256,
            **{f"{name}_texts": len(parts[name]) for name in SPLITS},
            "classes": list(classes),
            "train_on": config.train_on,
        },
        baselines=source.baselines,
        vocabulary=names,
        level=level,
        sizes={name: len(part) for name, part in parts.items()},
        reading="; ".join(
            [_account(config.file, every, parts, length, len(names), vocabulary.unknown(tokens, names)), *notes]
        ),
    )


@dataclasses.dataclass(frozen=True)
class _Texts:
    length: int
    train: Rows
    splits: Mapping[str, Rows]
    tagged: bool

    def draw(self, seed: int, numbers: np.ndarray) -> Batch:
        return take(self.train, shuffled_rows(seed, numbers, len(self.train)), self.length, tagged=self.tagged)

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        texts = self.splits[split]
        return in_order(len(texts), batch_size, lambda rows: take(texts, rows, self.length, tagged=self.tagged))

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """The commonest class of training, and its share of the split; of a file as a whole its own commonest."""
        common = np.bincount((self.splits[WHOLE] if split == WHOLE else self.train).label).argmax()
        return {"majority class": {"accuracy": float((self.splits[split].label == common).mean())}}


def take(texts: Rows, rows: np.ndarray, length: int, *, tagged: bool) -> Batch:
    """Returns a batch of texts, cut or padded at their end to `length` tokens; what is padded has no weight."""
    inputs, targets = np.zeros((2, len(rows), length), np.int32)
    sizes = np.minimum(texts.lengths[rows], length)
    for index, (start, size) in enumerate(zip(texts.offset[rows], sizes, strict=True)):
        inputs[index, :size] = texts.codes[start : start + size]
        if tagged:
            targets[index, :size] = texts.label[start : start + size]
    valid = np.arange(length)[None] < sizes[:, None]
    return {
        "inputs": inputs,
        "targets": targets if tagged else texts.label[rows].astype(np.int32),
        "weights": valid.astype(np.float32) if tagged else np.ones(len(rows), np.float32),
        "valid": valid,
    }


def read(path: str, *, tagged: bool = False, labelled: bool = True) -> OwnTexts:
    """Returns the texts of a file or folder of one's own.

    - A table (CSV; also with semicolons or tabs) with the columns `text` and `label`, and if it likes `split`: train,
      validation or test.
    - JSON lines (.jsonl, .ndjson, .json): objects with these keys; tagged ones with `tokens` and `labels`, two lists.
    - Tagged ones else are lines of a word and its label, last on the line, an empty line between texts (CoNLL).
    - A folder LABEL/*.txt, or SPLIT/LABEL/*.txt.

    Where they need not be `labelled`, a folder has texts anywhere in it, and a .txt file is one text, or where each
    token is to be named, one on every line.

    Raises:
      InputError: that names the line, for a file that is none of these, or a text that is empty.
    """
    if pathlib.Path(path).expanduser().is_dir():
        if tagged:
            raise InputError(f"{path} is a folder: give a file with a label for every word")
        return _read_folder(path, labelled=labelled)
    file = files.open_own(path)
    kind = pathlib.Path(path).suffix.lower()
    if kind in (".jsonl", ".ndjson", ".json"):
        rows = list(_read_lines(file, "tokens" if tagged else "text", "labels" if tagged else "label"))
    elif tagged:
        rows = list(
            _read_sentences(file) if kind == ".txt" and not labelled else _read_columns(file, labelled=labelled)
        )
    elif kind == ".txt" and not labelled:
        rows = [Row(path, "".join(file.pieces()), None, None)]
    else:
        rows = list(_read_table(file))
    for row in rows:
        if not (row.text.strip() if isinstance(row.text, str) else row.text):
            raise InputError(f"{row.place} has no text: leave it out")
    if not rows:
        raise InputError(f"{path} has no text: give at least one")
    return OwnTexts(rows, file.sha256, file.notes)


def _read_folder(path: str, *, labelled: bool) -> OwnTexts:
    folder = pathlib.Path(path).expanduser()
    rows, every = [], []
    for place in sorted(folder.rglob("*.txt")):
        split, label = _read_place(place.relative_to(folder).parts[:-1], str(place)) if labelled else (None, None)
        every.append(files.open_own(str(place)))
        rows.append(Row(str(place), "".join(every[-1].pieces()), label, split))
    if not rows:
        raise InputError(f"{path} has no file LABEL/*.txt: give a folder for each label, with texts in it")
    return OwnTexts(rows, files.identify(every), [])


def _read_place(folders: tuple[str, ...], path: str) -> tuple[str | None, str]:
    """(Split, label) of a text in these folders."""
    if len(folders) == 1:
        return None, folders[0]
    if len(folders) == 2 and folders[0] in SPLIT_NAMES:
        return folders
    raise InputError(f"{path} is in no folder LABEL/ or SPLIT/LABEL/ of data.file: move it")


def _number_lines(file: files.OwnFile) -> Iterator[tuple[int, str]]:
    return enumerate("".join(file.pieces()).split("\n"), 1)


def _read_lines(file: files.OwnFile, text: str, label: str) -> Iterator[Row]:
    for number, line in _number_lines(file):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{file.path}: line {number} is no JSON ({error}): write one object a line") from error
        if not isinstance(row, dict) or not isinstance(row.get(text), str if text == "text" else list):
            raise InputError(f'{file.path}: line {number} is no {{"{text}": ..., "{label}": ...}}: give {text!r}')
        words = row[text]
        _check_types(f"{file.path}: line {number}", words, row.get(label))
        try:
            "".join(words).encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{file.path}: line {number} has half a character (\\u...): write it whole") from error
        yield Row(
            f"{file.path}: line {number}", words, None if row.get(label) == "" else row.get(label), row.get("split")
        )


def _check_types(place: str, words: str | list[Any], label: Any) -> None:
    """Raises InputError for a token that is no text, and a label that is none and no whole number."""
    strange = [word for word in words if not isinstance(word, str)]
    if strange:
        raise InputError(f"{place} has the token {json.dumps(strange[0])}: write it as a text, in quotes")
    labels = label if isinstance(label, list) and isinstance(words, list) else [] if label is None else [label]
    strange = [name for name in labels if type(name) not in (str, int)]
    if strange:
        raise InputError(f"{place} has the label {json.dumps(strange[0])}: write a text, in quotes, or a whole number")


def _read_table(file: files.OwnFile) -> Iterator[Row]:
    try:
        with file.open_text() as stream:
            first = stream.readline()
            mark = max(",;\t", key=first.count)
            names = [name.strip().lower() for name in next(csv.reader([first], delimiter=mark), [])]
            if "text" not in names:
                raise InputError(
                    f"{file.path} has the columns {', '.join(names[:SHOWN])}, expected 'text' and 'label' in its first "
                    "line: name them so, or give JSON lines"
                )
            twice = [name for name in names if name and names.count(name) > 1]
            if twice:
                raise InputError(
                    f"{file.path} names {names.count(twice[0])} columns {twice[0]!r}: give each a name of its own"
                )
            reader, place = csv.reader(stream, delimiter=mark), f"{file.path}: line 2"
            for cells in reader:
                if cells and len(cells) != len(names):
                    raise InputError(
                        f"{place} has {len(cells)} cells, the first line {len(names)}: quote texts "
                        "that hold the mark between cells"
                    )
                row = dict(zip(names, cells, strict=False))
                if row:
                    yield Row(place, row["text"], row.get("label") or None, row.get("split"))
                place = f"{file.path}: line {reader.line_num + 2}"  # below the first line
    except csv.Error as error:
        raise InputError(f"{file.path} is no table ({error}): give JSON lines") from error


def _read_sentences(file: files.OwnFile) -> Iterator[Row]:
    for number, line in _number_lines(file):
        if line.split():
            yield Row(f"{file.path}: line {number}", line.split(), None, None)


def _read_columns(file: files.OwnFile, *, labelled: bool) -> Iterator[Row]:
    words: list[str] = []
    labels: list[str] = []
    first = 1
    for number, line in itertools.chain(_number_lines(file), [(0, "")]):  # an end ends the last text too
        cells = line.split()
        if not cells or cells[0] == "-DOCSTART-":
            if words:
                yield Row(f"{file.path}: line {first}", words, labels, None)
            words, labels, first = [], [], number + 1
            continue
        if len(cells) < 2 and labelled:
            raise InputError(f"{file.path}: line {number} has no label: write a word and its label on each line")
        words.append(cells[0])
        labels.append(cells[-1])


def encode(text: str | list[str], names: tuple[str, ...], level: str) -> np.ndarray:
    """Returns the tokens of one text, int32; the words of a list are tokens as they are."""
    tokens, _ = _tokenise([Row("", text, None, None)], level)
    return vocabulary.encode(tokens, names, "the text").astype(np.int32)


def _tokenise(rows: Sequence[Row], level: str) -> tuple[vocabulary.Tokens, np.ndarray]:
    """(The tokens of all texts, where each begins and the last ends)."""
    texts = [row.text for row in rows if isinstance(row.text, str)]
    if texts:
        sizes = [len(_split_words(text, level)) for text in texts]
        return vocabulary.tokenise((text + " " * (level == "word") for text in texts), level), np.cumsum([0, *sizes])
    number: dict[str, int] = {}
    codes = [number.setdefault(word, len(number)) for row in rows for word in row.text]
    tokens = vocabulary.Tokens(tuple(number), np.array(codes, vocabulary.narrowest(len(number))))
    return tokens, np.cumsum([0, *(len(row.text) for row in rows)])


def _split_words(text: str, level: str) -> Sequence[Any]:
    """As many parts as a text has tokens."""
    if level == "byte":
        return text.encode()
    return text.replace("\n", f" {vocabulary.LINE_END} ").split() if level == "word" else text


def _build(tokens: vocabulary.Tokens, offset: np.ndarray, split: np.ndarray, level: str) -> tuple[str, ...]:
    """What is in the training texts twice at least, and <unk>; bytes are all 256."""
    training = np.repeat(split == 0, np.diff(offset))
    seen = vocabulary.Tokens(tokens.kinds, tokens.codes[training])
    return vocabulary.build({"train": seen}, "byte" if level == "byte" else "word")


def _number_labels(
    path: str, rows: Sequence[Row], known: tuple[str, ...], *, tagged: bool
) -> tuple[np.ndarray, tuple[str, ...]]:
    """(The number of each label, their names in order, those of the run where it is known)."""
    labels: list[str] = []
    for row in rows:
        given = row.label if isinstance(row.label, list) else []
        if row.label is None or (tagged and len(given) != len(row.text)):
            said = f"{len(given)} labels for {len(row.text)} tokens" if given else "no label"
            raise InputError(f"{row.place} has {said}: give one to each")
        labels += map(str, row.label) if tagged else [str(row.label)]
    there = sorted(set(labels), key=lambda name: (len(name), name) if name.isdigit() else (0, name))
    strange = [name for name in there if known and name not in known]
    if strange:
        raise InputError(
            f"{path} has the class {strange[0]!r}, which the run never saw; it knows {', '.join(known[:SHOWN])}: "
            "rename it, or leave its texts out"
        )
    if len(there) < 2 and not known:
        raise InputError(f"{path} has the class {there[0]!r} alone: give texts of two classes at least")
    number = {name: index for index, name in enumerate(known or there)}
    return np.array([number[label] for label in labels]), known or tuple(there)


def _split(rows: Sequence[Row]) -> np.ndarray:
    """0, 1 or 2 (training, validation, test) for every text: as the file says, else a fixed shuffle cut 80/10/10; where
    there is no validation, a tenth of training is.
    """
    order = np.random.default_rng(0).permutation(len(rows))
    if all(row.split in (None, "") for row in rows):
        return (order < len(rows) // SHARE * 2).astype(int) + (order < len(rows) // SHARE)
    for row in rows:
        if str(row.split).lower() not in SPLIT_NAMES:
            raise InputError(f"{row.place} is of the split {row.split!r}, expected one of {', '.join(SPLIT_NAMES)}")
    split = np.array([SPLIT_NAMES[str(row.split).lower()] for row in rows])
    if not (split == 1).any():
        training = np.flatnonzero(split == 0)
        split[training[np.argsort(order[training])[: len(training) // SHARE]]] = 1
    return split


def _join(first: Rows, second: Rows) -> Rows:
    offset = np.concatenate([first.offset, second.offset[1:] + first.offset[-1]])
    codes, label = (np.concatenate([getattr(first, name), getattr(second, name)]) for name in ("codes", "label"))
    return Rows(codes, offset, label)


def _account(path: str, every: Rows, parts: Mapping[str, Rows], length: int, vocab: int, unknown: int) -> str:
    cut = int((every.lengths > length).sum())
    return (
        f"{path}: read {len(every):,} texts of {every.lengths.min():,} to {every.lengths.max():,} tokens, vocabulary "
        f"{vocab:,}, {unknown:,} tokens read as {vocabulary.UNKNOWN}; kept "
        f"{', '.join(f'{len(parts[split]):,} {split}' for split in SPLITS)}, the first {length:,} tokens of each: "
        f"{cut:,} cut"
    )
