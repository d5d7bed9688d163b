"""An encoder's weights to a graph for onnxruntime, and the proof that both give the same vectors.

Runs as a process of its own (`python -m assistant.models.onnx FOLDER FACTS`), so that torch's memory is gone afterwards.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from assistant.errors import ArtifactRejected
from assistant.models.embedder import GRAPH, OnnxEmbedder
from assistant.models.manifest import EmbedderFacts
from assistant.models.placing import REJECTED

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

LIMIT = 1e-4
"""The largest difference between a value of the two normalised vectors of a text that parity allows."""
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

_SENTENCE = "the parcel was sent back on Monday but my refund of the invoice has not arrived "
TEXTS: tuple[str, ...] = (
    *("", " ", "a", "?", "Hello", "REFUND", "12345", "order 4711-0815", "3.50 EUR + 19 % VAT = 4.17 EUR"),
    *("How long do I have to send something back?", "Where is my parcel", "can i pay by invoice??", "cancel it NOW!!!"),
    *("I'd like to exchange a T-shirt (size M) for a larger one.", "The voucher code doesn't work - what's wrong?"),
    *("naïve café façade, Köln, Señor, Łódź", "ßtraße ẞ", "привет, где мой заказ?", "مرحبا أين طلبي", "שלום"),
    *("我想退款", "请问订单什么时候发货？", "注文はどこですか", "배송은 언제 오나요?", "สวัสดี"),
    *(
        "😀",
        "thanks 👍🏽 great 🎉🎉",
        "👨‍👩‍👧‍👦 family",
        "a\tb\nc\r\nd",
        "e\u0301 versus \u00e9",
        "\u200b\u200d",
        "[CLS] [SEP] [MASK]",
    ),
    *("https://example.org/track?id=42&lang=en", "name@example.org", "x" * 300, "_" * 40, "(((((" + ")))))"),
    *(
        " ".join((_SENTENCE * 20).split()[:count])
        for count in (2, 5, 8, 16, 30, 60, 100, 150, 200, 240, 253, 254, 255, 256, 300)
    ),
)
"""What parity is measured on: empty, short, numbers, marks, scripts the vocabulary lacks, and lengths across the cut."""


def export(folder: Path) -> Path:
    """Write `model.onnx` beside the encoder's weights: fp32, any batch and length, tokens in, last hidden states out."""
    import torch

    model = _encoder(folder)
    ids = torch.full((2, 16), 7, dtype=torch.long)
    # Three tensors of their own: the exporter takes one tensor given twice for one input.
    arguments = (ids, torch.ones_like(ids), torch.zeros_like(ids))
    axes = {0: "batch", 1: "sequence"}
    with torch.inference_mode(), _quiet():
        program = torch.onnx.export(
            _plain(model),
            arguments,
            input_names=list(_INPUTS),
            output_names=["last_hidden_state"],
            dynamic_shapes=(axes, axes, axes),
            verbose=False,
        )
        assert program is not None, "the exporter gives a program where it is given no file"
        graph = program.model_proto
    for element in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info):
        element.ClearField("metadata_props")  # stack traces, with the folders of this machine in them
    target = folder / GRAPH
    target.write_bytes(graph.SerializeToString())
    return target


def parity(folder: Path, facts: EmbedderFacts) -> float:
    """The largest difference between torch's and onnxruntime's vectors of `TEXTS`.

    Raises `ArtifactRejected` above `LIMIT`.
    """
    embedder = OnnxEmbedder(folder, facts)
    served = embedder.embed_documents(TEXTS)
    embedder.close()
    expected = _reference(folder, facts)
    difference = float(np.abs(served - expected).max())
    if not difference <= LIMIT:  # written so that NaN is refused
        raise ArtifactRejected(
            f"{folder.name}: expected {GRAPH} to give torch's vectors within {LIMIT:g}, found {difference:.2g}; "
            "the export is not used."
        )
    return difference


def _reference(folder: Path, facts: EmbedderFacts) -> NDArray[np.float32]:
    """The vectors (len(TEXTS), dimension) by transformers and torch, one text at a time: nothing of the served path."""
    with _quiet():
        import torch
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model = _encoder(folder)
    rows = []
    with torch.inference_mode():
        for text in TEXTS:
            text = facts.document_prefix + text
            encoded = tokenizer(text, truncation=True, max_length=facts.max_tokens, return_tensors="pt")
            mean = model(**encoded).last_hidden_state[0].mean(dim=0)
            rows.append(torch.nn.functional.normalize(mean, dim=0).numpy())
    return np.stack(rows)


def _encoder(folder: Path) -> torch.nn.Module:
    with _quiet():
        import torch
        from transformers import AutoModel
        from transformers.utils import logging as chatter

        chatter.set_verbosity_error()
        chatter.disable_progress_bar()
        # Eager attention: its graph is the plain one that onnxruntime optimises best.
        model = AutoModel.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, dtype=torch.float32, attn_implementation="eager"
        )
    module: torch.nn.Module = model.eval()
    return module


def _plain(model: torch.nn.Module) -> torch.nn.Module:
    """`model` with its three inputs in order and its one output, as the graph has them."""
    import torch

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = self.model(
                input_ids=ids, attention_mask=mask, token_type_ids=types
            ).last_hidden_state
            return hidden

    return Encoder().eval()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's progress, warnings and log lines away from the terminal; errors are raised all the same."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def main(arguments: list[str]) -> int:
    """Export and compare: `FOLDER FACTS`, the facts as JSON; the difference goes to standard output."""
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1")
    folder, facts = Path(arguments[0]), EmbedderFacts.model_validate_json(arguments[1])
    try:
        export(folder)
        print(f"{parity(folder, facts):.3g}")  # noqa: T201 - the answer to the process that started this one
    except ArtifactRejected as error:
        print(error, file=sys.stderr)  # noqa: T201
        return REJECTED
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
