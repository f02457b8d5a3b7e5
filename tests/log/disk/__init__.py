"""A simulated disk below real processes: `shim.c` watches and breaks, `powerloss.py` forgets.

What runs on it is a real log in a real process (`worker.py`, started by `machine.py`), doing what
`workload.py` lists. `history.py` says what must be there afterwards.
"""
