"""What may reach a terminal: model text made harmless, and a stream that outlives its reader."""

import io
import os
import unicodedata
from typing import TextIO

DULL = {"dumb", "unknown"}
"""Values of TERM of a terminal that can neither move its cursor nor colour."""

_CONTROL = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that move the cursor, change direction, hide or break lines."""


def visible(text: str) -> str:
    """`text` with everything that could act on a terminal written out, `\\x1b` for instance.

    Line feeds stay and a tab becomes four spaces. Invisible characters (zero width, right-to-left
    override) are written out too: they are a known way to fool a judge or a reader.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(map(_visible_character, text))


def _visible_character(character: str) -> str:
    if character == "\n":
        return character
    if character == "\t":
        return "    "
    if unicodedata.category(character) in _CONTROL:
        return character.encode("unicode_escape").decode("ascii")
    return character


def one_line(text: str) -> str:
    """`visible` text on a single line."""
    return visible(" ".join(text.split()))


def shows_unicode(stream: TextIO) -> bool:
    """Whether bars, arrows and box lines can be written to `stream`."""
    try:
        "▁█━│→·●".encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


class SafeStream:
    """A text stream whose writes never raise: a run must not end because its reader left.

    What the encoding cannot say is escaped. Once a write fails (a closed pipe, a terminal that is
    gone), everything is discarded, including what the interpreter flushes at exit.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream or io.StringIO()
        self._broken = stream is None  # as stdout is for a process started without one

    @property
    def encoding(self) -> str:
        """Encoding of the stream behind."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write and discard errors; returns the length of `text`."""
        if not self._broken:
            encoded = text.encode(self.encoding, "backslashreplace").decode(self.encoding)
            try:
                self._stream.write(encoded)
            except (OSError, ValueError):
                self._discard()
        return len(text)

    def flush(self) -> None:
        """Flush and discard errors."""
        if not self._broken:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._discard()

    def isatty(self) -> bool:
        """Whether a person may be looking."""
        return not self._broken and self._stream.isatty()

    def fileno(self) -> int:
        """Descriptor of the stream behind."""
        return self._stream.fileno()

    def _discard(self) -> None:
        self._broken = True
        try:
            target = self._stream.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, target)
            os.close(null)
        except (OSError, ValueError):
            return  # not a real file, or closed: nothing will be flushed to it
