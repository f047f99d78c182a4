"""What the model writes when `generate` is called by hand, for the tests of the pipelines."""


def expected(model, processor, images, texts, first_sentence=False, **options) -> list[str]:
    """What `generate` gives, called by hand."""
    batch = processor(images=images, text=texts)
    written = model.generate(**batch, **{"max_new_tokens": 6, **options})
    return processor.post_process_generation(written, batch["input_ids"], first_sentence=first_sentence)
