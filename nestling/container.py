"""The file layer: one safetensors file with a JSON header, written whole and checked before use.

Any safetensors reader can open the file. Layout (all integers little-endian):

    8 bytes      n, the length of the JSON table
    n bytes      the JSON table, UTF-8, padded with spaces to a multiple of 8
    the rest     the tensors, contiguous, without gaps; larger element sizes first, then by name

`__metadata__` of the table holds four strings: `format` ("pt"), `nestling` (the caller's header, as
JSON), `data_sha256` (of all tensor bytes) and `sha256` (of the n bytes of the table, with these 64
digits themselves as zeros). The second covers the first, so any altered byte of the file is
noticed, and a header can be trusted without reading a tensor.

Nothing in a file is believed: every size is compared with the file's own before memory is asked
for, and no code of a file is ever run.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import torch
from torch import Tensor

from nestling.errors import FileError

StrPath = str | os.PathLike[str]

MAX_TABLE = 64 * 2**20  # bytes of JSON
MAX_DEPTH = 64  # of nested lists and mappings
MAX_TENSORS = 100_000
MAX_NAME = 1_000  # characters
MAX_RANK = 64  # dims of a tensor; torch has no more
MAX_DIM = 2**40

_BLANK = "0" * 64
_DIGEST = re.compile(r"[0-9a-f]{64}")
# A bracket, or a string; one that never ends is a match too, so that the scan stays linear.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[][{}]', re.DOTALL)
_DTYPES = {
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
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


@dataclass(frozen=True)
class _Slot:
    """Where a tensor lies in the data part of a file: bytes `begin` to `end`."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class _Table:
    """A checked JSON table: the caller's header, and the tensors in the order of their bytes."""

    header: dict[str, Any]
    slots: tuple[_Slot, ...]
    data_sha256: str


# ---------------------------------------------------------------------------- writing


