"""The container: one safetensors file with a JSON header, written whole and checked before use.

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

import hashlib
import os
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import torch
from torch import Tensor

from nestling import files, filetable, strictjson
from nestling.errors import FileError


def write(path: files.StrPath, header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
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
        >>> file = os.path.join(folder.name, "model.nest")
        >>> write(file, {"version": 1}, {"weight": torch.ones(2, 3)})
        >>> read(file)[0]
        {'version': 1}
        >>> folder.cleanup()
    """
    try:
        text = strictjson.dump(dict(header))
        blobs = {name: _contiguous(name, tensor) for name, tensor in _in_order(tensors)}
        slots = filetable.slots_of(blobs)
        digest = hashlib.sha256()
        for blob in blobs.values():
            digest.update(_bytes_of(blob))
        table = filetable.seal(text, slots, digest.hexdigest())
        filetable.check(table, slots[-1].end if slots else 0)
    except ValueError as problem:
        raise FileError(f"cannot save {path}: {problem}; change what is saved") from problem

    def payload(file: BinaryIO) -> None:
        file.write(len(table).to_bytes(8, "little"))
        file.write(table)
        for blob in blobs.values():
            file.write(_bytes_of(blob))

    files.write_atomically(path, payload)


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
    if tensor.dtype not in filetable.DTYPES.values():
        raise ValueError(
            f"tensor {name!r} has dtype {tensor.dtype}; use one of {list(filetable.DTYPES)}"
        )
    return tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, without a copy."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


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
    path: files.StrPath,
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
    with files.reading(path) as (file, size):
        table = filetable.read(file, size)
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


def read_header(path: files.StrPath) -> dict[str, Any]:
    """Read the header of a file that `write` made, and no tensor.

    The header itself is checked in full (its SHA-256 too); altered tensors are noticed by `read`.

    Raises:
        FileError: as `read`.
    """
    with files.reading(path) as (file, size):
        return filetable.read(file, size).header
