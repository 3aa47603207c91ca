"""Texts of one's own with a label each, or one for every token: read, trained on, reported, predicted and embedded."""

import csv
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax import data
from selssm_jax.analysis import examples
from selssm_jax.analysis.gates import Sequence
from selssm_jax.config import Data
from selssm_jax.data import labelled_texts
from selssm_jax.errors import InputError
from selssm_jax.predict import load
from selssm_jax.prediction_files import predict_files
from selssm_jax.runs import open_run
from selssm_jax.tasks import kind_of
from selssm_jax.testing import check_task
from small_runs import write_untrained

GOOD, BAD = ["a good day", "good, all good", "so good it is"], ["a bad day", "bad, all bad", "so bad it is"]
TEXTS = [*((text, "p") for text in GOOD), *((text, "n") for text in BAD)] * 8
TAGGED = [(["the", "state", "keeps"], ["D", "N", "V"]), (["a", "gate"], ["D", "N"])] * 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The same texts as a table, JSON lines and folders, and words with labels as columns and JSON lines."""
    folder = tmp_path_factory.mktemp("labelled")
    with (folder / "texts.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("label", "text"), *((label, text) for text, label in TEXTS)])
    lines = [json.dumps({"text": text, "label": label}) for text, label in TEXTS]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")
    for number, (text, label) in enumerate(TEXTS):
        place = folder / "texts" / ("test" if number % 4 == 0 else "train") / label
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.txt").write_text(text)
    rows = ["\n".join(f"{word} x {label}" for word, label in zip(*pair, strict=True)) for pair in TAGGED]
    (folder / "words.conll").write_text("-DOCSTART- x O\n\n" + "\n\n".join(rows) + "\n")
    lines = [json.dumps({"tokens": words, "labels": labels}) for words, labels in TAGGED]
    (folder / "words.jsonl").write_text("\n".join(lines))
    return folder


def labelled(folder, name, **options):
    small = {"source": "labelled_text", "batch_size": 4, "length": 32, "level": "word"}
    return Data(file=str(folder / name), **(small | options))


@pytest.fixture(scope="module")
def trained(folder):
    """Runs as drawn: of texts, and of words."""
    write_untrained(folder / "run", labelled(folder, "texts.csv"))
    tagged = Data(source="tagged_text", file=str(folder / "words.conll"), batch_size=4, length=16)
    write_untrained(folder / "tagger", tagged)
    return {name: load(folder / name) for name in ("run", "tagger")}


def test_a_table_json_lines_and_folders_are_the_same_texts(folder):
    table, lines, tree = (data.load(labelled(folder, name)) for name in ("texts.csv", "texts.jsonl", "texts"))
    for dataset in (table, lines):
        assert dataset.sizes == {"train": 40, "validation": 4, "test": 4}
        assert (dataset.task.kind, dataset.task.classes, dataset.task.length) == ("text_classification", 2, 4)
    assert tree.sizes == {"train": 33, "validation": 3, "test": 12}  # it says which are for the test
    assert {"<unk>", "good", "day"} <= set(table.vocabulary) and table.info["classes"] == ["n", "p"]
    for ours, theirs in zip(table.evaluate("test", 4), lines.evaluate("test", 4), strict=True):
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    batch = next(iter(table.evaluate("test", 4)))
    for row, label, valid in zip(batch["inputs"], batch["targets"], batch["valid"], strict=True):
        assert (table.decode(row[valid]), table.info["classes"][label]) in TEXTS
    assert table.baselines("test")["majority class"]["accuracy"] in (0.25, 0.5, 0.75)
    letters = data.load(labelled(folder, "texts.csv", level="byte", length=5))
    assert letters.task.length == 5 and letters.decode(next(iter(letters.evaluate("test", 4)))["inputs"][0]) in {
        text[:5] for text, _ in TEXTS
    }
    assert "48 cut" in letters.reading


def test_words_with_labels_are_read_from_columns_and_json_lines(folder):
    for name in ("words.conll", "words.jsonl"):
        dataset = data.load(Data(source="tagged_text", file=str(folder / name), batch_size=4))
        assert (dataset.task.kind, dataset.task.length, dataset.info["classes"]) == (
            "token_classification",
            3,
            ["D", "N", "V"],
        )
        batch = next(iter(dataset.evaluate("test", 2)))
        words, labels = TAGGED[0] if batch["weights"][0].sum() == 3 else TAGGED[1]
        assert [dataset.vocabulary[token] for token in batch["inputs"][0, : len(words)]] == words
        assert [dataset.info["classes"][label] for label in batch["targets"][0, : len(words)]] == labels


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", "review,mark\nx,1\n", "has the columns review, mark, expected 'text' and 'label'"),
        ("a.csv", "text,label\nx,1\ny, z,2\n", "a.csv: line 3 has 3 cells, the first line 2: quote"),
        ("a.csv", "text,label\nx,1\n,2\n", "a.csv: line 3 has no text: leave it out"),
        ("a.csv", "text,label\nx,1\ny,\n", "a.csv: line 3 has no label: give one"),
        ("a.csv", "text,label\n" + "x,1\n" * 20, "has the class '1' alone: give texts of two classes"),
        (
            "a.csv",
            "text,label,split\n" + "x,1,later\ny,2,test\n",
            "a.csv: line 2 is of the split 'later', expected one of train",
        ),
        ("a.csv", "text,label,split\n" + "x,1,train\ny,2,train\n", "the validation split of .* has no text"),
        ("a.csv", "text,label,Text\nx,1,y\n", "names 2 columns 'text': give each a name of its own"),
        ("a.jsonl", '{"text": "x", "label": 1}\n{"text": "x", "label": true}\n', "line 2 has the label true: write"),
        ("a.jsonl", '{"text": "x", "label": 1.0}\n', "line 1 has the label 1.0: write a text, in quotes, or a whole"),
        ("a.jsonl", '{"text": "x", "label": ["x"]}\n', 'line 1 has the label \\["x"\\]: write'),
        ("a.jsonl", '{"text": "x"\n', "line 1 is no JSON"),
        ("a.jsonl", '{"txt": "x"}\n', "line 1 is no .*: give 'text'"),
        ("a.jsonl", '{"text": "\\ud800", "label": 0}\n', "line 1 has half a character"),
        ("a.jsonl", '{"text": "x", "label": ""}\n', "line 1 has no label"),
        ("a.csv", "text,label\n" + "x" * 200_000 + ",1\n", "is no table .*: give JSON lines"),
        ("a", None, r"has no file LABEL/\*.txt"),
    ],
)
def test_what_cannot_be_read_is_said_with_its_place(tmp_path, name, content, said):
    (tmp_path / name).mkdir() if content is None else (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=said):
        data.load(labelled(tmp_path, name))


def test_another_file_is_read_as_the_run_reads(folder, tmp_path):
    known = data.load(labelled(folder, "texts.csv")).metadata()
    (tmp_path / "a.csv").write_text("text;label\nso good, but new;p\n")
    whole = data.load(labelled(tmp_path, "a.csv"), known)
    batch = next(iter(whole.evaluate("whole", 1)))
    assert whole.decode(batch["inputs"][0]) == "so good, <unk> <unk>" and batch["targets"] == [1]
    (tmp_path / "a.csv").write_text("text,label\nx,q\n")
    with pytest.raises(InputError, match="has the class 'q', which the run never saw; it knows n, p"):
        data.load(labelled(tmp_path, "a.csv"), known)


def test_a_text_of_several_lines_is_named_by_its_first_and_other_letters_are_said(trained, tmp_path, capsys):
    (tmp_path / "a.csv").write_bytes('text\n"good\nday"\nbad déjà\n'.encode("cp1252"))
    _, *lines = predict_files(trained["run"], [str(tmp_path / "a.csv")])
    assert [line.split(",")[0].rpartition(": ")[2] for line in lines] == ["line 2", "line 4"]
    assert capsys.readouterr().err == f"{tmp_path / 'a.csv'}: not UTF-8, read as Windows-1252\n"
    (tmp_path / "b.csv").write_bytes(b"text,label\n" + "né,1\nvu,2\n".encode("cp1252") * 10)
    assert data.load(labelled(tmp_path, "b.csv")).reading.endswith("; not UTF-8, read as Windows-1252")


def test_labels_are_given_to_all_words(tmp_path):
    (tmp_path / "a.conll").write_text("the D\nstate\n")
    with pytest.raises(InputError, match="line 2 has no label"):
        labelled_texts.read(str(tmp_path / "a.conll"), tagged=True)
    for tokens, labels, said in (
        ('["a", null]', '["D", "N"]', "token null"),
        ('["a", "b"]', '["D", 0.5]', "label 0.5"),
    ):
        (tmp_path / "a.jsonl").write_text(f'{{"tokens": {tokens}, "labels": {labels}}}\n')
        with pytest.raises(InputError, match=f"line 1 has the {said}: write"):
            labelled_texts.read(str(tmp_path / "a.jsonl"), tagged=True)
    (tmp_path / "a.jsonl").write_text('{"tokens": ["a", "b"], "labels": ["D"]}\n')
    with pytest.raises(InputError, match="line 1 has 1 labels for 2 tokens"):
        data.load(Data(source="tagged_text", file=str(tmp_path / "a.jsonl")))


@pytest.mark.parametrize(("name", "source"), [("texts.csv", "labelled_text"), ("words.conll", "tagged_text")])
def test_the_task_obeys_the_laws_of_tasks(folder, name, source):
    check_task(data.load(labelled(folder, name, source=source)))


def test_texts_are_classified_alone_as_in_a_batch_and_from_files(folder, trained, tmp_path):
    model = trained["run"]
    texts = ["so good it is", "bad", "never seen words are unknown"]
    together = model.predict(texts)
    for index, text in enumerate(texts):
        alone = model.predict(text)
        np.testing.assert_allclose(alone.probabilities, together.probabilities[index], atol=1e-6)
        assert alone.label == together.label[index]
    logits, _ = model.model.apply({"params": model.params}, jnp.asarray(model.dataset.encode(texts[0])[None]))
    np.testing.assert_allclose(together.probabilities[0], np.exp(logits[0]) / np.exp(logits[0]).sum(), atol=1e-6)
    read, _ = model.read(texts[:2])  # filled up on the left, where nothing is read
    np.testing.assert_allclose(read.probabilities, together.probabilities[:2], atol=1e-6)
    assert model.score(texts[:2], together.label[:2])["accuracy"] == 1
    answer, state = model.read("so good")
    for token in model.dataset.encode("it is"):
        answer, state = model.step(token, state)
    np.testing.assert_allclose(answer.probabilities, together.probabilities[0], atol=1e-6)
    (tmp_path / "new.csv").write_text("text\n" + "\n".join(texts) + "\n")
    header, *lines = predict_files(model, [str(tmp_path / "new.csv")])
    assert header == "text,label,p(n),p(p)"
    rows = list(csv.reader(lines))
    assert [row[:2] for row in rows] == [
        [f"{tmp_path / 'new.csv'}: line {2 + index}", label] for index, label in enumerate(together.label)
    ]
    np.testing.assert_allclose([float(row[3]) for row in rows], together.probabilities[:, 1], atol=1e-5)
    assert len(list(predict_files(model, [str(folder / "texts" / "train" / "p")]))) == 1 + len(
        list((folder / "texts" / "train" / "p").iterdir())
    )


def test_every_word_has_its_class(trained, tmp_path):
    model = trained["tagger"]
    one, two = model.predict(["the state keeps", "a gate"])
    assert one.tokens == ("the", "state", "keeps") and len(two.labels) == 2 and one.probabilities.shape == (3, 3)
    np.testing.assert_allclose(model.predict("a gate").probabilities, two.probabilities, atol=1e-6)
    (tmp_path / "new.txt").write_text("the state keeps\na gate\n")
    header, *lines = predict_files(model, [str(tmp_path / "new.txt")])
    assert header == "text,token,label,p(D),p(N),p(V)"
    assert [line.split(",")[:3] for line in lines] == [
        [f"{tmp_path / 'new.txt'}: line {number}", word, label]
        for number, tags in enumerate((one, two), 1)
        for word, label in zip(tags.tokens, tags.labels, strict=True)
    ]


def test_an_embedding_counts_no_padding(trained):
    model = trained["run"]
    texts = ["so good it is", "bad", "a day"]
    mean, last = model.embed(texts), model.embed(texts, "last")
    assert mean.shape == last.shape == (3, 8)
    for index, text in enumerate(texts):
        np.testing.assert_allclose(model.embed(text), mean[index], atol=1e-6)
        np.testing.assert_allclose(model.embed(text, "last"), last[index], atol=1e-6)
    # the head of this task is linear in the mean
    out = model.params["head"]["out"]
    logits = mean @ np.asarray(out["kernel"]) + np.asarray(out["bias"])
    odds = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.predict(texts).probabilities, odds, atol=1e-5)
    with pytest.raises(ValueError, match="pool='max' is unknown"):
        inspect.unwrap(type(model).embed)(model, texts, "max")  # without the check of types that tests add


def test_an_example_shows_a_text_with_its_class(folder, trained):
    run = open_run(folder / "run")
    batch = {name: value[0] for name, value in next(iter(run.dataset.evaluate("test", 4))).items()}
    gates = {"block_0": np.ones((4, 6))}
    (shown,) = examples.show(run, [Sequence(batch, np.array([1.0, 2.0]), gates)])
    text, label = run.dataset.decode(batch["inputs"][batch["valid"]]), run.dataset.info["classes"][batch["targets"]]
    assert "".join(shown.pieces).strip() == text and len(shown.values) == len(shown.pieces)
    assert shown.caption.startswith(f"The first text of the split: class {label}, predicted p.")


def test_an_example_shows_the_class_of_every_word(folder, trained):
    run = open_run(folder / "tagger")
    batch = {name: value[0] for name, value in next(iter(run.dataset.evaluate("test", 2))).items()}
    right = np.eye(3)[batch["targets"]]
    (shown,) = examples.show(run, [Sequence(batch, right, {})])
    words, labels = TAGGED[0] if batch["valid"].sum() == 3 else TAGGED[1]
    assert (shown.pieces, shown.answers, shown.truths) == (words, labels, labels)
    kind, weighted = kind_of(run.dataset.task), {name: value[None] for name, value in batch.items()}
    total = kind.error_sums(run.model.config, jnp.asarray(right)[None], weighted)
    table = kind.error_parts(jax.device_get(total), run.dataset.info)
    assert table["classes"] == ["D", "N", "V"] and np.trace(table["confusion"]) == len(words)
