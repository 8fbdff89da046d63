"""Published benchmarks: fetch, draw, judge, score, table.

| module | |
|---|---|
| `benchmark` | what a set is: the protocol, and what passes between the steps |
| `sets/` | one module a benchmark; a module there is all that a further one needs |
| `folders` | where pictures, answers and scores of a run lie |
"""
