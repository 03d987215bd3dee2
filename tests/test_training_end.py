"""Ends of a run before its last step: signals, and losses that are no longer finite."""

import dataclasses
import io
import math
import os
import signal
import sys

import pytest
import torch

from stylekernels.cli.main import main
from stylekernels.signals import ENDING
from stylekernels.training import DivergedError, train
from stylekernels.training.checkpoint import load_checkpoint
from stylekernels.training.data import _leave_signals_to_the_trainer
from stylekernels.training.style import StyleTask
from tests.pictures import complaints
from tests.training_runs import assert_same_weights, stop_after, weights_of


@pytest.fixture
def config(training_config):
    return training_config


def test_interrupt_saves_what_there_is(config, monkeypatch):
    before = signal.getsignal(signal.SIGINT)
    stop_after(monkeypatch, 3)
    result = train(config)
    assert result.interrupted
    assert result.steps == 3
    assert all(math.isfinite(v) for v in {**result.losses, **result.held_out}.values())
    assert signal.getsignal(signal.SIGINT) is before
    name = "to_rgb.weight"
    assert not torch.equal(weights_of(config.output)[name], weights_of(config.init)[name])


def test_an_interrupt_in_the_warm_up_keeps_a_checkpoint_and_writes_no_style(config, tmp_path):
    """Resumed, the run ends where the whole one does."""
    before = signal.getsignal(signal.SIGINT)
    new = dataclasses.replace(config, init="bilinear", lite=True, warmup_steps=4, ema=0.9)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt, match=r"no style yet, add --resume .*run"):
            train(new)
    assert not config.output.exists()
    assert signal.getsignal(signal.SIGINT) is before
    assert train(dataclasses.replace(new, resume=True)).steps == 8
    train(dataclasses.replace(new, output=tmp_path / "whole"))
    assert_same_weights(new.output, tmp_path / "whole")


def test_a_loss_that_is_not_finite_is_an_error(config):
    with pytest.raises(DivergedError, match="lower learning_rate"):
        train(dataclasses.replace(config, learning_rate=1e30))
    assert not config.output.exists()


def command(config, *more):
    """The command line of a configuration."""
    options = {
        name: getattr(config, name)
        for name in ("art", "photos", "init", "output", "backbones", "features", "steps",
                     "crop", "stroke", "held_out", "threads", "batch_size", "log_every",
                     "run", "learning_rate", "art_colors", "color_weight", "tv_weight",
                     "gan_weight", "flat", "ema")
        if getattr(config, name) is not None
    }  # fmt: skip
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return ["train", *words, *more]


@pytest.mark.parametrize("number", ENDING)
def test_every_signal_that_ends_a_process_saves_what_there_is(config, tmp_path, capsys, number):
    """The style, and a checkpoint from which the run ends where it would have ended."""
    train(dataclasses.replace(config, output=tmp_path / "whole"))
    before = [signal.getsignal(each) for each in ENDING]
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3, number)
        assert main(command(config)) == 130
    assert [signal.getsignal(each) for each in ENDING] == before
    captured = capsys.readouterr()
    assert "stylekernels: interrupted after 3 of 8 steps; the style so far is in" in captured.err
    kept = load_checkpoint(config.run_path / "checkpoint.pt")
    assert kept["step"] == 3
    third = weights_of(config.output)
    for name, tensor in kept["task"]["average"].items():
        assert torch.equal(third[name], tensor), name
    assert main(command(config, "--resume")) == 0
    assert_same_weights(config.output, tmp_path / "whole")


def test_a_signal_that_is_ignored_stays_so(config, monkeypatch):
    """A run under nohup, which lets training go on when its terminal is closed."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stop_after(monkeypatch, 3, signal.SIGHUP)
        assert main(command(config)) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", ENDING)
def test_a_second_signal_ends_a_run_at_once(config, monkeypatch, capsys, number):
    """The run writes nothing, not even a part."""
    take, steps = StyleTask.step, []

    def signalled(*arguments):
        steps.append(os.kill(os.getpid(), number))
        os.kill(os.getpid(), number)
        return take(*arguments)

    monkeypatch.setattr(StyleTask, "step", signalled)
    assert main(command(config)) == 130
    assert complaints(capsys) == ["interrupted"]
    assert len(steps) == 1
    assert not config.output.exists()
    assert not (config.run_path / "checkpoint.pt").exists()
    assert not [*config.run_path.glob("**/.*")]


class ClosedTerminal(io.StringIO):
    """The state of stdout and stderr after the terminal's window was closed."""

    def write(self, text):
        raise OSError(5, "Input/output error")

    def fileno(self):
        return self.file


