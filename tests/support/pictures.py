"""Pictures of every sort, good and bad, and what a WebP is made of."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageCms

if TYPE_CHECKING:
    from collections.abc import Iterator

SVG = (
    b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script></svg>'
)
RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    """Give a picture as a file."""
    file = BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def two_halves(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A red picture whose left half is blue: turned or mirrored it shows."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (0, 0, width // 2, height))
    return picture.convert(mode)


def photograph(width: int = 2400, height: int = 1600, orientation: int = 6) -> bytes:
    """A JPEG that lies on its side, as EXIF says, with a place, a comment, a thumbnail of itself and a profile."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker of cameras"
    exif.get_ifd(0x8825)[1] = "N"
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return encoded(
        two_halves(width, height), "JPEG", exif=exif, comment=b"where I live", icc_profile=profile, quality=90
    )


def animation(frames: int = 3) -> bytes:
    """A GIF that moves: red first, then blue."""
    pictures = [Image.new("RGB", (40, 30), RED if number == 0 else (0, number, 255)) for number in range(frames)]
    return encoded(pictures[0], "GIF", save_all=True, append_images=pictures[1:], duration=50)


def palette_with_a_hole() -> bytes:
    """A PNG with a palette whose colour 0 is transparent: the left half."""
    picture = Image.new("P", (20, 10), 1)
    picture.putpalette([0, 0, 0, *RED])
    picture.paste(0, (0, 0, 10, 10))
    return encoded(picture, "PNG", transparency=0)


def bomb(side: int = 30_000) -> bytes:
    """A PNG of black pixels, 0.9 gigabytes of them, in half a megabyte, made without ever holding more than one row."""
    packer = zlib.compressobj(1)
    row = bytes(1 + side // 8)
    packed = b"".join([*(packer.compress(row) for _ in range(side)), packer.flush()])
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", packed), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


def chunks_of(webp: bytes) -> list[str]:
    """Give the names of a WebP's chunks: EXIF, XMP, ICCP and ANIM would be among them."""
    return list(_walk(webp))


def _walk(webp: bytes) -> Iterator[str]:
    assert webp[:4] == b"RIFF"
    assert webp[8:12] == b"WEBP"
    place = 12
    while place < len(webp):
        name, size = struct.unpack_from("<4sI", webp, place)
        yield name.decode()
        place += 8 + size + size % 2


def look(webp: bytes) -> Image.Image:
    """Give a WebP decoded."""
    picture = Image.open(BytesIO(webp), formats=["WEBP"])
    picture.load()
    return picture


def is_near(found: Any, wanted: tuple[int, ...], by: int = 40) -> bool:
    """Tell whether a pixel has a colour, as far as a lossy file keeps it."""
    return all(abs(one - other) <= by for one, other in zip(found, wanted, strict=False))
