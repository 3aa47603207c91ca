"""Texts as tokens, and back: characters, bytes of UTF-8, words with <eos> for the end of a line, or what a model's own tokenizer makes of them."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from selssm_jax.errors import InputError

LINE_END, UNKNOWN = "<eos>", "<unk>"
BYTES = tuple(map(chr, range(256)))  # their names: byte b is called by the character U+00b


@dataclasses.dataclass(frozen=True)
class Tokens:
    """A text whose token i is kinds[codes[i]]; a slice of it is one too."""

    kinds: tuple[str, ...]
    codes: np.ndarray

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, part: slice) -> "Tokens":
        return Tokens(self.kinds, self.codes[part])


def tokenise(text: str, level: str, tokenizer: str = "") -> Tokens:
    """Returns the tokens of a text.

    Args:
      level: "character"; "byte", those of its UTF-8; "word", between white space, with <eos> for every line's end; "subword".
      tokenizer: the content of the tokenizer.json that makes subwords.

    Raises:
      InputError: for subwords without a tokenizer, or without the package `tokenizers`, which reads it.
    """
    if level == "subword":
        return _subwords(text, tokenizer)
    if level == "byte":
        return _characters(text.encode().decode("latin-1"))
    return _words(text) if level == "word" else _characters(text)


def build(splits: Mapping[str, Tokens], level: str) -> tuple[str, ...]:
    """Returns the sorted vocabulary of a text.

    Characters: all there are, in whatever split. Bytes: all 256. Words: those of the training split; where none of them is <unk>, words that
    occur once in it are left out and become <unk>, so that unseen words have a token that was trained.
    """
    if level == "byte":
        return BYTES
    if level == "character":
        return tuple(sorted(set().union(*(_present(tokens, 1) for tokens in splits.values()))))
    known = _present(splits["train"], 1)
    return tuple(sorted(known if UNKNOWN in known else _present(splits["train"], 2) | {UNKNOWN}))


def encode(tokens: Tokens, vocabulary: tuple[str, ...], name: str) -> np.ndarray:
    """Returns the tokens as places in a vocabulary, int32; unknown words are <unk> where the vocabulary has it.

    Raises:
      InputError: for other unknown tokens; it names them and where the first one stands in the text called `name`.
    """
    number = {token: index for index, token in enumerate(vocabulary)}
    table = np.array([number.get(kind, number.get(UNKNOWN, -1)) for kind in tokens.kinds], np.int32)
    encoded = table[tokens.codes]
    if encoded.size and encoded.min() < 0:
        first = int((encoded < 0).argmax())
        missing = sorted({tokens.kinds[code] for code in np.unique(tokens.codes[encoded < 0])})
        shown = ", ".join(map(repr, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise InputError(
            f"{name} has {len(missing)} kind(s) of token that the training vocabulary lacks: {shown}; the first, {tokens.kinds[tokens.codes[first]]!r}, "
            f"is {_where(tokens, first)}; replace them in the text, or train on a text that has them"
        )
    return encoded


def decode(tokens: np.ndarray, vocabulary: tuple[str, ...], level: str, tokenizer: str = "") -> str:
    """Returns the text of a sequence of tokens; bytes that are no UTF-8 become U+FFFD. Raises as `tokenise` does."""
    numbers = np.asarray(tokens).ravel()
    if level == "subword":
        return _reader(tokenizer).decode(numbers.tolist(), skip_special_tokens=False)
    if level == "byte":
        return bytes(number for number in numbers.tolist() if number < len(BYTES)).decode(errors="replace")
    kinds = [vocabulary[token] for token in numbers]
    return re.sub(rf" ?{LINE_END} ?", "\n", " ".join(kinds)) if level == "word" else "".join(kinds)


def _characters(text: str) -> Tokens:
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    present = np.flatnonzero(np.bincount(points))
    table = np.zeros(int(present[-1]) + 1 if present.size else 0, np.int32)
    table[present] = np.arange(len(present))
    return Tokens(tuple(map(chr, present)), table[points])


def _subwords(text: str, tokenizer: str) -> Tokens:
    found = _reader(tokenizer).encode(text, add_special_tokens=False)
    _, first, codes = np.unique(np.array(found.ids, np.int64), return_index=True, return_inverse=True)
    return Tokens(tuple(found.tokens[place] for place in first), codes.astype(np.int32))


@functools.lru_cache(maxsize=1)
def _reader(tokenizer: str) -> Any:
    if not tokenizer:
        raise InputError("data.level='subword' needs the tokenizer of an imported model: use 'character', 'word' or 'byte' for a model of your own")
    try:
        import tokenizers
    except ImportError as error:
        raise InputError("the model reads subwords, which the package tokenizers makes: install it, pip install 'selssm_jax[subword]'") from error
    return tokenizers.Tokenizer.from_str(tokenizer)


def _words(text: str) -> Tokens:
    number: dict[str, int] = {}
    codes: list[int] = []
    for index, line in enumerate(text.split("\n")):
        codes += [number.setdefault(word, len(number)) for word in ([LINE_END] if index else []) + line.split()]
    return Tokens(tuple(number), np.array(codes, np.int32))


def _present(tokens: Tokens, times: int) -> set[str]:
    counts = np.bincount(tokens.codes, minlength=len(tokens.kinds))
    return {kind for kind, count in zip(tokens.kinds, counts, strict=True) if count >= times}


def _where(tokens: Tokens, place: int) -> str:
    if "\n" not in tokens.kinds:
        return f"token {place + 1}"
    ends = np.flatnonzero(tokens.codes[:place] == tokens.kinds.index("\n"))
    return f"in line {len(ends) + 1}, column {place - (ends[-1] if ends.size else -1)}"
