"""What our training step saves against the same step done the naive way, as the released code does it.

    python benchmarks/train_step.py [--keep] [--batch N] [--turns N] [--divide 16] [--device cpu]

Naive: the queries are rows of the MLLM's embedding matrix, which is trained as a whole, with a hook that
zeroes the gradient of all other rows; the whole sequence runs with gradient, and the hidden states of all
layers and tokens are stacked before those of the queries are taken. Ours: the queries are a parameter of
their own, and the prefix runs without gradient before them.

A step is forward, backward, clipping and AdamW. It starts from latents and vision-tower outputs, which both
ways are given. Depths and token counts are the released ones (36 MLLM layers, 20 blocks, 64 queries, 256
latent tokens, 120 tokens of text, 256 of an input picture), and so are the batches (16, editing 4). Widths
and vocabulary are the released ones divided by ``--divide``, which leaves the embedding matrix its share of
what is trained. Activations are checkpointed as in the published recipes: naive those of MLLM and
transformer, ours as ``train.gradient_checkpointing`` does it. With ``--keep`` both keep all activations.

Losses and query gradients of the same weights and data are compared first. Then both take turns in one
process, in an order drawn anew each time; printed are median and quartiles of the times and of the ratios
of turns. On a CPU a time is the CPU time of one thread, which other work on the machine disturbs least.

Peak memory is that of the second step of one way: the bytes of the tensors it starts from (weights, moments,
batch) and the highest sum of what torch's allocator hands out and takes back during the step, which torch's
profiler records. On CUDA it is max_memory_allocated, with only one way on the device.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from dataclasses import dataclass

import torch
from tbac_uniimage.core.checkpoints.parts import LadderParts, released_configs
from tbac_uniimage.core.conditions import LadderCondition
from tbac_uniimage.core.connector import LadderConnector
from tbac_uniimage.core.inputs import LadderInputs
from tbac_uniimage.core.rope import rope_positions
from tbac_uniimage.core.transformer import LadderTransformer2DModel
from tbac_uniimage.training.step.objective import flow_matching_loss
from tbac_uniimage.training.step.trainee import LadderTrainee
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

TEXT_TOKENS = 120
CHAT_TOKENS = 37  # system turn and all that opens and closes turns
IMAGE_GRID = (1, 32, 32)  # patches of an input picture; 2 x 2 of them make one of its 256 tokens
NUM_QUERIES = 64
LATENT = (32, 16, 16)  # of 512 x 512 pixels: 256 tokens of the transformer
RESERVED = 2  # rows after the queries' in a released embedding matrix
# sizes of heads that divide the widths: MLLM heads and key/value heads, transformer's head sizes
HEADS = {1: (16, 2, 32, 112), 8: (8, 1, 28, 28), 16: (8, 1, 14, 28)}


@dataclass
class Batch:
    """What a step starts from; vision-tower outputs are in ``inputs.features``."""

    inputs: LadderInputs
    latents: torch.Tensor
    noise: torch.Tensor
    u: torch.Tensor


def main() -> None:
    """Compare and measure both ways on text-to-image and on editing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, help="default: 16, and 4 for editing")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--divide", type=int, choices=HEADS, default=16, help="what widths are divided by")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--keep", action="store_true", help="keep activations: no gradient checkpointing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    for editing in (False, True):
        measure(editing, options)


def measure(editing: bool, options: argparse.Namespace) -> None:
    """Print losses, gradients, peak memory and times of both ways."""
    device, size = torch.device(options.device), options.batch or (4 if editing else 16)
    steps, results, peaks = [], [], []
    for way in (NaiveStep, OurStep):
        torch.manual_seed(0)
        step = way(small_model(options.divide, device), checkpointing=not options.keep)
        batch = make_batch(step.parts, size, editing, device)
        results.append((step.backward(batch).item(), step.query_gradient().cpu().clone()))
        step.update()
        peaks.append(peak_memory(step, batch))
        step.optimizer.zero_grad(set_to_none=True)
        step.move("cpu")
        steps.append(step)
    (loss, gradient), (our_loss, our_gradient) = results
    torch.testing.assert_close(our_loss, loss, rtol=1e-5, atol=0)
    error = ((gradient - our_gradient).norm() / gradient.norm()).item()
    assert error < 1e-4, f"the query gradients differ by {error:.1e} of their norm"
    naive, ours = steps
    share = naive.embedding.weight.numel() / sum(p.numel() for p in naive.trained)
    print(
        f"{'editing' if editing else 'text-to-image'}: {size} x {batch.inputs.input_ids.shape[1]} tokens, "
        f"{'no ' if options.keep else ''}checkpointing, widths / {options.divide}, float32, {device}\n"
        f"  trained: naive {millions(naive.trained)}, {share:.0%} of it embedding matrix; "
        f"ours {millions(ours.trained)}\n"
        f"  loss: naive {loss:.7f}, ours {our_loss:.7f}; "
        f"query gradients differ by {error:.0e} of their norm\n"
        f"  peak memory: naive {peaks[0] / 2**20:.0f} MiB, ours {peaks[1] / 2**20:.0f} MiB, "
        f"{1 - peaks[1] / peaks[0]:+.0%} saved",
        flush=True,
    )
    for step in steps:
        step.move(device)
    print(compare(naive, ours, batch, options.turns), flush=True)


