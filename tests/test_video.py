"""Videos: times, sound, size and rotation are kept, and damaged files are said to be."""

from fractions import Fraction

import numpy as np
import pytest

av = pytest.importorskip("av")

from stylekernels.media.frames import Frame  # noqa: E402
from stylekernels.media.video_formats import VideoError  # noqa: E402
from stylekernels.media.video_source import VideoSource  # noqa: E402
from tests.clips import assert_near, convert, make_clip, pictures, read_clip  # noqa: E402

NO_REORDERING = {"bf": "0"}
CLIPS = {
    "two tracks": {"tracks": 2},
    "no sound": {},
    "29.97": {"rate": Fraction(30000, 1001), "tracks": 1},
    "varying": {
        "times": [0, 40, 55, 200, 210, 500, 900, 1000],
        "time_base": Fraction(1, 1000),
        "rate": 20,
        "options": NO_REORDERING,
        "tracks": 1,
    },
    "late": {"times": range(7, 19), "options": NO_REORDERING},
}


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize("name", CLIPS)
def test_times_and_sound_are_kept(tmp_path, name, suffix):
    path = make_clip(tmp_path / f"in{suffix}", **CLIPS[name])
    source = convert(path, tmp_path / f"out{suffix}")
    assert source.ended_early is None
    before, after = read_clip(path), read_clip(tmp_path / f"out{suffix}")
    assert len(before.packets) == CLIPS[name].get("tracks", 0)
    assert all(len(packets) > 10 for packets in before.packets.values())
    assert after.packets == before.packets
    assert after.time_base == before.time_base
    assert after.times == before.times
    assert after.rate == before.rate
    assert after.duration == before.duration
    assert after.size == before.size
    for now, then in zip(after.rgb, before.rgb, strict=True):
        assert_near(now, then, 5)


@pytest.mark.parametrize(
    ("suffix", "kept"), [(".mp4", 2), (".mkv", 2), (".ts", 2), (".webm", 0), (".gif", 0)]
)
def test_what_a_container_cannot_hold_is_left_out(tmp_path, suffix, kept):
    path = make_clip(tmp_path / "in.mp4", tracks=2)
    before = read_clip(path)
    output = tmp_path / f"out{suffix}"
    convert(path, output)
    after = read_clip(output)
    assert len(after.packets) == kept
    # A container may begin at another time, and with sound before the pictures.
    first = after.seconds[0] - before.seconds[0]
    late = [now - then for now, then in zip(after.seconds, before.seconds, strict=True)]
    assert max(late) - min(late) <= Fraction(1, 1000)
    for index in before.packets if kept else ():
        seen, expected = after.packets[index], before.packets[index]
        assert len(seen) == len(expected)
        for (now, time), (then, at) in zip(seen, expected, strict=True):
            assert abs(time - first - at) <= Fraction(1, 500)
            assert then in now  # MPEG-TS adds a header to each packet
            assert now == then or suffix == ".ts"


def test_subtitles_and_texts_are_kept(tmp_path):
    texts = tmp_path / "in.srt"
    texts.write_text("1\n00:00:00,100 --> 00:00:00,300\nA rose\n\n")
    with av.open(str(texts)) as subtitles:
        make_clip(tmp_path / "in.mkv", subtitles=subtitles, metadata={"title": "In the garden"})
    before = read_clip(tmp_path / "in.mkv")
    convert(tmp_path / "in.mkv", tmp_path / "out.mkv")
    after = read_clip(tmp_path / "out.mkv")
    assert after.packets == before.packets
    assert after.packets[1][0][0] == b"A rose"
    assert after.metadata["title"] == "In the garden"
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert container.streams[1].language == "eng"


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".gif"])
@pytest.mark.parametrize("size", [(35, 27), (338, 191), (65, 49)])
def test_odd_sizes_are_kept(tmp_path, size, suffix):
    path = make_clip(
        tmp_path / "in.mkv", size=size, frames=pictures(size, 3), codec="ffv1", pixels="yuv444p"
    )
    convert(path, tmp_path / f"out{suffix}")
    before, after = read_clip(path), read_clip(tmp_path / f"out{suffix}")
    assert after.size == size
    assert len(after.frames) == 3
    for now, then in zip(after.rgb, before.rgb, strict=True):
        assert_near(now, then, 5)
        assert_near(now[-1:], then[-1:], 16)  # the last row and column are no padding
        assert_near(now[:, -1:], then[:, -1:], 16)


