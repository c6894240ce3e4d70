"""What every test can ask for."""

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def assets() -> Path:
    """The folder of measurement data. Absent: the test is skipped, but where CI=true promises it, that is a failure."""
    folder = Path(os.environ.get("SHEARLING_ASSETS", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        reason = f"no measurement data at {folder}: set SHEARLING_ASSETS to its folder"
        if os.environ.get("CI") == "true":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's root."""
    return ROOT
