"""Methods that add adapters beside the MLPs of a frozen ViT: one per task, or one for all.
EASE, MOS and TUNA pass an image through each; SSIAT and LAE keep one."""
