"""Colour profiles made on the spot, by the letter of the ICC specification (ICC.1:2001-04)."""

import itertools
import struct

ADOBE_RGB = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
PROPHOTO = [(0.79767, 0.28804, 0.0), (0.13519, 0.71188, 0.00009), (0.03135, 0.00009, 0.82491)]
"""XYZ of red, green and blue, adapted to D50, as the profiles of these names have them."""
ADOBE_GAMMA = 563 / 256


def _fixed(*values: float) -> bytes:
    return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    table, content = struct.pack(">I", len(tags)), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + struct.pack(">II", start + len(content), len(data))
        content += data + bytes(-len(data) % 4)
    size = 128 + len(table) + len(content)
    header = (
        struct.pack(">I4sI", size, bytes(4), 0x02100000)
        + kind
        + space
        + connection
        + bytes(12)
        + b"acsp"
    )
    header += bytes(128 - 60 - len(header)) + bytes(28) + _fixed(0.9642, 1, 0.8249)
    return header.ljust(128, b"\0") + table + content


def _text(text: bytes) -> bytes:
    return b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + b"\0" + bytes(78)


def _xyz(*values: float) -> bytes:
    return b"XYZ " + bytes(4) + _fixed(*values)


def _gamma(value: float) -> bytes:
    return b"curv" + bytes(4) + struct.pack(">IH", 1, round(value * 256))


def of_display(primaries: list[tuple[float, float, float]], gamma: float) -> bytes:
    """A profile of RGB with these primaries and this gamma, a multiple of 1/256."""
    tags = {b"desc": _text(b"RGB of a test"), b"wtpt": _xyz(0.9642, 1, 0.8249)}
    tags |= {
        name + b"XYZ": _xyz(*each) for name, each in zip((b"r", b"g", b"b"), primaries, strict=True)
    }
    tags |= {name + b"TRC": _gamma(gamma) for name in (b"r", b"g", b"b")}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def of_greys(gamma: float) -> bytes:
    """A profile of grey pictures."""
    tags = {
        b"desc": _text(b"Grey of a test"),
        b"wtpt": _xyz(0.9642, 1, 0.8249),
        b"kTRC": _gamma(gamma),
    }
    return _profile(b"mntr", b"GRAY", b"XYZ ", tags)


def of_press(padding: int = 0) -> bytes:
    """A profile of a press with four inks, none of which is as strong as its name. padding:
    bytes more than needed.
    """
    inks = [(0.75, -0.35, -0.45), (0.65, 0.70, -0.05), (0.95, -0.05, 0.85), (0.25, 0.0, 0.02)]
    nodes = b""
    for amounts in itertools.product((0, 1), repeat=4):
        lightness, a, b = 1.0, 0.0, 0.0
        for amount, ink in zip(amounts, inks, strict=True):
            lightness *= ink[0] if amount else 1
            a += ink[1] * amount
            b += ink[2] * amount
        shown = (lightness * 255, 128 + 100 * a * lightness, 128 + 100 * b * lightness)
        nodes += bytes(max(0, min(255, round(value))) for value in shown)
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + _fixed(1, 0, 0, 0, 1, 0, 0, 0, 1)
    lut += identity * 4 + nodes + identity * 3
    tags = {b"desc": _text(b"Press of a test"), b"wtpt": _xyz(0.9642, 1, 0.8249), b"A2B0": lut}
    tags |= {b"zzzz": b"text" + bytes(4) + bytes(padding)} if padding else {}
    return _profile(b"prtr", b"CMYK", b"Lab ", tags)
