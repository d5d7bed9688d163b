"""The terms of a text: what the full text indexes, and what the overlap of question and passage is counted in."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

_CJK = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
_RUN = re.compile(f"[{_CJK}]+|[^\\W_{_CJK}]+")
_CJK_RUN = re.compile(f"[{_CJK}]")
_LETTER = re.compile(r"[^\W\d_]")

_ENGLISH = """
a about after am an and any are as at be been before being but by can could d did do does doing don for from get had has
have having he her here him his how i if in into is isn it its just ll m may me my no not of on or our out please re s
she should so some such t than that the their them then there these they this those to too up us ve very was we were
what when where which while who whom why will with would you your
"""
STOP_WORDS = frozenset(_ENGLISH.split())
"""English words that say nothing about the subject of a question; indexes keep them, questions leave them out."""


def terms(text: str) -> list[str]:
    """Lower-cased words in their order; a run of CJK characters becomes its overlapping pairs.

    Pairs stand in for words where a script writes none between spaces; a character alone stays itself.
    """
    found: list[str] = []
    for run in _RUN.findall(unicodedata.normalize("NFKC", text).lower()):
        if _CJK_RUN.match(run) and len(run) > 1:
            found.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            found.append(run)
    return found


def query_terms(text: str, *, limit: int = 64) -> list[str]:
    """The distinct terms of a question without stop words (with them, where nothing else is left)."""
    every = list(dict.fromkeys(terms(text)))
    content = [term for term in every if term not in STOP_WORDS]
    return (content or every)[:limit]


@lru_cache(maxsize=65536)
def stem(term: str) -> str:
    """A word without its commonest English endings, so that "refunds" in a question meets "refund" in a passage.

    Coarser than the full text's Porter stemmer; only for counting overlap, never stored.
    """
    if len(term) < 4 or not term.isascii():
        return term
    for ending, replacement in (("ies", "y"), ("ing", ""), ("ied", "y"), ("ed", ""), ("es", ""), ("s", "")):
        if term.endswith(ending) and len(term) - len(ending) >= 3 and not term.endswith("ss"):
            term = term[: len(term) - len(ending)] + replacement
            break
    if len(term) > 4 and term[-1] == term[-2] and term[-1] not in "lsz":
        return term[:-1]
    return term.removesuffix("e") if len(term) > 4 else term


def language(text: str) -> str:
    """`zh` where at least a fifth of the letters are CJK characters, else `en`."""
    letters = len(_LETTER.findall(text))
    return "zh" if letters and len(_CJK_RUN.findall(text)) / letters >= 0.2 else "en"
