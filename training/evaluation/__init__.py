"""Published benchmarks: `tbac-uniimage evaluate fetch | draw | judge | score | table`.

| module | |
|---|---|
| `command` | the five verbs, each a module with ``add_arguments`` and ``run`` |
| `benchmark` | what a set is: the protocol, and what passes between the verbs |
| `sets/` | one module a benchmark; a module there is all that a further one needs |
| `fetch`, `download`, `hashes`, `reading` | files of a set: brought, checked by hash, read |
| `draw`, `painting`, `manifest` | pictures, and what drew them |
| `judge`, `judges/`, `detectors/`, `words` | what chat models, detectors and readers of words say of them |
| `score`, `scoring` | figures of what was said, with their errors |
| `table`, `sheet` | figures beside published ones, failures beside what was asked |
| `folders` | where pictures, answers and scores lie |
"""
