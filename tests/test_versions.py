"""The oldest supported transformers and diffusers; `make versions` runs the other pairs."""

import pytest


@pytest.mark.slow
@pytest.mark.long
def test_parity_and_core_with_the_oldest_libraries():
    """As ``scripts/parity_versions.py oldest``; skipped where no package index is at hand."""
    import parity_versions
    from tbac_uniimage.core import MINIMUM

    oldest = [tuple(map(int, version.split("."))) for version in parity_versions.PAIRS["oldest"]]
    wanted = [MINIMUM["transformers"], MINIMUM["diffusers"]]
    assert [found[: len(bound)] for found, bound in zip(oldest, wanted, strict=True)] == wanted
    try:
        parity_versions.make_environment("oldest")
    except RuntimeError as error:
        pytest.skip(str(error))
    assert parity_versions.check("oldest")
