"""Packaging of VLKD."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (ROOT / "vlkd" / "__init__.py").read_text(encoding="utf-8"), re.M)[1]
# The recipes of real size, which `vlkd train --config NAME` finds in an installed package.
RECIPES = {f"vlkd.recipes.{folder.name}": f"hub_configs/{folder.name}" for folder in ROOT.glob("hub_configs/vlkd-*")}

TRAIN = ["accelerate>=1.10", "datasets>=5.0", "peft>=0.20", "scipy", "torchdata>=0.11"]
EVAL = ["accelerate>=1.10", "datasets>=5.0", "evaluate", "peft>=0.20", "pycocoevalcap", "scipy"]
MICROWORLD = [*TRAIN, *EVAL, "matplotlib"]
DEMO = ["gradio>=6.0"]
SEARCH = ["datasets>=5.0", "faiss-cpu>=1.9"]
ONNX = ["onnx>=1.19", "onnxruntime>=1.23", "onnxscript>=0.7"]
OPENVINO = ["nncf>=2.18", "openvino>=2026.3"]
SERVE = ["fastapi>=0.165", "python-multipart", "uvicorn>=0.30"]
LMMS_EVAL = [*EVAL, "lmms_eval>=0.7.3", "filelock<4"]  # lmms-eval imports a module that filelock 4 does not have
DOCS = ["mkdocs-material", "mkdocstrings[python]"]
DEV = [
    *MICROWORLD,
    *DEMO,
    *SEARCH,
    *ONNX,
    "openvino>=2026.3",
    *SERVE,
    "httpx",
    "import-linter",
    "ipykernel",
    "nbclient",
    "parameterized",
    "psutil",
    "pytest",
    "pytest-xdist",
    "ruff",
    "scikit-learn",
]

setup(
    name="vlkd",
    version=VERSION,
    description="Multimodal generation on CLIP by vision-language knowledge distillation into BART",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    packages=[*find_packages(include=["vlkd", "modeling_vlkd*", "trainer*", "microworld*"]), *RECIPES],
    package_dir=RECIPES,
    package_data={
        "microworld": [
            "*/*.yaml",
            "demo/*.html",
            "drawings/*.md",
            "drawings/*/*.png",
            "drawings/licenses/*",
            "study/*.md",
            "teachers/*/*",
        ],
        "modeling_vlkd": ["model_card.md"],
        "trainer.evaluation.metrics": ["*.md", "requirements.txt"],
        "trainer.evaluation.tasks": ["*.yaml"],
        **dict.fromkeys(RECIPES, ["*.json", "*.yaml"]),
    },
    # Enough for `from_pretrained`, the pipelines, `vlkd caption` and `vlkd ask`.
    install_requires=[
        "torch>=2.6",
        "transformers>=5.23,<6",
        "huggingface_hub>=1.31",
        "pillow>=10.1",
        "pyyaml",
        "tqdm>=4.66.3",
    ],
    extras_require={
        "train": TRAIN,
        "eval": EVAL,
        "onnx": ONNX,
        "openvino": OPENVINO,
        "demo": DEMO,
        "search": SEARCH,
        "serve": SERVE,
        "lmms-eval": LMMS_EVAL,
        "microworld": sorted({*MICROWORLD}),
        "docs": DOCS,
        "dev": sorted({*DEV}),
    },
    entry_points={
        "console_scripts": ["vlkd=trainer.cli:main"],
        "lmms_eval.models": ["vlkd=trainer.evaluation.lmms_eval_model:MANIFEST"],
    },
)
