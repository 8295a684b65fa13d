"""What broke other stacks, as programs against a gateway; run by tests/unit/test_bad_input.py."""
