"""Makes small, clean WebP files of a picture that nobody has looked at yet. A program of its own: a process for each picture.

In at stdin: a line of JSON, the order, then the picture's bytes. Out at stdout: a line of JSON, what was made or why not, then the files.
What a hostile picture may do to whoever decodes it (eat memory, loop, crash) it does to this process, which holds nothing: no
connection, no secret in its environment. It imports nothing of ours, so that it starts in a moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import warnings
from io import BytesIO
from typing import Any

# WebP by name: else Pillow looks for who can write it among all the formats that it knows, and loads them.
from PIL import Image, ImageCms, ImageOps, WebPImagePlugin  # noqa: F401

FORMATS = ("JPEG", "PNG", "WEBP", "GIF")
_QUALITY = 82
_SPARE = 192 * 1024 * 1024  # bytes beside the pixels: the file itself, the encoder's tables
_BYTES_A_PIXEL = 4 * 4  # decoded, converted, and twice for what libraries copy


class RefusedError(Exception):
    """No picture that we take; the message is for the one who posted it."""


def main() -> None:
    """Do one order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal is the daemon's to answer, which lets us finish
    order = json.loads(sys.stdin.buffer.readline())
    _limit(order["seconds"], order["max_pixels"])
    forms: list[dict[str, Any]] = []
    files: list[bytes] = []
    try:
        picture = _open(sys.stdin.buffer.read(), order["max_pixels"])
        clean = _clean(picture, max(order["boxes"]))
        for box in order["boxes"]:
            width, height, file = _fit(clean, box)
            forms.append({"width": width, "height": height, "bytes": len(file)})
            files.append(file)
        answer = {"source": {"format": picture.format, "frames": getattr(picture, "n_frames", 1)}, "forms": forms}
    except RefusedError as error:
        answer, files = {"refused": str(error)}, []
    except MemoryError:
        answer, files = {"refused": "it needs more memory than a picture of its size may"}, []
    sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n" + b"".join(files))


def _limit(seconds: int, max_pixels: int) -> None:
    """Let the system end us where we are led astray: time, memory, files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    # Counted from what Python and the libraries have taken already. Where there is no /proc (macOS), there is no such limit.
    with contextlib.suppress(OSError), open("/proc/self/statm", encoding="ascii") as statm:  # noqa: PTH123 - pathlib costs its import
        taken = int(statm.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        most = taken + max_pixels * _BYTES_A_PIXEL + _SPARE
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _open(body: bytes, max_pixels: int) -> Image.Image:
    """Read the header alone, and refuse what the header shows to be too much."""
    Image.MAX_IMAGE_PIXELS = None  # the limit below is ours, and has no half-way house of warnings
    try:
        picture = Image.open(BytesIO(body), formats=FORMATS)
    except Exception:
        raise RefusedError("it is no JPEG, PNG, WebP or GIF picture, whatever its name says") from None
    width, height = picture.size
    if width * height > max_pixels:
        raise RefusedError(f"it has {width:,} by {height:,} pixels; at most {max_pixels:,} in all can be taken")
    return picture


def _clean(picture: Image.Image, box: int) -> Image.Image:
    """Decode, and give plain sRGB pixels, upright, with nothing else attached. Of an animation: the first frame."""
    picture.draft(picture.mode, (2 * box, 2 * box))  # a JPEG much too large is decoded at a fraction of its size
    try:
        picture.load()
        upright = _upright(picture)
    except MemoryError:
        raise
    except Exception as error:
        raise RefusedError(f"it is damaged or cut off: {error}") from None
    plain = _srgb(upright)
    plain.info.clear()  # profile, comments, EXIF: some encoders take them from there
    return plain


def _upright(picture: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(picture)
    except MemoryError:
        raise
    except Exception:
        return picture  # a picture is worth more than its broken EXIF


def _srgb(picture: Image.Image) -> Image.Image:
    profile = picture.info.get("icc_profile")
    plain = _without_palette(picture)
    has_alpha = plain.mode == "RGBA"
    if profile and plain.mode in {"RGB", "RGBA", "CMYK", "L"}:
        with contextlib.suppress(ImageCms.PyCMSError, OSError):  # a broken profile: take the colours as they stand
            source = ImageCms.getOpenProfile(BytesIO(profile))
            converted = ImageCms.profileToProfile(
                plain, source, ImageCms.createProfile("sRGB"), outputMode="RGBA" if has_alpha else "RGB"
            )
            if converted is not None:
                return converted
    return plain.convert("RGBA" if has_alpha else "RGB")


def _without_palette(picture: Image.Image) -> Image.Image:
    """Give a mode whose values may be mixed: a palette's numbers must not."""
    if picture.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in picture.info:
        return picture.convert("RGBA")
    if picture.mode.startswith("I"):  # 16 bits of grey: the upper eight
        return picture.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    return picture if picture.mode in {"RGB", "CMYK", "L"} else picture.convert("RGB")


def _fit(picture: Image.Image, box: int) -> tuple[int, int, bytes]:
    """Give width, height and file of a picture that fits into a square; never larger than it was."""
    fitting = picture.copy()
    fitting.thumbnail((box, box), Image.Resampling.LANCZOS)
    file = BytesIO()
    fitting.save(file, "WEBP", quality=_QUALITY, method=4)
    return fitting.width, fitting.height, file.getvalue()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
