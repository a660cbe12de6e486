"""Mutated conversations: valid ones whose bytes, lengths and order were damaged, thousands of them, seeded.

Whatever comes, the receiver lives on, holds no more than before, serves an honest sender meanwhile, meets nothing that
it does not expect, and files only what was sent. The short form runs in CI.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks.node import AE_TITLE, RunningNode
from dicom_node.dimse import pdu
from tests.integration.receiving import BIG, DEFLATED, EXPLICIT, IMPLICIT, MR, VERIFY, encode_data_set, small_data_set
from tests.peers import eventually
from tests.torture.hostile import (
    ABORT_RQ,
    EXTENDED,
    IDENTITY,
    ROLE,
    WINDOW,
    Contexts,
    association_request,
    calling,
    data_message,
    data_sets_in,
    echo_message,
    footprint,
    is_honest_served,
    item,
    read_all,
    running_receiver,
    store_command,
    store_message,
    surprises,
)

SYNTAXES = (EXPLICIT, IMPLICIT, BIG, DEFLATED)
DATA_SETS = {syntax: encode_data_set(small_data_set(n_pixels=2000), syntax) for syntax in SYNTAXES}
"""Of instance 1.2.3.4: 4 kB each, deflated less."""
SEED = 20261120
MOST_GROWTH_BYTES = 16 << 20
"""Of resident memory over all conversations: arenas and buffers, whatever their number."""

Conversation = list[bytes]
"""Its PDUs."""


def valid(draw: random.Random, calling_ae: str, called_ae: str) -> Conversation:
    """Return a conversation that a correct sender might have: everything sent, nothing waited for."""
    count = draw.randint(1, 20)
    contexts: dict[int, tuple[str, tuple[str, ...]]] = {
        2 * number + 1: (MR, (draw.choice(SYNTAXES),)) for number in range(count)
    }
    contexts[2 * count + 1] = (VERIFY, (IMPLICIT,))
    more = b"".join(one for one in (ROLE, WINDOW, IDENTITY, EXTENDED) if draw.random() < 0.3)
    said = [association_request(contexts, calling=calling_ae, called=called_ae, more=more)]
    for message_id in range(1, draw.randint(2, 5)):
        said += _message(draw, contexts, message_id)
    said.append(ABORT_RQ if draw.random() < 0.1 else pdu.RELEASE_RQ)
    return said


def _message(draw: random.Random, contexts: Contexts, message_id: int) -> Conversation:
    context_id = draw.choice(list(contexts))
    abstract_syntax, (syntax,) = contexts[context_id]
    if abstract_syntax == VERIFY:
        return [echo_message(context_id, message_id)]
    stored = data_message(context_id, DATA_SETS[syntax], draw.choice((100, 1000, 16384)))
    return [store_command(context_id=context_id, message_id=message_id), *_pdus(stored)]


def _pdus(stream: bytes) -> Iterator[bytes]:
    position = 0
    while position < len(stream):
        end = position + 6 + int.from_bytes(stream[position + 2 : position + 6], "big")
        yield stream[position:end]
        position = end


def mutated(draw: random.Random, said: Conversation) -> bytes:
    """Return the bytes of a conversation after one to four damages."""
    said = list(said)
    for _ in range(draw.randint(1, 4)):
        draw.choice(DAMAGES)(draw, said)
    return b"".join(said)


def _change_bytes(draw: random.Random, said: Conversation) -> None:
    at = draw.randrange(len(said))
    changed = bytearray(said[at])
    for _ in range(draw.choice((1, 1, 2, 16))):
        if changed:
            # The heads decide more than the data do.
            place = draw.randrange(min(len(changed), draw.choice((6, 12, 100, len(changed)))))
            changed[place] = draw.choice((0, 1, 3, 0x7F, 0xFF, draw.randrange(256)))
    said[at] = bytes(changed)


def _change_length(draw: random.Random, said: Conversation) -> None:
    at = draw.randrange(len(said))
    first = draw.choice((2, 6))
    length = draw.choice((0, 1, 2, 5, 6, 0xFF, 1 << 17, 1 << 18, 0xFFFFFFFF, draw.randrange(1 << 15)))
    said[at] = said[at][:first] + length.to_bytes(4, "big") + said[at][first + 4 :]


def _swap(draw: random.Random, said: Conversation) -> None:
    one, other = draw.randrange(len(said)), draw.randrange(len(said))
    said[one], said[other] = said[other], said[one]


def _double(draw: random.Random, said: Conversation) -> None:
    said.insert(draw.randrange(len(said) + 1), draw.choice(said))


def _take_out(draw: random.Random, said: Conversation) -> None:
    if len(said) > 1:
        del said[draw.randrange(len(said))]


def _cut(draw: random.Random, said: Conversation) -> None:
    at = draw.randrange(len(said))
    said[at] = said[at][: draw.randrange(len(said[at]) + 1)]


def _end_here(draw: random.Random, said: Conversation) -> None:
    _cut(draw, said)
    if draw.random() < 0.5:
        said.append(ABORT_RQ)


def _insert(draw: random.Random, said: Conversation) -> None:
    at = draw.randrange(len(said))
    place = draw.randrange(len(said[at]) + 1)
    said[at] = said[at][:place] + draw.randbytes(draw.choice((1, 2, 4, 100))) + said[at][place:]


def _change_items(draw: random.Random, said: Conversation) -> None:
    """Change the request where its items begin and end: their lengths stay right, their meaning does not."""
    if said[0][:1] != b"\x01" or len(said[0]) < 74:
        return
    items = list(_items(said[0][74:]))
    at = draw.randrange(len(items)) if items else 0
    for kind, content in items[at : at + 1]:
        head = 4 if kind == 0x20 else 0
        inner = list(_items(content[head:])) if kind in (0x20, 0x50) else []
        if inner and draw.random() < 0.7:
            items[at] = (kind, content[:head] + _joined(_spoiled(draw, inner)))
        else:
            items = _spoiled(draw, items)
    content = said[0][6:74] + _joined(items)
    said[0] = said[0][:2] + len(content).to_bytes(4, "big") + content


def _items(content: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while position + 4 <= len(content):
        end = position + 4 + int.from_bytes(content[position + 2 : position + 4], "big")
        yield content[position], content[position + 4 : end]
        position = end


def _joined(items: list[tuple[int, bytes]]) -> bytes:
    return b"".join(item(kind, content[:0xFFFF]) for kind, content in items)


def _spoiled(draw: random.Random, items: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    items = list(items)
    at = draw.randrange(len(items))
    kind, content = items[at]
    match draw.randrange(6):
        case 0:
            del items[at]
        case 1:
            items.insert(draw.randrange(len(items)), items[at])
        case 2:
            items[at] = (draw.choice((0, 0x10, 0x20, 0x30, 0x40, 0x50, 0x51, 0x58, 0xFF)), content)
        case 3:
            items[at] = (kind, content[: draw.randrange(len(content) + 1)])
        case 4:
            items[at] = (kind, content * draw.choice((2, 100)))
        case _:
            items[at:at] = [items[at]] * draw.choice((2, 200))
    return items


DAMAGES: tuple[Callable[[random.Random, Conversation], None], ...] = (
    *(_change_bytes, _change_bytes, _change_length, _swap, _double, _take_out),
    *(_cut, _end_here, _insert, _change_items, _change_items),
)


def converse(draw: random.Random, port: int, stream: bytes) -> None:
    """Send a conversation in some pieces and end it in some way; the receiver has to close it in time."""
    with calling(port, timeout_s=15) as connection:
        try:
            _say(draw, connection, stream)
        except TimeoutError:
            raise
        except OSError:  # the receiver had enough before we had
            return


def _say(draw: random.Random, connection: socket.socket, stream: bytes) -> None:
    for _ in range(draw.choice((0, 0, 1, 3))):
        place = draw.randrange(len(stream) + 1)
        connection.sendall(stream[:place])
        stream = stream[place:]
    connection.sendall(stream)
    if draw.random() < 0.1:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close by a reset
        return
    connection.shutdown(socket.SHUT_WR)
    read_all(connection)


@dataclass
class HonestSender:
    """A sender that does everything right, again and again, while others do not."""

    port: int
    calling_ae: str
    called_ae: str
    served: int = 0
    refused: int = 0

    @contextmanager
    def sending(self, pause_s: float = 0.02) -> Iterator[None]:
        """Send in a thread."""
        over = threading.Event()

        def send() -> None:
            while not over.wait(pause_s):
                is_served = is_honest_served(self.port, calling_ae=self.calling_ae, called_ae=self.called_ae)
                self.served += is_served
                self.refused += not is_served

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


def torment(port: int, seeds: range, *, calling_ae: str = "CT1", called_ae: str = "NODE") -> set[str]:
    """Have a mutated conversation for each seed; return the digests of all data sets that were sent in them."""
    sent: set[str] = set()
    for seed in seeds:
        draw = random.Random(seed)
        stream = mutated(draw, valid(draw, calling_ae, called_ae))
        sent |= data_sets_in(stream)
        try:
            converse(draw, port, stream)
        except TimeoutError:
            pytest.fail(f"the conversation of seed {seed} was not ended")
    return sent


COUNTS = [pytest.param(2000, id="2000"), pytest.param(20_000, id="20000", marks=pytest.mark.long)]


@pytest.mark.parametrize("count", COUNTS)
def test_mutated_conversations_hurt_nobody(tmp_path: Path, count: int) -> None:
    """No thread, descriptor or memory is left behind, no exception was unexpected, and what is filed was sent."""
    with surprises() as found, running_receiver(tmp_path) as receiver:
        started = footprint()
        sent = torment(receiver.port, range(SEED - 200, SEED)) | data_sets_in(store_message())
        assert eventually(lambda: footprint().threads <= started.threads, timeout_s=10)
        before = footprint()
        honest = HonestSender(receiver.port, "CT1", "NODE")
        filed = Counter(receiver.filed_digests())
        with honest.sending():
            for first in range(SEED, SEED + count, 500):
                sent |= torment(receiver.port, range(first, first + 500))
                filed.update(receiver.filed_digests())
        assert eventually(lambda: footprint().threads <= started.threads, timeout_s=10)
        after = footprint()
        filed.update(receiver.filed_digests())
    assert [] == found
    assert (0, True) == (honest.refused, honest.served > count / 100)
    assert filed.keys() <= sent
    assert filed.total() > honest.served + count / 5
    assert after.descriptors <= before.descriptors
    assert after.resident_bytes - before.resident_bytes < MOST_GROWTH_BYTES


@pytest.mark.parametrize("count", [pytest.param(300, id="300"), COUNTS[1]])
def test_a_node_of_its_own_bears_them_too(tmp_path: Path, count: int) -> None:
    """`serve --role receiver`: the same from outside, with indexing behind it, and nothing in its log but sentences."""
    titles = ("STORESCU", AE_TITLE)
    with RunningNode(tmp_path / "node") as node:
        torment(node.port, range(SEED - 200, SEED), calling_ae=titles[0], called_ae=titles[1])
        honest = HonestSender(node.port, *titles)
        assert eventually(lambda: footprint(node.pid).threads < 20, timeout_s=10)
        before = footprint(node.pid)
        with honest.sending():
            torment(node.port, range(SEED, SEED + count), calling_ae=titles[0], called_ae=titles[1])
        assert eventually(lambda: footprint(node.pid).threads <= before.threads, timeout_s=10)
        after = footprint(node.pid)
    said = (tmp_path / "node" / "node.log").read_text(encoding="utf-8").splitlines()
    lines = [json.loads(line) for line in said if line.startswith("{")]
    assert [] == [line for line in said if not line.startswith("{")]
    assert [] == [line for line in lines if line["level"] == "error" or line.get("status") == "0x0110"]
    assert (0, True) == (honest.refused, honest.served > count / 100)
    assert after.descriptors <= before.descriptors
    assert after.resident_bytes - before.resident_bytes < MOST_GROWTH_BYTES


def test_the_oracle_knows_what_was_sent() -> None:
    """What ends in a valid conversation is found, fragments put together; what is cut off is not."""
    digest = {hashlib.sha256(DATA_SETS[EXPLICIT]).hexdigest()}
    whole = association_request() + store_command() + data_message(1, DATA_SETS[EXPLICIT], 100)
    assert digest == data_sets_in(whole + pdu.RELEASE_RQ)
    assert set() == data_sets_in(whole[:-1])