def small_model(divide: int, device: torch.device) -> LadderParts:
    """The released model with widths and vocabulary divided, random weights and next to no vision tower."""
    configs, (heads, kv_heads, head_dim, cross_head_dim) = released_configs(), HEADS[divide]
    mllm = configs.mllm
    mllm |= {k: mllm[k] // divide for k in ("hidden_size", "intermediate_size", "vocab_size")}
    section = mllm["hidden_size"] // heads // 16  # 2 : 3 : 3 of half a head
    mllm |= {
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rope_scaling": {"type": "mrope", "mrope_section": [2 * section, 3 * section, 3 * section]},
        "image_token_id": mllm["image_token_id"] // divide,
    }
    mllm["vision_config"] |= {"depth": 1, "hidden_size": 80, "intermediate_size": 16, "num_heads": 2}
    dit = configs.transformer
    width = dit["cross_attention_dim"] // divide
    dit |= {
        "cross_attention_dim": width,
        "caption_channels": dit["caption_channels"] // divide,
        "attention_head_dim": head_dim,
        "num_attention_heads": width // head_dim,
        "cross_attention_head_dim": cross_head_dim,
        "num_cross_attention_heads": width // cross_head_dim,
    }
    with device:
        language = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(mllm))
        transformer = LadderTransformer2DModel.from_config(dit)
        connector = LadderConnector(NUM_QUERIES, mllm["hidden_size"], dit["caption_channels"], RESERVED)
    language.float().requires_grad_(False).eval()
    return LadderParts(language, None, None, connector, transformer.train(), None, None)


