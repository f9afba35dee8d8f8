"""What identifies a boot, and what a process id means to people."""

from __future__ import annotations

import os

from tests.support import Channel, Start
from walpool.system import processes


def boot_of(channel: Channel) -> tuple[int, int]:
    return processes.boot_id()


def test_all_processes_of_a_boot_agree_on_it(child: Start) -> None:
    mine = processes.boot_id()
    assert mine == processes.boot_id() == child(boot_of).result()
    assert any(mine) and all(0 <= word < 1 << 64 for word in mine)


def test_a_random_word_has_no_zero_half() -> None:
    words = {processes.random_word() for _ in range(1000)}
    assert len(words) == 1000
    assert all(word >> 32 and word & 0xFFFFFFFF and word < 1 << 64 for word in words)


def test_a_process_has_a_name_unless_nobody_knows_it() -> None:
    assert processes.describe(os.getpid()) != ""
    for nobody in (0x7FFFFFF0, -1, 1 << 40):
        assert processes.describe(nobody) == ""


def test_a_pid_is_that_of_the_process_that_asks(child: Start) -> None:
    asked = child(pid_of)
    assert asked.result() == asked.pid != processes.pid()


def pid_of(channel: Channel) -> int:
    return processes.pid()
