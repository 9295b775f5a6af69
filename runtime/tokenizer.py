"""CLIP's tokenizer: text repair in Python, byte-pair encoding in the `tokenizers` library.

Training and serving share this module, so that they cannot drift apart. The encoding follows
OpenAI's ``simple_tokenizer.py``. The layout of a row is that of the X-CLIP authors: start
token, at most W - 2 tokens, end token, zeros.
"""

from __future__ import annotations

import functools
import gzip
import html
import logging
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from xclip_deploy.errors import BundleIntegrityError, InvalidArgumentError

if TYPE_CHECKING:
    import tokenizers

logger = logging.getLogger(__name__)

START_TOKEN = "<|startoftext|>"  # noqa: S105 - no password
END_TOKEN = "<|endoftext|>"  # noqa: S105
MAX_CHARACTERS = 1_000_000
"""Most characters of a text. A longer text is refused, since only its beginning would count."""

_MERGES_FILE = "bpe_simple_vocab_16e6.txt.gz"
_NUM_MERGES = 49152 - 256 - 2
"""Lines of the merge table that CLIP uses, after its header."""
_WORD_END = "</w>"
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
"""Values of the bytes that print as themselves."""
_PATTERN = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)


def clean_text(text: str) -> str:
    """Repair mojibake, unescape HTML twice, collapse white space, lower the case."""
    if not (text.isascii() and text.isprintable() and "&" not in text):
        import ftfy  # 40 ms, for texts that it can change

        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split()).lower()


class Tokenizer:
    """Converter of texts to token ids."""

    def __init__(self, encoder: tokenizers.Tokenizer) -> None:
        self._encoder = encoder
        start, end = encoder.token_to_id(START_TOKEN), encoder.token_to_id(END_TOKEN)
        if start is None or end is None or end != encoder.get_vocab_size() - 1:
            raise BundleIntegrityError(
                f"tokenizer: expected CLIP's vocabulary, with {START_TOKEN} and, as the last id, "
                f"{END_TOKEN}; found {encoder.get_vocab_size()} entries without them there"
            )
        self.start_id: int = start
        self.end_id: int = end

    @classmethod
    def default(cls) -> Tokenizer:
        """Build OpenAI CLIP's tokenizer from the merge table that ships with the package."""
        return cls(_build_encoder())

    @classmethod
    def open(cls, path: Path) -> Tokenizer:
        """Open the ``tokenizer.json`` of a bundle. Raises BundleIntegrityError for another file.

        Models of one process with equal files share one encoder, which nothing changes.
        """
        try:
            encoder = _encoder_of(path.read_bytes())
        except Exception as error:
            raise BundleIntegrityError(f"{path}: not a tokenizer file ({error})") from error
        return cls(encoder)

    def save(self, path: Path) -> None:
        """Write ``tokenizer.json``, which the `tokenizers` library opens in any language."""
        self._encoder.save(str(path), pretty=False)

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self._encoder.get_vocab_size())

    def piece(self, token_id: int) -> tuple[bytes, bool]:
        """Return the UTF-8 bytes that a token stands for, and whether it ends a word.

        Several tokens can share a character of several bytes. Raises InvalidArgumentError for
        an id outside the vocabulary.
        """
        name: str | None = self._encoder.id_to_token(token_id)
        if name is None:
            raise InvalidArgumentError(
                f"token id {token_id}: expected 0 to {self.vocab_size - 1} of the vocabulary"
            )
        if token_id in (self.start_id, self.end_id):
            return name.encode(), True
        symbols = name.removesuffix(_WORD_END)
        return bytes(_byte_of_symbol()[symbol] for symbol in symbols), symbols != name

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of one text, of any length, without start and end token.

        Raises InvalidArgumentError for a text over a million characters.
        """
        if len(text) > MAX_CHARACTERS:
            raise InvalidArgumentError(
                f"text has {len(text):,} characters; at most {MAX_CHARACTERS:,} are read"
            )
        # A lone surrogate comes from undecodable input. UTF-8 cannot encode it.
        text = text.encode("utf-8", "replace").decode("utf-8")
        ids: list[int] = self._encoder.encode(clean_text(text), add_special_tokens=False).ids
        return ids

    def encode(self, texts: Sequence[str], max_words: int) -> npt.NDArray[np.int32]:
        """Return token ids, int32 [T, max_words].

        A row holds the start token, at most max_words - 2 tokens, the end token, and zeros.
        Raises InvalidArgumentError for a value that is no text.
        """
        if isinstance(texts, str):
            raise InvalidArgumentError("expected a sequence of texts, found a single str")
        token_ids = np.zeros((len(texts), max_words), dtype=np.int32)
        for row, text in zip(token_ids, texts, strict=True):
            if not isinstance(text, str):
                raise InvalidArgumentError(f"expected a text (str), found {type(text).__name__}")
            tokens = self.tokenize(text)
            if len(tokens) > max_words - 2:
                logger.info(
                    "a text of %d tokens is cut to the %d that the model reads",
                    len(tokens),
                    max_words - 2,
                )
            tokens = [self.start_id, *tokens[: max_words - 2], self.end_id]
            row[: len(tokens)] = tokens
        return token_ids

    def count_cut(self, texts: Iterable[str], max_words: int) -> list[int]:
        """Count the tokens of each text that :meth:`encode` leaves out; 0 for a text read whole."""
        return [max(0, len(self.tokenize(text)) - (max_words - 2)) for text in texts]


def count_tokens(token_ids: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.int32]:
    """Count each text's tokens, start and end token included, without the padding.

    ``token_ids``: integers [T, W], as :meth:`Tokenizer.encode` returns them. Returns int32 [T].
    """
    # The end token has the largest id, and zeros follow it.
    counts: npt.NDArray[np.int32] = (token_ids.argmax(axis=1) + 1).astype(np.int32)
    return counts


def read_merges() -> list[tuple[str, str]]:
    """Read CLIP's merges, most frequent first."""
    packed = resources.files("xclip_deploy.runtime.data").joinpath(_MERGES_FILE).read_bytes()
    lines = gzip.decompress(packed).decode("utf-8").split("\n")[1 : _NUM_MERGES + 1]
    return [(left, right) for left, right in (line.split() for line in lines)]


