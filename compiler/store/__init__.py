"""Immutable results under their keys: committed atomically, verified when used, looked after.

`store.py` knows which key has which result; `incoming.py` checks what a step left; `objects.py` places and verifies the
files of results; `session.py` is a process's presence; `locks.py` is who may; `records.py` is how small files are known
to be whole; `upkeep.py` is ls, gc and fsck.
"""

from compiler.store.incoming import TooSlow, UnfitError, check_result
from compiler.store.store import Origin, Result, Store

__all__ = ["Origin", "Result", "Store", "TooSlow", "UnfitError", "check_result"]
