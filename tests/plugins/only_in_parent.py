"""A plug-in that the parent can import and a worker cannot."""

import multiprocessing

if multiprocessing.parent_process() is not None:
    raise RuntimeError("this worker lacks a library")
