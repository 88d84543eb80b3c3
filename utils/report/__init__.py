"""From figures to what people read: JSON, CSV, terminal, pictures, pages, comparisons, published figures.
Reads results alone, never a model."""