@pytest.mark.parametrize(
    ("turn", "turned"),
    [
        ((90,), lambda rgb: np.rot90(rgb, 1)),
        ((180,), lambda rgb: np.rot90(rgb, 2)),
        ((270,), lambda rgb: np.rot90(rgb, 3)),
        ((0, True), lambda rgb: rgb[:, ::-1]),
        ((0, False, True), lambda rgb: rgb[::-1]),
    ],
)
def test_pictures_are_turned_upright(tmp_path, turn, turned):
    path = make_clip(tmp_path / "in.mp4", turn=turn, colors={"sample_aspect_ratio": Fraction(4, 3)})
    stored = read_clip(path)
    if len(turn) == 1:  # FFmpeg counts counterclockwise, as NumPy does
        assert stored.frames[0].rotation % 360 == turn[0]
    seen = []
    convert(path, tmp_path / "out.mp4", paint=lambda rgb: seen.append(rgb) or rgb)
    after = read_clip(tmp_path / "out.mp4")
    for frame, now, then in zip(seen, after.rgb, stored.rgb, strict=True):
        assert_near(frame, turned(then), 3)
        assert_near(now, turned(then), 5)
    assert after.frames[0].rotation == 0
    with av.open(str(tmp_path / "out.mp4")) as container:
        aspect = container.streams.video[0].sample_aspect_ratio
    assert aspect == (Fraction(3, 4) if turn[0] in (90, 270) else Fraction(4, 3))


# ---- parts of a video ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_a_part_of_a_video(tmp_path, suffix):
    path = make_clip(
        tmp_path / f"in{suffix}",
        frames=pictures((64, 48), 60),
        tracks=1,
        options={"g": "20"},
    )
    whole = read_clip(path)
    source = convert(path, tmp_path / "out.mkv", start=0.9, duration=0.8)
    part = read_clip(tmp_path / "out.mkv")
    begin, end = Fraction(9, 10) + whole.start, Fraction(17, 10) + whole.start
    wanted = [i for i, time in enumerate(whole.seconds) if begin <= time < end]
    assert len(wanted) == source.count == 20
    for i, now, time in zip(wanted, part.rgb, part.seconds, strict=True):
        assert_near(now, whole.rgb[i], 5)
        assert abs(time - (whole.seconds[i] - begin)) <= Fraction(3, 100)  # sound may come first
    sound = [data for data, time in whole.packets[1] if begin <= time < end]
    assert len(sound) > 30
    assert [data for data, _ in part.packets[1]] == sound or suffix == ".ts"
    assert source.ended_early is None


def test_every_third_frame_is_shown_three_times_as_long(tmp_path):
    path = make_clip(tmp_path / "in.mp4", frames=pictures((64, 48), 14), tracks=1)
    source = convert(path, tmp_path / "out.mp4", every=3)
    before, after = read_clip(path), read_clip(tmp_path / "out.mp4")
    assert after.times == before.times[::3]
    assert source.count == len(after.times) == 5
    assert after.duration == before.duration
    assert after.packets == before.packets
    assert source.rate == Fraction(25, 3)
    for now, then in zip(after.rgb, before.rgb[::3], strict=True):
        assert_near(now, then, 5)


@pytest.mark.parametrize(("size", "expected"), [(33, (32, 24)), (64, (64, 48)), (999, (64, 48))])
def test_scaled(tmp_path, size, expected):
    path = make_clip(tmp_path / "in.mp4", frames=pictures((64, 48), 2))
    convert(path, tmp_path / "out.mp4", size=size)
    assert read_clip(tmp_path / "out.mp4").size == expected


@pytest.mark.parametrize("size", [65, 999])
def test_a_size_that_scales_nothing_makes_sides_even(tmp_path, size):
    path = make_clip(
        tmp_path / "in.mp4", size=(65, 49), frames=pictures((65, 49), 2), pixels="yuv444p"
    )
    convert(path, tmp_path / "out.mp4", size=size)
    assert read_clip(tmp_path / "out.mp4").size == (64, 48)


