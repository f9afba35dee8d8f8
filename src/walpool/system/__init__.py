"""The one room that talks to the operating system: files, locks, shared words, processes, clock.

Every call goes through `calls`, so that a test can record or fail each of them.
"""

import sys

if sys.platform not in ("linux", "darwin"):
    raise ImportError("walpool runs on Linux and macOS: it needs flock, O_NOFOLLOW and shared mappings")
