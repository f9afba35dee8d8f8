"""Writes docs/format.md from the code: the layout tables are the docstrings that stand beside the structs.

`python tools/format_doc.py` writes the page, `--check` compares it; a test does the same, so page and code agree.
"""

import argparse
import sys
from pathlib import Path
from types import ModuleType

from crc32c import crc32c

from walpool.format import entry, frame, header, names
from walpool.format.body import ALONE_MARKER
from walpool.format.entry import WALEntry, encode_entries
from walpool.format.frame import FRAME_REST, seal
from walpool.format.header import WALHeader

PAGE = Path(__file__).resolve().parent.parent / "docs" / "format.md"
MARKER = 0x5EEDF00D
CREATED_NS = 1_000_000_000 * 1_767_225_600  # 2026-01-01


def example() -> tuple[bytes, list[tuple[int, int, str]]]:
    """A whole segment of one batch, and what each range of its bytes is."""
    head = WALHeader(created_at=CREATED_NS, sequence=3, first_lsn=41, durable_lsn=40, marker=MARKER).encode()
    body, count, _ = encode_entries([WALEntry.put(b"user:1", b"ada", 7), WALEntry.delete(b"user:2", 8)])
    rest = FRAME_REST.pack(len(body), count, 41, CREATED_NS + 5, 40, len(body), 0, 2)
    data = head + seal(MARKER, crc32c(body, MARKER), rest, body)
    parts = [
        (0, 8, "magic"),
        (8, 10, "version 1.0"),
        (10, 12, "flags"),
        (12, 16, "header_size 64"),
        (16, 20, "header_crc"),
        (20, 24, "entries_offset 64"),
        (24, 32, "created_at"),
        (32, 40, "sequence 3"),
        (40, 48, "first_lsn 41"),
        (48, 56, "durable_lsn 40"),
        (56, 60, "marker 0x5eedf00d"),
        (60, 64, "reserved"),
        (64, 68, "frame: marker"),
        (68, 72, "crc, seeded with the marker"),
        (72, 76, f"body_length {len(body)}"),
        (76, 80, "count 2"),
        (80, 88, "first_lsn 41"),
        (88, 96, "appended_at"),
        (96, 104, "durable_lsn 40"),
        (104, 108, f"raw_length {len(body)}"),
        (108, 110, "flags: no codec"),
        (110, 112, "writer slot 2"),
        (112, 116, "entry 41: operation 1 (put), key_length 6"),
        (116, 120, "value_length 3"),
        (120, 128, "timestamp 7"),
        (128, 134, "key `user:1`"),
        (134, 137, "value `ada`"),
        (137, 141, "entry 42: operation 2 (delete), key_length 6"),
        (141, 145, "value_length 0"),
        (145, 153, "timestamp 8"),
        (153, 159, "key `user:2`"),
    ]
    assert [start for start, _, _ in parts[1:]] == [end for _, end, _ in parts[:-1]], "the parts touch"
    assert parts[-1][1] == len(data), "the parts cover the segment"
    return data, parts


def table(module: ModuleType) -> str:
    """The module's docstring: its sentence as prose, its layout as a literal block."""
    lines = (module.__doc__ or "").strip().splitlines()
    out: list[str] = []
    inside = False
    for line in lines:
        indented = line.startswith("    ")
        if indented and not inside:
            out.append("```text")
        if inside and line and not indented:
            while out[-1] == "":
                out.pop()
            out += ["```", ""]
        inside = indented or (inside and not line)
        out.append(line[4:] if indented else line)
    if inside:
        out.append("```")
    return "\n".join(out)


def render() -> str:
    data, parts = example()
    dump = "\n".join(f"{start:4}  {data[start:end].hex(' '):<24}  {what}" for start, end, what in parts)
    return f"""# The format

Little-endian. This page is written from the code by `tools/format_doc.py`, and a test compares the two.

A log is a directory. A segment is a file named by its first LSN, 20 digits: `{names.segment_name(482113)}`.
A segment's frames count only up to the LSN in the next segment's name, also where that one's header cannot be read;
whatever lies behind them is evidence, not data. A header that states another first LSN than the name is not the file's:
it was in these blocks before, and what it states of durability does not count.

## Segment header

{table(header)}

## Frame

{table(frame)}

## Entry

{table(entry)}

Limits: key {entry.MAX_KEY_BYTES} bytes, value {entry.MAX_VALUE_BYTES} bytes.

Zero is never a marker, an operation or a count, so that space which reads as zeros is the end and not a frame. From any
offset, the next marker whose checksum fits is a frame: the marker is random for each segment, and the first LSN must
fit its neighbours.

An entry encoded on its own (`WALEntry.encode`) is a frame with marker {ALONE_MARKER:#x}, LSN 0 and times 0.

## A segment, byte by byte

```text
{dump}
```
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare instead of writing; exit 1 when they differ")
    if parser.parse_args().check:
        if PAGE.read_text() == render():
            return 0
        print(f"{PAGE} is not what the code says; run python tools/format_doc.py", file=sys.stderr)
        return 1
    PAGE.write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main())
