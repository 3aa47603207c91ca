"""Text: nothing lost between text and tokens, every token predicted exactly once, baselines that were counted by
hand.
"""

import collections
import itertools
import json
import math
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.config import Data
from selssm_jax.data import files, vocabulary
from selssm_jax.errors import InputError

RNG = np.random.default_rng(0)
TEXT = "".join(RNG.choice(list("abcdef \né"), 2000))
SPLITS = ("train", "validation", "test")


@pytest.fixture
def load(tmp_path):
    """Loads a text of one's own: (text, known metadata, options of the config) -> data set."""

    def loaded(text, known=None, **options):
        path = tmp_path / "mine.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return data.load(Data(source="text", file=str(path), **{"length": 16, **options}), known)

    return loaded


def stream(dataset, split):
    """All tokens of a split, read off its covering batches in rows of one."""
    batches = list(dataset.evaluate(split, 1))
    kept = [batch["valid"][0] for batch in batches]
    first = batches[0]["inputs"][0, :1]
    return np.concatenate([first, *(batch["targets"][0][valid] for batch, valid in zip(batches, kept, strict=True))])


@pytest.mark.parametrize("length", [1, 7, 16, 400])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 150])
def test_cover_predicts_every_token_but_the_first_once(load, length, batch_size):
    dataset = load(TEXT, length=length)
    expected = dataset.encode(TEXT[1800:])
    batches = list(dataset.evaluate("test", batch_size))
    inputs, targets, weights, valid = (
        np.concatenate([batch[key] for batch in batches], axis=1) for key in ("inputs", "targets", "weights", "valid")
    )
    np.testing.assert_array_equal(weights, valid)
    assert all(batch["inputs"].shape == (batch_size, length) for batch in batches)
    # Row after row, the scored targets are the text from its second token on, and the inputs the text up to its last
    # but one.
    np.testing.assert_array_equal(targets[valid], expected[1:])
    np.testing.assert_array_equal(inputs[valid], expected[:-1])


@pytest.mark.parametrize(("batch_size", "length"), [(1, 16), (3, 7), (8, 5), (4, 400)])
def test_rows_go_on_where_the_batch_before_ended(load, batch_size, length):
    dataset = load(TEXT, length=length)
    assert dataset.is_stream
    for before, after in itertools.pairwise(dataset.evaluate("test", batch_size)):
        goes_on = after["valid"][:, 0]
        np.testing.assert_array_equal(after["inputs"][goes_on, 0], before["targets"][goes_on, -1])
        assert before["valid"][goes_on].all(), "a row may end only once"


def test_padding_stands_at_the_end_of_rows_only(load):
    for batch in load(TEXT, length=7).evaluate("validation", 6):
        np.testing.assert_array_equal(batch["valid"], np.sort(batch["valid"], axis=1)[:, ::-1])


@pytest.mark.parametrize("level", ["character", "word"])
def test_cut_is_85_5_10_in_reading_order(load, level):
    text = TEXT if level == "character" else " ".join(RNG.choice(["one", "two", "three"], 2000))
    dataset = load(text, level=level)
    metadata = dataset.metadata()
    assert [metadata[f"{split}_tokens"] for split in SPLITS] == [1700, 100, 200]
    whole = np.concatenate([stream(dataset, split) for split in SPLITS])
    np.testing.assert_array_equal(whole, dataset.encode(text))


def test_train_and_validation_can_be_joined(load):
    text = "a" * 1700 + "b" * 100 + "c" * 200
    seen = {option: set(drawn(load(text, train_on=option)).ravel()) for option in ("train", "train+validation")}
    assert {option: {"abc"[token] for token in tokens} for option, tokens in seen.items()} == {
        "train": {"a"},
        "train+validation": {"a", "b"},
    }


def drawn(dataset, batches=8, batch_size=64):
    iterator = dataset.train(batch_size, seed=0)
    return np.concatenate([next(iterator)["inputs"] for _ in range(batches)])


def test_training_windows_are_pieces_of_the_training_text(load):
    dataset = load(TEXT)
    batch = next(dataset.train(32, seed=0))
    np.testing.assert_array_equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])
    text = TEXT[:1700]
    pieces = [
        dataset.decode(np.append(row, last)) for row, last in zip(batch["inputs"], batch["targets"][:, -1], strict=True)
    ]
    assert len(set(pieces)) > 20 and all(piece in text for piece in pieces)
    assert (batch["weights"] == 1).all() and batch["valid"].all()


