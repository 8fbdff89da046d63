"""Options of the model put to the test: small models that differ in one of them.

The sides of a study (`studies`) get the same frozen parts, samples, budget, noise and first values of a seed,
so that they are compared seed by seed. `run` does everything and goes on where it was stopped, `report` makes
tables and a plot of what is finished.

- `rungs`: the ladder, and other states of the same frozen MLLM (`core.rung_kinds`). Transformer and connector
  begin anew (`start`); the kinds have the same number of parameters (`mixed` has 36 more of 4 million).
- `source_latents`: the nano model goes on from its weights, with and without the latents of what it edits.
- `text_states`: the same, with and without the text's own tokens beside the queries.
"""
