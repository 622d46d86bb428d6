"""zstd where it is installed: smaller blocks, the same numbers; and what happens where it is not."""

import numpy as np
import pytest

import agentmem as am
from agentmem import codecs


@pytest.fixture
def without_zstd(monkeypatch):
    monkeypatch.setattr(codecs, "import_module", lambda name: __import__("no_such_module"))
    codecs._zstd.cache_clear()
    yield
    codecs._zstd.cache_clear()


def frame():
    rng = np.random.default_rng(0)
    return np.where(rng.random(40_000) < 0.1, rng.random(40_000), 0).astype(np.float32)


def test_large_frames_take_less_and_come_back():
    pytest.importorskip("backports.zstd", reason="the extra codecs is not installed")
    x = frame()
    data = codecs.pack(x)
    assert data[0] == codecs.ZSTD and len(data) < 0.97 * len(codecs._deflate(codecs._by_weight(x.tobytes(), 4)))
    assert codecs.unpack(data, len(x), x.dtype, None).tobytes() == x.tobytes()
    for wrong in (data[:-1], data + b"a", data[:9], data[:1], data[:40] + bytes(9) + data[49:]):
        with pytest.raises(ValueError):
            codecs.unpack(wrong, len(x), x.dtype, None)
    for n in (0, 3, len(x) - 1, len(x) + 1):
        with pytest.raises(ValueError):
            codecs.unpack(data, n, x.dtype, None)


def test_a_small_block_of_much_is_refused_before_it_is_much():
    zstd = pytest.importorskip("backports.zstd", reason="the extra codecs is not installed")
    with pytest.raises(ValueError, match="do not hold 4000"):
        codecs.unpack(bytes([codecs.ZSTD]) + zstd.compress(bytes(10**8)), 1_000, np.dtype(np.float32), None)


def test_without_zstd_all_works_but_its_blocks(without_zstd):
    x = frame()
    history = am.HistoryBuffer(None, dtype=np.float32, shape=x.shape)
    history.extend([x, x[::-1], x])
    assert (history[1] == x[::-1]).all() and codecs.pack(x)[0] == codecs.DEFLATED
    with pytest.raises(ImportError, match=r"agentmem-native\[codecs\]"):
        codecs.unpack(bytes([codecs.ZSTD, 1, 2, 3]), 1_000, np.dtype(np.float32), None)
