"""A style generator as an ONNX model: bytes in, bytes out, of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from stylekernels.inference.layers import Layer, can_plan, layers_of
from stylekernels.models.files import StyleGenerator
from stylekernels.reference.upsample_block import border_of, transposed_padding

if TYPE_CHECKING:
    import onnx

_OPSET = 17
_PADDING_MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge"}
_ACTIVATIONS = {"relu": "Relu", "leaky_relu": "LeakyRelu", "tanh": "Tanh", "sigmoid": "Sigmoid"}


def to_onnx(generator: StyleGenerator, dtype: torch.dtype = torch.float32) -> onnx.ModelProto:
    """Return the model of a generator: ``frames`` to ``pictures``, (N, H, W, 3) uint8 each, RGB.

    N, H and W are free; both sides have at least 16 pixels. The model has a Conv, an
    InstanceNormalization and an activation for each layer, which engines have kernels for.

    Args:
        generator: an unmodified StyleGenerator.
        dtype: of the weights and the arithmetic, float32 or float16. Statistics of float16 are
            computed as the engine does.

    Raises:
        ImportError: if onnx is not installed.
        TypeError: for another network or dtype.
    """
    if dtype not in (torch.float32, torch.float16):
        raise TypeError(f"dtype: expected torch.float32 or torch.float16, got {dtype}")
    if not can_plan(generator):
        raise TypeError(
            f"generator: expected an unmodified StyleGenerator, got {type(generator).__name__}"
        )
    return _Model(layers_of(generator, dtype)).build()


class _Model:
    """The graph under construction: its nodes and weights, and how many names are used."""

    def __init__(self, layers: list[Layer]) -> None:
        self._layers, self._dtype = layers, layers[0].weight.dtype
        self._nodes: list[onnx.NodeProto] = []
        self._weights: list[onnx.TensorProto] = []

    def build(self) -> onnx.ModelProto:
        import onnx
        from onnx import TensorProto, helper

        number = TensorProto.FLOAT if self._dtype == torch.float32 else TensorProto.FLOAT16
        x = self._node("Transpose", "frames", perm=[0, 3, 1, 2])
        x = self._node("Cast", x, to=number)
        skip = ""
        for layer in self._layers:
            if layer.activation != "none":
                slope = {"alpha": layer.negative_slope} if layer.activation == "leaky_relu" else {}
                x = self._node(_ACTIVATIONS[layer.activation], x, **slope)
            if layer.adds_skip:
                x = self._node("Add", x, skip)
            if layer.keeps_skip:
                skip = x
            x = self._layer(layer, x)
        # Strided layers round an odd size up: the rest is cut off.
        x = self._node("Transpose", x, perm=[0, 2, 3, 1])
        size = self._node("Shape", "frames", start=1, end=3)
        x = self._node("Slice", x, self._integers(0, 0), size, self._integers(1, 2))
        limits = (self._parameter(torch.tensor(limit)) for limit in (0, 255))
        x = self._node("Clip", x, *limits)
        self._node("Cast", self._node("Round", x), to=TensorProto.UINT8, name="pictures")
        shape = ["n", "height", "width", 3]
        values = [
            helper.make_tensor_value_info(name, TensorProto.UINT8, shape)
            for name in ("frames", "pictures")
        ]
        graph = helper.make_graph(
            self._nodes, "stylekernels", values[:1], values[1:], self._weights
        )
        model = helper.make_model(
            graph,
            producer_name="stylekernels",
            opset_imports=[helper.make_opsetid("", _OPSET)],
            ir_version=8,
        )
        onnx.checker.check_model(model)
        return model

    def _layer(self, layer: Layer, x: str) -> str:
        """Add a convolution, and the instance norm after it."""
        if layer.upsample == "nearest":
            scales = self._weight(np.array([1, 1, 2, 2], np.float32))
            nearest = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
            x = self._node("Resize", x, "", scales, mode="nearest", **nearest)
        kernel, padding = layer.weight.shape[-1], layer.padding
        if layer.upsample != "none":
            padding = border_of(kernel, layer.upsample, layer.padding_mode)
        if padding:
            pads = self._integers(*(0, 0, padding, padding) * 2)
            x = self._node("Pad", x, pads, mode=_PADDING_MODES[layer.padding_mode])
        inputs = [x, self._weight(layer.weight.numpy(force=True))]
        if layer.bias is not None:
            inputs.append(self._parameter(layer.bias))
        if layer.upsample == "transpose":
            crop = transposed_padding(layer.padding_mode)
            x = self._node(
                "ConvTranspose",
                *inputs,
                strides=[2, 2],
                pads=[crop] * 4,
                output_padding=[4 - kernel] * 2,
            )
        else:
            x = self._node("Conv", *inputs, strides=[layer.stride] * 2)
        if layer.norm is not None:
            scale, shift, eps = layer.norm
            parameters = (self._parameter(scale), self._parameter(shift))
            x = self._node("InstanceNormalization", x, *parameters, epsilon=eps)
        return x

    def _node(self, kind: str, *inputs: str, name: str = "", **attributes: object) -> str:
        """Add a node, and return the name of its output."""
        from onnx import helper

        name = name or f"{kind.lower()}{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def _integers(self, *values: int) -> str:
        return self._weight(np.array(values, np.int64))

    def _parameter(self, vector: Tensor) -> str:
        return self._weight(vector.to(self._dtype).numpy(force=True))

    def _weight(self, values: np.ndarray) -> str:
        """Add a constant, and return its name."""
        from onnx import numpy_helper

        name = f"w{len(self._weights)}"
        self._weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name
