"""Perceptual losses against their formulas in float64, gradients included."""

import pytest
import torch

from stylekernels.losses import StyleTargets, color_loss, content_loss, total_variation


def gram(x):
    """Gram matrices of centred features."""
    n, c, h, w = x.shape
    flat = x.reshape(n, c, h * w)
    flat = flat - flat.mean(2, keepdim=True)
    return torch.einsum("nip,njp->nij", flat, flat) / (c * h * w)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_style_loss_is_the_formula(dtype):
    torch.manual_seed(0)
    style = {"a": torch.randn(1, 6, 9, 7), "b": torch.randn(1, 4, 5, 5).relu() * 30}
    picture = {"a": torch.randn(2, 6, 11, 8), "b": torch.randn(2, 4, 6, 3).relu() * 20}
    inputs = {name: x.to(dtype).requires_grad_() for name, x in picture.items()}
    targets = StyleTargets([{name: x.to(dtype) for name, x in style.items()}])
    got = targets.losses(inputs)
    exact = {name: x.double().requires_grad_() for name, x in picture.items()}
    tolerance = {"rtol": 1e-5 if dtype == torch.float32 else 1e-12, "atol": 1e-12}
    for name, x in exact.items():
        wanted = gram(style[name].double())
        expected = (gram(x) - wanted).square().mean() / wanted.square().mean()
        torch.testing.assert_close(got[name].double(), expected, **tolerance)
        (grad,) = torch.autograd.grad(got[name], inputs[name], retain_graph=True)
        (exact_grad,) = torch.autograd.grad(expected, x)
        tolerance["atol"] = 1e-5 * exact_grad.abs().max().item()
        torch.testing.assert_close(grad.double(), exact_grad, **tolerance)


def test_style_loss_of_the_style_is_zero_and_of_nothing_is_one():
    torch.manual_seed(1)
    style = torch.randn(1, 8, 6, 6) * 100
    targets = StyleTargets([{"a": style}])
    assert targets.losses({"a": style})["a"] < 1e-10
    torch.testing.assert_close(
        targets.losses({"a": torch.zeros(1, 8, 9, 9)})["a"], torch.tensor(1.0)
    )
    # Neither position nor mean makes a difference; contrast does.
    assert targets.losses({"a": style + 50})["a"] < 1e-6
    moved = style.flip(2).roll(3, 3)
    assert targets.losses({"a": moved})["a"] < 1e-10
    assert targets.losses({"a": style * 1.1})["a"] > 0.04


def test_several_paintings_share_their_mean_matrix():
    torch.manual_seed(8)
    paintings = [{"a": torch.randn(1, 4, 5, width)} for width in (6, 9)]
    picture = torch.randn(1, 4, 7, 7)
    wanted = sum(gram(found["a"].double()) for found in paintings) / 2
    expected = (gram(picture.double()) - wanted).square().mean() / wanted.square().mean()
    got = StyleTargets(paintings).losses({"a": picture})["a"]
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)


def test_style_loss_wants_every_layer():
    targets = StyleTargets([{"a": torch.rand(1, 3, 4, 4), "b": torch.rand(1, 3, 4, 4)}])
    with pytest.raises(ValueError, match=r"expected the layers \['b'\] as well"):
        targets.losses({"a": torch.rand(1, 3, 4, 4)})


