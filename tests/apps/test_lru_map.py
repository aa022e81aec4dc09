"""The mapping of bounded size holds what was used last, whatever the order of calls."""

from hypothesis import given
from hypothesis import strategies as st

from apps.lru_map import LruMap

CALLS = st.lists(st.tuples(st.sampled_from(["get", "put", "in"]), st.integers(0, 6)), max_size=60)


@given(capacity=st.integers(1, 5), calls=CALLS)
def test_it_holds_the_entries_that_were_put_or_got_last(capacity: int, calls: list[tuple[str, int]]) -> None:
    entries: LruMap[int, int] = LruMap(capacity)
    by_use: list[tuple[int, int]] = []
    for value, (call, key) in enumerate(calls):
        expected = next((held for held in by_use if held[0] == key), None)
        if call == "put":
            entries.put(key, value)
            by_use = [held for held in by_use if held[0] != key] + [(key, value)]
        elif call == "in":
            assert (key in entries) == (expected is not None)
        else:
            assert entries.get(key) == (expected and expected[1])
            if expected:
                by_use = [held for held in by_use if held is not expected] + [expected]
        by_use = by_use[-capacity:]
        assert len(entries) == len(by_use)
    assert all(entries.get(key) == value for key, value in by_use)


def test_several_are_stored_in_their_order_and_cleared_together() -> None:
    entries: LruMap[str, None] = LruMap(2)
    entries.update((key, None) for key in ("a", "b", "a", "c"))
    assert ("a" in entries, "b" in entries, "c" in entries) == (True, False, True)
    entries.clear()
    assert len(entries) == 0
