"""`distill bd`: what a map gains, as BD-rates of whole clips and of where people look."""
