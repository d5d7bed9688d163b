"""What text must look like before anything of ours sees it: no control, tag or direction-override characters.

Follows Unicode TR 36 and 39 and CVE-2021-42574 (text that reads otherwise than it runs).
"""

from __future__ import annotations

import re
import unicodedata

from assistant.errors import UserError

_REMOVED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\U000e0000-\U000e007f]")
_MARKS = 8


def normalised(text: str, *, limit: int) -> str:
    """`text` in NFC without what must not reach a model; `UserError` where it is empty, too long or not Unicode."""
    if len(text) > limit:
        raise UserError(f"A message may have {limit} characters; this one has {len(text)}. Shorten it, or send a file.")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError("The message holds half of a character (a lone surrogate). Type it again.") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _capped(unicodedata.normalize("NFC", _REMOVED.sub("", text))).strip()
    if not text:
        raise UserError("The message is empty. Type a question.")
    return text


def _capped(text: str) -> str:
    """At most eight marks on a letter: more are only ever there to break a screen.

    Marks are told by their category: some (U+034F, U+FE0F) have no combining class and would start the count anew, and so
    would a joiner between them.
    """
    if text.isascii():
        return text
    kept, marks = [], 0
    for character in text:
        category = unicodedata.category(character)
        if category[0] == "M":
            marks += 1
            if marks > _MARKS:
                continue
        elif category != "Cf":
            marks = 0
        kept.append(character)
    return "".join(kept)
