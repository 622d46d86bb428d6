"""One kind of file: a header and named arrays, checksummed whole, opened memory-mapped and never unpickled.

    preamble | header (JSON, with each array's type, size and place) | array | array | ...     64 bytes apart
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from agentmem.errors import CorruptData

MAGIC = b"AGENTMEM"
VERSION = 1
PREAMBLE = struct.Struct("<8sIIQ40s")  # magic, version, length of the header, of the file, checksum of all that follows
ALIGNMENT = 64
KINDS = [np.dtype(kind).str for kind in "?bBhHiIqQefd"]

Built = TypeVar("Built")


def write_arrays(
    path: str | os.PathLike[str], header: Mapping[str, Any], buffers: Mapping[str, NDArray[Any]], *, mode: int = 0o666
) -> bytes:
    """Write a file for `read_arrays`, under a temporary name until it is whole and on disk; return its checksum.

    `mode` is of the file, less the umask. A symbolic link at `path` is replaced, not followed. O(bytes).
    """
    parts = _parts(header, buffers)
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.urandom(4).hex()}.part")
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)  # or the name may be lost with the power
    finally:
        os.close(folder)
    return _checksum(parts)


def checksum_of(header: Mapping[str, Any], buffers: Mapping[str, NDArray[Any]]) -> bytes:
    """The checksum of the file that `write_arrays` would write: equal for equal content. O(bytes)."""
    return _checksum(_parts(header, buffers))


def _parts(header: Mapping[str, Any], buffers: Mapping[str, NDArray[Any]]) -> list[Any]:
    """What a file consists of, the preamble first."""
    places, at = {}, 0
    for name, array in buffers.items():
        if array.dtype.str not in KINDS:
            raise TypeError(f"buffer {name} of dtype {array.dtype} given; a file holds {', '.join(KINDS)}")
        places[name] = [array.dtype.str, array.size, at]
        at += -(-array.nbytes // ALIGNMENT) * ALIGNMENT
    head = canonical({**header, "buffers": places})
    head += b" " * (-(PREAMBLE.size + len(head)) % ALIGNMENT)
    parts: list[Any] = [head]
    for array in buffers.values():
        parts += [array.data, bytes(-array.nbytes % ALIGNMENT)]
    facts = MAGIC, VERSION, len(head), PREAMBLE.size + len(head) + at
    checksum = hashlib.blake2b(PREAMBLE.pack(*facts, b""), digest_size=40)
    for part in parts:
        checksum.update(part)
    return [PREAMBLE.pack(*facts, checksum.digest()), *parts]


def _checksum(parts: list[Any]) -> bytes:
    checksum: bytes = PREAMBLE.unpack(parts[0])[-1]
    return checksum


def read_arrays(
    path: str | os.PathLike[str],
    build: Callable[[dict[str, Any], dict[str, NDArray[Any]]], Built],
    *,
    follow_symlinks: bool = True,
) -> Built:
    """What `build` makes of the header and the arrays, which are mapped and read-only. Reads the file once.

    Raises CorruptData for a file that is truncated, damaged or of another version, or that `build` refuses; OSError
    for a symbolic link that it is told not to follow.
    """
    extra = 0 if follow_symlinks else os.O_NOFOLLOW
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | extra)) as file:
        size = os.fstat(file.fileno()).st_size
        if size < PREAMBLE.size:
            raise CorruptData(f"{path}: {size} bytes; no saved file is that short")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    magic, version, n_head, n_file, checksum = PREAMBLE.unpack_from(data)
    if magic != MAGIC:
        raise CorruptData(f"{path}: begins with {magic!r}; expected {MAGIC!r}")
    if version != VERSION:
        raise CorruptData(f"{path}: format version {version}; this release reads version {VERSION}")
    if n_file != size:
        raise CorruptData(f"{path}: {size} bytes; expected {n_file} (truncated?)")
    body = memoryview(data)[PREAMBLE.size :]
    found = hashlib.blake2b(PREAMBLE.pack(magic, version, n_head, n_file, b""), digest_size=40)
    found.update(body)
    if found.digest() != checksum:
        raise CorruptData(f"{path}: checksum does not agree with the content")
    try:
        header = json.loads(bytes(body[:n_head]))
        buffers = {}
        for name, (kind, count, start) in header.pop("buffers").items():
            if kind not in KINDS or count < 0 or start < 0:
                raise ValueError(f"buffer {name} of {count} x {kind} at {start}")
            buffers[name] = np.frombuffer(body, np.dtype(kind), count, n_head + start)
        return build(header, buffers)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise CorruptData(f"{path}: {error}") from error


def canonical(header: Mapping[str, Any]) -> bytes:
    """The same bytes for equal headers."""
    return json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
