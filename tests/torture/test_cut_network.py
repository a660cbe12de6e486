"""The network of one scanner is cut twice while it sends: its dead associations end, nobody else notices."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import peers
from tests.torture.networks import Network, network
from tests.torture.receiver import Receiver, assert_each_current_once, assert_nothing_lost, pause
from tests.torture.sender import Scanner, SendingThread, mixed

IDLE_TIMEOUT_S = 1.5
"""Of the receiver: after so much silence an association is dead."""
CUT_S = 2 * IDLE_TIMEOUT_S
"""Long enough that both sides give up."""
ANSWER_S = 1.5
"""After which a scanner gives up."""


@pytest.fixture
def three_machines() -> Iterator[Network]:
    """Return a node and two scanners, each on a cable of its own."""
    with network(scanners=2) as made:
        yield made


def ends(receiver: Receiver) -> list[str]:
    """Return why the node ended associations on its own account, in order."""
    said = [json.loads(line) for line in receiver.log.read_text().splitlines() if line.startswith("{")]
    return [one["reason"] for one in said if one["action"] == "association_closed" and one["outcome"] == "aborted"]


def wait_for_more(scanner: Scanner, count: int) -> None:
    """Wait until so many more of its objects were acknowledged."""
    wanted = len(scanner.acknowledged) + count
    assert peers.eventually(lambda: len(scanner.acknowledged) >= wanted), "it sends (again)"


@pytest.mark.parametrize("cuts", [pytest.param(2, id="2"), pytest.param(20, id="20", marks=pytest.mark.long)])
def test_a_cut_network_loses_and_doubles_nothing(tmp_path: Path, three_machines: Network, cuts: int) -> None:
    """Each cut ends one association by its deadline; the honest scanner loses none; what comes again is no double."""
    broken, honest = three_machines.cables
    receiver = Receiver(
        tmp_path,
        host="0.0.0.0",
        hosts=("10.99.0.0/16",),
        idle_timeout_s=IDLE_TIMEOUT_S,
        wrap=three_machines.inside_node,
    )
    cut = Scanner(receiver.port, host=broken.node_address, namespace=broken.namespace, answer_s=ANSWER_S)
    served = Scanner(receiver.port, host=honest.node_address, namespace=honest.namespace)
    threads = [SendingThread(one, mixed(first, 2), pause_s=0.005) for first, one in enumerate((cut, served))]
    with receiver:
        for thread in threads:
            thread.start()
        try:
            for _ in range(cuts):
                wait_for_more(cut, 5)
                lost, answered = cut.losses, len(served.acknowledged)
                broken.cut()
                pause(CUT_S)
                broken.mend()
                assert cut.losses > lost
                assert len(served.acknowledged) > answered + 10
            wait_for_more(cut, 5)
        finally:
            for thread in threads:
                thread.stop()
        receiver.wait_for(lambda: len(ends(receiver)) == cuts, "each dead association is ended")
        assert {f"nothing came for {IDLE_TIMEOUT_S:g} s"} == set(ends(receiver))
        assert 0 == served.losses
        assert_nothing_lost(receiver, [cut, served])
        assert_each_current_once(receiver)
