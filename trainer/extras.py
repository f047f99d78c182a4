"""Optional dependencies: which modules they are, and how to install them."""

# Modules that only the extras of setup.py install, and modules that these in turn need.
OPTIONAL = {"accelerate", "datasets", "evaluate", "matplotlib", "peft", "pycocoevalcap", "scipy", "torchdata"}
OPTIONAL |= {"dill", "multiprocess", "pandas", "pyarrow", "pycocotools", "xxhash"}
# The extra of each module that some options of a command need.
EXTRA_OF = dict.fromkeys(("ml_dtypes", "onnx", "onnx_ir", "onnxruntime", "onnxscript"), "onnx")
EXTRA_OF |= {"faiss": "search", "gradio": "demo", "openvino": "openvino", "nncf": "openvino"}


def missing_extra(error: ImportError, user: str, extra: str | None) -> str | None:
    """The message for a missing optional dependency; None if the error has another cause.

    Args:
        error: what an import raised.
        user: the command or class that needs the extra.
        extra: the extra that `user` needs, if any.
    """
    module = (error.name or "").partition(".")[0]
    extra = EXTRA_OF.get(module, extra)
    if extra is None or module not in OPTIONAL | EXTRA_OF.keys():
        return None
    return f"{user} needs {module}, which is not installed. Install the extra '{extra}': pip install \"vlkd[{extra}]\""
