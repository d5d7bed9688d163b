"""The knowledge base: what was added is found, what was removed or changed is not, in any process."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from sqlalchemy import select, text

from assistant.errors import UserError
from assistant.knowledge.library import Library
from assistant.schema import chunks
from assistant.services import KnowledgeBase

from .doubles import HashEmbedder, OneModel, open_library


def add(library: Library, *paths: Path, collection: str = "") -> list[str]:
    return [result.status for result in library.add(paths, collection=collection, owner="test")]


def first(library: Library, query: str, collection: str = "") -> str:
    hits = library.search(query, collection=collection).hits
    return hits[0].id if hits else ""


def test_is_what_plugins_ask_for(library: Library) -> None:
    assert isinstance(library, KnowledgeBase)


def test_entry_is_found_with_its_answer_as_written(library: Library, faq: Path) -> None:
    add(library, faq)
    hits = library.search("how long until my refund?")
    best = hits.hits[0]
    assert (best.id, best.kind, best.title, best.text, best.uri, best.language) == (
        "refund-time",
        "entry",
        "How long does a refund take?",
        "Refunds arrive within five working days.",
        "faq.csv",
        "en",
    )
    assert hits.sequence == 1
    assert 0.0 < hits.threshold < 1.0
    assert set(best.trace) == {"cosine", "bm25"}


def test_scores_are_probabilities_that_fall(library: Library, faq: Path, page: Path) -> None:
    add(library, faq, page)
    scores = [hit.score for hit in library.search("mattress return period and refund", limit=7).hits]
    assert len(scores) == 7
    assert scores == sorted(scores, reverse=True)
    assert all(0.0 <= score <= 1.0 for score in scores)


def test_passage_is_the_stretch_of_its_source(library: Library, page: Path) -> None:
    add(library, page)
    best = library.search("how long may I try a mattress?").hits[0]
    assert (best.id, best.title) == ("returns.md#mattresses", "Returns > Return period > Mattresses")
    with library._database.read() as connection:
        row = connection.execute(select(chunks).where(chunks.c.key == best.id)).one()
    assert page.read_text()[row.start : row.end] == best.text == "A mattress may be tried for sixty nights."


def test_chinese_question_finds_chinese_entry(library: Library, tmp_path: Path) -> None:
    path = tmp_path / "zh.csv"
    path.write_text(
        "id,question,answer\nr,退款需要多久？,五个工作日之内。\np,怎么付款？,支持银行卡。\n", encoding="utf-8"
    )
    add(library, path)
    best = library.search("我想知道退款要多久").hits[0]
    assert (best.id, best.language) == ("r", "zh")


def test_folder_is_read_through_and_names_are_relative(library: Library, tmp_path: Path, faq: Path, page: Path) -> None:
    folder = tmp_path / "shop"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    faq.rename(folder / "faq.csv")
    page.rename(folder / "deep" / "returns.md")
    (folder / "deep" / ".hidden" / "x.md").write_text("# No\n\nno")
    (folder / "logo.png").write_bytes(b"\x89PNG")
    results = library.add([folder], owner="test")
    assert [(result.uri, result.status, result.chunks) for result in results] == [
        ("deep/returns.md", "added", 4),
        ("faq.csv", "added", 3),
        ("logo.png", "failed", 0),
    ]
    assert "found .png" in results[2].problem
    assert str(folder / "logo.png") in results[2].problem


def test_bad_file_does_not_keep_the_others_out(library: Library, tmp_path: Path, faq: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("a,b\n1,2\n")
    assert add(library, bad, tmp_path / "absent.md", faq) == ["failed", "failed", "added"]
    assert first(library, "where is my parcel") == "track"


def test_report_is_told_of_each_file(library: Library, faq: Path, page: Path) -> None:
    lines: list[str] = []
    library.add([faq, page], owner="test", report=lines.append)
    assert lines == ["added faq.csv (3 chunks)", "added returns.md (4 chunks)"]


def test_same_file_again_is_unchanged_and_not_embedded(library: Library, faq: Path, embedder: HashEmbedder) -> None:
    add(library, faq)
    embedder.embedded.clear()
    before = library.search("refund").sequence
    assert add(library, faq) == ["unchanged"]
    assert embedder.embedded == []
    assert library.search("refund").sequence == before


def test_changed_file_replaces_what_changed_and_embeds_nothing_else(
    library: Library, faq: Path, embedder: HashEmbedder
) -> None:
    add(library, faq)
    identity = library.documents()[0].id
    rows = _rows(library)
    embedder.embedded.clear()
    faq.write_text(faq.read_text().replace("five working days", "two weeks") + "new,What is new?,This.,x\n")
    assert add(library, faq) == ["changed"]
    assert embedder.embedded == [
        "How long does a refund take?\nRefunds arrive within two weeks.",
        "What is new?\nThis.",
    ]
    assert library.documents()[0].id == identity
    after = _rows(library)
    assert (after["track"], after["pay"]) == (rows["track"], rows["pay"])
    assert after["refund-time"] > rows["refund-time"]
    assert [hit.text for hit in library.search("refund").hits if hit.id == "refund-time"] == [
        "Refunds arrive within two weeks."
    ]
    assert len(library.search("refund", limit=50).hits) == 4


def test_entry_gone_from_a_file_is_gone_from_the_answers(library: Library, faq: Path) -> None:
    add(library, faq)
    faq.write_text("".join(line for line in faq.read_text().splitlines(True) if not line.startswith("track")))
    add(library, faq)
    assert "track" not in {hit.id for hit in library.search("where is my parcel", limit=50).hits}


def test_same_id_in_two_files_fails_the_second_and_names_the_first(library: Library, faq: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.csv"
    other.write_text("id,question,answer\nfine,a?,b\npay,How?,So.\n")
    results = library.add([faq, other], owner="test")
    assert [result.status for result in results] == ["added", "failed"]
    assert "'pay', which is in faq.csv" in results[1].problem
    assert [document.uri for document in library.documents()] == ["faq.csv"]


def test_two_files_of_one_name_in_one_call_are_not_mixed_up(library: Library, faq: Path, tmp_path: Path) -> None:
    other = tmp_path / "b" / "faq.csv"
    other.parent.mkdir()
    other.write_text("id,question,answer\nz,a?,b\n")
    results = library.add([faq, other], owner="test")
    assert [result.status for result in results] == ["added", "failed"]
    assert "found faq.csv twice" in results[1].problem


def test_collections_do_not_see_each_other(library: Library, faq: Path, page: Path) -> None:
    add(library, faq, collection="one")
    add(library, page, collection="two")
    assert {hit.uri for hit in library.search("refund mattress", collection="one", limit=50).hits} == {"faq.csv"}
    assert {hit.uri for hit in library.search("refund mattress", collection="two", limit=50).hits} == {"returns.md"}
    assert [(c.name, c.documents, c.chunks, c.calibrated) for c in library.collections()] == [
        ("one", 1, 3, False),
        ("two", 1, 4, False),
    ]
    assert [d.uri for d in library.documents("two")] == ["returns.md"]


@pytest.mark.parametrize("name", ["../x", "A", "", ".", "a" * 65, "a/b"])
def test_collection_name_cannot_leave_its_folder(library: Library, faq: Path, name: str) -> None:
    library.settings = library.settings.model_copy(update={"collection": name})
    with pytest.raises(UserError, match="Expected a collection named with"):
        library.add([faq], collection=name, owner="test")


@pytest.mark.parametrize("query", ["", "  ", "?!…", "🙂"])
def test_question_without_words_finds_nothing(library: Library, faq: Path, query: str) -> None:
    add(library, faq)
    assert library.search(query).hits == ()


def test_unknown_or_empty_collection_finds_nothing_and_loads_nothing(home: Path, faq: Path) -> None:
    models = OneModel()
    library = open_library(home)
    library._models = models
    assert library.search("refund", collection="none").hits == ()
    add(library, faq)
    library.remove("faq.csv")
    models.borrowed = 0
    found = library.search("refund")
    assert (found.hits, found.sequence, models.borrowed) == ((), 2, 0)


@pytest.mark.parametrize("which", ["id", "uri"])
def test_removed_document_stops_answering_at_once(library: Library, faq: Path, page: Path, which: str) -> None:
    add(library, faq, page)
    assert first(library, "where is my parcel") == "track"
    document = next(d for d in library.documents() if d.uri == "faq.csv")
    assert library.remove(getattr(document, which)) == 3
    assert "track" not in {hit.id for hit in library.search("where is my parcel", limit=50).hits}
    assert [d.uri for d in library.documents()] == ["returns.md"]


def test_removed_document_stops_answering_in_another_program(
    library: Library, faq: Path, page: Path, home: Path
) -> None:
    add(library, faq, page)
    other = open_library(home)
    assert first(other, "where is my parcel") == "track"
    library.remove("faq.csv")
    library.add([page], owner="test")
    assert "track" not in {hit.id for hit in other.search("where is my parcel", limit=50).hits}
    faq.write_text(faq.read_text().replace("tracking link", "number"))
    add(library, faq)
    assert "Follow the number" in other.search("where is my parcel").hits[0].text


def test_removed_chunk_leaves_the_others_and_returns_with_its_file(library: Library, faq: Path) -> None:
    add(library, faq)
    assert library.remove("track") == 1
    assert {hit.id for hit in library.search("parcel refund cards", limit=50).hits} == {"refund-time", "pay"}
    assert add(library, faq) == ["changed"]
    assert first(library, "where is my parcel") == "track"


def test_removing_what_is_not_there_names_it(library: Library, faq: Path) -> None:
    add(library, faq)
    with pytest.raises(UserError, match="of the collection test, found none called 'nothing'"):
        library.remove("nothing")


def test_deleted_text_is_nowhere_in_the_database(library: Library, faq: Path, home: Path) -> None:
    faq.write_text(faq.read_text() + "s,The zanzibar question?,The quetzalcoatl answer.,x\n")
    add(library, faq)
    library.remove("s")
    with library._database.read() as connection:
        connection.execute(text("PRAGMA wal_checkpoint(TRUNCATE)"))
        assert not connection.scalars(select(chunks.c.text).where(chunks.c.text.contains("quetzalcoatl"))).all()
    library._database.close()
    assert b"quetzalcoatl" not in (home / "assistant.db").read_bytes()


def test_disabled_chunk_is_not_found(library: Library, faq: Path) -> None:
    add(library, faq)
    assert first(library, "where is my parcel") == "track"
    library._database.write(
        lambda c: c.execute(text("UPDATE chunks SET enabled = 0, sequence = 2 WHERE key = 'track'")) and None
    )
    assert "track" not in {hit.id for hit in library.search("where is my parcel", limit=50).hits}


def test_another_embedder_is_refused_until_the_documents_are_added_again(home: Path, faq: Path, page: Path) -> None:
    add(open_library(home), faq, page)
    library = open_library(home, embedder=HashEmbedder(seed="new"))
    with pytest.raises(UserError, match=r"was embedded with hashed .* Add its documents again"):
        library.search("refund")
    lines: list[str] = []
    library.add([faq], owner="test", report=lines.append)
    assert lines == ["embedded 7 chunks of test anew with hashed", "unchanged faq.csv (3 chunks)"]
    assert first(library, "a mattress may be tried for sixty nights") == "returns.md#mattresses"
    with pytest.raises(UserError, match="was embedded with hashed"):
        open_library(home).search("refund")


def test_broken_embedder_adds_nothing(library: Library, faq: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HashEmbedder, "embed_documents", lambda self, texts: self.embed_queries(texts) * 2)
    with pytest.raises(UserError, match="length 1 from the embedder hashed"):
        add(library, faq)
    assert library.documents() == []


def test_one_page_does_not_crowd_out_the_others(library: Library, tmp_path: Path) -> None:
    sections = "".join(f"## Refund {i}\n\nRefund of order {i}.\n\n" for i in range(20))
    (tmp_path / "loud.md").write_text(f"# Refund\n\n{sections}")
    (tmp_path / "quiet.md").write_text(
        "# Shop\n\n## Money\n\nYour refund takes a while. We also sell lamps and tents.\n"
    )
    (tmp_path / "other.md").write_text("# Shop\n\n## Talk\n\nAsk about a refund by telephone, on any day you like.\n")
    add(library, tmp_path)
    uris = [hit.uri for hit in library.search("refund", limit=5).hits]
    assert sorted(set(uris)) == ["loud.md", "other.md", "quiet.md"]
    assert len(library.search("refund", limit=20).hits) == 20


def test_texts_are_documents_under_their_own_ids(library: Library) -> None:
    library.add_texts(["red lamp", "green tent"], ids=["a", "b"], metadatas=[{"n": 1}, {"n": [2]}], owner="test")
    library.add_texts(["blue lamp"], ids=["a"], metadatas=[{"n": 3}], owner="test")
    assert [(c.key, c.text, c.metadata) for c in library.get(["b", "x", "a"])] == [
        ("b", "green tent", {"n": [2]}),
        ("a", "blue lamp", {"n": 3}),
    ]
    assert library.discard(["a", "gone"]) == 1
    assert first(library, "blue lamp") == "b"


def test_removed_texts_leave_the_index_in_memory_too(library: Library) -> None:
    """Else they would take the places of live ones among the nearest, until none is left."""
    keys = [f"k{i}" for i in range(80)]
    library.add_texts([f"lamp {i}" for i in range(80)], ids=keys, owner="test")
    library.search("lamp")
    library.discard(keys[:70])
    library.search("lamp")
    index = library._mirrors["test"]._index
    assert index is not None
    assert sorted(index.rows().tolist()) == sorted(_rows(library).values())


def test_ids_and_texts_must_match_in_number(library: Library) -> None:
    with pytest.raises(UserError, match="found 2, 1, 2"):
        library.add_texts(["a", "b"], ids=["x"], owner="test")


def test_threads_that_search_while_others_add_and_remove_see_whole_documents(library: Library, tmp_path: Path) -> None:
    """Both entries of a version are seen or neither: a search is one snapshot."""
    path = tmp_path / "v.csv"

    def write(version: int) -> None:
        path.write_text(f"id,question,answer\none,alpha?,version {version}\ntwo,beta?,version {version}\n")

    write(0)
    add(library, path)
    problems: list[object] = []
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen = {hit.text for hit in library.search("alpha beta", limit=10).hits}
            if len(seen) != 1:
                problems.append(seen)

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for version in range(1, 30):
        write(version)
        add(library, path)
    stop.set()
    for thread in threads:
        thread.join()
    assert problems == []


def _rows(library: Library) -> dict[str, int]:
    with library._database.read() as connection:
        found = connection.execute(select(chunks.c.key, chunks.c.row).where(~chunks.c.deleted))
        return {row.key: row.row for row in found}
