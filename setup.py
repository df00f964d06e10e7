"""Packaging of the ModeRNN toolkit. Tools are configured in pyproject.toml; this file says what is installed."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

INSTALL = [
    # torch stays open here on purpose: users bring the build for their GPU. constraints-cpu.txt pins a tested set.
    "torch>=2.4",  # the first whose Adam is fused on a CPU
    "deepspeed>=0.17",
    "webdataset>=1.0",
    "submitit>=1.5",
    "numpy>=1.26",
    "lpips>=0.1.4",
    "safetensors>=0.4",  # exported weights
    "tensorboard>=2.14",
    'zarr>=3.1; python_version >= "3.11"',  # there is none for 3.10: stores are tars there
    "numcodecs>=0.13",  # zarr's own codecs, which compressed tars use too
    "google-crc32c>=1.5",  # zarr's own, for the index of a shard
    "pydantic>=2.7",
    "pyproj>=3.6",  # projections of stores and forecasts; 9 MB packed, 33 MB installed
    "pyyaml>=6.0",
    "pillow>=10.1",
    "matplotlib>=3.8",
    "jinja2>=3.1",  # the report's templates; 0.15 MB with MarkupSafe, and PyTorch needs it anyway
    "scipy>=1.11",  # scikit-learn's own; the t-test of the paper's tables
    "scikit-learn>=1.4",  # real handwritten digits without a download; t-SNE and linear probes
]
# What only some archives need: shards says which when it meets one.
ARCHIVES = {
    "radar": ["h5py>=3.10"],  # KNMI, BoM, SEVIR
    "video": ["av>=12.0"],  # KTH's avi and other video; 36 MB, OpenCV would be 61 and decodes no faster
    "grib": ["eccodes>=2.37"],  # MRMS; 46 MB
    # GeoTIFF and its geokeys; 36 MB packed, 108 MB with GDAL. tifffile knows no CRS, fewer compressions.
    "geo": ["rasterio>=1.3"],
    "cf": ["xarray>=2024.9", "h5netcdf>=1.3", "h5py>=3.10"],
}
# What only one model needs.
MODELS = {"pysteps": ["pysteps>=1.17", "opencv-python-headless>=4.8"]}  # built from source: needs a C compiler
# Experiment trackers beside TensorBoard. MLflow's client without its server and data science packages: 4 MB.
TRACKERS = {"wandb": ["wandb>=0.31"], "mlflow": ["mlflow-skinny>=3.17", "sqlalchemy>=2.0", "alembic>=1.13"]}
# Exports as ONNX, and their comparison with the model.
EXPORT = {"onnx": ["onnx>=1.17", "onnxruntime>=1.20", "onnxscript>=0.3"]}
# The site of `make docs`, and the kernel and client that execute its notebook (both of myst-nb): 70 MB installed.
DOCS = ["sphinx>=8.1,<10", "myst-nb>=1.2,<2", "furo>=2024.8"]
DEV = [
    "pytest>=9.0",
    "pytest-timeout>=2.3",
    "coverage>=7.10",
    "hypothesis>=6.100",
    "ruff>=0.6",
    "mypy>=1.11",
    "codespell[toml]>=2.4",
    "types-PyYAML",
    # Tests interpret and compile our kernels; PyTorch for CUDA brings its own, training on a CPU has no use for it.
    'triton>=3.3; sys_platform == "linux" and platform_machine == "x86_64"',
    "scikit-image>=0.22",  # the reference for SSIM and PSNR
    "xarray>=2024.9",  # reads our zarr stores as a user would
    *EXPORT["onnx"],
    "compliance-checker>=6.0",  # judges forecasts by the CF conventions
    *ARCHIVES["radar"],
    *ARCHIVES["video"],
    *ARCHIVES["cf"],
    *ARCHIVES["geo"],
    *DOCS,  # tests build the site and execute the notebook
]

# Folders of the checkout that an installed toolkit keeps among its own files; toolkit/shipped.py finds them.
SHIPPED = {"toolkit.configs": "configs", "toolkit.profiles": "slurm/profiles"}

setup(
    name="modernn-toolkit",
    version="0.1.0",
    description="Distributed training of recurrent spatiotemporal predictors: ModeRNN and its baselines",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8") if (ROOT / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*find_packages(include=["toolkit*", "shards*", "launch*"]), *SHIPPED],
    package_dir=SHIPPED,
    package_data={
        **{name: ["py.typed"] for name in ("shards", "toolkit", "launch")},
        "toolkit.plan": ["costs.json"],
        "toolkit.report.html": ["templates/*"],
        "launch.slurm": ["job.sh"],
        **{name: ["*.yaml", "**/*.yaml"] for name in SHIPPED},
    },
    entry_points={
        "console_scripts": ["toolkit = launch.cli.console:console"],
        "shards.clusters": ["slurm = launch.slurm.array"],  # the job layer of conversions
    },
    install_requires=INSTALL,
    extras_require={
        **ARCHIVES,
        **MODELS,
        **TRACKERS,
        **EXPORT,
        "docs": DOCS,
        "all": sorted({name for extra in ARCHIVES.values() for name in extra}),
        "dev": DEV,
    },
)
