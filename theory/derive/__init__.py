"""Symbolic derivations of the closed forms, from the law of the masks (SymPy). One module per subject."""