# ---- files that are damaged, or no videos -------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "options"), [(".mkv", {}), (".mp4", {"movflags": "+faststart"})]
)
def test_a_truncated_file_is_read_as_far_as_it_goes(tmp_path, suffix, options):
    path = make_clip(
        tmp_path / f"in{suffix}",
        frames=pictures((64, 48), 50),
        options={"g": "10"},
        container_options=options,
    )
    whole = read_clip(path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 7 // 10])
    source = convert(path, tmp_path / "out.mp4")
    after = read_clip(tmp_path / "out.mp4")
    assert 15 <= len(after.frames) <= 45
    for now, then in zip(after.rgb[:15], whole.rgb[:15], strict=True):
        assert_near(now, then, 5)
    shown = float(after.seconds[-1]) + 0.04
    assert source.ended_early.startswith(
        f"{path}: cut short or damaged: ended after {shown:.2f} of 2.00 s"
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts", ".webm"])
def test_a_recording_that_begins_late_begins_at_zero(tmp_path, suffix):
    path = make_clip(tmp_path / "in.ts", tracks=1, container_options={"output_ts_offset": "5000"})
    before = read_clip(path)
    assert before.seconds[0] > 4999
    convert(path, tmp_path / f"out{suffix}")
    after = read_clip(tmp_path / f"out{suffix}")
    assert 0 <= after.seconds[0] < 2  # MPEG-TS itself begins at 1.4
    late = [now - then for now, then in zip(after.seconds, before.seconds, strict=True)]
    assert max(late) - min(late) <= Fraction(1, 1000)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_chapters_and_the_language_of_the_pictures_are_kept(tmp_path, suffix):
    path = make_clip(
        tmp_path / f"in{suffix}",
        frames=pictures((64, 48), 50),
        language="fra",
        chapters=("one", "two"),
    )
    for options, expected in (
        ({}, [(0, 1, "one"), (1, 2, "two")]),
        ({"start": 0.4, "duration": 1.2}, [(0, 0.6, "one"), (0.6, 1.2, "two")]),
        ({"start": 1.2}, [(0, 0.8, "two")]),
    ):
        convert(path, tmp_path / f"out{suffix}", **options)
        with av.open(str(tmp_path / f"out{suffix}")) as container:
            assert container.streams.video[0].metadata["language"] == "fra"
            found = [
                (*(float(c[n] * c["time_base"]) for n in ("start", "end")), c["metadata"]["title"])
                for c in container.chapters()
            ]
        assert [title for *_, title in found] == [title for *_, title in expected]
        assert np.allclose([f[:2] for f in found], [e[:2] for e in expected], atol=2e-3)


def test_damage_in_the_middle_is_counted(tmp_path):
    path = make_clip(tmp_path / "in.mp4", frames=pictures((64, 48), 50), options={"g": "10"})
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 400] = bytes(400)
    path.write_bytes(data)
    source = convert(path, tmp_path / "out.mp4")
    assert "in.mp4: damaged: " in source.ended_early
    assert 25 <= len(read_clip(tmp_path / "out.mp4").frames) < 50


def sound_only(path):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000, layout="mono")
        block = av.AudioFrame.from_ndarray(np.ones((1, 1024), np.float32), "fltp", "mono")
        block.sample_rate = 48000
        container.mux(stream.encode(block))
        container.mux(stream.encode(None))


def still(path):
    av.VideoFrame.from_ndarray(pictures((64, 48), 1)[0], "rgb24").to_image().save(path)


NO_VIDEOS = {
    "gone.mp4": (None, "no such file"),
    "folder.mp4": (lambda path: path.mkdir(), "expected a video, got a folder"),
    "empty.mp4": (lambda path: path.write_bytes(b""), "not a video in a format that can be read"),
    "noise.mp4": (lambda path: path.write_bytes(b"Dear diary" * 99), "not a video"),
    "note.txt": (lambda path: path.write_text("Dear diary\n" * 99), "expected a video, got text"),
    "photo.png": (still, "got a still picture; paint still pictures with stylekernels stylize"),
    "song.m4a": (sound_only, "expected a stream of moving pictures, got audio"),
    "tiny.mp4": (
        lambda path: make_clip(path, size=(64, 8)),
        "expected at least 16 pixels on each side, got 64x8",
    ),
}


@pytest.mark.parametrize("name", NO_VIDEOS)
def test_what_is_no_video_is_refused(tmp_path, name):
    make, message = NO_VIDEOS[name]
    if make is not None:
        make(tmp_path / name)
    with pytest.raises(VideoError) as error:
        VideoSource(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: ")
    assert message in str(error.value)


def test_an_address_is_no_file():
    with pytest.raises(VideoError, match="no such file; addresses are not read: download it first"):
        VideoSource("https://example.org/clip.mp4")
    with pytest.raises(VideoError, match=r"no such file$"):
        VideoSource("https.mp4")


def test_a_beginning_after_the_end(tmp_path):
    path = make_clip(tmp_path / "in.mp4")
    with pytest.raises(VideoError, match=r"no picture 9 s after its beginning; it is 0\.48 s long"):
        VideoSource(path, start=9)


@pytest.mark.slow
def test_car_detection(tmp_path, data_dir):
    path = data_dir / "clips" / "car-detection.mp4"
    convert(path, tmp_path / "out.mp4", size=64)
    before, after = read_clip(path), read_clip(tmp_path / "out.mp4")
    assert after.times == before.times
    assert len(after.times) == 377
    assert (after.time_base, after.rate) == (before.time_base, before.rate)
    assert after.duration == before.duration
    assert after.packets == before.packets
    assert after.size == (64, 36)


def test_frames_are_in_order_and_contiguous(tmp_path):
    with VideoSource(make_clip(tmp_path / "in.mp4", turn=(90,))) as source:
        frames = [item for item in source if isinstance(item, Frame)]
    assert [frame.time for frame in frames] == [Fraction(i, 25) for i in range(12)]
    assert {frame.duration for frame in frames} == {Fraction(1, 25)}
    assert all(frame.rgb.flags.c_contiguous and frame.rgb.shape == (64, 48, 3) for frame in frames)
