"""convert on models that do not call the layers of their Sequentials in order: the output must not
change, whatever a forward does."""

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from stylekernels import convert
from tests.conftest import Recorder, random

pytestmark = pytest.mark.usefixtures("implementation")


class Layers(nn.Module):
    """Two norms with activations that show when they are applied twice, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.seq = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.InstanceNorm2d(4, affine=True),
            nn.LeakyReLU(0.5),
            nn.Conv2d(4, 4, 1),
            nn.InstanceNorm2d(4, track_running_stats=True),
            nn.Tanh(),
        )
        nn.init.uniform_(self.seq[1].weight, 0.5, 1.5)
        nn.init.uniform_(self.seq[1].bias, -0.5, 0.5)
        self.keep()

    def keep(self) -> None:
        """Store the layers in a subclass's attribute that PyTorch does not see."""

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class PlainList(Layers):
    def keep(self):
        self.layers = list(self.seq)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class ListAndSequential(PlainList):
    def forward(self, x):
        return super().forward(x) + self.seq(2 * x)


class Dictionary(Layers):
    def keep(self):
        self.by_name = {"norm": [self.seq[1]], "act": (self.seq[2],)}

    def forward(self, x):
        x = self.by_name["act"][0](self.by_name["norm"][0](self.seq[0](x)))
        return self.seq[5](self.seq[4](self.seq[3](x)))


class Closure(Layers):
    def keep(self):
        norm, act = self.seq[1], self.seq[2]
        self.function = lambda x: act(norm(x) - 0.2)

    def forward(self, x):
        return self.function(self.seq[0](x))


class Indexed(Layers):
    def forward(self, x):
        x = self.seq[1](self.seq[0](x))
        return x + self.seq[2](x) * self.seq[5](x)


class Walked(Layers):
    def forward(self, x):
        found = []
        for layer in self.seq.children():
            x = layer(x)
            if isinstance(layer, (nn.InstanceNorm2d, nn.LeakyReLU, nn.Tanh)):
                found.append(x)
        return torch.stack(found)


class Sliced(Layers):
    def forward(self, x):
        x = self.seq[:2](x)
        return x + self.seq[2:5](x) + self.seq[3:](x)


class SlicedBefore(Layers):
    def keep(self):
        self.parts = [self.seq[:2], self.seq[2:5], self.seq[1:3]]

    def forward(self, x):
        x = self.parts[0](x)
        return x + self.parts[1](x) + self.parts[2](x)


class RegisteredSlices(Layers):
    def keep(self):
        self.head, self.tail = self.seq[:2], self.seq[2:]

    def forward(self, x):
        return self.tail(self.head(x) * 0.5) + self.seq(x)


class SharedActivation(Layers):
    def keep(self):
        self.act = self.seq[5] = self.seq[2]

    def forward(self, x):
        return self.act(self.seq(x) - 0.3)


class SharedNorm(Layers):
    def keep(self):
        self.norm = self.seq[1]
        self.other = nn.Sequential(self.norm, nn.Sigmoid(), self.norm)

    def forward(self, x):
        return self.norm(self.other(self.seq[:4](x)) + self.seq(x))


class SharedSequential(Layers):
    def keep(self):
        self.outer = nn.Sequential(self.seq[1:3], nn.Conv2d(4, 3, 1), self.seq[0], self.seq[1])

    def forward(self, x):
        return self.outer(self.seq(x)) + self.outer[0](self.seq(x))


class Submodule(Layers):
    def forward(self, x):
        return self.get_submodule("seq.2")(self.get_submodule("seq.1")(self.seq[0](x))) * 2


class Pruned(Layers):
    def keep(self):
        prune.ln_structured(self.seq[0], "weight", 0.5, n=2, dim=0)
        prune.random_unstructured(self.seq[1], "weight", 0.5)


class Parametrized(Layers):
    def keep(self):
        parametrizations.weight_norm(self.seq[0])
        nn.utils.parametrize.register_parametrization(self.seq[1], "weight", nn.Softplus())


class InPlace(Layers):
    def keep(self):
        self.seq[2] = nn.LeakyReLU(0.5, inplace=True)

    def forward(self, x):
        y = self.seq[1](self.seq[0](x))
        self.seq[2](y)
        return y + self.seq(x)


