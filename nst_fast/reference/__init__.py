"""The slow reference: Gatys' per-image optimiser, and models compared with it."""
