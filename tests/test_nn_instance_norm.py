"""Instance norm modules against torch.nn's own, or against formulas written here in float64.

InstanceNorm2d must behave like torch's class, so that class is the reference for outputs,
gradients, running statistics after several steps, messages, signatures and state_dicts.
"""

import copy
import inspect
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stylekernels.nn import AdaptiveInstanceNorm2d, ConditionalInstanceNorm2d, InstanceNorm2d
from tests.conftest import (
    DTYPES,
    LAYOUTS,
    assert_accurate,
    assert_layout_of,
    assert_op_accurate,
    random,
)
from tests.instance_norms import ACTIVATIONS

pytestmark = pytest.mark.usefixtures("implementation")


@torch.no_grad()
def randomize(module: nn.Module) -> nn.Module:
    """Set random parameters: ones and zeros would hide mistakes."""
    for seed, parameter in enumerate(module.parameters()):
        parameter.copy_(random(*parameter.shape, shift=0.7, seed=seed))
    return module


def twins(*args, **kwargs) -> tuple[InstanceNorm2d, nn.InstanceNorm2d]:
    theirs = randomize(nn.InstanceNorm2d(*args, **kwargs))
    ours = InstanceNorm2d(*args, **kwargs)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


class TestInstanceNorm2d:
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shift", [0.0, 1000.0])
    @pytest.mark.parametrize("momentum", [0.1, 1.0, 0.0, None])
    def test_running_statistics_over_several_steps(self, dtype, shift, momentum):
        ours, theirs = twins(5, momentum=momentum, affine=True, track_running_stats=True)
        exact = copy.deepcopy(theirs).double()
        ours, theirs = ours.to(dtype), theirs.to(dtype)
        exact.load_state_dict(theirs.state_dict())
        for step in range(3):
            x = random(3, 5, 7, 9, dtype=dtype, scale=1 + step, shift=shift, seed=step)
            assert_accurate(ours(x), theirs(x), exact(x.double()), f"output of step {step}")
        for name, buffer in theirs.named_buffers():
            if name == "num_batches_tracked":
                assert ours.num_batches_tracked == buffer
                continue
            ours_buffer = getattr(ours, name)
            assert_accurate(ours_buffer, buffer, getattr(exact, name), name)
            unchanged = torch.equal(ours_buffer, nn.InstanceNorm2d(5, 0, 0, 0, 1).get_buffer(name))
            assert unchanged == (not momentum)
        for module in (ours, theirs, exact):
            module.eval()
        before = copy.deepcopy(ours.state_dict())
        x = random(2, 5, 4, 3, dtype=dtype, shift=shift, seed=9)
        assert_accurate(ours(x), theirs(x), exact(x.double()), "output in evaluation")
        assert all(torch.equal(before[k], v) for k, v in ours.state_dict().items())

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("track", [True, False])
    @pytest.mark.parametrize("layout", LAYOUTS)
    @pytest.mark.parametrize("dtype", DTYPES)
    def test_outputs_and_gradients(self, training, track, layout, dtype):
        ours, theirs = twins(5, affine=True, track_running_stats=track)
        if track:
            for module in (ours, theirs):
                module.running_mean.copy_(random(5, seed=1))
                module.running_var.copy_(random(5, seed=2).square() + 0.5)
        buffers = {k: v.to(dtype) for k, v in ours.named_buffers() if "running" in k}

        def run(module, wide=False):
            def forward(x, weight, bias):
                used = {k: v.double() if wide else v.clone() for k, v in buffers.items()}
                tensors = {"weight": weight, "bias": bias, **used}
                return torch.func.functional_call(module.train(training), tensors, (x,))

            return forward

        tensors = {
            "x": random(3, 5, 7, 9, dtype=dtype, layout=layout, shift=3.0),
            "weight": random(5, dtype=dtype, seed=3),
            "bias": random(5, dtype=dtype, seed=4),
        }
        assert_op_accurate(run(ours), run(theirs), run(theirs, wide=True), tensors)

    def test_second_derivative_through_updated_running_statistics(self):
        module = randomize(InstanceNorm2d(2, affine=True, track_running_stats=True)).double()
        x = random(2, 2, 3, 4, dtype=torch.float64).requires_grad_()
        assert torch.autograd.gradcheck(module, x)
        assert torch.autograd.gradgradcheck(module, x)

    @pytest.mark.parametrize("transform", ["grad", "jvp"])
    def test_running_statistics_under_torch_func(self, transform):
        x = random(2, 3, 6, 5)

        def call(module):
            if transform == "jvp":
                return torch.func.jvp(module, (x,), (x**2,))[1]
            loss = lambda p: torch.func.functional_call(module, p, (x,)).pow(3).sum()  # noqa: E731
            return torch.func.grad(loss)(dict(module.named_parameters()))["weight"]

        ours, theirs = twins(3, affine=True, track_running_stats=True)
        torch.testing.assert_close(call(ours), call(theirs), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(ours.running_var, theirs.running_var)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_input_of_a_float32_module(self, dtype):
        ours, theirs = twins(5, affine=True, track_running_stats=True)
        exact = copy.deepcopy(theirs).double()
        x = random(2, 5, 8, 6, dtype=dtype)
        assert_accurate(ours(x), theirs(x), exact(x.double()))
        assert_accurate(ours.running_var, theirs.running_var, exact.running_var)

    def test_tracking_switched_off_later_still_updates_the_buffers(self):
        ours, theirs = twins(4, track_running_stats=True)
        x = random(2, 4, 6, 5)
        for module in (ours, theirs):
            module.track_running_stats = False
            module.eval()
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
        assert ours.running_mean.abs().sum() > 0

    @pytest.mark.parametrize("kwargs", [{}, {"affine": True}, {"track_running_stats": True}])
    def test_unbatched_input(self, kwargs):
        ours, theirs = twins(4, **kwargs)
        x, residual = random(4, 6, 5, shift=2.0), random(4, 6, 5, seed=1)
        torch.testing.assert_close(ours(x), theirs(x))
        torch.testing.assert_close(ours(x, residual), theirs(x) + residual)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("residual_first", [False, True])
    @pytest.mark.parametrize("training", [False, True])
    def test_activation_and_residual(self, activation, residual_first, training):
        _, theirs = twins(4, affine=True, track_running_stats=True, dtype=torch.float64)
        ours = InstanceNorm2d(
            4,
            affine=True,
            track_running_stats=True,
            dtype=torch.float64,
            activation=activation,
            negative_slope=0.2,
            residual_first=residual_first,
        )
        ours.load_state_dict(theirs.state_dict())
        x = random(2, 4, 6, 5, dtype=torch.float64)
        residual = random(2, 4, 6, 5, dtype=torch.float64, seed=1)
        normalized = theirs.train(training)(x)
        act = ACTIVATIONS[activation]
        first, last = act(normalized + residual), act(normalized) + residual
        expected = first if residual_first else last
        torch.testing.assert_close(ours.train(training)(x, residual), expected)
        torch.testing.assert_close(ours(x), act(theirs(x)))

    @pytest.mark.parametrize(
        "shape", [(3, 4), (1, 2, 3, 4, 5), (2, 5, 4, 4), (5, 4, 4), (2, 3, 1, 1), (3, 1, 1)]
    )
    def test_the_messages_are_torchs(self, shape):
        ours, theirs = twins(3, affine=True, track_running_stats=True)
        with pytest.raises(ValueError) as their_error:  # noqa: PT011
            theirs(random(*shape))
        with pytest.raises(ValueError) as our_error:  # noqa: PT011
            ours(random(*shape))
        assert str(our_error.value) == str(their_error.value)

    def test_a_single_pixel_has_running_statistics_in_evaluation(self):
        ours, theirs = twins(3, track_running_stats=True)
        x = random(2, 3, 1, 1)
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))

    @pytest.mark.parametrize("shape", [(2, 5, 4, 4), (5, 4, 4)])
    def test_another_number_of_channels_warns_without_parameters(self, shape):
        ours, theirs = twins(3)
        x = random(*shape)
        with pytest.warns(UserWarning, match="num_features") as their_warning:
            expected = theirs(x)
        with pytest.warns(UserWarning, match="num_features") as our_warning:
            torch.testing.assert_close(ours(x), expected)
        assert str(our_warning[0].message) == str(their_warning[0].message)

    @pytest.mark.filterwarnings("ignore:input's size")
    @pytest.mark.parametrize("momentum", [0.1, None])
    @pytest.mark.parametrize("training", [True, False])
    def test_running_statistics_of_another_number_of_channels(self, training, momentum):
        for module in twins(3, momentum=momentum, track_running_stats=True):
            with pytest.raises(RuntimeError, match=r"running_mean should contain \d+ elements not"):
                module.train(training)(random(2, 5, 4, 4))

    def test_wrong_arguments(self):
        with pytest.raises(
            ValueError, match=r"activation: expected one of none, relu, .*'softmax'"
        ):
            InstanceNorm2d(3, activation="softmax")
        with pytest.raises(ValueError, match=r"residual: expected x's shape \(1, 3, 4, 4\)"):
            InstanceNorm2d(3)(random(1, 3, 4, 4), random(1, 3, 4, 5))
        with pytest.raises(TypeError, match=r"weight: expected x's dtype torch.float32, got"):
            InstanceNorm2d(3, affine=True, dtype=torch.bfloat16)(random(1, 3, 4, 4))

    def test_signature_and_repr_start_as_torchs(self):
        theirs = inspect.signature(nn.InstanceNorm2d).parameters.values()
        ours = list(inspect.signature(InstanceNorm2d).parameters.values())
        positional = [(p.name, p.default) for p in theirs if p.kind is p.POSITIONAL_OR_KEYWORD]
        assert [(p.name, p.default) for p in ours[: len(positional)]] == positional
        module, original = twins(3, eps=1e-3, affine=True)
        assert repr(module) == repr(original)
        module = InstanceNorm2d(3, activation="leaky_relu", negative_slope=0.2, residual_first=True)
        assert repr(module).endswith(
            "track_running_stats=False, activation=leaky_relu, negative_slope=0.2, "
            "residual_first=True)"
        )

    @pytest.mark.skipif(
        "bias" not in inspect.signature(nn.InstanceNorm2d).parameters, reason="torch has no bias="
    )
    def test_without_bias(self):
        ours, theirs = twins(3, affine=True, bias=False)
        assert list(ours.state_dict()) == ["weight"]
        x = random(1, 3, 4, 4)
        torch.testing.assert_close(ours(x), theirs(x))

    def test_state_dict_goes_both_ways(self):
        ours, theirs = twins(3, affine=True, track_running_stats=True)
        ours(random(2, 3, 4, 4))
        theirs.load_state_dict(ours.state_dict())
        assert list(ours.state_dict()) == list(theirs.state_dict())
        assert torch.equal(ours.running_var, theirs.running_var)
        assert isinstance(ours, nn.InstanceNorm2d)

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies(self, copied):
        module = randomize(InstanceNorm2d(3, affine=True, activation="tanh"))
        x = random(1, 3, 5, 4)
        assert torch.equal(copied(module)(x), module(x))

    def test_compiles_with_running_statistics(self):
        module = InstanceNorm2d(3, affine=True, track_running_stats=True, activation="relu")
        eager = copy.deepcopy(module)
        compiled = torch.compile(module, fullgraph=True, dynamic=True, backend="aot_eager")
        for size in (5, 8):
            x = random(2, 3, size, 7).requires_grad_()
            torch.testing.assert_close(compiled(x), eager(x))
        torch.testing.assert_close(module.running_var, eager.running_var)
        module.eval(), eager.eval()
        torch.testing.assert_close(compiled(x), eager(x))


