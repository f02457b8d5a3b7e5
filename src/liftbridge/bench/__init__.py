"""`liftbridge-bench`: the load generator, and what it takes to believe its figures.

A workload is a module with `add_arguments` and `run` (`ingest`, `subscribe`); around it are the server
under test (`server`), the calls that prepare streams (`streams`), what is measured beside the clock (`cpu`,
`disk`, `machine`, `ceiling`) and how it is told (`progress`, `report`). The load generator's own hot loops
are in C (`_load`) or batched, so that it is not what is measured.
"""
