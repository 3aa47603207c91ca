"""Texts as tokens, and back: characters, bytes of UTF-8, words with <eos> for the end of a line, or what a model's own
tokenizer makes of them.
"""

import contextlib
import dataclasses
import functools
import itertools
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from selssm_jax.errors import InputError

LINE_END, UNKNOWN = "<eos>", "<unk>"
BLOCK = 1 << 18  # tokens that are looked at in one go
WINDOW, AHEAD = 1 << 16, 1 << 10  # characters of which subwords are made in one go, and of what follows them
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


def tokenise(text: str | Iterable[str], level: str, tokenizer: str = "") -> Tokens:
    """Returns the tokens of a text, whose codes are of the narrowest type that holds them.

    Args:
      text: whole, or in pieces one after the other, of which one at a time is held; of subwords all are, as text.
      level: "character"; "byte", those of its UTF-8; "word", between white space, with <eos> for every line's end;
        "subword".
      tokenizer: the content of the tokenizer.json that makes subwords.

    Raises:
      InputError: for subwords without a tokenizer, or without the package `tokenizers`, which reads it.
    """
    pieces = [text] if isinstance(text, str) else text
    if level == "subword":
        return _subwords(list(pieces), tokenizer)
    if level == "byte":
        return _characters(piece.encode().decode("latin-1") for piece in pieces)
    return _words(pieces) if level == "word" else _characters(pieces)


def build(splits: Mapping[str, Tokens], level: str) -> tuple[str, ...]:
    """Returns the sorted vocabulary of a text.

    Characters: all there are, in whatever split. Bytes: all 256. Words: those of the training split; where none of them
    is <unk>, words that occur once in it are left out and become <unk>, so that unseen words have a token that was
    trained.
    """
    if level == "byte":
        return BYTES
    if level == "character":
        return tuple(sorted(set().union(*(_present(tokens, 1) for tokens in splits.values()))))
    known = _present(splits["train"], 1)
    return tuple(sorted(known if UNKNOWN in known else _present(splits["train"], 2) | {UNKNOWN}))


def encode(tokens: Tokens, vocabulary: tuple[str, ...], name: str) -> np.ndarray:
    """Returns the tokens as places in a vocabulary, in the narrowest type that holds them; unknown words are <unk>
    where the vocabulary has it.

    Raises:
      InputError: for other unknown tokens; it names them and where the first one stands in the text called `name`.
    """
    number = {token: index for index, token in enumerate(vocabulary)}
    table = np.array([number.get(kind, number.get(UNKNOWN, -1)) for kind in tokens.kinds], np.int64)
    strange = np.flatnonzero(table < 0)
    place = next(
        (
            index
            for index in range(0, len(tokens) if strange.size else 0, BLOCK)
            if np.isin(tokens.codes[index : index + BLOCK], strange).any()
        ),
        None,
    )
    if place is not None:
        first = place + int(np.isin(tokens.codes[place : place + BLOCK], strange).argmax())
        missing = sorted(_present(Tokens(tokens.kinds, tokens.codes), 1) & {tokens.kinds[code] for code in strange})
        shown = ", ".join(map(repr, missing[:10])) + (", ..." if len(missing) > 10 else "")
        raise InputError(
            f"{name} has {len(missing)} kind(s) of token that the training vocabulary lacks: {shown}; the first, "
            f"{tokens.kinds[tokens.codes[first]]!r}, is {_where(tokens, first)}; replace them in the text, or train on "
            "a text that has them"
        )
    return np.maximum(table, 0).astype(narrowest(len(vocabulary)))[tokens.codes]


def unknown(tokens: Tokens, vocabulary: tuple[str, ...]) -> int:
    """Returns how many tokens `encode` takes for <unk> because the vocabulary lacks them."""
    strange = (
        [code for code, kind in enumerate(tokens.kinds) if kind not in set(vocabulary)] if UNKNOWN in vocabulary else []
    )
    return int(count_codes(tokens.codes, len(tokens.kinds))[strange].sum())