def test_every_window_of_the_training_text_is_drawn(load):
    text = "".join(chr(0x4E00 + index) for index in range(100))  # 85 characters for training, each once
    firsts = drawn(load(text, length=80), 4)[:, 0]
    assert set(firsts) == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("text", [TEXT, "tab\tand\fform feed\n", "日本語 and 😀\n", "\n\n\n"])
def test_decoding_characters_undoes_encoding(load, text):
    dataset = load(TEXT + text * 20)
    encoded = dataset.encode(text)
    assert encoded.dtype == np.int32 and encoded.shape == (len(text),)
    assert dataset.decode(encoded) == text


@pytest.mark.parametrize("text", ["a b\nc d\n", "a\n\nb", "\na", "a b c"])
def test_decoding_words_undoes_encoding(load, text):
    dataset = load("a b c d\n" * 100, level="word")
    assert dataset.decode(dataset.encode(text)) == text


def test_words_end_lines_with_eos(load):
    dataset = load("a b\nc  d\te\n" * 50, level="word")
    names = np.array(dataset.vocabulary)[dataset.encode("a b\nc  d\te\n")]
    assert list(names) == ["a", "b", "<eos>", "c", "d", "e", "<eos>"]
    assert dataset.metadata()["level"] == "word"


def test_words_that_training_saw_once_or_never_are_unknown(load):
    dataset = load("one two\n" * 50 + "once\n" + "one two\n" * 50 + "late\n", level="word")
    assert set(dataset.vocabulary) == {"one", "two", "<eos>", "<unk>"}
    assert list(np.array(dataset.vocabulary)[dataset.encode("one once late")]) == ["one", "<unk>", "<unk>"]


def test_vocabulary_is_sorted_and_counted(load):
    dataset = load(TEXT)
    assert dataset.vocabulary == tuple(sorted(set(TEXT)))
    assert dataset.task.vocab == len(set(TEXT)) and dataset.metadata()["vocabulary"] == list(dataset.vocabulary)


def test_vocabulary_of_a_run_holds_for_another_text(load):
    known = json.loads(json.dumps(load(TEXT).metadata()))
    dataset = load("fed " * 100, known)
    assert list(dataset.vocabulary) == known["vocabulary"]
    assert dataset.decode(stream(dataset, "test")) == ("fed " * 100)[360:]


def test_unseen_characters_are_named_with_their_place(load):
    known = load(TEXT).metadata()
    with pytest.raises(
        InputError, match=r"mine\.txt.*2 kind\(s\).*'Q', 'ß'.*the first, 'Q', is in line 2, column 3"
    ) as found:
        load("abc\nabQdß\n" * 50, known)
    assert "replace them" in str(found.value)


def test_many_unseen_characters_are_not_all_listed(load):
    known = load(TEXT).metadata()
    with pytest.raises(InputError, match=r"has 26 kind\(s\)") as found:
        load("ABCDEFGHIJKLMNOPQRSTUVWXYZ" * 20, known)
    assert "'J', ...;" in str(found.value) and "'K'" not in str(found.value)


def test_encoding_an_unseen_character_is_an_error_of_the_text(load):
    with pytest.raises(InputError, match="the text has 1 kind"):
        load(TEXT).encode("abcX")


def counted(train, tokens):
    """Cross-entropies of tokens 1.. under smoothed frequencies, one token at a time."""
    kinds = sorted(set(TEXT))
    single, pairs = collections.Counter(train), collections.Counter(itertools.pairwise(train))
    followed = collections.Counter(train[:-1])
    unigram = {kind: (single[kind] + 0.01) / (len(train) + 0.01 * len(kinds)) for kind in kinds}
    first = -sum(math.log(unigram[kind]) for kind in tokens[1:]) / (len(tokens) - 1)
    second = -sum(
        math.log((pairs[x, y] + 5 * unigram[y]) / (followed[x] + 5)) for x, y in itertools.pairwise(tokens)
    ) / (len(tokens) - 1)
    return first, second


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("train_on", ["train", "train+validation"])
def test_baselines_equal_a_direct_count(load, split, train_on):
    found = load(TEXT, train_on=train_on).baselines(split)
    tokens = {"train": TEXT[:1700], "validation": TEXT[1700:1800], "test": TEXT[1800:]}[split]
    unigram, bigram = counted(TEXT[:1700] if train_on == "train" else TEXT[:1800], tokens)
    assert found["unigram entropy"]["nats"] == pytest.approx(unigram, rel=1e-9)
    assert found["bigram entropy"]["nats"] == pytest.approx(bigram, rel=1e-9)


