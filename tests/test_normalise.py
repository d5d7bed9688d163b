"""SEC-16: what text looks like before anything sees it."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from assistant.errors import UserError
from assistant.normalise import normalised

LIMIT = 20_000
FAMILY = "\U0001f468\u200d\U0001f469\u200d\U0001f467"

CORPUS = {
    "plain text": ("How long?", "How long?"),
    "white space around it": (" \n\t How long? \u3000", "How long?"),
    "a NUL": ("a\x00b", "ab"),
    "other controls": ("a\x01\x08\x0b\x0c\x1b[31m\x7f\x85\x9fb", "a[31mb"),
    "tabs and lines stay": ("a\tb\nc", "a\tb\nc"),
    "lines of other systems": ("a\r\nb\rc", "a\nb\nc"),
    "right to left override": ("abc\u202edef\u202c", "abcdef"),
    "every direction override": ("a\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069b", "ab"),
    "hidden tags": ("a" + "".join(chr(0xE0000 + ord(c)) for c in "evil") + "\U000e0001\U000e007fb", "ab"),
    "joiners stay where scripts need them": (FAMILY + " \u0646\u200c\u0627", FAMILY + " \u0646\u200c\u0627"),
    "composed": ("Cafe\u0301", "Café"),
    "Hangul": ("\u1112\u1161\u11ab", "한"),
    "a script with marks stays whole": ("ประเทศไทย น้ำ क्षत्रिय", "ประเทศไทย น้ำ क्षत्रिय"),
    "Chinese": ("退货要多久？", "退货要多久？"),
    "an emoji with its variation": ("\u2764\ufe0f", "\u2764\ufe0f"),
    "eight marks stay": ("q" + "\u0300" * 8, "q" + "\u0300" * 8),
    "a tower of marks": ("q" + "\u0300" * 100_00, "q" + "\u0300" * 8),
    "a tower with joiners in it": ("q" + "\u0300\u200d" * 20, "q" + "\u0300\u200d" * 8 + "\u200d" * 12),
    "a tower of marks without a class": ("q" + "\u034f\ufe0f" * 20, "q" + "\u034f\ufe0f" * 4),
    "the next letter counts anew": ("q" + "\u0300" * 9 + "q\u0301", "q" + "\u0300" * 8 + "q\u0301"),
    "what a control hid is composed": ("e\x00\u0301", "é"),
}


@pytest.mark.parametrize("what", CORPUS)
def test_the_corpus(what: str) -> None:
    given_text, expected = CORPUS[what]
    assert normalised(given_text, limit=LIMIT) == expected


@pytest.mark.parametrize("text", ["", " \n", "\u202e", "\x00\x1f", "\U000e0041", "\u3000"], ids=ascii)
def test_an_empty_message_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"The message is empty\. Type a question\."):
        normalised(text, limit=LIMIT)


def test_a_message_that_is_too_long_is_refused_with_both_lengths() -> None:
    assert normalised("x" * 100, limit=100)
    with pytest.raises(UserError, match=r"may have 100 characters; this one has 101\. Shorten it, or send a file\."):
        normalised("x" * 101, limit=100)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\udc00\ud800"], ids=ascii)
def test_half_of_a_character_is_refused(text: str) -> None:
    """CVE-2025-64439: lone surrogates broke a serializer elsewhere."""
    with pytest.raises(UserError, match=r"lone surrogate\)\. Type it again\."):
        normalised(text, limit=LIMIT)


ALL_PLANES = st.text(st.characters(min_codepoint=0, max_codepoint=0x10FFFF, codec="utf-8"), max_size=60)
NASTY = st.text(
    st.sampled_from("\u202e\u2066\x00\x85\r\n\t \U000e0041\u0300\u0315\u0345\u200d\u034f\u1161aé한"), max_size=60
)


def taken(text: str) -> str | None:
    """The text as it goes on; None where it was refused as empty."""
    try:
        return normalised(text, limit=LIMIT)
    except UserError as error:
        if "empty" not in str(error):
            raise
        return None


@given(ALL_PLANES | NASTY)
@example("e\u202e\u0301")
@example("\u1100" + "\u0300" * 9 + "\u1161")
def test_whatever_comes_in_what_goes_on_is_clean(text: str) -> None:
    clean = taken(text)
    if clean is None:
        return
    assert clean == clean.strip() != ""
    assert unicodedata.is_normalized("NFC", clean)
    clean.encode("utf-8")
    marks = 0
    for character in clean:
        point, category = ord(character), unicodedata.category(character)
        assert category != "Cc" or character in "\n\t"
        assert not 0x202A <= point <= 0x202E
        assert not 0x2066 <= point <= 0x2069
        assert not 0xE0000 <= point <= 0xE007F
        marks = marks + 1 if category[0] == "M" else marks if category == "Cf" else 0
        assert marks <= 8
    assert normalised(clean, limit=len(clean)) == clean, "twice is once"


REMOVED = dict.fromkeys(
    number
    for first, last in ((0, 8), (0xB, 0x1F), (0x7F, 0x9F), (0x202A, 0x202E), (0x2066, 0x2069), (0xE0000, 0xE007F))
    for number in range(first, last + 1)
)


@given(ALL_PLANES | NASTY)
def test_only_what_has_nothing_to_read_is_refused(text: str) -> None:
    clean = taken(text)
    assert (clean is None) == (not text.translate(REMOVED).strip())