def narrowest(kinds: int) -> type[np.integer]:
    """Returns the type that holds 0 to kinds - 1."""
    return np.uint8 if kinds <= 1 << 8 else np.uint16 if kinds <= 1 << 16 else np.int32


def count_codes(codes: np.ndarray, kinds: int) -> np.ndarray:
    """Returns how often each of 0 to kinds - 1 occurs, without a wider copy of the codes."""
    total = np.zeros(kinds, np.int64)
    for first in range(0, len(codes), BLOCK):
        total += np.bincount(codes[first : first + BLOCK], minlength=kinds)
    return total


def beginning(level: str, tokenizer: str = "") -> np.ndarray:
    """Returns the tokens that a tokenizer itself puts before a text, int32: a beginning-of-text token, or none. Raises
    as `tokenise` does.
    """
    if level != "subword":
        return np.zeros(0, np.int32)
    with _parsing():
        whole = _reader(tokenizer).encode("a", add_special_tokens=True)
    count = next((index for index, special in enumerate(whole.special_tokens_mask) if not special), 0)
    return np.array(whole.ids[:count], np.int32)


def decode(tokens: np.ndarray, vocabulary: tuple[str, ...], level: str, tokenizer: str = "") -> str:
    """Returns the text of a sequence of tokens; bytes that are no UTF-8 become U+FFFD. Raises as `tokenise` does."""
    numbers = np.asarray(tokens).ravel()
    if level == "subword":
        with _parsing():
            return _reader(tokenizer).decode(numbers.tolist(), skip_special_tokens=False)
    if level == "byte":
        return bytes(number for number in numbers.tolist() if number < len(BYTES)).decode(errors="replace")
    kinds = [vocabulary[token] for token in numbers]
    return re.sub(rf" ?{LINE_END} ?", "\n", " ".join(kinds)) if level == "word" else "".join(kinds)


def _characters(pieces: Iterable[str]) -> Tokens:
    table = np.full(sys.maxunicode + 1, -1, np.int32)
    kinds: list[str] = []
    blocks = []
    for piece in pieces:
        points = np.frombuffer(piece.encode("utf-32-le", "surrogatepass"), np.uint32)
        present = np.flatnonzero(np.bincount(points))
        fresh = present[table[present] < 0]
        table[fresh] = len(kinds) + np.arange(len(fresh))
        kinds += map(chr, fresh)
        blocks.append(table[points].astype(narrowest(len(kinds))))
    return _join(kinds, blocks)


def _join(kinds: list[str], blocks: list[np.ndarray]) -> Tokens:
    kind = narrowest(len(kinds))
    return Tokens(tuple(kinds), np.concatenate([np.empty(0, kind), *blocks], dtype=kind))


def _subwords(pieces: list[str], tokenizer: str) -> Tokens:
    """What a tokenizer makes of a text: block after block where it looks at a text word by word, else in one go."""
    with _parsing():
        reader, names = _reader(tokenizer), dict[int, str]()
        blocks = _in_blocks(pieces, reader, names) or [
            _numbers(reader.encode("".join(pieces), add_special_tokens=False), None, names)
        ]
    present = np.array(sorted(names), np.int64)
    table = np.zeros(present.max(initial=0) + 1, narrowest(len(present)))
    table[present] = np.arange(len(present))
    return _join([names[number] for number in present.tolist()], [table[block] for block in blocks])


