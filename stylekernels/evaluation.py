"""Measures of a style: its losses beside an optimum, likeness to the photo, stability in time."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stylekernels.inference import Stylizer
from stylekernels.ops.forcing import use_impl
from stylekernels.training.objective import Objective

_LEARNING_RATE, _LAST_RATE = 0.03, 0.002
# Pixels count if flow there and back ends within this distance, in pixels.
_CONSISTENT = 1.0


@dataclass
class Evaluation:
    """Measures of a style, means over the photos.

    Attributes:
        pictures: losses of the style's pictures: ``total``, ``content``, ``style``, ``tv``,
            ``color``.
        photos: the same of the photos as they are.
        optimum: the same after optimising the pixels of each photo, None if that was not asked for.
        reference: the total of that optimisation in plain PyTorch, which checks our gradients.
        ratio: total of the pictures, as a multiple of the optimum's.
        speed: time of the optimisation in plain PyTorch as a multiple of ours.
        ssim: structural similarity of pictures and photos, in gray; 1 is the photo.
        flicker: root mean square change of a stylised clip along the flow, in levels of 255; None
            without a clip.
        clip: the same of the clip as it is.
    """

    pictures: dict[str, float]
    photos: dict[str, float]
    optimum: dict[str, float] | None
    reference: float | None
    ratio: float | None
    speed: float | None
    ssim: float
    flicker: float | None
    clip: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def optimise(objective: Objective, photo: Tensor, steps: int) -> Tensor:
    """Minimise the losses over the pixels of one picture.

    Args:
        objective: the losses.
        photo: (1, 3, H, W) in [0, 1].
        steps: number of steps of Adam.

    Returns:
        The picture, of the same shape, in [0, 1].

    Gatys, Ecker and Bethge, "Image style transfer using convolutional neural networks", 2016,
    with Adam in place of L-BFGS, from the photo in the colours that the loss aims at.
    """
    target = objective.target(photo)
    picture = target.clone().requires_grad_()
    optimizer = torch.optim.Adam([picture])
    for step in range(steps):
        share = step / steps
        rate = _LEARNING_RATE ** (1 - share) * _LAST_RATE**share
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        objective.loss(target, picture)["total"].backward()
        optimizer.step()
        with torch.no_grad():
            picture.clamp_(0, 1)
    return picture.detach()


def evaluate(
    paint: Stylizer,
    objective: Objective,
    photos: Sequence[np.ndarray],
    *,
    steps: int,
    frames: Iterable[np.ndarray] | None = None,
) -> Evaluation:
    """Measure a style.

    Args:
        paint: the style.
        objective: the loss that it was trained for.
        photos: (H, W, 3) uint8 each, RGB; none that it was trained on.
        steps: of the optimisation that it is compared with; 0 leaves it out.
        frames: of a clip, (H, W, 3) uint8 RGB, all of one size; at least two.

    Raises:
        ImportError: if scikit-image, or for a clip OpenCV, is not installed.
        ValueError: if the clip has fewer than two frames.
    """
    from skimage.metrics import structural_similarity

    pictures, untouched, optima, references, likeness = [], [], [], [], []
    seconds = [0.0, 0.0]
    for photo in photos:
        painted, x = paint(photo), _tensor(photo)
        with torch.no_grad():
            pictures.append(_values(objective(x, _tensor(painted))))
            untouched.append(_values(objective(x, x)))
        likeness.append(structural_similarity(*map(_gray, (photo, painted)), data_range=255))
        if not steps:
            continue
        for turn, impl in enumerate((None, "reference")):
            started = time.perf_counter()
            if impl is None:
                optimum = optimise(objective, x, steps)
            else:
                with use_impl(impl):
                    optimum = optimise(objective, x, steps)
            seconds[turn] += time.perf_counter() - started
            with torch.no_grad():
                (optima, references)[turn].append(_values(objective(x, optimum)))
    found = _means(pictures)
    optimum = _means(optima) if steps else None
    flicker = clip = None
    if frames is not None:
        flicker, clip = warped_errors(paint, frames)
    return Evaluation(
        pictures=found,
        photos=_means(untouched),
        optimum=optimum,
        reference=_means(references)["total"] if steps else None,
        ratio=found["total"] / optimum["total"] if optimum else None,
        speed=seconds[1] / seconds[0] if steps else None,
        ssim=float(np.mean(likeness)),
        flicker=flicker,
        clip=clip,
    )


def warped_errors(paint: Stylizer, frames: Iterable[np.ndarray]) -> tuple[float, float]:
    """Measure how much a stylised clip changes along the motion, and the clip itself.

    Args:
        paint: the style.
        frames: (H, W, 3) uint8 RGB, all of one size; at least two.

    Returns:
        Root mean square differences in levels of 255, over the pixels whose flow is consistent:
        of the stylised clip, and of the clip.

    Raises:
        ImportError: if OpenCV is not installed.
        ValueError: if there are fewer than two frames.

    Lai et al., "Learning blind video temporal consistency", 2018, section 3.2, with the flow of
    Kroeger et al., "Fast optical flow using dense inverse search", 2016.
    """
    import cv2

    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    sums, count, before = np.zeros(2), 0, None
    for frame in frames:
        now = (frame, paint(frame))
        if before is not None:
            grays = [cv2.cvtColor(each[0], cv2.COLOR_RGB2GRAY) for each in (before, now)]
            back = search.calc(grays[1], grays[0], None)  # from each pixel to where it was
            there = search.calc(grays[0], grays[1], None)
            rows, columns = np.indices(back.shape[:2], dtype=np.float32)
            at = (columns + back[..., 0], rows + back[..., 1])
            closed = back + cv2.remap(there, *at, cv2.INTER_LINEAR)
            inside = (
                (at[0] >= 0) & (at[0] <= columns[0, -1]) & (at[1] >= 0) & (at[1] <= rows[-1, 0])
            )
            valid = inside & (np.linalg.norm(closed, axis=2) < _CONSISTENT)
            # Index 0 is the stylised clip, 1 the clip.
            for index, kind in enumerate((1, 0)):
                warped = cv2.remap(before[kind].astype(np.float32), *at, cv2.INTER_LINEAR)
                sums[index] += np.square(warped - now[kind])[valid].sum()
            count += 3 * int(valid.sum())
        before = now
    if before is None or not count:
        raise ValueError("frames: expected at least two frames of one scene")
    flicker, clip = np.sqrt(sums / count)
    return float(flicker), float(clip)


def read_clip(path: Path, count: int, side: int) -> Iterator[np.ndarray]:
    """Read the first frames of a clip.

    Args:
        path: a file that OpenCV reads.
        count: number of frames at most.
        side: longer side to which they are scaled, in pixels; they are never enlarged.

    Returns:
        Frames, (H, W, 3) uint8 RGB.

    Raises:
        ImportError: if OpenCV is not installed.
        ValueError: if the file is no clip that can be read.
    """
    import cv2

    source = cv2.VideoCapture(str(path))
    try:
        for number in range(count):
            found, frame = source.read()
            if not found:
                if not number:
                    raise ValueError(f"{path}: expected a clip that OpenCV reads, found no frame")
                return
            scale = min(1.0, side / max(frame.shape[:2]))
            if scale < 1:
                frame = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        source.release()


def _tensor(picture: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 to (1, 3, H, W) in [0, 1], channels_last."""
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]
    return x.float().div(255).contiguous(memory_format=torch.channels_last)


def _gray(picture: np.ndarray) -> np.ndarray:
    return picture @ np.array([0.299, 0.587, 0.114])


def _values(losses: dict[str, Tensor]) -> dict[str, float]:
    """The losses but those of single layers."""
    return {name: value.item() for name, value in losses.items() if "/" not in name}


def _means(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
