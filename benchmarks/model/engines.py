"""Inference engines other than PyTorch: ONNX Runtime and OpenVINO, both from an ONNX file."""

import importlib.util
import logging
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor, nn

#: Packages that each engine needs; onnx and onnxscript are for the exporter.
PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnx", "onnxscript"),
    "openvino": ("openvino", "onnx", "onnxscript"),
}


def missing_packages(engine: str) -> list[str]:
    """Return the packages that an engine needs and that are not installed."""
    return [name for name in PACKAGES[engine] if importlib.util.find_spec(name) is None]


def installed_version(engine: str) -> str:
    """Return the version of an installed engine."""
    return version(engine)


@torch.inference_mode()
def export(network: nn.Module, x: Tensor, path: Path) -> None:
    """Write ``network`` as an ONNX file for inputs of x's size, with its weights in a file
    beside."""
    # The exporter warns that torchvision's ops are not installed.
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    before = registry.level
    registry.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                network,
                (x,),
                path,
                dynamo=True,
                verbose=False,
                input_names=["x"],
                output_names=["y"],
            )
    finally:
        registry.setLevel(before)


def onnxruntime_call(path: Path, x: Tensor) -> tuple[str, Callable[[], Tensor]]:
    """Return the call of a session on ``x``, with as many threads as PyTorch has. x is not
    copied."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors only
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    y = torch.empty_like(x)
    binding = session.io_binding()
    binding.bind_ortvalue_input("x", onnxruntime.OrtValue.ortvalue_from_numpy(x.numpy()))
    binding.bind_output("y", "cpu", 0, "float32", tuple(y.shape), y.data_ptr())

    def call() -> Tensor:
        session.run_with_iobinding(binding)
        return y

    return "float32", call


def openvino_call(path: Path, x: Tensor, dtype: torch.dtype) -> tuple[str, Callable[[], Tensor]]:
    """Return the call of a request on ``x``, with as many threads as PyTorch has. x is not copied.

    OpenVINO computes in ``dtype`` if the CPU has instructions for it, else in float32. The
    expression says which.
    """
    import openvino

    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "bf16" if dtype == torch.bfloat16 else "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    model = openvino.Core().compile_model(path, "CPU", settings)
    request = model.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
    y = torch.from_numpy(request.get_output_tensor().data)

    def call() -> Tensor:
        request.infer()
        return y

    return model.get_property("INFERENCE_PRECISION_HINT").to_string(), call
