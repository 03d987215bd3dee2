"""A Stylizer on a GPU: CUDA graphs and frames in flight. Without a GPU, stand-ins for torch.cuda
test the order of events; they cannot capture graphs."""

import contextlib
import types

import numpy as np
import pytest
import torch
from torch import Tensor

from stylekernels import use_impl
from stylekernels.inference import Stylizer, graphs
from stylekernels.inference.graphs import FrameGraphs


def frames(count: int, height: int = 33, width: int = 47) -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return list(generator.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def negative(given: Tensor, picture: Tensor) -> None:
    picture.copy_(255 - given)


class _Stream:
    def wait_stream(self, other) -> None: ...

    def synchronize(self) -> None: ...


class _Event:
    """Never recorded is as good as over."""

    def record(self) -> None: ...

    def wait(self) -> None: ...

    def synchronize(self) -> None: ...


@contextlib.contextmanager
def _no_capture(graph, stream, capture_error_mode):
    raise RuntimeError("operation not permitted when stream is capturing")
    yield


@pytest.fixture
def no_gpu(monkeypatch) -> None:
    """torch.cuda's names as `graphs` uses them, on the CPU."""

    def zeros(shape, dtype, device=None, pin_memory=False) -> Tensor:
        return torch.zeros(shape, dtype=dtype)

    def nothing(_=None):
        return contextlib.nullcontext()

    cuda = types.SimpleNamespace(
        Stream=_Stream,
        Event=_Event,
        CUDAGraph=object,
        graph=_no_capture,
        device=nothing,
        stream=nothing,
        current_stream=_Stream,
        synchronize=lambda: None,
    )
    monkeypatch.setattr(
        graphs, "torch", types.SimpleNamespace(cuda=cuda, zeros=zeros, uint8=torch.uint8)
    )


pytestmark = pytest.mark.filterwarnings("ignore:frames are launched one by one")


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize("count", [0, 1, 2, 3, 7])
def test_a_stream_keeps_the_order_and_takes_no_more_than_it_must(count) -> None:
    taken = []

    def source():
        for index, frame in enumerate(frames(count)):
            taken.append(index)
            yield torch.from_numpy(frame)[None]

    run = FrameGraphs(negative, (1, 33, 47, 3), torch.device("cpu"))
    assert not run.captured
    for index, picture in enumerate(run.stream(source())):
        assert len(taken) == min(count, index + graphs.SLOTS + 1)
        np.testing.assert_array_equal(picture[0].numpy(), 255 - frames(count)[index])
    assert len(taken) == count


@pytest.mark.usefixtures("no_gpu")
def test_pictures_are_the_callers_own() -> None:
    run = FrameGraphs(negative, (1, 33, 47, 3), torch.device("cpu"))
    given = [torch.from_numpy(frame)[None] for frame in frames(4)]
    pictures = [run(frame) for frame in given]
    for frame, picture in zip(given, pictures, strict=True):
        assert torch.equal(picture, 255 - frame)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_frames_on_a_gpu(generator, dtype) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    stylizer = Stylizer(generator, dtype, device="cuda")
    with use_impl("reference"):
        expected = [Stylizer(generator, torch.float32, device="cuda")(f) for f in frames(5)]
    close = {"atol": 3 if dtype == torch.float32 else 8, "rtol": 0}  # float32 may be tf32
    for _ in range(2):
        for frame, wanted in zip(frames(5), expected, strict=True):
            on_device = stylizer(torch.from_numpy(frame).cuda())
            assert on_device.is_cuda
            for found in (stylizer(frame), on_device.cpu().numpy()):
                np.testing.assert_allclose(found.astype(int), wanted.astype(int), **close)
    assert stylizer._plan.captured
    for _ in zip(range(1), stylizer.stream(frames(5)[::-1]), strict=False):
        pass  # left with frames under way
    first, second = (torch.from_numpy(frame) for frame in frames(2))
    on_device, on_host = stylizer(first.cuda()), stylizer(second)  # the first may still run
    np.testing.assert_allclose(
        on_device.cpu().numpy().astype(int), expected[0].astype(int), **close
    )
    np.testing.assert_allclose(on_host.numpy().astype(int), expected[1].astype(int), **close)
    pictures = list(stylizer.stream(frames(5)))
    for found, wanted in zip(pictures, expected, strict=True):
        np.testing.assert_allclose(found.astype(int), wanted.astype(int), **close)
    assert next(stylizer.stream(frames(1, 64, 36))).shape == (64, 36, 3)
    batch = np.stack(frames(2))
    np.testing.assert_array_equal(stylizer(batch)[1], stylizer(frames(2)[1]))


def test_no_capture_is_said(no_gpu) -> None:
    with pytest.warns(UserWarning, match="one by one, not as a CUDA graph: operation not permit"):
        FrameGraphs(negative, (1, 33, 47, 3), torch.device("cpu"))


def test_a_stream_on_the_cpu(generator) -> None:
    stylizer = Stylizer(generator)
    given = [*frames(2), *frames(1, 20, 24)]
    for frame, picture in zip(given, stylizer.stream(given), strict=True):
        np.testing.assert_array_equal(picture, stylizer(frame))