def _in_blocks(pieces: list[str], reader: Any, names: dict[int, str]) -> list[np.ndarray]:
    """The numbers of a text's tokens by blocks of it, their names into `names`; nothing, and no names, where blocks
    would not have those of the whole.

    A block ends between two words of the tokenizer, and must have seen the first tokens of the next one as that sees
    them: what it looks at word by word, from left to right, then hangs on nothing outside of the block.
    """
    blocks: list[np.ndarray] = []
    rest, ahead = "", list[int]()
    for piece in [*pieces, None]:
        rest += piece or ""
        while len(rest) > WINDOW + AHEAD or (piece is None and rest):
            encoding = reader.encode(rest[: WINDOW + AHEAD], add_special_tokens=False)
            whole = len(rest) <= WINDOW + AHEAD
            end = None if whole else _last_boundary(encoding, rest)
            if encoding.ids[: len(ahead)] != ahead or not (whole or end):
                names.clear()
                return []
            blocks.append(_numbers(encoding, end, names))
            ahead = (
                []
                if end is None
                else [
                    number
                    for number, (_, last) in zip(encoding.ids[end:], encoding.offsets[end:], strict=True)
                    if last <= WINDOW + AHEAD // 2
                ]
            )
            rest = "" if end is None else rest[encoding.offsets[end - 1][1] :]
    return blocks


def _numbers(encoding: Any, end: int | None, names: dict[int, str]) -> np.ndarray:
    """The numbers of the first tokens of an encoding, whose names go into `names`."""
    for number, token in zip(encoding.ids[:end], encoding.tokens[:end], strict=True):
        names.setdefault(number, token)
    return np.array(encoding.ids[:end], np.int32)


def _last_boundary(encoding: Any, text: str) -> int | None:
    """The last token of the first WINDOW characters that begins a word: one with a space before it if any, for without
    it many tokenizers would add one.
    """
    words, places = encoding.word_ids, encoding.offsets
    starts = [i for i in range(1, len(words)) if words[i] != words[i - 1] and 0 < places[i - 1][1] <= WINDOW]
    return next((i for i in reversed(starts) if text[places[i - 1][1]] == " "), starts[-1] if starts else None)


@functools.lru_cache(maxsize=1)
def _reader(tokenizer: str) -> Any:
    if not tokenizer:
        raise InputError(
            "data.level='subword' needs the tokenizer of an imported model: use 'character', 'word' or 'byte' for a "
            "model of your own"
        )
    try:
        import tokenizers
    except ImportError as error:
        raise InputError(
            "the model reads subwords, which the package tokenizers makes: install it, pip install "
            "'selssm_jax[subword]'"
        ) from error
    with _parsing():
        reader = tokenizers.Tokenizer.from_str(tokenizer)
        reader.no_truncation()  # a text is read whole, whatever a model's own examples were cut to
        reader.no_padding()
        return reader


@contextlib.contextmanager
def _parsing() -> Iterator[None]:
    """Says what a tokenizer of another form means: its package, of Rust, raises a bare Exception, or where it gives up
    a PanicException, which is none.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, InputError | MemoryError) or not (
            isinstance(error, Exception) or type(error).__name__ == "PanicException"
        ):
            raise
        raise InputError(
            f"the model's tokenizer cannot be read ({error}): restore tokenizer.json, and import the model again"
        ) from error


def _words(pieces: Iterable[str]) -> Tokens:
    number: dict[str, int] = {}
    blocks, rest = [], ""
    for piece in itertools.chain(pieces, [""]):
        text = rest + piece
        end = max(text.rfind(" "), text.rfind("\n")) + 1 if piece else len(text)  # a word may go on in the next piece
        text, rest = text[:end], text[end:]
        codes = [number.setdefault(word, len(number)) for word in text.replace("\n", f" {LINE_END} ").split()]
        blocks.append(np.array(codes, narrowest(len(number))))
    return _join(list(number), blocks)


def _present(tokens: Tokens, times: int) -> set[str]:
    counts = count_codes(tokens.codes, len(tokens.kinds))
    return {kind for kind, count in zip(tokens.kinds, counts, strict=True) if count >= times}


def _where(tokens: Tokens, place: int) -> str:
    if "\n" not in tokens.kinds:
        return f"token {place + 1}"
    ends = np.flatnonzero(tokens.codes[:place] == tokens.kinds.index("\n"))
    return f"in line {len(ends) + 1}, column {place - (ends[-1] if ends.size else -1)}"
