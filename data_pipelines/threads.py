"""Work done side by side, its results in the order of the items.

OpenCV and PyAV let other Python threads run while they decode, so threads are all that reading needs.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def in_order(
    function: Callable[[_Item], _Result], items: Iterable[_Item], threads: int, ahead: int
) -> Iterator[_Result]:
    """Yield function(item) in the order of `items`, worked on by `threads` threads at most `ahead` items in advance."""
    if threads <= 1:
        yield from map(function, items)
        return
    items = iter(items)
    pool = ThreadPoolExecutor(threads)
    try:
        running = deque(pool.submit(function, item) for item in islice(items, ahead))
        while running:
            yield running.popleft().result()
            running.extend(pool.submit(function, item) for item in islice(items, 1))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
