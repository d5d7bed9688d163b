"""What may be loaded, and that nothing else is."""

from __future__ import annotations

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from assistant.errors import ArtifactRejected
from assistant.models import manifest
from assistant.models.manifest import FileRecord, Manifest


def draft() -> Manifest:
    return Manifest(
        name="tiny", version="1", kind="generator", source="test", licence="MIT", dtype="float32", created="2026-01-01"
    )


def forge(folder: Path) -> str:
    """A manifest that names whatever lies in `folder`, as an attacker would write it; its digest."""
    files = {
        path.relative_to(folder).as_posix(): FileRecord(
            sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size
        )
        for path in folder.rglob("*")
        if path.is_file() and path.name != manifest.FILE
    }
    body = draft().model_copy(update={"files": files}).model_dump_json().encode()
    (folder / manifest.FILE).write_bytes(body)
    return hashlib.sha256(body).hexdigest()


def safetensors(header: object, data: bytes = b"") -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(body)) + body + data


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One file of every kind that is accepted."""
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    tensor = {"dtype": "F32", "shape": [64], "data_offsets": [0, 256]}
    (folder / "model.safetensors").write_bytes(safetensors({"w": tensor}, random.Random(1).randbytes(256)))
    (folder / "model.onnx").write_bytes(random.Random(2).randbytes(600))
    (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + random.Random(3).randbytes(600))
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "hidden_size": 32}))
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\nrefund\n" * 20)
    return folder


def test_a_sound_folder_is_accepted(folder: Path) -> None:
    digest = manifest.write(folder, draft())

    found = manifest.verify(folder, digest)

    assert digest == manifest.digest(folder)
    assert found.name == "tiny"
    assert set(found.files) == {
        "1_Pooling/config.json",
        "config.json",
        "model.gguf",
        "model.onnx",
        "model.safetensors",
        "vocab.txt",
    }
    assert found.files["model.onnx"].size == 600


@pytest.mark.parametrize(
    "name", ["model.safetensors", "model.onnx", "model.gguf", "config.json", "vocab.txt", "manifest.json"]
)
def test_every_flipped_bit_is_detected(folder: Path, name: str) -> None:
    """SEC-02: 200 places in a file of each type."""
    digest = manifest.write(folder, draft())
    path = folder / name
    sound = path.read_bytes()
    dice = random.Random(name)
    manifest.verify(folder, digest)
    detected = 0

    for _ in range(200):
        place, bit = dice.randrange(len(sound)), dice.randrange(8)
        with path.open("r+b") as file:
            file.seek(place)
            file.write(bytes([sound[place] ^ (1 << bit)]))
        with pytest.raises(ArtifactRejected):
            manifest.verify(folder, digest)
        detected += 1
        with path.open("r+b") as file:
            file.seek(place)
            file.write(sound[place : place + 1])

    assert detected == 200
    manifest.verify(folder, digest)


def test_a_file_changed_after_it_was_verified_is_detected(folder: Path) -> None:
    """SEC-02: what was found sound once is not believed for ever, even when the clock of the file is turned back."""
    digest = manifest.write(folder, draft())
    time.sleep(0.06)
    manifest.verify(folder, digest)
    before = (folder / "model.onnx").stat()
    data = bytearray((folder / "model.onnx").read_bytes())
    data[300] ^= 1
    (folder / "model.onnx").write_bytes(data)
    os.utime(folder / "model.onnx", ns=(before.st_atime_ns, before.st_mtime_ns))

    with pytest.raises(ArtifactRejected, match=r"model\.onnx is not the file in the manifest"):
        manifest.verify(folder, digest)


def test_the_second_check_reads_no_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = manifest.write(folder, draft())
    time.sleep(0.06)
    first = manifest.verify(folder, digest)
    monkeypatch.setattr(manifest, "_verify", lambda *_: pytest.fail("read again"))

    assert manifest.verify(folder, digest) is first


def test_a_missing_file_is_refused(folder: Path) -> None:
    digest = manifest.write(folder, draft())
    (folder / "vocab.txt").unlink()

    with pytest.raises(ArtifactRejected, match=r"expected the file vocab\.txt, it is missing"):
        manifest.verify(folder, digest)


def test_an_extra_file_is_refused(folder: Path) -> None:
    """SEC-02"""
    digest = manifest.write(folder, draft())
    (folder / "added_tokens.json").write_text("{}")

    with pytest.raises(ArtifactRejected, match=r"not in the manifest: added_tokens\.json"):
        manifest.verify(folder, digest)


def test_another_manifest_is_refused(folder: Path) -> None:
    digest = manifest.write(folder, draft())
    forge(folder)

    with pytest.raises(ArtifactRejected, match=r"manifest\.json is not the one that was recorded"):
        manifest.verify(folder, digest)


def test_a_folder_without_a_manifest_is_refused(folder: Path) -> None:
    with pytest.raises(ArtifactRejected, match=r"expected a manifest\.json, found none"):
        manifest.verify(folder, "0" * 64)
    with pytest.raises(ArtifactRejected, match=r"expected a manifest\.json, found none"):
        manifest.digest(folder)


def link_to_a_file(folder: Path) -> None:
    (folder / "weights.onnx").symlink_to("/etc/passwd")


def link_to_a_folder(folder: Path) -> None:
    (folder / "more").symlink_to("/etc")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "model2.onnx")


def empty_folder(folder: Path) -> None:
    (folder / "2_Normalize").mkdir()


def hidden_folder(folder: Path) -> None:
    (folder / ".git").mkdir()
    (folder / ".git" / "config.json").write_text("{}")


@pytest.mark.parametrize("spoil", [link_to_a_file, link_to_a_folder, pipe, empty_folder, hidden_folder])
def test_only_plain_files_are_accepted(folder: Path, spoil: Callable[[Path], None]) -> None:
    """SEC-01: no link leads out of the folder, and nothing hides in it."""
    digest = manifest.write(folder, draft())
    spoil(folder)

    with pytest.raises(ArtifactRejected):
        manifest.verify(folder, digest)
    with pytest.raises(ArtifactRejected):
        manifest.write(folder, draft())


def test_the_folder_itself_may_not_be_a_link(folder: Path, tmp_path: Path) -> None:
    digest = manifest.write(folder, draft())
    (tmp_path / "link").symlink_to(folder)

    with pytest.raises(ArtifactRejected):
        manifest.verify(tmp_path / "link", digest)


@pytest.mark.parametrize(
    "name", ["../x.json", "/etc/x.json", "a/../../x.json", "a\\..\\x.json", "x.json\n", "", ".hidden.json", "a//b.json"]
)
def test_a_name_that_leaves_the_folder_is_refused(name: str) -> None:
    with pytest.raises(ArtifactRejected, match="expected a plain name"):
        manifest.check_name(name)


class Touch:
    """Runs a command when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.marker}",)


