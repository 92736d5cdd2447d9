"""threads.py: results in order, and no more of them in memory than asked for."""

from __future__ import annotations

import pytest

from course_utils.common.threads import in_threads, thread_count


@pytest.mark.parametrize("ahead", [0, 1, 3, 100])
def test_results_come_in_order(ahead):
    assert list(in_threads(lambda x: x * x, range(10), ahead)) == [x * x for x in range(10)]
    assert list(in_threads(str, [], ahead)) == [] and 1 <= thread_count() <= 8


def test_items_are_read_only_so_far_ahead():
    read = []

    def items():
        for i in range(10):
            read.append(i)
            yield i

    results = in_threads(lambda x: x, items(), ahead=2)
    assert next(results) == 0 and read == [0, 1, 2]
    assert next(results) == 1 and read == [0, 1, 2, 3]


def test_an_error_comes_where_its_result_would_have_come():
    results = in_threads(lambda x: 6 // x, [3, 2, 0, 1], ahead=4)
    assert [next(results), next(results)] == [2, 3]
    with pytest.raises(ZeroDivisionError):
        next(results)
