"""The ladder put to the test: the same small model, told other states of the same frozen MLLM.

The kinds of `core.rung_kinds` get the same frozen parts, samples, budget, noise, first values and number of
parameters (`mixed` has 36 more of 4 million) of a seed, so that they are compared seed by seed. `start` makes
what a run starts from, `run` does everything and goes on where it was stopped, `report` makes tables and a
plot of what is finished.
"""