def evil_pickle(folder: Path, marker: Path, name: str) -> None:
    import pickle

    (folder / name).write_bytes(pickle.dumps(Touch(marker)))


def evil_json(name: str, value: object) -> Callable[[Path, Path], None]:
    def write(folder: Path, marker: Path) -> None:
        (folder / "modeling_x.py").write_text(f"open({str(marker)!r}, 'w')")
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))
        (folder / "modeling_x.py").unlink()

    return write


def evil_bytes(name: str, data: bytes) -> Callable[[Path, Path], None]:
    def write(folder: Path, marker: Path) -> None:
        (folder / name).write_bytes(data)

    return write


def evil_tensors(data: bytes) -> Callable[[Path, Path], None]:
    return evil_bytes("model.safetensors", data)


def huge_header(folder: Path, marker: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", 100_000_000) + b"{")
        file.truncate(100_000_100)


def tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


EVIL: dict[str, Callable[[Path, Path], None]] = {
    "pickled weights": lambda folder, marker: evil_pickle(folder, marker, "pytorch_model.bin"),
    "pickled index": lambda folder, marker: evil_pickle(folder, marker, "index.pkl"),
    "pickled random state": lambda folder, marker: evil_pickle(folder, marker, "rng_state.pth"),
    "pickle named as weights": lambda folder, marker: evil_pickle(folder, marker, "model.safetensors"),
    "pickle named as gguf": lambda folder, marker: evil_pickle(folder, marker, "model.gguf"),
    "python source": evil_bytes("modeling_x.py", b"import os"),
    "shared library": evil_bytes("op.so", b"\x7fELF"),
    "auto_map": evil_json("config.json", {"model_type": "x", "auto_map": {"AutoModel": "modeling_x.X"}}),
    "auto_map within": evil_json("config.json", {"text_config": [{"auto_map": {"AutoModel": "modeling_x.X"}}]}),
    "auto_map of a tokenizer": evil_json("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["x.X", None]}}),
    "kernels": evil_json("config.json", {"_attn_implementation_internal": "somebody/kernels"}),
    "kernels by the public name": evil_json("config.json", {"attn_implementation": "somebody/kernels"}),
    "custom pipelines": evil_json("config.json", {"custom_pipelines": {"x": {"impl": "x.X"}}}),
    "activation of a cross encoder": evil_json("config.json", {"sentence_transformers": {"activation_fn": "os.abort"}}),
    "foreign module": evil_json("modules.json", [{"idx": 0, "name": "0", "path": "", "type": "modeling_x.X"}]),
    "module that imports by name": evil_json(
        "modules.json", [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Dense"}]
    ),
    "module elsewhere": evil_json(
        "modules.json", [{"idx": 0, "name": "0", "path": "..", "type": "sentence_transformers.models.Pooling"}]
    ),
    "modules are no list": evil_json("modules.json", {"type": "modeling_x.X"}),
    "config is no table": evil_json("config.json", ["auto_map"]),
    "no JSON": evil_bytes("config.json", b"{"),
    "deep JSON": evil_bytes("config.json", b"[" * 200_000),
    "long JSON": evil_bytes("config.json", json.dumps("x" * 2_000_000).encode()),
    "header of 2^63 bytes": evil_tensors(struct.pack("<Q", 2**63) + b"{}"),
    "header longer than the file": evil_tensors(struct.pack("<Q", 5000) + b"{}"),
    "header of 100 MB": huge_header,
    "header is no JSON": evil_tensors(safetensors(b"\x80\x04")),
    "header is no table": evil_tensors(safetensors([])),
    "shorter than a length": evil_tensors(b"abc"),
    "overlapping tensors": evil_tensors(safetensors({"a": tensor(0, 16, [4]), "b": tensor(8, 24, [4])}, bytes(24))),
    "tensor beyond the end": evil_tensors(safetensors({"a": tensor(0, 1600, [400])}, bytes(16))),
    "gap between tensors": evil_tensors(safetensors({"a": tensor(0, 4, [1]), "b": tensor(8, 12, [1])}, bytes(12))),
    "data that no tensor claims": evil_tensors(safetensors({"a": tensor(0, 4, [1])}, b"\x00" * 8)),
    "negative offset": evil_tensors(safetensors({"a": tensor(-4, 0, [1])})),
    "shape that overflows": evil_tensors(safetensors({"a": tensor(0, 0, [2**40] * 3 + [0])}) + b"x"),
    "shape that does not fit": evil_tensors(safetensors({"a": tensor(0, 16, [5])}, bytes(16))),
    "unknown type": evil_tensors(safetensors({"a": tensor(0, 16, [4], "OBJECT")}, bytes(16))),
    "tensor is no table": evil_tensors(safetensors({"a": 1})),
    "gguf with 2^60 tensors": evil_bytes("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1)),
    "gguf of another version": evil_bytes("model.gguf", b"GGUF" + struct.pack("<IQQ", 9, 0, 0)),
}


@pytest.mark.parametrize("evil", EVIL)
def test_an_artefact_that_could_run_code_is_refused(folder: Path, tmp_path: Path, evil: str) -> None:
    """SEC-01: refused within a second, without a side effect, even where the manifest vouches for it."""
    marker = tmp_path / "marker"
    EVIL[evil](folder, marker)
    digest = forge(folder)
    started = time.monotonic()

    with pytest.raises(ArtifactRejected) as refusal:
        manifest.verify(folder, digest)
    with pytest.raises(ArtifactRejected):
        manifest.write(folder, draft())

    assert time.monotonic() - started < 1
    assert len(str(refusal.value).splitlines()) == 1
    assert not marker.exists()


def test_the_pickles_of_these_tests_are_dangerous(tmp_path: Path) -> None:
    """The corpus would prove nothing if it were harmless."""
    evil_pickle(tmp_path, tmp_path / "marker", "x.pkl")
    code = f"import pickle; pickle.load(open({str(tmp_path / 'x.pkl')!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", code], check=True)

    assert (tmp_path / "marker").exists()


def test_a_chat_template_is_data(folder: Path, tmp_path: Path) -> None:
    """SEC-01: it is accepted and hashed, and nothing renders it."""
    marker = tmp_path / "marker"
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(marker) + "') }}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))

    manifest.verify(folder, manifest.write(folder, draft()))

    assert not marker.exists()


def test_tokens_may_have_any_name(folder: Path) -> None:
    (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"auto_map": 7}}}))

    manifest.verify(folder, manifest.write(folder, draft()))


@pytest.mark.parametrize(
    "change",
    [{"format": 2}, {"surprise": 1}, {"kind": "script"}, {"files": {"a.json": {"sha256": "x", "size": 1}}}],
)
def test_a_manifest_of_another_form_is_refused(folder: Path, change: dict[str, object]) -> None:
    manifest.write(folder, draft())
    body = json.dumps(json.loads((folder / manifest.FILE).read_bytes()) | change).encode()
    (folder / manifest.FILE).write_bytes(body)

    with pytest.raises(ArtifactRejected, match=rf"manifest\.json: {next(iter(change))}"):
        manifest.verify(folder, hashlib.sha256(body).hexdigest())


def test_write_leaves_the_old_manifest_until_the_new_one_is_whole(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = manifest.write(folder, draft())
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "full")))

    with pytest.raises(OSError, match="full"):
        manifest.write(folder, draft())

    (folder / "manifest.json.partial").unlink()
    assert manifest.digest(folder) == digest