def test_content_loss_is_relative():
    torch.manual_seed(2)
    target = torch.rand(2, 5, 6, 7) * torch.tensor([40.0, 4.0])[:, None, None, None]
    features = (target + torch.randn_like(target)).requires_grad_()
    got = content_loss(features, target)
    exact = features.detach().double().requires_grad_()
    errors = (exact - target.double()).pow(2).sum((1, 2, 3)) / target.double().pow(2).sum((1, 2, 3))
    expected = errors.mean()
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(got, features)
    (exact_grad,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-4, atol=1e-9)
    assert content_loss(target, target) == 0
    torch.testing.assert_close(content_loss(torch.zeros_like(target), target), torch.tensor(1.0))
    torch.testing.assert_close(content_loss(features * 100, target * 100), got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_of_the_content_loss_has_the_layout_of_the_features(dtype):
    """In another layout every addition to it is several times as slow."""
    x, target = torch.randn(2, 2, 8, 9, 7).to(dtype)
    x, target = (t.to(memory_format=torch.channels_last) for t in (x, target))
    x.requires_grad_()
    (grad,) = torch.autograd.grad(content_loss(x, target), x)
    assert grad.is_contiguous(memory_format=torch.channels_last)


def test_content_loss_of_half_precision_does_not_overflow():
    target = torch.full((1, 2, 4, 4), 400.0, dtype=torch.float16)
    got = content_loss(target * 0.5, target)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, torch.tensor(0.25))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 1e-30])
def test_content_loss_to_nothing_is_not_relative(dtype, value):
    """Also where the target's square underflows."""
    target = torch.full((1, 2, 3, 4), value, dtype=dtype)
    features = torch.full_like(target, 3.0).requires_grad_()
    if dtype == torch.float64 and value:
        assert content_loss(features, target).item() == pytest.approx(9e60)
        return
    loss = content_loss(features, target)
    assert loss == 9
    torch.testing.assert_close(
        torch.autograd.grad(loss, features)[0], torch.full_like(target, 2 * 3 / 24)
    )
    target.requires_grad_()
    zero = content_loss(target, target.detach())
    assert zero == 0
    assert torch.equal(torch.autograd.grad(zero, target)[0], torch.zeros_like(target))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_a_style_layer_of_zeros_is_not_relative(dtype):
    """The other layers are; a picture of zeros has reached the layer."""
    torch.manual_seed(6)
    style = {"dead": torch.zeros(1, 3, 4, 4), "live": torch.randn(1, 3, 4, 4)}
    style = {name: x.to(dtype) for name, x in style.items()}
    targets = StyleTargets([style])
    assert targets.weights[0] == 1
    # Two pixels of each four are 1, the others -1: every entry of the Gram matrix is 1/3.
    signs = torch.tensor([1.0, -1.0]).repeat(1, 3, 4, 2).to(dtype)
    picture = {name: signs.clone().requires_grad_() for name in style}
    losses = targets.losses(picture)
    assert losses["dead"].item() == pytest.approx(1 / 9)
    exact = StyleTargets([{"live": style["live"].double()}])
    expected = exact.losses({"live": picture["live"].detach().double()})["live"].item()
    assert losses["live"].item() == pytest.approx(expected, rel=1e-3)
    grads = torch.autograd.grad(losses["dead"] + losses["live"], list(picture.values()))
    assert all(grad.isfinite().all() for grad in grads)
    (grad,) = torch.autograd.grad(targets.losses(picture)["dead"], picture["dead"])
    torch.testing.assert_close(grad.double(), signs.double() / 108, rtol=1e-3, atol=0)
    assert targets.losses(style)["dead"] == 0


@pytest.mark.parametrize("value", [0.0, 0.7, 65504.0])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (16, 16), (17, 1)])
def test_losses_of_constant_images_are_zero_and_so_are_their_gradients(size, value):
    x = torch.full((1, 3, *size), value, dtype=torch.float16).requires_grad_()
    losses = [content_loss(x, x.detach()), color_loss(x, x.detach())]
    losses += [total_variation(x)] if min(size) > 1 else []
    for loss in losses:
        assert (loss.item(), loss.dtype) == (0, torch.float32)
        assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))
    other = torch.zeros_like(x).requires_grad_()
    expected = x.detach().double().square().mean().item()
    assert color_loss(other, x.detach()).item() == pytest.approx(expected)
    assert content_loss(other, x.detach()).item() == pytest.approx(1.0 if value else 0.0)


