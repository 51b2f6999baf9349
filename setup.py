"""Installs hvae_hpc with its console script; development installs add ``-c constraints.txt``."""

from setuptools import find_packages, setup

# The stage folders jobs, preprocess and results hang in the package by symbolic links (their bare
# names are far too common to be import names), so setuptools finds and copies them as
# hvae_hpc.jobs and so on.
setup(
    name="hvae_hpc",
    version="0.1.0",
    description="Do synthetic image+mask pairs improve tumour segmentation? On SLURM.",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["hvae_hpc", "hvae_hpc.*"]),
    package_data={
        "hvae_hpc.jobs.sweeps": ["*.toml"],
        "hvae_hpc.jobs.sites": ["*.toml"],
        "hvae_hpc.preprocess.recipes": ["*.toml"],
        "hvae_hpc.results": ["published/*", "*.html"],
    },
    # Floors are releases without known holes (CVEs) that have a mended release. Mended later: HDF5
    # 2.0 in h5py's wheels, and torch's CVE-2025-3000, which is about torch.jit.
    install_requires=[
        "torch>=2.10",
        "torchio>=0.20",
        "nibabel>=5.2",
        "submitit>=1.5.3,<1.6",  # the launcher uses names of submitit that are not public
        "h5py>=3.16",
        "numpy>=1.26",
        "scipy>=1.11",
        "pandas>=2.2",
        "pyarrow>=23.0.1",  # rows as Parquet
        "matplotlib>=3.8",
        "pillow>=12.3",
        "simpleitk>=2.3",
        "tqdm>=4.66.3",
        "deflate>=0.7",
        "nvidia-ml-py>=12",  # pynvml: a GPU's utilisation and energy, where there is one
    ],
    extras_require={
        "bench": [  # the peers of benchmarks/ and tests
            "torchio>=0.20",
            "pythae>=0.1.2",
            "monai>=1.5",
            "dynamic-network-architectures>=0.4",
            "nnunetv2>=2.5",
            "statsmodels>=0.14",
        ],
        "tensorboard": ["tensorboard>=2.15"],
        "dev": [
            "tensorboard",
            "pytest",
            "pytest-timeout",
            "pytest-xdist",
            "ruff",
            "mypy",
            "scikit-image",
            "monai",
            "pandas-stubs",
            "scipy-stubs",
            "build",
        ],
    },
    entry_points={"console_scripts": ["hvae-hpc = hvae_hpc.cli:main"]},
)
