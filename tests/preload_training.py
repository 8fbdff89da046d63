"""Loaded by the server that test processes are forked off: all that a run imports when it first needs it.

The command imports its libraries late, so that it starts fast; each process of a test would import them anew.
"""

import torch
import torch._dynamo  # an optimizer's first step imports it
import torch.distributed.fsdp
import torch.distributed.tensor
import training_runs  # noqa: F401  where a process begins
from tbac_uniimage.core import inputs  # noqa: F401
from tbac_uniimage.training import models, train  # noqa: F401
from tbac_uniimage.training.data.cache import entries  # noqa: F401
from tbac_uniimage.training.recipe import recipe  # noqa: F401
from tbac_uniimage.training.run import engine, loop  # noqa: F401
from tbac_uniimage.training.step import lora  # noqa: F401

torch.set_num_threads(1)
