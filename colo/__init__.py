"""Lock-stepping of two guests' network output for QEMU's COLO (COarse-grained LOck-stepping).

The next step of this project. Nothing is published here yet; what exists today is `pystack`, on whose public API this
package will stand.
"""
