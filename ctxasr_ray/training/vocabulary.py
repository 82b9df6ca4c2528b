"""Tokenizers as ordinary Hugging Face objects: characters for CTC, byte-pair pieces or characters for LMs."""

from collections.abc import Iterable
from typing import Any

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""The mark of a word start, as in SentencePiece."""
PAD, BOS, EOS, UNKNOWN = "<pad>", "<s>", "</s>", "<unk>"
CHARACTERS = "abcdefghijklmnopqrstuvwxyz'"


def character_tokenizer(characters: str = CHARACTERS) -> Any:
    """Makes a tokenizer of single characters and the word separator, whose last token, <pad>, is the CTC blank.

    Args:
        characters: The letters that may be written, without the space.

    Returns:
        A `ParakeetTokenizer`. Its `decode` merges repeats as CTC does, so pass `group_tokens=False` for a text
        that is no frame sequence. `pad_token_id` is the blank and is not 0.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import ParakeetTokenizer

    ids = {token: index for index, token in enumerate([SPACE, *characters, PAD])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return ParakeetTokenizer(tokenizer_object=tokenizer, pad_token=PAD, clean_up_tokenization_spaces=False)


def train_bpe(sentences: Iterable[str], vocabulary_size: int) -> Any:
    """Learns byte-pair pieces that carry their leading space, the first word of a text included.

    Args:
        sentences: Lower-case training texts.
        vocabulary_size: Pieces in all, with <pad> (0), <s> (1), </s> (2) and <unk> (3).

    Returns:
        A fast tokenizer that puts <s>, and no </s>, in front of a text: a language model's first word is
        conditioned on <s>, and a scorer that follows the tokenizer's own convention does the right thing.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=[PAD, BOS, EOS, UNKNOWN],
        initial_alphabet=[SPACE, *CHARACTERS],
        show_progress=False,
    )
    tokenizer.train_from_iterator(sentences, trainer)
    return _of_lm(tokenizer)


def character_lm_tokenizer(characters: str) -> Any:
    """Makes an LM's tokenizer of the labels that `character_tokenizer` gives a recogniser, spelled alike.

    A text begins with its first letter: no space stands before it, as none does in what a recogniser writes.

    Args:
        characters: The letters that may be written, without the space.

    Returns:
        A fast tokenizer that puts <s>, and no </s>, in front of a text, as that of `train_bpe` does.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    ids = {token: index for index, token in enumerate([PAD, BOS, EOS, UNKNOWN, SPACE, *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=[], unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="never")
    return _of_lm(tokenizer)


def _of_lm(tokenizer: Any) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        add_bos_token=True,
        add_eos_token=False,
        clean_up_tokenization_spaces=False,
    )
