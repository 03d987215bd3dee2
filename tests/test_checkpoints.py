"""Files of generators: round trips, fast-neural-style checkpoints, and refused files."""

import io
import json
import os
import pickle
import stat

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from stylekernels.files import write_whole
from stylekernels.models import GeneratorConfig, StyleGenerator, bundled_styles

SMALL = GeneratorConfig(channels=(4, 6, 8), residual_blocks=2)


# The network of pytorch/examples, as its checkpoints know it, written here from its description.


class ConvLayer(nn.Module):
    def __init__(self, cin, cout, kernel, stride):
        super().__init__()
        self.reflection_pad = nn.ReflectionPad2d(kernel // 2)
        self.conv2d = nn.Conv2d(cin, cout, kernel, stride)

    def forward(self, x):
        return self.conv2d(self.reflection_pad(x))


class UpConvLayer(ConvLayer):
    def forward(self, x):
        return super().forward(nn.functional.interpolate(x, scale_factor=2, mode="nearest"))


class Residual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = ConvLayer(channels, channels, 3, 1)
        self.in1 = nn.InstanceNorm2d(channels, affine=True)
        self.conv2 = ConvLayer(channels, channels, 3, 1)
        self.in2 = nn.InstanceNorm2d(channels, affine=True)

    def forward(self, x):
        return self.in2(self.conv2(torch.relu(self.in1(self.conv1(x))))) + x


class TransformerNet(nn.Module):
    def __init__(self, a, b, c):
        super().__init__()
        self.conv1, self.in1 = ConvLayer(3, a, 9, 1), nn.InstanceNorm2d(a, affine=True)
        self.conv2, self.in2 = ConvLayer(a, b, 3, 2), nn.InstanceNorm2d(b, affine=True)
        self.conv3, self.in3 = ConvLayer(b, c, 3, 2), nn.InstanceNorm2d(c, affine=True)
        self.res1, self.res2, self.res3 = Residual(c), Residual(c), Residual(c)
        self.res4, self.res5 = Residual(c), Residual(c)
        self.deconv1, self.in4 = UpConvLayer(c, b, 3, 1), nn.InstanceNorm2d(b, affine=True)
        self.deconv2, self.in5 = UpConvLayer(b, a, 3, 1), nn.InstanceNorm2d(a, affine=True)
        self.deconv3 = ConvLayer(a, 3, 9, 1)

    def forward(self, x):
        for i in (1, 2, 3):
            x = torch.relu(getattr(self, f"in{i}")(getattr(self, f"conv{i}")(x)))
        for i in range(1, 6):
            x = getattr(self, f"res{i}")(x)
        x = torch.relu(self.in4(self.deconv1(x)))
        x = torch.relu(self.in5(self.deconv2(x)))
        return self.deconv3(x)


def transformer_net(widths):
    """Random weights whose pictures exceed 0..255, so that clamping matters."""
    torch.manual_seed(sum(widths))
    net = TransformerNet(*widths)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.InstanceNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.uniform_(-0.5, 0.5)
        net.deconv3.conv2d.weight.mul_(200)
        net.deconv3.conv2d.bias.fill_(120)
    return net.eval()


def with_running_statistics(state):
    """The keys that files of PyTorch before 0.4 carry; their values were never used."""
    for name in [n for n in state if n.rpartition(".")[0].rpartition(".")[2].startswith("in")]:
        norm = name.rpartition(".")[0]
        state[f"{norm}.running_mean"] = torch.randn_like(state[name])
        state[f"{norm}.running_var"] = torch.rand_like(state[name])
    return state


@pytest.mark.parametrize("widths", [(32, 64, 128), (8, 16, 24), (5, 3, 7)])
@pytest.mark.parametrize(
    "kind", ["zip", "old", "running statistics", "safetensors", "DataParallel", "training state"]
)
def test_fast_neural_style_checkpoint_gives_the_same_pictures(tmp_path, widths, kind):
    net = transformer_net(widths)
    # The content decides; the name is uninformative or wrong.
    path = tmp_path / ("style.pth" if kind == "safetensors" else "style.safetensors")
    state = dict(net.state_dict())
    if kind == "safetensors":
        save_file(state, path)
    elif kind == "old":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "DataParallel":
        torch.save(nn.DataParallel(net).state_dict(), path)
    elif kind == "training state":
        torch.save({"epoch": 2, "model_state_dict": state}, path)
    else:
        torch.save(with_running_statistics(state) if kind != "zip" else state, path)
    generator = StyleGenerator.from_pretrained(path)
    assert generator.config.channels == widths
    for height, width in ((32, 40), (33, 47)):
        x = torch.rand(2, 3, height, width)
        with torch.no_grad():
            raw = net(x * 255)[:, :, :height, :width]
            got = generator(x)
        assert raw.min() < 0
        assert raw.max() > 255
        torch.testing.assert_close(got, raw.clamp(0, 255) / 255, rtol=0, atol=2e-4)


@pytest.mark.parametrize("upsample", ["transpose", "transpose3", "nearest"])
def test_round_trip_keeps_weights_and_config(tmp_path, upsample):
    torch.manual_seed(3)
    config = GeneratorConfig(
        channels=(4, 5, 6), residual_blocks=1, kernel_size=7, upsample=upsample, value_range=2.0
    )
    generator = StyleGenerator(config)
    path = tmp_path / "new folder" / "style"
    generator.save_pretrained(path)
    opened = StyleGenerator.from_pretrained(str(path))
    assert opened.config == config
    assert not opened.training
    for name, tensor in generator.state_dict().items():
        assert torch.equal(opened.state_dict()[name], tensor), name
    with safe_open(path, "pt") as file:
        assert json.loads(file.metadata()["config"])["upsample"] == upsample


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_open_in_float32(tmp_path, dtype):
    torch.manual_seed(4)
    generator = StyleGenerator(SMALL)
    generator.save_pretrained(tmp_path / "whole")
    generator.save_pretrained(tmp_path / "half", dtype=dtype)
    assert (tmp_path / "half").stat().st_size < 0.7 * (tmp_path / "whole").stat().st_size
    opened = StyleGenerator.from_pretrained(tmp_path / "half")
    for name, tensor in generator.state_dict().items():
        got = opened.state_dict()[name]
        assert got.dtype == torch.float32
        assert torch.equal(got, tensor.to(dtype).float()), name


class Malicious:
    """Unpickling it runs code that leaves a file."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return open, (self.mark, "w")


@pytest.mark.parametrize("container", ["pickle", "zip", "old"])
def test_code_in_a_file_never_runs(tmp_path, container):
    mark, path = tmp_path / "ran", tmp_path / "style.pth"
    state = {**transformer_net((4, 4, 4)).state_dict(), "extra": Malicious(mark)}
    if container == "pickle":
        path.write_bytes(pickle.dumps(state))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=container == "zip")
    # The file is really dangerous: pickle runs code in it.
    pickle.loads(pickle.dumps(Malicious(mark))).close()
    assert mark.exists()
    mark.unlink()
    with pytest.raises(ValueError, match=r"style\.pth: expected .*code, which is never run"):
        StyleGenerator.from_pretrained(path)
    assert not mark.exists()


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.98])
@pytest.mark.parametrize("kind", ["safetensors", "zip", "old"])
def test_truncated_files_are_refused(tmp_path, kind, share):
    whole, path = io.BytesIO(), tmp_path / "cut.bin"
    if kind == "safetensors":
        StyleGenerator(SMALL).save_pretrained(path)
        content = path.read_bytes()
    else:
        state = transformer_net((4, 4, 4)).state_dict()
        torch.save(state, whole, _use_new_zipfile_serialization=kind == "zip")
        content = whole.getvalue()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match=r"cut\.bin: expected"):
        StyleGenerator.from_pretrained(path)


def test_a_picture_is_refused_with_what_to_do(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "painting.jpg")
    with pytest.raises(ValueError, match=r"got a picture; .* stylekernels train --art painting"):
        StyleGenerator.from_pretrained(tmp_path / "painting.jpg")


def test_other_architectures_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match=r"other\.pth: expected a style.*got features\.0\.weight"):
        StyleGenerator.from_pretrained(path)

    state = transformer_net((4, 4, 4)).state_dict()
    torch.save({**state, "res6.conv1.conv2d.weight": torch.zeros(4, 4, 3, 3)}, path)
    with pytest.raises(ValueError, match=r"res6.*should be absent"):
        StyleGenerator.from_pretrained(path)

    del state["res5.in2.weight"]
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"residual\.4\.second\.norm\.weight.*got nothing"):
        StyleGenerator.from_pretrained(path)

    torch.save([1, 2, 3], path)
    with pytest.raises(ValueError, match="expected a state dict of tensors, got list"):
        StyleGenerator.from_pretrained(path)

    torch.save({"epoch": 2, "net": state}, path)
    with pytest.raises(ValueError, match="expected a state dict of tensors, got int at 'epoch'"):
        StyleGenerator.from_pretrained(path)


def test_wrong_headers_are_refused(tmp_path):
    path = tmp_path / "style.safetensors"
    tensors = {k: v.contiguous() for k, v in StyleGenerator(SMALL).state_dict().items()}
    good = {"format": "stylekernels.StyleGenerator", "config": json.dumps(SMALL.to_dict())}
    wider = json.dumps({**SMALL.to_dict(), "channels": [4, 6, 9]})
    for changes, message in [
        ({"format": "somebody else's"}, "expected the format 'stylekernels.StyleGenerator'"),
        ({"config": "{not json"}, "not a style generator of this library"),
        ({"config": '{"channels": [4, 6]}'}, "channels: expected three"),
        ({"config": '{"colour": "red"}'}, "config: expected fields among"),
        ({"config": wider}, r"down\.2\.conv\.weight' should be \(9, 6, 3, 3\)"),
    ]:
        save_file(tensors, path, {**good, **changes})
        with pytest.raises(ValueError, match=message) as caught:
            StyleGenerator.from_pretrained(path)
        assert "style.safetensors" in str(caught.value)


def test_unknown_style_lists_those_that_exist():
    with pytest.raises(ValueError, match="expected a bundled style") as caught:
        StyleGenerator.from_pretrained("mona_lisa")
    assert "'mona_lisa'" in str(caught.value)
    assert bundled_styles()
    for name in bundled_styles():
        assert name in str(caught.value)


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "style"
    path.write_text("old")

    def fail(part):
        part.write_text("half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664)])
def test_files_have_the_usual_permissions_and_the_process_keeps_its_umask(
    generator, tmp_path, monkeypatch, umask, mode
):
    """Two threads that set and restore the umask could leave the wrong one."""
    path, before = tmp_path / "style.safetensors", os.umask(umask)
    try:
        with monkeypatch.context() as patch:
            patch.delattr(os, "umask")
            generator.save_pretrained(path)
            generator.save_pretrained(path)
        assert os.umask(umask) == umask
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode
    assert os.listdir(tmp_path) == ["style.safetensors"]


def test_two_may_write_a_file_at_once(tmp_path):
    path = tmp_path / "file"

    def write(part):
        part.write_text("first")
        write_whole(path, lambda other: other.write_text("second"))
        assert path.read_text() == "second"

    write_whole(path, write)
    assert path.read_text() == "first"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize("path", [".", "/"])
def test_a_folder_is_no_file_to_write(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OSError, match=r"[Bb]usy|directory|denied"):
        write_whole(path, lambda part: part.write_text("never kept"))
    assert not os.listdir(tmp_path)
