"""The ops under torch.func, inference mode and autocast, one case per op and promise."""

import inspect

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from stylekernels import (
    gram_loss,
    gram_losses,
    gram_matrix,
    instance_norm,
    instance_norm_stats,
    upsample_block,
    use_impl,
)
from tests.conftest import assert_accurate, random
from tests.test_dispatch import (
    CALLS,
    SCALE,
    TARGET,
    WEIGHT,
    assert_all_close,
    every_op,
    every_op_with_a_gradient,
)

pytestmark = pytest.mark.usefixtures("implementation")


@every_op_with_a_gradient
def test_func_grad(op, device) -> None:
    x = random(2, 6, 5, 4, device=device)
    expected = torch.autograd.functional.vjp(CALLS[op], x, torch.ones_like(CALLS[op](x)))[1]
    actual = torch.func.grad(lambda x: CALLS[op](x).sum())(x)
    assert_all_close([actual], [expected])
    with use_impl("reference"):
        assert_all_close([actual], [torch.func.grad(lambda x: CALLS[op](x).sum())(x)])


@pytest.mark.skipif(
    "apply" not in vars(torch.autograd.Function), reason="since torch 2.14 apply is C++"
)
@pytest.mark.parametrize("op", ["gram_loss", "gram_losses", "gram_matrix", "instance_norm"])
def test_a_recorded_call_inspects_no_signature(op, device, monkeypatch) -> None:
    """PyTorch's ``apply`` inspects it each time, which takes longer than a small op."""
    x = random(2, 6, 5, 4, device=device).requires_grad_()
    CALLS[op](x)  # first call, which sets up more
    monkeypatch.setattr(inspect, "signature", lambda function: pytest.fail(f"{function}"))
    (grad,) = torch.autograd.grad(CALLS[op](x).sum(), x)
    assert grad.shape == x.shape


@every_op_with_a_gradient
def test_checkpoint(op, device) -> None:
    """Checkpointing returns saved tensors once, and recomputes them."""
    x = random(2, 6, 5, 4, device=device).requires_grad_()
    gradients = [
        torch.autograd.grad(y.sum(), x)[0]
        for y in (CALLS[op](x), checkpoint(CALLS[op], x, use_reentrant=False))
    ]
    assert_all_close(gradients[:1], gradients[1:])


@every_op
def test_func_jvp(op, device) -> None:
    x, tangent = random(2, 6, 5, 4, device=device), random(2, 6, 5, 4, device=device, seed=1)
    value, actual = torch.func.jvp(CALLS[op], (x,), (tangent,))
    with use_impl("reference"):
        assert_all_close((value, actual), torch.func.jvp(CALLS[op], (x,), (tangent,)))
    wide = x.double()
    step = 1e-6 * tangent.double()
    if op not in ("gram_loss", "gram_losses"):  # their targets are in float32
        slope = (CALLS[op](wide + step) - CALLS[op](wide - step)) / 2e-6
        torch.testing.assert_close(actual.double(), slope, rtol=1e-3, atol=1e-4)


@every_op
def test_func_vmap(op, device) -> None:
    x = random(3, 2, 6, 5, 4, device=device)
    assert_all_close(torch.func.vmap(CALLS[op])(x), [CALLS[op](image) for image in x])


@pytest.mark.parametrize("implementation", ["kernels", "reference"], indirect=True)
@every_op_with_a_gradient
def test_gradients_per_image(op, device, implementation) -> None:
    x = random(3, 6, 5, 4, device=device)
    grad = torch.func.grad(lambda image: CALLS[op](image[None]).sum())
    assert_all_close(torch.func.vmap(grad)(x), [grad(image) for image in x])


@pytest.mark.parametrize("implementation", ["kernels", "reference"], indirect=True)
@pytest.mark.parametrize("op", ["gram_matrix", "instance_norm"])
def test_jacobian(op, device, implementation) -> None:
    x = random(1, 6, 2, 3, device=device)
    backward, forward = torch.func.jacrev(CALLS[op])(x), torch.func.jacfwd(CALLS[op])(x)
    assert_all_close([backward], [forward])


