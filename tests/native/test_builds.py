"""The core is built by every compiler at hand without a warning, and sums alike on processors of other kinds."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path
from random import Random

import pytest
from crc32c import crc32c

from tests.format import layout
from tests.format.layout import MARKER, frame
from tests.native.builds import COMPILER, cannot_compile, compiled, loaded
from tests.native.twins import exactly
from walpool.format.frame import Frame, read_frame
from walpool.native import select

CROSS = "aarch64-linux-gnu-gcc"  # Debian's package gcc-aarch64-linux-gnu
EMULATOR = "qemu-aarch64"  # and qemu-user
TABLE = "-DWALPOOL_TABLE_CRC"
WITHOUT_UNUSED = ("-Wno-unused-function", "-static")
DATA = Random(1).randbytes(300_000)
PARTS = [(start, size, before) for size in (0, 1, 7, 8, 9, 300, 1535, 1536, 1537, 3072, 4700, 299_990)
         for start in (0, 1, 7) for before in (0, 1, 0xFFFFFFFF, 0x5EEDF00D)]  # fmt: skip


@pytest.mark.parametrize("flags", [("-O3",), ("-O1", TABLE)], ids=["as installed", "without the instruction"])
@pytest.mark.parametrize("compiler", [COMPILER, "clang", CROSS])
def test_it_is_compiled_without_a_warning(compiler: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    if reason := cannot_compile(compiler):
        pytest.skip(reason)
    assert compiled(tmp_path / "core.o", *flags, "-fPIC", "-c", compiler=compiler).stat().st_size > 10_000


def test_a_core_without_the_instruction_sums_and_reads_alike(tmp_path: Path) -> None:
    if reason := cannot_compile():
        pytest.skip(reason)
    core = loaded(compiled(tmp_path / "_core.so", TABLE, "-O1", "-fPIC", "-shared"))
    assert core.CHECKSUM == "table"
    for start, size, before in PARTS:
        part = DATA[start : start + size]
        assert core.crc32c(part, before) == core.table_crc32c(part, before) == crc32c(part, before), (start, size)
    python = select.python_of(read_frame)
    data = frame(1, [(layout.PUT, b"key", DATA, 1)])
    for held in (data, data[:-1] + b"!"):
        assert exactly(core.twin(python, Frame)(held, 0, MARKER, 1)) == exactly(python(held, 0, MARKER, 1))


@pytest.mark.parametrize("flags", [(), (TABLE,)], ids=["with the instruction", "without"])
@pytest.mark.parametrize("machine", sorted({"aarch64", platform.machine()}))
def test_each_kind_of_processor_sums_alike(machine: str, flags: tuple[str, ...], tmp_path: Path) -> None:
    here = machine == platform.machine()
    compiler = COMPILER if here else CROSS
    if reason := cannot_compile(compiler):
        pytest.skip(reason)
    if not here and shutil.which(EMULATOR) is None:
        pytest.skip(f"there is no {EMULATOR}")
    source = Path(__file__).with_name("sums.c")
    program = compiled(tmp_path / "sums", *flags, *WITHOUT_UNUSED, "-O2", source=source, compiler=compiler)
    arguments = [str(number) for part in PARTS for number in part]
    command = [*([] if here else [EMULATOR]), str(program), *arguments]
    done = subprocess.run(command, input=DATA, capture_output=True, timeout=60, check=True)
    how, *sums = done.stdout.decode().splitlines()
    assert (how == "table") is bool(flags) or machine not in ("aarch64", "x86_64"), how
    wanted = [crc32c(DATA[start : start + size], before) for start, size, before in PARTS]
    assert sums == [f"{each} {each}" for each in wanted]