def test_total_variation_of_half_precision_does_not_overflow():
    board = torch.tensor([[0.0, 400.0], [400.0, 0.0]], dtype=torch.float16)[None, None]
    assert total_variation(board) == 320000
    assert total_variation(board).dtype == torch.float32


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (1, 0, 4, 4)])
def test_empty_images_are_refused(shape):
    x = torch.rand(shape)
    message = rf"expected at least one value, got shape \({shape[0]}, {shape[1]}, 4, 4\)"
    for call in (lambda: content_loss(x, x), lambda: color_loss(x, x), lambda: total_variation(x)):
        with pytest.raises(ValueError, match=message):
            call()


def test_content_loss_refuses_other_shapes():
    with pytest.raises(ValueError, match=r"expected the features' shape \(1, 2, 4, 4\), got \(1,"):
        content_loss(torch.rand(1, 2, 4, 4), torch.rand(1, 2, 4, 5))


@pytest.mark.parametrize("size", [(32, 48), (35, 41), (9, 20)])
def test_color_loss_is_the_formula(size):
    """Cells at the edge are smaller, and count as much."""
    torch.manual_seed(4)
    x, target = torch.rand(2, 3, *size).requires_grad_(), torch.rand(2, 3, *size)
    exact = x.detach().double().requires_grad_()
    rows, columns = (range(0, length, 16) for length in size)
    cells = [
        (exact[:, :, i : i + 16, j : j + 16].mean((2, 3))
         - target[:, :, i : i + 16, j : j + 16].double().mean((2, 3)))
        for i in rows for j in columns
    ]  # fmt: skip
    expected = torch.stack(cells).square().mean()
    got = color_loss(x, target)
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)
    (grad,) = torch.autograd.grad(got, x)
    (exact_grad,) = torch.autograd.grad(expected, exact)
    torch.testing.assert_close(grad.double(), exact_grad, rtol=1e-4, atol=1e-9)


def test_color_loss_is_zero_at_its_target_and_grows():
    torch.manual_seed(5)
    target = torch.rand(1, 3, 32, 32)
    losses = [color_loss(target + shift, target).item() for shift in (0.0, 0.1, 0.2, 0.4)]
    assert losses == pytest.approx([0.0, 0.01, 0.04, 0.16], rel=1e-4, abs=1e-12)
    # What happens inside a cell is the strokes' own affair.
    mirrored = torch.cat([target[..., :16].flip(3), target[..., 16:].flip(3)], 3)
    assert color_loss(mirrored, target) < 1e-10
    assert color_loss(target.flip(3), target) > 1e-6
    assert color_loss(target.half(), target.half()).dtype == torch.float32


def test_color_loss_refuses_other_shapes():
    with pytest.raises(
        ValueError, match=r"expected the shape of x \(1, 3, 16, 16\), got \(1, 3, 16,"
    ):
        color_loss(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 32))
    with pytest.raises(ValueError, match=r"x: expected images \(N, C, H, W\), got \(3, 16, 16\)"):
        color_loss(torch.rand(3, 16, 16), torch.rand(3, 16, 16))


def test_total_variation():
    torch.manual_seed(3)
    x = torch.rand(2, 3, 5, 6)
    down = sum(((x[:, :, i + 1] - x[:, :, i]).double() ** 2).sum() for i in range(4))
    across = sum(((x[..., j + 1] - x[..., j]).double() ** 2).sum() for j in range(5))
    expected = down / (2 * 3 * 4 * 6) + across / (2 * 3 * 5 * 5)
    torch.testing.assert_close(total_variation(x).double(), expected, rtol=1e-6, atol=0)
    assert total_variation(torch.full((1, 3, 4, 4), 0.7)) == 0
    board = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).repeat(4, 4)[None, None]
    assert total_variation(board) == 2


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 3, 1, 8), (1, 3, 8, 1)])
def test_total_variation_refuses_what_has_no_neighbours(shape):
    with pytest.raises(ValueError, match=r"x: expected images .* of at least 2 pixels a side, got"):
        total_variation(torch.rand(shape))
