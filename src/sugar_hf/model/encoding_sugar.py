"""Texts to tokens, without leaving anything behind for the call that comes next."""

from functools import cached_property
from typing import Any

from tokenizers import Tokenizer

Encoded = tuple[list[int], list[tuple[int, int]]]  # token ids, first character of each and past its last


class Encoder:
    """The rules of a fast tokenizer, with settings that no call changes.

    A call of a tokenizer leaves how it pads, truncates and treats special tokens in the Rust tokenizer behind it,
    which all threads share, and which a call beside it then reads. The tokenizers here are copies of that one.

    Args:
        tokenizer: A tokenizer of transformers.

    Raises:
        ValueError: If it is no fast tokenizer.
    """

    def __init__(self, tokenizer: Any) -> None:
        _check(tokenizer)
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._rules = _rules(tokenizer)
        self._plain = _copied(self._backend)

    def is_of(self, tokenizer: Any) -> bool:
        """Whether it is still what this was made of: tokens may have been added since, or rules replaced.

        Raises:
            ValueError: If it is no fast tokenizer.
        """
        _check(tokenizer)
        return tokenizer.backend_tokenizer is self._backend and _rules(tokenizer) == self._rules

    def encode(self, strings: list[str], as_text: bool = False) -> list[Encoded]:
        """Tokenise strings, without the tokens that the tokenizer puts around a text.

        Args:
            strings: B strings.
            as_text: Take special tokens in them for text.
        """
        tokenizer = self._literal if as_text else self._plain
        encodings = tokenizer.encode_batch(strings, add_special_tokens=False)
        return [(encoding.ids, encoding.offsets) for encoding in encodings]

    @cached_property
    def newline(self) -> list[int]:
        """The token ids of a newline at the start of a string."""
        return self.encode(["\n"])[0][0]

    @cached_property
    def special_tokens(self) -> tuple[list[int], list[int]]:
        """The token ids that the tokenizer puts before a text, and those after it."""
        encoding = self._plain.encode("a", add_special_tokens=True)
        own = [i for i, is_added in enumerate(encoding.special_tokens_mask) if not is_added]
        return encoding.ids[: own[0]], encoding.ids[own[-1] + 1 :]

    @cached_property
    def _literal(self) -> Tokenizer:
        return _copied(self._backend, encode_special_tokens=True)


def _copied(backend: Tokenizer, encode_special_tokens: bool = False) -> Tokenizer:
    copied = Tokenizer.from_str(backend.to_str())
    copied.no_padding()
    copied.no_truncation()
    copied.encode_special_tokens = encode_special_tokens
    return copied


def _check(tokenizer: Any) -> None:
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not report the characters of a token. Use a fast tokenizer."
        )


def _rules(tokenizer: Any) -> tuple[Any, ...]:
    """What may be changed in a tokenizer once it is loaded, in a form that can be compared."""
    backend = tokenizer.backend_tokenizer
    added = tuple((i, token.content, token.special) for i, token in tokenizer.added_tokens_decoder.items())
    parts = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    return (backend.get_vocab_size(), added, *map(str, parts))
