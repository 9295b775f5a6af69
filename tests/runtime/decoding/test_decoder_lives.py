"""The life of decoders beside that of the process that started them."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Command = tuple[str, ...]


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize("name", ["hang.mp4", "a.mp4"])
@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGTERM])
def test_decoders_end_with_their_parent(
    make: Any, misbehaving: Command, name: str, kind: signal.Signals
) -> None:
    """Without a main guard, as scripts are written; in the middle of a video, and idle."""
    script = f"""
    import time
    from xclip_deploy.runtime.decoding import DecoderPool
    from xclip_deploy.runtime.video import FrameSampling, VideoReading

    def note(content_sha256):
        print(*(process.pid for process in pool._running), flush=True)
        return True

    reading = VideoReading(FrameSampling(max_frames=3), 16)
    pool = DecoderPool(reading, workers=1, command={misbehaving!r})
    pool.submit("a", {str(make(name, 0))!r}, note)
    pool.take()
    time.sleep(1000)
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        decoder = int(parent.stdout.readline())
        assert is_running(decoder)
        parent.send_signal(kind)
        parent.wait()
    assert wait_until(lambda: not is_running(decoder))


def test_a_program_ends_though_decoders_are_kept(make: Any) -> None:
    path = make("a.mp4", 0)
    script = f"""
    from xclip_deploy.runtime.decoding import DecoderPool
    from xclip_deploy.runtime.decoding.process import shelf
    from xclip_deploy.runtime.video import FrameSampling, VideoReading

    with DecoderPool(VideoReading(FrameSampling(max_frames=3), 16), workers=1) as pool:
        pool.submit("a", {str(path)!r})
        print(len(pool.take()[1].frames.frames))
    print(*(process.pid for process in shelf._idle))
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    count, pid = map(int, done.stdout.split())
    assert count == 2
    assert wait_until(lambda: not is_running(pid))


def test_a_forked_process_starts_its_own(make: Any) -> None:
    path = make("a.mp4", 0)
    script = f"""
    import os
    from xclip_deploy.runtime.decoding import DecoderPool
    from xclip_deploy.runtime.video import FrameSampling, VideoReading

    def read():
        with DecoderPool(VideoReading(FrameSampling(max_frames=3), 16), workers=1) as pool:
            pool.submit("a", {str(path)!r})
            _, content = pool.take()
        return content.frames.frames.sum()

    expected = read()
    child = os.fork()
    if child == 0:
        os._exit(0 if read() == expected else 1)
    assert read() == expected
    print(os.waitpid(child, 0)[1])
    """
    command = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "0\n", done.stderr
