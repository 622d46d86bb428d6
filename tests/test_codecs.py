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
    """What comes again further behind than deflate looks."""
    return np.tile(np.random.default_rng(0).random(40_000).astype(np.float32), 2)


def test_large_frames_take_less_and_come_back():
    pytest.importorskip("backports.zstd", reason="the extra codecs is not installed")
    x = frame()
    data = codecs.pack(x)
    assert data[0] == codecs.ZSTD and len(data) < 0.6 * len(codecs._deflate(codecs._by_weight(x.tobytes(), 4)))
    assert codecs.unpack(data, len(x), x.dtype, None).tobytes() == x.tobytes()
    for wrong in (data[:-1], data + b"a", data[:9], data[:1]):
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
    assert (history[1] == x[::-1]).all() and codecs.pack(x)[0] != codecs.ZSTD
    with pytest.raises(ImportError, match=r"agentmem-native\[codecs\]"):
        codecs.unpack(bytes([codecs.ZSTD, 1, 2, 3]), 1_000, np.dtype(np.float32), None)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("density", [0.001, 0.01, 0.1, 0.4])
def test_sparse_beliefs_take_about_what_they_hold(dtype, density):
    rng, history, beliefs = np.random.default_rng(0), am.HistoryBuffer(None, dtype=dtype, shape=(300, 400)), []
    for _ in range(5):
        cells = np.where(rng.random((300, 400)) < density, rng.random((300, 400)), 0)
        cells[0, :2] = -0.0, np.nan
        beliefs.append(am.SparseArray(cells.astype(dtype)))
        history.append(beliefs[-1])
    assert history[2].tobytes() == beliefs[2].to_dense().tobytes()
    held = [len(history._arena[k]) for k in range(4)]
    assert max(held) < 1.5 * beliefs[0].nbytes  # where few are set, as what changes: twice the support


def test_a_support_that_is_none_is_refused():
    x = np.zeros(4_000)
    x[[5, 70]] = 0.1234567890123, -0.0
    packed = [codec + data for codec, data in ((bytes([c]), d) for c, d in codecs._packed(x, None, steps=True))]
    data = next(data for data in packed if data[0] == codecs.SUPPORT)
    assert codecs.unpack(data, len(x), x.dtype, None).tobytes() == x.tobytes()
    for wrong in (bytes([data[0], 1]) + data[2:], bytes([data[0], 255, 127]) + data[2:], data[:-1], data[:1]):
        with pytest.raises(ValueError):
            codecs.unpack(wrong, len(x), x.dtype, None)
