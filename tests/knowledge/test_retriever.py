"""LangChain's faces of the knowledge base, by LangChain's own standard suites and by what is ours."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.vectorstores import VectorStore
from langchain_tests.integration_tests import RetrieversIntegrationTests, VectorStoreIntegrationTests

from assistant.errors import ModelMissing
from assistant.knowledge.library import Library
from assistant.knowledge.retriever import GivenEmbedder, KnowledgeRetriever, KnowledgeVectorStore, _OneModel
from assistant.services import Embedder

from .doubles import open_library

for suite in (RetrieversIntegrationTests, VectorStoreIntegrationTests):
    for member in vars(suite).values():
        if inspect.iscoroutinefunction(member):
            pytest.mark.asyncio(member)  # the suites leave it to the project how their coroutines run


class TestStandardRetriever(RetrieversIntegrationTests):  # type: ignore[misc]  # the suite has no types
    @pytest.fixture(autouse=True)
    def _filled(self, library: Library) -> None:
        texts = ["red lamp", "green lamp", "blue tent", "old lamp", "lamp shade"]
        library.add_texts(texts, ids=list("abcde"), owner="test")
        self.library = library

    @property
    def retriever_constructor(self) -> type[KnowledgeRetriever]:
        return KnowledgeRetriever

    @property
    def retriever_constructor_params(self) -> dict[str, Any]:
        return {"library": self.library}

    @property
    def retriever_query_example(self) -> str:
        return "which lamp?"


class TestStandardVectorStore(VectorStoreIntegrationTests):  # type: ignore[misc]  # the suite has no types
    @pytest.fixture
    def vectorstore(self, library: Library) -> VectorStore:
        return KnowledgeVectorStore(library)


class TestStandardVectorStoreOfItsOwn(VectorStoreIntegrationTests):  # type: ignore[misc]  # the suite has no types
    """The same with the suite's own embedder, through `from_texts`."""

    @pytest.fixture
    def vectorstore(self, tmp_path: Path) -> Iterator[VectorStore]:
        store = KnowledgeVectorStore.from_texts([], self.get_embeddings(), home=tmp_path / "own")
        yield store
        store.close()


@pytest.fixture
def store(library: Library) -> KnowledgeVectorStore:
    store = KnowledgeVectorStore(library)
    store.add_texts(["red lamp", "blue tent"], [{"n": 1}, {"n": 2}], ids=["lamp", "tent"])
    return store


def test_scores_are_in_unit_range_and_higher_is_better(store: KnowledgeVectorStore) -> None:
    found = store.similarity_search_with_score("red lamp", k=2)
    assert [document.id for document, _ in found] == ["lamp", "tent"]
    assert 1.0 >= found[0][1] > found[1][1] >= 0.0
    assert [score for _, score in store.similarity_search_with_relevance_scores("red lamp", k=2)] == [
        s for _, s in found
    ]


def test_delete_without_ids_empties_the_collection(store: KnowledgeVectorStore) -> None:
    assert store.delete() is True
    assert store.similarity_search("lamp") == []


def test_embeddings_are_the_librarys(store: KnowledgeVectorStore, library: Library) -> None:
    with library.embedder() as embedder:
        expected = embedder.embed_queries(["red lamp"])[0].tolist()
    assert store.embeddings.embed_query("red lamp") == expected
    assert store.embeddings.embed_documents(["red lamp"]) == [expected]


def test_documents_keep_their_own_ids(library: Library) -> None:
    store = KnowledgeVectorStore.from_documents(
        [Document(id="x", page_content="one"), Document(page_content="two")],
        DeterministicFakeEmbedding(size=8),
        home=library._home / "own",
    )
    assert [document.id for document in store.similarity_search("one", k=1)] == ["x"]
    store.close()


def test_retriever_gives_source_and_score_of_files(library: Library, faq: Path) -> None:
    library.add([faq], owner="test")
    found = library.as_retriever(k=1).invoke("how long does a refund take?")
    assert found[0].page_content == "Refunds arrive within five working days."
    assert found[0].metadata.pop("score") > 0.5
    assert found[0].metadata == {"uri": "faq.csv", "title": "How long does a refund take?", "kind": "entry"}


def test_confident_retriever_is_silent_below_the_threshold(library: Library, faq: Path) -> None:
    library.add([faq], owner="test")
    assert library.as_retriever().invoke("zebra") != []
    assert library.as_retriever(confident=True).invoke("zebra") == []


def test_retriever_makes_a_chain(library: Library, faq: Path) -> None:
    library.add([faq], owner="test")
    chain = library.as_retriever(k=1) | (lambda documents: documents[0].id)
    assert chain.invoke("where is my parcel?") == "track"


def test_given_embedder_is_told_from_others_and_makes_unit_vectors() -> None:
    one, two = (GivenEmbedder(DeterministicFakeEmbedding(size=size)) for size in (6, 8))
    assert one.digest != two.digest
    assert one.digest == GivenEmbedder(DeterministicFakeEmbedding(size=6)).digest
    assert float((one.embed_documents(["a"]) ** 2).sum()) == pytest.approx(1.0)
    assert isinstance(one, Embedder)


def test_store_of_one_embedder_gives_nothing_else() -> None:
    models = _OneModel(GivenEmbedder(DeterministicFakeEmbedding(size=6)))
    with pytest.raises(ModelMissing, match="found Path x"), models.use("x", Path):
        pass


def test_importing_the_library_does_not_import_langchain(home: Path) -> None:
    code = (
        "import sys, assistant.knowledge.library; "
        "bad = {'langchain_core', 'langchain_text_splitters', 'torch', 'transformers', 'faiss', 'markdown_it'}; "
        "sys.exit(repr(bad & set(sys.modules)) if bad & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert open_library(home).collections() == []
