"""QEMU's own objects as the judge of ours: the same frames into both, and every difference in a class with a name.

oracle      colo-compare (or `colo compare`) in a process of its own, one frame at a time, each answer apart
filters     filter-rewriter, filter-mirror and filter-redirector likewise
cases       seeded generators of frames (tcp_cases, datagram_cases, draft), with what a right comparator must answer
model       QEMU 7.2's algorithm in short, held against QEMU itself, which says where it decides without looking
judge       the answers side by side, and the classes of difference
cover       output commit, checked directly
rewriting   cases, answers and classes for filter-rewriter
"""
