"""The terms of a text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from assistant.knowledge.terms import language, query_terms, stem, terms


def test_words_are_lower_case_and_without_punctuation() -> None:
    assert terms("Don't PANIC: wi-fi costs €4.50!") == ["don", "t", "panic", "wi", "fi", "costs", "4", "50"]


def test_cjk_run_becomes_overlapping_pairs_and_a_single_character_stays() -> None:
    assert terms("退款政策 iPhone15退 好") == ["退款", "款政", "政策", "iphone15", "退", "好"]


def test_full_width_forms_are_the_same_as_narrow_ones() -> None:
    assert terms("ＡＢＣ１２") == ["abc12"]


def test_question_leaves_out_stop_words_and_repetitions() -> None:
    assert query_terms("How do I cancel the order, the ORDER?") == ["cancel", "order"]


def test_question_of_stop_words_alone_keeps_them() -> None:
    assert query_terms("Who are you?") == ["who", "are", "you"]


def test_long_question_is_limited() -> None:
    assert len(query_terms(" ".join(f"word{i}" for i in range(500)))) == 64


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("refunds", "refund"),
        ("shipping", "ship"),
        ("deliveries", "delivery"),
        ("cancelled", "cancell"),
    ],
)
def test_endings_of_a_word_meet_in_its_stem(one: str, other: str) -> None:
    assert stem(one) == stem(other)


def test_stem_leaves_short_and_foreign_words_alone() -> None:
    assert [stem(word) for word in ("bus", "as", "naïves", "退款", "glass")] == ["bus", "as", "naïves", "退款", "glass"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Where is my parcel?", "en"), ("我的包裹在哪里", "zh"), ("我的 iPhone 在哪里", "zh"), ("12 €", "en"), ("", "en")],
)
def test_language_is_guessed_by_the_share_of_cjk(text: str, expected: str) -> None:
    assert language(text) == expected


@given(st.text())
def test_any_text_has_terms_without_spaces(text: str) -> None:
    assert all(term and not any(c.isspace() for c in term) and stem(term) for term in terms(text))
