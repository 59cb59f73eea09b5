"""Tokenizers that cut the words of their own vocabulary."""

import itertools
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from spectail.errors import SourceError
from spectail.models.live.vocabulary import check_words

LETTERS = "abcdefghij"
WORDS = ["".join(letters) for letters in itertools.islice(itertools.permutations(LETTERS, 9), 60)]


def vocabulary(words: list[str]) -> tuple[dict[str, int], list[Any]]:
    """All beginnings of all words, and the merges that build them letter by letter."""
    parts, merges = list(LETTERS), []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in parts:
                parts.append(word[:end])
                merges.append((word[: end - 1], word[end - 1]))
    return {part: i for i, part in enumerate(parts)}, merges


def fast(inner: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def test_words_of_the_vocabulary_are_one_token() -> None:
    known, merges = vocabulary(WORDS)
    check_words(fast(Tokenizer(models.BPE(known, merges))), "model.gguf")


def test_a_space_in_front_is_a_token_more() -> None:
    known, merges = vocabulary(WORDS)
    known["▁"] = len(known)
    inner = Tokenizer(models.BPE(known, merges))
    inner.normalizer = normalizers.Prepend("▁")
    inner.decoder = decoders.Metaspace()
    assert len(fast(inner)(WORDS[0])["input_ids"]) == 2
    check_words(fast(inner), "model.gguf")


def test_lost_merges_are_noticed() -> None:
    known, _ = vocabulary(WORDS)
    lost = fast(Tokenizer(models.BPE(known, [])))
    with pytest.raises(SourceError, match=r"model.gguf: transformers builds its tokenizer wrongly"):
        check_words(lost, "model.gguf")


def test_scores_that_prefer_letters_are_noticed() -> None:
    """What transformers 5.17 makes of Gemma's: a unigram model with the scores of merges."""
    known, _ = vocabulary(WORDS)
    scores = [(part, -float(len(part) ** 3)) for part in known]
    with pytest.raises(SourceError, match="newer transformers"):
        check_words(fast(Tokenizer(models.Unigram(scores, unk_id=0))), "model.gguf")


@pytest.mark.parametrize("words", [[], WORDS[:5]])
def test_vocabularies_without_words_tell_nothing(words: list[str]) -> None:
    known = {part: i for i, part in enumerate([*LETTERS, *words])}
    inner = Tokenizer(models.BPE(known, []))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    check_words(fast(inner), "model.gguf")
    check_words(object(), "model.gguf")