class Step:
    """A training step in two halves, :meth:`backward` and :meth:`update`."""

    name: str
    parts: LadderParts
    trained: list[nn.Parameter]

    def backward(self, batch: Batch) -> torch.Tensor:
        """Set the gradients of a batch. Returns its loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(batch)
        loss.backward()
        return loss.detach()

    def update(self) -> None:
        """Clip the gradients and apply them."""
        torch.nn.utils.clip_grad_norm_(self.trained, 0.5)
        self.optimizer.step()

    def move(self, device: torch.device | str) -> None:
        """Move weights and moments."""
        for module in (self.parts.mllm, self.parts.connector, self.parts.transformer):
            module.to(device)
        for state in self.optimizer.state.values():
            for name in ("exp_avg", "exp_avg_sq"):
                state[name] = state[name].to(device)

    def make_optimizer(self) -> None:
        """AdamW of the published recipe over what is trained."""
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.05)


class OurStep(Step):
    """The queries are a parameter; only they run through the MLLM with gradient."""

    name = "ours"

    def __init__(self, parts: LadderParts, checkpointing: bool) -> None:
        self.parts = parts
        if checkpointing:
            parts.transformer.enable_gradient_checkpointing()
        self.trainee = LadderTrainee(parts)
        self.trained = [p for p in self.trainee.parameters() if p.requires_grad]
        self.make_optimizer()

    def loss(self, batch: Batch) -> torch.Tensor:
        return self.trainee(batch.inputs, batch.latents, batch.noise, batch.u).mean()

    def query_gradient(self) -> torch.Tensor:
        """Gradient of the queries ``[queries, dim]``."""
        return self.parts.connector.queries.grad


class NaiveStep(Step):
    """The queries are the last rows of the embedding matrix; everything runs with gradient."""

    name = "naive"

    def __init__(self, parts: LadderParts, checkpointing: bool) -> None:
        self.parts = parts
        self.mllm = parts.mllm.model
        self.image_token = parts.mllm.config.image_token_id
        connector = parts.connector
        rows = [self.mllm.language_model.embed_tokens.weight, connector.queries, connector.reserved_rows]
        matrix = torch.cat(rows).detach()
        self.first = len(rows[0])
        self.embedding = nn.Embedding.from_pretrained(matrix, freeze=False)
        self.mllm.language_model.embed_tokens = self.embedding
        parts.mllm.lm_head = None  # tied to the matrix that was replaced; not needed
        self.embedding.weight.register_hook(self.zero_old_rows)
        if checkpointing:
            parts.transformer.enable_gradient_checkpointing()
            self.mllm.train()  # transformers checkpoints only then; the model has no dropout
            self.mllm.gradient_checkpointing_enable({"use_reentrant": False})
        layers = connector.layers.parameters()
        self.trained = [self.embedding.weight, *layers, *parts.transformer.parameters()]
        self.make_optimizer()

    def zero_old_rows(self, gradient: torch.Tensor) -> torch.Tensor:
        """Leave a gradient to the rows of the queries alone."""
        mask = torch.zeros(len(gradient), 1, dtype=gradient.dtype, device=gradient.device)
        mask[self.first : self.first + NUM_QUERIES] = 1
        return gradient * mask

    def loss(self, batch: Batch) -> torch.Tensor:
        inputs = batch.inputs
        ids, mask = inputs.input_ids, inputs.attention_mask
        positions = rope_positions(ids, mask, self.image_token, inputs.image_grid_thw, merge_size=2)
        embeddings = self.embedding(ids)
        if inputs.features is not None:
            is_image = (ids == self.image_token)[..., None].expand_as(embeddings)
            embeddings = embeddings.masked_scatter(is_image, inputs.features)
        states = self.mllm.language_model(
            inputs_embeds=embeddings,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
            output_hidden_states=True,
        ).hidden_states
        states = torch.stack(states)  # [37, batch, tokens, dim]
        is_query = (ids >= self.first) & (ids < self.first + NUM_QUERIES)
        depth = self.parts.transformer.config.num_layers
        states = states[-depth - 1 : -1, is_query].unflatten(1, (len(ids), NUM_QUERIES))
        attend = torch.ones(len(ids), NUM_QUERIES, dtype=torch.long, device=ids.device)
        condition = LadderCondition(self.parts.connector(states), attend)
        return flow_matching_loss(self.parts.transformer, condition, batch.latents, batch.noise, batch.u)

    def query_gradient(self) -> torch.Tensor:
        """Gradient of the queries ``[queries, dim]``."""
        return self.embedding.weight.grad[self.first : self.first + NUM_QUERIES]


def make_batch(parts: LadderParts, size: int, editing: bool, device: torch.device) -> Batch:
    """Random prompts, vision-tower outputs and latents."""
    source = torch.Generator().manual_seed(1)
    config = parts.mllm.config
    vocabulary, image_token = config.text_config.vocab_size, config.image_token_id
    num_image_tokens = IMAGE_GRID[1] * IMAGE_GRID[2] // 4 if editing else 0
    text = torch.randint(image_token, (size, CHAT_TOKENS + TEXT_TOKENS), generator=source)
    picture = torch.full((size, num_image_tokens), image_token)
    queries = torch.arange(vocabulary, vocabulary + NUM_QUERIES).expand(size, -1)
    closing = torch.zeros(size, 2, dtype=torch.long)
    ids = torch.cat([text[:, :20], picture, text[:, 20:], queries, closing], dim=1).to(device)
    inputs = LadderInputs(ids, torch.ones_like(ids))
    if editing:
        inputs.image_grid_thw = torch.tensor([IMAGE_GRID] * size)
        shape = size * num_image_tokens, config.text_config.hidden_size
        inputs.features = torch.randn(shape, generator=source).to(device)
    latents, noise = (torch.randn(size, *LATENT, generator=source).to(device) for _ in range(2))
    return Batch(inputs, latents, noise, torch.rand(size, generator=source).to(device))


def peak_memory(step: Step, batch: Batch) -> int:
    """Bytes of tensors at the highest point of a whole step that is not the first."""
    if batch.latents.is_cuda:
        torch.cuda.reset_peak_memory_stats()
        step.backward(batch)
        step.update()
        return torch.cuda.max_memory_allocated()
    step.optimizer.zero_grad(set_to_none=True)
    parts = step.parts
    held = [p for module in (parts.mllm, parts.connector, parts.transformer) for p in module.parameters()]
    held += [value for state in step.optimizer.state.values() for value in state.values()]
    held += [batch.latents, batch.noise, batch.u, *filter(torch.is_tensor, vars(batch.inputs).values())]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step.backward(batch)
        step.update()
    events = profiler.profiler.kineto_results.events()
    changes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
    now = peak = 0
    for _, change in sorted(changes, key=lambda change: change[0]):
        now += change
        peak = max(peak, now)
    return peak + sum(tensor.nbytes for tensor in held)


def compare(naive: Step, ours: Step, batch: Batch, turns: int) -> str:
    """Time both in turns. Returns a line with medians, quartiles and ratios."""
    times: dict[Step, list[float]] = {naive: [], ours: []}
    order = [naive, ours]
    clock = time.perf_counter if batch.latents.is_cuda else time.thread_time
    for _ in range(turns):
        random.shuffle(order)
        for step in order:
            synchronize(batch)
            start = clock()
            step.backward(batch)
            step.update()
            synchronize(batch)
            times[step].append(clock() - start)
    ratios = [a / b for a, b in zip(times[naive], times[ours], strict=True)]
    return (
        f"  time of a step: naive {spread(times[naive])} s, ours {spread(times[ours])} s: "
        f"{spread(ratios)} times as fast (median, quartiles of {turns} turns)"
    )


def synchronize(batch: Batch) -> None:
    """Wait for the device."""
    if batch.latents.is_cuda:
        torch.cuda.synchronize()


def spread(values: list[float]) -> str:
    """Median and quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.2f} [{low:.2f}, {high:.2f}]"


def millions(parameters: list[nn.Parameter]) -> str:
    """Number of values, in millions."""
    return f"{sum(p.numel() for p in parameters) / 1e6:.2f} M"


if __name__ == "__main__":
    main()
