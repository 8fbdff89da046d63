"""Small ICC profiles, written by hand: none that could be committed comes with Pillow."""

from __future__ import annotations

import struct

DISPLAY_P3 = ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841))  # XYZ at D50
D50 = (0.9642, 1.0, 0.8249)


def fixed(*numbers: float) -> bytes:
    return b"".join(struct.pack(">i", round(number * 65536)) for number in numbers)


def xyz(values: tuple[float, float, float]) -> bytes:
    return b"XYZ \0\0\0\0" + fixed(*values)


def gamma(exponent: float) -> bytes:
    return b"para\0\0\0\0" + struct.pack(">HH", 0, 0) + fixed(exponent)


SRGB_CURVE = (
    b"para\0\0\0\0" + struct.pack(">HH", 3, 0) + fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
)


def profile(
    space: bytes, tags: dict[bytes, bytes], connection: bytes = b"XYZ ", kind: bytes = b"mntr"
) -> bytes:
    """A version 4 profile of a colour space of four letters."""
    text = "by hand".encode("utf-16-be")
    text = b"mluc\0\0\0\0" + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": text, b"cprt": text, b"wtpt": xyz(D50)} | tags
    place, table, body = 132 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        value += b"\0" * (-len(value) % 4)
        table += name + struct.pack(">II", place + len(body), len(value))
        body += value
    head = struct.pack(">I4xI", 128 + len(table) + len(body), 0x04300000) + kind + space + connection
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + fixed(*D50)
    return head.ljust(128, b"\0") + table + body


def rgb(primaries: tuple = DISPLAY_P3, curve: bytes = SRGB_CURVE, padding: int = 0) -> bytes:
    """A display's; ``padding`` bytes that nobody reads make it as large as a printer's."""
    tags = {b"rXYZ": xyz(primaries[0]), b"gXYZ": xyz(primaries[1]), b"bXYZ": xyz(primaries[2])}
    tags |= {b"rTRC": curve, b"gTRC": curve, b"bTRC": curve}
    return profile(b"RGB ", tags | ({b"PAD ": b"data" + bytes(8 + padding)} if padding else {}))


def grey(exponent: float) -> bytes:
    return profile(b"GRAY", {b"kTRC": gamma(exponent)})


def cmyk(cyan: tuple[int, int, int]) -> bytes:
    """A press whose cyan has this Lab colour, 8 bits each; every other ink is black."""
    colours = {0b0000: bytes((255, 128, 128)), 0b1000: bytes(cyan)}
    corners = b"".join(colours.get(corner, bytes((0, 128, 128))) for corner in range(16))
    line = bytes(range(256))
    table = b"mft1\0\0\0\0" + bytes((4, 3, 2, 0)) + fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    table += line * 4 + corners + line * 3
    return profile(b"CMYK", {b"A2B0": table}, b"Lab ", b"prtr")
