"""Two stacks, an impaired link, and any seed: every byte arrives, in order, and nothing is left behind."""
