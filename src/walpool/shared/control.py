"""The control block: what every process of a log maps and agrees on. A cache: each field can be read from segments.

Where the tail is and what is durable stands here and nowhere else in memory. Layout, in 64-bit words of the machine's
byte order. One writer per word; `stored under` names its lock:

    word  name            stored under   meaning
       0  magic           creation       "WALPCTRL"
       1  layout          creation       version of this table
       2  size            creation       bytes of the block
     3-4  boot id         creation       the block is void after a reboot
       5  generation      creation       random: which rebuild this is
       6  stop, first     creation/sync  32 bits. 0; RETIRED: replaced by a newer block; POISONED: a sync failed
       6  stop, second    append         32 bits. 1 while a rotation is under way: a killed one leaves it so
       7  identity crc    creation       CRC32C of words 0-5 and 8-12
     8-9  device, inode   creation       of the control file itself: a copied directory is not the original
   10-12  lock inodes     creation       of append.lock, sync.lock, slots.lock: a replaced lock file is noticed
      16  commit          append         which state copy counts (commit & 1), and how often it changed
      17  intent          append         low 48 bits: commit + 1 while an append is under way: a killed one leaves it
                                         so; high 16 bits: the slot of the writer that set it, or NOBODY
      24  durable LSN     sync           everything at or below it is on disk
      25  syncs           sync           how many syncs leaders made
      26  sync time       sync           ns they took together
      27  leading         sync           slot + 1 of the leader at work (a killed one leaves it; the lock decides)
      28  last sync       sync           ns the last one took: how long it is worth not looking
      29  expected        sync           batches it covered or that came meanwhile: how many the next leader waits for
      30  synced batches  sync           of the log's batches, how many are durable
      31  sync errno      sync           why the log is poisoned
   32-42  state A         append         see LogState, field by field
   48-58  state B         append
      64  growth waited   by who waits   1: somebody sleeps until the log grows (wakeups.py)
      65  growth woken    by who wakes   32 bits of the commit word when sleepers were woken last
      72  sync waited     by who waits   1: somebody sleeps until a sync is over
      73  sync woken      by who wakes   32 bits of the number of syncs when sleepers were woken last
  512-..  slot pids       slot's byte    of the writer in slot n, for people: low 32 bits its process id, high 32 bits
                                         the low ones of its pid namespace, where alone that is a process; 0: unknown

Holds: a writer fills the state copy that `commit & 1` does not name and then stores commit + 1; that one store
publishes everything, and a process killed anywhere before it changed nothing. Words are stored whole, one by one:
readers take no lock, and see the old word or the new one.
"""

import struct
from typing import NamedTuple

from walpool.errors import UnsafeLog, WALError
from walpool.format.names import APPEND_LOCK, CONTROL, MAX_LSN, SLOTS_LOCK, SYNC_LOCK
from walpool.native.select import crc32c
from walpool.system import processes
from walpool.system.files import CREATE, READ, WRITE, Directory, File
from walpool.system.forks import reopen_after_fork
from walpool.system.shared_words import WORD, SharedWords, allocate

MAGIC = int.from_bytes(b"WALPCTRL", "big")
LAYOUT = 1
_MAGIC, _LAYOUT, _SIZE, _BOOT, _GENERATION = 0, 1, 2, 3, 5
STOP = 6
_CRC, _DEVICE, _INODE, _LOCK_INODES = 7, 8, 9, 10
_HEAD_BYTES = 13 * WORD
LOCKS = (APPEND_LOCK, SYNC_LOCK, SLOTS_LOCK)
COMMIT, INTENT = 16, 17
INTENT_SLOT_BITS = 48
NOBODY = (1 << 16) - 1  # in place of a slot: whoever set it is dead, and its slot may be another's by now
DURABLE, SYNCS, SYNC_NS, LEADING, LAST_SYNC_NS, EXPECTED, SYNCED_BATCHES, SYNC_ERRNO = range(24, 32)
COPIES = (32 * WORD, 48 * WORD)  # byte offsets of state A and B
GROWTH, SYNC_OVER = 64, 72  # of Wakeups; each in a cache line of its own
SLOT_PIDS = 512
SLOT_ROWS = 1024
CONTROL_BYTES = (SLOT_PIDS + SLOT_ROWS) * WORD

