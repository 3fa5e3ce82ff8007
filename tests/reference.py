"""Where the outputs of the published code lie, for the tests that compare with them."""

from pathlib import Path

import pytest

PUBLISHED = Path(__file__).parents[1].parent / "shared" / "reference" / "published"
needs_published = pytest.mark.skipif(
    not PUBLISHED.is_dir(), reason="the outputs of the published code are not next to this checkout"
)

DATA = Path(__file__).parents[1].parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the real images are not next to this checkout")
