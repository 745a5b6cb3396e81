"""How much matrix work does a private step ask for on a device that is not here?

Command:
    python -m benchmarks.lowered --suite quick|full|long
"""
