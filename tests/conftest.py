"""What all tests share: a cache of their own."""

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep the user's cache untouched, also from the processes that tests start."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NST_FAST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
