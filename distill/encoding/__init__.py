"""From saliency maps to encoders."""
