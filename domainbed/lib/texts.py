"""Text that others wrote: in UTF-8, with a mark before it, or as Windows saves it."""

import codecs
from pathlib import Path

from domainbed.lib.errors import InputError

MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(path: Path | str) -> str:
    """The file's text; InputError, with its path, if it is no text in UTF-8."""
    try:
        content = Path(path).read_bytes()
        marked = (MARKS[mark] for mark in MARKS if content.startswith(mark))
        text = content.decode(next(marked, "utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not in UTF-8 ({error.reason} at byte {error.start}); save it "
            "as that."
        ) from error
    if "\0" in text:
        raise InputError(
            f"{path} is not in UTF-8, but perhaps UTF-16; save it as that."
        )
    return text.replace("\r\n", "\n")


def in_utf_8(text: str) -> str:
    """The text, escaped where it is in no UTF-8, as an old archive's names."""
    return text.encode(errors="backslashreplace").decode()


def lines(path: Path | str) -> list[str]:
    """The lines of `read_text` that are not blank."""
    return [line for line in read_text(path).splitlines() if line.strip()]
