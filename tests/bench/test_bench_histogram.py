"""The histogram of the load generator against the one it has its buckets from."""

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import example, given, settings
from hypothesis import strategies as st

from liftbridge.bench import latency
from liftbridge.bench._load import Histogram

LONGEST = 2**42 - 1
times = st.one_of(st.integers(0, 5000), st.integers(0, LONGEST))


def both(values: "list[int]") -> "tuple[Histogram, HdrHistogram]":
    # Twice the range: its iterators pass over the last bucket there is, and the buckets before are the same.
    ours, theirs = Histogram(), HdrHistogram(1, 2 * LONGEST, 3)
    for value in values:
        ours.record(value)
        theirs.record_value(value)
    return ours, theirs


@settings(deadline=None)
@given(st.lists(times, min_size=1), st.floats(0.001, 100))
def test_percentiles_are_those_of_an_hdrhistogram(values, percent):
    ours, theirs = both(values)
    assert ours.total == theirs.get_total_count()
    assert ours.max == max(values)
    # Theirs is the end of the bucket, ours not beyond the longest time there was.
    assert ours.percentile(percent) == min(theirs.get_value_at_percentile(percent), max(values))


@settings(deadline=None)
@given(st.lists(times, min_size=1))
@example([LONGEST])
def test_buckets_are_those_of_an_hdrhistogram(values):
    ours, theirs = both(values)
    expected = [
        (min(item.value_iterated_to, max(values)), item.count_at_value_iterated_to)
        for item in theirs.get_recorded_iterator()
    ]
    assert ours.buckets() == expected
    assert all(value <= end for value, (end, _) in zip(sorted(set(values)), [*ours.buckets()], strict=False))


@given(st.lists(times), st.lists(times))
def test_merging_is_counting_all(first, second):
    merged = latency.merged([both(first)[0], both(second)[0]])
    assert merged.buckets() == both(first + second)[0].buckets()
    assert (merged.total, merged.max) == (len(first + second), max([0, *first, *second]))


def test_what_is_too_long_and_what_is_negative():
    histogram = Histogram()
    histogram.record(2**50)
    histogram.record(-5)
    assert histogram.buckets() == [(0, 1), (LONGEST, 1)]
    assert histogram.max == 2**50


def test_an_empty_histogram_has_no_figures():
    assert set(latency.run_figures("ack", Histogram()).values()) == {None}
    assert latency.curve(Histogram()) == []


def test_the_curve_ends_where_nothing_finer_was_recorded():
    histogram = Histogram()
    for value in range(1, 101):
        histogram.record(value * 1000)
    points = latency.curve(histogram)
    assert points[-1] == (100.0, 100.0)
    assert points[-2][0] == pytest.approx(99.0)
    assert [us for _, us in points] == sorted(us for _, us in points)
