"""What GenEval sees: from a detector's outputs to a verdict on a picture.

| module | |
|---|---|
| `instances` | class and mask logits of Mask2Former become boxes, scores and masks |
| `colours` | what CLIP is shown of an object, and the texts it is compared with |
| `verdict` | objects and a prompt's metadata become right or wrong, with the reason |
"""
