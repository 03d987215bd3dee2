"""convert on networks for volumes: nnU-Net's and MONAI's, as small copies and as their packages
build them. All norms are replaced, and run as one op with their activations."""

import copy
import pickle
import pydoc
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import stylekernels
from stylekernels import convert, revert
from tests.conftest import Recorder, assert_accurate, random
from tests.packaged_networks import dynunet, monai_unet, nnunet
from tests.volume_networks import MonaiUNet, NnUNet

ROOT = Path(__file__).resolve().parent.parent


# The network, and how many norms it has.
NETWORKS = {
    "nnU-Net, copied": (NnUNet, 3),
    "MONAI, copied": (MonaiUNet, 4),
    "nnU-Net": (nnunet, 5),
    "MONAI": (monai_unet, 5),
    "MONAI, DynUNet": (dynunet, 10),
}


def network(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name][0]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


def volume(dtype: torch.dtype = torch.float32) -> Tensor:
    return random(2, 1, 6, 8, 10, dtype=dtype, shift=0.3)


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the gradients of the input and every parameter."""
    x = x.clone().requires_grad_()
    y = model(x)
    inputs = {"x": x, **dict(model.named_parameters())}
    grads = torch.autograd.grad(y, list(inputs.values()), random(*y.shape, dtype=y.dtype, seed=3))
    return y.detach(), dict(zip(inputs, grads, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
class TestNetworks:
    @pytest.mark.parametrize("training", [True, False])
    def test_every_norm_is_fused_and_float64_stays(self, name, training):
        theirs = network(name, torch.float64).train(training)
        ours, report = convert(copy.deepcopy(theirs), strict=True)
        assert len(report.fused) == NETWORKS[name][1]
        assert not report.alone
        x = volume(torch.float64)
        with Recorder() as recorder:
            ours(x)
        assert recorder.ops.count("instance_norm") == NETWORKS[name][1]
        assert not {"leaky_relu_", "leaky_relu", "relu", "dropout"} & {*recorder.ops}
        y, grads = run(ours, x)
        expected, expected_grads = run(theirs, x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(grads, expected_grads, rtol=1e-8, atol=1e-8)

    def test_float32_is_as_accurate(self, name):
        theirs = network(name)
        ours, _ = convert(copy.deepcopy(theirs))
        x = volume()
        y_exact, grads_exact = run(copy.deepcopy(theirs).double(), x.double())
        (y, grads), (y_torch, grads_torch) = run(ours, x), run(theirs, x)
        assert_accurate(y, y_torch, y_exact)
        # A bias that a norm cancels has a gradient of rounding errors: hence the common scale.
        scale = max(grad.norm() for grad in grads_exact.values())
        for key, exact in grads_exact.items():
            error, torch_error = ((g[key] - exact).norm() for g in (grads, grads_torch))
            assert error <= 2 * torch_error + 1e-6 * scale, key

    def test_state_dict_both_ways(self, name):
        theirs = network(name)
        ours, _ = convert(NETWORKS[name][0]())
        assert list(ours.state_dict()) == list(theirs.state_dict())
        ours.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(ours(volume()), theirs(volume()), rtol=1e-4, atol=1e-4)
        theirs.load_state_dict(ours.state_dict())

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies_go_on_fusing_and_revert(self, name, copied):
        theirs = network(name)
        again = copied(convert(copy.deepcopy(theirs))[0])
        with Recorder() as recorder:
            again(volume())
        assert recorder.ops.count("instance_norm") == NETWORKS[name][1]
        assert torch.equal(revert(again)(volume()), theirs(volume()))
        assert repr(again) == repr(theirs)

    def test_compiles_to_one_graph(self, name):
        torch._dynamo.reset()
        model, _ = convert(network(name))
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(volume()), model(volume()))


def test_the_names_of_a_shared_norm():
    model, report = convert(NnUNet())
    names = [(entry.name, *entry.others) for entry in report.fused]
    assert [len(of_one) for of_one in names] == [4, 4, 2]
    for of_one in names:
        assert len({model.get_submodule(name) for name in of_one}) == 1
    lines = str(report).splitlines()
    assert lines[0] == "fused: 3"
    assert re.fullmatch(
        r"  encoder.0.norm \(4 names\)  +InstanceNorm3d  one op with the LeakyReLU after it",
        lines[1],
    )


class TestDropout:
    def test_one_op_in_evaluation_only(self):
        torch.manual_seed(0)
        theirs = MonaiUNet(dropout=0.5)
        ours, report = convert(copy.deepcopy(theirs), strict=True)
        assert {entry.why.partition("; ")[2] for entry in report.fused} == {
            "in training Dropout(p=0.5) is between"
        }
        results = []
        for model in (theirs, ours):
            torch.manual_seed(1)
            results.append(model(volume()))
        torch.testing.assert_close(results[1], results[0], rtol=1e-4, atol=1e-4)
        expected = theirs.eval()(volume())
        with Recorder() as recorder:
            y = ours.eval()(volume())
        assert "relu" not in recorder.ops
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)

    def test_one_that_starts_to_drop(self):
        model, _ = convert(nn.Sequential(nn.InstanceNorm3d(1), nn.Dropout3d(0.0), nn.ReLU()))
        model[1].p = 1.0
        assert not model(volume()).any()

    @pytest.mark.parametrize("between", [nn.Identity, nn.Dropout, nn.Dropout3d])
    def test_with_a_hook_between(self, between):
        model = nn.Sequential(nn.InstanceNorm3d(1), between(), nn.ReLU()).eval()
        seen = []
        convert(model)
        model(volume())
        model[1].register_forward_hook(lambda module, given, y: seen.append(y.clone()))
        y = model(volume())
        assert seen[0].min() < 0
        torch.testing.assert_close(y, seen[0].relu())

    def test_a_subclass_of_identity(self):
        class Negated(nn.Identity):
            def forward(self, x):
                return -x

        model, report = convert(nn.Sequential(nn.InstanceNorm3d(1), Negated(), nn.ReLU()))
        assert report.alone[0].why == "Negated follows it"
        torch.testing.assert_close(model(volume()), (-model[0](volume())).relu())


class TestStrict:
    class Own(nn.InstanceNorm3d):
        def forward(self, input):
            return super().forward(input)

    @pytest.mark.parametrize(
        ("missed", "why"),
        [
            ("subclass", "a subclass of InstanceNorm3d that defines forward"),
            ("norm", "it has hooks"),
            ("activation", "the ReLU after it has hooks"),
        ],
    )
    def test_refuses_and_changes_nothing(self, missed, why):
        norm = self.Own(4) if missed == "subclass" else nn.InstanceNorm3d(4)
        model = nn.Sequential(nn.GroupNorm(1, 4), nn.ReLU(), norm, nn.ReLU())
        if missed != "subclass":
            model[2 if missed == "norm" else 3].register_forward_hook(lambda *_: None)
        before = repr(model)
        with pytest.raises(
            ValueError, match=rf"(?s)strict=True expects .* all but\n  2, \w+: {why}"
        ):
            convert(model, strict=True)
        assert repr(model) == before
        _, report = convert(model)
        assert [entry.name for entry in report.missed] == ["2"]

    def test_accepts_other_layers_and_modules_of_ours(self):
        layers = nn.BatchNorm3d(4), stylekernels.nn.InstanceNorm3d(4), nn.Upsample(scale_factor=2)
        _, report = convert(nn.Sequential(*layers), strict=True)
        assert len(report.left) == 3

    def test_without_fusing_a_hook_is_no_reason(self):
        model = nn.Sequential(nn.InstanceNorm3d(4), nn.ReLU())
        model[0].register_forward_hook(lambda *_: None)
        convert(model, fuse=False, strict=True)


class TestRevert:
    def test_modules_and_state_are_those_of_before(self):
        model = network("nnU-Net, copied")
        modules = list(model.modules())
        before = [(type(m), dict(vars(m))) for m in modules]
        state = dict(model.state_dict(keep_vars=True))
        assert revert(convert(model)[0]) is model
        assert list(model.modules()) == modules
        assert [(type(m), dict(vars(m))) for m in modules] == before
        assert all(value is state[key] for key, value in model.state_dict(keep_vars=True).items())

    def test_a_lazy_norm_that_ran_in_between(self):
        model, _ = convert(nn.Sequential(nn.LazyInstanceNorm3d(), nn.ReLU()))
        model(volume())
        revert(model)
        assert type(model[0]) is nn.InstanceNorm3d
        convert(model)
        assert type(model[0]) is stylekernels.nn.InstanceNorm3d

    def test_modules_that_the_model_was_built_with_stay(self):
        model = nn.Sequential(stylekernels.nn.InstanceNorm3d(1), nn.ReLU())
        _, report = convert(model)
        assert [entry.name for entry in report.fused] == ["0"]
        x = volume()
        with Recorder() as recorder:
            model(x)
        assert recorder.ops == ["instance_norm"]
        revert(model)
        assert (type(model), type(model[0])) == (nn.Sequential, stylekernels.nn.InstanceNorm3d)

    def test_not_a_module(self):
        with pytest.raises(TypeError, match=r"model: expected an eager torch.nn.Module, got dict"):
            revert({})


class TestByTheirOwnNames:
    """A network that is built with our norms, as docs/drop-in.md describes it."""

    name = "stylekernels.nn.InstanceNorm3d"

    def test_nnunet(self):
        norm = pydoc.locate(self.name)  # as nnU-Net finds the classes in its plans
        model, theirs = nnunet(norm_op=norm), nnunet()
        theirs.load_state_dict(model.state_dict())
        torch.testing.assert_close(model(volume()), theirs(volume()), rtol=1e-4, atol=1e-4)
        with Recorder() as recorder:
            model(volume())
        assert recorder.ops.count("instance_norm") == 5
        _, report = convert(model, strict=True)
        assert len(report.fused) == 5

    def test_monai(self):
        factories = pytest.importorskip("monai.networks.layers.factories")
        line = 'Norm.add_factory_class("stylekernels", stylekernels.nn.InstanceNorm3d)'
        assert f"`{line}`" in (ROOT / "docs" / "drop-in.md").read_text()
        exec(line, {"Norm": factories.Norm, "stylekernels": stylekernels})
        model, theirs = monai_unet(norm="stylekernels"), monai_unet()
        norms = [m for m in model.modules() if type(m) is stylekernels.nn.InstanceNorm3d]
        assert len(norms) == sum(type(m) is nn.InstanceNorm3d for m in theirs.modules()) > 0
        model.load_state_dict(theirs.state_dict())
        torch.testing.assert_close(model(volume()), theirs(volume()), rtol=1e-4, atol=1e-4)

    def test_the_page_names_the_class(self):
        assert f'"norm_op": "{self.name}"' in (ROOT / "docs" / "drop-in.md").read_text()