RETIRED, POISONED = 1, 2
STOPPED, ROTATING = 2 * STOP, 2 * STOP + 1  # the halves of the word, in `halves`; an append looks at both at once


class LogState(NamedTuple):
    """Where the log stands: one copy of it is in force at any moment."""

    segment: int  # first LSN of the active segment
    sequence: int  # file sequence number of the active segment: one more than there were rotations
    marker: int  # of the active segment
    tail: int  # offset one past its last frame
    next_lsn: int  # the LSN the next entry gets
    last_append_ns: int  # appended_at of the last frame
    entries: int  # appended in the life of the log
    batches: int
    bytes: int  # of frames
    max_entry_bytes: int  # 16 + key + value of the largest entry
    last_frame: int  # offset of the last frame in the active segment, 0 when it has none


def known_segments(segments: list[int], state: LogState | None) -> list[int]:
    """Of a log's segments those up to the active one, all without a state: a later one is a rotation's, half done."""
    return [first for first in segments if state is None or first <= state.segment]


STATE = struct.Struct("=11Q")
assert STATE.size == len(LogState._fields) * WORD <= COPIES[1] - COPIES[0]
_LEAST_BYTES = COPIES[1] + STATE.size  # of a block of any layout
_MOST_BYTES = 1 << 20


# The one reason after which nobody knows in which order the segments were written and synced: so all of them are read.
COPIED = "the control block is a copy of another log's"
# What every layout has says that it is this log's and of this boot: so another version of walpool may have it open.
OTHER_LAYOUT = "the control block has another layout"
OTHER_VERSION = "another version of walpool has this log open: close every writer of it, and open it again"
OPEN_IT = (
    "open the log once with a writer (`walpool checkpoint LOG 0` does), or read it as it is (`walpool stat`, `cat` and"
    " `verify` do)"
)


class ControlUnusable(WALError):
    """The control block is missing, foreign, damaged, of another boot, or replaced: only segments can be read.

    What to do: retry once a writer has opened the log, which rebuilds the block; figures (WALMetrics) are there again
    then. Readers do without it.

    Attributes:
        reason: why it cannot be used.
        path: the log's directory, or "" where nobody said.
    """

    def __init__(self, reason: str, path: str = "") -> None:
        super().__init__(f"{path}: {reason}, so nobody says what goes on there: {OPEN_IT}" if path else reason)
        self.reason = reason
        self.path = path


