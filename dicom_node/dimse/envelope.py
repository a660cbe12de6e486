"""A C-STORE request as blocks of PDUs: the bytes of a file, read straight between the headers of their PDUs.

A block is one piece of memory, laid out once for an association: room for the command set, then slots of one PDU each,
twelve bytes of headers and a piece of the data set. One `preadv` fills the slots of a block and one `send` takes it, so
a data set is copied once on our side and memory does not depend on its size. Not mapped into memory: a file that
shrinks meanwhile would kill the process, and page faults cost more than the copy.

Sources: DICOM PS3.8 9.3.5 (P-DATA-TF), E.1 (fragments have an even length), D.1 (maximum length).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final

from dicom_node.dimse.pdu import command_pdus, data_head
from dicom_node.dimse.proposal import MAX_PDU

_BLOCK_BYTES: Final = 1 << 19
"""Of data set in one block: some system calls an object, and it stays in the processor's cache."""
_MOST_SLOTS: Final = 1024
"""IOV_MAX of Linux: what one `preadv` takes."""
_PDV_HEAD_BYTES: Final = 6
_HEADS_BYTES: Final = 12
_COMMAND_ROOM: Final = 4096


class Envelope:
    """The memory in which requests of one association are put together, one after the other.

    Parameters
    ----------
    max_pdu
        Bytes that the peer takes in one P-DATA-TF; 0 for no limit.
    """

    def __init__(self, max_pdu: int) -> None:
        self._max_pdu = min(max_pdu or MAX_PDU, MAX_PDU)
        self._piece = max(2, (self._max_pdu - _PDV_HEAD_BYTES) & ~1)
        count = min(_MOST_SLOTS, max(1, _BLOCK_BYTES // self._piece))
        self._memory = memoryview(bytearray(_COMMAND_ROOM + count * (_HEADS_BYTES + self._piece)))
        self._heads = range(_COMMAND_ROOM, len(self._memory), _HEADS_BYTES + self._piece)
        self._slots = [self._memory[head + _HEADS_BYTES : head + _HEADS_BYTES + self._piece] for head in self._heads]

    def blocks(
        self, command_set: bytes, descriptor: int, offset: int, length: int, *, context_id: int
    ) -> Iterator[memoryview]:
        """Give the request's bytes in order; each block is good until the next is asked for.

        Parameters
        ----------
        descriptor, offset, length
            Of the open file, and of the data set in it.

        Raises
        ------
        OSError
            When the file cannot be read, or is shorter than it was.
        """
        command = command_pdus(context_id, command_set, self._max_pdu)
        start = _COMMAND_ROOM - len(command)
        if start < 0:  # the peer takes a handful of bytes a PDU
            yield memoryview(command)
            start = _COMMAND_ROOM
        else:
            self._memory[start:_COMMAND_ROOM] = command
        in_block = len(self._slots) * self._piece
        for done in range(0, max(1, length), in_block):
            wanted = min(in_block, length - done)
            end = self._filled(descriptor, offset + done, wanted, context_id, is_last=done + wanted == length)
            yield self._memory[start:end]
            start = _COMMAND_ROOM

    def _filled(self, descriptor: int, offset: int, length: int, context_id: int, *, is_last: bool) -> int:
        """Fill the slots with a part of the data set, and their headers; return where the last PDU ends."""
        whole, rest = divmod(length, self._piece)
        slots = self._slots[:whole]
        if rest or not whole:
            slots.append(self._slots[whole][:rest])
        if length and os.preadv(descriptor, slots, offset) != length:
            raise OSError("the file is shorter than it was")
        for number, slot in enumerate(slots):
            head = self._heads[number]
            ends = is_last and number == len(slots) - 1
            self._memory[head : head + _HEADS_BYTES] = data_head(context_id, len(slot), is_command=False, is_last=ends)
        return self._heads[len(slots) - 1] + _HEADS_BYTES + len(slots[-1])
