"""convert and fuse_convolutions on networks as their packages build them, with random weights."""

import copy

import pytest
import torch
from torch import Tensor, nn

from stylekernels import convert
from tests import fusion
from tests.conftest import Recorder, assert_accurate, random
from tests.packaged_networks import PACKAGED, packaged

IMAGES = [name for name, network in PACKAGED.items() if network.convolutions]


def given(name: str, dtype: torch.dtype = torch.float32, layout: str = "contiguous") -> Tensor:
    return random(2, *PACKAGED[name].size, dtype=dtype, layout=layout, shift=0.3)


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the gradients of the input and all parameters that have one."""
    x = x.clone().requires_grad_()
    y = model(x)
    inputs = {"x": x, **dict(model.named_parameters())}
    cotangent = random(*y.shape, dtype=y.dtype, seed=3)
    grads = torch.autograd.grad(y, list(inputs.values()), cotangent, allow_unused=True)
    return y.detach(), {k: g for k, g in zip(inputs, grads, strict=True) if g is not None}


def norms_in(model: nn.Module) -> list[nn.Module]:
    kinds = nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d
    return [module for module in model.modules() if isinstance(module, kinds)]


@pytest.mark.parametrize("name", PACKAGED)
class TestConvert:
    def test_the_report_accounts_for_every_norm(self, name):
        theirs = packaged(name)
        unseen = PACKAGED[name].unseen
        ours, report = convert(copy.deepcopy(theirs), strict=not unseen)
        assert len(report.missed) == unseen
        norms = [[e for e in es if "Norm" in e.what] for es in (report.fused, report.alone)]
        assert tuple(map(len, norms)) == PACKAGED[name].norms
        assert len(norms_in(theirs)) == sum(PACKAGED[name].norms)
        assert all(type(n).__module__.startswith("stylekernels.nn.") for n in norms_in(ours))
        with Recorder() as recorder, torch.no_grad():
            ours(given(name))
        assert not {"native_batch_norm", "native_group_norm"} & {*recorder.ops}

    @pytest.mark.parametrize("training", [True, False])
    def test_float64_stays(self, name, training):
        theirs = packaged(name, torch.float64).train(training)
        ours, _ = convert(copy.deepcopy(theirs))
        x = given(name, torch.float64)
        y, grads = run(ours, x)
        expected, expected_grads = run(theirs, x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-8, atol=1e-8)

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    def test_float32_is_as_accurate(self, name, layout):
        theirs = packaged(name)
        ours, _ = convert(copy.deepcopy(theirs))
        x = given(name, layout=layout)
        y_exact, exact = run(packaged(name, torch.float64), x.double())
        (y, grads), (y_torch, grads_torch) = run(ours, x), run(theirs, x)
        assert_accurate(y, y_torch, y_exact)
        # A bias that a norm cancels has a gradient of rounding errors: hence the common scale.
        scale = max(grad.norm() for grad in exact.values())
        assert grads.keys() == grads_torch.keys() == exact.keys()
        for key in exact:
            error, torch_error = ((g[key] - exact[key]).norm() for g in (grads, grads_torch))
            assert error <= 2 * torch_error + 1e-6 * scale, key

    def test_bfloat16_is_as_accurate(self, name):
        theirs = packaged(name, torch.bfloat16)
        ours, _ = convert(copy.deepcopy(theirs))
        x = given(name, torch.bfloat16)
        y_exact, exact = run(copy.deepcopy(theirs).double(), x.double())
        try:
            y_torch, grads_torch = run(theirs, x)
        except NotImplementedError as error:
            pytest.skip(f"PyTorch's own network: {error}")
        y, grads = run(ours, x)
        assert_accurate(y, y_torch, y_exact)
        together = [
            torch.cat([found[key].double().flatten() for key in exact])
            for found in (grads, grads_torch, exact)
        ]
        error, torch_error = ((found - together[2]).norm() for found in together[:2])
        assert error <= 2 * torch_error, (error, torch_error)


@pytest.mark.filterwarnings("ignore::stylekernels.fusion.NotFusedWarning")  # of the decoder
@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_fuse_convolutions(name, layout):
    model = packaged(name).eval()
    report = fusion.check(model, given(name, layout=layout))
    counts = len(report.fused), len(report.alone), len(report.left)
    assert counts == PACKAGED[name].convolutions
    convolutions = [entry for entry in report.fused + report.left if "Conv" in entry.what]
    kinds = nn.Conv2d, nn.ConvTranspose2d
    assert len(convolutions) == sum(isinstance(each, kinds) for each in model.modules())


@pytest.mark.filterwarnings("error::stylekernels.fusion.NotFusedWarning")
def test_an_example_fuses_the_whole_decoder():
    """torch.fx follows one of its blocks, for other calls than the decoder's."""
    x = given("diffusers, VAE decoder")
    report = fusion.check(packaged("diffusers, VAE decoder").eval(), x, (x,))
    assert [entry.name for entry in report.traced] == [""]
    assert (len(report.fused), len(report.alone), len(report.left)) == (14, 1, 2)
