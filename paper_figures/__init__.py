"""The figures: one module each, its data, pictures and manifest in `results/`. Nothing but the command imports them."""
