"""The index on disk: a derived cache in generations, each a file and the manifest that vouches for it.

Losing any of it loses nothing: what does not match its manifest is passed over for the generation before, or rebuilt.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from assistant.errors import ArtifactRejected
from assistant.failpoints import failpoint

if TYPE_CHECKING:
    from assistant.knowledge.index import Frozen, VectorIndex

KEPT = 2
"""Generations that stay on the disk: the newest, and one to fall back on."""

_OURS = re.compile(r"^([0-9a-f]{12})\.(\d{8})\.(faiss|json)(\.tmp)?$")
_log = logging.getLogger(__name__)


class Manifest(BaseModel):
    """What a generation's file must be before a byte of it is parsed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    file: str = Field(pattern=r"^[0-9a-f]{12}\.\d{8}\.faiss$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    sequence: int = Field(ge=0)
    embedder_digest: str
    dimension: int = Field(gt=0)
    count: int = Field(ge=0)


class Generations:
    """The saved generations of one collection under one embedder."""

    def __init__(self, folder: Path, embedder_digest: str) -> None:
        self.folder = folder
        self.embedder_digest = embedder_digest
        self._prefix = hashlib.sha256(embedder_digest.encode()).hexdigest()[:12]

    def load(self, dimension: int, *, newest: int) -> VectorIndex | None:
        """The newest generation that is whole and not ahead of `newest`, the database's own change number.

        None where there is none: then it is rebuilt from the database.
        """
        for path in self._manifests():
            try:
                return self._read(path, dimension, newest)
            except (ArtifactRejected, OSError, ValidationError, UnicodeDecodeError) as error:
                reason = str(error).splitlines()[0]
                _log.warning("index %s passed over: %s", path.name, reason)
        return None

    def save(self, frozen: Frozen) -> bool:
        """Write a new generation and sweep old ones; False where it is there already, or another process is writing.

        Raises OSError where the disk refuses; the generations before are whole then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._lock() as held:
            if not held or self._saved() == frozen.sequence:
                return False
            try:
                self._write(frozen)
            finally:
                failpoint("index.sweep")
                self._sweep()
            return True

    def discard(self) -> None:
        """Let go of every generation: they turned out to belong to another database."""
        for path in self._manifests():
            path.unlink(missing_ok=True)

    def _write(self, frozen: Frozen) -> None:
        numbers = [int(match[2]) for match in self._files() if match[1] == self._prefix]
        name = f"{self._prefix}.{max(numbers, default=0) + 1:08d}"
        data = frozen.data
        path = self.folder / f"{name}.faiss"
        half = len(data) // 2
        with path.with_suffix(".faiss.tmp").open("wb") as file:
            file.write(data[:half])
            file.flush()
            failpoint("index.write")
            file.write(data[half:])
            file.flush()
            failpoint("index.fsync")
            os.fsync(file.fileno())
        failpoint("index.rename")
        path.with_suffix(".faiss.tmp").replace(path)
        self._sync_folder()
        manifest = Manifest(
            file=path.name,
            sha256=hashlib.sha256(data).hexdigest(),
            size=len(data),
            sequence=frozen.sequence,
            embedder_digest=self.embedder_digest,
            dimension=frozen.dimension,
            count=frozen.count,
        )
        path = self.folder / f"{name}.json"
        failpoint("index.manifest")
        with path.with_suffix(".json.tmp").open("w", encoding="utf-8") as text:
            text.write(manifest.model_dump_json(indent=1))
            text.flush()
            failpoint("index.manifest_fsync")
            os.fsync(text.fileno())
        failpoint("index.manifest_rename")
        path.with_suffix(".json.tmp").replace(path)
        self._sync_folder()

    def _read(self, path: Path, dimension: int, newest: int) -> VectorIndex:
        manifest = Manifest.model_validate_json(path.read_bytes())
        if manifest.embedder_digest != self.embedder_digest or manifest.dimension != dimension:
            raise ArtifactRejected("expected vectors of the embedder in use, found another's")
        if manifest.sequence > newest:
            raise ArtifactRejected(f"expected at most change {newest}, found {manifest.sequence}: another database's")
        if manifest.file != path.with_suffix(".faiss").name:
            raise ArtifactRejected(f"expected the manifest of {path.stem}.faiss, found that of {manifest.file}")
        data = path.with_suffix(".faiss").read_bytes()
        if len(data) != manifest.size or hashlib.sha256(data).hexdigest() != manifest.sha256:
            raise ArtifactRejected("expected the file that its manifest describes, found other bytes")
        from assistant.knowledge.index import VectorIndex

        index = VectorIndex.from_bytes(data, dimension)
        if len(index) != manifest.count:
            raise ArtifactRejected(f"expected {manifest.count} vectors, found {len(index)}")
        index.sequence = manifest.sequence
        return index

    def _saved(self) -> int:
        """The change number of the newest generation that looks whole; -1 without one.

        A generation that was damaged since must not keep a good one from being written.
        """
        for path in self._manifests():
            try:
                manifest = Manifest.model_validate_json(path.read_bytes())
                data = path.with_suffix(".faiss").read_bytes()
            except (OSError, ValidationError):
                continue
            if hashlib.sha256(data).hexdigest() == manifest.sha256:
                return manifest.sequence
        return -1

    def _sweep(self) -> None:
        kept = {path.stem for path in self._manifests()[:KEPT]}
        for match in self._files():
            if match[4] or f"{match[1]}.{match[2]}" not in kept:
                (self.folder / match[0]).unlink(missing_ok=True)

    def _manifests(self) -> list[Path]:
        """Newest first."""
        found = [match for match in self._files() if match[1] == self._prefix and match[3] == "json" and not match[4]]
        return [self.folder / match[0] for match in sorted(found, key=lambda match: match[2], reverse=True)]

    def _files(self) -> list[re.Match[str]]:
        if not self.folder.is_dir():
            return []
        return [match for path in self.folder.iterdir() if (match := _OURS.match(path.name))]

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """Whether this process may write; the lock goes with the process, however it ends."""
        with (self.folder / "lock").open("a", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _sync_folder(self) -> None:
        """Make a rename durable: it is an entry of the folder."""
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
