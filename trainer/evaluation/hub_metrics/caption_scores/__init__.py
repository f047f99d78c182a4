"""The COCO caption metrics."""
