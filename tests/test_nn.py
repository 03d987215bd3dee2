"""Gram matrix, style loss and upsampling block against torch.nn's layers, and properties of every
module. test_nn_instance_norm.py has the norms."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from stylekernels import gram_matrix, use_impl
from stylekernels.nn import (
    AdaptiveInstanceNorm2d,
    ConditionalInstanceNorm2d,
    GramMatrix,
    InstanceNorm2d,
    StyleLoss,
    UpsampleBlock,
)
from tests.conftest import DTYPES, assert_layout_of, random

pytestmark = pytest.mark.usefixtures("implementation")


class TestGramMatrix:
    @pytest.mark.parametrize("shape", [(2, 5, 7, 9), (3, 4, 11)])
    @pytest.mark.parametrize("scale", [None, 0.5])
    def test_against_einsum(self, shape, scale):
        x = random(*shape, dtype=torch.float64)
        flat = x.flatten(2)
        factor = 1 / flat[0].numel() if scale is None else scale
        expected = torch.einsum("nip,njp->nij", flat, flat) * factor
        torch.testing.assert_close(GramMatrix(scale)(x), expected)

    def test_centred_is_the_covariance(self):
        x = random(2, 5, 7, 9, dtype=torch.float64, shift=3.0)
        expected = torch.stack([torch.cov(image, correction=0) for image in x.flatten(2)])
        torch.testing.assert_close(GramMatrix(scale=1 / 63, center=True)(x), expected)

    def test_repr(self):
        assert repr(GramMatrix(0.5, center=True)) == "GramMatrix(scale=0.5, center=True)"


class TestStyleLoss:
    @pytest.mark.parametrize("center", [False, True])
    @pytest.mark.parametrize("scale", [None, 0.25])
    def test_is_the_mean_squared_error_of_gram_matrices(self, scale, center):
        style = random(1, 5, 6, 8, dtype=torch.float64, seed=1).requires_grad_()
        x = random(3, 5, 7, 9, dtype=torch.float64, shift=1.0).requires_grad_()
        loss = StyleLoss.from_features(style, scale, center)
        gram = GramMatrix(scale, center)
        expected = F.mse_loss(gram(x), gram(style).detach().expand(3, 5, 5))
        torch.testing.assert_close(loss(x), expected)
        torch.testing.assert_close(
            torch.autograd.grad(loss(x), x), torch.autograd.grad(expected, x)
        )
        assert not StyleLoss(gram(style), scale, center).target.requires_grad
        assert loss(style).item() < 1e-25

    @pytest.mark.parametrize("dtype", DTYPES)
    def test_follows_a_model_to_its_dtype(self, dtype):
        loss = StyleLoss.from_features(random(1, 5, 6, 8, seed=1)).to(dtype)
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        assert loss.target.dtype == wide
        assert loss(random(1, 5, 6, 8, dtype=dtype)).dtype == wide

    @pytest.mark.parametrize(
        "cast",
        [
            lambda m: m.half(),
            lambda m: m.bfloat16(),
            lambda m: m.to(torch.float16),
            lambda m: m.to("cpu", torch.bfloat16),
            lambda m: m.type(torch.float16),
            lambda m: m.double().half(),
            lambda m: m.half().double(),
            lambda m: m.half().float(),
            lambda m: nn.Sequential(m).half()[0],
            lambda m: copy.deepcopy(m).half(),
        ],
    )
    def test_keeps_targets_beyond_the_range_of_half_precision(self, cast):
        features = 1000 * random(1, 5, 6, 8, seed=1)
        target = gram_matrix(features)
        assert target.max() > torch.finfo(torch.float16).max
        loss = cast(StyleLoss.from_features(features))
        assert torch.equal(loss.target.float(), target)
        x = (1000 * random(1, 5, 6, 8)).half()
        expected = F.mse_loss(gram_matrix(x.double()), target.double())
        torch.testing.assert_close(loss(x).double(), expected, rtol=1e-5, atol=0)

    def test_half_precision_goes_into_a_state_dict_and_comes_out(self):
        loss = StyleLoss.from_features(1000 * random(1, 5, 6, 8, seed=1))
        other = StyleLoss(torch.zeros(1, 5, 5)).half()
        other.load_state_dict(copy.deepcopy(loss).half().state_dict())
        assert torch.equal(other.target, loss.target)
        narrow = {"target": torch.ones(1, 5, 5).half()}
        other.load_state_dict(narrow)
        assert (other.target.dtype, other.target.sum()) == (torch.float32, 25)
        assert StyleLoss(torch.ones(5, 5).bfloat16()).target.dtype == torch.float32

    def test_goes_to_another_device(self):
        loss = StyleLoss.from_features(random(1, 5, 6, 8)).to("meta", torch.float16)
        assert (loss.target.device.type, loss.target.dtype) == ("meta", torch.float32)

    def test_state_dict(self):
        loss = StyleLoss.from_features(random(1, 5, 6, 8, seed=1))
        other = StyleLoss(torch.zeros(1, 5, 5))
        other.load_state_dict(loss.state_dict())
        assert torch.equal(other.target, loss.target)
        assert repr(loss) == "StyleLoss(target=(1, 5, 5), scale=None, center=False)"

    def test_errors(self):
        with pytest.raises(ValueError, match=r"target: expected .* for features use .*from_feat"):
            StyleLoss(random(1, 5, 6, 8))
        with pytest.raises(TypeError, match=r"target: expected a torch.Tensor, got float"):
            StyleLoss(1.0)
        with pytest.raises(
            TypeError, match=r"target: .* got torch.int64; make targets with gram_m"
        ):
            StyleLoss(torch.ones(5, 5, dtype=torch.int64))
        with pytest.raises(ValueError, match=r"target: expected shape .* got \(5, 5\)"):
            StyleLoss(random(5, 5))(random(1, 4, 6, 6))


class TestUpsampleBlock:
    @staticmethod
    def torch_layers(block: UpsampleBlock) -> nn.Sequential:
        """The block out of torch.nn's layers, with the block's parameters."""
        cin, cout, kernel = block.in_channels, block.out_channels, block.kernel_size
        bias = block.bias is not None
        if block.upsample == "nearest":
            mode, pad = block.padding_mode, kernel // 2
            conv = nn.Conv2d(cin, cout, kernel, padding=pad, padding_mode=mode, bias=bias)
            layers = [nn.Upsample(scale_factor=2), conv]
        else:
            assert block.padding_mode == "zeros"
            conv = nn.ConvTranspose2d(cin, cout, kernel, 2, 1, 4 - kernel, bias=bias)
            layers = [conv]
        with torch.no_grad():
            conv.weight.copy_(block.weight)
            if bias:
                conv.bias.copy_(block.bias)
            if block.norm == "instance":
                norm = nn.InstanceNorm2d(cout, affine=True)
                norm.weight.copy_(block.norm_weight)
                norm.bias.copy_(block.norm_bias)
                layers.append(norm)
        activation = {"relu": nn.ReLU(), "tanh": nn.Tanh(), "leaky_relu": nn.LeakyReLU(0.2)}
        return nn.Sequential(*layers, activation[block.activation]).double()

    @pytest.mark.parametrize(
        ("kernel_size", "upsample", "padding_mode"),
        [
            (3, "transpose", "zeros"),
            (4, "transpose", "zeros"),
            (3, "nearest", "zeros"),
            (3, "nearest", "reflect"),
            (5, "nearest", "replicate"),
            (1, "nearest", "replicate"),
        ],
    )
    @pytest.mark.parametrize("norm", ["instance", "none"])
    @pytest.mark.parametrize("activation", ["relu", "tanh", "leaky_relu"])
    @pytest.mark.parametrize("bias", [True, False])
    def test_is_torchs_layers(self, kernel_size, upsample, padding_mode, norm, activation, bias):
        block = UpsampleBlock(
            3, 5, kernel_size, upsample, norm, activation, padding_mode, bias, 0.2
        ).double()
        with torch.no_grad():
            for seed, parameter in enumerate(block.parameters()):
                parameter.copy_(random(*parameter.shape, shift=0.7, seed=seed))
        layers = self.torch_layers(block)
        x = random(2, 3, 5, 7, dtype=torch.float64)
        y, expected = block(x), layers(x)
        torch.testing.assert_close(y, expected)
        y.square().sum().backward()
        expected.square().sum().backward()
        conv = next(m for m in layers if hasattr(m, "kernel_size"))
        torch.testing.assert_close(block.weight.grad, conv.weight.grad)
        if bias:
            torch.testing.assert_close(block.bias.grad, conv.bias.grad, atol=1e-10, rtol=1e-7)
            assert (block.bias.grad == 0).all() == (norm == "instance")

    @pytest.mark.parametrize("mode", ["replicate", "reflect"])
    @pytest.mark.parametrize("kernel_size", [3, 4])
    def test_transposed_convolution_of_a_continued_image(self, mode, kernel_size):
        # The expected result is the middle of that for a much larger picture that continues this
        # one.
        block = UpsampleBlock(3, 5, kernel_size, norm="none", padding_mode=mode).double()
        x = random(2, 3, 5, 7, dtype=torch.float64)
        large = F.conv_transpose2d(
            F.pad(x, [3] * 4, mode), block.weight, block.bias, 2, 1, 4 - kernel_size
        )
        torch.testing.assert_close(block(x), large[:, :, 6:-6, 6:-6].relu())

    @pytest.mark.parametrize(("upsample", "kernel_size"), [("transpose", 4), ("nearest", 3)])
    def test_default_initialisation_is_torchs(self, upsample, kernel_size):
        torch.manual_seed(0)
        block = UpsampleBlock(3, 5, upsample=upsample, norm="none")
        torch.manual_seed(0)
        cls = nn.ConvTranspose2d if upsample == "transpose" else nn.Conv2d
        conv = cls(3, 5, kernel_size)
        assert torch.equal(block.weight, conv.weight)
        assert torch.equal(block.bias, conv.bias)

    @pytest.mark.parametrize(
        ("upsample", "kernel_size"), [("transpose", 4), ("nearest", 3), ("nearest", 7)]
    )
    def test_bilinear_initialisation_interpolates(self, upsample, kernel_size):
        block = UpsampleBlock(
            3, 5, kernel_size, upsample, "none", "none", bias=False, dtype=torch.float64
        )
        assert block.init_bilinear_() is block
        mixture = block.weight.sum((2, 3))
        mixture = mixture.T / 4 if upsample == "transpose" else mixture
        x = random(2, 3, 5, 7, dtype=torch.float64)
        mixed = torch.einsum("nihw,oi->nohw", x, mixture)
        expected = F.interpolate(mixed, scale_factor=2, mode="bilinear")
        torch.testing.assert_close(block(x), expected)
        assert mixture.abs().max() <= 3**-0.5
        assert mixture.std() > 0.2
        assert mixture.unique().numel() == 15

    def test_bilinear_initialisation_of_three_taps(self):
        block = UpsampleBlock(1, 1, 3, norm="none", activation="none", bias=False).init_bilinear_()
        x = random(1, 1, 4, 6)
        y = block(x) * 4 / block.weight.sum()
        torch.testing.assert_close(y[..., ::2, ::2], x)
        torch.testing.assert_close(y[..., ::2, 1:-1:2], (x[..., 1:] + x[..., :-1]) / 2)

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "misaligned"])
    def test_keeps_dtype_and_layout(self, dtype, layout):
        block = UpsampleBlock(8, 16, dtype=dtype)
        x = random(2, 8, 6, 5, dtype=dtype, layout=layout)
        with torch.no_grad():
            y = block(x)
        assert y.dtype == dtype
        assert_layout_of(y, x)

    def test_state_dict_and_repr(self):
        assert list(UpsampleBlock(3, 5).state_dict()) == ["weight", "norm_weight", "norm_bias"]
        assert list(UpsampleBlock(3, 5, norm="none").state_dict()) == ["weight", "bias"]
        assert UpsampleBlock(3, 5).weight.shape == (3, 5, 4, 4)
        assert UpsampleBlock(3, 5, upsample="nearest").weight.shape == (5, 3, 3, 3)
        assert repr(UpsampleBlock(3, 5, activation="leaky_relu", bias=True)) == (
            "UpsampleBlock(3, 5, kernel_size=4, upsample=transpose, norm=instance, "
            "activation=leaky_relu, padding_mode=replicate, negative_slope=0.01, bias=True)"
        )

    def test_errors(self):
        with pytest.raises(ValueError, match=r"kernel_size: expected 3 or 4 for .* got 5"):
            UpsampleBlock(3, 5, 5)
        with pytest.raises(ValueError, match=r"kernel_size: expected a positive odd .* got 4"):
            UpsampleBlock(3, 5, 4, "nearest")
        with pytest.raises(ValueError, match=r"kernel_size: expected at least 3 .* got 1"):
            UpsampleBlock(3, 5, 1, "nearest").init_bilinear_()
        with pytest.raises(ValueError, match="upsample: expected one of transpose, nearest"):
            UpsampleBlock(3, 5, upsample="bicubic")
        with pytest.raises(ValueError, match="norm: expected one of instance, none"):
            UpsampleBlock(3, 5, norm="batch")
        with pytest.raises(ValueError, match="padding_mode: expected one of zeros, reflect"):
            UpsampleBlock(3, 5, padding_mode="circular")


@pytest.mark.parametrize(
    ("module", "extra"),
    [
        (InstanceNorm2d(4, affine=True, activation="relu"), ()),
        (ConditionalInstanceNorm2d(4, 3, activation="relu"), (torch.tensor([2, 0]),)),
        (AdaptiveInstanceNorm2d(activation="relu"), (random(2, 4, 3, 5, seed=5),)),
        (GramMatrix(), ()),
        (StyleLoss.from_features(random(1, 4, 9, 8, seed=6)), ()),
        (UpsampleBlock(4, 3), ()),
    ],
    ids=lambda value: type(value).__name__,
)
class TestEveryModule:
    def test_reference_gives_the_same(self, module, extra):
        x = random(2, 4, 9, 7, shift=0.5)
        with use_impl("reference"):
            expected = module(x, *extra)
        torch.testing.assert_close(module(x, *extra), expected)

    def test_compiles_to_one_graph(self, module, extra):
        torch.compiler.reset()
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        x = random(2, 4, 9, 7, shift=0.5).requires_grad_()
        y, expected = compiled(x, *extra), module(x, *extra)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.square().sum(), x),
            torch.autograd.grad(expected.square().sum(), x),
        )

    def test_survives_pickling(self, module, extra):
        x = random(2, 4, 9, 7)
        with warnings.catch_warnings(action="error"):
            assert torch.equal(pickle.loads(pickle.dumps(module))(x, *extra), module(x, *extra))
