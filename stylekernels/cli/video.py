"""``stylekernels video``: paint a video in a style."""

import contextlib
import dataclasses
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

import stylekernels
from stylekernels.cli.options import option
from stylekernels.cli.styles import find_style, open_style
from stylekernels.cli.terminal import (
    DONE,
    REFUSED,
    Refused,
    complain,
    frame_progress,
    plural,
    refusing,
    say,
)
from stylekernels.files import write_whole
from stylekernels.media.outputs import check_file, check_inputs_are_kept
from stylekernels.media.smoothing import SETTLED, Smooth, Smoother
from stylekernels.media.video_formats import VideoError, VideoFormat, video_format

if TYPE_CHECKING:
    import numpy as np

    from stylekernels.inference import Stylizer
    from stylekernels.media.video_journal import Journal
    from stylekernels.media.video_sink import VideoSink
    from stylekernels.media.video_source import VideoSource

# Options on which the encoded pictures depend.
_SETTINGS = (
    "style",
    "size",
    "strength",
    "preserve_colors",
    "smooth",
    "start",
    "duration",
    "every",
    "quality",
)


@dataclasses.dataclass(kw_only=True)
class Video:
    """Paint a video in a style."""

    input: Annotated[Path, tyro.conf.Positional, option("INPUT", hint="(required)")]
    """The video, in any format that FFmpeg reads, or an animated GIF."""

    output: Annotated[Path, tyro.conf.Positional, option("OUTPUT", hint="(required)")]
    """The painted video: .mp4, .m4v, .mov, .mkv and .ts in H.264, .webm in VP9, .gif.
    Sound and subtitles are copied as they are, frame rate, times and colours kept. An existing file
    is replaced, but never the input."""

    style: Annotated[str, option("STYLE", "-s", hint="(required)")]
    """As for `stylekernels stylize`: a bundled style, a mixture, or a file of weights."""

    size: Annotated[int | None, option("PIXELS", hint="(default: the video's own)")] = None
    """Scale down to this length of the longer side. Videos are never enlarged."""

    strength: Annotated[float, option("0..1")] = 1.0
    """The share of the style in the picture, from 0 (the video) to 1 (the stylised picture)."""

    preserve_colors: Annotated[bool, option(hint="")] = False
    """Keep the video's colours, and take only the brightness of the stylised picture."""

    smooth: Annotated[Smooth, option("KIND")] = "none"
    """Less flicker (needs OpenCV): `still` where the camera stands still, at nearly no cost of
    time; `motion` also along what moves, at a few milliseconds a frame."""

    start: Annotated[float, option("SECONDS")] = 0.0
    """Leave out this much of the video's beginning."""

    duration: Annotated[float | None, option("SECONDS", hint="(default: to the end)")] = None
    """Paint this much of the video."""

    every: Annotated[int, option("N")] = 1
    """Paint only every Nth frame, and show it until the next painted one. The video lasts as long
    as before, with an Nth of its frames, like an animation drawn "on twos" for 2."""

    quality: Annotated[int | None, option("CRF", hint="(default: 21 in H.264, 31 in VP9)")] = None
    """The encoder's constant rate factor: smaller is better and larger, from 0 to 51 in H.264 and
    to 63 in VP9. GIF has none."""

    resume: Annotated[bool, option(hint="")] = False
    """Go on after a crash or Ctrl-C, with the same options. While a video is painted, its pictures
    are kept in OUTPUT.resume too."""

    device: Annotated[str | None, option("DEVICE", hint="(default: cuda if there is a GPU)")] = None
    """The device that the network runs on, `cpu` or `cuda`."""

    def run(self) -> int:
        form = self._check()
        weights = find_style(self.style)
        with refusing("OUTPUT: "):
            outputs = [self.output] if form.name == "gif" else [self.output, self._journal_path]
            for path in outputs:
                check_file(path)
            check_inputs_are_kept(outputs, [self.input, weights])
        try:
            from stylekernels.media.video_source import VideoSource

            with VideoSource(
                self.input,
                size=self.size,
                start=self.start,
                duration=self.duration,
                every=self.every,
            ) as source:
                stylizer = open_style(self.style, self.device)
                journal = self._open_journal(form, weights)
                with contextlib.closing(journal) if journal else contextlib.nullcontext():
                    return self._convert(source, form, stylizer, journal)
        except VideoError as error:
            raise Refused(f"INPUT: {error}") from error
        except ModuleNotFoundError as error:
            package = {"av": "PyAV", "cv2": "OpenCV"}.get(error.name or "")
            if package is None:
                raise
            raise Refused(
                f"video: needs {package}, which is not installed; pip install stylekernels[video]"
            ) from error

    def _check(self) -> VideoFormat:
        """Refuse options that have no sense; return the format of the output."""
        if self.size is not None and self.size < 16:
            raise Refused(f"--size: expected at least 16 pixels, got {self.size}")
        if not 0 <= self.strength <= 1:
            raise Refused(f"--strength: expected a number from 0 to 1, got {self.strength}")
        if not 0 <= self.start < float("inf"):
            raise Refused(f"--start: expected 0 seconds or more, got {self.start}")
        if self.duration is not None and not 0 < self.duration < float("inf"):
            raise Refused(f"--duration: expected more than 0 seconds, got {self.duration}")
        if self.every < 1:
            raise Refused(f"--every: expected at least 1, got {self.every}")
        with refusing("OUTPUT: "):
            form = video_format(self.output)
        if self.resume and form.name == "gif":
            raise Refused("--resume: expected a video, got .gif, which is always painted anew")
        if self.quality is not None and form.quality is None:
            raise Refused(f"--quality: expected none for {self.output.suffix}, got {self.quality}")
        if self.quality is not None and not 0 <= self.quality <= form.worst:
            raise Refused(
                f"--quality: expected a number from 0 to {form.worst}, got {self.quality}"
            )
        return form

    @property
    def _journal_path(self) -> Path:
        return self.output.with_name(self.output.name + ".resume")

    def _open_journal(self, form: VideoFormat, weights: Path) -> "Journal | None":
        """Open the journal of this command's earlier run, or begin one."""
        if form.name == "gif":
            return None
        from stylekernels.media.video_journal import Journal, JournalInUse

        path = self._journal_path
        settings = {"input": _identity(self.input), "weights": _identity(weights)}
        settings |= {name: getattr(self, name) for name in _SETTINGS}
        # Another version may encode in another way, or count times from elsewhere.
        settings["version"] = [stylekernels.__version__, form.encoder, form.options, form.quality]
        try:
            begun = path.exists() and path.stat().st_size > 0
            found = Journal(path) if begun or self.resume else None
        except FileNotFoundError as error:
            raise Refused(f"--resume: {error}; leave --resume out to paint anew") from error
        except JournalInUse as error:
            raise Refused(
                f"OUTPUT: {self.output} is being painted by another command, or its folder is on a "
                "file system without locks; wait for the other's end, or choose another OUTPUT"
            ) from error
        except OSError as error:
            raise Refused(
                f"OUTPUT: {error}; pictures of the video are kept in that file while it is "
                "painted: move it away, or choose another OUTPUT"
            ) from error
        if found is not None:
            if self.resume and found.settings == settings:
                return found
            found.close()  # without frames this deletes it
            if found.count:
                raise Refused(self._why_it_stays(found, settings))
            if self.resume:
                raise Refused(f"--resume: {path} has no frames yet; leave --resume out")
        with refusing("OUTPUT: "):
            return Journal(path, settings)

    def _why_it_stays(self, found: "Journal", settings: dict[str, Any]) -> str:
        """Say why the frames of a journal are neither used nor replaced, and both ways out."""
        argument = "--resume" if self.resume else "OUTPUT"
        there = f"{argument}: {found.path} has {found.count} frames that were painted"
        anew = "remove that file to paint anew" + (", without --resume" if self.resume else "")
        if found.settings == settings:
            return f"{there} by this command before; add --resume to go on, or {anew}"
        name = next(name for name in settings if found.settings.get(name) != settings[name])
        value = found.settings.get(name)
        if name in ("input", "weights"):
            file = "INPUT" if name == "input" else "the style's file"
            if value and value[0] != settings[name][0]:
                return f"{there} from {value[0]}, another file than {file}; {anew}"
            return f"{there} before {file} changed; {anew}"
        if name == "version":
            return f"{there} by another version of stylekernels; {anew}"
        option = "--" + name.replace("_", "-")
        how = f"with {option} {value}"
        if value is None or isinstance(value, bool):
            how = f"with {option}" if value else f"without {option}"
        return f"{there} {how}; go on like that, with --resume, or {anew}"

    def _convert(
        self,
        source: "VideoSource",
        form: VideoFormat,
        stylizer: "Stylizer",
        journal: "Journal | None",
    ) -> int:
        """Paint the source into the output, whole or, after Ctrl-C, as far as it came."""
        started = time.perf_counter()
        stopped: KeyboardInterrupt | None = None
        frames = 0

        def write(part: Path) -> None:
            nonlocal stopped, frames
            sink = self._open_sink(source, form, part, journal)
            painted = 0 if journal is None else journal.count
            try:
                self._run(source, self._painter(stylizer, painted), sink)
            except KeyboardInterrupt as stop:
                if not sink.frames:
                    raise
                stopped = stop
            frames = sink.frames

        try:
            write_whole(self.output, write)
        except OSError as error:
            raise Refused(
                f"OUTPUT: {self.output}: cannot be written: {error.strerror or error}"
            ) from error
        total = f" of {source.count}" if source.count else ""
        if stopped is not None:
            again = "" if journal is None else "; the same command with --resume goes on"
            raise KeyboardInterrupt(
                f"after {frames}{total} frames, which are in {self.output}{again}"
            )
        if journal is not None:
            journal.finish()
        seconds = time.perf_counter() - started
        if source.ended_early is not None:
            complain(source.ended_early)
        say(
            f"{self.output}: {frames} {plural('frame', frames)}, {frames / seconds:.1f} a second  "
            f"{seconds:.1f} s"
        )
        return DONE if source.ended_early is None else REFUSED

    def _open_sink(
        self,
        source: "VideoSource",
        form: VideoFormat,
        part: Path,
        journal: "Journal | None",
    ) -> "VideoSink":
        from stylekernels.media.video_sink import VideoSink

        sink = VideoSink(
            part,
            form,
            size=source.size,
            rate=source.rate,
            varies=source.varies,
            time_base=source.time_base,
            colors=source.colors,
            aspect=source.aspect,
            quality=self.quality,
            streams=source.copied,
            metadata=source.metadata,
            language=source.language,
            chapters=source.chapters,
            journal=journal,
        )
        left_out = [
            f"{stream.type} stream {stream.index}" for stream in (*source.ignored, *sink.left_out)
        ]
        if source.chapters and not form.chapters:
            left_out.append("chapters")
        if left_out:
            complain(
                f"{self.output}: left out: {', '.join(left_out)}; beside the pictures there are "
                f"only the sound, subtitles and chapters that {self.output.suffix} can hold"
            )
        width, height = source.size
        if form.even and (width % 2 or height % 2):
            complain(
                f"{self.output}: {width}x{height} pixels are stored as 4:4:4, which not all "
                "players know; with --size sides become even"
            )
        return sink

    def _run(
        self,
        source: "VideoSource",
        paint: "Callable[[np.ndarray], np.ndarray]",
        sink: "VideoSink",
    ) -> None:
        from stylekernels.hardware import memory_ran_out
        from stylekernels.media.pipeline import run_pipeline

        width, height = source.size
        try:
            with frame_progress(source.count) as bar:
                run_pipeline(source, paint, sink, painted=bar.update)
        except (MemoryError, RuntimeError) as error:
            if not memory_ran_out(error):
                raise
            raise VideoError(
                f"{self.input}: frames of {width}x{height} pixels need more memory than there is; "
                "scale down with --size"
            ) from error

    def _painter(self, stylizer: "Stylizer", painted: int) -> "Callable[[np.ndarray], np.ndarray]":
        """Return the function that paints one frame after the other with the wanted strength, but
        for the first ones, which an earlier run has painted."""
        from stylekernels.inference import blend

        stylize: Callable[[np.ndarray], np.ndarray] = stylizer
        first = painted
        if self.smooth != "none":
            stylize = Smoother(stylizer, self.smooth)
            # The last of the painted frames only settle the Smoother: the sink has them already.
            first = painted - SETTLED
        numbers = itertools.count()

        def paint(frame: "np.ndarray") -> "np.ndarray":
            if next(numbers) < first:
                return frame
            return blend(
                frame,
                stylize(frame),
                strength=self.strength,
                preserve_colors=self.preserve_colors,
            )

        return paint


def _identity(path: Path) -> list[str | float]:
    """Return values that change with a file: path, size and time of its last change."""
    stat = path.stat()
    return [str(path.resolve()), stat.st_size, stat.st_mtime]
