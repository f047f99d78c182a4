"""`torch_compile`: one graph for a step, and no new one for every length of the captions."""

from types import SimpleNamespace

import pytest
import torch
from caption_data import load
from training_runs import build, make_parts


@pytest.fixture
def parts(model, processor, clip_dir, tmp_path) -> SimpleNamespace:
    return make_parts(model, processor, clip_dir, str(tmp_path))


@pytest.mark.slow  # 20 seconds; CI runs it
def test_a_step_is_one_graph_for_all_lengths(parts):
    trainer = build(parts, load(rows=40), torch_compile=True, itdd_weight=1.0)
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: list) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(trainer.model, backend=backend, fullgraph=True)  # an error at a graph break
    trainer.model.train()
    widths = set()
    for number, batch in enumerate(trainer.get_train_dataloader()):
        names = ("input_ids", "attention_mask", "caption_input_ids", "caption_attention_mask", "pixel_values")
        inputs = {name: batch[name] for name in (*names, "decoder_input_ids", "itdd_decoder_input_ids")}
        expected, found = trainer.model(**inputs, use_cache=False), compiled(**inputs, use_cache=False)
        torch.testing.assert_close(found.logits, expected.logits)
        widths.add(tuple(inputs[name].shape[1] for name in ("input_ids", "decoder_input_ids")))
        if number == 7:
            break
    assert len(widths) > 4 and 1 <= len(graphs) <= 4
