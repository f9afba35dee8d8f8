"""The compiled core, if it was built: see walpool.native.select."""

from collections.abc import Callable
from typing import Any

CHECKSUM: str
SOURCES: str

def twin(python: Callable[..., Any], /, *needs: Any) -> Callable[..., Any]: ...
def crc32c(data: bytes | bytearray | memoryview, value: int = 0, /) -> int: ...
def table_crc32c(data: bytes | bytearray | memoryview, value: int = 0, /) -> int: ...

Place: Callable[..., Any]  # see CorePlace in walpool.write.place