def test_bigrams_beat_unigrams_where_tokens_follow_each_other(load):
    found = load("ab" * 2000).baselines("test")
    assert found["unigram entropy"]["nats"] == pytest.approx(math.log(2), abs=1e-3)
    assert found["bigram entropy"]["nats"] < 0.01


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"mine\.txt is empty: give a text"),
        (b" \n\n ", r"mine\.txt is empty: give a text"),
        (b"abc\xff" * 100, r"mine\.txt is not UTF-8 \(byte 3, line 1\): convert it"),
        (
            b"abc",
            r"the train split of .*mine\.txt has 2 tokens, data\.length=16 needs at least 17: use a longer text or a "
            r"shorter data\.length",
        ),
        (b"abcdefghijklmnopqrstuvwx", r"the validation split of .* has 1 tokens"),
    ],
)
def test_bad_texts_are_refused(load, content, message):
    with pytest.raises(InputError, match=message):
        load(content)


def test_line_ends_and_marks_of_other_systems_are_no_characters(load):
    dataset = load(b"\xef\xbb\xbf" + b"one\r\ntwo\r\n" * 100)
    assert dataset.vocabulary == tuple(sorted(set("one\ntwo\n")))


def test_missing_text_is_named(tmp_path):
    with pytest.raises(InputError, match=r"data\.file=.*nowhere\.txt.*No such file.*set it to an existing file"):
        data.load(Data(source="text", file=str(tmp_path / "nowhere.txt")))


def test_python_reference_is_embedded():
    dataset = data.load(Data(source="python_reference"))
    text = dataset.decode(stream(dataset, "test"))
    assert len(text) > 20_000 and "Python" in text
    assert (
        dataset.baselines("test")["bigram entropy"]["nats"]
        < dataset.baselines("test")["unigram entropy"]["nats"]
        < math.log(dataset.task.vocab)
    )


def test_bytes_are_those_of_utf8(load):
    text = "naïve – 🌱\n" * 30
    dataset = load(text, level="byte")
    assert dataset.task.vocab == 256 and dataset.metadata()["level"] == "byte"
    tokens = dataset.encode(text)
    np.testing.assert_array_equal(tokens, np.frombuffer(text.encode(), np.uint8))
    assert dataset.decode(tokens) == text and dataset.decode(tokens[:3]) == "na\ufffd"


def test_subwords_come_from_an_imported_tokenizer_alone(load):
    with pytest.raises(InputError, match=r"data.level='subword' needs the tokenizer of an imported model"):
        load("ab ab\n" * 90, level="subword")


def test_subwords_are_those_of_the_tokenizer(load):
    tokenizers = pytest.importorskip("tokenizers")
    names = ["a", "b", "ab", "\u0120", "\u0120ab", "\u010a"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.BPE(
            vocab={name: index for index, name in enumerate(names)}, merges=[("a", "b"), ("\u0120", "ab")]
        )
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        tokenizers.decoders.ByteLevel(),
    )
    dataset = load("ab ab ba\n" * 40, {"vocabulary": names, "tokenizer": tokenizer.to_str()}, level="subword")
    assert dataset.encode("ab ab ba\n").tolist() == [2, 4, 3, 1, 0, 5]
    assert dataset.decode(dataset.encode("ab ab ba\n")) == "ab ab ba\n"
    assert dataset.metadata()["tokenizer"] == tokenizer.to_str() and dataset.task.vocab == 6


