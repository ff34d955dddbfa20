"""Progress of a long loop: a bar with the time left in a terminal, a line every 20 seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

T = TypeVar("T")

LINE_EVERY = 20.0  # seconds


def watch(title: str, console: Console) -> Callable[[Sequence[T]], Iterator[T]]:
    """A function that iterates over a sequence and shows how many items are done."""

    def watched(items: Sequence[T]) -> Iterator[T]:
        if console.is_terminal:
            yield from track(items, title, console=console, transient=True)
            return
        began = last = time.monotonic()
        for n, item in enumerate(items):
            now = time.monotonic()
            if n and now - last >= LINE_EVERY:
                left = (now - began) / n * (len(items) - n)
                console.print(f"{title}: {n} of {len(items)}, {left:.0f} s left")
                last = now
            yield item

    return watched