class Control:
    """A mapped control block that was found to be this log's, of this boot, and in force."""

    def __init__(self, file: File, shared: SharedWords) -> None:
        self.file = file
        self.writable = not shared.bytes.readonly
        self.words = shared.words
        self.bytes = shared.bytes
        self.halves = shared.bytes.cast("I")
        reopen_after_fork(self)

    @classmethod
    def attach(cls, directory: Directory, *, writable: bool) -> "Control":
        """Raises ControlUnusable with the reason; takes no lock and changes nothing."""
        try:
            file = directory.open(CONTROL, WRITE if writable else READ)
        except FileNotFoundError:
            raise ControlUnusable("there is no control block", directory.path) from None
        try:
            if file.stat.st_size != CONTROL_BYTES:  # before mapping: a touch past the end is SIGBUS
                why = _problem_of(file.read(_HEAD_BYTES, 0), file)
                assert why is not None, "a block of that size is of another layout, at best"
                raise ControlUnusable(why, directory.path)
            control = cls(file, SharedWords(file, CONTROL_BYTES, writable=writable))
        except BaseException:
            file.close()
            raise
        problem = control._problem()
        if problem is not None:
            control.close()
            raise ControlUnusable(problem, directory.path)
        return control

    def _problem(self) -> str | None:
        return _problem_of(self.bytes, self.file)

    def lock_inode(self, name: str) -> int:
        """Of one of LOCKS, as it was when the block was made."""
        return self.words[_LOCK_INODES + LOCKS.index(name)]

    def state(self) -> LogState:
        """The state in force: without a lock it is read again until the commit word did not move meanwhile.

        That the word is loaded before the copy, and again behind it, x86-64 promises and other processors may not. So
        whoever takes something for damage reads once more under the append lock, where nobody stores.
        """
        words = self.words
        while True:
            commit = words[COMMIT]
            found = STATE.unpack_from(self.bytes, COPIES[commit & 1])
            if words[COMMIT] == commit:
                return LogState._make(found)

    def copy(self, commit: int) -> LogState:
        """The copy that `commit` would put in force. Lock: append."""
        return LogState._make(STATE.unpack_from(self.bytes, COPIES[commit & 1]))

    def publish(self, state: LogState) -> None:
        """Put `state` in force. Lock: append."""
        STATE.pack_into(self.bytes, COPIES[~self.words[COMMIT] & 1], *state)
        self.publish_filled()

    def publish_filled(self) -> None:
        """Put the copy in force that is not. Called by itself for what a killed append has filled in. Lock: append."""
        self.words[COMMIT] += 1  # last: nobody reads past the tail, so a killed writer shows nothing

    def appending_slot(self, commit: int) -> int | None:
        """The slot of the writer whose append is, or was when it was killed, under way since `commit`."""
        slot, intent = divmod(self.words[INTENT], 1 << INTENT_SLOT_BITS)
        return slot if intent == commit + 1 else None

    def forget_who_was_appending(self) -> None:
        """Leave what says that an append was under way, but not whose it was. Lock: append, so it is over."""
        if self.appending_slot(self.words[COMMIT]) is not None:
            self.words[INTENT] |= NOBODY << INTENT_SLOT_BITS

    @property
    def is_retired(self) -> bool:
        """Whether a newer block was put in its place."""
        return self.halves[STOPPED] == RETIRED

    @property
    def is_poisoned(self) -> bool:
        """Whether a sync failed."""
        return self.halves[STOPPED] == POISONED

    @property
    def durable_lsn(self) -> int:
        return self.words[DURABLE]

    def close(self) -> None:
        """Close the file and unmap it: whoever still looks at a word gets ValueError. Also in a forked child."""
        self.file.close()
        for view in (self.words, self.halves, self.bytes):
            view.release()

    after_fork = close


def _problem_of(block: memoryview | bytes, file: File) -> str | None:
    """Why a block that begins so cannot be used; None: it can.

    The layout is judged last: the words before are alike in all layouts, so OTHER_LAYOUT says that these are in order.
    """
    size = file.stat.st_size
    if min(size, len(block)) < _HEAD_BYTES or size < _LEAST_BYTES:
        return f"the control block has {size} bytes, not {CONTROL_BYTES}"
    head = memoryview(block)[:_HEAD_BYTES]
    words, stopped = head.cast("Q"), head.cast("I")[STOPPED]
    if words[_MAGIC] != MAGIC or not words[_LAYOUT]:
        return "the control block is of another kind"
    if words[_SIZE] != size:
        return f"the control block has {size} bytes, not {words[_SIZE]}"
    if words[_CRC] != _identity_crc(head):
        return "the control block's identity is damaged"
    if words[_INODE] != file.stat.st_ino:
        return COPIED
    if (words[_BOOT], words[_BOOT + 1]) != processes.boot_id():
        return "the control block is of another boot"
    if words[_DEVICE] != file.stat.st_dev:  # which another boot may number otherwise
        return COPIED
    if stopped == RETIRED:
        return "the control block was replaced"
    if stopped not in (0, POISONED):
        return "the control block's stop word is damaged"
    if words[_LAYOUT] != LAYOUT or size != CONTROL_BYTES:
        return OTHER_LAYOUT
    return None


def _identity_crc(block: memoryview | bytes) -> int:
    return crc32c(bytes(block[8 * WORD : 13 * WORD]), crc32c(bytes(block[: 6 * WORD])))


