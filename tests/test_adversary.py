"""The discriminator's part in style training: it learns, it waits, and its gradient has a norm."""

import pytest
import torch

from stylekernels.training.adversary import Adversary
from stylekernels.training.art import Art
from stylekernels.training.processes import Processes


def stripes(side=160):
    """Art of fine diagonal stripes."""
    rows = torch.arange(side)
    return ((rows[:, None] + rows) // 3 % 2).float().expand(3, side, side)


def adversary(loss="hinge"):
    return Adversary(Art([stripes()]), loss, 4e-3, torch.float32, 0, Processes())


@pytest.mark.parametrize("loss", ["hinge", "lsgan", "log"])
def test_it_learns_to_tell_art_from_pictures(loss):
    judge = adversary(loss)
    flat = torch.rand(2, 3, 1, 1).expand(2, 3, 128, 128) + 0.02 * torch.randn(2, 3, 128, 128)
    torch.manual_seed(1)
    seen = [judge.learn(flat, step, 1.0)["accuracy"].item() for step in range(30)]
    assert sum(seen[-5:]) / 5 > 0.85
    assert judge.mean_accuracy > 0.6


def test_its_gradient_leads_to_art_and_has_the_norm():
    torch.manual_seed(2)
    judge = adversary()
    picture = torch.rand(1, 3, 128, 128)
    for step in range(30):
        judge.learn(picture, step, 1.0)
    norm = torch.tensor(0.5)
    _, before = judge.gradient(picture, norm, 30)
    for step in range(30, 60):
        gradient, loss = judge.gradient(picture, norm, step)
        picture = picture - 4 * gradient
    assert loss < before - 0.1
    norms = [judge.gradient(picture, norm, step)[0].norm() for step in range(60, 80)]
    assert sum(norms) / len(norms) == pytest.approx(0.5, rel=0.35)
    assert all(p.requires_grad for p in judge.network.parameters())


def test_it_waits_while_it_wins_too_easily():
    judge = adversary()
    judge.mean_accuracy = 0.99
    picture = torch.zeros(1, 3, 128, 128)
    before = [p.clone() for p in judge.network.parameters()]
    losses = judge.learn(picture, 1, 1.0)
    assert losses["discriminator"].isfinite()
    assert all(torch.equal(a, b) for a, b in zip(before, judge.network.parameters(), strict=True))
    judge.mean_accuracy = 0.99
    judge.learn(picture, 8, 1.0)  # once in a while it learns all the same
    assert not all(
        torch.equal(a, b) for a, b in zip(before, judge.network.parameters(), strict=True)
    )


def test_pictures_are_detached_in_its_own_step():
    judge = adversary()
    picture = torch.rand(1, 3, 128, 128, requires_grad=True)
    judge.learn(picture, 0, 1.0)
    assert picture.grad is None


def test_its_state_goes_on(tmp_path):
    one, other = adversary(), adversary()
    picture = torch.rand(1, 3, 128, 128)
    for step in range(3):
        torch.manual_seed(step)
        one.learn(picture, step, 1.0)
        one.gradient(picture, torch.tensor(1.0), step)
    torch.save(one.state_dict(), tmp_path / "state")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    for judge in (one, other):
        torch.manual_seed(7)
        judge.learn(picture, 3, 1.0)
    for (name, a), b in zip(
        one.network.state_dict().items(), other.network.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name
    assert one.gradient_norm == other.gradient_norm
