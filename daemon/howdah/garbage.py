"""What the garbage collector has to look at while jobs run."""

from __future__ import annotations

import gc
from typing import Final

#: Objects that are made before the young ones are looked through. A batch of claimed jobs alone is thousands, and none of it is garbage yet.
YOUNG: Final = 5000


def spare_what_stays() -> None:
    """Take everything that lives by now out of the collector's sight: modules, models and handlers live as long as the process.

    Else every hundred thousand jobs or so pay for a look at all of it, which holds up the loop for some 20 ms. Who has set the collector
    to look more seldom, or never, is left alone.
    """
    gc.collect()
    gc.freeze()
    young, *older = gc.get_threshold()
    if 0 < young < YOUNG:
        gc.set_threshold(YOUNG, *older)
