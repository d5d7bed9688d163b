"""What stands in a model's folder: every file with its hash, checked before the first byte of any of them is parsed.

Nothing that is accepted here can run code when it is loaded: no pickle, no module named by a configuration, no link out
of the folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

import pydantic
from pydantic import ConfigDict, Field, StringConstraints

from assistant.errors import ArtifactRejected
from assistant.models import weights
from assistant.models.catalog import Kind

FILE = "manifest.json"
MAX_JSON = 1_000_000
"""Bytes that a configuration may have; real ones have a few thousand."""
MAX_MANIFEST = 4_000_000

_SUFFIXES = (".safetensors", ".onnx", ".gguf", ".json")
_NAMES = ("vocab.txt",)
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_KEYED_BY_TOKENS = {"tokenizer.json", "vocab.json", "added_tokens.json"}
_FORBIDDEN_KEYS = {"auto_map", "custom_pipelines", "custom_pipeline", "trust_remote_code", "activation_fn"}
_MODULES = re.compile(r"sentence_transformers\.([a-z_]+\.)*(Transformer|Pooling|Normalize)")
_SETTLED_NS = 50_000_000
"""A file changed less than this before it was read could change again within the same tick of its time stamp."""

Digest: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
_Stamp: TypeAlias = tuple[tuple[str, int, int, int, int], ...]


class _Part(pydantic.BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileRecord(_Part):
    """One file: its SHA-256 and its size in bytes."""

    sha256: Digest
    size: int = Field(ge=0)


class EmbedderFacts(_Part):
    """How texts become vectors: everything beside the weights that changes one."""

    dimension: int = Field(ge=1, le=65_536)
    max_tokens: int = Field(ge=4, le=1_000_000)
    pooling: Literal["mean"] = "mean"
    normalised: Literal[True] = True
    query_prefix: str = ""
    document_prefix: str = ""


class Manifest(_Part):
    """A folder's contents and where they come from. `parent` and `snapshot` name what a trained model was made of."""

    format: Literal[1] = 1
    name: str
    version: str
    kind: Kind
    source: str
    licence: str
    dtype: str
    parameters: int = Field(default=0, ge=0)
    parent: str = ""
    snapshot: str = ""
    embedder: EmbedderFacts | None = None
    packages: dict[str, str] = Field(default_factory=dict)
    created: str
    files: dict[str, FileRecord] = Field(default_factory=dict)


def write(folder: Path, manifest: Manifest) -> str:
    """Record every file of `folder` in its `manifest.json`, and return the SHA-256 of that.

    A file that `verify` would refuse is refused here already, with `ArtifactRejected`.
    """
    names = [name for name in _scan(folder) if name != FILE]
    files = {name: FileRecord(sha256=_hash(folder / name), size=(folder / name).stat().st_size) for name in names}
    for name in names:
        _check_content(folder, name)
    body = manifest.model_copy(update={"files": files}).model_dump_json(indent=1).encode()
    partial = folder / f"{FILE}.partial"
    partial.write_bytes(body)
    partial.replace(folder / FILE)
    return hashlib.sha256(body).hexdigest()


def verify(folder: Path, expected_digest: str) -> Manifest:
    """The manifest of `folder`, once every file is what it says; raises `ArtifactRejected` with the first that is not.

    The manifest itself must have the SHA-256 `expected_digest`. A second call in this process costs a few `stat` calls as
    long as no file changed.
    """
    stamp = _stamp(folder)
    key = (str(folder), expected_digest)
    with _lock:
        known = _verified.get(key)
    if known is not None and known[0] == stamp:
        return known[1]
    manifest = _verify(folder, expected_digest)
    newest = max(max(entry[2], entry[3]) for entry in stamp)
    if newest + _SETTLED_NS < time.time_ns() and _stamp(folder) == stamp:
        with _lock:
            _verified[key] = (stamp, manifest)
    return manifest


_lock = threading.Lock()
_verified: dict[tuple[str, str], tuple[_Stamp, Manifest]] = {}


def digest(folder: Path) -> str:
    """The SHA-256 of the folder's `manifest.json`; `ArtifactRejected` where it has none."""
    _scan(folder)
    path = folder / FILE
    if not path.is_file():
        raise ArtifactRejected(f"{folder.name}: expected a {FILE}, found none; put the model in place again.")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _verify(folder: Path, expected_digest: str) -> Manifest:
    found = set(_scan(folder))
    if FILE not in found:
        raise ArtifactRejected(f"{folder.name}: expected a {FILE}, found none; put the model in place again.")
    if (folder / FILE).stat().st_size > MAX_MANIFEST:
        raise ArtifactRejected(f"{folder.name}: expected a {FILE} of at most {MAX_MANIFEST} bytes.")
    body = (folder / FILE).read_bytes()
    if hashlib.sha256(body).hexdigest() != expected_digest:
        raise ArtifactRejected(f"{folder.name}: {FILE} is not the one that was recorded; put the model in place again.")
    try:
        manifest = Manifest.model_validate_json(body)
    except pydantic.ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in problem["loc"])
        raise ArtifactRejected(f"{folder.name}: {FILE}: {where}: {problem['msg']}.") from None
    expected = set(manifest.files)
    if missing := sorted(expected - found):
        raise ArtifactRejected(f"{folder.name}: expected the file {missing[0]}, it is missing.")
    if extra := sorted(found - expected - {FILE}):
        raise ArtifactRejected(f"{folder.name}: found a file that is not in the manifest: {extra[0]}; remove it.")
    for name, record in sorted(manifest.files.items()):
        path = folder / name
        if path.stat().st_size != record.size or _hash(path) != record.sha256:
            raise ArtifactRejected(
                f"{folder.name}: {name} is not the file in the manifest; put the model in place again."
            )
    for name in sorted(manifest.files):
        _check_content(folder, name)
    return manifest


