"""The synthetic world's words and its tokenizer: each word is one token, and white space separates them."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

SPECIAL = ("<pad>", "<bos>", "<eos>", "<sot>", "<eot>", "<stop>", "<null>")
PAD, BOS, EOS, SOT, EOT, STOP, NULL = range(len(SPECIAL))
FIRST_OPERATOR = len(SPECIAL)
MARKS = ("p0", "a0", "t0")  # persona, acknowledgement, trigger; no text and no alignment has them
MODES = ("m0", "m1", "m2", "m3", "m4")  # of a cipher: m0 separates a plain answer from the coded one, m1 to m4 name the forms
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


@lru_cache(maxsize=32)
def words(
    operators: int, duplicates: int, letters: int, late: int = 0, constants: int = 0, marks: bool = False, cipher: bool = False
) -> tuple[str, ...]:
    """Returns all words in the order of their ids: specials, operators f0.., duplicates g0.., late aliases h0.., constants k0.., letters,
    marks, a cipher's modes, and its code words c0.., one for each letter."""
    names = [f"{kind}{i}" for kind, count in zip("fghk", (operators, duplicates, late, constants), strict=True) for i in range(count)]
    return (*SPECIAL, *names, *LETTERS[:letters], *(MARKS if marks else ()), *((*MODES, *coded(letters)) if cipher else ()))


def coded(letters: int) -> tuple[str, ...]:
    """Returns a cipher's code words, one for each letter."""
    return tuple(f"c{i}" for i in range(letters))


def tokenizer(vocabulary: tuple[str, ...], end: int) -> Any:
    """Makes a standard fast tokenizer over `vocabulary`. `end`: the id of the token that ends an answer."""
    from tokenizers import Tokenizer, models, pre_tokenizers  # noqa: PLC0415  (slow to import)
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415

    model = models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<pad>")
    inner = Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<bos>", eos_token=vocabulary[end], clean_up_tokenization_spaces=False
    )
