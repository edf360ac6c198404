"""For all tests: what is kept for later runs is kept in a temporary folder, not in the home of whoever tests."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from in_two import ENGINES


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # For whoever runs all in one process.
    items.sort(key=lambda item: item.path.stem in ENGINES)


@pytest.fixture(autouse=True)
def torch_threads() -> Iterator[None]:
    """A test that sets PyTorch's threads, as --threads does, must not change the sums of the next."""
    torch = sys.modules.get("torch")
    before = None if torch is None else torch.get_num_threads()
    yield
    torch = sys.modules.get("torch")
    if torch is not None and before is not None and torch.get_num_threads() != before:
        torch.set_num_threads(before)
