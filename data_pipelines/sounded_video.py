"""An mp4 that ordinary players open: H.264 in yuv420p, even sides, its index in front, with the sound of another file.

Every frame has a time of its own, on the clock of the file that the sound comes from, so that footage whose rate wavers
stays beside its sound. AAC and MP3 out of mp4, mov and Matroska files are copied, packet by packet; any other sound is
encoded as AAC, gaps filled with silence. Sound that cannot be decoded is left out, and `notes` says so.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer

from mien.data_pipelines.crop_files import UNFINISHED
from mien.data_pipelines.video_files import CONTAINERS

H264 = {"crf": "20", "preset": "veryfast"}
CLOCK = 90_000  # of the picture's times, a second
COPIED = ("aac", "mp3")  # what mp4 players know
COPIED_FROM = ("mov", "matroska")
AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)
AHEAD_SECONDS = 0.5  # by which sound is written before the picture


class SoundedVideo:
    """An mp4 in the making, under a name that says so until `close` gives it its own."""

    def __init__(self, path: Path, size: tuple[int, int], fps: float, sound_of: Path | None) -> None:
        """Begin a video of even `size`, height and width; `sound_of` names a file whose first sound track it gets."""
        assert size[0] % 2 == 0 and size[1] % 2 == 0
        self.notes: dict[str, str] = {}
        self._path, self._part = path, path.with_name(path.name + UNFINISHED)
        self._source, self._sound = _sound(sound_of, self.notes)
        began = self._source.start_time if self._source else None
        self._began = None if began is None else began / av.time_base  # of the clock that both follow
        self._output = av.open(f"file:{self._part}", "w", format="mp4", options={"movflags": "+faststart"})
        self._video = self._output.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options=H264)
        self._video.height, self._video.width, self._video.pix_fmt = *size, "yuv420p"
        self._video.time_base = self._video.codec_context.time_base = Fraction(1, CLOCK)
        self._packets = self._copied() if self._sound and self._copies() else self._encoded()
        self._waiting = next(self._packets, None)
        self._last = -1

    def add(self, picture: np.ndarray, time: float) -> float:
        """Show a picture, uint8 RGB `(h, w, c)`, from `time` on, seconds on the source's clock; return it on ours."""
        self._began = time if self._began is None else self._began
        now = round((time - self._began) * CLOCK)
        if now <= self._last:  # a clock that was set back: the sound goes its own way from here on
            self.notes.setdefault("sound", "not beside the picture where the source's clock goes back")
            now = self._last + CLOCK // 1000
        self._last = now
        self._write_sound(now / CLOCK + AHEAD_SECONDS)
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
        frame.pts, frame.time_base = now, Fraction(1, CLOCK)
        self._output.mux(self._video.encode(frame))
        return now / CLOCK

    def close(self) -> None:
        """Write what waits, and give the file its name."""
        # Sound ends with the picture, or a damaged video would play on in black.
        self._write_sound(self._last / CLOCK + AHEAD_SECONDS)
        self._output.mux(self._video.encode())
        self._output.close()
        if self._source:
            self._source.close()
        self._part.replace(self._path)

    def _write_sound(self, until: float) -> None:
        while self._waiting is not None:
            packet = self._waiting
            if packet.pts is not None and packet.time_base and float(packet.pts * packet.time_base) > until:
                return
            self._output.mux(packet)
            self._waiting = next(self._packets, None)

    def _copies(self) -> bool:
        assert self._source and self._sound
        of = self._source.format.name.split(",")
        return self._sound.codec_context.codec.canonical_name in COPIED and any(name in of for name in COPIED_FROM)

    def _shifted(self, packet: av.Packet) -> av.Packet:
        if packet.time_base and self._began:
            shift = round(self._began / packet.time_base)
            packet.pts = None if packet.pts is None else packet.pts - shift
            packet.dts = None if packet.dts is None else packet.dts - shift
        return packet

    def _copied(self) -> Iterator[av.Packet]:
        """Yield the sound's packets as they are, in order."""
        assert self._source and self._sound
        stream = self._output.add_stream_from_template(self._sound)
        last: int | None = None
        for packet in _demuxed(self._source, self._sound, self.notes):
            if packet.dts is None or packet.is_corrupt or (last is not None and packet.dts <= last):
                continue
            last = packet.dts
            packet.stream = stream
            yield self._shifted(packet)

    def _encoded(self) -> Iterator[av.Packet]:
        """Yield the sound as AAC."""
        if not self._sound or not self._source:
            return
        given = self._sound.codec_context
        rate = given.sample_rate if given.sample_rate in AAC_RATES else AAC_RATES[-1]
        layout = "mono" if given.layout.nb_channels == 1 else "stereo"
        stream = self._output.add_stream("aac", rate=rate, layout=layout)
        graph = av.filter.Graph()
        steps = [
            graph.add_abuffer(template=self._sound),
            graph.add("aresample", "async=1000"),  # fills gaps, so that the sound stays in its time
            graph.add("aformat", f"sample_fmts=fltp:sample_rates={rate}:channel_layouts={layout}"),
            graph.add("asetnsamples", "n=1024:p=0"),
            graph.add("abuffersink"),
        ]
        graph.link_nodes(*steps).configure()
        for packet in _demuxed(self._source, self._sound, self.notes):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue  # a damaged packet; the gap is filled
            for frame in frames:
                try:
                    graph.push(frame)
                except av.FFmpegError as error:  # of another rate or layout than the sound began with
                    self.notes["sound"] = f"ends early: {error.strerror}"
                    return
                yield from map(self._shifted, self._filtered(graph, stream))
        graph.push(None)
        yield from map(self._shifted, self._filtered(graph, stream))
        yield from map(self._shifted, stream.encode(None))

    @staticmethod
    def _filtered(graph: av.filter.Graph, stream: AudioStream) -> Iterator[av.Packet]:
        while True:
            try:
                frame = graph.pull()
            except (av.BlockingIOError, av.EOFError):
                return
            assert isinstance(frame, av.AudioFrame)
            yield from stream.encode(frame)


def _sound(path: Path | None, notes: dict[str, str]) -> tuple[InputContainer | None, AudioStream | None]:
    """Open a file's first sound track, or say in `notes` why there is none."""
    if path is None or not path.is_file():
        return None, None
    try:
        source = av.open(f"file:{path}", container_options=CONTAINERS, metadata_errors="replace")
    except (av.FFmpegError, OSError):
        return None, None  # an image, say
    for sound in source.streams.audio:
        if sound.codec_context is not None and sound.codec_context.sample_rate and sound.codec_context.layout:
            return source, sound
    if source.streams.audio:
        notes["sound"] = "left out: its codec is none that FFmpeg knows here"
    return source, None


def _demuxed(source: InputContainer, sound: AudioStream, notes: dict[str, str]) -> Iterator[av.Packet]:
    packets = source.demux(sound)
    while True:
        try:
            packet = next(packets, None)
        except (av.FFmpegError, OSError) as error:
            notes["sound"] = f"ends early: {error.strerror or error}"
            return
        if packet is None:
            return
        yield packet