@every_op
def test_inference_mode(op, device) -> None:
    x = random(2, 6, 9, 7, device=device)
    with torch.inference_mode():
        result = CALLS[op](x)
    assert torch.equal(result, CALLS[op](x))
    assert not result.requires_grad


def test_autocast_of_the_norms(device) -> None:
    """instance_norm keeps the dtype it gets, upsample_block casts as a convolution does."""
    x = random(2, 6, 9, 7, device=device)
    scale = SCALE.to(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        for image in (x, x.bfloat16()):
            y = instance_norm(image, scale, activation="relu")
            assert y.dtype == image.dtype
            with torch.autocast(device, enabled=False):
                assert torch.equal(y, instance_norm(image, scale, activation="relu"))
        assert all(stat.dtype == torch.float32 for stat in instance_norm_stats(x.bfloat16()))
        weight = WEIGHT.to(device).clone().requires_grad_()
        y = upsample_block(x, weight, scale[:4])
    assert y.dtype == torch.bfloat16
    expected = upsample_block(x.bfloat16(), WEIGHT.to(device, torch.bfloat16), scale[:4])
    assert torch.equal(y, expected)
    y.sum().backward()
    assert weight.grad.dtype == torch.float32


@pytest.mark.parametrize(
    "dtypes",
    [(torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float32, torch.bfloat16)],
)
def test_autocast_of_a_residual(dtypes, device) -> None:
    """A network's input is float32 and its convolutions return bfloat16: the sum is float32."""
    x, residual = (
        random(2, 6, 9, 7, device=device, dtype=dtype, seed=seed).requires_grad_()
        for seed, dtype in enumerate(dtypes)
    )
    with torch.autocast(device, dtype=torch.bfloat16):
        y = instance_norm(x, residual=residual, activation="relu")
    expected = instance_norm(x.float(), residual=residual.float(), activation="relu")
    assert y.dtype == torch.float32
    assert torch.equal(y, expected)
    y.sum().backward()
    assert [t.grad.dtype for t in (x, residual)] == list(dtypes)
    if dtypes[0] != dtypes[1]:
        with pytest.raises(TypeError, match="residual: expected x's dtype"):
            instance_norm(x, residual=residual)


def test_autocast_of_a_target(device) -> None:
    x = random(2, 6, 9, 7, device=device)
    with torch.autocast(device, dtype=torch.bfloat16):
        target = torch.bmm(x.flatten(2), x.flatten(2).mT)
        loss, losses = gram_loss(x, target), gram_losses([x] * 2, [target, target.float()])
        centered = gram_loss(x, target, center=True)
        centered_losses = gram_losses([x] * 2, [target, target.float()], center=True)
    assert target.dtype == torch.bfloat16
    assert torch.equal(loss, gram_loss(x, target.float()))
    torch.testing.assert_close(losses, loss.expand(2))
    assert torch.equal(centered, gram_loss(x, target.float(), center=True))
    torch.testing.assert_close(centered_losses, centered.expand(2))
    with torch.autocast(device, dtype=torch.bfloat16), pytest.raises(TypeError, match="target: "):
        gram_loss(x, target.long())


@pytest.mark.parametrize("implementation", ["kernels", "reference"], indirect=True)
def test_autocast_of_the_gram_matrix(device, implementation) -> None:
    x = random(2, 6, 9, 7, device=device, dtype=torch.bfloat16, shift=0.5).requires_grad_()
    with torch.autocast(device, dtype=torch.bfloat16):
        gram, loss = gram_matrix(x), gram_loss(x, TARGET.to(device))
    exact = torch.einsum("nip,njp->nij", *[x.detach().double().flatten(2)] * 2) / (6 * 9 * 7)
    assert_accurate(gram.detach(), exact.float(), exact)
    mean_square = (exact - TARGET.to(device)).square().mean()
    assert_accurate(loss.detach(), mean_square.float(), mean_square)
