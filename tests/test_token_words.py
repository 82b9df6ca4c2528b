"""Every token's word, for byte-level BPE, SentencePiece with bytes, WordPiece and characters."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ctxasr_ray.models.token_words import token_words

TEXTS = [
    "call anna at noon",
    "the caf\u00e9 na\u00efve",
    "anna",
    "",
    "\u4f60\u597d anna's \u6211",
    "noon  noon",
    "a b c",
]
CORPUS = ["call anna at noon", "the cat sat on the mat", "anna called at noon and sat"]


def byte_level() -> Any:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=290, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    made.train_from_iterator(CORPUS, trainer)
    return made


def sentence_piece() -> Any:
    letters = [chr(c) for c in range(97, 123)]
    pieces = ["<unk>", "\u2581", *(f"<0x{n:02X}>" for n in range(256)), *letters, "\u2581a", "\u2581n", "na", "on"]
    ids = {piece: n for n, piece in enumerate(pieces)}
    merges = [("\u2581", "a"), ("\u2581", "n"), ("n", "a"), ("o", "n")]
    made = Tokenizer(models.BPE(ids, merges, unk_token="<unk>", byte_fallback=True))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()])
    return made


def word_piece() -> Any:
    letters = [chr(c) for c in range(97, 123)]
    pieces = ["[UNK]", "'", *letters, *(f"##{c}" for c in letters), "##oon", "anna", "the"]
    made = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.decoder = decoders.WordPiece(cleanup=False)
    return made


def characters() -> Any:
    alphabet = sorted({c for text in TEXTS for c in text})
    made = Tokenizer(models.WordLevel({c: n for n, c in enumerate(["<unk>", *alphabet])}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.decoder = decoders.Fuse()
    return made


KINDS = {
    "byte_level": byte_level,
    "sentence_piece": sentence_piece,
    "word_piece": word_piece,
    "characters": characters,
}


def expected(tokenizer: Any, text: str) -> list[int]:
    """Word of each token by the offsets that the tokenizer itself gives; silent on tokens that are a space."""
    word_of, words = [], 0
    for place, letter in enumerate(text):
        words += not letter.isspace() and (place == 0 or text[place - 1].isspace())
        word_of.append(-1 if letter.isspace() else words - 1)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans = [[w for w in word_of[slice(*span)] if w >= 0] for span in encoded["offset_mapping"]]
    spaces = [token in ("\u2581", "\u0120", " ") for token in tokenizer.convert_ids_to_tokens(encoded["input_ids"])]
    return [-1 if space else span[-1] for space, span in zip(spaces, spans, strict=True)]


@pytest.mark.parametrize("kind", KINDS)
def test_words_are_those_of_the_tokenizers_own_offsets(kind: str) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=KINDS[kind]())
    texts = TEXTS if kind != "word_piece" else [t for t in TEXTS if t.isascii() and "'" not in t]
    compared = 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        decoded = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        words = token_words(ids, lambda some: str(tokenizer.decode(some)), tokenizer.convert_ids_to_tokens(ids))
        assert words is not None
        assert {w for w in words if w >= 0} == set(range(len(decoded.split())))
        assert words == expected(tokenizer, text), (text, tokenizer.convert_ids_to_tokens(ids))
        compared += len(words)
    assert compared > 15


def test_tokens_that_cross_words_have_no_word() -> None:
    pieces = ["call", " anna at", "l anna"]

    def decode(ids: list[int]) -> str:
        return "".join(pieces[i] for i in ids)

    assert token_words([0, 1], decode, pieces[:2]) is None
    assert token_words([0, 2], decode, [pieces[0], pieces[2]]) is None
