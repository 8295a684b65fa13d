"""A userspace TCP/IP stack in pure Python, and a SLIRP-style gateway on it.

What is published here is the public API; everything is loaded on first use, so that `import pystack` stays cheap.
"""

__version__ = "0.1.0"
