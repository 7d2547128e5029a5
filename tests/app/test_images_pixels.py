"""Pictures in a process of their own: what they become, and what those that mean harm come to."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image
from support.eventually import aeventually
from support.pictures import (
    BLUE,
    RED,
    SVG,
    animation,
    bomb,
    chunks_of,
    encoded,
    is_near,
    look,
    palette_with_a_hole,
    photograph,
    two_halves,
)

from handlers.imaging import BusyError, ImageRefusedError, ImagingError, Pixels

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 50_000_000
SMALL = encoded(two_halves(9, 9), "PNG")


@pytest.fixture
def pixels() -> Pixels:
    return Pixels(max_pixels=MOST)


@pytest.fixture
def lax() -> Pixels:
    return Pixels(max_pixels=30_000 * 30_000)


async def full(pixels: Pixels, body: bytes) -> Image.Image:
    made = await pixels.make(body, [2048])
    return look(made.forms[0].body)


async def test_a_photograph_becomes_upright_small_and_anonymous(pixels: Pixels) -> None:
    body = photograph()
    made = await pixels.make(body, [2048, 960, 160])
    assert [(form.width, form.height) for form in made.forms] == [(1365, 2048), (640, 960), (107, 160)]
    for form in made.forms:
        assert chunks_of(form.body) == ["VP8 "]
        picture = look(form.body)
        assert picture.size == (form.width, form.height)
        # What lay on its side: left was what is above now.
        assert is_near(picture.getpixel((form.width // 2, 9)), BLUE)
        assert is_near(picture.getpixel((form.width // 2, form.height - 9)), RED)
        assert b"Maker" not in form.body
        assert b"where I live" not in form.body
    assert made.source == {"format": "JPEG", "frames": 1}


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
async def test_every_way_of_holding_a_camera_is_set_right(pixels: Pixels, orientation: int) -> None:
    picture = await full(pixels, photograph(40, 20, orientation))
    assert picture.size == ((40, 20) if orientation < 5 else (20, 40))
    blue_is_at = {1: (3, 10), 2: (36, 10), 3: (36, 10), 4: (3, 10), 5: (10, 3), 6: (10, 3), 7: (10, 36), 8: (10, 36)}
    assert is_near(picture.getpixel(blue_is_at[orientation]), BLUE)


@pytest.mark.parametrize(
    ("make", "size", "pixel"),
    [
        (lambda: encoded(Image.new("CMYK", (50, 40), (0, 255, 255, 0)), "JPEG"), (50, 40), RED),
        (lambda: encoded(Image.new("L", (50, 40), 200), "JPEG"), (50, 40), (200, 200, 200)),
        (lambda: encoded(Image.new("I;16", (50, 40), 40_000), "PNG"), (50, 40), (156, 156, 156)),
        (lambda: encoded(Image.new("1", (50, 40), 1), "PNG"), (50, 40), (255, 255, 255)),
        (lambda: encoded(Image.new("LA", (50, 40), (90, 128)), "PNG"), (50, 40), (90, 90, 90, 128)),
        (lambda: encoded(Image.new("RGBA", (50, 40), (*BLUE, 128)), "WEBP"), (50, 40), (*BLUE, 128)),
        (lambda: encoded(Image.new("RGB", (1, 1), RED), "PNG"), (1, 1), RED),
        (lambda: encoded(Image.new("RGB", (1, 9000), RED), "PNG"), (1, 2048), RED),
        (animation, (40, 30), RED),
    ],
    ids=["CMYK", "grey", "16 bits", "1 bit", "grey with alpha", "alpha", "one pixel", "a line", "an animation"],
)
async def test_pictures_of_every_sort_keep_their_colours(
    pixels: Pixels, make: Callable[[], bytes], size: tuple[int, int], pixel: tuple[int, ...]
) -> None:
    picture = await full(pixels, make())
    assert picture.size == size
    assert is_near(picture.getpixel((0, size[1] // 2)), pixel, by=8)


async def test_of_an_animation_the_first_frame_is_kept_and_the_number_told(pixels: Pixels) -> None:
    made = await pixels.make(animation(3), [2048])
    assert made.source == {"format": "GIF", "frames": 3}
    assert "ANIM" not in chunks_of(made.forms[0].body)


async def test_what_is_transparent_stays_so(pixels: Pixels) -> None:
    picture = await full(pixels, palette_with_a_hole())
    assert picture.mode == "RGBA"
    assert [picture.getpixel((place, 5))[3] for place in (2, 17)] == [0, 255]  # type: ignore[index]


async def test_colours_are_taken_through_their_profile(pixels: Pixels) -> None:
    # A profile whose red and green are swapped against sRGB's: what it calls red is green for us.
    from PIL import ImageCms  # noqa: PLC0415

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = srgb.replace(b"rXYZ", b"tmp!", 1).replace(b"gXYZ", b"rXYZ", 1).replace(b"tmp!", b"gXYZ", 1)
    picture = await full(pixels, encoded(Image.new("RGB", (9, 9), RED), "PNG", icc_profile=swapped))
    assert is_near(picture.getpixel((4, 4)), (0, 255, 0))
    for broken in (b"", b"nonsense", srgb[:200]):
        made = await pixels.make(encoded(Image.new("RGB", (9, 9), RED), "PNG", icc_profile=broken), [2048])
        assert is_near(look(made.forms[0].body).getpixel((4, 4)), RED)
        assert chunks_of(made.forms[0].body) == ["VP8 "]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: SVG, "no JPEG, PNG, WebP or GIF picture"),
        (lambda: b"", "no JPEG, PNG, WebP or GIF picture"),
        (lambda: b"<html>404</html>", "no JPEG, PNG, WebP or GIF picture"),
        (lambda: encoded(two_halves(9, 9), "TIFF"), "no JPEG, PNG, WebP or GIF picture"),
        (lambda: encoded(two_halves(9, 9), "BMP"), "no JPEG, PNG, WebP or GIF picture"),
        (lambda: photograph(400, 300)[:-500], "damaged or cut off"),
        (lambda: encoded(Image.effect_noise((99, 99), 9), "PNG")[:-900], "damaged or cut off"),
        (lambda: encoded(two_halves(99, 99), "WEBP")[:-20], "no JPEG, PNG, WebP or GIF|damaged or cut off"),
        (lambda: animation(3)[:60], "damaged or cut off"),
        (bomb, "30,000 by 30,000 pixels; at most 50,000,000"),
    ],
    ids=["SVG", "nothing", "HTML", "TIFF", "BMP", "cut JPEG", "cut PNG", "cut WebP", "cut GIF", "bomb"],
)
async def test_what_is_no_whole_picture_is_refused_with_a_reason(
    pixels: Pixels, make: Callable[[], bytes], problem: str
) -> None:
    with pytest.raises(ImageRefusedError, match=problem):
        await pixels.make(make(), [2048])


async def test_a_picture_that_takes_too_long_is_stopped_and_the_next_one_is_made() -> None:
    # Let past the look at its header, as a decoder with a fault would let it.
    pixels = Pixels(max_pixels=30_000 * 30_000, cpu_seconds=1)
    with pytest.raises(ImageRefusedError, match="more than 1 s of computing"):
        await pixels.make(bomb(), [2048])
    assert (await pixels.make(SMALL, [2048])).forms[0].width == 9
    by_the_clock = Pixels(max_pixels=MOST, seconds=0.01)
    with pytest.raises(ImagingError, match=r"not done within 0\.01 s"):
        await by_the_clock.make(SMALL, [2048])
    assert children() == []


async def test_a_process_that_dies_says_so_and_the_next_one_works(lax: Pixels) -> None:
    making = asyncio.create_task(lax.make(bomb(), [2048]))
    os.kill((await aeventually(children))[0], signal.SIGSEGV)
    with pytest.raises(ImagingError, match="died of SIGSEGV"):
        await making
    assert (await lax.make(SMALL, [2048])).forms[0].width == 9


async def test_nobody_goes_on_for_a_job_that_was_cancelled(lax: Pixels) -> None:
    making = asyncio.create_task(lax.make(bomb(), [2048]))
    await aeventually(children)
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    assert children() == []


async def test_the_process_has_no_passwords_and_little_room(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOWDAH_DATABASE_URL", "postgres://user:secret@host/")
    # One whose size is allowed, and which takes a while: the limits are set by the process itself, at its start.
    making = asyncio.create_task(pixels.make(bomb(7000), [2048]))

    def limits() -> dict[str, str]:
        text = Path(f"/proc/{children()[0]}/limits").read_text(encoding="ascii")
        found = {line[:26].strip(): line[26:].split()[0] for line in text.splitlines()}
        return found if found["Max cpu time"] != "unlimited" and found["Max address space"] != "unlimited" else {}

    found = await aeventually(limits, interval=0.001)
    assert int(found["Max address space"]) < 1_500_000_000
    assert (found["Max file size"], found["Max core file size"]) == ("0", "0")
    environment = environment_of(children()[0])
    assert b"PATH=" in environment
    assert b"secret" not in environment
    making.cancel()
    await asyncio.wait({making})


async def test_more_pictures_than_seats_have_to_come_again(pixels: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(BusyError, "delay", 0.05)
    async with asyncio.TaskGroup() as group:
        enough = asyncio.Event()

        async def sit() -> None:
            async with pixels.seat():
                await enough.wait()

        for _ in range(8):
            group.create_task(sit())
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            async with pixels.seat():
                pass
        enough.set()
    async with pixels.seat():
        pass


def children() -> list[int]:
    """Give the picture processes that this one has."""
    mine = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii").split()
    return [int(child) for child in mine if b"pixels.py" in Path(f"/proc/{child}/cmdline").read_bytes()]


def environment_of(process: int) -> bytes:
    return Path(f"/proc/{process}/environ").read_bytes()