def _scan(folder: Path) -> list[str]:
    """The files below `folder` as relative names; refuses links, foreign kinds of file and names with tricks in them."""
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactRejected(f"{folder.name}: expected a folder with a model in it; put the model in place again.")
    names: list[str] = []
    folders: set[str] = set()
    pending = [folder]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                name = Path(entry.path).relative_to(folder).as_posix()
                mode = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(mode) and _PART.fullmatch(entry.name):
                    folders.add(name)
                    pending.append(Path(entry.path))
                elif stat.S_ISREG(mode):
                    check_name(name)
                    names.append(name)
                else:
                    raise ArtifactRejected(f"{folder.name}: {name!r} is neither a plain file nor a plain folder.")
    if empty := sorted(f for f in folders if not any(name.startswith(f + "/") for name in names)):
        raise ArtifactRejected(f"{folder.name}: found a folder that is not in the manifest: {empty[0]}; remove it.")
    return sorted(names)


def check_name(name: str) -> None:
    """Raise `ArtifactRejected` unless `name` is a plain relative path of a kind of file that cannot run code."""
    parts = name.split("/")
    if len(parts) > 4 or not all(_PART.fullmatch(part) for part in parts):
        raise ArtifactRejected(f"{name!r}: expected a plain name inside the model's folder.")
    if parts[-1] not in _NAMES and not parts[-1].endswith(_SUFFIXES):
        kinds = ", ".join(f"*{suffix}" for suffix in _SUFFIXES)
        raise ArtifactRejected(f"{name!r}: expected a model's files to be {kinds} or {', '.join(_NAMES)}; remove it.")


def check_content(folder: Path) -> None:
    """Raise `ArtifactRejected` where a file of `folder`, which has no manifest yet, is of no kind that may be loaded."""
    for name in _scan(folder):
        _check_content(folder, name)


def _check_content(folder: Path, name: str) -> None:
    path, last = folder / name, name.rsplit("/", 1)[-1]
    if last.endswith(".safetensors"):
        weights.check_safetensors(path)
    elif last.endswith(".gguf"):
        weights.check_gguf(path)
    elif last.endswith(".json") and last not in _KEYED_BY_TOKENS and name != FILE:
        value = read_json(path)
        if forbidden := _forbidden(value):
            raise ArtifactRejected(f"{name}: {forbidden!r} could make the loader run code; it is not accepted.")
        if last == "config.json" and not isinstance(value, dict):
            raise ArtifactRejected(f"{name}: expected a table of settings, found {type(value).__name__}.")
        if last == "modules.json":
            _check_modules(name, value)


def read_json(path: Path) -> object:
    """The value in a JSON file of at most `MAX_JSON` bytes; `ArtifactRejected` where it is none."""
    if path.stat().st_size > MAX_JSON:
        raise ArtifactRejected(f"{path.name}: expected at most {MAX_JSON} bytes, found {path.stat().st_size}.")
    try:
        value: object = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        raise ArtifactRejected(f"{path.name}: expected JSON; put the model in place again.") from None
    return value


def _forbidden(value: Any) -> str:
    """The first key, at any depth, that names code for a loader to run; "" where there is none."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            for key in item:
                # An attention implementation may name a repository of kernels, which would be fetched and imported.
                kernels = key.lstrip("_").startswith("attn_implementation") and key != "_attn_implementation_autoset"
                if kernels or key in _FORBIDDEN_KEYS:
                    return str(key)
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)
    return ""


def _check_modules(name: str, value: object) -> None:
    if not isinstance(value, list) or not value:
        raise ArtifactRejected(f"{name}: expected a list of modules.")
    for module in value:
        kind = module.get("type") if isinstance(module, dict) else None
        if not isinstance(kind, str) or not _MODULES.fullmatch(kind):
            raise ArtifactRejected(
                f"{name}: expected Transformer, Pooling or Normalize of sentence_transformers, found {kind!r}."
            )
        path = module.get("path")
        if not isinstance(path, str) or (path and not _PART.fullmatch(path)):
            raise ArtifactRejected(f"{name}: expected a folder beside it, found {path!r}.")


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(folder: Path) -> _Stamp:
    """What changes when a file does: name, modification and change time, size, inode."""
    entries = []
    for name in _scan(folder):
        s = (folder / name).lstat()
        entries.append((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino))
    return tuple(entries) or (("", 0, 0, 0, 0),)
