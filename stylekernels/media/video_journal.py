"""A journal of encoded pictures, from which the writing of a video goes on after a crash."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import av

_SETTINGS = "CREATE TABLE settings (text TEXT)"
_PACKETS = (
    "CREATE TABLE packets"
    " (pts INTEGER, dts INTEGER, duration INTEGER, is_keyframe INTEGER, data BLOB)"
)


class JournalInUse(OSError):
    """Another process has the journal open."""


class Journal:
    """Packets of an encoder, in an SQLite database.

    A group of pictures becomes part of the journal when it is complete, because its pictures cannot
    be decoded without those before. If the process is killed, the journal has all complete groups.

    Args:
        path: the database. Without ``settings`` it must exist, with them it must be new or empty.
        settings: what the pictures depend on, plain values, of a journal to be begun.

    Attributes:
        path: as given.
        settings: those with which it was begun.
        count: number of pictures in complete groups when it was opened.

    Raises:
        OSError: if the file cannot be read or written, or is no journal.
        JournalInUse: if another process has it open.
        FileExistsError: if a journal is to be begun where there is another file.
    """

    def __init__(self, path: Path, settings: Mapping[str, object] | None = None) -> None:
        self.path, self._finished = path, False
        if settings is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.exists() and path.stat().st_size:
                raise FileExistsError(f"{path}: expected no file here, found one")
        elif not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        with self._failing():
            # The sink writes in a thread of its own.
            self._database = sqlite3.connect(path, timeout=1, check_same_thread=False)
        with contextlib.ExitStack() as undo, self._failing():
            undo.callback(self._database.close)
            self._lock()
            if settings is not None:
                self._database.execute("BEGIN")  # a process that is killed here leaves no half
                self._database.execute(_SETTINGS)
                self._database.execute(_PACKETS)
                self._database.execute("INSERT INTO settings VALUES (?)", [json.dumps(settings)])
                self._database.commit()
            (text,) = self._database.execute("SELECT text FROM settings").fetchone()
            self.settings: dict[str, object] = json.loads(text)
            (self.count,) = self._database.execute("SELECT count(*) FROM packets").fetchone()
            undo.pop_all()

    def packets(self, time_base: Fraction) -> Iterator[av.Packet]:
        """Yield the packets with which it was opened, in the encoder's order.

        Args:
            time_base: that of the encoder which made them, in seconds.
        """
        import av

        with self._failing():
            query = "SELECT * FROM packets ORDER BY rowid LIMIT ?"
            for pts, dts, duration, is_keyframe, data in self._database.execute(
                query, [self.count]
            ):
                packet = av.Packet(data)
                packet.time_base = time_base
                packet.pts, packet.dts, packet.duration = pts, dts, duration
                packet.is_keyframe = bool(is_keyframe)
                yield packet

    def add(self, packet: av.Packet) -> None:
        """Add the encoder's next packet; its times are in units of the encoder's time base."""
        with self._failing():
            if packet.is_keyframe:
                self._database.commit()
            values = [packet.pts, packet.dts, packet.duration, packet.is_keyframe, bytes(packet)]
            self._database.execute("INSERT INTO packets VALUES (?, ?, ?, ?, ?)", values)

    def end(self) -> None:
        """Complete the last group, after the encoder has ended."""
        with self._failing():
            self._database.commit()

    def finish(self) -> None:
        """Note that the video is complete: `close` deletes the journal."""
        self._finished = True

    def close(self) -> None:
        """Close the file; what is in no complete group is lost. Delete it if that is all."""
        self._database.rollback()
        empty = self._database.execute("SELECT 1 FROM packets LIMIT 1").fetchone() is None
        self._database.close()
        if empty or self._finished:
            self.path.unlink(missing_ok=True)

    def _lock(self) -> None:
        """Keep other processes out, until this one closes the file or ends."""
        self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
        try:
            self._database.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
            raise JournalInUse(f"{self.path}: locked, in use by another process") from error
        self._database.commit()

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, TypeError, ValueError) as error:
            raise OSError(f"{self.path}: {error}") from error
