"""gzip and zlib, with libdeflate and without."""

import gzip
import zlib

import numpy as np
import pytest

from hvae_hpc.preprocess.store import codec

DATA = np.random.default_rng(0).integers(0, 9, 200_000).astype(np.uint8).tobytes()


@pytest.fixture(params=["libdeflate", "zlib"])
def either(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(codec, "libdeflate", None)
    else:
        assert codec.libdeflate is not None, "the development install has it"
    return request.param


@pytest.mark.usefixtures("either")
def test_what_was_compressed_comes_back_and_any_zlib_reads_it():
    stream = codec.compress(DATA)
    assert codec.decompress(stream, len(DATA)) == DATA == zlib.decompress(stream)
    assert codec.gunzip(gzip.compress(DATA)) == DATA
    assert codec.gunzip(gzip.compress(b"")) == b""


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("size", [len(DATA) - 1, len(DATA) + 1])
def test_a_chunk_of_another_size_is_damaged(size):
    with pytest.raises(ValueError, match="chunk"):
        codec.decompress(codec.compress(DATA), size)


@pytest.mark.usefixtures("either")
def test_a_flipped_bit_is_seen_in_chunk_and_file():
    stream, file = bytearray(codec.compress(DATA)), bytearray(gzip.compress(DATA))
    for place in range(2, len(stream), len(stream) // 40):
        stream[place] ^= 8
        with pytest.raises(ValueError, match="chunk"):
            codec.decompress(bytes(stream), len(DATA))
        stream[place] ^= 8
    for place in [
        *range(20, len(file) - 8, len(file) // 40),
        len(file) - 6,
        len(file) - 2,
    ]:  # and checksum and size
        file[place] ^= 8
        with pytest.raises((EOFError, gzip.BadGzipFile, zlib.error)):
            codec.gunzip(bytes(file))
        file[place] ^= 8


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("cut", [1, 8, 100])
def test_a_file_cut_short_ends_early(cut):
    with pytest.raises(EOFError):
        codec.gunzip(gzip.compress(DATA)[:-cut])


@pytest.mark.usefixtures("either")
def test_members_of_unlike_sizes_are_all_read():
    assert (
        codec.gunzip(gzip.compress(DATA) + gzip.compress(b"more") + gzip.compress(b""))
        == DATA + b"more"
    )


def test_a_size_that_no_compression_reaches_is_not_asked_of_memory(monkeypatch):
    file = gzip.compress(DATA)[:-4] + b"\xff\xff\xff\xff"
    monkeypatch.setattr(
        codec.libdeflate, "gzip_decompress", lambda _: pytest.fail("was asked for 4 GiB")
    )
    with pytest.raises(gzip.BadGzipFile):
        codec.gunzip(file)
