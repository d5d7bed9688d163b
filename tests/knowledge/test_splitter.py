"""Passages of a page."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from assistant.knowledge.splitter import Passage, passages, sections, slug

from .doubles import HashEmbedder


def cut(source: str, *, tokens: int = 64, title: str = "stem") -> list[Passage]:
    heading, found = sections(source, title)
    return list(passages(source, heading, found, HashEmbedder(), tokens))


def test_each_heading_opens_a_passage_with_its_path_as_title() -> None:
    found = cut("# Returns\n\nIntro.\n\n## Period\n\nThirty days.\n\n### Beds\n\nSixty.\n\n## Costs\n\nFour euros.\n")
    assert [(p.anchor, p.title, p.text) for p in found] == [
        ("returns", "Returns", "Intro."),
        ("period", "Returns > Period", "Thirty days."),
        ("beds", "Returns > Period > Beds", "Sixty."),
        ("costs", "Returns > Costs", "Four euros."),
    ]


def test_page_without_headings_is_called_by_its_file() -> None:
    assert [(p.anchor, p.title, p.text) for p in cut("Just text.", title="house rules")] == [
        ("house-rules", "house rules", "Just text.")
    ]


def test_number_sign_in_a_code_block_is_no_heading() -> None:
    found = cut("# Setup\n\n```sh\n# not a heading\nrun\n```\n")
    assert [p.anchor for p in found] == ["setup"]
    assert "# not a heading" in found[0].text


def test_underlined_heading_counts() -> None:
    assert [p.anchor for p in cut("Title\n=====\n\nOne.\n\nPart two\n--------\n\nTwo.\n")] == ["title", "part-two"]


def test_front_matter_is_no_passage() -> None:
    source = "---\nlayout: page\n---\n# Hello\n\nText.\n"
    found = cut(source)
    assert [(p.text, source[p.start : p.end]) for p in found] == [("Text.", "Text.")]


def test_same_heading_twice_gets_a_number() -> None:
    assert [p.anchor for p in cut("# A\n\n## Notes\n\nx\n\n# B\n\n## Notes\n\ny\n")] == ["notes", "notes-2"]


def test_slug_keeps_letters_of_every_script() -> None:
    assert slug("  退货 & Rückgabe: 30 Tage! ") == "退货-rückgabe-30-tage"


def test_long_section_is_cut_to_the_embedders_tokens_with_numbered_pieces() -> None:
    body = " ".join(f"Sentence number {i} says something about topic {i}." for i in range(60))
    found = cut(f"# Long\n\n## Part\n\n{body}\n", tokens=40)
    assert [p.anchor for p in found][:3] == ["part", "part-2", "part-3"]
    assert max(HashEmbedder().count_tokens([p.text for p in found])) <= 42
    assert found[-1].text.endswith("topic 59.")


def test_cjk_section_is_cut_at_its_own_full_stops() -> None:
    found = cut("# 退货\n\n" + "您可以在三十天内退货并获得全额退款。" * 12, tokens=40)
    assert len(found) > 1
    assert all(p.text.endswith("。") for p in found)


def test_repeated_text_keeps_its_own_offsets() -> None:
    source = "# T\n\n" + "The same words again and again. " * 40
    found = cut(source, tokens=20)
    assert [p.start for p in found] == sorted({p.start for p in found})
    assert found[-1].end == len(source.rstrip())


def test_pieces_share_the_last_sentence_and_leave_nothing_out() -> None:
    source = "# T\n\n" + " ".join(f"Sentence {i} is here." for i in range(60))
    found = cut(source, tokens=40)
    assert all(0 < before.end - after.start < 60 for before, after in pairwise(found))
    assert all(f"Sentence {i} is here." in " ".join(p.text for p in found) for i in range(60))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            ["# A", "## B", "###  C #", "text one. two", "\r\n", "```", "- item", "退货。", "", "Title\n===", "---"]
        )
    )
)
def test_offsets_name_the_passage_in_any_source(lines: list[str]) -> None:
    source = "\n".join(lines)
    found = cut(source, tokens=16)
    assert all(source[p.start : p.end] == p.text == p.text.strip() for p in found)
    assert len({p.anchor for p in found}) == len(found)
