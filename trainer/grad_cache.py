"""GradCache: the exact gradient of a contrastive batch that does not fit into memory, computed in chunks.

ITCL needs the embeddings of all rows at once, but not their activations. So (1) each chunk is embedded without a
graph; (2) the contrastive losses give the gradient of each embedding; (3) each chunk runs again with a graph, and the
scalar product of its embeddings and their gradient is backpropagated.

Gao et al., "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup", 2021.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import PreTrainedModel


def split(batch: dict[str, Any], size: int) -> list[dict[str, Any]]:
    """Split the batch into chunks of `size` rows; the last one may be shorter, and ITDD's inputs end before it."""
    starts = range(0, len(batch["labels"]), size)
    return [
        {name: value[start : start + size] for name, value in batch.items() if start < len(value)} for start in starts
    ]


def draw_seeds(number: int) -> list[int]:
    """Draw a seed for each chunk from the global generator, so that a resumed run draws the same ones."""
    return torch.randint(2**62, (number,)).tolist()


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the dropout, so that both runs of a chunk have the same masks; the global generator is not changed."""
    on_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if on_cpu else [device], device_type="cuda" if on_cpu else device.type):
        torch.manual_seed(seed)
        yield


@torch.no_grad()
def embed(model: PreTrainedModel, chunks: list[dict[str, Any]], seeds: list[int]) -> tuple[Tensor, Tensor]:
    """s and v of all rows, each (batch, projection_dim), without a graph.

    Replaces the `pixel_values` of the chunks by `image_features`: CLIP is frozen, so it runs only once.
    """
    for method in ("get_image_features", "get_text_features"):
        if isinstance(model, FSDPModule) and method not in vars(model):
            register_fsdp_forward_method(model, method)
    texts, images = [], []
    for chunk, seed in zip(chunks, seeds, strict=True):
        if "pixel_values" in chunk:
            pixel_values = chunk.pop("pixel_values")
            chunk["image_features"] = model.get_image_features(pixel_values, return_dict=True).last_hidden_state
        with seeded(seed, chunk["caption_input_ids"].device):
            text = model.get_text_features(
                chunk["caption_input_ids"], chunk["caption_attention_mask"], return_dict=True
            )
        texts.append(text.pooler_output.float())
        images.append(F.normalize(chunk["image_features"][:, 0].float(), dim=-1))
    return torch.cat(texts), torch.cat(images)
