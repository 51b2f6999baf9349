"""Ways to damage a file's content at random, from plain bytes to one field of a format."""

import contextlib
import gzip
import json
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import nibabel as nib
import numpy as np

Change = Callable[[bytes, Random], bytes]
"""Damages a content, as the draw says."""

VALUES: list[Any] = [
    *(None, True, -1, 0, 7, 1.5, -1e300, 1e308, 10**30, "", "x", "x" * 300, "../../x", "\x1b[2Ja"),
    *(
        "\ud800",
        "=1+1",
        "\\g<9>",
        "9" * 5000,
        [],
        {},
        [1],
        [[1]],
        ["x"],
        {"a": 1},
        {"a": {"b": []}},
    ),
]
WORDS = ["1e400", "NaN", "-Infinity", "9" * 5000, "[" * 20000, '"', "\n", "{", "\0", "\xff", "{}"]
DEEP = [json.loads(depth * '{"a":' + "1" + depth * "}") for depth in (40, 400, 900)]
NUMBERS = [0, 1, 2, 7, 8, 127, 255, 256, 32767, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1]


def become_other(path: Path, draw: Random) -> str:
    """Put something else in the place of a file."""
    path.unlink()
    kinds: dict[str, Callable[[], Any]] = {
        "FIFO": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "endless": lambda: path.symlink_to("/dev/zero"),
        "link to itself": lambda: path.symlink_to(path.name),
        "link to nothing": lambda: path.symlink_to("nowhere"),
        "1 TiB": lambda: (path.touch(), os.truncate(path, 2**40)),
        "gone": lambda: None,
    }
    kind = draw.choice(list(kinds))
    kinds[kind]()
    return kind


def cut(content: bytes, draw: Random) -> bytes:
    """Leave the end away, at times all of it."""
    return content[: draw.choice([0, draw.randrange(400), draw.randrange(len(content) + 1)])]


def add(content: bytes, draw: Random) -> bytes:
    """Add random bytes, zeros, or the content itself."""
    return content + draw.choice([draw.randbytes(draw.randrange(1, 2000)), bytes(4096), content])


def flip(content: bytes, draw: Random) -> bytes:
    """Change bytes, most often near the beginning, where headers are."""
    changed = bytearray(content or b"\0")
    for _ in range(draw.choice([1, 1, 2, 8, 64])):
        changed[_place(changed, draw)] = draw.randrange(256)
    return bytes(changed)


def put_words(content: bytes, draw: Random) -> bytes:
    """Put other bytes or words into it, in the place of some or beside them."""
    place = draw.randrange(len(content) + 1)
    word = draw.choice([*(word.encode("latin1") for word in WORDS), draw.randbytes(20)])
    kept = draw.choice([b"", content[place:], content[place + len(word) :]])
    return content[:place] + word + kept


def put_numbers(content: bytes, draw: Random) -> bytes:
    """Write odd numbers of 2, 4 or 8 bytes over it: sizes, counts and offsets of binary formats."""
    changed = bytearray(content or b"\0")
    for _ in range(draw.choice([1, 1, 2, 4])):
        order, (letter, size) = draw.choice("<>"), draw.choice([("H", 2), ("I", 4), ("Q", 8)])
        number = draw.choice([*NUMBERS, 2**63, 2**64 - 1]) % 2 ** (8 * size)
        place = _place(changed, draw)
        changed[place : place + size] = struct.pack(order + letter, number)
    return bytes(changed)


def _place(content: bytes | bytearray, draw: Random) -> int:
    return draw.randrange(
        draw.choice([min(64, len(content)), min(600, len(content)), len(content)])
    )


ANY: list[Change] = [cut, add, flip, flip, put_words, put_numbers, put_numbers]
"""For a file of any format."""


def change_nifti(content: bytes, draw: Random) -> bytes:
    """Write odd values into one field of a NIfTI-1 header, or into some."""
    header = np.frombuffer(content[:348], nib.nifti1.header_dtype).copy()
    for name in draw.sample(header.dtype.names, draw.choice([1, 1, 1, 2, 5])):
        field = header[name].reshape(-1)
        at = draw.randrange(field.size)
        if field.dtype.kind == "f":
            odd = [0.0, -1.0, np.nan, np.inf, 1e-30, 1e30, draw.uniform(-3, 3)]
        elif field.dtype.kind in "iu":
            odd = [*NUMBERS, -1, -3, 3, 4, 5, 16, 64, 128, 512, 1024, 1792, 2304]
        else:
            odd = [draw.randbytes(4), b"n+1", b"ni1", b"n+2"]
        with np.errstate(all="ignore"):
            field[at] = np.array(draw.choice(odd)).astype(field.dtype)
        header[name] = field.reshape(header[name].shape)
    return header.tobytes() + content[348:]


def claim_more_voxels(content: bytes, draw: Random) -> bytes:
    """Let a NIfTI header ask for many voxels, which are not there."""
    header = np.frombuffer(content[:348], nib.nifti1.header_dtype).copy()
    header["dim"][0, 1:4] = draw.choice([(30000, 30000, 3), (2000, 2000, 100), (32767,) * 3])
    return header.tobytes() + content[348:]


ZEROS = gzip.compress(bytes(2**24), 9, mtime=0)
"""16 MiB in 16 KiB."""


def zip_again(content: bytes, draw: Random) -> bytes:
    """Zip it: as one member, as several, or followed by up to 16 GiB of zeros."""
    if draw.random() < 0.7:
        return gzip.compress(content, 1, mtime=0)
    place = draw.randrange(len(content) + 1)
    parts = [gzip.compress(part, 1, mtime=0) for part in (content[:place], content[place:])]
    return b"".join(parts) + ZEROS * draw.choice([0, 0, 1, 64, 1024])


