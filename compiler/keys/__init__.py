"""What a step's key is made of, each kind in a file: content of files, source, tools, the worker's environment.

`compiler.identity` puts them together. Reading and hashing is remembered (`memo.py`), so that a build with nothing
to do reads next to nothing.
"""
