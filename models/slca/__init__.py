"""SLCA and SLCA++, and the parts they are made of: Gaussians, alignment, read-outs, drift.
Any method that keeps Gaussians may use the parts."""