class Totals(NamedTuple):
    """What only a control block counts, carried from a void block into the one that replaces it."""

    next_lsn: int = 1  # up to where the void block counted
    batches: int = 0
    max_entry_bytes: int = 0
    syncs: int = 0
    sync_ns: int = 0
    bytes: int = 0


def last_totals(directory: Directory) -> Totals:
    """The totals of the block in place, if it is a whole one, of whatever layout: it may be void in all else."""
    block = _block_in_place(directory)[0]
    if len(block) < _LEAST_BYTES:
        return Totals()
    words = memoryview(block)[: len(block) // WORD * WORD].cast("Q")
    if (words[_MAGIC], words[_SIZE], words[_CRC]) != (MAGIC, len(block), _identity_crc(block)) or not words[_LAYOUT]:
        return Totals()
    state = LogState._make(STATE.unpack_from(block, COPIES[words[COMMIT] & 1]))
    totals = Totals(state.next_lsn, state.batches, state.max_entry_bytes, words[SYNCS], words[SYNC_NS], state.bytes)
    return totals if max(totals) <= MAX_LSN else Totals()  # no log has these: the next opening would refuse them


def durable_when_poisoned(directory: Directory) -> int | None:
    """The durable LSN of a block that is in force but for its layout, and poisoned; None of any other."""
    block, problem = _block_in_place(directory)
    if problem != OTHER_LAYOUT or len(block) < _LEAST_BYTES:
        return None
    head = memoryview(block)[: COPIES[0]]
    return head.cast("Q")[DURABLE] if head.cast("I")[STOPPED] == POISONED else None


def _block_in_place(directory: Directory) -> tuple[bytes, str | None]:
    """Its bytes, empty when there is none that we may read, and why it cannot be used."""
    try:
        file = directory.open(CONTROL)
    except (FileNotFoundError, UnsafeLog):
        return b"", None
    with file:
        block = file.read(_MOST_BYTES, 0)
        return block, _problem_of(block, file)


def create_control(directory: Directory, state: LogState, durable_lsn: int, totals: Totals, file_mode: int) -> None:
    """Make the block under a temporary name and put it in place. Lock: maintenance and append.

    A block that was in place is retired first, so that processes that map it notice.
    """
    generation = processes.random_word()
    name = f"{CONTROL}.{generation:016x}.tmp"
    try:
        with directory.open(name, CREATE, file_mode) as file:
            allocate(file, CONTROL_BYTES)  # a full disk shows here, as LogFull
            image = bytearray(CONTROL_BYTES)
            words = memoryview(image).cast("Q")
            words[_MAGIC], words[_LAYOUT], words[_SIZE], words[_GENERATION] = MAGIC, LAYOUT, CONTROL_BYTES, generation
            words[_BOOT], words[_BOOT + 1] = processes.boot_id()
            words[_DEVICE], words[_INODE] = file.stat.st_dev, file.stat.st_ino
            for at, lock in enumerate(LOCKS, _LOCK_INODES):
                words[at] = (directory.identity(lock) or (0, 0))[1]
            words[_CRC] = _identity_crc(memoryview(image))
            words[DURABLE], words[SYNCS], words[SYNC_NS] = durable_lsn, totals.syncs, totals.sync_ns
            STATE.pack_into(image, COPIES[0], *state)
            file.write(bytes(image), 0)
        retire_existing(directory)
        directory.rename(name, CONTROL)
    except BaseException:
        directory.unlink(name)
        raise


def retire_existing(directory: Directory) -> None:
    """Mark the block that is in place, whatever it is, if it is large enough to carry the mark."""
    try:
        old = directory.open(CONTROL, WRITE)
    except FileNotFoundError:
        return
    with old:
        if old.stat.st_size == CONTROL_BYTES:
            old.write(struct.pack("=I", RETIRED), STOP * WORD)


def leftover(name: str) -> bool:
    """Whether a file is what a killed `create_control` left."""
    return name.startswith(f"{CONTROL}.") and name.endswith(".tmp")
