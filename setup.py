"""Package metadata of vla_jax: its dependencies, extras and the `vla` console script."""

import pathlib

from setuptools import find_packages, setup

README = pathlib.Path(__file__).with_name("README.md")

CORE = [
    "absl-py>=2.1",
    "array-record>=0.8.3",
    "av>=18",
    "chex>=0.1.90",
    "datasketches>=5.2,<6",
    "einops>=0.8",
    "etils[epath,epy]>=1.12",
    "filelock>=3.12",
    "flax>=0.12.8,<0.13",
    "fsspec>=2025.3",
    "google-crc32c>=1.5",
    "grain>=0.2.18,<0.3",
    "h5py>=3.11",
    "jax>=0.10.2,<0.13",
    "jinja2>=3.1",
    "matplotlib>=3.8",
    "ml-collections>=1.0",
    "numpy>=2.0",
    "opencv-python-headless>=4.10",
    "optax>=0.2.8,<0.3",
    "orbax-checkpoint>=0.12.8,<0.13",
    "pillow>=10",
    "protobuf>=5",
    "psutil>=5.9",
    "pyarrow>=19",
    "pyyaml>=6",
    "rich>=13",
    "safetensors>=0.6",
    "sentencepiece>=0.2",
    "simplejpeg>=1.8",
    "tensorboardX>=2.6",
    "threadpoolctl>=3.5",
    "tokenizers>=0.21",
]
# Off-screen rendering also needs the system library libosmesa6 (tools/setup_system.sh).
SIM = ["gymnasium>=1.0", "metaworld==3.1.1", "mujoco==3.3.0"]
# TensorFlow runs only in the subprocess of a verb that writes RLDS data.
RLDS = [
    "importlib-resources>=6",
    "tensorflow-datasets>=4.9.10,<5",
    "tensorflow-cpu>=2.21; platform_machine == 'x86_64' and sys_platform != 'darwin'",
    "tensorflow>=2.21; platform_machine != 'x86_64' or sys_platform == 'darwin'",
]
# gs:// for data, and for --workdir (Orbax needs google-cloud-storage, which comes with it).
GCS = ["gcsfs>=2026.8"]
WANDB = ["wandb>=0.31"]
DEV = [
    "gcp-storage-emulator>=2026.7",
    "hypothesis>=6.100",
    "packaging>=24",
    "pytest>=8",
    "pytest-timeout>=2.3",
    "pytest-xdist>=3.6",
    "ruff==0.17.5",
]

setup(
    name="vla_jax",
    version="0.1.0",
    description="Train generalist robot policies in JAX and put them on robots.",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["vla_jax", "vla_jax.*"]),
    package_data={"vla_jax": ["assets/**/*", "data/*.css", "data/*.jinja", "evals/*.jinja"]},
    install_requires=CORE,
    extras_require={
        "sim": SIM,
        "rlds": RLDS,
        "plan": ["jax[tpu]"],
        "gcs": GCS,
        "wandb": WANDB,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["vla = vla_jax.cli.main:main"]},
)
