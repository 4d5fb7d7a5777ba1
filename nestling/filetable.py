"""The table of a model file: where each tensor lies, and digests of everything; see `container`.

Nothing in it is believed: every size is compared with the file's own before memory is asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nestling import strictjson

MAX_TENSORS = 100_000
MAX_NAME = 1_000  # characters
MAX_RANK = 64  # dims of a tensor; torch has no more
MAX_DIM = 2**40

_BLANK = "0" * 64
_DIGEST = re.compile(r"[0-9a-f]{64}")
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies in the data part of a file: bytes `begin` to `end`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Table:
    """A checked JSON table: the caller's header, and the tensors in the order of their bytes."""

    header: dict[str, Any]
    slots: tuple[Slot, ...]
    data_sha256: str


def slots_of(blobs: Mapping[str, Tensor]) -> tuple[Slot, ...]:
    """Return where tensors lie in a file, one after another."""
    slots, begin = [], 0
    for name, blob in blobs.items():
        end = begin + blob.numel() * blob.element_size()
        slots.append(Slot(name, blob.dtype, tuple(blob.shape), begin, end))
        begin = end
    return tuple(slots)


def seal(text: str, slots: tuple[Slot, ...], data_sha256: str) -> bytes:
    """Return the JSON table with its own digest in place."""

    def encode(digest: str) -> bytes:
        table: dict[str, Any] = {
            "__metadata__": {
                "format": "pt",
                "nestling": text,
                "data_sha256": data_sha256,
                "sha256": digest,
            }
        }
        for slot in slots:
            table[slot.name] = {
                "dtype": _DTYPE_NAMES[slot.dtype],
                "shape": list(slot.shape),
                "data_offsets": [slot.begin, slot.end],
            }
        raw = json.dumps(table, ensure_ascii=False, separators=(",", ":")).encode()
        return raw + b" " * (-len(raw) % 8)

    return encode(hashlib.sha256(encode(_BLANK)).hexdigest())


def read(file: BinaryIO, size: int) -> Table:
    """Read and check the table of an open file; it is left at the first byte of the tensors.

    Args:
        file: of which nothing has been read.
        size: of the file, in bytes.

    Raises:
        ValueError: the rule that is broken, and the value that breaks it.
    """
    first = file.read(8)
    if len(first) < 8:
        raise ValueError(f"a model file has more than 8 bytes, and this one has {size}")
    length = int.from_bytes(first, "little")
    if length > strictjson.MAX_BYTES:
        raise ValueError(
            f"it is not a safetensors file ({_resembles(first)}its header would have {length} "
            f"bytes, of at most {strictjson.MAX_BYTES})"
        )
    if length > size - 8:
        raise ValueError(
            f"it was cut short: the header needs {length} bytes, and {size - 8} are left"
        )
    raw = file.read(length)
    if len(raw) != length:
        raise ValueError("the file became shorter while it was read")
    return check(raw, size - 8 - length)


def _resembles(first: bytes) -> str:
    if first[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "it looks like a pickle or torch.save file, which is never opened here; "
    return "it looks like text: is this a .nest file? " if first.isascii() else ""


def check(raw: bytes, data_size: int) -> Table:
    """Check a JSON table against the number of bytes that follow it.

    Raises:
        ValueError: the rule that is broken, and the value that breaks it.
    """
    if len(raw) > strictjson.MAX_BYTES:
        raise ValueError(f"a header has at most {strictjson.MAX_BYTES} bytes, not {len(raw)}")
    if not raw.startswith(b"{"):
        raise ValueError(f"a safetensors header begins with '{{', not with {raw[:8]!r}")
    table = strictjson.parse(raw)
    metadata = table.pop("__metadata__", None)
    if not isinstance(metadata, dict) or not isinstance(metadata.get("nestling"), str):
        raise ValueError("it is a safetensors file, but not one that Nestling saved (or altered)")
    for key in ("sha256", "data_sha256"):
        if not isinstance(metadata.get(key), str) or not _DIGEST.fullmatch(metadata[key]):
            raise ValueError(f"{key!r} must be 64 hexadecimal digits, not {metadata.get(key)!r}")
    digest = metadata["sha256"].encode()
    blanked = raw.replace(digest, _BLANK.encode())
    if raw.count(digest) != 1 or hashlib.sha256(blanked).hexdigest().encode() != digest:
        raise ValueError("the header was altered: its SHA-256 is not the one stored in it")
    if len(table) > MAX_TENSORS:
        raise ValueError(f"a file has at most {MAX_TENSORS} tensors, not {len(table)}")
    slots = sorted(
        (_check_slot(name, entry) for name, entry in table.items()),
        key=lambda slot: (slot.begin, slot.end),
    )
    _check_cover(slots, data_size)
    header = strictjson.parse(metadata["nestling"])
    if not isinstance(header, dict):
        raise ValueError(f"the header must be a mapping, not a {type(header).__name__}")
    return Table(header, tuple(slots), metadata["data_sha256"])


def _check_slot(name: str, entry: Any) -> Slot:
    if len(name) >= MAX_NAME:
        raise ValueError(f"a tensor name has fewer than {MAX_NAME} characters, not {len(name)}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} must have a dtype, a shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name!r} must have a dtype of {list(DTYPES)}, not {dtype!r}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_size, shape)):
        raise ValueError(
            f"the shape of tensor {name!r} must be at most {MAX_RANK} integers of 0 to 2**40 - 1, "
            f"not {str(shape)[:80]}"
        )
    # Beside a zero, other dims could still overflow the strides; 2**62 bytes exist nowhere.
    if math.prod(max(dim, 1) for dim in shape) * DTYPES[dtype].itemsize >= 2**62:
        raise ValueError(f"the shape of tensor {name!r} is too large: {shape}")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(o) is int for o in offsets)
    ):
        raise ValueError(f"the offsets of tensor {name!r} must be two integers, not {offsets!r}")
    span = math.prod(shape) * DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != span:
        raise ValueError(
            f"tensor {name!r} of shape {shape} and dtype {dtype} takes {span} bytes, and its "
            f"offsets {offsets} span {offsets[1] - offsets[0]}"
        )
    return Slot(name, DTYPES[dtype], tuple(shape), offsets[0], offsets[1])


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_DIM


def _check_cover(slots: list[Slot], data_size: int) -> None:
    """Check that the tensors cover the data part from end to end, once."""
    expected = 0
    for slot in slots:
        if slot.begin != expected:
            raise ValueError(
                f"tensors lie one after another: {slot.name!r} begins at byte {slot.begin}, and "
                f"the one before it ends at {expected}"
            )
        expected = slot.end
    if expected != data_size:
        state = "it was cut short" if data_size < expected else "something was added to it"
        raise ValueError(f"{state}: the tensors take {expected} bytes, and {data_size} are there")
