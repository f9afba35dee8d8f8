"""Room on a full disk: what may go before a log can be opened again, since opening itself takes some.

Holds: only what a retention rule lets go of is removed, and what was made for later; no writer has the log open.
"""

from walpool.errors import LogBusy
from walpool.format.names import PREPARED, SLOTS_LOCK, segment_name
from walpool.opening.opening import maintenance
from walpool.options import Retention, WriterOptions
from walpool.shared import slots
from walpool.shared.catalog import list_segments
from walpool.shared.control import LogState
from walpool.system.files import WRITE, Directory
from walpool.upkeep.retention import PruneReport, prune

_NOTHING = LogState(*[0] * len(LogState._fields))


def make_room(path: str, options: WriterOptions) -> PruneReport:
    """Apply the retention rules (without any: the checkpoint) to a log that cannot be opened for lack of room.

    Raises LogBusy when a writer has it open, which can do that itself, and what `prune` raises.
    """
    with Directory(path) as directory:
        directory.check_ours()
        with maintenance(directory, options):
            return _make_room(directory, options)


def _make_room(directory: Directory, options: WriterOptions) -> PruneReport:
    with directory.open(SLOTS_LOCK, WRITE) as slots_lock:
        if slots.any_alive(slots_lock):
            raise LogBusy(f"{directory.path}: a writer has the log open: let it prune")
    directory.unlink(PREPARED)
    segments = list_segments(directory)
    if not segments:
        return PruneReport((), 0, 1, 0)
    active = _NOTHING._replace(segment=segments[-1], tail=directory.size_of(segment_name(segments[-1])))
    return prune(directory, active, options.retention or Retention())
