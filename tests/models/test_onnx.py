"""The export gives torch's vectors, or it is not used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from assistant.errors import ArtifactRejected
from assistant.models import onnx, placing
from assistant.models.manifest import EmbedderFacts


def test_the_texts_of_the_comparison_cover_what_they_claim() -> None:
    texts = onnx.TEXTS

    assert len(texts) >= 32
    assert len(set(texts)) == len(texts)
    assert "" in texts
    assert max(len(text.split()) for text in texts) > 256
    for first, last in (("a", "z"), ("0", "9"), ("一", "龥"), ("가", "힣"), ("а", "я"), ("😀", "🙏")):
        assert any(first <= character <= last for text in texts for character in text)


def test_an_export_tells_nothing_of_the_machine(pulled_encoder: Path) -> None:
    graph = (pulled_encoder / "model.onnx").read_bytes()

    assert b".py" not in graph
    assert str(pulled_encoder.parents[2]).encode() not in graph


def test_an_export_of_other_weights_is_refused(encoder: Path, facts: EmbedderFacts) -> None:
    """The difference is a thousandth in one of the layers."""
    assert onnx.parity(encoder, facts) <= onnx.LIMIT
    tensors = load_file(encoder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"] += np.linspace(-0.01, 0.01, 32, dtype=np.float32)
    save_file(tensors, encoder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ArtifactRejected, match=r"expected model\.onnx to give torch's vectors within 0\.0001, found 0"):
        onnx.parity(encoder, facts)


def test_an_export_that_gives_no_numbers_is_refused(encoder: Path, facts: EmbedderFacts) -> None:
    tensors = load_file(encoder / "model.safetensors")
    tensors["encoder.layer.1.output.dense.bias"][:] = np.nan
    save_file(tensors, encoder / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ArtifactRejected, match="found nan"):
        onnx.parity(encoder, facts)


def test_another_cut_is_noticed(encoder: Path, facts: EmbedderFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parity covers tokens, cut and pooling, not the graph alone."""
    reference = onnx._reference
    shorter = facts.model_copy(update={"max_tokens": 32})
    monkeypatch.setattr(onnx, "_reference", lambda folder, _: reference(folder, shorter))

    with pytest.raises(ArtifactRejected):
        onnx.parity(encoder, facts)


def test_the_process_says_what_it_refuses(
    encoder: Path, facts: EmbedderFacts, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx, "export", lambda folder: folder)
    monkeypatch.setattr(onnx, "LIMIT", 0.0)

    assert onnx.main([str(encoder), facts.model_dump_json()]) == placing.REJECTED
    assert capsys.readouterr().err.splitlines()[-1].startswith("encoder: expected model.onnx to give torch's vectors")