class TestConditionalInstanceNorm2d:
    module = randomize(ConditionalInstanceNorm2d(4, 3, dtype=torch.float64, activation="relu"))

    @staticmethod
    def expected(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        images = [
            F.instance_norm(image[None], weight=w, bias=b)
            for image, w, b in zip(x, weight, bias, strict=True)
        ]
        return torch.cat(images).relu()

    @pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
    def test_indices(self, dtype):
        x, rows = random(3, 4, 5, 7, dtype=torch.float64), [2, 0, 2]
        y = self.module(x, torch.tensor(rows, dtype=dtype))
        torch.testing.assert_close(
            y, self.expected(x, self.module.weight[rows], self.module.bias[rows])
        )

    @pytest.mark.parametrize("style", [1, torch.tensor(1), torch.tensor([0.0, 1.0, 0.0])])
    def test_one_style_for_every_image(self, style):
        x = random(3, 4, 5, 7, dtype=torch.float64)
        assert torch.equal(self.module(x, style), self.module(x, torch.tensor([1, 1, 1])))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_mixtures_and_their_gradients(self, dtype):
        x, style = random(2, 4, 5, 7, dtype=torch.float64), random(2, 3, dtype=dtype, seed=5)
        style.requires_grad_()
        mixed = [style.double() @ table for table in (self.module.weight, self.module.bias)]
        inputs = (style, self.module.weight, self.module.bias)
        expected = self.expected(x, *mixed)
        y = self.module(x, style)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.square().sum(), inputs),
            torch.autograd.grad(expected.square().sum(), inputs),
        )

    def test_only_the_rows_in_use_have_gradients(self):
        module = ConditionalInstanceNorm2d(4, 3)
        module(random(2, 4, 5, 7), torch.tensor([0, 2])).square().sum().backward()
        assert [row.any().item() for row in module.weight.grad] == [True, False, True]

    def test_half_precision_under_autocast(self):
        module = ConditionalInstanceNorm2d(4, 3)
        with torch.autocast("cpu", torch.bfloat16):
            for x in (random(2, 4, 5, 7), random(2, 4, 5, 7, dtype=torch.bfloat16)):
                y = module(x, torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]))
                assert y.dtype == x.dtype

    def test_residual(self):
        x, residual = random(2, 4, 5, 7), random(2, 4, 5, 7, seed=1)
        module = ConditionalInstanceNorm2d(4, 3, activation="relu")
        torch.testing.assert_close(module(x, 0, residual), F.instance_norm(x).relu() + residual)
        module.residual_first = True
        torch.testing.assert_close(module(x, 0, residual), (F.instance_norm(x) + residual).relu())

    def test_parameters_and_repr(self):
        module = ConditionalInstanceNorm2d(4, 3)
        assert {k: tuple(v.shape) for k, v in module.state_dict().items()} == {
            "weight": (3, 4),
            "bias": (3, 4),
        }
        x = random(2, 4, 5, 7)
        torch.testing.assert_close(module(x, 2), F.instance_norm(x))
        assert repr(module) == "ConditionalInstanceNorm2d(4, 3, eps=1e-05)"

    @pytest.mark.parametrize(
        ("style", "error", "message"),
        [
            ([0, 1], TypeError, "style: expected an int, or a tensor of integers or .* got list"),
            (torch.tensor([True, False]), TypeError, "style: .* got torch.bool"),
            (torch.tensor([0, 1, 2]), ValueError, r"style: .* \(N,\) = \(2,\), got \(3,\)"),
            (torch.ones(2, 4), ValueError, r"style: .* \(N, S\) = \(2, 3\), got \(2, 4\)"),
            (3, IndexError, "style: expected an index from 0 to 2, got 3"),
            (True, TypeError, "style: expected an int, .* got bool"),
        ],
    )
    def test_errors(self, style, error, message):
        with pytest.raises(error, match=message):
            self.module(random(2, 4, 5, 7, dtype=torch.float64), style)
        with pytest.raises(ValueError, match=r"x: expected shape \(N, C, H, W\)"):
            self.module(random(4, 5, 7), 0)


