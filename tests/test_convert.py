"""convert on typical networks: same parameters, keys, outputs and gradients."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import stylekernels
from stylekernels import convert, use_impl
from tests.conftest import Recorder, assert_accurate, random, relative_errors
from tests.networks import ResidualUnit, ResnetGenerator, TransformerNet

pytestmark = pytest.mark.usefixtures("implementation")


NETWORKS = {
    "TransformerNet": TransformerNet,
    "CycleGAN": ResnetGenerator,
    "pix2pixHD": lambda: ResnetGenerator(shared_activation=True),
    "MONAI": ResidualUnit,
}
# Norms that become one op with their activation, and norms without.
EXPECTED = {"TransformerNet": (4, 1), "CycleGAN": (4, 1), "pix2pixHD": (4, 1), "MONAI": (2, 1)}


def network(name: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.to(dtype)


def image(dtype: torch.dtype, *, channels_last: bool = False) -> Tensor:
    layout = "channels_last" if channels_last else "contiguous"
    return random(2, 3, 18, 22, dtype=dtype, layout=layout, shift=0.3).requires_grad_()


def run(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the output, and the gradients of the input and every parameter."""
    y = model(x)
    cotangent = random(*y.shape, dtype=y.dtype, seed=3)
    inputs = {"x": x, **dict(model.named_parameters())}
    grads = torch.autograd.grad(y, list(inputs.values()), cotangent)
    return y.detach(), dict(zip(inputs, grads, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
class TestNetworks:
    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("channels_last", [True, False])
    def test_outputs_and_gradients_in_float64(self, name, training, channels_last):
        theirs = network(name, torch.float64).train(training)
        ours, _ = convert(copy.deepcopy(theirs))
        x = image(torch.float64, channels_last=channels_last)
        expected, expected_grads = run(theirs, x)
        y, grads = run(ours, x)
        torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
        # A bias that a norm cancels has a gradient of rounding errors: hence the absolute bound.
        torch.testing.assert_close(grads, expected_grads, rtol=1e-8, atol=1e-8)
        for key, value in theirs.state_dict().items():  # the running statistics among them
            torch.testing.assert_close(ours.state_dict()[key], value, rtol=1e-10, atol=1e-10)

    def test_float32_is_as_accurate(self, name):
        theirs = network(name)
        ours, _ = convert(copy.deepcopy(theirs))
        exact = copy.deepcopy(theirs).double()
        x = image(torch.float32)
        y_exact, grads_exact = run(exact, x.detach().double().requires_grad_())
        y, grads = run(ours, x)
        assert_accurate(y, theirs(x).detach(), y_exact)
        scale = max(grad.norm() for grad in grads_exact.values())
        for key, grad in grads.items():
            assert (grad - grads_exact[key]).norm() < 1e-5 * scale, key

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision(self, name, dtype):
        theirs = network(name, dtype)
        ours, _ = convert(copy.deepcopy(theirs))
        exact = copy.deepcopy(theirs).double()
        x = image(dtype)
        y_exact = exact(x.double())
        our_error, torch_error = (relative_errors(m(x), y_exact)[0] for m in (ours, theirs))
        assert our_error < 1.25 * torch_error
        assert ours(x).dtype == dtype

    def test_keeps_keys_parameters_and_modules(self, name):
        model = network(name)
        before = dict(model.state_dict(keep_vars=True))
        modules = dict(model.named_modules())
        model.eval()
        converted, _ = convert(model)
        assert converted is model
        after = dict(model.state_dict(keep_vars=True))
        assert list(after) == list(before)
        assert all(after[key] is before[key] for key in before)
        assert list(dict(model.named_modules(remove_duplicate=False))) == list(
            dict(network(name).named_modules(remove_duplicate=False))
        )
        assert not any(module.training for module in model.modules())
        norms = [m for m in modules.values() if isinstance(m, nn.InstanceNorm2d)]
        assert all(type(m) is stylekernels.nn.InstanceNorm2d for m in norms)

    def test_the_report_accounts_for_every_module(self, name):
        model = network(name)
        doubling = [key for key, m in model.named_modules() if isinstance(m, nn.ConvTranspose2d)]
        _, report = convert(model)
        alone = [entry for entry in report.alone if entry.name not in doubling]
        assert (len(report.fused), len(alone)) == EXPECTED[name]
        assert all(entry.why.startswith("one op with the ") for entry in report.fused)
        for entry in report.fused + report.alone:
            what = "ConvTranspose2d" if entry.name in doubling else "InstanceNorm2d"
            assert entry.what == what
            assert type(model.get_submodule(entry.name)) is getattr(stylekernels.nn, what)
        assert len(report.alone) - len(alone) == len(doubling)
        assert not report.missed
        lines = str(report).splitlines()
        assert lines[0] == f"fused: {len(report.fused) or 'nothing'}"
        assert len(lines) == 3 + sum(map(len, (report.fused, report.alone, report.left)))

    def test_forced_reference_gives_the_same(self, name):
        model, _ = convert(network(name, torch.float64).eval())
        x = image(torch.float64)
        with use_impl("reference"):
            expected = model(x)
        torch.testing.assert_close(model(x), expected)

    def test_loads_a_checkpoint_of_the_original_and_gives_one(self, name):
        theirs = network(name)
        ours, _ = convert(NETWORKS[name]())
        ours.load_state_dict(theirs.state_dict())
        x = image(torch.float32)
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), atol=1e-4, rtol=1e-4)
        theirs.load_state_dict(ours.state_dict())

    @pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
    def test_copies(self, name, copied):
        model, _ = convert(network(name))
        model.eval()
        x = image(torch.float32)
        assert torch.equal(copied(model)(x), model(x))