def write(path: StrPath, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Write a header and tensors to one file, whole or not at all.

    The same content gives the same bytes. The header keeps the order of its keys; tuples come back
    as lists. A tensor is saved alone and contiguous, never with the storage it is a view of; one
    that is shared under two names is saved twice.

    Args:
        path: the file; an earlier one of that name is replaced only when the new one is complete.
        header: JSON values: finite numbers, text, None, lists, mappings with text keys.
        tensors: name -> dense tensor of any device.

    Raises:
        FileError: content that the format cannot hold, or a file that cannot be written.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = Path(folder.name) / "model.nest"
        >>> write(file, {"version": 1}, {"weight": torch.ones(2, 3)})
        >>> read(file)[0]
        {'version': 1}
        >>> folder.cleanup()
    """
    try:
        text = dump_json(dict(header))
        blobs = {name: _contiguous(name, tensor) for name, tensor in _in_order(tensors)}
        slots = _place(blobs)
        digest = hashlib.sha256()
        for blob in blobs.values():
            digest.update(_bytes_of(blob))
        table = _seal(text, slots, digest.hexdigest())
        _check_table(table, slots[-1].end if slots else 0)
    except ValueError as problem:
        raise FileError(f"cannot save {path}: {problem}; change what is saved") from problem

    def payload(file: BinaryIO) -> None:
        file.write(len(table).to_bytes(8, "little"))
        file.write(table)
        for blob in blobs.values():
            file.write(_bytes_of(blob))

    write_atomically(path, payload)


def write_json(path: StrPath, value: Any) -> None:
    """Write a JSON file, indented, whole or not at all.

    Raises:
        FileError: a value that is not plain JSON (see `dump_json`), or a file that cannot be
            written.
    """
    try:
        payload = (dump_json(value, indent=1) + "\n").encode()
    except ValueError as problem:
        raise FileError(f"cannot save {path}: {problem}; change what is saved") from problem
    write_atomically(path, payload)


def write_atomically(path: StrPath, payload: bytes | Callable[[BinaryIO], None]) -> None:
    """Write a file so that a reader sees the old content or the new, never a part of it.

    The bytes go to a temporary file in the same folder, are flushed to the disk, and then take the
    name in one step. Whatever fails before that step, the temporary file is removed and an earlier
    file stays as it was. A link is followed: the file it points to is replaced.

    Args:
        path: the file to write.
        payload: its bytes, or a function that writes them to the binary file it is given.

    Raises:
        FileError: the disk is full, the folder is missing or may not be written to, or the path
            names something other than a regular file. What `payload` itself raises passes through,
            except OSError.
    """
    try:
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():
            raise FileError(f"cannot write {path}: it is not a regular file; choose another name")
        temporary = target.with_name(f".nestling-{secrets.token_hex(8)}.tmp")
        _write_and_rename(temporary, target, payload)
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise FileError(f"cannot write {path}: {reason}; {_cure(problem, path)}") from problem
    except ValueError as problem:  # a path that no file can have, such as one with a null byte
        if isinstance(problem, FileError):
            raise
        raise FileError(f"cannot write {path!r}: {problem}; choose another name") from problem


def _write_and_rename(
    temporary: Path, target: Path, payload: bytes | Callable[[BinaryIO], None]
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            if callable(payload):
                payload(file)
            else:
                file.write(payload)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    if os.name == "posix":
        # The file is whole and in place; a file system that cannot flush a folder (some network
        # shares) only leaves open whether the new name outlives a power cut.
        with contextlib.suppress(OSError):
            folder = os.open(target.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)


def _cure(problem: OSError, path: StrPath) -> str:
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return "free some space or choose another disk"
    if problem.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder that you may write to"
    if problem.errno in (errno.ENOENT, errno.ENOTDIR):
        return f"make the folder {str(Path(path).parent)!r} first"
    return "choose another path"


def _in_order(tensors: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """Order tensors as every safetensors writer does, so that each lies aligned to its elements."""
    for name, tensor in tensors.items():
        if not isinstance(name, str) or name == "__metadata__":
            raise ValueError(f"a tensor name is a text other than '__metadata__', not {name!r}")
        if not isinstance(tensor, Tensor):
            raise ValueError(f"{name!r} must be a tensor, not a {type(tensor).__name__}")
    return sorted(tensors.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))


def _contiguous(name: str, tensor: Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        kind = "meta" if tensor.device.type == "meta" else str(tensor.layout)
        raise ValueError(f"tensor {name!r} must be dense and hold data, not {kind}")
    if tensor.dtype not in _DTYPE_NAMES:
        raise ValueError(f"tensor {name!r} has dtype {tensor.dtype}; use one of {list(_DTYPES)}")
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _place(blobs: Mapping[str, Tensor]) -> tuple[_Slot, ...]:
    slots, begin = [], 0
    for name, blob in blobs.items():
        end = begin + blob.numel() * blob.element_size()
        slots.append(_Slot(name, blob.dtype, tuple(blob.shape), begin, end))
        begin = end
    return tuple(slots)


def _seal(text: str, slots: tuple[_Slot, ...], data_sha256: str) -> bytes:
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


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


# ---------------------------------------------------------------------------- reading


def digests_of(tensors: Mapping[str, Tensor], part_of: Callable[[str], str]) -> dict[str, str]:
    """Return the SHA-256 of each part of what `write` writes, by its name, for `read` of some.

    Args:
        tensors: as `write` is given them.
        part_of: from the name of a tensor to that of its part.
    """
    found: dict[str, Any] = {}
    for name, tensor in _in_order(tensors):
        blob = _bytes_of(_contiguous(name, tensor))
        found.setdefault(part_of(name), hashlib.sha256()).update(blob)
    return {part: digest.hexdigest() for part, digest in found.items()}


def read(
    path: StrPath,
    part_of: Callable[[str], str] = lambda name: "",
    digests: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read the header and the tensors of a file that `write` made.

    Each tensor has its own memory, on the CPU; the file may be replaced or removed afterwards.

    Args:
        path: the file.
        part_of: as for `digests_of`.
        digests: of the parts to read, as `digests_of` gave them and the header holds them; the
            bytes of the other parts are passed over. None reads all.

    Returns:
        The header, and name -> tensor in the order of the file.

    Raises:
        FileError: the file is missing, cannot be read, is not one of ours, was cut short or
            altered, or does not fit in memory.

    Example:
        >>> try:
        ...     read("missing.nest")
        ... except FileError as problem:
        ...     print(problem)
        cannot read missing.nest: No such file or directory; check the path
    """
    with _reading(path) as (file, size):
        table = _read_table(file, size)
        tensors = {}
        wanted = {"": table.data_sha256} if digests is None else digests
        found = {part: hashlib.sha256() for part in wanted}
        for slot in table.slots:
            part = "" if digests is None else part_of(slot.name)
            if part not in wanted:
                file.seek(slot.end - slot.begin, os.SEEK_CUR)
                continue
            tensor = torch.empty(slot.shape, dtype=slot.dtype, device="cpu")
            view = _bytes_of(tensor)
            if file.readinto(view) != slot.end - slot.begin:  # type: ignore[attr-defined]
                raise ValueError("the file became shorter while it was read")
            found[part].update(view)
            if slot.dtype == torch.bool and tensor.view(torch.uint8).gt(1).any():
                raise ValueError(f"truth values are 0 or 1, and tensor {slot.name!r} has others")
            tensors[slot.name] = tensor
        if any(digest.hexdigest() != wanted[part] for part, digest in found.items()):
            raise ValueError("the tensors were altered: their SHA-256 is not the one in the header")
        return table.header, tensors


def read_header(path: StrPath) -> dict[str, Any]:
    """Read the header of a file that `write` made, and no tensor.

    The header itself is checked in full (its SHA-256 too); altered tensors are noticed by `read`.

    Raises:
        FileError: as `read`.
    """
    with _reading(path) as (file, size):
        return _read_table(file, size).header


def read_json(path: StrPath, *, cure: str = "write it again") -> Any:
    """Read a JSON file of at most 64 MiB with the rules of `parse_json`.

    Args:
        path: the file.
        cure: what the user can do about a damaged file; ends the message of the error.

    Raises:
        FileError: the file is missing, cannot be read, is too large or is not valid JSON.
    """
    with _reading(path, cure) as (file, size):
        if size > MAX_TABLE:
            raise ValueError(f"it may have at most {MAX_TABLE} bytes, and has {size}")
        return parse_json(file.read(MAX_TABLE))


@contextlib.contextmanager
def _reading(
    path: StrPath, cure: str = "copy it again from its source, or save it anew"
) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file; turn whatever is wrong with it into one FileError."""
    try:
        # Asked before opening: to open a pipe would wait for its writer for ever.
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
            raise FileError(f"cannot read {path}: it is {kind}, not a file; check the path")
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except FileError:
        raise
    except OSError as problem:
        reason = problem.strerror or str(problem)
        raise FileError(f"cannot read {path}: {reason}; check the path") from problem
    except (MemoryError, RuntimeError) as problem:
        raise FileError(
            f"cannot read {path}: its content does not fit in memory; free some, or use a smaller "
            f"file ({str(problem).splitlines()[0] if str(problem) else type(problem).__name__})"
        ) from problem
    except ValueError as problem:
        raise FileError(f"cannot read {path}: {problem}; {cure}") from problem


def _read_table(file: BinaryIO, size: int) -> _Table:
    """Read and check the JSON table; the file is left at the first byte of the tensors."""
    first = file.read(8)
    if len(first) < 8:
        raise ValueError(f"a model file has more than 8 bytes, and this one has {size}")
    length = int.from_bytes(first, "little")
    if length > MAX_TABLE:
        raise ValueError(
            f"it is not a safetensors file ({_resembles(first)}its header would have {length} "
            f"bytes, of at most {MAX_TABLE})"
        )
    if length > size - 8:
        raise ValueError(
            f"it was cut short: the header needs {length} bytes, and {size - 8} are left"
        )
    raw = file.read(length)
    if len(raw) != length:
        raise ValueError("the file became shorter while it was read")
    return _check_table(raw, size - 8 - length)


def _resembles(first: bytes) -> str:
    if first[:2] in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return "it looks like a pickle or torch.save file, which is never opened here; "
    return "it looks like text: is this a .nest file? " if first.isascii() else ""


# ---------------------------------------------------------------------------- checks


def _check_table(raw: bytes, data_size: int) -> _Table:
    """Check a JSON table against the number of bytes that follow it.

    Raises:
        ValueError: the rule that is broken, and the value that breaks it.
    """
    if len(raw) > MAX_TABLE:
        raise ValueError(f"a header has at most {MAX_TABLE} bytes, not {len(raw)}")
    if not raw.startswith(b"{"):
        raise ValueError(f"a safetensors header begins with '{{', not with {raw[:8]!r}")
    table = parse_json(raw)
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
    header = parse_json(metadata["nestling"])
    if not isinstance(header, dict):
        raise ValueError(f"the header must be a mapping, not a {type(header).__name__}")
    return _Table(header, tuple(slots), metadata["data_sha256"])


def _check_slot(name: str, entry: Any) -> _Slot:
    if len(name) >= MAX_NAME:
        raise ValueError(f"a tensor name has fewer than {MAX_NAME} characters, not {len(name)}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name!r} must have a dtype, a shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise ValueError(f"tensor {name!r} must have a dtype of {list(_DTYPES)}, not {dtype!r}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(map(_is_size, shape)):
        raise ValueError(
            f"the shape of tensor {name!r} must be at most {MAX_RANK} integers of 0 to 2**40 - 1, "
            f"not {str(shape)[:80]}"
        )
    # Beside a zero, other dims could still overflow the strides; 2**62 bytes exist nowhere.
    if math.prod(max(dim, 1) for dim in shape) * _DTYPES[dtype].itemsize >= 2**62:
        raise ValueError(f"the shape of tensor {name!r} is too large: {shape}")
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or not all(type(o) is int for o in offsets)
    ):
        raise ValueError(f"the offsets of tensor {name!r} must be two integers, not {offsets!r}")
    span = math.prod(shape) * _DTYPES[dtype].itemsize
    if offsets[1] - offsets[0] != span:
        raise ValueError(
            f"tensor {name!r} of shape {shape} and dtype {dtype} takes {span} bytes, and its "
            f"offsets {offsets} span {offsets[1] - offsets[0]}"
        )
    return _Slot(name, _DTYPES[dtype], tuple(shape), offsets[0], offsets[1])


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value < MAX_DIM


def _check_cover(slots: list[_Slot], data_size: int) -> None:
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


# ---------------------------------------------------------------------------- strict JSON


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """Return JSON text that `parse_json` reads back equal (tuples as lists).

    Raises:
        ValueError: a value that JSON cannot hold: NaN or infinity, a key that is not text, nesting
            deeper than 64, or any other type. The standard module would change some in silence.

    Example:
        >>> dump_json({"counts": (4, 8)})
        '{"counts":[4,8]}'
    """
    _check_plain(value, 1)
    separators = (",", ":") if indent is None else None
    text = json.dumps(
        value, ensure_ascii=False, allow_nan=False, indent=indent, separators=separators
    )
    text.encode()  # half a surrogate pair is no character
    return text


def _check_plain(value: Any, depth: int) -> None:
    if isinstance(value, (dict, list, tuple)):
        if depth > MAX_DEPTH:
            raise ValueError(f"values are nested at most {MAX_DEPTH} deep")
        if isinstance(value, dict):
            for key in value:
                if not isinstance(key, str):
                    raise ValueError(f"a key must be text, not {key!r}")
        for item in value.values() if isinstance(value, dict) else value:
            _check_plain(item, depth + 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a number must be finite, not {value}")
    elif value is not None and not isinstance(value, (str, int)):
        raise ValueError(f"a value must be plain JSON, not a {type(value).__name__}: {value!r:.80}")


def parse_json(text: str | bytes) -> Any:
    """Parse JSON strictly: no duplicate key, no NaN or infinity, at most 64 levels of nesting.

    Raises:
        ValueError: text that breaks a rule; never RecursionError.

    Example:
        >>> parse_json('{"width": [8, 16]}')
        {'width': [8, 16]}
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as problem:
            raise ValueError(f"it is not UTF-8 text at byte {problem.start}") from problem
    depth = 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise ValueError(f"JSON may be nested at most {MAX_DEPTH} deep")
        elif token[0] in "]}":
            depth -= 1
    try:
        value = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_refuse, parse_float=_finite
        )
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is no character
    except json.JSONDecodeError as problem:
        raise ValueError(f"it is not valid JSON: {problem}") from problem
    except UnicodeEncodeError as problem:
        raise ValueError("it is not valid JSON: half of a surrogate pair") from problem
    return value


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} appears twice")
    return result


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"a number must be finite, not {word}")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"a number must be finite, not {digits[:80]}")
    return number
