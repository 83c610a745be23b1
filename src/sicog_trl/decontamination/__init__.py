"""Decontamination: rows that an evaluation set holds, or the pool twice, are dropped and say what they are near to.

`evaluation_sets.py` loads what a suite asks, `reading.py` brings rows to images and texts; `images.py` and `texts.py`
say what is near. `parts.py` hashes rows part by part, so that a killed run goes on; `evaluation_index.py` finds what
the benchmarks have near to a row, `comparison.py` asks it for the pool. `duplicates.py` compares the rows of the pool
with each other, from what `facts.py` knows of them. `run.py` puts it together, `writing.py` writes.
"""

from .evaluation_sets import Benchmark, benchmark_rows
from .reading import Pool
from .run import DecontaminationConfig, compare, conclude, hash_benchmarks, start
from .writing import overview


__all__ = [
    "Benchmark",
    "DecontaminationConfig",
    "Pool",
    "benchmark_rows",
    "compare",
    "conclude",
    "hash_benchmarks",
    "overview",
    "start",
]