def change_chunk(content: bytes, draw: Random) -> bytes:
    """Damage a chunk of a PNG and let its checksum fit, so that more than the checksum sees it."""
    chunks, at = [], 8
    while at + 12 <= len(content):
        size = int.from_bytes(content[at : at + 4], "big")
        chunks.append((content[at + 4 : at + 8], content[at + 8 : at + 8 + size]))
        at += 12 + size
    number = draw.randrange(len(chunks))
    name, data = chunks[number]
    if name == b"IDAT" and draw.random() < 0.5:  # other rows, or far too many
        data = zlib.compress(draw.choice([bytes(2**24), draw.randbytes(300)]))
    else:
        data = draw.choice([flip, put_numbers, cut, add])(data or b"\0", draw)
    chunks[number] = (draw.choice([name] * 9 + [b"tRNS", b"iCCP", b"zTXt", b"acTL"]), data)
    chunks += [chunks[number]] * (draw.random() < 0.1)
    return content[:8] + b"".join(
        len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")
        for name, data in chunks
    )


def change_tag(content: bytes, draw: Random) -> bytes:
    """Write odd numbers into a tag of a TIFF's first folder: its name, type, count or value."""
    changed, start = bytearray(content), int.from_bytes(content[4:8], "little")
    n_tags = int.from_bytes(content[start : start + 2], "little")
    for _ in range(draw.choice([1, 1, 3])):
        at = start + 2 + 12 * draw.randrange(n_tags)
        offset, size = draw.choice([(0, 2), (2, 2), (4, 4), (8, 2), (8, 4)])
        number = draw.choice([*NUMBERS, 258, 259, 262, 277, 317, 32773, 34712]) % 2 ** (8 * size)
        changed[at + offset : at + offset + size] = number.to_bytes(size, "little")
    return bytes(changed)


def change_word(content: bytes, draw: Random) -> bytes:
    """Put another word in the place of one of a header in words (MetaImage, NRRD)."""
    end = next((end for end in map(content.find, (b"LOCAL\n", b"\n\n")) if end > 0), len(content))
    words = re.split(rb"([\s=:]+)", content[:end])
    others = [b"-1", b"0", b"nan", b"1e400", b"99999 99999 99999", b"MET_DOUBLE", b"/dev/zero"]
    others += [b"../x", b"x" * 5000, b"(1,0,0)", b"gzip", b"%d 1 9", b"LIST", b"True", b""]
    for _ in range(draw.choice([1, 1, 2, 4])):
        words[draw.randrange(len(words))] = draw.choice([*others, draw.choice(words)])
    return b"".join(words) + content[end:]


def change_value(content: bytes, draw: Random) -> bytes:
    """Change, remove or add one value of JSON, or of one line of JSONL."""
    lines = content.decode().splitlines()
    with contextlib.suppress(ValueError):
        lines = [json.dumps(json.loads(content))]
    number = draw.randrange(len(lines))
    data: Any = json.loads(lines[number])
    node = draw.choice([node for node in _nodes(data) if node])
    key = draw.choice(list(node)) if isinstance(node, dict) else draw.randrange(len(node))
    value = draw.choice([*VALUES, *DEEP, "gone"])
    if value == "gone":
        del node[key]
    elif isinstance(node, dict) and draw.random() < 0.1:
        node[str(value)] = node.pop(key)
    else:
        node[key] = value
    lines[number] = json.dumps(data)
    return ("\n".join(lines) + "\n").encode()


def _nodes(data: Any) -> Iterator[Any]:
    if isinstance(data, dict | list):
        yield data
        for item in data.values() if isinstance(data, dict) else data:
            yield from _nodes(item)


TOML_VALUES = [
    *('""', "-1", "0", "1e308", "nan", "inf", "true", "[]", "{}", '["x"]', "[[1]]", "1979-05-27"),
    *("9" * 25, "9" * 5000, "[" * 3000, "{a=" * 3000, '"\\u0000"', '"../../x"', "'\\g<9>'", '"x"'),
    *("\n[x" + ".a" * 400 + "]", "\n[x" + ".a" * 5000 + "]", "1\nx" + ".a" * 900 + "=1"),
    *("'((a|a)+)$'", "'(a*)*(a*)*$'", "'(' * 9", "'(a{9999}){9999}'", "'(" + "?:(" * 300 + "'"),
    *("'{case}" + "*a" * 25 + "x.nii*'", "'" + "**/" * 30 + "{case}.nii*'", "'{case}/{case}.png'"),
    *("'{case}/" + "a*" * 60 + ".nii*'", "'{case}" * 40 + ".nii*'", "[1, 2, 100000]", "100000"),
]


def change_setting(content: bytes, draw: Random) -> bytes:
    """Change, remove or repeat lines of a TOML file."""
    lines = content.decode().splitlines()
    for _ in range(draw.choice([1, 1, 2, 4])):
        number = draw.randrange(len(lines))
        key, equals, _value = lines[number].partition("=")
        if equals and draw.random() < 0.7:
            lines[number] = f"{key}= {draw.choice(TOML_VALUES)}"
        elif draw.random() < 0.4:
            lines.insert(number, lines[draw.randrange(len(lines))])
        elif equals:
            lines[number] = f"{draw.choice(WORDS)}{equals}{_value}"
        elif len(lines) > 2:
            del lines[number]
    return "\n".join(lines).encode("latin1", "replace")