class OwnForward(nn.Sequential):
    def forward(self, x):
        return super().forward(x) + self[0](x)


class OwnOrder(nn.Sequential):
    def __iter__(self):
        return reversed(self._modules.values())


class Subclass(nn.Sequential):
    pass


def of_kind(kind):
    class Model(Layers):
        def keep(self):
            self.seq = nn.Sequential(self.seq[0], kind(*self.seq[1:4], *self.seq[4:]))

        def forward(self, x):
            return self.seq(x)

    Model.__name__ = kind.__name__
    return Model


MODELS = (
    Layers,
    PlainList,
    ListAndSequential,
    Dictionary,
    Closure,
    Indexed,
    Walked,
    Sliced,
    SlicedBefore,
    RegisteredSlices,
    SharedActivation,
    SharedNorm,
    SharedSequential,
    Submodule,
    Pruned,
    Parametrized,
    InPlace,
    *map(of_kind, (OwnForward, OwnOrder, Subclass)),
)


def outputs(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Output, gradients and running statistics of a step of training, and then in evaluation."""
    x = x.clone().requires_grad_()
    y = model.train()(x)
    cotangent = random(*y.shape, dtype=y.dtype, seed=3)
    inputs = [x, *model.parameters()]
    grads = torch.autograd.grad(y, inputs, cotangent, allow_unused=True)
    buffers = [buffer.clone() for buffer in model.buffers() if buffer.is_floating_point()]
    return [y, *(grad for grad in grads if grad is not None), *buffers, model.eval()(x)]


@pytest.mark.parametrize("kind", MODELS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_outputs_stay(kind, dtype) -> None:
    x = random(2, 3, 7, 9, dtype=dtype)
    model = kind().to(dtype)
    converted, report = convert(kind().to(dtype))
    assert report.fused or report.alone
    tolerance = 1e-9 if dtype == torch.float64 else 2e-4
    for actual, expected in zip(outputs(converted, x), outputs(model, x), strict=True):
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_as_close_to_float64(dtype) -> None:
    x = random(2, 3, 7, 9, dtype=dtype)
    exact = PlainList().double()(x.double())
    torchs = PlainList().to(dtype)(x) - exact
    ours = convert(PlainList().to(dtype))[0](x) - exact
    assert ours.norm() <= 1.25 * torchs.norm()


def test_hooks_registered_afterwards_see_what_torch_shows_them() -> None:
    """Hooks on a norm or an activation that are part of one op, too."""
    x = random(2, 3, 7, 9)
    for index in range(6):
        seen: list[list[Tensor]] = []
        for model in (Layers(), convert(Layers())[0]):
            seen.append([])
            model.seq[index].register_forward_hook(
                lambda module, given, y, seen=seen[-1]: seen.extend((given[0].clone(), y.clone()))
            )
            model(x)
        assert len(seen[0]) == 2
        torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-4)


def test_layers_changed_afterwards() -> None:
    x = random(2, 3, 7, 9)
    model, _ = convert(Layers())
    plain = Layers()
    for changed in (model, plain):
        changed.seq[2] = nn.ELU()
        changed.seq.append(nn.InstanceNorm2d(4))
        changed.seq[1].weight.data.mul_(2)
    torch.testing.assert_close(model(x), plain(x), rtol=1e-4, atol=1e-4)
    _, report = convert(model)
    assert [entry.name for entry in report.fused + report.alone] == ["seq.6"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("kind", [nn.Sequential, Subclass])
def test_copies_go_on_fusing(kind, copied) -> None:
    model = kind(nn.InstanceNorm2d(3), nn.Tanh())
    converted, _ = convert(copy.deepcopy(model))
    assert isinstance(converted, kind)
    again = copied(converted)
    assert type(again) is type(converted)
    x = random(2, 3, 7, 9)
    with Recorder() as recorder:
        y = again(x)
    assert recorder.ops == ["instance_norm"]
    torch.testing.assert_close(y, model(x))


def test_slices_go_on_fusing() -> None:
    model, _ = convert(Layers())
    x = random(2, 4, 7, 9)
    with Recorder() as recorder:
        model.seq[1:3](x)
    assert recorder.ops == ["instance_norm"]
