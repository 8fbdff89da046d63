"""For DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)."""

from tbac_uniimage.core import LadderPipeline  # noqa: F401
