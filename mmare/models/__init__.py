"""The model: registry, blocks, phases, conditioning, fusion, head."""
