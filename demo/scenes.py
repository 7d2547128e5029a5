"""Which scenes are played, in this order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from demo.campaign import Campaign
from demo.course import Course
from demo.pictures import Pictures
from demo.students import Students

if TYPE_CHECKING:
    from demo.scene import Scene

SCENES: tuple[type[Scene], ...] = (Students, Pictures, Course, Campaign)
