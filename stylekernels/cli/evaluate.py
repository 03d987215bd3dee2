"""``stylekernels evaluate``: measures of a style."""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from stylekernels.cli.options import option
from stylekernels.cli.styles import find_style, open_style
from stylekernels.cli.terminal import DONE, Refused, complain, refusing, say
from stylekernels.files import write_whole
from stylekernels.media.outputs import check_file, check_inputs_are_kept
from stylekernels.training.config import TrainConfig, naming, require
from stylekernels.training.errors import SettingError

if TYPE_CHECKING:
    from PIL import Image

    from stylekernels.evaluation import Evaluation


_OF_LOSSES = {"stroke", "grain", "art_colors"}
_OF_LOSSES |= {f"{loss}_weight" for loss in ("content", "style", "tv", "color")}


@dataclasses.dataclass(kw_only=True)
class Evaluate:
    """Measure a style: losses beside an optimum, likeness to the photo, stability in time."""

    style: Annotated[str, tyro.conf.Positional, option("STYLE", hint="(required)")]
    """A bundled style or a file of weights."""

    art: Annotated[Path, option("PATH", hint="(required)")]
    """The painting, or the folder of paintings, that it was trained on."""

    photos: Annotated[Path, option("FOLDER", hint="(required)")]
    """A folder of photos that it was not trained on."""

    count: Annotated[int, option("COUNT")] = 4
    """Number of photos, evenly spaced over the folder."""

    size: Annotated[int, option("PIXELS")] = 384
    """Longer side to which photos and the clip are scaled."""

    steps: Annotated[int, option("COUNT")] = 300
    """Steps of optimising the pixels of each photo for the same losses, in our kernels and in
    plain PyTorch, for comparison. 0 leaves it out, which is faster by far."""

    clip: Annotated[Path | None, option("FILE", hint="(default: none)")] = None
    """A video, for the change of the pictures along its motion."""

    frames: Annotated[int, option("COUNT")] = 30
    """Frames of the clip that are used."""

    settings: Annotated[Path | None, option("FILE", hint="(default: those of the defaults)")] = None
    """The config.json of the run that trained it. Losses are weighted as they were there, and
    strokes, grain and colours of the painting are the same."""

    features: Annotated[Literal["vgg19", "vgg16", "squeezenet", "mixed", "slim"], option()] = (
        TrainConfig.features
    )
    """The loss network, as for `stylekernels train`."""

    backbones: Annotated[Path | None, option("PATH", hint="(default: downloaded)")] = None
    """The loss network's file or folder, as for `stylekernels train`."""

    json: Annotated[Path | None, option("FILE", hint="(default: none)")] = None
    """A file for the numbers."""

    device: Annotated[str, option("DEVICE")] = "cpu"
    """The device that the style runs on, `cpu` or `cuda`. Losses are computed on the CPU."""

    def run(self) -> int:
        for name in ("count", "size", "frames"):
            least = 32 if name == "size" else 1
            if getattr(self, name) < least:
                raise Refused(f"--{name}: expected at least {least}, got {getattr(self, name)}")
        if self.steps < 0:
            raise Refused(f"--steps: expected 0 or more, got {self.steps}")
        if self.clip is not None and not self.clip.is_file():
            raise Refused(f"--clip: expected a video that exists, got {self.clip}")
        if self.json is not None:
            with refusing("--json: "):
                check_file(self.json)
        weights = find_style(self.style, "STYLE")
        try:
            require(self.art.exists(), "art", "an image file or a folder that exists", self.art)
            require(self.photos.is_dir(), "photos", "a folder that exists", self.photos)
            if self.json is not None:
                inputs = [path for path in (weights, self.art, self.clip) if path is not None]
                with naming("json"):
                    check_inputs_are_kept([self.json], inputs)
            found = self._measure()
        except SettingError as error:
            raise Refused(f"--{error}") from error
        except ModuleNotFoundError as error:
            raise Refused(
                f"evaluate: needs {error.name}, which is not installed; "
                "pip install stylekernels[evaluate]"
            ) from error
        for line in table(found):
            say(line)
        if self.json is not None:
            text = json.dumps(found.to_dict(), indent=2) + "\n"
            write_whole(self.json, lambda part: part.write_text(text, encoding="utf-8"))
        return DONE

    def _measure(self) -> "Evaluation":
        import numpy as np

        from stylekernels import evaluation
        from stylekernels.training.art import Art
        from stylekernels.training.data import resized
        from stylekernels.training.objective import Objective, load_loss_network

        paint = open_style(self.style, self.device)
        frames = None
        if self.clip is not None:
            with naming("clip"):
                frames = [*evaluation.read_clip(self.clip, self.frames, self.size)]
                require(len(frames) > 1, "clip", "at least two frames", len(frames))
        photos = [np.asarray(resized(image, self.size)) for image in self._choose()]
        with naming("settings"):
            config = self._config()
        with naming("art"):
            art = Art.read(config.art, config.stroke, smooth=config.grain == "auto", skip=complain)
        objective = Objective(art, load_loss_network(config), config)
        return evaluation.evaluate(paint, objective, photos, steps=self.steps, frames=frames)

    def _config(self) -> TrainConfig:
        """The settings of the losses."""
        given = {}
        if self.settings is not None:
            try:
                given = json.loads(self.settings.read_text(encoding="utf-8"))
                given = {name: given[name] for name in _OF_LOSSES}
                given |= {name: float(given[name]) for name in _OF_LOSSES - {"grain"}}
            except (ValueError, TypeError, KeyError) as error:
                raise ValueError(
                    f"{self.settings}: expected the config.json of a run of stylekernels train, "
                    f"with {', '.join(sorted(_OF_LOSSES))}"
                ) from error
        config = TrainConfig(
            art=self.art,
            photos=self.photos,
            features=self.features,
            backbones=self.backbones,
            **given,
        )
        config.check_losses()
        return config

    def _choose(self) -> list["Image.Image"]:
        """Evenly spaced photos of the folder."""
        from stylekernels.media.paths import find_photos_below
        from stylekernels.training.data import readable

        paths, problems = find_photos_below(self.photos)
        for problem in problems:
            complain(problem)
        count = min(self.count, len(paths))
        places = [round((i + 0.5) * len(paths) / count - 0.5) for i in range(count)]
        found = [image for _, image in readable([paths[place] for place in places], complain)]
        require(bool(found), "photos", "photos that can be read", "none")
        return found


def table(found: "Evaluation") -> list[str]:
    """The lines of the report."""
    names = [*found.pictures]
    rows = [("pictures", found.pictures), ("photos as they are", found.photos)]
    if found.optimum is not None:
        rows.append(("optimum of the pixels", found.optimum))
    lines = ["".join(["losses".ljust(24), *(name.rjust(9) for name in names)])]
    lines += [
        "".join([label.ljust(24), *(f"{values[name]:9.3f}" for name in names)])
        for label, values in rows
    ]
    if found.optimum is not None:
        lines.append(
            f"the pictures' total is {found.ratio:.2f} times the optimum's; lower is better"
        )
        lines.append(
            f"the same optimum in plain PyTorch: {found.reference:.3f}, in {found.speed:.2f} times "
            "our time"
        )
    lines.append(f"likeness to the photo (SSIM) {found.ssim:.3f}")
    if found.flicker is not None:
        lines.append(
            f"change along the motion: {found.flicker:.1f} of 255 levels; the clip itself "
            f"{found.clip:.1f}"
        )
    return lines
