"""The formats that weights come in: enough of each header to know that a reader will not be led outside the file.

safetensors: https://huggingface.co/docs/safetensors (8 bytes length, a JSON header, the data). GGUF: magic, version, counts.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

from assistant.errors import ArtifactRejected

MAX_HEADER = 10_000_000
"""Bytes of a safetensors header: real ones have some ten thousand."""
_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip
_PARAMETERS = {"F16", "BF16", "F32", "F64", "F8_E5M2", "F8_E4M3"}


def check_safetensors(path: Path) -> int:
    """How many parameters (floating-point values) `path` holds; `ArtifactRejected` where its header does not add up."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ArtifactRejected(f"{path.name}: expected a safetensors file, found {size} bytes.")
        (length,) = struct.unpack("<Q", prefix)
        if length > MAX_HEADER or length + 8 > size:
            raise ArtifactRejected(
                f"{path.name}: expected a header of at most {min(MAX_HEADER, size)} bytes, found one of {length}."
            )
        try:
            header = json.loads(file.read(length))
        except (ValueError, RecursionError):
            raise ArtifactRejected(f"{path.name}: expected a safetensors header in JSON.") from None
    if not isinstance(header, dict):
        raise ArtifactRejected(f"{path.name}: expected a table of tensors as the header.")
    spans: list[tuple[int, int]] = []
    parameters = 0
    for name, tensor in header.items():
        if name == "__metadata__":
            continue
        start, end, count, floating = _tensor(path, name, tensor)
        spans.append((start, end))
        parameters += count if floating else 0
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise ArtifactRejected(f"{path.name}: expected tensors side by side, found a gap or an overlap at {start}.")
        position = end
    if position != size - 8 - length:
        raise ArtifactRejected(f"{path.name}: expected {position} bytes of tensors, found {size - 8 - length}.")
    return parameters


def _tensor(path: Path, name: str, tensor: object) -> tuple[int, int, int, bool]:
    """Start and end in the data, number of values, and whether they are floating-point."""
    fields = tensor if isinstance(tensor, dict) else {}
    bits = _BITS.get(str(fields.get("dtype")), 0)
    shape, offsets = _naturals(fields.get("shape")), _naturals(fields.get("data_offsets"))
    if not bits or shape is None or offsets is None or len(offsets) != 2:
        raise _misfit(path, name)
    count, (start, end) = math.prod(shape), offsets
    if count * bits != (end - start) * 8:
        raise _misfit(path, name)
    return start, end, count, fields["dtype"] in _PARAMETERS


def _misfit(path: Path, name: str) -> ArtifactRejected:
    return ArtifactRejected(f"{path.name}: the tensor {name[:80]!r} does not fit its own type, shape and place.")


def _naturals(value: object) -> list[int] | None:
    """`value` if it is a short list of numbers that a file could hold, else None."""
    if not isinstance(value, list) or len(value) > 16:
        return None
    return value if all(type(n) is int and 0 <= n < 2**48 for n in value) else None


def check_gguf(path: Path) -> None:
    """Raise `ArtifactRejected` unless `path` starts as a GGUF file whose counts can fit into it."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[:4] != b"GGUF":
        raise ArtifactRejected(f"{path.name}: expected a GGUF file, found another kind.")
    version, tensors, entries = struct.unpack("<IQQ", head[4:])
    if version not in (2, 3) or tensors * 24 > size or entries * 12 > size:
        raise ArtifactRejected(f"{path.name}: expected a GGUF header of version 2 or 3 with counts that fit the file.")
