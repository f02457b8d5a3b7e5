"""What ends a benchmark without figures."""


class BenchError(Exception):
    """The benchmark cannot be run, or its result cannot be trusted; the text says why and what to do."""