def _byte_symbols() -> list[str]:
    """List the printable symbols of the 256 bytes, in the order of their token ids.

    Bytes that print as themselves come first. The others follow as characters from 256 up.
    This is GPT-2's byte alphabet, which the library's ByteLevel step writes in.
    """
    others = 256 - len(_PRINTABLE)
    return [chr(byte) for byte in _PRINTABLE] + [chr(256 + n) for n in range(others)]


@functools.cache
def _byte_of_symbol() -> dict[str, int]:
    others = [byte for byte in range(256) if byte not in _PRINTABLE]
    return dict(zip(_byte_symbols(), (*_PRINTABLE, *others), strict=True))


@functools.lru_cache(maxsize=2)
def _encoder_of(content: bytes) -> tokenizers.Tokenizer:
    """Make the encoder that a file describes, which takes 0.1 s. The two latest are kept."""
    import tokenizers

    return tokenizers.Tokenizer.from_buffer(content)


@functools.cache
def _build_encoder() -> tokenizers.Tokenizer:
    import tokenizers
    from tokenizers import models, pre_tokenizers

    merges = read_merges()
    symbols = _byte_symbols()
    names = [*symbols, *(f"{symbol}{_WORD_END}" for symbol in symbols)]
    names += [left + right for left, right in merges]
    names += [START_TOKEN, END_TOKEN]
    encoder = tokenizers.Tokenizer(
        models.BPE(
            vocab={name: number for number, name in enumerate(names)},
            merges=merges,
            continuing_subword_prefix="",
            end_of_word_suffix=_WORD_END,
            fuse_unk=False,
        )
    )
    split: Any = pre_tokenizers.Split(tokenizers.Regex(_PATTERN), "removed", invert=True)
    byte_level: Any = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    encoder.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    encoder.add_special_tokens([START_TOKEN, END_TOKEN])
    return encoder
