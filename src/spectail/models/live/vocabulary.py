"""Notice a tokenizer that was not built as its file says."""

from __future__ import annotations

from typing import Any

from spectail.errors import SourceError

LETTERS = 8
"""Shortest words that are tried: they are in a vocabulary because a tokenizer merges them."""
WORDS = 200
"""Most words that are tried, spread over the vocabulary."""
FEWEST = 20
"""A vocabulary with fewer such words tells nothing, as one of bytes or characters."""


def check_words(tokenizer: Any, source: str) -> None:
    """Refuse a tokenizer that cuts the words of its own vocabulary to pieces.

    transformers rebuilds the tokenizer of a GGUF file, and version 5.17, for one, loses the merges
    of Gemma's. Texts are then cut almost to letters: the perplexity of Gemma-3-270M becomes four
    times as high, without a word. A working tokenizer gives one token for such a word, or two if it
    puts a space in front.

    Raises:
        SourceError: most words of the vocabulary become three tokens or more.

    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    known = tokenizer.get_vocab()
    words = sorted(w for w in known if w.isascii() and w.isalpha() and len(w) >= LETTERS)
    if len(words) < FEWEST:
        return
    tried = words[:: max(1, len(words) // WORDS)]
    cut = [w for w in tried if len(backend.encode(w, add_special_tokens=False).ids) > 2]
    if 2 * len(cut) > len(tried):
        raise SourceError(
            f"{source}: transformers builds its tokenizer wrongly: {cut[0]!r} is one token of the "
            "vocabulary and is cut to pieces; install a newer transformers, or give the folder "
            "that the file was made from"
        )
