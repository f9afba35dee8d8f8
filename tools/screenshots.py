"""Make docs/monitor.svg and docs/page.png anew: the monitor's screen and the exporter's page, under load.

Needs the extras `monitor` and `prometheus`, and chromium: .venv/bin/python tools/screenshots.py
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from walpool import SyncMode, WALWriter
from walpool.cli.live.screen import MonitorApp
from walpool.cli.live.watch import Watch

DOCS = Path(__file__).resolve().parent.parent / "docs"
WRITERS = {"api-1": SyncMode.NORMAL, "api-2": SyncMode.NORMAL, "billing": SyncMode.FULL}
PAUSE_S = {"api-1": 0.0002, "api-2": 0.002, "billing": 0.002}


def main() -> None:
    with tempfile.TemporaryDirectory(dir=DOCS.parent) as folder, load(f"{folder}/events.wal") as log:
        asyncio.run(shoot_screen(log))
        shoot_page(log)


@contextmanager
def load(log: str) -> Iterator[str]:
    enough = threading.Event()

    def work(writer: WALWriter, pause_s: float) -> None:
        number = 0
        while not enough.is_set():
            writer.put(b"%d" % number, bytes(100))
            number += 1
            time.sleep(pause_s)

    with ExitStack() as stack:
        threads = []
        for name, mode in WRITERS.items():
            writer = stack.enter_context(WALWriter(log, mode, 8 << 20, name=name))
            threads.append(threading.Thread(target=work, args=(writer, PAUSE_S[name])))
        for thread in threads:
            thread.start()
        try:
            yield log
        finally:
            enough.set()
            for thread in threads:
                thread.join()


async def shoot_screen(log: str) -> None:
    with closing(Watch(log)) as watch:
        app = MonitorApp(Path(log).name, watch, 0.1)
        async with app.run_test(size=(110, 24)) as pilot:
            await pilot.pause(6.0)
            picture = app.export_screenshot()
    (DOCS / "monitor.svg").write_text(
        re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.S)
    )  # nothing from elsewhere


def shoot_page(log: str) -> None:
    # The browser's clock runs fast until the page has drawn its minute and a half: every look has to be a new one.
    code = "from walpool.cli import export, main; export.LOOK_AGAIN_S = 0.0; main.run()"
    export = [sys.executable, "-c", code, "export", log, "--port", "0"]
    with subprocess.Popen(export, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            found = re.search(r"http://\S+:\d+/", server.stderr.readline())
            assert found is not None
            browser = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            shot = [
                "--virtual-time-budget=90000",
                "--window-size=1100,520",
                f"--screenshot={DOCS / 'page.png'}",
                found[0],
            ]
            subprocess.run([*browser, *shot], stderr=subprocess.DEVNULL, timeout=120, check=True)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