def test_trains_with_the_optimizer_of_the_original():
    losses = []
    for converted in (False, True):
        model = network("CycleGAN", torch.float64)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        if converted:
            convert(model)
        losses.append([])
        for _ in range(4):
            loss = (model(image(torch.float64)) - 0.5).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[-1].append(loss.item())
    assert losses[0][-1] < 0.9 * losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_a_converted_network_compiles_to_one_graph():
    model, _ = convert(network("CycleGAN", torch.float64).eval())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    x = image(torch.float64)
    torch.testing.assert_close(compiled(x), model(x))


def test_exports_as_plain_pytorch_inside_reference():
    model, _ = convert(network("CycleGAN", torch.float64).eval())
    x = image(torch.float64)
    with use_impl("reference"):
        exported = torch.export.export(model, (x,))
    torch.testing.assert_close(exported.module()(x), model(x))
    ops = {str(node.target) for node in exported.graph.nodes if node.op == "call_function"}
    assert not any("stylekernels" in op for op in ops)


@pytest.mark.slow
def test_inductor_compiles_a_converted_network():
    torch._dynamo.reset()
    model, _ = convert(nn.Sequential(nn.Conv2d(3, 8, 3), nn.InstanceNorm2d(8), nn.ReLU()))
    compiled = torch.compile(model, fullgraph=True)
    x = image(torch.float32)
    torch.testing.assert_close(run(compiled, x)[0], run(model, x)[0])


