"""The ways to take a step that are measured beside one another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module

from .stepper import Cell, Stepper

__all__ = ["LABELS", "VARIANTS", "Cell", "Stepper", "maker"]

VARIANTS: Mapping[str, str] = {
    "trace": "in_pyro:trace",
    "gap": "in_pyro:gap",
    "kl": "in_pyro:kl",
    "kl_bare": "in_pyro:kl_bare",
    "compiled": "in_pyro:compiled",
    "compiled_bare": "in_pyro:compiled_bare",
    "compiled_10": "in_pyro:compiled_10",
    "by_hand": "by_hand:eager",
    "by_hand_compiled": "by_hand:compiled",
    "by_hand_whole": "by_hand:whole",
    "products": "by_hand:matrix_products",
    "numpyro": "in_numpyro:update",
    "numpyro_scan": "in_numpyro:scan",
    "numpyro_products": "in_numpyro:matrix_products",
    "pymc": "in_pymc:advi",
}
"""Where each is made, by name: its module is imported only where it is measured."""

LABELS: Mapping[str, str] = {
    "trace": "Pyro SVI, Trace_ELBO or TraceEnum_ELBO",
    "gap": "SVI, TraceGap_ELBO",
    "kl": "SVI, TraceKL_ELBO",
    "kl_bare": "SVI, TraceKL_ELBO without terms",
    "compiled": "CompiledSVI, TraceKL_ELBO",
    "compiled_bare": "CompiledSVI, TraceKL_ELBO without terms",
    "compiled_10": "CompiledSVI, 10 steps a call",
    "by_hand": "PyTorch by hand, fused Adam",
    "by_hand_compiled": "by hand, loss compiled, fused Adam",
    "by_hand_whole": "by hand, loss and Adam compiled",
    "products": "the matrix products alone",
    "numpyro": "NumPyro, jitted update",
    "numpyro_scan": "NumPyro, scan of 50 updates",
    "numpyro_products": "the matrix products alone, in JAX",
    "pymc": "PyMC, ADVI",
}
"""What tables and figures call them."""


COMPILED = {"compiled", "compiled_bare", "compiled_10", "by_hand_compiled", "by_hand_whole"}
COMPILER = ("torch._inductor.compile_fx", "torch.utils.cpp_extension")
"""Those that torch compiles, and what it imports to do so."""


def maker(variant: str) -> Callable[[Cell], Stepper]:
    """What makes a variant's stepper, all that it imports being there.

    Raises:
        ImportError: Its library is not installed.
    """
    for library in COMPILER if variant in COMPILED else ():
        import_module(library)
    module, name = VARIANTS[variant].split(":")
    return getattr(import_module(f".{module}", __name__), name)
