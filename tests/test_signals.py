"""Signals that end a process while it writes: no partial files, and existing files are kept."""

import os
import signal

import pytest

from stylekernels.cli.main import main
from stylekernels.files import write_whole
from stylekernels.signals import ENDING, handled
from tests.pictures import complaints, save, written


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("verb", ["stylize", "demo"])
def test_a_picture_is_written_whole_or_not_at_all(folder, style, monkeypatch, capsys, verb, number):
    if verb == "demo":
        pytest.importorskip("skimage")
    save("a.png")
    save("b.png")
    (folder / "out").mkdir()
    (folder / "out" / "b.png").write_text("an older one")
    fsync, count = os.fsync, [0]

    def signalled(file):
        count[0] += 1
        if count[0] == (2 if verb == "stylize" else 1):
            assert any(name.endswith(".part") for name in written(folder))
            os.kill(os.getpid(), number)
        fsync(file)

    before = [signal.getsignal(each) for each in ENDING]
    monkeypatch.setattr(os, "fsync", signalled)
    if verb == "stylize":
        assert main(["stylize", "a.png", "b.png", "-s", style, "-o", "out"]) == 130
        assert written(folder) == {"a.png", "b.png", "out/a.png", "out/b.png"}
        assert (folder / "out" / "b.png").read_text() == "an older one"
    else:
        assert main(["demo", "-s", style, "-o", "out/b.png"]) == 130
        assert written(folder) == {"a.png", "b.png", "out/b.png"}
        assert (folder / "out" / "b.png").read_text() == "an older one"
    assert complaints(capsys) == ["interrupted"]
    assert [signal.getsignal(each) for each in ENDING] == before


@pytest.mark.parametrize("number", ENDING)
def test_a_trained_style_is_written_whole_or_not_at_all(folder, generator, number):
    path = folder / "style.safetensors"
    path.write_text("an older one")

    def signalled(part):
        part.write_text("half of")
        os.kill(os.getpid(), number)
        part.write_text("all of it")

    with pytest.raises(KeyboardInterrupt), handled(signal.default_int_handler):
        write_whole(path, signalled)
    assert written(folder) == {"style.safetensors"}
    assert path.read_text() == "an older one"
