"""Text as examples: random training windows, streams for evaluation, entropy baselines."""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data import counter_rng, vocabulary
from selssm_jax.data.pipeline import SPLITS, WHOLE, Batch, Dataset
from selssm_jax.errors import InputError

# train | validation | test of a text without a split of its own: train + validation is its first 90 %
CUTS = (0.85, 0.9)
CONTEXT = 128  # tokens of a window where a config leaves its length to the text
UNIGRAM_COUNT = 0.01  # added to the count of every token
BIGRAM_COUNT = 5.0  # weight of the unigram distribution in that of the next token, in counts


Text = str | Iterable[str] | Mapping[str, str]


def dataset(
    config: Data, text: Text, known: tuple[str, ...] | None, info: Mapping[str, object], tokenizer: str = ""
) -> Dataset:
    """Returns the language task of a text.

    Args:
      config: what a token is (level), the window (length; 0: CONTEXT, less where the text is short), and what is
        trained on.
      text: one text, whole or in pieces, cut in reading order at 85 % and 90 % of its tokens, or the three splits.
      known: the vocabulary of a training run, else it is read off the text; the text then need not be cut into splits
        that are long enough.
      info: goes into the metadata; names the text in errors.
      tokenizer: of subwords; see `vocabulary.tokenise`.

    Raises:
      InputError: for a text shorter than a window, or with tokens that the vocabulary lacks.
    """
    name = str(info.get("file") or info["source"])
    streams, names, unknown = _encode_splits(config.level, text, known, name, tokenizer)
    length = config.length or max(min(CONTEXT, len(streams["train"]) // 8), 1)
    _check(name, streams if not known else {WHOLE: streams.get(WHOLE, streams["test"])}, length)
    train = (
        streams["train"] if config.train_on == "train" else np.concatenate([streams["train"], streams["validation"]])
    )
    source = _Streams(length, len(names), train, streams)
    return Dataset(
        task=Task("language", vocab=len(names), length=length),
        draw=source.draw,
        cover=source.cover,
        info={**info, **{f"{split}_tokens": len(streams[split]) for split in SPLITS}, "train_on": config.train_on},
        baselines=source.baselines,
        is_stream=True,
        vocabulary=names,
        level=config.level,
        tokenizer=tokenizer,
        sizes={split: max(len(stream) - 1, 0) for split, stream in streams.items()},
        reading=_account(name, config.level, streams, len(names), unknown) if WHOLE in streams else "",
    )


def _account(name: str, level: str, streams: Mapping[str, np.ndarray], kinds: int, unknown: int) -> str:
    strange = f"; {unknown:,} of them are not in the vocabulary and read as <unk>" if unknown else ""
    parts = ", ".join(f"{len(streams[split]):,} {split}" for split in SPLITS)
    return (
        f"{name}: read and kept {len(streams[WHOLE]):,} {level} tokens, vocabulary {kinds:,}{strange}; as splits "
        f"{parts}"
    )


@dataclasses.dataclass(frozen=True)
class _Streams:
    length: int
    vocab: int
    train: np.ndarray
    splits: Mapping[str, np.ndarray]

    def draw(self, seed: int, numbers: np.ndarray) -> Batch:
        """Windows that begin anywhere in the training text."""
        starts = (counter_rng.uniform((seed,), numbers, 1) * (len(self.train) - self.length)).astype(np.int64)
        return _language_batch(self.train[starts + np.arange(self.length + 1)[None]])

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        """`batch_size` streams side by side, in windows; every token but the first is predicted once."""
        stream = self.splits[split]
        last = len(stream) - 1
        rows = -(-last // batch_size)
        starts = np.arange(batch_size)[:, None] * rows
        ends = np.minimum(starts + rows, last)
        for first in range(0, rows, self.length):
            place = starts + first + np.arange(self.length + 1)[None]
            counted = place[:, :-1] < ends
            yield {
                **_language_batch(stream[np.minimum(place, last)]),
                "weights": counted.astype(np.float32),
                "valid": counted,
            }

    def baselines(self, split: str) -> dict[str, dict[str, float]]:
        """Cross-entropy of the split in nats a token, under frequencies of tokens and of pairs counted on the training
        text.

        p(x) = (n(x) + a) / sum, and p(y | x) = (n(x, y) + b p(y)) / (n(x) + b), with a = UNIGRAM_COUNT and b =
        BIGRAM_COUNT. A text as a whole has no training text beside it: all tokens are as probable.
        """
        if split == WHOLE or len(self.train) < 2:
            return {"uniform entropy": {"nats": float(np.log(self.vocab))}}
        counts = vocabulary.count_codes(self.train, self.vocab)
        unigram = (counts + UNIGRAM_COUNT) / (counts + UNIGRAM_COUNT).sum()
        followed = vocabulary.count_codes(self.train[:-1], self.vocab)
        pairs, seen = self._pairs()
        total, stream = np.zeros(2), self.splits[split]
        for first in range(0, len(stream) - 1, vocabulary.BLOCK):
            part = stream[first : first + vocabulary.BLOCK + 1].astype(np.int64)
            before, after = part[:-1], part[1:]
            place = np.minimum(np.searchsorted(pairs, before * self.vocab + after), len(pairs) - 1)
            together = np.where(pairs[place] == before * self.vocab + after, seen[place], 0)
            bigram = (together + BIGRAM_COUNT * unigram[after]) / (followed[before] + BIGRAM_COUNT)
            total += [-np.log(unigram[after]).sum(), -np.log(bigram).sum()]
        return {
            name: {"nats": float(nats / (len(stream) - 1))}
            for name, nats in zip(("unigram entropy", "bigram entropy"), total, strict=True)
        }

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """The pairs of the training text, in order, as first * vocab + second, and how often each is there."""
        pairs, seen = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for first in range(0, len(self.train) - 1, vocabulary.BLOCK):
            part = self.train[first : first + vocabulary.BLOCK + 1].astype(np.int64)
            fresh, times = np.unique(part[:-1] * self.vocab + part[1:], return_counts=True)
            pairs, place = np.unique(np.concatenate([pairs, fresh]), return_inverse=True)
            seen = np.bincount(place, np.concatenate([seen, times]), len(pairs)).astype(np.int64)
        return pairs, seen


def cut(sequence: Any) -> dict[str, Any]:
    """Returns the splits of anything that has a length and slices, in reading order: 85 % training, 5 % validation, 10
    % test.
    """
    marks = [0, *(int(share * len(sequence)) for share in CUTS), len(sequence)]
    return {split: sequence[first:last] for split, first, last in zip(SPLITS, marks[:-1], marks[1:], strict=True)}


def _encode_splits(
    level: str, text: Text, known: tuple[str, ...] | None, name: str, tokenizer: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...], int]:
    """The streams of the splits, the vocabulary, and how many tokens are not in it."""
    if isinstance(text, Mapping):
        parts = {split: vocabulary.tokenise(part, level, tokenizer) for split, part in text.items()}
        names = known or vocabulary.build(parts, level)
        return (
            {split: vocabulary.encode(part, names, f"the {split} split of {name}") for split, part in parts.items()},
            names,
            0,
        )
    tokens = vocabulary.tokenise(text, level, tokenizer)
    names = known or vocabulary.build(cut(tokens), level)
    stream = vocabulary.encode(tokens, names, name)
    return {**cut(stream), WHOLE: stream}, names, vocabulary.unknown(tokens, names)


def _check(name: str, streams: Mapping[str, np.ndarray], length: int) -> None:
    for split, stream in streams.items():
        least = length + 1 if split == "train" else 2
        if len(stream) < least:
            raise InputError(
                f"the {split} split of {name} has {len(stream)} tokens, data.length={length} needs at least {least}: "
                "use a longer text or a shorter data.length"
            )


def _language_batch(tokens: np.ndarray) -> Batch:
    tokens = tokens.astype(np.int32)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    return {
        "inputs": inputs,
        "targets": targets,
        "weights": np.ones(inputs.shape, np.float32),
        "valid": np.ones(inputs.shape, bool),
    }
