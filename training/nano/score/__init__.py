"""The sprite-scene score: does a nano model draw, edit and answer what it is asked, on held-out combinations?

Shaped like GenEval and ImgEdit, but about our own sprites and judged by a detector of our own: it says
nothing about photographs and is not GenEval.

| module | |
|---|---|
| `cases` | what is asked: held-out prompts, edits and questions, none twice |
| `drawing` | the model as three functions: draw, rebuild, answer |
| `store` | pictures and answers on disk; what is there is not made again |
| `judging` | verdicts on the model's pictures and on the others that stand beside them |
| `intervals` | 95 % confidence intervals with the prompt as the unit |
| `rows`, `table` | verdicts to figures, figures to text and JSON |
| `sheet` | contact sheets of passes and failures |
| `command` | `tbac-uniimage score` |
"""

from .command import add_arguments, run

__all__ = ["add_arguments", "run"]
