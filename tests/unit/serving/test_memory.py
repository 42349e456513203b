"""The budget of a replica's requests."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mask_ray.serving.memory import MemoryBudget, NeverFitsError, OverBudgetError


def test_what_is_held_is_never_more_than_the_budget() -> None:
    budget = MemoryBudget(6_400)
    small = budget.lease()
    small.grow(100)
    with budget.holding(4_700):
        assert budget.held_bytes == 4_800
        with pytest.raises(OverBudgetError):
            budget.lease().grow(101)
    assert budget.held_bytes == 100


def test_large_requests_leave_a_quarter_to_small_ones() -> None:
    budget = MemoryBudget(6_400)
    with budget.holding(4_800):
        with pytest.raises(OverBudgetError):
            budget.lease().grow(200)
        small = [budget.lease() for _ in range(16)]
        for lease in small:
            lease.grow(100)
        with pytest.raises(OverBudgetError):
            budget.lease().grow(1)


def test_what_never_fits_is_told_from_what_may_fit_later() -> None:
    budget = MemoryBudget(6_400)
    lease = budget.lease()
    lease.grow(4_000)
    with pytest.raises(NeverFitsError, match="would take 4801 bytes of memory; at most 4800 are"):
        lease.grow(801)
    lease.grow(800)


def test_a_request_that_has_ended_holds_nothing_more() -> None:
    budget = MemoryBudget(6_400)
    lease = budget.lease()
    lease.grow(100)
    lease.release()
    with pytest.raises(OverBudgetError):
        lease.grow(1)
    lease.release()
    assert budget.held_bytes == 0


def test_what_is_held_for_a_while_counts_with_the_rest_of_its_lease() -> None:
    budget = MemoryBudget(6_400)
    lease = budget.lease()
    lease.grow(1_000)
    with pytest.raises(NeverFitsError), lease.holding(3_801):
        pass
    with lease.holding(3_800):
        assert budget.held_bytes == 4_800
    assert budget.held_bytes == 1_000
    with lease.holding(1):
        lease.release()
    assert budget.held_bytes == 0


def test_a_lease_lasts_as_long_as_its_last_holder() -> None:
    budget = MemoryBudget(6_400)
    lease = budget.lease()
    lease.grow(100)
    lease.keep()
    lease.release()
    assert budget.held_bytes == 100
    lease.release()
    assert budget.held_bytes == 0
    with pytest.raises(OverBudgetError, match="the request has ended"):
        lease.keep()


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3_000)), max_size=60))
def test_whatever_comes_all_is_given_back(steps: list[tuple[int, int]]) -> None:
    budget = MemoryBudget(6_400)
    leases = [budget.lease() for _ in range(10)]
    for number, num_bytes in steps:
        try:
            leases[number].grow(num_bytes)
        except (OverBudgetError, NeverFitsError):
            leases[number].release()
        assert 0 <= budget.held_bytes <= 6_400
    for lease in leases:
        lease.release()
    assert budget.held_bytes == 0
