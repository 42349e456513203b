"""The rank of each worker, and the network interface that it uses."""

import psutil
import pytest

from mask_ray.horovod.trainer import assign_slots, choose_interface


def test_workers_are_ranked_by_node() -> None:
    slots = assign_slots(["10.0.0.1", "10.0.0.1", "10.0.0.2"])
    assert [(s.rank, s.local_rank, s.cross_rank) for s in slots] == [
        (0, 0, 0),
        (1, 1, 0),
        (2, 0, 1),
    ]
    assert [(s.size, s.local_size, s.cross_size) for s in slots] == [
        (3, 2, 2),
        (3, 2, 1),
        (3, 1, 2),
    ]


def test_the_interface_is_the_one_that_holds_the_node_s_address() -> None:
    loopback = choose_interface("127.0.0.1")
    assert "127.0.0.1" in {address.address for address in psutil.net_if_addrs()[loopback]}


def test_a_named_interface_is_taken_where_it_exists() -> None:
    loopback = choose_interface("127.0.0.1")
    assert choose_interface("192.0.2.77", {loopback, "nope0"}) == loopback


@pytest.mark.parametrize(
    ("nics", "message"), [(None, "holds its Ray address 192.0.2.77"), ({"nope0"}, "called nope0")]
)
def test_no_interface_is_an_error_that_names_those_there_are(
    nics: set[str] | None, message: str
) -> None:
    with pytest.raises(RuntimeError, match=rf"{message}; found .*{choose_interface('127.0.0.1')}"):
        choose_interface("192.0.2.77", nics)
