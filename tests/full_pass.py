"""Reference for conditions: one forward of transformers over whole prompts, no prefix and no cache."""

from __future__ import annotations

import torch
from tbac_uniimage.core.checkpoints import LadderParts
from tbac_uniimage.core.encoder import LadderEncoder
from tbac_uniimage.core.inputs import LadderInputs
from tbac_uniimage.core.versions import image_arguments, image_features, mend_positions


def whole_states(parts: LadderParts, encoder: LadderEncoder, inputs: LadderInputs) -> tuple[torch.Tensor]:
    """States ``[batch, tokens, dim]``: inputs of all layers, then the final normed one."""
    mend_positions(parts.mllm)
    model, image_token = parts.mllm.model, parts.mllm.config.image_token_id
    is_query = inputs.input_ids >= encoder.processor.first_query_id
    embeds = model.language_model.embed_tokens(inputs.input_ids.masked_fill(is_query, 0))
    embeds[is_query] = encoder.connector.queries.detach().repeat(len(embeds), 1)
    if inputs.pixel_values is not None:
        features = image_features(model, inputs.pixel_values, inputs.image_grid_thw)
        embeds[inputs.input_ids == image_token] = torch.cat(list(features))
    positions, _ = model.get_rope_index(
        input_ids=inputs.input_ids,
        image_grid_thw=inputs.image_grid_thw,
        attention_mask=inputs.attention_mask,
        **image_arguments(inputs.input_ids, image_token),
    )
    return model.language_model(
        inputs_embeds=embeds,
        position_ids=positions,
        attention_mask=inputs.attention_mask,
        output_hidden_states=True,
    ).hidden_states


def query_states(parts: LadderParts, encoder: LadderEncoder, inputs: LadderInputs) -> list[torch.Tensor]:
    """The same at the queries alone, ``[batch, queries, dim]``."""
    queries = encoder.connector.config.num_queries
    return [states[:, -2 - queries : -2] for states in whole_states(parts, encoder, inputs)]
