"""gzip files, unzipped by libdeflate and without."""

import gzip
import zlib

import numpy as np
import pytest

from hvae_hpc.preprocess.read import gunzip as module
from hvae_hpc.preprocess.read.gunzip import gunzip

DATA = np.random.default_rng(0).integers(0, 9, 200_000).astype(np.uint8).tobytes()
MOST = 2**20


@pytest.fixture(params=["libdeflate", "zlib"])
def either(request, monkeypatch):
    if request.param == "zlib":
        monkeypatch.setattr(module, "deflate", None)
    else:
        assert module.deflate is not None, "the development install has it"
    return request.param


@pytest.mark.usefixtures("either")
def test_what_was_zipped_comes_back():
    assert gunzip(gzip.compress(DATA), len(DATA), MOST) == DATA
    assert gunzip(gzip.compress(DATA), 1, MOST) == DATA
    assert gunzip(gzip.compress(b""), 0, MOST) == b""


@pytest.mark.usefixtures("either")
def test_a_flipped_bit_is_seen_also_in_checksum_and_size():
    file = bytearray(gzip.compress(DATA))
    places = range(20, len(file) - 8, len(file) // 40)
    for place in [*places, len(file) - 6, len(file) - 2]:
        file[place] ^= 8
        with pytest.raises((EOFError, gzip.BadGzipFile, zlib.error)):
            gunzip(bytes(file), 1, MOST)
        file[place] ^= 8


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("cut", [1, 8, 100])
def test_a_file_cut_short_ends_early(cut):
    with pytest.raises(EOFError):
        gunzip(gzip.compress(DATA)[:-cut], 1, MOST)


@pytest.mark.usefixtures("either")
def test_members_of_unlike_sizes_are_all_read():
    file = gzip.compress(DATA) + gzip.compress(b"more") + gzip.compress(b"")
    assert gunzip(file, 1, MOST) == DATA + b"more"


@pytest.mark.usefixtures("either")
def test_members_of_one_size_are_all_read_where_so_much_is_asked_for():
    assert gunzip(gzip.compress(DATA[:9]) * 3, 27, MOST) == DATA[:9] * 3


@pytest.mark.usefixtures("either")
def test_a_first_member_that_is_too_short_is_not_taken_for_all():
    file = gzip.compress(DATA[:100]) + gzip.compress(DATA[:540])
    assert gunzip(file, 540, 540) == (DATA[:100] + DATA[:540])[:540]


def test_a_size_that_no_compression_reaches_is_not_asked_of_memory(monkeypatch):
    file = gzip.compress(DATA)[:-4] + b"\xff\xff\xff\xff"
    monkeypatch.setattr(
        module.deflate, "gzip_decompress", lambda _: pytest.fail("was asked for 4 GiB")
    )
    with pytest.raises(gzip.BadGzipFile):
        gunzip(file, 1, 2**33)


@pytest.mark.usefixtures("either")
def test_no_more_is_unzipped_than_is_asked_for():
    assert gunzip(gzip.compress(DATA), 1000, 1000) == DATA[:1000]
    assert gunzip(gzip.compress(DATA[:9]) * 3, 20, 20) == (DATA[:9] * 3)[:20]
