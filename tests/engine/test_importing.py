"""What an import leaves behind for the garbage collector."""

import gc

from tenuto.engine.importing import uncollected


def test_what_was_imported_is_never_looked_at_again() -> None:
    before = gc.get_freeze_count()
    try:
        with uncollected():
            assert not gc.isenabled()
            made: list[list[int]] = [[] for _ in range(1000)]
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(made)
    finally:
        gc.unfreeze()
