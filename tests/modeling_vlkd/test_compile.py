"""torch.compile: one graph without a break, and the same results. The tracing is tested, hence cheap backends."""

import copy

import pytest
import torch
from transformers import CompileConfig

BACKENDS = ["eager", pytest.param("inductor", marks=pytest.mark.slow)]  # inductor takes most of a minute


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_forward_is_one_graph(model, batch):
    """`fullgraph` makes any graph break an error."""
    compiled = torch.compile(model.forward, fullgraph=True, backend="eager")
    labels = batch["input_ids"]
    with torch.no_grad():
        output, expected = compiled(**batch, labels=labels), model(**batch, labels=labels)
    torch.testing.assert_close(output.logits, expected.logits, rtol=0, atol=1e-6)
    torch.testing.assert_close(output.loss, expected.loss)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_decode_step_is_one_graph_and_compiled_once(model, processor, images, backend):
    """`generate` compiles the step by itself where the cache is static; here also on a CPU, and without breaks."""
    model = copy.deepcopy(model)  # it keeps what it compiled
    compile_config = CompileConfig(fullgraph=True, dynamic=False, backend=backend, mode=None)
    compile_config._compile_all_devices = True
    compiled = {"cache_implementation": "static", "compile_config": compile_config}
    graphs = torch._dynamo.utils.counters["stats"]
    before = graphs["unique_graphs"]
    for pair in (images[:2], images[2:]):
        batch = processor(images=pair, text=["a photo of", "Question: how many? Answer: <mask>"])
        batch["decoder_input_ids"] = torch.tensor([[2, 0], [2, 0]])
        expected = model.generate(**batch, max_new_tokens=8, min_new_tokens=8)
        assert torch.equal(model.generate(**batch, max_new_tokens=8, min_new_tokens=8, **compiled), expected)
    assert graphs["unique_graphs"] == before + 1