class TestAdaptiveInstanceNorm2d:
    @staticmethod
    def expected(content: Tensor, style: Tensor, eps: float = 1e-5) -> Tensor:
        def mean_and_std(x: Tensor) -> tuple[Tensor, Tensor]:
            var, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
            return mean, (var + eps).sqrt()

        (mean, std), (style_mean, style_std) = mean_and_std(content), mean_and_std(style)
        return (content - mean) / std * style_std + style_mean

    @pytest.mark.parametrize("style_batch", [1, 3])
    def test_values_and_gradients(self, style_batch):
        content = random(3, 4, 5, 7, dtype=torch.float64).requires_grad_()
        style = random(style_batch, 4, 6, 3, dtype=torch.float64, scale=2, shift=5).requires_grad_()
        y, expected = AdaptiveInstanceNorm2d()(content, style), self.expected(content, style)
        torch.testing.assert_close(y, expected)
        torch.testing.assert_close(
            torch.autograd.grad(y.pow(3).sum(), (content, style)),
            torch.autograd.grad(expected.pow(3).sum(), (content, style)),
        )

    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_dtypes_and_layouts(self, dtype, layout):
        content = random(2, 4, 9, 7, dtype=dtype, layout=layout, shift=2)
        style = random(2, 4, 5, 6, dtype=dtype, layout=layout, scale=0.3, shift=1, seed=1)
        exact = self.expected(content.double(), style.double())
        y = AdaptiveInstanceNorm2d()(content, style)
        half = self.expected(content.float(), style.float()).to(dtype)
        assert_accurate(y, exact if dtype == torch.float64 else half, exact)
        assert_layout_of(y, content)

    @pytest.mark.parametrize("shape", [(2, 4), (4,)])
    def test_given_mean_and_std(self, shape):
        content = random(2, 4, 5, 7)
        mean, std = random(*shape, seed=1), random(*shape, seed=2).abs()
        residual = random(2, 4, 5, 7, seed=3)
        y = AdaptiveInstanceNorm2d(activation="tanh")(content, (mean, std), residual)
        expected = F.instance_norm(content) * std[..., None, None] + mean[..., None, None]
        torch.testing.assert_close(y, expected.tanh() + residual)

    @pytest.mark.parametrize("shape", [(2, 4, 5, 7), (3, 5, 5, 7)])
    def test_errors(self, shape):
        module = AdaptiveInstanceNorm2d()
        with pytest.raises(ValueError, match=r"style: .* N = 3 or 1 and C = 4 as content, got"):
            module(random(3, 4, 5, 7), random(*shape))
        with pytest.raises(ValueError, match=r"content: expected shape \(N, C, H, W\)"):
            module(random(4, 5, 7), random(*shape))
        for style, error, message in (
            (None, TypeError, "style: expected a torch.Tensor, got NoneType"),
            ((1.0, 2.0), TypeError, r"style\[0\]: expected a torch.Tensor, got float"),
            ([random(4)], ValueError, r"style: expected a pair \(mean, std\), got 1 values"),
            ((random(4), random(5)), ValueError, r"style\[1\]: expected shape \(C,\) = \(4,\)"),
        ):
            with pytest.raises(error, match=message):
                module(random(3, 4, 5, 7), style)
        assert repr(module) == "AdaptiveInstanceNorm2d(eps=1e-05)"
        assert not module.state_dict()


@pytest.mark.filterwarnings("ignore:var:UserWarning")  # of no values, in the plain formula
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 0, 8), (2, 3, 8, 0), (2, 3, 0, 0)])
def test_empty_planes(shape, affine, device) -> None:
    """As in PyTorch: nothing to normalise, and zero gradients for the parameters."""
    norms = [module(3, affine=affine).to(device) for module in (nn.InstanceNorm2d, InstanceNorm2d)]
    for norm in norms:
        x = torch.empty(shape, device=device, requires_grad=True)
        y = norm(x)
        assert y.shape == shape
        y.sum().backward()
        assert x.grad.shape == shape
        for parameter in norm.parameters():
            assert torch.equal(parameter.grad, torch.zeros_like(parameter))
