"""What a caller chooses: sync mode, recovery mode, and the options of a writer."""

from dataclasses import dataclass
from enum import Enum

MIB = 1 << 20
DEFAULT_SIZE_LIMIT = 64 * MIB
MAX_SIZE_LIMIT = 4 << 30  # offsets stay far from 2**63 and a frame's length fits its 32-bit field


class SyncMode(Enum):
    """What a successful append has survived when it returns (docs/durability.md has the table).

    Attributes:
        NONE: it is buffered in this process, for `linger_s` at most: lost when the process is killed.
        NORMAL: it is in the kernel's page cache: survives SIGKILL of any process, not a power cut.
        FULL: it is on disk: survives a power cut.
    """

    NONE = "none"
    NORMAL = "normal"
    FULL = "full"


class RecoveryMode(Enum):
    """What to do about damage, when a log is read or recovered. Refused is CorruptLog.

    Attributes:
        TOLERATE_TAIL: a torn tail, which an append leaves that a power cut ended, ends the log; damage in durable bytes
            is refused.
        STRICT: any damage is refused.
        POINT_IN_TIME: the log ends at the first damage, durable or not.
        SALVAGE: skip damaged ranges and keep every intact frame; LSNs have gaps there.
    """

    TOLERATE_TAIL = "tolerate_tail"
    STRICT = "strict"
    POINT_IN_TIME = "point_in_time"
    SALVAGE = "salvage"


@dataclass(frozen=True, slots=True)
class Retention:
    """When sealed segments are removed: as soon as any rule says so, oldest first, never the active one.

    Attributes:
        checkpointed (default True): those of which all entries are at or below the checkpoint.
        max_bytes (default None): of the whole log; the oldest go until it fits. None: as many as there are.
        max_age (default None): seconds since a segment was sealed. None: however old it is.
        max_segments (default None): of the whole log, the active one included. None: as many as there are.
        max_pinned_bytes (default 1 << 30): of the whole log; beyond it cursors, and the pins of readers (WALReader with
            `pin`), keep nothing, so that a forgotten one does not fill the disk.
        cursors (default True): what any cursor has not committed is kept, whatever another rule says.

    Raises:
        TypeError, ValueError: for a rule that cannot be.
    """

    checkpointed: bool = True
    max_bytes: int | None = None
    max_age: float | None = None
    max_segments: int | None = None
    max_pinned_bytes: int = 1 << 30
    cursors: bool = True

    def __post_init__(self) -> None:
        for name in ("checkpointed", "cursors"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be a bool, not {type(getattr(self, name)).__name__}")
        for name, least in (("max_bytes", 0), ("max_segments", 0), ("max_pinned_bytes", 0)):
            value = getattr(self, name)
            if value is None and name != "max_pinned_bytes":
                continue
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"{name} must be an int, not {type(value).__name__}")
            if value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if self.max_age is not None:
            if not isinstance(self.max_age, (int, float)) or isinstance(self.max_age, bool):
                raise TypeError(f"max_age must be a number of seconds, not {type(self.max_age).__name__}")
            if not 0 <= self.max_age < float("inf"):
                raise ValueError(f"max_age must be a number of seconds from 0, not {self.max_age}")


@dataclass(frozen=True, slots=True)
class WriterOptions:
    """Everything a pickled or forked writer needs to open the log again."""

    sync_mode: SyncMode = SyncMode.NORMAL
    size_limit: int = DEFAULT_SIZE_LIMIT  # bytes of one segment
    lock_timeout: float | None = None  # seconds; None waits in the kernel
    mode: int = 0o600  # of every file; directories get the matching x bits
    metrics: bool = True
    name: str | None = None
    recovery: RecoveryMode = RecoveryMode.TOLERATE_TAIL
    buffer_bytes: int = 256 * 1024  # SyncMode.NONE: appended when this many bytes are buffered,
    linger_s: float = 0.05  # or this long after the first of them
    retention: Retention | None = None
    sync_interval_s: float | None = None  # SyncMode.NORMAL: an append is durable after twice this and two syncs at most
    mapped: bool = False  # SyncMode.NORMAL: frames are stored into mapped segments
    allow_network_fs: bool = False  # open it even where locks and shared memory do not hold between machines
    allow_other_files: bool = False  # make a log in a directory that holds other files
