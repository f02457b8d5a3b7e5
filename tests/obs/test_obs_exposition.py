"""Metrics as text, read by the parser of Prometheus' own client."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from liftbridge.obs.exposition import Family, exposition


def parsed(*families):
    return {family.name: family for family in text_string_to_metric_families(exposition(families).decode())}


def test_names_labels_and_values_are_read_as_they_were_written():
    family = Family("x_total", "counter", 'with "quotes", a \\ and\na second line')
    family.add(3, stream='a"b\\c\nd', partition="0")
    family.add(2**60, stream="", partition="1")
    family.add(0.1, stream="e", partition="2")
    (found,) = parsed(family).values()
    assert found.type == "counter"
    assert found.documentation == 'with "quotes", a \\ and\na second line'
    assert [(sample.labels["stream"], sample.value) for sample in found.samples] == [
        ('a"b\\c\nd', 3),
        ("", 2**60),
        ("e", 0.1),
    ]


def test_a_histogram_is_cumulative():
    family = Family("h", "histogram", "x")
    family.add_histogram((0.5, 1), (2, 0, 3), 7.25)
    (found,) = parsed(family).values()
    assert [(sample.name, sample.labels.get("le"), sample.value) for sample in found.samples] == [
        ("h_bucket", "0.5", 2),
        ("h_bucket", "1", 2),
        ("h_bucket", "+Inf", 5),
        ("h_sum", None, 7.25),
        ("h_count", None, 5),
    ]
