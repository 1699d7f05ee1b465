"""Immutable results under their keys: committed atomically, verified when used, looked after.

`store.py` knows which key has which result; `objects.py` places and verifies their files; `session.py` is a process's
presence; `locks.py` is who may; `records.py` is how small files are known to be whole; `upkeep.py` is ls, gc and fsck.
"""

from compiler.store.store import Origin, Result, Store

__all__ = ["Origin", "Result", "Store"]