def test_a_run_whose_terminal_was_closed_is_saved(config, monkeypatch, tmp_path):
    take = StyleTask.step
    ClosedTerminal.file = os.open(tmp_path / "stdout", os.O_CREAT | os.O_WRONLY)

    def closed(*arguments):
        monkeypatch.setattr(sys, "stderr", ClosedTerminal())
        monkeypatch.setattr(sys, "stdout", ClosedTerminal())
        os.kill(os.getpid(), signal.SIGHUP)
        return take(*arguments)

    monkeypatch.setattr(StyleTask, "step", closed)
    assert main(command(config, "--log-every", "1")) == 141  # nobody reads the output
    os.close(ClosedTerminal.file)
    name = "to_rgb.weight"
    assert not torch.equal(weights_of(config.output)[name], weights_of(config.init)[name])


def test_processes_that_decode_leave_signals_to_the_trainer(config):
    """The whole group of processes gets them; photos still come for the step under way."""
    number, before = signal.SIGTERM, {each: signal.getsignal(each) for each in ENDING}
    try:
        _leave_signals_to_the_trainer(0)
        for each in ENDING:
            os.kill(os.getpid(), each)  # would end this process
        assert signal.getsignal(number) is signal.SIG_DFL  # for PyTorch to end a worker that hangs
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3, number)
        result = train(dataclasses.replace(config, workers=2))
    assert (result.interrupted, result.steps) == (True, 3)


def explode(patch, steps):
    """Make the weights infinite as step number ``steps`` ends."""
    take, count = StyleTask.step, [0]

    def step(self, *arguments):
        losses = take(self, *arguments)
        count[0] += 1
        if count[0] == steps:
            with torch.no_grad():
                for network in (self.generator, self.average.network):
                    next(network.parameters()).fill_(math.inf)
        return losses

    patch.setattr(StyleTask, "step", step)


@pytest.mark.parametrize("last", [2, 3, 4, 7, 8])
def test_the_last_finite_state_is_kept(config, tmp_path, monkeypatch, capsys, last):
    """The style and the checkpoint of the last step known to be good; that of no other."""
    good = (last - 1) // 2 * 2  # it is looked at every second step
    kept = {}
    if good:
        whole = dataclasses.replace(config, output=tmp_path / "whole")
        with pytest.MonkeyPatch.context() as patch:
            stop_after(patch, good)
            train(whole)
        kept = weights_of(whole.output)
    explode(monkeypatch, last)
    diverging = command(dataclasses.replace(config, log_every=2), "--checkpoint-every", "2")
    assert main(diverging) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    start = "stylekernels: --learning-rate: at step "
    if last % 2:  # the next step's losses show it, and all of them do
        assert line.startswith(f"{start}{last} total became nan, content became nan, style became")
    else:
        assert line.startswith(f"{start}{last} the loss became nan; lower --learning-rate")
    state = config.run_path / "checkpoint.pt"
    assert config.output.exists() == state.exists() == bool(good)
    if good:
        assert line.endswith(f"; {config.output} has the style of step {good}")
        for name, tensor in weights_of(config.output).items():
            assert torch.equal(tensor, kept[name]), name
            assert torch.equal(load_checkpoint(state)["task"]["average"][name], kept[name]), name
        assert load_checkpoint(state)["step"] == good


def test_the_loss_that_is_not_finite_is_named(config, monkeypatch):
    """Where one of them is at fault, with its step, however rarely the log is written."""
    take = StyleTask.step

    def step(self, number, *arguments):
        losses = take(self, number, *arguments)
        return losses | {"color": losses["color"] * math.inf} if number == 5 else losses

    monkeypatch.setattr(StyleTask, "step", step)
    message = r"^learning_rate: at step 5 color became inf; lower learning_rate$"
    with pytest.raises(DivergedError, match=message):
        train(dataclasses.replace(config, log_every=100))


@pytest.mark.parametrize("rate", ["1e30", "1e38"])
@pytest.mark.parametrize("steps", ["1", "2", "8"])
def test_a_rate_that_is_far_too_high_is_a_line(config, capsys, rate, steps):
    config.output.write_text("an older style")
    assert main(command(config, "--overwrite", "--learning-rate", rate, "--steps", steps)) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("stylekernels: --learning-rate: at step ")
    assert line.endswith("; lower --learning-rate")
    assert config.output.read_text() == "an older style"


def test_a_resumed_run_that_diverges_at_once_keeps_its_weights(config, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 3)
        train(config)
    third = weights_of(config.output)
    config.output.unlink()
    explode(monkeypatch, 1)
    with pytest.raises(DivergedError, match=r"and remove .*run to start again; .*step 3$"):
        train(dataclasses.replace(config, resume=True))
    for name, tensor in weights_of(config.output).items():
        assert torch.equal(tensor, third[name]), name
