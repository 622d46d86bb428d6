"""A block of numbers as bytes, by whichever codec takes the fewest; every bit comes back.

Integers are brought to their distance from the smallest first. Here is no container: `history` keeps the blocks.
"""

from __future__ import annotations

import zlib
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from agentmem._core import CoreCoder, count_pairs

MOST_SYMBOLS = 64  # of an alphabet that the entropy coder takes: the same number as in _core/history.pyx, a C constant
NOBODY = np.zeros(1, np.uint8)  # the context of a block's first symbol

ZSTD_BYTES = 1 << 13  # of a block that zstd is tried on: 3 to 12 % less than deflate on large frames, in half its time
ZSTD_LEVEL = 9

RAW, CONSTANT, DEFLATED, NARROWED, PACKED, RUNS, CODED, STEPS, DECIMALS, SUPPORT, ZSTD, CHANGED = range(12)


class Alphabet(NamedTuple):
    """An entropy coder of the integers from `lowest` to `highest`; its table, ones mostly, is kept deflated."""

    lowest: int
    highest: int
    table: bytes

    @property
    def coder(self) -> CoreCoder:
        n = self.highest - self.lowest + 1
        return CoreCoder.from_table(np.frombuffer(_inflate(self.table, 2 * n * n), np.uint16).reshape(n, n))

    def holds(self, numbers: NDArray[Any]) -> bool:
        return self.lowest <= int(numbers.min()) and int(numbers.max()) <= self.highest


def train(numbers: NDArray[Any]) -> Alphabet | None:
    """A coder made of how often each integer follows each other one; None where they span too many."""
    lowest, highest = int(numbers.min()), int(numbers.max())
    if highest - lowest >= MOST_SYMBOLS:
        return None
    coder = coder_of(symbols_of(numbers, lowest)[:, np.newaxis], NOBODY, highest - lowest + 1)
    return Alphabet(lowest, highest, _deflate(coder.table.tobytes()))


def coder_of(symbols: NDArray[np.uint8], contexts: NDArray[np.uint8], n_symbols: int) -> CoreCoder:
    """Made of how often symbols, (steps, lanes), follow each other, the first row after the contexts."""
    counts = np.full((n_symbols, n_symbols), 0.05)  # what was not seen yet may come
    count_pairs(symbols, contexts, counts)
    return CoreCoder(counts)


def symbols_of(numbers: NDArray[Any], lowest: int) -> NDArray[np.uint8]:
    """Distances from the lowest, of integers that span few."""
    return numbers.astype(np.uint8) if lowest == 0 else _above(numbers, lowest).astype(np.uint8)


