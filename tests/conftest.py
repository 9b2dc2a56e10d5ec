"""Shape annotations are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook(
    ["fxdecomp.calibration", "fxdecomp.decompositions", "fxdecomp.ranks"], "beartype.beartype"
)
