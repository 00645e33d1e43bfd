"""Which videos hold what they promise, as PyAV alone sees it."""

from pathlib import Path

import av


def packets_agree(path: Path) -> bool:
    """Whether the times of the packets that are shown are those of the decoded frames."""
    av.logging.set_level(None)
    try:
        with av.open(f"file:{path}", metadata_errors="ignore") as container:
            stream = container.streams.best("video")
            if stream is None:
                return False
            packets = [p for p in container.demux(stream) if p.size]
            times = sorted(p.pts for p in packets if not p.is_discard and p.pts is not None)
            index = stream.index
        with av.open(f"file:{path}", metadata_errors="ignore") as container:
            stream = container.streams[index]
            frames = []
            for packet in [p for p in container.demux(stream) if p.size]:
                frames += stream.codec_context.decode(packet)
            frames += stream.codec_context.decode(None)
            return sorted(f.pts for f in frames if f.pts is not None) == times
    except av.error.FFmpegError:
        return False
