"""The maths and the machinery that all quantization methods share."""
