"""Let a CUDA build of torchvision be imported beside a CPU build of torch.

torchvision registers fake kernels for two of its compiled operators when it is imported; without the compiled
library those operators do not exist and the import fails. Declaring them is enough, nothing here calls them.
Set-up copies this file into the environment, where every start of Python imports it; so it waits until
torchvision is asked for.
"""

import sys


class DeclareOperators:
    """Finds nothing: declares the operators at the first import of torchvision, then leaves."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        """Called by ``import`` before the real finders."""
        if name == "torchvision":
            sys.meta_path.remove(cls)
            import torch

            cls.library = torch.library.Library("torchvision", "DEF")
            cls.library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            cls.library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


if "torchvision" not in sys.modules:
    sys.meta_path.insert(0, DeclareOperators)
