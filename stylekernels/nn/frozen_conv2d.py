"""A convolution with frozen weights, which needs the gradient of its input only."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from stylekernels import native
from stylekernels.namespace import ops
from stylekernels.ops.dispatch import choose
from stylekernels.ops.transforms import inside_transform

# Below, PyTorch is faster: Winograd's method transforms as many values as it saves products.
_FEWEST_CHANNELS = 32
# Above, too: the transformed weights leave the cache, and the planes of a loss network are small.
_MOST_WEIGHTS = 9 * 256**2


class FrozenConv2d(nn.Conv2d):
    """A convolution that is not trained, as those of a loss network.

    On the CPU, convolutions of 3x3 with stride 1 and 32 to 256 channels run as `norm_conv2d`, which
    pads while reading, and in float32 uses Winograd's method. So does the gradient of the input: it
    is the convolution of the output's gradient with the weights turned by 180 degrees, channels
    swapped. Weights are packed once for each. Others run as PyTorch's, and so do weights that were
    made in ``torch.inference_mode``, of which no changes can be noticed.

    Measured on a core with AMX, planes of 64 to 256 pixels a side: 1.5 to 2.2 times as fast as
    PyTorch in float32; in bfloat16 1.05 to 2.0 times with reflection, 0.95 to 1.3 with zeros.

    Args, Shape: as for ``torch.nn.Conv2d``. The weights have no gradient. Where the kernels run,
    the output is channels_last, also that of a contiguous input.

    Derivatives of all orders with respect to the input are those of a linear map. A changed weight
    is noticed if it was changed by PyTorch's own operations.
    """

    def __init__(self, *args, **options) -> None:
        super().__init__(*args, **options)
        self.requires_grad_(False)
        self._packed: _Packed | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self._is_faster(x):
            return super().forward(x)
        packed = self._packed
        if packed is None or not packed.fits(self):
            self._packed = packed = _Packed.of(self)
        y = x.contiguous(memory_format=torch.channels_last)
        return _Convolve.apply(y, packed, self.bias)

    def __getstate__(self) -> dict[str, object]:
        """Leave the packed weights out of files and copies: they are made anew."""
        return self.__dict__ | {"_packed": None}

    def _is_faster(self, x: Tensor) -> bool:
        """Return whether the kernels can convolve x, and are measured to be faster."""
        weight, amx = self.weight, native.cpu_capability == "amx"
        plain = self.kernel_size == (3, 3) and self.stride == self.dilation == (1, 1)
        return (
            not torch.jit.is_tracing()
            and plain
            and self.groups == 1
            and self.padding == (1, 1)
            and self.padding_mode in ("zeros", "reflect")
            and x.dim() == 4
            and x.device.type == "cpu"
            and not torch.is_autocast_enabled("cpu")
            and x.dtype == weight.dtype
            and (x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and amx))
            and min(weight.shape[:2]) >= _FEWEST_CHANNELS
            and weight.numel() <= _MOST_WEIGHTS
            and min(x.shape[2:]) >= 2
            and not weight.requires_grad
            and not torch.compiler.is_compiling()
            and not weight.is_inference()  # compilers cannot ask
            and not inside_transform()
            and choose("norm_conv2d", "cpu") == "native"
        )


@dataclass(frozen=True)
class _Packed:
    """Weights as the kernels read them.

    Attributes:
        weight: a module's weight, and the same turned, (Cin, Cout, 3, 3).
        forward, backward: both packed.
        padding_mode: ``zeros`` or ``reflect``.
        version: of the module's weight.
    """

    weight: Tensor
    turned: Tensor
    forward: Tensor
    backward: Tensor
    padding_mode: str
    version: int

    @classmethod
    def of(cls, module: FrozenConv2d) -> "_Packed":
        weight = module.weight.detach()
        turned = weight.flip(2, 3).transpose(0, 1).contiguous()
        pack = ops.norm_conv2d_pack
        mode = module.padding_mode
        border = 1 if mode == "zeros" else 2
        return cls(
            weight,
            turned,
            pack(weight.contiguous(), 1, 1, mode, "none"),
            pack(turned, 1, border, "zeros", "none"),
            mode,
            module.weight._version,
        )

    def fits(self, module: FrozenConv2d) -> bool:
        weight = module.weight
        return weight.data_ptr() == self.weight.data_ptr() and weight._version == self.version


class _Convolve(torch.autograd.Function):
    """x to its convolution, both channels_last."""

    @staticmethod
    def forward(ctx, x: Tensor, packed: _Packed, bias: Tensor | None) -> Tensor:
        ctx.packed = packed
        return _run(x, packed.weight, packed.forward, bias, 1, packed.padding_mode)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return _Transposed.apply(grad, ctx.packed), None, None


class _Transposed(torch.autograd.Function):
    """The gradient at a convolution's output to that at its input."""

    @staticmethod
    def forward(ctx, grad: Tensor, packed: _Packed) -> Tensor:
        ctx.packed = packed
        grad = grad.contiguous(memory_format=torch.channels_last)
        if packed.padding_mode == "zeros":
            return _run(grad, packed.turned, packed.backward, None, 1, "zeros")
        # Gradients at the reflected border are added to those of the pixels that it shows.
        wide = _run(grad, packed.turned, packed.backward, None, 2, "zeros")
        for line, origin in ((0, 2), (-1, -3)):
            wide[:, :, origin] += wide[:, :, line]
        for line, origin in ((0, 2), (-1, -3)):
            wide[..., origin] += wide[..., line]
        return wide[..., 1:-1, 1:-1]

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        grad = grad.contiguous(memory_format=torch.channels_last)
        return _Convolve.apply(grad, ctx.packed, None), None


def _run(
    x: Tensor, weight: Tensor, packed: Tensor, bias: Tensor | None, padding: int, mode: str
) -> Tensor:
    """Convolve x, (N, C, H, W) in channels_last."""
    n, _, h, w = x.shape
    grown = 2 * padding - 2
    y = x.new_empty((n, h + grown, w + grown, weight.shape[0])).permute(0, 3, 1, 2)
    needed = ops.norm_conv2d_workspace(weight, n, h, w, 1, padding, mode, "none")
    workspace = torch.empty(needed, dtype=torch.float64)
    if bias is not None:
        bias = bias.float()
    ops.norm_conv2d_out(
        x, weight, packed, bias, None, "none", 0.0, None, 1, padding, mode, "none",
        None, None, 0.0, y, None, None, workspace,
    )  # fmt: skip
    return y
