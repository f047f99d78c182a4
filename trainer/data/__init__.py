"""Load datasets and build training batches."""

try:
    from pillow_heif import register_heif_opener
except ImportError:  # optional: without it, Pillow does not read HEIC files
    pass
else:
    register_heif_opener()
