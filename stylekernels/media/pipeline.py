"""Frames from a source through a painter into a sink, all three at work at the same time.

The source and the sink run in a thread each. The painter runs in the thread that calls, so that
its arithmetic has one pool of threads, and Ctrl-C reaches it.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from stylekernels.media.frames import Frame, Sink, Source
from stylekernels.media.stages import Channel, Stage


def run_pipeline(
    source: Source,
    paint: Callable[[np.ndarray], np.ndarray],
    sink: Sink,
    *,
    ahead: int = 4,
    painted: Callable[[], None] = lambda: None,
) -> None:
    """Paint every frame of a source into a sink.

    The sink is finished however this ends: after an error of the source or the painter, and after
    KeyboardInterrupt, it has the frames that were painted until then.

    Args:
        source: read in a thread of its own. Items that are no frames go to the sink unchanged.
        paint: a function of pixels (H, W, 3) uint8, called in this thread.
        sink: written and finished in a thread of its own.
        ahead: the most items that wait before the painter, and after it.
        painted: called in this thread after each frame.

    Raises:
        BaseException: the error of the sink, the painter or the source. That of the sink comes
            first: without one, the result is complete as far as it goes.
    """
    unpainted, finished = Channel(ahead), Channel(ahead)

    def read() -> None:
        for item in source:
            if not unpainted.put(item):
                return

    def write() -> None:
        try:
            for item in finished:
                sink.write(item)
        finally:
            sink.finish()

    reader, writer = Stage(read, unpainted), Stage(write, finished)
    reader.start()
    writer.start()
    try:
        for item in unpainted:
            is_frame = isinstance(item, Frame)
            if is_frame:
                item = replace(item, rgb=paint(item.rgb))
            if not finished.put(item):
                break  # the sink failed
            if is_frame:
                painted()
        finished.close()
        writer.ended.wait()
    finally:
        # Again, because Ctrl-C may have interrupted the wait for the sink.
        unpainted.close()
        finished.close()
        reader.wait()
        writer.wait()
        if writer.error is not None:
            raise writer.error
    if reader.error is not None:
        raise reader.error
