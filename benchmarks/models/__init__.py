"""Pre-trained backbones, what makes them classify or answer, and heads."""
