"""What runs of the proof have found, and what became of it: the head of docs/reliability-report.md is made of this.

A finding that no line here tells of is open. Whoever mends one adds the line, with a test that failed before, and runs
`python tools/prove_doc.py`.
"""

from __future__ import annotations

from typing import NamedTuple


class Mended(NamedTuple):
    """A finding that is no longer open.

    Attributes:
        said: words of its text, with the seed, that no other finding has.
        what: what went wrong, in a sentence for people who do not read tracebacks.
        by: the subject of the commit that mended it, or the version.
        test: the test that failed before.
        lost: how many acknowledged entries were lost.
    """

    said: str
    what: str
    by: str
    test: str
    lost: int = 0


MENDED: tuple[Mended, ...] = (
    Mended(
        said="prove(pathlib.Path(tempfile.mkdtemp()), 2141913303, 10000)",
        what="An opening that a signal handler's exception interrupted kept its writer slot until the garbage collector"
        " came by. Meanwhile a log that had to be recovered could not be opened: UnsafeLog, as if a writer lived.",
        by="appender: an opening that is interrupted frees its slot at once",
        test="tests/crash/test_interrupts.py"
        "::test_an_interrupt_before_each_line_of_a_new_or_closing_writer_leaves_nothing_held",
    ),
)


def mended(finding: str) -> Mended | None:
    """What became of a finding, or None while it is open."""
    return next((each for each in MENDED if each.said in finding), None)
