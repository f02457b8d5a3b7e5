"""The fuzz targets: what reads bytes of strangers, one module each.

A target is a module with

- `run(data)`, which feeds `data` to real code and raises when the property is broken: garbage is refused with
  the error that is documented for it or stored as a plain value, never a crash, a hang or growth;
- `seeds()`, valid inputs from which the search begins, also run by the tests;
- `WORDS`, what the input format is made of, and `MAX_LENGTH` of an input in bytes;
- `INSTRUMENTED`, the Python packages whose coverage guides the search. That of the C cores always does.

`run` gives the same result for the same input, whatever ran before it: a finding is repeated by its input.
"""

NAMES = (
    "nats",
    "ingest",
    "publish",
    "acks",
    "http2",
    "headers",
    "config",
    "policy",
    "metadata",
    "consensus",
    "segments",
)
