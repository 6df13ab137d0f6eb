"""Packaging. ``ssl/`` is a source root, not a package: an ``__init__.py`` there would shadow the standard library."""

from pathlib import Path

from setuptools import find_packages, setup

LINUX_X86 = "platform_system == 'Linux' and platform_machine == 'x86_64'"
CONFIGS = [str(path.parent.relative_to("configs") / "*.yaml") for path in Path("configs").rglob("*.yaml")]

EXPORT = [
    "torch>=2.9",  # whose torch.onnx traces with torch.export
    "sentence-transformers>=6.0",
    "onnx>=1.17",
    "onnxruntime>=1.20",
    "onnxscript>=0.5",
]
DEMO = ["gradio>=6.0"]

setup(
    name="catalign",
    version="0.1.0",
    description="Self-supervised multimodal embeddings of products: pretrain, align, index, benchmark",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    package_dir={"": "ssl", "catalign.configs": "configs"},
    packages=[*find_packages("ssl"), "catalign.configs"],
    package_data={"catalign.configs": sorted(set(CONFIGS)), "catalign.reporting": ["templates/*"]},
    entry_points={"console_scripts": ["catalign = catalign.cli:main"]},
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "timm>=1.0.9",
        "transformers>=4.48",
        "tokenizers>=0.20",
        "lightly>=1.5.13",
        # faiss-gpu and faiss-cpu own the same module, so exactly one of them may be installed; the GPU build runs
        # without a GPU too.
        f"faiss-gpu>=1.11; {LINUX_X86}",
        "faiss-cpu>=1.8; platform_system != 'Linux' or platform_machine != 'x86_64'",
        "einops>=0.7",
        "pytorch-lightning>=2.6",
        "hydra-core>=1.3.2",
        "pydantic>=2.7",
        "datasets>=3.0",
        "huggingface_hub>=0.24",
        "pyarrow>=15",
        "pandas>=2.2",
        "safetensors>=0.4.3",
        "numpy>=1.26",
        "pillow>=10.3",
        "scipy>=1.11",
        "scikit-learn>=1.4",
        "matplotlib>=3.8",
        "jinja2>=3.1",
        "rich>=13.7",
        "tqdm>=4.66",
        "filelock>=3.12",
        "joblib>=1.3",
        "tensorboard>=2.16",
    ],
    extras_require={
        "notebooks": ["jupyterlab>=4.0", "ipywidgets>=8.0"],
        "bench": ["open_clip_torch[training]>=3.0", "implicit>=0.7.2", "pyod>=2.0", "bm25s>=0.2.6", "PyStemmer>=2.2"],
        "export": EXPORT,
        "demo": DEMO,
        "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=0.29"],
        "dev": [
            *EXPORT,
            *DEMO,
            "playwright>=1.48",
            "pytest>=8.0",
            "pytest-xdist>=3.5",
            "hypothesis>=6.100",
            "ir-measures>=0.3.3",
            "implicit>=0.7.2",
            "bm25s>=0.2.6",
            "PyStemmer>=2.2",
            "nbclient>=0.10",
            "nbconvert>=7.16",
            "nbformat>=5.10",
            "ipykernel>=6.29",
            "ruff>=0.8",
            "mypy>=1.13",
            "import-linter>=2.1",
            "pre-commit>=4.0",
            "setuptools>=70.1",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "License :: OSI Approved :: Apache Software License",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