def trained(kind):
    """A small tokenizer of a kind, on TEXT and some words."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="a"))
    if kind == "bytes":
        made.pre_tokenizer, made.post_processor = (
            tokenizers.pre_tokenizers.ByteLevel(),
            tokenizers.processors.ByteLevel(trim_offsets=True),
        )
    elif kind == "metaspace":
        made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    elif kind == "spaces":
        made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    elif kind == "one word":
        made.normalizer = tokenizers.normalizers.Sequence(
            [tokenizers.normalizers.Prepend("_"), tokenizers.normalizers.Replace(" ", "_")]
        )
    made.train_from_iterator(
        [TEXT, WORDS], tokenizers.trainers.BpeTrainer(vocab_size=120, show_progress=False, special_tokens=["<s>"])
    )
    return made


WORDS = "the state keeps  what a gate, lets in.\n\n\tAnd 春眠不觉晓，处处闻啼鸟 it's naïve <s> é " * 9


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "spaces", "one word"])
@pytest.mark.parametrize(
    "text",
    [WORDS, TEXT, "é" * 300, " \n" * 200, "a", "naïve" * 90 + " " + WORDS],
    ids=["words", "drawn", "long", "blank", "a", "long word"],
)
def test_subwords_of_pieces_are_those_of_the_whole(kind, text, monkeypatch):
    made = trained(kind)
    whole = made.encode(text, add_special_tokens=False).ids
    monkeypatch.setattr(vocabulary, "WINDOW", 90)
    monkeypatch.setattr(vocabulary, "AHEAD", 60)
    names: dict[int, str] = {}
    blocks = vocabulary._in_blocks([text], made, names)
    assert not blocks or np.concatenate(blocks).tolist() == whole
    assert len(blocks) > 5 or text is not WORDS or kind == "one word"
    for size in (7, 64, 10**6):
        found = vocabulary.tokenise(
            [text[first : first + size] for first in range(0, len(text), size)], "subword", made.to_str()
        )
        assert [found.kinds[code] for code in found.codes] == [made.id_to_token(number) for number in whole]


def test_no_tokenizer_cuts_a_text_to_the_length_of_its_model():
    made = trained("bytes")
    made.enable_truncation(5)
    made.enable_padding(length=4000)
    assert len(vocabulary.tokenise(WORDS, "subword", made.to_str())) == len(trained("bytes").encode(WORDS).ids) > 5


MEASURED = """
import resource, sys
from selssm_jax.data import vocabulary
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
tokenizer, words, count = open(sys.argv[1]).read(), sys.argv[2], int(sys.argv[3])
vocabulary.tokenise([words * 9], "subword", tokenizer)
before = peak()
tokens = vocabulary.tokenise((words * 900 for _ in range(count)), "subword", tokenizer)
print(len(tokens), peak() - before)
"""


def test_memory_of_subwords_is_a_few_times_the_text(tmp_path):
    """In a process of its own: the tokenizer's memory is not Python's."""
    (tmp_path / "tokenizer.json").write_text(trained("bytes").to_str())
    words = "the state keeps what a gate lets in\n"
    call = [sys.executable, "-c", MEASURED, str(tmp_path / "tokenizer.json"), words, "40"]
    count, peak = map(int, subprocess.run(call, capture_output=True, text=True, check=True).stdout.split())
    size = len(words) * 900 * 40
    assert count > size / 5 and peak < 3 * size + 40e6, f"{peak / size:.2f} times the text"


# Texts of one's own.


@pytest.mark.parametrize(
    ("words", "level"),
    [
        ("the state keeps what a gate lets in\n", "character"),
        ("春眠不觉晓，处处闻啼鸟。\n", "character"),
        ("the state keeps what\n", "word"),
    ],
)
def test_memory_is_a_few_times_the_text(tmp_path, words, level):
    path = tmp_path / "long.txt"
    path.write_text(words * (6_000_000 // len(words.encode())), encoding="utf-8")
    tracemalloc.start()
    try:
        dataset = data.load(Data(source="text", file=str(path), level=level, length=16))
        dataset.baselines("test")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 3 * path.stat().st_size + 24e6  # of a piece of a mebibyte, its characters in several types
    first = next(iter(dataset.evaluate("train", 1)))
    assert first["inputs"].dtype == np.int32 and dataset.decode(first["inputs"][0]).startswith(words[:4])


def test_pieces_of_a_text_are_the_text(tmp_path, monkeypatch):
    text = "\ufeffzwölf Boxkämpfer\r\njagen Viktor\r über\n\n den großen Sylter Deich 春眠不觉晓 🙂"
    path = tmp_path / "small.txt"
    path.write_bytes(text.encode())
    whole = text.removeprefix("\ufeff").replace("\r\n", "\n")
    for size in (1, 2, 3, 5, 1000):
        monkeypatch.setattr(files, "CHUNK", size)
        pieces = list(files.open_own(str(path)).pieces())
        assert "".join(pieces) == whole
        for level in ("character", "byte", "word"):
            here, there = vocabulary.tokenise(iter(pieces), level), vocabulary.tokenise(whole, level)
            assert [here.kinds[code] for code in here.codes] == [there.kinds[code] for code in there.codes]


@pytest.mark.parametrize("size", [4, 7, 1000])
def test_a_byte_that_is_no_utf8_is_named_wherever_it_lies(tmp_path, monkeypatch, size):
    path = tmp_path / "old.txt"
    path.write_bytes(b"one\ntwo\nth\xe9 three\n")
    monkeypatch.setattr(files, "CHUNK", size)
    with pytest.raises(InputError, match=r"old\.txt is not UTF-8 \(byte 10, line 3\)"):
        list(files.open_own(str(path)).pieces())


def test_words_that_a_run_never_saw_are_counted(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text("a b c a b c\n" * 40)
    known = data.load(Data(source="text", file=str(path), level="word", length=4)).metadata()
    path.write_text("a x b y\n" * 9)
    assert (
        "18 of them are not in the vocabulary and read as <unk>"
        in data.load(Data(source="text", file=str(path), level="word", length=4), known).reading
    )
