"""The pictures of their scene: made here, in many formats, bright above and dark below when they are upright."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from random import Random


def good_pictures(random: Random) -> dict[str, tuple[bytes, tuple[int, int]]]:
    """Give a dozen by path, and the size that each has when it is upright. All are bright above and dark below."""
    exif = Image.Exif()
    exif[0x0112] = 6  # it lies on its left side
    exif.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    lying = _halves(1500, 2500).transpose(Image.Transpose.ROTATE_90)
    sheets = [_halves(64, 48), _halves(64, 48).point(lambda value: value // 2 + 60)]
    pictures = {
        "/photo.jpg": (_file(lying, "JPEG", exif=exif, comment=b"at home"), (1500, 2500)),
        "/print.jpg": (_file(_halves(800, 600).convert("CMYK"), "JPEG"), (800, 600)),
        "/grey.jpg": (_file(_halves(500, 500).convert("L"), "JPEG"), (500, 500)),
        "/drawing.png": (_file(_halves(700, 350).quantize(8), "PNG"), (700, 350)),
        "/glass.png": (_file(_halves(300, 900).convert("RGBA"), "PNG"), (300, 900)),
        "/web.webp": (_file(_halves(700, 1000).transpose(Image.Transpose.ROTATE_90), "WEBP", exif=exif), (700, 1000)),
        "/moves.gif": (_file(sheets[0], "GIF", save_all=True, append_images=sheets[1:]), (64, 48)),
        "/dot.png": (_file(_halves(1, 1), "PNG"), (1, 1)),
    }
    for number in range(4):
        width, height = random.randrange(200, 1400), random.randrange(200, 1400)
        pictures[f"/any-{number}.png"] = (_file(_halves(width, height), "PNG"), (width, height))
    return pictures


def _halves(width: int, height: int) -> Image.Image:
    picture = Image.new("RGB", (width, height), (200, 220, 255))
    picture.paste((40, 60, 30), (0, (height + 1) // 2, width, height))
    return picture


def _file(picture: Image.Image, form: str, **options: object) -> bytes:
    file = BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def huge_gif() -> bytes:
    """Give a GIF of 30,000 by 30,000 pixels, as it says, in some bytes."""
    side = (30_000).to_bytes(2, "little")
    screen = b"GIF89a" + side + side + b"\x80\x00\x00" + bytes(6)
    return screen + b"," + bytes(4) + side + side + b"\x00" + b"\x02\x02\x44\x01\x00;"
