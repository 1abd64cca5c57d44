"""Tokens to text that may be shown at once: only whole characters, and nothing of a stop string."""

from collections.abc import Callable, Sequence

# What decoders write for bytes that are not, or not yet, a character.
_INCOMPLETE = "\ufffd"


class Detokenizer:
    """The text of a growing list of tokens, in pieces that never end within a character.

    The pieces add up to what `decode` says of all tokens at once. Only the last few are decoded
    again: those of the piece before, because decoders look at their neighbours (a leading space).
    """

    def __init__(self, decode: Callable[[list[int]], str]) -> None:
        self._decode = decode
        self._tokens: list[int] = []
        self._shown = 0

    def add(self, token: int) -> str:
        """Return what became certain with `token`; it may be nothing."""
        self._tokens.append(token)
        text = self._news()
        if not text or text.endswith(_INCOMPLETE):
            return ""
        self._tokens = self._tokens[self._shown :]
        self._shown = len(self._tokens)
        return text

    def rest(self) -> str:
        """Return what is still held back, now that no token follows."""
        return self._news()

    def _news(self) -> str:
        shown = self._decode(self._tokens[: self._shown])
        return self._decode(self._tokens)[len(shown) :]


class StopStrings:
    """Ends a text before the first of some strings, which may arrive in parts."""

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""

    def add(self, text: str) -> tuple[str, bool]:
        """Return what may be shown of the text so far, and whether it ends there."""
        text = self._held + text
        found = [at for each in self._strings if (at := text.find(each)) >= 0]
        if found:
            return text[: min(found)], True
        # What may be the beginning of one waits for what follows.
        beginnings = (each[:size] for each in self._strings for size in range(1, len(each)))
        held = max((len(each) for each in beginnings if text.endswith(each)), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def end(self, text: str) -> tuple[str, bool]:
        """Return the same for the last part of the text, after which nothing needs to wait."""
        shown, stopped = self.add(text)
        return (shown, True) if stopped else (shown + self._held, False)
