"""Packaging of VLKD."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="vlkd",
    version="0.1.0",
    description="Multimodal generation on CLIP by vision-language knowledge distillation into BART",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    classifiers=[f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)],
    packages=find_packages(include=["modeling_vlkd*", "trainer*", "microworld*"]),
    package_data={
        "microworld": ["teachers/*/*"],
        "modeling_vlkd": ["model_card.md"],
        "trainer.evaluation.metrics": ["*.md", "requirements.txt"],
        "trainer.evaluation.tasks": ["*.yaml"],
    },
    install_requires=[
        "torch>=2.6",
        "transformers>=5.23,<6",
        "accelerate>=1.10",
        "datasets>=5.0",
        "filelock",
        "huggingface_hub>=1.31",
        "matplotlib",
        "peft>=0.20",
        "pillow>=10.1",
        "pyyaml",
        "scipy",
        "torchdata>=0.11",
        "tqdm>=4.66.3",
    ],
    extras_require={
        "eval": ["evaluate", "pycocoevalcap"],
        "dev": [
            "pytest",
            "pytest-xdist",
            "parameterized",
            "ruff",
            "import-linter",
            "evaluate",
            "pycocoevalcap",
            "scikit-learn",
            "optuna",
        ],
    },
    entry_points={"console_scripts": ["vlkd=trainer.cli:main"]},
)
