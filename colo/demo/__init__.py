"""The demonstrations, and what a person sees of them."""
