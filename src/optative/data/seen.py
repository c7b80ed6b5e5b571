"""Digests seen so far, at a few bytes each. Knows: 16-byte digests and the line of their first appearance."""

from __future__ import annotations


class Seen:
    """A table of open addressing: 24 bytes a slot, at most half full. A set of bytes takes about 100 a record."""

    def __init__(self) -> None:
        self._count = 0
        self._allocate(1 << 12)

    def _allocate(self, slots: int) -> None:
        self._mask = slots - 1
        self._keys = memoryview(bytearray(16 * slots)).cast("Q")
        self._lines = memoryview(bytearray(8 * slots)).cast("q")  # 0: free

    def add(self, digest: bytes, line: int) -> int | None:
        """Remember `digest` (its first 16 bytes) at `line` >= 1; the line of its first appearance if there was one."""
        low, high = int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")
        first = self._place(low, high, line)
        if first is None:
            self._count += 1
            if 2 * self._count > self._mask:
                self._grow()
        return first

    def _place(self, low: int, high: int, line: int) -> int | None:
        slot = low & self._mask
        keys, lines = self._keys, self._lines
        while lines[slot]:
            if keys[2 * slot] == low and keys[2 * slot + 1] == high:
                return lines[slot]
            slot = (slot + 1) & self._mask
        keys[2 * slot], keys[2 * slot + 1], lines[slot] = low, high, line
        return None

    def _grow(self) -> None:
        keys, lines = self._keys, self._lines
        self._allocate(2 * len(lines))
        for slot, line in enumerate(lines):
            if line:
                self._place(keys[2 * slot], keys[2 * slot + 1], line)
