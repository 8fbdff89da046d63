"""Loaded by the server that test processes are forked off."""

import accelerate  # noqa: F401
import torch
from tbac_uniimage.training import train  # noqa: F401

torch.set_num_threads(1)
