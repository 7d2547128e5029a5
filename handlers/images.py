"""Images of posts: fetched from where the author says, made small and clean, and kept in several sizes."""

from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

from pydantic import BaseModel, Field

from handlers.fetching import HopelessFetchError, TryLaterError
from handlers.gallery import FULL, Picture, full_image, show, unwanted
from handlers.imaging import BusyError, ImageRefusedError
from handlers.settings import settings
from howdah import Cancel, Discard, Job, Snooze, handler

if TYPE_CHECKING:
    from handlers.fetching import Fetcher
    from handlers.imaging import Pixels

_LARGEST = 2048
_SIZES = [160, 480, 960]

Outcome = dict[str, Any] | Cancel | Discard | Snooze


class ProcessImage(BaseModel):
    """Which post, and where its image is."""

    post_id: UUID
    image_url: str


@handler("process_image", priority=3, timeout=180, max_attempts=5)
async def process_image(job: Job[ProcessImage]) -> Outcome:
    """Have a post show its image as a WebP of at most 2048 pixels a side; its thumbnails are made by a job of their own."""
    post_id, image_url = job.payload.post_id, job.payload.image_url
    if why := await unwanted(job, post_id, image_url):
        return Cancel(why)

    fetcher: Fetcher = job.resources["fetcher"]
    pixels: Pixels = job.resources["pixels"]
    try:
        async with pixels.seat():
            fetched = await fetcher.get(image_url)
            made = await pixels.make(fetched.body, [_LARGEST])
            picture = Picture(post_id, image_url, sha256(fetched.body).hexdigest()[:32])
    except (HopelessFetchError, ImageRefusedError) as error:
        return Discard(f"the image cannot be taken: {error}")
    except BusyError as busy:
        return Snooze(busy.delay)
    except TryLaterError as later:
        delay = later.snooze_for(job.created_at, datetime.now(UTC))
        if delay is None:
            raise
        return Snooze(delay)

    [form] = made.forms
    if why := await show(job, picture, {FULL: form}):
        return Cancel(why)
    await job.enqueue(
        "generate_thumbnail",
        {"post_id": post_id, "image_url": image_url, "sizes": _SIZES},
        priority=1,
        subject=f"post:{post_id}",
    )
    return {"width": form.width, "height": form.height, "bytes": len(form.body), "source": made.source}


class GenerateThumbnail(BaseModel):
    """Which post, its image, and the longest sides of its thumbnails."""

    post_id: UUID
    image_url: str
    sizes: Annotated[list[Annotated[int, Field(ge=1, le=_LARGEST)]], Field(min_length=1, max_length=10)] = _SIZES


@handler("generate_thumbnail", priority=1, timeout=120, max_attempts=5)
async def generate_thumbnail(job: Job[GenerateThumbnail]) -> Outcome:
    """Make one file for each size from the full image that the post shows. What is smaller than a size stays as it is."""
    post_id, image_url = job.payload.post_id, job.payload.image_url
    if why := await unwanted(job, post_id, image_url):
        return Cancel(why)

    sizes = sorted(set(job.payload.sizes))
    pixels: Pixels = job.resources["pixels"]
    try:
        async with pixels.seat():
            full = await full_image(job, post_id, limit=settings().fetch_max_bytes)
            if full is None:
                return Cancel("the post shows no image")
            made = await pixels.make(full[0], sizes)
    except BusyError as busy:
        return Snooze(busy.delay)

    forms = {f"thumbnail_{size}": form for size, form in zip(sizes, made.forms, strict=True)}
    if why := await show(job, Picture(post_id, image_url, full[1]), forms):
        return Cancel(why)
    return {variant: [form.width, form.height] for variant, form in forms.items()}
