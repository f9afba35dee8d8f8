"""Bugs that the harness must find: each is one small change of walpool's source.

`find` lets one part of the harness loose on a walpool that has it, and says whether that found something. A bug that is
no longer found, or whose place in the source is no longer there, fails the tests: the harness has a hole then.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import NamedTuple

from tests.crash import failpoints, finders
from tests.support import ROOT

SOURCE = ROOT / "src" / "walpool"
BUDGET_S = 100
STATES = 2_500  # crash states that a bug may hide from; each was found within so many from ten seeds of ten
SEED = 1
FOUND = 1  # exit code of the explorer and of pytest alike


class Bug(NamedTuple):
    name: str
    file: str  # below src/walpool
    old: str  # there exactly once
    new: str
    finder: str  # "cut: " and scripts of power_cut, or what pytest is given
    more: tuple[tuple[str, str], ...] = ()  # further places of the same change


CORE = "tests/crash/test_core_place.py"
HOSTILE = "tests/native/test_place.py"
CALLS = "tests/crash/test_kill_sweep.py -k little-call"

BUGS = [
    # What a power cut shows
    Bug(
        "no directory sync after a rotation",
        "write/committer.py",
        "            self._or_poison(directory.sync)\n",
        "            pass\n",
        "cut: turns",
    ),
    Bug(
        "a dead directory is believed to be synced",
        "system/files.py",
        "    calls.fstat(fd)  # on an XFS",
        "    pass  # on an XFS",
        "tests/system/test_files.py -k not_synced",
    ),
    Bug(
        "FULL is acknowledged before its sync",
        "write/handle.py",
        "            self._settle(session, range(appended[0], appended[0] + body.entries))\n",
        "            pass\n",
        "cut: turns",
    ),
    Bug(
        "sealed segments are left out of a sync",
        "write/committer.py",
        "if state.segment > durable_lsn + 1:",
        "if False:",
        "cut: turns",
    ),
    Bug(
        "the durable LSN is of after the sync",
        "write/committer.py",
        "words[DURABLE] = state.next_lsn - 1",
        "words[DURABLE] = self._log.control.state().next_lsn - 1",
        "cut: at once",
    ),
    Bug(
        "a failed sync is tried again",
        "write/committer.py",
        "        try:\n            sync()\n        except OSError as error:",
        "        try:\n            try:\n                sync()\n            except OSError:\n                sync()\n"
        "        except OSError as error:",
        "cut: failed sync",
    ),
    Bug(
        "what a failed sync was for is not written anew",
        "opening/recovery.py",
        "    if doubtful_lsn is not None:",
        "    if False:",
        "cut: failed sync",
    ),
    Bug(
        "recovery calls durable what it has not synced",
        "opening/recovery.py",
        "            _sync_segment(directory, scan.first_lsn)\n",
        "            pass\n",
        "cut: rebuilt",
    ),
    Bug(
        "what recovery moved and made is not durable when it ends",
        "opening/aside.py",
        "    directory.rename(NEW_SEGMENT, segment_name(first_lsn))\n    directory.sync()\n",
        "    directory.rename(NEW_SEGMENT, segment_name(first_lsn))\n",
        "cut: new log",
    ),
    Bug(
        "a checkpoint is renamed before it is on disk",
        "shared/checkpoint.py",
        "            file.sync()\n",
        "            pass\n",
        "cut: prune",
    ),
    Bug(
        "prune goes by a checkpoint that is not durable",
        "shared/checkpoint.py",
        "    directory.rename(_NEW, CHECKPOINT)\n    directory.sync()",
        "    directory.rename(_NEW, CHECKPOINT)",
        "cut: prune",
    ),
    Bug(
        "a checkpoint covers what is not durable",
        "upkeep/checkpoint.py",
        "    settle(lsn)\n",
        "",
        "cut: new log",
    ),
    Bug(
        "a recovery leaves a checkpoint that the log does not reach",
        "opening/recovery.py",
        "    if stated < found.next_lsn:\n        return None",
        "    if True:\n        return None",
        "tests/upkeep/test_retention.py -k does_not_reach",
    ),
    Bug(
        "removals are not made durable one by one",
        "upkeep/retention.py",
        "                directory.sync()  # before the next:",
        "                pass  #",
        "cut: prune many",
    ),
    Bug(
        "a prune may leave no segment",
        "upkeep/retention.py",
        "directory.mode_of_files(), durable=True)",
        "directory.mode_of_files(), durable=False)",
        "cut: prune new log",
    ),
    Bug(
        "the path to a new log is not made durable",
        "opening/recovery.py",
        "        sync_path_to(directory)  #",
        "        pass  #",
        "cut: parents",
    ),
    Bug(
        "a short write is taken for a whole one",
        "write/place.py",
        "if written != frame_bytes:",
        "if False:",
        "tests/crash/test_error_sweep.py -k writes",
    ),
    Bug(
        "a trim takes a byte too much",
        "upkeep/prepare.py",
        "segment.file.truncate(end)",
        "segment.file.truncate(end - 1)",
        "cut: turns",
    ),
    # What only the oracle shows: walpool's reader and its writer are of one mind
    Bug(
        "frames tell microseconds",
        "write/place.py",
        "                now = self._time_ns()\n",
        "                now = self._time_ns() // 1000\n",
        "cut: turns",
    ),
    Bug(
        "a recovery that reads no header begins to number segments anew",
        "opening/survey.py",
        " or _sequence_before(directory, segments, scans[0].first_lsn)",
        "",
        "cut: turns, parents",
    ),
    Bug(
        "a recovery goes on in a segment that a rewrite has overtaken",
        "opening/recovery.py",
        "segment.header.sequence == found.sequence and ",
        "",
        "tests/opening/test_recovery.py -k overtaken",
    ),
    Bug(
        "retention by size counts zeros that were written ahead",
        "upkeep/prepare.py",
        "    return frames_end(segment, next_lsn) or size",
        "    return size",
        "tests/crash/test_power_cut.py -k each_rule",
    ),
    Bug(
        "retention by count keeps one too few",
        "upkeep/retention.py",
        "count > rule.max_segments",
        "count >= rule.max_segments",
        "tests/crash/test_power_cut.py -k each_rule",
    ),
    Bug(
        "retention by size is over when the log is as large as the rule says",
        "upkeep/retention.py",
        "total > rule.max_bytes",
        "total >= rule.max_bytes",
        "tests/upkeep/test_retention.py -k each_rule",
    ),
    Bug(
        "a segment is as old as its beginning",
        "upkeep/retention.py",
        "_used_bytes(directory, first_lsn, next_lsn), following.header.created_at)",
        "_used_bytes(directory, first_lsn, next_lsn),\n        open_segment(directory, first_lsn).header.created_at)",
        "tests/crash/test_power_cut.py -k each_rule",
    ),
    Bug(
        "a pin keeps what is behind its segment alone",
        "upkeep/retention.py",
        "        if segment.next_lsn > min(wanted) and",
        "        if segment.first_lsn > min(wanted) and",
        "tests/crash/test_power_cut.py -k each_rule",
    ),
    Bug(
        "the newest of what goes is removed first",
        "upkeep/retention.py",
        "            for segment in sealed[:gone]:\n",
        "            for segment in reversed(sealed[:gone]):\n",
        "cut: rules",
    ),
    Bug(
        "a poisoned log is pruned",
        "upkeep/retention.py",
        "    refuse_poisoned(log.directory, log.control)\n",
        "",
        "tests/crash/test_power_cut.py -k each_rule",
        (("    refuse_poisoned(directory, None)\n", ""),),
    ),
    Bug(
        "what retention removes is noted when it is gone",
        "upkeep/retention.py",
        "            if gone:\n                _note(directory, segments[gone], state.last_append_ns)\n",
        "",
        "cut: rules",
        (
            (
                "bring back an older one than it removed\n",
                "bring back an older one than it removed\n"
                "            if gone:\n                _note(directory, segments[gone], state.last_append_ns)\n",
            ),
        ),
    ),
    # What a death shows
    Bug(
        "published before it is written",
        "write/place.py",
        "words[INTENT] = commit + self._intent",
        "words[INTENT] = commit + self._intent\n"
        "                from walpool.shared.control import LogState\n"
        "                self._log.control.publish(LogState(first, sequence, marker, end, next_lsn + count, now,"
        " entries + count, batches + 1, total_bytes + frame_bytes, max_entry, tail))\n"
        "                commit = words[COMMIT]",
        CALLS,
    ),
    Bug(
        "the state copy that is in force is filled",
        "write/place.py",
        "self._block, COPIES[~commit & 1], first",
        "self._block, COPIES[commit & 1], first",
        CALLS,
    ),
    Bug(
        "a rotation does not say that it is under way",
        "write/appender.py",
        "        self._log.control.halves[ROTATING] = 1 ",
        "        self._log.control.halves[ROTATING] = 0 ",
        "tests/opening/test_opening.py -k rotation_killed",
    ),
    Bug(
        "a half-done move to quarantine is not taken back",
        "opening/recovery.py",
        "    undo_half_moves(directory)\n",
        "",
        "tests/opening/test_recovery.py::test_a_move_to_quarantine_that_was_killed_in_the_middle_is_taken_back",
    ),
    Bug(
        "a block is rebuilt under living writers",
        "opening/opening.py",
        "        if held:\n            return held",
        "        if False:\n            return held",
        "tests/opening/test_control_damage.py::test_no_block_is_rebuilt_under_a_living_writer",
    ),
    Bug(
        "poison in a block of another layout is overlooked",
        "shared/poison.py",
        "durable_when_poisoned(directory) if control is None else None",
        "None",
        "tests/opening/test_other_layouts.py",
    ),
    Bug(
        "a metrics file is made anew under a writer that counts in it",
        "shared/rows_file.py",
        "            if _is_in_use(directory, file, slot):\n",
        "            if False:\n",
        "tests/shared/test_rows_file.py",
    ),
    Bug(
        "a counter that a newer version counts in is another writer's",
        "shared/slot_rows.py",
        "        for at in COUNTERS:  # also",
        "        for at in range(COUNTERS.start, 28):  # also",
        "tests/shared/test_fields.py",
    ),
    Bug(
        "a copy of the state that is half filled in is not known for one",
        "opening/believe.py",
        " and not _half_filled(filled, whole, state):\n",
        ":\n",
        "tests/opening/test_opening.py -k fills_the_state",
    ),
    Bug(
        "who comes to lead behind a failed sync tries another",
        "write/committer.py",
        "        if self._log.control.is_poisoned:\n            raise self._failed()  # since",
        "        if False:\n            raise self._failed()  # since",
        "tests/write/test_sync_modes.py -k just_behind",
    ),
    # What errors and interrupts show
    Bug(
        "a failed sync does not poison the log",
        "write/committer.py",
        "            poison(self._log.directory, self._log.control, error.errno or 5)\n",
        "",
        "tests/write/test_sync_modes.py -k fail",
    ),
    Bug(
        "the lock is taken outside of the try",
        "write/place.py",
        "        with self._mutex:\n            try:\n                if not waits.contended:  # inside",
        "        with self._mutex:\n            self._lock.take(self._lock_fd, 2)\n            try:\n"
        "                if False:  # inside",
        "tests/crash/test_any_bytecode.py -k any_bytecode_leaves",
        (("        self._lock.set_free()\n", "        leave(self._mutex)\n"),),
    ),
    Bug(
        "an interrupted opening keeps its slot",
        "write/appender.py",
        "        self._log = log  # no cycle",
        "        self._me, self._log = self, log  # no cycle",
        "tests/crash/test_interrupts.py -k each_line",
    ),
    Bug(
        "the lock is not freed when an append fails",
        "write/place.py",
        "            finally:\n                self._unlock(self._lock_fd, LOCK_UN)\n            counts",
        "            except Retired:\n                pass\n"
        "            self._unlock(self._lock_fd, LOCK_UN)\n            counts",
        "tests/crash/test_error_sweep.py -k keeps_failing",
        (("        self._lock.set_free()\n", "        leave(self._mutex)\n"),),
    ),
    Bug(
        "an unlock that an exception kept from being done is not done again",
        "system/locks.py",
        "                    self.unlock(self.fd, LOCK_UN)\n                    return\n",
        "                    return\n",
        "tests/crash/test_any_bytecode.py -k audit_hook",
    ),
    Bug(
        "what another thread is just given or closes stays open in a forked child",
        "system/forks.py",
        "            self._lost = close_all_of(self.path)\n",
        "            pass\n",
        "tests/processes/test_forked_anywhere.py -k just_given",
    ),
    Bug(
        "a thread that is inside goes in again",
        "write/writer.py",
        "            if appender.is_ours():",
        "            if False:",
        "tests/processes/test_reentrance.py -k works_or_says_busy",
    ),
    Bug(
        "a limit is compared with the largest entry only",
        "format/entry.py",
        "            if key_bytes > MAX_KEY_BYTES or value_bytes > MAX_VALUE_BYTES:  # each",
        "            if key_bytes + value_bytes > largest and (\n"
        "                key_bytes > MAX_KEY_BYTES or value_bytes > MAX_VALUE_BYTES\n"
        "            ):  # each",
        "tests/format/test_entry.py -k limit",
    ),
    Bug(
        "what is put while the buffer is closed is lost",
        "staging/buffer.py",
        "            self._check_open()\n            if self._bodies and",
        "            if self._bodies and",
        "tests/write/test_closing.py -k put_beside_a_close",
    ),
    Bug(
        "an entry whose put raised stays in the buffer",
        "staging/buffer.py",
        "            leave(self._lock)\n            self._withdraw(body)\n",
        "            leave(self._lock)\n",
        "tests/write/test_interrupted_helpers.py",
    ),
    # What peers show
    Bug(
        "a sync calls durable what no name leads to",
        "write/committer.py",
        "        self._check_name(state.segment, self._synced, sealed=False)\n        self._log.check_path()\n",
        "",
        "tests/processes/test_replaced_files.py -k durable",
    ),
    Bug(
        "a child goes on storing into its parent's block",
        "shared/control.py",
        "        for view in (self.words, self.halves, self.bytes):\n            view.release()\n",
        "",
        "tests/processes/test_forked_anywhere.py -k lets_both_go_on",
    ),
    Bug(
        "the state is read before the lock is taken",
        "write/place.py",
        "                if not waits.contended:  # inside",
        "                stale = words[COMMIT]\n                if not waits.contended:  # inside",
        "tests/processes/test_many_writers.py -k every_entry",
        (
            (
                "                commit = words[COMMIT]\n                (first, sequence, now_marker",
                "                commit = stale\n                (first, sequence, now_marker",
            ),
        ),
    ),
    Bug(
        "a child unlocks what its parent holds",
        "write/handle.py",
        "            session.drop()\n",
        "            for lock in (session.log.append_lock, session.log.sync_lock):\n"
        "                lock.unlock(lock.fd, 8)\n"
        "            session.drop()\n",
        "tests/processes/test_lock_holders.py -k middle_of_an_append",
    ),
    Bug(
        "a child keeps its parent's buffer",
        "write/handle.py",
        "            self.buffer = self._new_buffer()\n",
        "            pass\n",
        "tests/write tests/processes/test_lock_holders.py -k fork",
    ),
    Bug(
        "a replaced lock file is not noticed",
        "write/appender.py",
        "        self._log.check_names(active.segment.file if known else None, in_use)\n",
        "",
        "tests/processes/test_replaced_files.py",
    ),
    Bug(
        "one append is counted twice",
        "write/place.py",
        "counts[BATCHES] = self._batches = self._batches + 1",
        "counts[BATCHES] = self._batches = self._batches + 2",
        "tests/shared/test_slot_rows.py",
    ),
    Bug(
        "who could not append shows as the holder of the lock",
        "write/appender.py",
        "            self._words[INTENT] = 0  #",
        "            pass  #",
        "tests/shared/test_slot_rows.py -k could_not_append",
    ),
    # What clocks, counts and forks show
    Bug(
        "an append during the interval's sync is forgotten",
        "write/committer.py",
        "            and_then()  # both first: an append that comes during the sync needs the next one\n"
        "            try:\n                self.settle(self._log.control.state().next_lsn - 1, background=True)\n",
        "            try:\n                self.settle(self._log.control.state().next_lsn - 1, background=True)\n"
        "                and_then()\n",
        "tests/write/test_sync_modes.py -k while_the_interval",
    ),
    Bug(
        "a rotation that is over is finished once more",
        "write/appender.py",
        "            if state.next_lsn > state.segment and directory.identity",
        "            if directory.identity",
        "tests/write/test_steered_clocks.py",
    ),
    Bug(
        "a slow writer never looks at names",
        "write/place.py",
        "                    or next_lsn >= self.next_look_lsn or not self.looked_ns <= now < self.next_look_ns",
        "                    or next_lsn >= self.next_look_lsn",
        "tests/write/test_steered_clocks.py",
    ),
    Bug(
        "a timed wait counts for itself alone",
        "write/waits.py",
        "            self._timed_take(TIMED_WAITS)",
        "            self._timed_take(1)",
        "tests/write/test_steered_clocks.py",
    ),
    # Cursors
    Bug(
        "a cursor's commit is acknowledged before its sync",
        "consume/cursor.py",
        "        if sync:\n            committed.sync()\n",
        "        pass\n",
        "cut: cursor",
    ),
    Bug(
        "retention goes by a commit that is not on disk",
        "shared/cursors/positions.py",
        "                if sync:\n                    file.sync()\n",
        "",
        "tests/consume/test_cursor.py -k made_durable",
    ),
    Bug(
        "a cursor is handed what is not durable",
        "consume/feed.py",
        "        taken = reading.take(self._consumer.durable_lsn)\n",
        "        taken = reading.take()\n",
        "tests/consume/test_cursor.py -k durable",
        (("        self._consumer.settle(last_lsn)\n        return True\n", "        return True\n"),),
    ),
    Bug(
        "a recovery leaves a cursor beyond the log's end",
        "opening/recovery.py",
        "    cursors = take_back(directory, found.next_lsn, file_mode)\n",
        "    cursors: list[tuple[str, int]] = []\n",
        "tests/consume/test_cursor.py -k takes_it_back",
    ),
    Bug(
        "a commit is written over the one that is on disk",
        "consume/committed.py",
        "            write_copy(self._file, 1 - self._copy, position)\n",
        "            write_copy(self._file, self._copy, position)\n",
        "tests/consume/test_cursor.py -k never_write_over",
        (("= self.position, 1 - self._copy\n", "= self.position, self._copy\n"),),
    ),
    Bug(
        "after a failed sync the same page is believed to be written",
        "consume/committed.py",
        "        self._must_renew = True\n",
        "        pass\n",
        "tests/consume/test_cursor.py -k whose_sync_fails",
    ),
    Bug(
        "a part is let go of with its entries in hand",
        "consume/parts.py",
        "            if held.leaving and held.is_done:\n                self.let_go(part)\n        self._alone_since",
        "            if held.leaving:\n                self.let_go(part)\n        self._alone_since",
        "tests/consume/test_group.py -k let_go",
    ),
    Bug(
        "a part that is taken over is not read again from its last commit",
        "consume/group.py",
        "                self.restart()  # entries of the part that came were read past\n",
        "                pass\n",
        "tests/consume/test_group.py -k comes_again",
    ),
    Bug(
        "a pin is let go before the next is held",
        "shared/pins.py",
        "            if not self._locks.share(first_lsn):  # the new one first: there is no moment without a pin\n"
        "                return False\n"
        "            if self.at:\n                self._locks.release(self.at)\n",
        "            if self.at:\n                self._locks.release(self.at)\n"
        "            if not self._locks.share(first_lsn):\n"
        "                return False\n",
        "tests/shared/test_pins.py",
    ),
    Bug(
        "a recovery asks the last segment alone for the time",
        "opening/survey.py",
        "max(scan.last_append_ns for scan in scans)",
        "scans[-1].last_append_ns",
        "tests/write/test_steered_clocks.py",
    ),
    Bug(
        "a child waits for an opening of its parent's",
        "write/handle.py",
        "        self._opening = mutex()  # another thread may have held the old one\n",
        "        pass\n",
        "tests/write/test_steered_clocks.py",
    ),
    Bug(
        "a segment is as old as the last append",
        "write/rotation.py",
        "created_at=clock.time_ns(), ",
        "created_at=state.last_append_ns, ",
        "tests/write/test_steered_clocks.py",
    ),
    Bug(
        "a clock that was set back keeps names from being compared",
        "write/place.py",
        "not self.looked_ns <= now < self.next_look_ns",
        "now >= self.next_look_ns",
        "tests/write/test_steered_clocks.py -k whatever",
    ),
    Bug(
        "an append is as old as a clock says that was set back",
        "write/place.py",
        "                    now = last_ns  # the clock was set back; appended_at never is\n",
        "                    pass\n",
        "tests/write/test_steered_clocks.py -k whatever",
    ),
    Bug(
        "a rotation does not say when it looked at names",
        "write/appender.py",
        "self._check_names(calls.time_ns(), state)  # never",
        "self._check_names(0, state)  # never",
        "tests/write/test_steered_clocks.py -k whatever",
    ),
    Bug(
        "retention believes a clock that was set back",
        "upkeep/retention.py",
        "        if not oldest <= sealed_ns <= now_ns:",
        "        if not sealed_ns <= now_ns:",
        "tests/write/test_steered_clocks.py -k whatever",
    ),
    Bug(
        "an interval goes by a clock that people set",
        "write/committer.py",
        "calls.monotonic() + 2 * seconds",
        "calls.time_ns() / 1e9 + 2 * seconds",
        "tests/write/test_steered_clocks.py -k interval",
        (("        elif calls.monotonic() > due:", "        elif calls.time_ns() / 1e9 > due:"),),
    ),
    Bug(
        "one bucket too many",
        "shared/figures/histogram.py",
        "BUCKETS - 1, octave",
        "BUCKETS, octave",
        "tests/shared/test_histogram.py",
    ),
    Bug(
        "what is read counts thrice",
        "read/reading.py",
        'counts["bytes_read"] += read - size',
        'counts["bytes_read"] += 3 * (read - size)',
        "tests/shared/test_metrics.py",
    ),
    # What an operation of another process in the middle shows, and witnesses
    Bug(
        "a writer in slot 0 is nobody",
        "shared/slots.py",
        "return next(alive(file), None) is not None",
        "return any(alive(file))",
        "tests/crash/test_kill_sweep.py -k little-store",
    ),
    Bug(
        "a durable follower that finds no block looks for durable no more",
        "read/reading.py",
        "self.cursor.durable_lsn() if durable_only else None",
        "self.cursor.durable_lsn() if durable_only and self.cursor.source.control is not None else None",
        "tests/crash/test_interleavings.py -k durable-call-append",
    ),
    Bug(
        "a prune does not look for pins again",
        "upkeep/retention.py",
        "not removal.shut_out(segments[at])",
        "False",
        "tests/crash/test_interleavings.py -k everything-call-pin",
    ),
    Bug(
        "without a block every frame is taken for published",
        "read/cursor.py",
        "                if self._fresh and self._became_live():\n                    continue\n",
        "",
        "tests/crash/test_interleavings.py -k torn_header-store-open",
    ),
    Bug(
        "a rotation goes by the state of before the lock",
        "write/appender.py",
        "        return self._lock.run(self._rotate)\n\n    def _rotate(self) -> bool:",
        "        state = self._log.control.state()\n        return self._lock.run(lambda: self._rotate(state))\n\n"
        "    def _rotate(self, state: LogState) -> bool:",
        "tests/crash/test_interleavings.py -k rotate-call-append",
        (
            (
                "        state = self._log.control.state()\n        return state.next_lsn > state.segment and bool(",
                "        return state.next_lsn > state.segment and bool(",
            ),
        ),
    ),
    Bug(
        "a close does not wait for a durable append",
        "write/handle.py",
        "            session.call(append)\n",
        "            append()\n",
        "tests/crash/test_interleavings.py -k turns",
    ),
    # What a model of the figures shows
    Bug(
        "a timed wait has the weight of one wait",
        "write/waits.py",
        "            self._waited_ns += [waited_ns] * weight",
        "            self._waited_ns += [waited_ns]",
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    Bug(
        "reads of three ends count thrice",
        "read/reading.py",
        'counts["bytes_read"] += read - size',
        'counts["bytes_read"] += read',
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    Bug(
        "appends that a full disk refused are not counted",
        "shared/slot_rows.py",
        '    "full": LogFull,',
        '    "full": LogClosed,',
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    Bug(
        "a slot's next owner begins with what the last one failed",
        "shared/slot_rows.py",
        "        for at in COUNTERS:  # also",
        "        for at in range(COUNTERS.start, COUNTERS.stop - 25):  # also",
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    Bug(
        "a slot's totals go with its owner",
        "shared/slot_rows.py",
        "            words[_at_claim(at)] = words[at]\n",
        "            words[_at_claim(at)] = words[at] = 0\n",
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    Bug(
        "a bucket of Prometheus has itself alone",
        "shared/figures/histogram.py",
        "sum(self.counts[: bucket_of(2**at)])",
        "sum(self.counts[bucket_of(2**at // 2) : bucket_of(2**at)])",
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    Bug(
        "a value at the end of a bucket is in the next",
        "shared/figures/histogram.py",
        "octave * _STEPS + (units >> octave)",
        "octave * _STEPS + (units + 1 >> octave)",
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    Bug(
        "the difference of two looks has what was there before",
        "shared/figures/snapshot.py",
        "    same = before is not None and (before.pid, before.opened_at) == (row.pid, row.opened_at)",
        "    same = before is not None and before.pid != row.pid",
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    Bug(
        "the largest entry is the last",
        "write/place.py",
        "largest if largest > max_entry else max_entry, tail",
        "largest, tail",
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    Bug(
        "what fails after a look counts as appended then",
        "write/appender.py",
        "        self.waits.not_appended()\n",
        "",
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    Bug(
        "who has the slot of a killed holder holds the lock",
        "opening/believe.py",
        "        control.forget_who_was_appending()\n",
        "",
        "tests/shared/test_slot_rows.py -k name_of_who",
    ),
    Bug(
        "a writer without metrics uncovers a killed one",
        "shared/metrics.py",
        "    return not owner.pid or owner.has(row.pid, row.pid_namespace)",
        "    return True",
        "tests/shared/test_slot_rows.py -k had_since",
    ),
    Bug(
        "a sync of one's own is another's",
        "write/committer.py",
        "        if looks and not mine and",
        "        if looks and",
        "tests/shared/test_slot_rows.py -k leader_that_was_killed",
    ),
    Bug(
        "a failed write shortens the segment",
        "system/files.py",
        "        end = min(end, calls.fstat(fd).st_size)\n",
        "        calls.ftruncate(fd, start)\n        return True\n",
        "tests/write/test_mapped.py -k does_not_shorten",
    ),
    Bug(
        "what a failed write left stays",
        "write/appender.py",
        "        if wipe(self.active.fd, tail, end):\n",
        "        if True:\n",
        f"{CORE} -k finds_no_room",
    ),
    Bug(
        "zeros of a larger limit are appended into",
        "upkeep/prepare.py",
        "    return min(max(end, size), size_limit)",
        "    return max(end, size)",
        "tests/write/test_size_limit.py -k further_ahead",
    ),
    Bug(
        "batches have one entry too many",
        "write/place.py",
        "counts[MORE_ENTRIES] = self._more = self._more + count - 1",
        "counts[MORE_ENTRIES] = self._more = self._more + count",
        "tests/shared/test_metrics_model.py -k one_process",
    ),
    # Stores into mapped segments
    Bug(
        "what is longer is taken for written",
        "upkeep/prepare.py",
        "    written = written_end(file, tail)\n",
        "    written = file.size()\n",
        "tests/write/test_mapped.py -k hole_behind",
    ),
    Bug(
        "stores go behind what was written",
        "write/appender.py",
        "ready_to = min(written, end + AHEAD_BYTES, self._size_limit)",
        "ready_to = min(end + AHEAD_BYTES, self._size_limit) + 8",
        "tests/write/test_mapped.py -k every_store",
        (("mapped = map_to_store(file, written)", "mapped = map_to_store(file, file.size())"),),
    ),
    Bug(
        "what was mapped is stored into behind a rotation",
        "write/appender.py",
        "        self.active = Active.of(segment)\n",
        "        self.active = Active.of(segment)._replace(mapped=old.mapped)\n",
        "tests/write/test_mapped.py -k what_is_stored",
        (
            (
                "        if old.mapped is not None:\n            old.mapped.release()\n",
                "        if old.mapped is not None:\n            return\n",
            ),
        ),
    ),
    Bug(
        "a child stores into what its parent has mapped",
        "write/place.py",
        "    if active is not None and active.mapped is not None:\n        active.mapped.release()\n",
        "",
        "tests/write/test_mapped.py -k forked_before",
    ),
    Bug(
        "published before it is stored",
        "write/place.py",
        "                    store(mapped, tail, frame)\n",
        "                    pass\n",
        "tests/write/test_mapped.py -k dies_in",
        (
            (
                "                words[COMMIT] = commit + 1  # last: this one store publishes all of it\n",
                "                words[COMMIT] = commit + 1\n"
                "                if mapped is not None and store is not None:\n"
                "                    store(mapped, tail, frame)\n",
            ),
        ),
    ),
    Bug(
        "a mapped segment that is cut off is seen too late",
        "write/appender.py",
        "        in_use = state.tail if active.mapped is None else max(state.tail, self.ready_to)\n",
        "        in_use = state.tail\n",
        "tests/write/test_mapped.py -k next_look",
    ),
    Bug(
        "stores are allowed into blocks that a copy shares",
        "system/filesystems.py",
        "(kind == _XFS and not _shares_blocks(directory))",
        "kind == _XFS",
        "tests/system/test_filesystems.py -k can_fail",
    ),
    Bug(
        "core: the commit word is stored before the frame is",
        "native/placing.h",
        "        store_frame(ready->mapped + tail, wanted);\n",
        "        ;\n",
        f"{CORE} -k mapped-0-200",
        (
            (
                "    AT(committed)\n",
                "    AT(committed)\n    if (ready->mapped)\n        store_frame(ready->mapped + tail, wanted);\n",
            ),
        ),
    ),
    # What bytes show
    Bug(
        "a checksum is not bound to its segment",
        "format/frame.py",
        "    if found != marker:\n",
        "    if not found:\n",
        "tests/crash/test_hostile_bytes.py",
        (("crc32c(view[body:end], marker)) != crc", "crc32c(view[body:end], found)) != crc"),),
    ),
    Bug(
        "a scan does not look whether entries add up",
        "read/walk.py",
        "                    check_body(window.data, found.body, found.end, found.count)\n",
        "                    pass\n",
        "tests/upkeep/test_repair.py",
    ),
    # What readers and copiers show
    Bug(
        "a helper's start that is interrupted keeps its mutex",
        "write/coordinator.py",
        "            leave(self._lock)\n",
        "",
        "tests/write/test_interrupted_helpers.py",
    ),
    Bug(
        "one look is taken for a proof",
        "read/walk.py",
        "    if isinstance(again, Frame):\n        if extent",
        "    if False:\n        if extent",
        "tests/upkeep/test_beside_writers.py",
    ),
    Bug(
        "damage is called so beside an append that is under way",
        "read/walk.py",
        "    if not behind.entries:\n        wait()\n",
        "",
        "tests/upkeep/test_beside_writers.py",
    ),
    Bug(
        "a recovery cuts what was durable",
        "read/verdict.py",
        "_RECOVERY, _TOLERATE, True, None, Verdict.REFUSE",
        "_RECOVERY, _TOLERATE, True, None, Verdict.CUT",
        "tests/opening/test_decisions.py",
    ),
    Bug(
        "a reader reads on in a log that was made anew",
        "read/cursor.py",
        "            source.check_id()\n",
        "            pass\n",
        "tests/read/test_replaced.py",
    ),
    Bug(
        "a copy is opened like the log after a reboot",
        "opening/opening.py",
        "whole=opened == COPIED",
        "whole=False",
        "tests/opening/test_foreign_copies.py",
    ),
    Bug(
        "without a control block everything is taken for durable",
        "read/cursor.py",
        "else self._look().durable_lsn",
        "else self._look().next_lsn",
        "tests/read/test_follow.py",
    ),
    Bug(
        "an idle follower does not look whether its log is still there",
        "read/follow.py",
        "            reader.check_log()\n",
        "",
        "tests/read/test_replaced.py",
    ),
    Bug(
        "a copy goes on behind the tail that was noted",
        "upkeep/copy.py",
        "end.tail if at == end.segment else file.size()",
        "file.size()",
        "tests/upkeep/test_copy.py -k meanwhile",
    ),
    Bug(
        "a copy that failed is left",
        "upkeep/copy.py",
        "        _discard(parent, name, work)\n",
        "        pass\n",
        "tests/upkeep/test_copy.py -k damaged",
    ),
    # Wake-ups: without one, who waits looks by himself, only later
    Bug(
        "an append wakes nobody",
        "write/place.py",
        "                self._growth.wake(commit)\n",
        "                pass\n",
        "tests/processes/test_wakeups.py -k woken_by_an_append",
    ),
    Bug(
        "who waits for a sync that fails is left asleep",
        "write/committer.py",
        "            self._news.wake(self._words[SYNCS])\n            raise\n",
        "            raise\n",
        "tests/processes/test_wakeups.py -k that_fails",
    ),
    Bug(
        "a wake-up between the look and the sleep is lost",
        "shared/wakeups.py",
        "            self._halves[self._woken] = number & 0xFFFFFFFF\n",
        "",
        "tests/processes/test_wakeups.py -k between_the_look",
    ),
    Bug(
        "retention does not note when the last entry was appended",
        "upkeep/retention.py",
        "max(last_append_ns, found.last_append_ns)",
        "found.last_append_ns",
        "tests/upkeep/test_retention.py -k older_than_one",
    ),
    # The core's append
    Bug(
        "core: the commit word is stored before the frame is written",
        "native/placing.h",
        "    else if (!write_frame(ready->fd, wanted, tail))\n        return 0;",
        "",
        f"{CORE} -k append-0-100",
        (("    AT(committed)\n", "    AT(committed)\n    write_frame(ready->fd, wanted, tail);\n"),),
    ),
    Bug(
        "core: the lock is left before the commit word is stored",
        "native/placing.h",
        "    AT(filled)\n",
        "    flock(ready->lock_fd, LOCK_UN);\n    AT(filled)\n",
        f"{CORE} -k stands_still",
    ),
    Bug(
        "core: a short write is taken for a whole one",
        "native/placing.h",
        "(off_t)offset) == (ssize_t)size;\n}",
        "(off_t)offset) > 0;\n}",
        f"{CORE} -k fails_inside",
    ),
    Bug(
        "core: a short write of pieces is taken for a whole one",
        "native/placing.h",
        "(off_t)offset) == (ssize_t)size;\n    unsigned",
        "(off_t)offset) > 0;\n    unsigned",
        f"{CORE} -k fails_inside",
    ),
    Bug(
        "core: the state is read before the lock is taken",
        "native/placing.h",
        "    *commit = look(words + COMMIT);\n",
        "",
        f"{CORE} -k comes_first",
        (
            (
                "    uint64_t commit;\n    AT(entered)",
                "    uint64_t commit = look(ready->words + COMMIT);\n    AT(entered)",
            ),
        ),
    ),
    Bug(
        "core: the copy in force is filled",
        "native/placing.h",
        "*next = words + (*commit & 1 ? COPY_A : COPY_B);",
        "*next = state;",
        f"{CORE} -k stands_still",
    ),
    Bug(
        "core: who waits is woken before there is news",
        "native/placing.h",
        "    AT(filled)\n",
        "    wake(ready, *commit);\n    AT(filled)\n",
        f"{CORE} -k falls_asleep",
        (
            ("        wake(ready, commit);\n", ""),
            ("/* Publish the frame", "static void wake(const Ready *, uint64_t);\n/* Publish the frame"),
        ),
    ),
    Bug(
        "core: nobody is woken",
        "native/placing.h",
        "        wake(ready, commit);\n",
        "",
        f"{CORE} -k falls_asleep",
    ),
    Bug(
        "core: a batch counts an entry too many",
        "native/placing.h",
        "row[ROW_MORE] + count - 1",
        "row[ROW_MORE] + count",
        f"{CORE} -k same_bytes",
    ),
    Bug(
        "core: counts wrap",
        "native/placing.h",
        "row[ROW_BYTES] + frame_bytes",
        "(uint32_t)(row[ROW_BYTES] + frame_bytes)",
        f"{CORE} -k counts_beyond",
    ),
    Bug(
        "core: a signal is no end of the wait for the lock",
        "native/placing.h",
        "    if (flock(ready->lock_fd, operation) != 0)\n        return 0;",
        "    while (flock(ready->lock_fd, operation) != 0)\n        if (errno != EINTR)\n            return 0;",
        f"{CORE} -k answers_an_interrupt",
    ),
    Bug(
        "core: an unlock that fails is left at that",
        "native/placing.h",
        "#define UNLOCK_TRIES 8",
        "#define UNLOCK_TRIES 0",
        f"{CORE} -k fails_inside",
    ),
    Bug(
        "core: a stopped log is appended to",
        "native/placing.h",
        "look(words + STOP) || ",
        "",
        f"{CORE} -k stopped",
    ),
    Bug(
        "a state that the core was killed in is taken for damage",
        "opening/believe.py",
        'stored > LogState._fields.index("next_lsn")',
        "False",
        f"{CORE} -k need_not_recover",
    ),
    Bug(
        "core: an append that was done is said not to be",
        "native/placing.h",
        "!lsn || ",
        "",
        f"{HOSTILE} -k hostile",
    ),
    Bug(
        "core: a count begins again at 0",
        "native/placing.h",
        "figures >> 63 || ",
        "",
        f"{HOSTILE} -k hostile",
    ),
    Bug(
        "core: a segment has room for everything",
        "native/placing.h",
        " || frame_bytes > ready->ready_to - tail",
        "",
        f"{CORE} -k longer_than",
    ),
    Bug(
        "core: names are never compared",
        "native/placing.h",
        "now < ready->looked_ns || now >= ready->next_look_ns",
        "0",
        f"{CORE} -k has_to_be_looked_at",
        ((" || lsn >= ready->next_look_lsn ||", " ||"),),
    ),
    Bug(
        "core: the time of an append goes back with the clock",
        "native/placing.h",
        "    if (now < state[LAST_NS])\n        now = state[LAST_NS];",
        "",
        f"{CORE} -k set_back",
    ),
    Bug(
        "core: a killed append leaves no note",
        "native/placing.h",
        "    store(words + INTENT, *commit + ((uint64_t)ready->slot << 48) + 1);\n",
        "",
        f"{CORE} -k stands_still",
    ),
    Bug(
        "core: the mutex between threads is not asked",
        "native/place.h",
        " && is_true(place->acquire, place->no_wait)",
        "",
        f"{CORE} -k not_let_in",
    ),
    Bug(
        "core: a child appends with its parent's lock",
        "native/place.h",
        "place->refused || place->forks != forks",
        "place->refused",
        f"{CORE} -k does_not_know",
    ),
    # What reading in parts shows
    Bug(
        "a plan of a copy ends before its damage",
        "read/plan.py",
        "return max(walk.lsn, stop.behind.next_lsn, stop.whole.next_lsn if stop.whole is not None else 0)",
        "return walk.lsn",
        "tests/read/test_plan.py -k meets_the_damage",
    ),
    Bug(
        "a cut goes past the segment that it was looked for in",
        "read/plan.py",
        "return limit_lsn if lsn is None else min(lsn, limit_lsn)",
        "return self.end if lsn is None else lsn",
        "tests/read/test_plan.py -k nearly_equal",
    ),
    Bug(
        "a batch with a cut inside is given by both parts",
        "read/parallel.py",
        "continue  # it begins in the part before",
        "pass",
        "tests/read/test_parallel.py -k inside_a_batch",
    ),
    Bug(
        "retention does not keep what is mapped",
        "read/parallel.py",
        "end, pin=True)",
        "end, pin=False)",
        "tests/read/test_parallel.py -k not_read_yet",
    ),
    Bug(
        "results come as they come",
        "system/workers.py",
        "if not self._ordered:",
        "if True:",
        "tests/read/test_parallel.py -k behind_the_results",
    ),
    Bug(
        "workers are heard however much is ahead",
        "system/workers.py",
        "if self._held >= AHEAD_BYTES:",
        "if False:",
        "tests/read/test_parallel.py -k ahead_than",
        ((" and self._held < AHEAD_BYTES:", ":"),),
    ),
    Bug(
        "a reader goes on behind its end",
        "read/reading.py",
        "max(min(self.cursor.lsn, self.end or MAX_LSN) - self.left",
        "max(self.cursor.lsn - self.left",
        "tests/read/test_runs.py -k whatever_turns",
    ),
    Bug(
        "a batch of a run is taken for one that was given",
        "read/reading.py",
        "self._run, self._left, self._given = run, -1, 0",
        "self._run = run",
        "tests/read/test_runs.py -k as_long_as",
    ),
    Bug(
        "the bytes of a batch of a run count with the run's end",
        "read/reading.py",
        "self.bytes - self._run.bytes + self._given",
        "self.bytes - self._run.bytes",
        "tests/read/test_runs.py -k bytes_of_a_batch",
    ),
    Bug(
        "of a body, what is kept begins an entry early",
        "format/body.py",
        "if number == skip:",
        "if number == max(0, skip - 1):",
        "tests/format/test_entry.py -k some_entries",
    ),
]


def find(bug: Bug, folder: Path, states: int = STATES, seed: int = SEED) -> str | None:
    """What the finder said, or None when it found nothing."""
    environment = {"WALPOOL_SEED": str(seed), "WALPOOL_DEADLINE_S": "5"}
    if bug.file.startswith("native/"):
        changes = [(Path(bug.file).name, old, new) for old, new in ((bug.old, bug.new), *bug.more)]
        environment[failpoints.GIVEN] = str(failpoints.built(changes=changes))
        return _found(bug, "", "", environment, folder, states, seed)
    text = (SOURCE / bug.file).read_text()
    for old, new in ((bug.old, bug.new), *bug.more):
        assert text.count(old) == 1, f"{bug.file} has changed: there is no place for the bug {bug.name!r} any more"
        text = text.replace(old, new)
    compile(text, bug.file, "exec")
    if bug.file.startswith("format/"):
        environment["WALPOOL_PURE"] = "1"  # its functions have twins, which do not have the bug
    name = "walpool." + bug.file.removesuffix(".py").replace("/", ".")
    return _found(bug, name, text, environment, folder, states, seed)


def _found(
    bug: Bug, name: str, text: str, environment: dict[str, str], folder: Path, states: int, seed: int
) -> str | None:
    kind, _, scripts = bug.finder.partition(": ")
    if kind == "cut":
        words = [finders.CUTS, str(seed), str(states), *scripts.split(", ")]
    else:
        words = ["-x", "-q", "-p", "no:cacheprovider", *bug.finder.split()]
    code, said = finders.run(name, text, words, environment, folder, BUDGET_S)
    assert code in (0, FOUND), f"{bug.name}: the finder ended with {code}:\n{said[-3000:]}"
    return said[-3000:] if code == FOUND else None


def cut(words: list[str]) -> int:
    """The explorer, on the walpool that is imported."""
    from tests.crash import power_cut

    seed, states, *scripts = words
    place = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="walpool-", dir=place) as folder:
        try:
            power_cut.prove(Path(folder), int(seed), int(states), scripts)
        except AssertionError as found:
            print(found)
            return FOUND
    return 0
