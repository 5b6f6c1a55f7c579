"""Work in threads whose results come in the order of what they were asked for."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from vdiff.errors import PausedError
from vdiff.system.threads import check_room

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    work: Callable[[Item], Result],
    items: Iterable[Item],
    num_threads: int,
    is_large: Callable[[Item], bool] = lambda item: False,
) -> Generator[Result]:
    """`map(work, items)` in threads, with at most two items per thread under way.

    is_large: whether an item must be done before the next one is taken.
    """
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for count, item in enumerate(items):
                pending.append(
                    _submitted(pool, partial(work, item), starts_thread=count < num_threads)
                )
                # Files of hundreds of megabytes in each thread would take all memory. `exception`
                # waits for the end.
                if is_large(item):
                    pending[-1].exception()
                if len(pending) >= 2 * num_threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            # After an error or a stop, the pool would finish all that waits before it ends.
            for future in pending:
                future.cancel()


def _submitted(
    pool: ThreadPoolExecutor, work: Callable[[], Result], starts_thread: bool
) -> "Future[Result]":
    try:
        # Where there is no room for a thread, Python may wait for ever for the thread to begin.
        if starts_thread:
            check_room()
        return pool.submit(work)
    except (RuntimeError, MemoryError) as err:
        # Python has no error of its own for this.
        if "can't start new thread" not in str(err):
            raise
        fix = (
            "use fewer `--workers`, or allow more threads and memory; "
            "the same command then goes on from here"
        )
        raise PausedError("no further thread can be started", fix) from err
