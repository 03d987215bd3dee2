"""Less flicker: a picture is blended with the one before, where the video shows the same."""

from collections.abc import Callable
from typing import Literal

import numpy as np

Smooth = Literal["none", "still", "motion"]

# The most that is kept of the picture before. A change of a frame shows after one frame by a
# fifth, after ten by nine tenths.
_KEPT = 0.8
#: Frames after which pictures hardly depend on where a Smoother began: less than 2 %.
SETTLED = 18
# Differences of two frames in levels of 255: up to the first, noise and compression; from the
# second on, another thing. Flow brings together what is the same, not quite exactly.
_SAME, _OTHER = {"still": 8, "motion": 12}, {"still": 24, "motion": 36}
_AROUND = 5  # pixels a side over which differences are averaged
# Pixels a side around a difference that are painted anew too: strokes reach beyond what they
# depict, and would stay behind as ghosts. Flow takes them along.
_REACH = {"still": 17, "motion": 5}
_CUT = 0.6  # share of pixels that show another thing after a cut
_SMALLEST_FLOW = 32  # pixels a side; the search for motion needs some room


class Smoother:
    """Paints frames in order, with less flicker.

    Where a frame shows the same as the frame before, most of the picture before is kept. What is
    the same is decided by colours: where they differ, and after a cut, the picture is the new one
    alone. With ``motion``, the frame and the picture before are first moved along the optical flow.

    Args:
        paint: a function of pixels (H, W, 3) uint8.
        smooth: ``still`` for cameras that stand still; ``motion`` also follows what moves.

    Raises:
        ModuleNotFoundError: if OpenCV is not installed.

    Flow: Kroeger et al., "Fast optical flow using dense inverse search", 2016.
    """

    def __init__(
        self, paint: Callable[[np.ndarray], np.ndarray], smooth: Literal["still", "motion"]
    ) -> None:
        import cv2

        self._paint = paint
        same, other = _SAME[smooth], _OTHER[smooth]
        share = (other - np.arange(256, dtype=np.float32)) / (other - same)
        self._kept = _KEPT * share.clip(0, 1)
        self._reach = np.ones((_REACH[smooth],) * 2, np.uint8)
        self._flow = None
        if smooth == "motion":
            self._flow = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def __call__(self, frame: np.ndarray) -> np.ndarray:
        """Paint the next frame, (H, W, 3) uint8; a frame of another size begins anew."""
        import cv2

        picture = self._paint(frame)
        if self._before is not None and self._before[0].shape == frame.shape:
            before, painted, inside = self._moved(frame)
            kept = cv2.LUT(_difference(frame, before, self._reach), self._kept)
            if inside is not None:
                kept[inside == 0] = 0
            if np.count_nonzero(kept) > (1 - _CUT) * kept.size:
                picture = cv2.blendLinear(painted, picture, kept, 1 - kept)
        # The caller may reuse the memory of the frame.
        self._before = (frame.copy(), picture)
        return picture

    def _moved(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
        """Return the frame and the picture before, moved to where the frame has the same things,
        and a mask of the pixels for which there was one."""
        import cv2

        before, painted = self._before
        if self._flow is None or min(frame.shape[:2]) < _SMALLEST_FLOW:
            return before, painted, None
        now, then = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY) for each in (frame, before))
        origins = self._flow.calc(now, then, None)
        height, width = now.shape
        origins[..., 0] += np.arange(width, dtype=np.float32)
        origins[..., 1] += np.arange(height, dtype=np.float32)[:, None]
        inside = cv2.inRange(origins, (0, 0), (width - 1, height - 1))
        maps = cv2.convertMaps(origins, None, cv2.CV_16SC2)
        moved = (cv2.remap(each, *maps, cv2.INTER_LINEAR) for each in (before, painted))
        return *moved, inside


def _difference(frame: np.ndarray, before: np.ndarray, reach: np.ndarray) -> np.ndarray:
    """(H, W) uint8: the largest difference of the three colours, averaged over neighbours, and the
    largest of these within reach."""
    import cv2

    difference = cv2.blur(cv2.absdiff(frame, before), (_AROUND, _AROUND))
    red, green, blue = cv2.split(difference)
    largest = cv2.max(cv2.max(red, green), blue)
    return cv2.dilate(largest, reach)