ACTIVATIONS = {
    "relu": nn.ReLU(),
    "leaky_relu": nn.LeakyReLU(0.3),
    "tanh": nn.Tanh(),
    "sigmoid": nn.Sigmoid(),
    "silu": nn.SiLU(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_taken_over(activation):
    model = nn.Sequential(nn.InstanceNorm2d(3), copy.deepcopy(ACTIVATIONS[activation]))
    x = random(2, 3, 5, 7, dtype=torch.float64)
    expected = model(x)
    alone = model[0](x)
    convert(model)
    with Recorder() as recorder:
        y = model(x)
    assert recorder.ops == ["instance_norm"]
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(model[0](x), alone)
    torch.testing.assert_close(model[1](model[0](x)), expected)


@pytest.mark.parametrize("rank", [3, 5])
@pytest.mark.parametrize("lazy", [False, True])
def test_norms_of_every_rank(rank, lazy):
    """A block of a network for signals or volumes, as in nnU-Net: convolution, norm, leaky ReLU."""
    dims = rank - 2
    conv = getattr(nn, f"Conv{dims}d")
    kind = getattr(nn, f"{'Lazy' if lazy else ''}InstanceNorm{dims}d")

    def block() -> nn.Module:
        torch.manual_seed(0)
        norms = [kind(affine=True) if lazy else kind(4, affine=True) for _ in range(2)]
        return nn.Sequential(
            conv(3, 4, 3), norms[0], nn.LeakyReLU(0.2, inplace=True), conv(4, 4, 1), norms[1]
        )

    theirs = block()
    x = random(2, 3, *(7, 6, 9)[:dims], layout="channels_last")
    ours, report = convert(block())
    assert not report.left
    assert report.fused == [("1", kind.__name__, "one op with the LeakyReLU after it", ())]
    assert [entry.name for entry in report.alone] == ["4"]
    for _ in range(2):
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert type(ours[1]) is getattr(stylekernels.nn, f"InstanceNorm{dims}d")
    with Recorder() as recorder:
        ours(x)
    assert recorder.ops.count("instance_norm") == 2
    assert "leaky_relu_" not in recorder.ops
    assert list(ours.state_dict()) == list(theirs.state_dict())


@pytest.mark.parametrize("activation", ["silu", "gelu", "gelu_tanh", "relu", "leaky_relu"])
@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_group_norm_with_its_activation(num_groups, activation):
    """A block of AnimeGANv2 (one group, leaky ReLU) or of a diffusion decoder (SiLU)."""
    norm = nn.GroupNorm(num_groups, 4)
    nn.init.normal_(norm.weight), nn.init.normal_(norm.bias)
    theirs = nn.Sequential(norm, copy.deepcopy(ACTIVATIONS[activation]), nn.Conv2d(4, 3, 1))
    ours, report = convert(copy.deepcopy(theirs))
    assert [entry.name for entry in report.fused] == ["0"]
    x = random(2, 4, 7, 5, layout="channels_last")
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    with Recorder() as recorder:
        ours[:2](x)
    assert recorder.ops == ["instance_norm"]
    assert type(ours[0]) is stylekernels.nn.GroupNorm
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_one_activation_object_in_two_places_and_elsewhere():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.act = nn.LeakyReLU(0.5)
            self.body = nn.Sequential(
                nn.InstanceNorm2d(3), self.act, nn.Conv2d(3, 3, 1), nn.InstanceNorm2d(3), self.act
            )

        def forward(self, x):
            return self.act(self.body(x) - 0.3)

    model = Model()
    x = random(2, 3, 5, 7)
    expected = model(x)
    _, report = convert(model)
    assert [entry.name for entry in report.fused] == ["body.0", "body.3"]
    assert type(model.act) is nn.LeakyReLU
    torch.testing.assert_close(model(x), expected)


def left_or_alone(model: nn.Module, **kwargs) -> dict[str, str]:
    _, report = convert(model, **kwargs)
    return {entry.name: entry.why for entry in report.left + report.alone + report.fused}


class TestWhatStaysAndWhy:
    x = random(2, 3, 5, 7)

    @pytest.mark.parametrize(
        ("model", "why"),
        [
            (nn.BatchNorm2d(3), "neither an instance norm nor a group norm"),
            (nn.LayerNorm(3), "neither an instance norm nor a group norm"),
            (stylekernels.nn.GroupNorm(1, 3, activation="tanh"), "a stylekernels module already"),
            (nn.ConvTranspose2d(3, 3, 4), "no kernel of ours for this size, stride, padding"),
            (nn.ConvTranspose2d(3, 3, 4, 2), "no kernel of ours for this size, stride, padding"),
            (nn.Upsample(scale_factor=2), "resampling stays PyTorch's"),
            (stylekernels.nn.InstanceNorm2d(3, activation="relu"), "a stylekernels module already"),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_other_modules(self, model, why):
        kind = type(model)
        model = nn.Sequential(model, nn.ReLU())
        (entry,) = convert(model)[1].left
        assert (entry.name, entry.what) == ("0", kind.__name__)
        assert entry.why.startswith(why)
        assert (type(model[0]), type(model[1])) == (kind, nn.ReLU)

    @pytest.mark.parametrize("has_run", [False, True])
    def test_a_lazy_norm(self, has_run):
        theirs, model = (nn.Sequential(nn.LazyInstanceNorm2d(), nn.ReLU()) for _ in range(2))
        if has_run:
            theirs(self.x), model(self.x)
        assert left_or_alone(model)["0"] == "one op with the ReLU after it"
        for _ in range(2):  # the first call makes parameters
            torch.testing.assert_close(model(self.x), theirs(self.x))
        assert type(model[0]) is stylekernels.nn.InstanceNorm2d
        torch.testing.assert_close(model[0].state_dict(), theirs[0].state_dict())
        with Recorder() as recorder:
            model.eval()(self.x)
        assert recorder.ops == ["instance_norm"]

    def test_parametrized(self):
        model = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.ReLU())
        nn.utils.parametrize.register_parametrization(model[0], "weight", nn.Softplus())
        expected = model(self.x)
        assert "parametrized" in left_or_alone(model)["0"]
        assert torch.equal(model(self.x), expected)

    def test_forward_replaced_on_the_instance(self):
        model = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU(), nn.InstanceNorm2d(3), nn.ReLU())
        model[0].forward = lambda x: 3 * x
        model[3].forward = lambda x: x - 1
        expected = model(self.x)
        why = left_or_alone(model)
        assert why["0"] == "its forward was replaced on the instance"
        assert why["2"] == "ReLU follows it, with a forward of its own"
        torch.testing.assert_close(model(self.x), expected)

    @pytest.mark.parametrize("where", [0, 1])
    @pytest.mark.parametrize(
        "register",
        [
            "register_forward_hook",
            "register_forward_pre_hook",
            "register_full_backward_hook",
            "register_full_backward_pre_hook",
        ],
    )
    def test_hooks_go_on_seeing_what_they_saw(self, where, register):
        model = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU())
        seen: list[Tensor] = []

        def hook(module, *tensors):
            for group in tensors:
                seen.extend(group if isinstance(group, tuple) else [group])

        getattr(model[where], register)(hook)

        def record() -> list[Tensor]:
            seen.clear()
            model(self.x.clone().requires_grad_()).square().sum().backward()
            return [tensor.detach().clone() for tensor in seen]

        expected = record()
        assert expected
        assert "hooks" in left_or_alone(model)["0"]
        torch.testing.assert_close(record(), expected)
        assert type(model[0]) is stylekernels.nn.InstanceNorm2d

    def test_pruned(self):
        model = nn.Sequential(nn.InstanceNorm2d(3, affine=True), nn.ReLU())
        prune.random_unstructured(model[0], "weight", amount=1)
        expected = model(self.x)
        assert "hooks" in left_or_alone(model)["0"]
        torch.testing.assert_close(model(self.x), expected)

    def test_a_norm_in_two_places_stays_one_module(self):
        norm = nn.InstanceNorm2d(3, affine=True)
        model = nn.Sequential(norm, nn.ReLU(), nn.Conv2d(3, 3, 1), norm, nn.Tanh(), norm)
        expected = model(self.x)
        assert left_or_alone(model) == {
            "0": "one op with the ReLU or Tanh after it",
        }
        assert model[0] is model[3] is norm
        torch.testing.assert_close(model(self.x), expected)

    def test_a_sequential_with_its_own_forward(self):
        class Skip(nn.Sequential):
            def forward(self, x):
                return self[1](self[0](x) - x)

        model = Skip(nn.InstanceNorm2d(3), nn.ReLU())
        expected = model(self.x)
        assert left_or_alone(model)["0"] == "Skip calls it nowhere that can be seen"
        torch.testing.assert_close(model(self.x), expected)

    def test_fuse_false_keeps_the_sequential(self):
        model = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU())
        expected = model(self.x)
        assert left_or_alone(model, fuse=False)["0"] == "fuse=False"
        assert type(model) is nn.Sequential
        torch.testing.assert_close(model(self.x), expected)

    def test_a_second_time_changes_nothing(self):
        model, _ = convert(network("CycleGAN"))
        before = repr(model)
        _, report = convert(model)
        assert repr(model) == before
        assert not report.fused
        assert not report.alone

    def test_a_norm_by_itself(self):
        model = nn.InstanceNorm2d(3)
        converted, report = convert(model)
        assert converted is model
        assert str(report).splitlines() == [
            "fused: nothing",
            "replaced alone: 1",
            "  (model)  InstanceNorm2d  no layer is called right after it",
            "left: nothing",
        ]

    @pytest.mark.filterwarnings("ignore")
    def test_a_traced_model(self):
        traced = torch.jit.trace(nn.InstanceNorm2d(3), self.x)
        with pytest.raises(TypeError, match=r"model: expected an eager torch.nn.Module, got Top"):
            convert(traced)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("compiler", ["script", "trace"])
    def test_a_part_compiled_by_torch_jit(self, compiler):
        part = nn.Sequential(nn.InstanceNorm2d(3), nn.ReLU())
        part = torch.jit.script(part) if compiler == "script" else torch.jit.trace(part, self.x)
        model = nn.Sequential(nn.Conv2d(3, 3, 1), part)
        expected = model(self.x)
        _, report = convert(model)
        (entry,) = report.left
        assert entry[:2] == ("1.0", "InstanceNorm2d")
        assert entry.why == "compiled by torch.jit; convert the model it was made from"
        torch.testing.assert_close(model(self.x), expected)

    @pytest.mark.parametrize("model", [None, "model.pth", {"weight": torch.ones(1)}])
    def test_not_a_module(self, model):
        with pytest.raises(TypeError, match=r"model: expected an eager torch.nn.Module, got \w+"):
            convert(model)
