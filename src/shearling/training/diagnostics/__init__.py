"""What a model looks like inside while it trains, layer by layer, measured on a fixed batch beside the training."""
