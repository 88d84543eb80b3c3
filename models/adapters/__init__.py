"""Methods with an adapter per task beside the MLPs of a frozen ViT, and a pass with each when they predict.
EASE reads prototypes; MOS and TUNA align heads on Gaussians."""
