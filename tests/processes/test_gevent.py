"""gevent: a writer that was made before the program was patched, as by a server that loads it before it forks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import DEADLINE_S, ROOT, read_log
from walpool import SyncMode

SERVER = """
import os, sys
from walpool import SyncMode, WALWriter

writer = WALWriter(sys.argv[1], SyncMode(sys.argv[2]), 4096 if sys.argv[2] == "normal" else 1 << 20)
if os.fork() == 0:
    from gevent import monkey

    monkey.patch_all()
    import gevent

    def request(number):
        for turn in range(50):
            writer.put(b"%d:%d" % (number, turn), b"x" * 900)
            gevent.sleep(0)

    gevent.joinall([gevent.spawn(request, number) for number in range(8)])
    writer.close()
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", list(SyncMode))
def test_greenlets_append_through_a_writer_that_was_made_before_the_patch(log: Path, mode: SyncMode) -> None:
    pytest.importorskip("gevent")
    ran = subprocess.run(
        [sys.executable, "-c", SERVER, str(log), mode.value],
        cwd=ROOT, timeout=DEADLINE_S, check=False, capture_output=True, text=True, env={**os.environ},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert len({entry.key for entry in read_log(log)}) == 8 * 50