def numbers_of(symbols: NDArray[Any], lowest: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The integers that are so far above the lowest."""
    return (symbols.astype(np.uint64) + np.uint64(lowest % 2**64)).astype(dtype)


def pack(numbers: NDArray[Any], alphabet: Alphabet | None = None) -> bytes:
    """(n,) numbers of any dtype without objects: a byte that names the codec, and what it made of them. O(n)."""
    return min((bytes([codec]) + data for codec, data in _packed(numbers, alphabet, steps=True)), key=len)


def _packed(numbers: NDArray[Any], alphabet: Alphabet | None, *, steps: bool) -> list[tuple[int, bytes]]:
    data, item = numbers.tobytes(), numbers.dtype.itemsize
    if data == data[:item] * len(numbers):
        return [(CONSTANT, data[:item].rstrip(b"\0"))]
    shuffled = _by_weight(data, item)
    found = [(RAW, data), (DEFLATED, _deflate(shuffled))]
    if len(data) >= ZSTD_BYTES and (zstd := _zstd()):
        found.append((ZSTD, zstd.compress(shuffled, ZSTD_LEVEL)))
    is_set = np.frombuffer(data, np.uint8).reshape(-1, item).any(axis=1)  # by bits: -0.0 is
    if len(data) >= ZSTD_BYTES and (n_set := int(np.count_nonzero(is_set))) * 2 < len(numbers):
        support = np.packbits(is_set).tobytes() + _by_weight(numbers[is_set].tobytes(), item)
        found.append((SUPPORT, _varint(n_set) + _deflate(support)))
    if numbers.dtype in (np.float32, np.float64):
        for places in range(7):
            whole = _times(numbers, places)
            if whole is not None:
                codec, data = min(_packed(whole, None, steps=True), key=lambda found: len(found[1]))
                found.append((DECIMALS, bytes([places, codec]) + data))
                break
    if numbers.dtype.kind not in "iub":
        return found
    lowest, width = int(numbers.min()), (int(numbers.max()) - int(numbers.min())).bit_length()
    narrow, head = _above(numbers, lowest), _zigzag(lowest) + bytes([width])
    plain = narrow.astype(f"<u{_bytes_for(width)}")
    found += [
        (PACKED, head + _bits(narrow, width)),
        (RUNS, head + _runs(narrow, width)),
        (NARROWED, head + _deflate(_by_weight(plain.tobytes(), plain.itemsize))),
    ]
    if alphabet and alphabet.holds(numbers):
        found.append((CODED, alphabet.coder.encode(symbols_of(numbers, alphabet.lowest)[:, np.newaxis], NOBODY)))
    elif steps:
        differences = np.diff(numbers.astype(np.uint64)).view(np.int64)
        codec, data = min(_packed(differences, None, steps=False), key=lambda found: len(found[1]))
        found.append((STEPS, _zigzag(int(numbers[0])) + bytes([codec]) + data))
    return found


def unpack(data: bytes | memoryview, n: int, dtype: np.dtype[Any], alphabet: Alphabet | None) -> NDArray[Any]:
    """The (n,) numbers that `pack` was given. ValueError where these are not its bytes."""
    try:
        numbers = _unpack(bytes(data), n, dtype, alphabet)
    except (IndexError, OverflowError, MemoryError, RecursionError, zlib.error) as error:
        raise ValueError(f"damaged block: {error}") from error
    if len(numbers) != n:
        raise ValueError(f"damaged block: {len(numbers)} numbers found; expected {n}")
    return numbers


def _unpack(data: bytes, n: int, dtype: np.dtype[Any], alphabet: Alphabet | None) -> NDArray[Any]:
    codec, data, item = data[0], data[1:], dtype.itemsize
    if codec == RAW:
        return np.frombuffer(data, dtype).copy()
    if codec == CONSTANT:
        return np.repeat(np.frombuffer(data.ljust(item, b"\0"), dtype), n)
    if codec == DEFLATED:
        return np.frombuffer(_by_item(_inflate(data, n * item), item), dtype).copy()
    if codec == ZSTD:
        return np.frombuffer(_by_item(_from_zstd(data, n * item), item), dtype).copy()
    if codec == SUPPORT:
        return _from_support(data, n, dtype)
    if codec == CODED:
        if alphabet is None:
            raise ValueError("a coded block without its coder")
        return numbers_of(alphabet.coder.decode(data, NOBODY, n)[:, 0], alphabet.lowest, dtype)
    if codec == DECIMALS:
        return (_unpack(data[1:], n, np.dtype(np.int64), None) / 10.0 ** data[0]).astype(dtype)
    lowest, at = _read_zigzag(data, 0)
    if codec == STEPS:
        differences = _unpack(data[at:], n - 1, np.dtype(np.int64), None)
        return numbers_of(np.append(np.uint64(0), np.cumsum(differences.view(np.uint64))), lowest, dtype)
    width, data = data[at], data[at + 1 :]
    if width > 64:
        raise ValueError(f"numbers of {width} bits")
    if codec == PACKED:
        narrow = _from_bits(data, n, width)
    elif codec == RUNS:
        narrow = _from_runs(data, n, width)
    elif codec == NARROWED:
        item = _bytes_for(width)
        narrow = np.frombuffer(_by_item(_inflate(data, n * item), item), f"<u{item}")
    else:
        raise ValueError(f"no codec {codec}")
    return numbers_of(narrow, lowest, dtype)


def _from_support(data: bytes, n: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    (n_set, at), n_bits, item = _read_varint(data, 0), (n + 7) // 8, dtype.itemsize
    if n_set > n:
        raise ValueError(f"{n_set} of {n} numbers")
    plain = _inflate(data[at:], n_bits + n_set * item)
    is_set = np.unpackbits(np.frombuffer(plain[:n_bits], np.uint8), count=n).view(np.bool_)
    if np.count_nonzero(is_set) != n_set:
        raise ValueError(f"{n_set} numbers at {np.count_nonzero(is_set)} places")
    numbers = np.zeros(n, dtype)
    numbers[is_set] = np.frombuffer(_by_item(plain[n_bits:], item), dtype)
    return numbers


def pack_changes(frame: NDArray[Any], after: NDArray[Any]) -> bytes:
    """What of a (n,) frame is otherwise, bit for bit, in the one after it: which cells, and what they hold."""
    bits = f"V{frame.dtype.itemsize}"
    places = np.flatnonzero(frame.view(bits) != after.view(bits))
    steps = np.diff(places, prepend=0).astype(np.uint64)
    item = _bytes_for(int(steps.max(initial=0)).bit_length())
    plain = _by_weight(steps.astype(f"<u{item}").tobytes(), item)
    plain += _by_weight(frame[places].tobytes(), frame.dtype.itemsize)
    return bytes([CHANGED]) + _varint(len(places)) + bytes([item]) + _deflate(plain)


def unpack_changes(data: bytes | memoryview, after: NDArray[Any]) -> None:
    """Make of the frame after the one that `pack_changes` was given. ValueError where these are not its bytes."""
    item = after.dtype.itemsize
    try:
        n, at = _read_varint(bytes(data[:11]), 1)
        width = data[at]
        if n > len(after) or width not in (1, 2, 4, 8):
            raise ValueError(f"{n} changes of {len(after)} cells")
        plain = _inflate(bytes(data[at + 1 :]), n * (width + item))
    except (IndexError, zlib.error) as error:
        raise ValueError(f"damaged changes: {error}") from error
    places = np.cumsum(np.frombuffer(_by_item(plain[: n * width], width), f"<u{width}").astype(np.uint64))
    if n and int(places.max()) >= len(after):
        raise ValueError(f"a change of cell {places.max()} of {len(after)}")
    after[places.astype(np.intp)] = np.frombuffer(_by_item(plain[n * width :], item), after.dtype)


def _times(numbers: NDArray[Any], places: int) -> NDArray[np.int64] | None:
    """Floats times 10**places, where whole numbers over that are these floats bit for bit."""
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = numbers.astype(np.float64) * 10.0**places
    if not (abs(scaled) < 2**53).all():
        return None
    whole = np.rint(scaled).astype(np.int64)
    return whole if (whole / 10.0**places).astype(numbers.dtype).tobytes() == numbers.tobytes() else None


def _above(numbers: NDArray[Any], lowest: int) -> NDArray[np.uint64]:
    """Distances from the lowest; modulo 2**64, which they are below."""
    return numbers.astype(np.uint64) - np.uint64(lowest % 2**64)


def _bytes_for(width: int) -> int:
    return 1 if width <= 8 else 2 if width <= 16 else 4 if width <= 32 else 8


def _zigzag(number: int) -> bytes:
    return _varint(number << 1 if number >= 0 else ~number << 1 | 1)


def _read_zigzag(data: bytes, at: int) -> tuple[int, int]:
    number, at = _read_varint(data, at)
    return ~(number >> 1) if number & 1 else number >> 1, at


def _varint(number: int) -> bytes:
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """The number, and where the next one begins."""
    number = shift = 0
    while True:
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
        number |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return number, at


def _bits(narrow: NDArray[np.uint64], width: int) -> bytes:
    planes = (narrow[:, np.newaxis] >> np.arange(width, dtype=np.uint64)) & np.uint64(1)
    return np.packbits(planes.astype(np.uint8).ravel(), bitorder="little").tobytes()


def _from_bits(data: bytes, n: int, width: int) -> NDArray[np.uint64]:
    if len(data) != (n * width + 7) // 8:
        raise ValueError(f"{len(data)} bytes for {n} numbers of {width} bits")
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=n * width, bitorder="little").reshape(n, width)
    return np.asarray((planes.astype(np.uint64) << np.arange(width, dtype=np.uint64)).sum(axis=1, dtype=np.uint64))


def _runs(narrow: NDArray[np.uint64], width: int) -> bytes:
    """How many runs, bits of a length, the lengths, the values."""
    starts = np.append(0, np.flatnonzero(np.diff(narrow)) + 1)
    lengths = np.diff(np.append(starts, len(narrow))).astype(np.uint64)
    length_width = int(lengths.max()).bit_length()
    head = _varint(len(starts)) + bytes([length_width])
    return head + _bits(lengths, length_width) + _bits(narrow[starts], width)


def _from_runs(data: bytes, n: int, width: int) -> NDArray[np.uint64]:
    n_runs, at = _read_varint(data, 0)
    length_width, at = data[at], at + 1
    if n_runs > n or length_width > 64:
        raise ValueError(f"{n_runs} runs in {n} numbers")
    middle = at + (n_runs * length_width + 7) // 8
    lengths = _from_bits(data[at:middle], n_runs, length_width)
    values = _from_bits(data[middle:], n_runs, width)
    if lengths.max(initial=0) > n or int(lengths.sum()) != n:
        raise ValueError(f"runs of other numbers than {n}")
    return np.repeat(values, lengths.astype(np.intp))


def _by_weight(data: bytes, item: int) -> bytes:
    """First bytes of all items, then second ones, and so on."""
    return data if item == 1 else np.frombuffer(data, np.uint8).reshape(-1, item).T.tobytes()


def _by_item(data: bytes, item: int) -> bytes:
    return data if item == 1 else np.frombuffer(data, np.uint8).reshape(item, -1).T.tobytes()


def _deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)  # without zlib's 6 bytes of header
    return packer.compress(data) + packer.flush()


@cache
def _zstd() -> Any:
    """The module, or None."""
    for name in ("compression.zstd", "backports.zstd"):
        with suppress(ImportError):
            return import_module(name)
    return None


def _from_zstd(data: bytes, n_bytes: int) -> bytes:
    zstd = _zstd()
    if zstd is None:
        raise ImportError("a block compressed by zstd, which is not installed: pip install 'agentmem-native[codecs]'")
    unpacker = zstd.ZstdDecompressor()
    try:
        plain: bytes = unpacker.decompress(data, n_bytes + 1)
    except zstd.ZstdError as error:
        raise ValueError(f"damaged block: {error}") from error
    if len(plain) != n_bytes or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"{len(data)} bytes that do not hold {n_bytes}")
    return plain


def _inflate(data: bytes, n_bytes: int) -> bytes:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = unpacker.decompress(data, n_bytes + 1)
    if len(plain) != n_bytes or not unpacker.eof or unpacker.unused_data:
        raise ValueError(f"{len(data)} bytes that do not hold {n_bytes}")
    return plain
