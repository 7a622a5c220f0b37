"""System calls that Python does not wrap: the only room that imports ctypes."""
